"""Heads as data, so that a file can rebuild the usual ones without running code of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tensornet.errors import TaskFileError

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv2d: ("in_channels", "out_channels", *_GEOMETRY),
    nn.ConvTranspose2d: ("in_channels", "out_channels", "output_padding", *_GEOMETRY),
    nn.Dropout: ("p",),
    nn.Dropout2d: ("p",),
    nn.ReLU: (),
    nn.ReLU6: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.SiLU: (),
    nn.Hardswish: (),
    nn.GELU: ("approximate",),
    nn.Tanh: (),
    nn.Sigmoid: (),
    nn.Identity: (),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Upsample: ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"),
    nn.PixelShuffle: ("upscale_factor",),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
}
_KEEP_THE_WIDTH = (
    *(nn.Sequential, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU),
    *(nn.Tanh, nn.Sigmoid, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.Upsample),
)
_DEEPEST = 16
"""Sequential heads inside each other."""
_STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_BY_NAME = {cls.__name__: cls for cls in _ARGUMENTS}


def describe(head: nn.Module, depth: int = 0) -> dict[str, Any]:
    """The head as data: its type, the arguments that make it, its children; {"type": "custom"} where that is unknown."""
    if type(head) is nn.Sequential and depth < _DEEPEST:
        shared = len({id(p) for p in head.parameters()}) < sum(1 for _ in head.named_parameters(remove_duplicate=False))
        layers = {name: describe(child, depth + 1) for name, child in head._modules.items() if child is not None}
        if shared or any(layer["type"] == "custom" for layer in layers.values()):
            return {"type": "custom"}
        return {"type": "Sequential", "layers": layers}
    if type(head) not in _ARGUMENTS or head.state_dict().keys() - _STATE:
        return {"type": "custom"}
    spec = {"type": type(head).__name__} | {name: _plain(getattr(head, name)) for name in _ARGUMENTS[type(head)]}
    if isinstance(head, _LAYERS) or (isinstance(head, nn.LayerNorm) and head.elementwise_affine):
        spec["bias"] = head.bias is not None
    elif spec.get("affine") and head._parameters.get("bias") is None:
        spec["bias"] = False
    return spec


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def is_described(spec: Mapping[str, Any] | None) -> bool:
    """Whether `build` can make the head; None stands for the backbone's own."""
    return spec is None or spec.get("type") != "custom"


def build(spec: dict[str, Any], depth: int = 0) -> nn.Module:
    """The head that ``describe`` wrote, on the meta device: it has shapes and no numbers yet.

    Raises:
        TaskFileError: the description is not one that `describe` writes.
    """
    arguments = dict(spec)
    kind = arguments.pop("type", None)
    if kind == "Sequential" and depth < _DEEPEST and isinstance(arguments.get("layers"), dict):
        head = nn.Sequential()
        for name, layer in arguments["layers"].items():
            if not isinstance(name, str) or not isinstance(layer, dict) or not name or "." in name or hasattr(head, name):
                raise TaskFileError(f"the head has a layer that cannot be built: {name!r}")
            head.add_module(name, build(layer, depth + 1))
        return head
    if kind not in _BY_NAME:
        raise TaskFileError(f"the head is of a kind that a file cannot describe ({kind!r}); pass head=… to load it")
    allowed = {*_ARGUMENTS[_BY_NAME[kind]]}
    told = _BY_NAME[kind] in _LAYERS or (kind == "LayerNorm" and arguments.get("elementwise_affine"))
    without = arguments.get("affine") and arguments.get("bias") is False
    if told or without:
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
        if isinstance(module, _CONVOLUTIONS):
            return module.in_channels
        if not isinstance(module, _KEEP_THE_WIDTH):
            return None
    return None


def outputs(head: nn.Module) -> int | None:
    """The channels that a head gives, where it is one layer that says so."""
    if isinstance(head, nn.Linear):
        return head.out_features
    return head.out_channels if isinstance(head, _CONVOLUTIONS) else None


def stand_in(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module that holds the tensors of a head of an unknown kind under their names, and computes nothing."""
    root = nn.Module()
    for name, tensor in tensors.items():
        place = root
        *path, leaf = name.split(".")
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        if tensor.is_floating_point():
            place.register_parameter(leaf, nn.Parameter(tensor))
        else:
            place.register_buffer(leaf, tensor)
    return root
