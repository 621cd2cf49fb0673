"""Who is measured: this project, its peers, full fine-tuning, and the limit of all methods with a frozen backbone."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tensornet.bench.setups import CLASSES
from tensornet.config import AdaptConfig
from tensornet.network import AdaptedNetwork, adapt
from tensornet.peers import norms_and_head, with_peer
from tensornet.plan import parameter_total, plan
from tensornet.targets import find_head

LIMIT, FULL = "limit", "full fine-tuning"


@dataclass(frozen=True)
class Contender:
    """A network in train mode, and the parameters that are trained."""

    model: nn.Module
    trained: list[nn.Parameter]

    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.trained)


Maker = Callable[[nn.Module], Contender]
"""Makes a contender of a backbone, which it may change."""


def limit(backbone: nn.Module) -> Contender:
    """Frozen weights; norm layers and head are trained: what no method with a frozen backbone can go below."""
    return Contender(backbone.requires_grad_(False).train(), norms_and_head(backbone, find_head(backbone, None)))


def full(backbone: nn.Module) -> Contender:
    """Every parameter is trained."""
    return Contender(backbone.train(), list(backbone.requires_grad_(True).parameters()))


def deltas(decomposition: str, rank: int, like: tuple[str, int] | None = None, path: str = "auto") -> Maker:
    """Deltas of this project; with ``like``, at the rank that has about the parameters of that decomposition and rank."""

    def make(backbone: nn.Module) -> Contender:
        chosen = rank if like is None else rank_of_equal_size(backbone, decomposition, like)
        net = adapted(backbone, decomposition, chosen)
        net.path = path  # type: ignore[assignment]
        return Contender(net, list(net["task"].parameters()))

    return make


def adapted(backbone: nn.Module, decomposition: str, rank: int, tasks: int = 1) -> AdaptedNetwork:
    """An adapted network with tasks whose deltas are not zero; the first is called `task` and is set."""
    net = adapt(backbone.train(), AdaptConfig(decomposition, rank=rank))
    for i in range(tasks):
        task = net.add_task("task" if i == 0 else f"task{i}", fresh_head(net.backbone))
        with torch.no_grad():
            for _, tensor in task.tensors():
                tensor.factors()[tensor.zero].normal_(std=0.01)
    net.set_task("task")
    return net


def fresh_head(backbone: nn.Module) -> nn.Linear:
    """A new linear head like the backbone's own."""
    path = find_head(backbone, None)
    assert path is not None
    own = backbone.get_submodule(path)
    assert isinstance(own, nn.Linear)
    return nn.Linear(own.in_features, CLASSES, device=own.weight.device, dtype=own.weight.dtype)


def rank_of_equal_size(backbone: nn.Module, decomposition: str, like: tuple[str, int]) -> int:
    """The rank at which a decomposition has the number of parameters closest to that of another and its rank."""
    head = find_head(backbone, None)

    def total(name: str, rank: int) -> int:
        return parameter_total(plan(backbone, AdaptConfig(name, rank=rank), head))

    wanted = total(*like)
    return min(range(1, 4 * like[1]), key=lambda rank: abs(total(decomposition, rank) - wanted))


def peer(name: str, rank: int) -> Maker:
    """The adapters of a peer on the same layers, norms and head trained as well."""

    def make(backbone: nn.Module) -> Contender:
        model = with_peer(name, backbone, rank, find_head(backbone, None))
        return Contender(model, [p for p in model.parameters() if p.requires_grad])

    return make


def contenders() -> dict[str, Maker]:
    """Every contender that can be built here, by name; the limit first."""
    made: dict[str, Maker] = {LIMIT: limit}
    for rank in (8, 50):
        made[f"CP {rank}"] = deltas("cp", rank)
        made[f"Tucker, as CP {rank}"] = deltas("tucker", rank, ("cp", rank))
        made[f"TT, as CP {rank}"] = deltas("tt", rank, ("cp", rank))
    made["CP 8, on the weight"] = deltas("cp", 8, path="weight")
    made["CP 8, on the activations"] = deltas("cp", 8, path="activations")
    if importlib.util.find_spec("peft") is not None:
        made |= {f"PEFT {method} 8": peer(f"peft-{method.lower()}", 8) for method in ("LoRA", "LoKr", "LoHa")}
    if importlib.util.find_spec("lycoris") is not None:
        made["LyCORIS LoCon 8"] = peer("lycoris-locon", 8)
    made[FULL] = full
    return made


def twin(backbone: nn.Module) -> nn.Module:
    """A copy, for a contender to change."""
    return copy.deepcopy(backbone)
