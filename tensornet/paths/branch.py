"""A delta at a layer that can take it through its rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensornet.decompositions import Bottleneck
from tensornet.delta import Delta
from tensornet.paths.layers import Operation, add_product, operation, product
from tensornet.paths.lowrank import Inside, LowRankLayer
from tensornet.paths.rule import COSTS, PATHS, THROUGH_RANK, Call, Core, Path, choose

Way = Literal["auto", "weight", "activations"]
"""What a user asks for; see `AdaptedNetwork.path`."""

_ON_WEIGHT = tuple(path for path in PATHS if path.forward == "weight")
_ALLOWED: Mapping[str, tuple[Path, ...]] = {
    "auto": PATHS,
    "weight": tuple(path for path in _ON_WEIGHT if path.inputs == "weight"),
    "activations": (THROUGH_RANK,),
}


class Branch:
    """A low-rank delta of the weight of one layer.

    Args:
        delta: it has a bottleneck.
        operation: of the layer; None for an embedding, which `beside` alone serves.
    """

    __slots__ = ("delta", "operation")

    def __init__(self, delta: Delta, operation: Operation | None) -> None:
        self.delta = delta
        self.operation = operation

    def beside(self, x: Tensor) -> Tensor:
        """ΔW applied to the input of the layer, of shape (N, …, in), (N, C_in, *size), or indices."""
        parts = self.delta.bottleneck()
        assert parts is not None
        if self.operation is None:
            return self.delta.scale * F.linear(F.embedding(x, parts.out), parts.rows().T)
        batched = self.operation.batched(x)
        inside = Inside(self.operation, parts, self.operation.padded(batched))
        y = self.operation.unflat(product(parts.out, inside.output), inside.like)
        return self.delta.scale * (y if batched is x else y.squeeze(0))

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add ΔW applied to ``x`` to the output ``y`` of the layer, in place; without gradients."""
        operation = self.operation
        if operation is None or operation.batched(x) is not x:
            y += self.beside(x)
            return
        parts = self.delta.bottleneck()
        assert parts is not None
        inside = Inside(operation, parts, operation.padded(x))
        add_product(operation, y, parts.out if self.delta.scale == 1 else self.delta.scale * parts.out, inside.output)

    def takes(self, layer: nn.Module, x: Any) -> bool:
        """Whether `step` can compute this call: a batch for a frozen layer, in its dtype, under plain autograd."""
        if self.operation is None or not isinstance(x, Tensor) or self.operation.batched(x) is not x or _transformed():
            return False
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        if weight is None or weight.requires_grad or (bias is not None and bias.requires_grad):
            return False
        return x.dtype == weight.dtype or _autocast(x)

    def step(self, layer: nn.Module, x: Tensor, way: Way) -> Tensor:
        """The output of the layer with W + ΔW.

        In train mode the rule, or ``way``, chooses how. In eval mode the output is computed on the weight unless ``way`` is
        "activations": there, a kept W + ΔW gives the same bits without gradients.
        """
        allowed = _ALLOWED[way] if layer.training or way == "activations" else _ON_WEIGHT
        if not _autocast(x):
            return self._step(layer, x, allowed)
        device = x.device.type
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return self._step(layer, x, allowed)

    def _step(self, layer: nn.Module, x: Tensor, allowed: tuple[Path, ...]) -> Tensor:
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        parts = self.delta.bottleneck()
        assert self.operation is not None
        assert parts is not None
        assert weight is not None
        x = self.operation.padded(x)
        path = allowed[0] if len(allowed) == 1 else choose(self._call(x, parts, weight), COSTS[x.device.type], allowed)
        rest = weight, bias, self.delta.scale, self.operation, path
        y: Tensor = LowRankLayer.apply(x, *parts, *rest)  # type: ignore[no-untyped-call]
        return y

    def _call(self, x: Tensor, parts: Bottleneck, weight: Tensor) -> Call:
        assert self.operation is not None
        kernel = weight.shape[2:].numel()
        outputs = self.operation.outputs(tuple(x.shape))
        inputs = outputs if self.operation.pointwise else x.numel() // weight.shape[1]
        into = weight.shape[1] if parts.into is None else parts.into.shape[0]
        core: Core = (
            "none" if parts.core is None or self.operation.pointwise else "full" if parts.core.ndim == 3 else "diagonal"
        )
        rank = parts.out.shape[1]
        return Call(outputs, inputs, weight.shape[0], weight.shape[1], kernel, rank, rank if core == "none" else into, core)


def branch(layer: nn.Module, deltas: Mapping[str, Delta]) -> Branch | None:
    """The only delta of a layer, where the layer can take it through its rank; None where it cannot."""
    if len(deltas) != 1:
        return None
    ((name, delta),) = deltas.items()
    if name != "weight" or delta.target.transposed or delta.bottleneck() is None:
        return None
    kind: Any = getattr(layer, "_base", type(layer))
    if kind.forward is nn.Embedding.forward:
        assert isinstance(layer, nn.Embedding)
        plain = layer.padding_idx is None and not layer.scale_grad_by_freq and not layer.sparse
        return Branch(delta, None) if plain else None
    own = operation(layer)
    return None if own is None else Branch(delta, own)


def _autocast(x: Tensor) -> bool:
    """Whether autocast converts ``x``; it leaves float64 as it is."""
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def _transformed() -> bool:
    """Whether a compiler, a transform of `torch.func` or forward-mode differentiation is at work."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )
