"""A delta at a layer that can take it through its rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensornet.autocast import autocast_on, without_autocast
from tensornet.decompositions import Bottleneck
from tensornet.delta import Delta
from tensornet.paths.compiled import compiled_layer
from tensornet.paths.layers import Operation, add_product, product
from tensornet.paths.lowrank import Inside, LowRankLayer, chosen, output, scaled
from tensornet.paths.rule import COSTS, ON_WEIGHT
from tensornet.paths.together import LayerCall, made_for
from tensornet.versions import state

Way = Literal["auto", "weight", "activations"]
"""What a user asks for; see `AdaptedNetwork.path`."""


class Branch:
    """A low-rank delta of the weight of one layer.

    Args:
        delta: it has a bottleneck.
        operation: of the layer; None for an embedding, which `beside` alone serves.

    Attributes:
        plain: the last call, where the rule left it to plain autograd, and the `state` of the layer's weight then.
    """

    __slots__ = ("delta", "operation", "plain")

    def __init__(self, delta: Delta, operation: Operation | None) -> None:
        self.delta = delta
        self.operation = operation
        self.plain: tuple[LayerCall, tuple[Any, ...]] | None = None

    def beside(self, x: Tensor) -> Tensor:
        """ΔW applied to the input of the layer, of shape (N, …, in), (N, C_in, *size), or indices."""
        x, parts = self._seen(x)
        if self.operation is None:
            return self.delta.scale * F.linear(F.embedding(x, parts.out), parts.rows().T)
        batched = self.operation.batched(x)
        inside = Inside(self.operation, parts, self.operation.padded(batched))
        y = self.operation.unflat(product(parts.out, inside.output), inside.like, inside.last)
        return self.delta.scale * (y if batched is x else y.squeeze(0))

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add ΔW applied to ``x`` to the output ``y`` of the layer, in place; without gradients."""
        operation = self.operation
        if operation is None or operation.batched(x) is not x:
            y += self.beside(x)
            return
        x, parts = self._seen(x)
        inside = Inside(operation, parts, operation.padded(x))
        add_product(operation, y, scaled(parts.out, self.delta.scale), inside.output, inside.last)

    def _seen(self, x: Tensor) -> tuple[Tensor, Bottleneck]:
        """The input and the parts of the delta in the dtype in which they meet: autocast knows no `torch.convolution`."""
        parts = self.delta.bottleneck()
        assert parts is not None
        if not (x.is_floating_point() and _autocast(x)):
            return x, parts
        dtype = torch.get_autocast_dtype(x.device.type)
        return x.to(dtype), parts.to(dtype)

    def takes(self, layer: nn.Module, x: Any) -> bool:
        """Whether `step` can compute this call: a batch for a frozen layer, in its dtype, under plain autograd."""
        if self.operation is None or not isinstance(x, Tensor) or self.operation.batched(x) is not x or transformed():
            return False
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        if weight is None or weight.requires_grad or (bias is not None and bias.requires_grad):
            return False
        return x.dtype == weight.dtype or _autocast(x)

    def step(self, layer: nn.Module, x: Tensor, way: Way, number: int) -> Tensor:
        """The output of the layer, which has this ``number``, with W + ΔW.

        In train mode the rule, or ``way``, chooses how. In eval mode the output is computed on the weight unless ``way`` is
        "activations": there, a kept W + ΔW gives the same bits without gradients.
        """
        allowed = way if layer.training or way != "auto" else "output on the weight"
        weight, bias, operation, device = layer._parameters["weight"], layer._parameters["bias"], self.operation, x.device
        assert operation is not None
        assert weight is not None
        x = operation.padded(x.to(torch.get_autocast_dtype(device.type)) if _autocast(x) else x)
        if torch.compiler.is_compiling():
            with without_autocast(device.type):
                return self._compiled(x, weight, bias, allowed, number)
        call = LayerCall(self.delta, x.shape, x.dtype, device, allowed, COSTS[device.type])
        made = made_for(number, call)
        if made is not None:
            return operation.apply(x, made, None if bias is None else bias.to(x.dtype))
        with without_autocast(device.type):
            return self._alone(x, weight, bias, call)

    def _compiled(self, x: Tensor, weight: Tensor, bias: Tensor | None, allowed: str, number: int) -> Tensor:
        """`step` from the padded input in its dtype, for a compiler."""
        parts, scale, operation = self.delta.bottleneck(), self.delta.scale, self.operation
        assert operation is not None
        assert parts is not None
        if COSTS[x.device.type].plain(ON_WEIGHT) and allowed != "activations":
            return output(x, parts, weight, bias, scale, operation, ON_WEIGHT)
        if allowed != "activations" and not torch.is_grad_enabled():
            allowed = "kept"
        return compiled_layer(x, parts, weight, bias, scale, allowed, number)

    def _alone(self, x: Tensor, weight: Tensor, bias: Tensor | None, call: LayerCall) -> Tensor:
        """`step` from the padded input in its dtype, where W + ΔW was not made before."""
        parts, scale, operation = self.delta.bottleneck(), self.delta.scale, self.operation
        assert operation is not None
        assert parts is not None
        path = chosen(operation, x, parts, weight, call.allowed)
        if call.costs.plain(path):
            self.plain = call, state(weight)
            return output(x, parts, weight, bias, scale, operation, path)
        self.plain = None
        y: Tensor = LowRankLayer.apply(x, *parts, weight, bias, scale, operation, path)  # type: ignore[no-untyped-call]
        return y


def branch(layer: nn.Module, own: Operation | None, deltas: Mapping[str, Delta]) -> Branch | None:
    """The only delta of a layer with the operation ``own``, where the layer can take it through its rank; or None."""
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
    return None if own is None else Branch(delta, own)


def _autocast(x: Tensor) -> bool:
    """Whether autocast converts ``x``; it leaves float64 as it is."""
    return autocast_on(x.device.type) and x.dtype != torch.float64


def transformed() -> bool:
    """Whether an export, a trace, a transform of `torch.func` or forward-mode differentiation is at work."""
    if torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():
        return False
    return torch.autograd.forward_ad._current_level >= 0 or torch._C._is_tracing()
