"""A task as an adapter that PEFT loads: LoRA where that says the same, whole layers elsewhere."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tensornet.atomic import write_folder
from tensornet.attach import Content
from tensornet.backbones import class_and_checkpoint
from tensornet.errors import StateError
from tensornet.network import AdaptedNetwork
from tensornet.states import packed
from tensornet.targets import inside

CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_INSIDE = "base_model.model."
"""Where PEFT has the backbone."""
_STOCK = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class ExportedLayer:
    """How a layer was written.

    Attributes:
        layer: its path.
        rank: of the LoRA; None for a layer that is written whole, with W + ΔW or as the task's own norm or head.
        parameters: how many numbers that takes, buffers included.
    """

    layer: str
    rank: int | None
    parameters: int


def export_task(net: AdaptedNetwork, name: str, path: str | Path) -> list[ExportedLayer]:
    """Write a task as a folder for `peft.PeftModel.from_pretrained(backbone, path)`, whole or not at all.

    A delta that goes through Q maps, ΔW[o, i, k] = Σ_q out[o, q] · rows[q, i, k], is LoRA of rank Q, nothing lost
    (Hu et al., arXiv 2106.09685, eq. 3): A = rows of shape (Q, C_in, *kernel), B = scale · out of shape (C_out, Q). That
    holds for CP, Tucker, tensor trains and low rank. PEFT's LoRA has no groups, dilation or padding mode and knows neither
    transposed convolutions nor Kronecker products: such layers are written whole (`modules_to_save`), as are norms and head.

    Args:
        net: has the task.
        name: of the task.
        path: the folder; an adapter that is there is replaced.

    Returns:
        Every layer that the adapter changes, in network order.

    Raises:
        UnknownNameError: there is no task of that name.
        StateError: the task has no delta that LoRA can say, a head or norm with other tensors than the backbone's, or layers
            that PEFT cannot tell apart.
        WriteError: as `write_folder`.
    """
    task, plain = net[name], net.merged(name)
    if "" in task.contents():
        raise StateError(
            "the backbone is one layer, which PEFT cannot replace; merge the task into ordinary weights instead"
        )
    loras = {layer: parts for layer, content in task.contents().items() if (parts := _lora(net, layer, content)) is not None}
    whole = _whole([layer for layer in task.contents() if layer not in loras], [path for path, _ in plain.named_modules()])
    tensors: dict[str, dict[str, Tensor]] = {}
    ranks: dict[str, int] = {}
    for layer, module in plain.named_modules():
        if layer in whole:
            tensors[layer] = _as_the_backbone_has_them(name, layer, net.backbone.get_submodule(layer), module)
        elif layer in loras and not any(inside(layer, other) for other in whole):
            a, b = loras[layer]
            ranks[layer], tensors[layer] = len(a), {"lora_A.weight": a, "lora_B.weight": b}
    if not ranks:
        raise StateError(f"task {name!r} has no delta that PEFT's LoRA can say; merge it into ordinary weights instead")
    _check_one_place(plain, list(tensors))
    keyed = {f"{_INSIDE}{layer}.{key}": tensor for layer, own in tensors.items() for key, tensor in own.items()}
    files: dict[str, bytes | str] = {
        CONFIG: json.dumps(_config(net.backbone_name, ranks, whole), indent=1) + "\n",
        TENSORS: save(packed(keyed), {"format": "pt"}),
        CARD: _card(name, net.backbone_name, net.head_path, {} if task.head is None else task.head.state_dict()),
    }
    write_folder(path, files, mark=CONFIG)
    return [ExportedLayer(layer, ranks.get(layer), sum(t.numel() for t in own.values())) for layer, own in tensors.items()]


def _lora(net: AdaptedNetwork, path: str, content: Content) -> tuple[Tensor, Tensor] | None:
    """A and B of a layer; None where PEFT's LoRA cannot compute what the task does."""
    layer = net.backbone.get_submodule(path)
    stock = getattr(layer, "_base", type(layer)) in _STOCK
    fused = isinstance(net.backbone.get_submodule(path.rpartition(".")[0]), nn.TransformerEncoderLayer)  # reads W past it
    if not stock or fused or content.replacement is not None or list(content.deltas) != ["weight"]:
        return None
    if isinstance(layer, _ConvNd) and (layer.groups > 1 or max(layer.dilation) > 1 or layer.padding_mode != "zeros"):
        return None
    (delta,) = content.deltas.values()
    parts = delta.bottleneck()
    if parts is None:
        return None
    b = delta.scale * parts.out
    shape = delta.target.shape
    return parts.rows().reshape(-1, *shape[1:]), b.reshape(*b.shape, *(1 for _ in shape[2:]))


def _whole(wanted: list[str], paths: list[str]) -> list[str]:
    """The layers to write whole: the outermost of those that are ``wanted``, and all that PEFT takes for one of them.

    Raises:
        StateError: PEFT would take a layer inside one of them for another.
    """
    outermost = [layer for layer in wanted if not any(layer != other and inside(layer, other) for other in wanted)]
    taken = [path for path in paths if path.endswith(tuple(outermost))]  # so does PEFT, also inside a name
    nested = next(((path, other) for path in taken for other in taken if path != other and inside(path, other)), None)
    if nested is not None:
        raise StateError(
            f"{nested[0]} lies in {nested[1]}, and PEFT can keep but one of them whole: it tells layers by their end"
        )
    return taken


def _check_one_place(network: nn.Module, layers: list[str]) -> None:
    """PEFT reaches a layer by one path.

    Raises:
        StateError: one is registered under several, so that it would stay the backbone's under the others.
    """
    written = {id(network.get_submodule(layer)): layer for layer in layers}
    for path, module in network.named_modules(remove_duplicate=False):
        layer = written.get(id(module), path)
        if path != layer:
            raise StateError(
                f"{layer} is also called {path}, and PEFT reaches but one; merge the task into ordinary weights"
            )


def _as_the_backbone_has_them(name: str, layer: str, own: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a layer that is written whole."""
    wanted, found = list(own.state_dict()), module.state_dict()
    if wanted != list(found):
        raise StateError(
            f"task {name!r}: its {layer!r} has the tensors {', '.join(found)}; PEFT can only fill those of the backbone's: "
            f"{', '.join(wanted)}"
        )
    return found


def _config(backbone: str, ranks: dict[str, int], whole: list[str]) -> dict[str, Any]:
    """What PEFT reads: patterns are tried anew for every path, so they hold paths as they are, from beginning to end."""
    library, _, rest = backbone.partition(":")
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": class_and_checkpoint(rest)[1] if library == "transformers" else backbone,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": "|".join(map(re.escape, ranks)),
        "modules_to_save": whole or None,
        "inference_mode": True,
    }


def _card(name: str, backbone: str, path: str | None, head: dict[str, Tensor]) -> str:
    shapes = [f"`{path}.{key}` of shape {tuple(tensor.shape)}" for key, tensor in head.items()]
    wanted = f"\nThe backbone has to have a head of the task's width: {', '.join(shapes)}.\n" if shapes else ""
    return f"""---
library_name: peft
base_model: {json.dumps(backbone)}
---

# {name}

A task for the frozen backbone `{backbone}`, written by tensornet as LoRA.
{wanted}
```python
from peft import PeftModel

model = PeftModel.from_pretrained(backbone, "path/to/this/folder").eval()
```
"""
