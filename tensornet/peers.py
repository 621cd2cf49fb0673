"""Adapters of other libraries on the same layers, norms and head trained as well: what this project is compared with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from tensornet.errors import ConfigError, MissingExtraError
from tensornet.norms import find_norms
from tensornet.targets import candidates, in_head

Peer = Callable[[nn.Module, int, str | None, Mapping[str, Any]], nn.Module]
"""From a plain backbone, a rank, the path of its head and the peer's own options to a network.

What requires gradients there is to be trained."""


def lora(backbone: nn.Module, rank: int, head: str | None, options: Mapping[str, Any]) -> nn.Module:
    """LoRA of PEFT; layers whose groups it refuses are left out. Hu et al., arXiv 2106.09685."""
    from peft import LoraConfig

    names = _without_groups(backbone, head)
    return _peft(backbone, LoraConfig(r=rank, lora_alpha=rank, target_modules=names, **options), head)


def lokr(backbone: nn.Module, rank: int, head: str | None, options: Mapping[str, Any]) -> nn.Module:
    """LoKr of PEFT, with its own choice of Kronecker factors. Yeh et al., arXiv 2309.14859."""
    from peft import LoKrConfig

    return _peft(backbone, LoKrConfig(r=rank, alpha=rank, target_modules=adapted_layers(backbone, head), **options), head)


def loha(backbone: nn.Module, rank: int, head: str | None, options: Mapping[str, Any]) -> nn.Module:
    """LoHa of PEFT. Hyeon-Woo et al., arXiv 2108.06098."""
    from peft import LoHaConfig

    return _peft(backbone, LoHaConfig(r=rank, alpha=rank, target_modules=adapted_layers(backbone, head), **options), head)


def locon(backbone: nn.Module, rank: int, head: str | None, options: Mapping[str, Any]) -> nn.Module:
    """LoCon of LyCORIS. Yeh et al., arXiv 2309.14859."""
    from lycoris import LycorisNetwork, create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.WARNING)  # it tells every layer that it wraps, on standard output
    names = _without_groups(backbone, head)
    trained = norms_and_head(backbone.requires_grad_(False), head)
    LycorisNetwork.apply_preset({"target_name": names, "target_module": []})
    network = create_lycoris(
        backbone, 1.0, linear_dim=rank, linear_alpha=rank, conv_dim=rank, conv_alpha=rank, algo="lora", **options
    )
    network.apply_to()
    return _trained(_Beside(backbone, network), trained)


class _Beside(nn.Module):
    """A backbone whose layers call adapters that are kept beside it: inside, a sequence of layers would call them too."""

    def __init__(self, backbone: nn.Module, adapters: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters = adapters

    def forward(self, x: Any) -> Any:
        return self.backbone(x)


PEERS: dict[str, Peer] = {"peft-lora": lora, "peft-lokr": lokr, "peft-loha": loha, "lycoris-locon": locon}
"""Every peer by name."""


def with_peer(
    name: str, backbone: nn.Module, rank: int, head: str | None, options: Mapping[str, Any] = MappingProxyType({})
) -> nn.Module:
    """A plain backbone with the adapters of a peer on it.

    Args:
        name: one of `PEERS`.
        backbone: is changed.
        rank: of the adapters.
        head: path of the backbone's head.
        options: what else the peer's own constructor is told.

    Raises:
        MissingExtraError: the library is not installed.
        ConfigError: it cannot be made with these options.
    """
    try:
        return PEERS[name](backbone, rank, head, options)
    except ImportError as error:
        raise MissingExtraError(f"the peer {name}", "bench", error.name) from error
    except (TypeError, ValueError) as error:
        if not options:
            raise
        raise ConfigError(f"the peer {name} cannot be made with the options {', '.join(options)}: {error}") from error


def adapted_layers(backbone: nn.Module, head: str | None) -> list[str]:
    """The layers that every method adapts: convolutions and linear layers but the head."""
    embeddings = {path for path, module in backbone.named_modules() if isinstance(module, nn.Embedding)}
    return [t.module for t in candidates(backbone) if not in_head(t, head) and t.module not in embeddings]


def norms_and_head(backbone: nn.Module, head: str | None) -> list[nn.Parameter]:
    """The parameters of norm layers and head, made trainable."""
    modules = [backbone.get_submodule(path) for path in find_norms(backbone, head)]
    modules += [backbone.get_submodule(head)] if head is not None else []
    return [p for module in modules for p in module.requires_grad_(True).parameters()]


def _peft(backbone: nn.Module, config: object, head: str | None) -> nn.Module:
    from peft import get_peft_model

    trained = norms_and_head(backbone, head)  # found before there are layers of the peer among them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = get_peft_model(backbone, config)
    return _trained(model, trained)


def _trained(model: nn.Module, also: list[nn.Parameter]) -> nn.Module:
    for parameter in also:
        parameter.requires_grad_(True)  # a peer freezes all that is not its own
    return model.train()


def _without_groups(backbone: nn.Module, head: str | None) -> list[str]:
    """The adapted layers that the peers' LoRA can adapt: it refuses grouped convolutions whose groups exceed the rank."""
    return [p for p in adapted_layers(backbone, head) if getattr(backbone.get_submodule(p), "groups", 1) == 1]
