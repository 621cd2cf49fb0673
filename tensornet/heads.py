"""Heads as data, so that a file can rebuild the usual ones without running code of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tensornet.errors import TaskFileError

_LAYERS = (nn.Linear, nn.Conv2d)
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", *_GEOMETRY),
    nn.Dropout: ("p",),
    nn.ReLU: (),
    nn.GELU: ("approximate",),
    nn.Tanh: (),
    nn.Identity: (),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
}
_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_BY_NAME = {cls.__name__: cls for cls in _ARGUMENTS}


def describe(head: nn.Module) -> dict[str, Any]:
    """The head as data: its type, the arguments that make it, its children; {"type": "custom"} where that is unknown."""
    if type(head) is nn.Sequential:
        shared = len({id(p) for p in head.parameters()}) < sum(1 for _ in head.named_parameters(remove_duplicate=False))
        layers = {name: describe(child) for name, child in head._modules.items() if child is not None}
        if shared or any(layer["type"] == "custom" for layer in layers.values()):
            return {"type": "custom"}
        return {"type": "Sequential", "layers": layers}
    if type(head) not in _ARGUMENTS or head.state_dict().keys() - _STATE:
        return {"type": "custom"}
    spec = {"type": type(head).__name__} | {name: _plain(getattr(head, name)) for name in _ARGUMENTS[type(head)]}
    if isinstance(head, _LAYERS) or (isinstance(head, nn.LayerNorm) and head.elementwise_affine):
        spec["bias"] = head.bias is not None
    return spec


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def build(spec: dict[str, Any], depth: int = 0) -> nn.Module:
    """The head that ``describe`` wrote, on the meta device: it has shapes and no numbers yet.

    Raises:
        TaskFileError: the description is not one that `describe` writes.
    """
    arguments = dict(spec)
    kind = arguments.pop("type", None)
    if kind == "Sequential" and depth < 4 and isinstance(arguments.get("layers"), dict):
        head = nn.Sequential()
        for name, layer in arguments["layers"].items():
            if not isinstance(name, str) or not isinstance(layer, dict) or not name or "." in name or hasattr(head, name):
                raise TaskFileError(f"the head has a layer that cannot be built: {name!r}")
            head.add_module(name, build(layer, depth + 1))
        return head
    if kind not in _BY_NAME:
        raise TaskFileError(f"the head is of a kind that a file cannot describe ({kind!r}); pass head=… to load it")
    allowed = {*_ARGUMENTS[_BY_NAME[kind]]}
    if _BY_NAME[kind] in _LAYERS or (kind == "LayerNorm" and arguments.get("elementwise_affine")):
        allowed.add("bias")
    each = [v for value in arguments.values() for v in (value if isinstance(value, list) else [value])]
    sizes = [v for v in each if isinstance(v, int) and not isinstance(v, bool)]
    if set(arguments) != allowed or any(abs(size) > 2**31 for size in sizes):
        raise TaskFileError(f"the head's {kind} should have the settings {sorted(allowed)}; got {arguments}")
    try:
        with torch.device("meta"):
            return _BY_NAME[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskFileError(f"the head's {kind} cannot be built from {arguments}: {error}") from None


def input_width(head: nn.Module) -> int | None:
    """The features that a head takes, where its first layer that minds is linear or a convolution; None where it is not."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if not isinstance(module, nn.Sequential | nn.Dropout | nn.Identity | nn.ReLU | nn.GELU | nn.Tanh | nn.LayerNorm):
            return None
    return None


def outputs(head: nn.Module) -> int | None:
    """The channels that a head gives, where it is one layer that says so."""
    if isinstance(head, nn.Linear):
        return head.out_features
    return head.out_channels if isinstance(head, nn.Conv2d) else None
