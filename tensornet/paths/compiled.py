"""A layer with a low-rank delta as one operator of PyTorch: a compiler calls it and does not look inside.

What a compiler makes of W + ΔW is slower than eager mode: it adds them up in every call, and takes the gradient of the dense
weight. Inside the operator are the paths of eager mode and, without gradients, a sum W + ΔW that is kept on the CPU while
the operator is given the same numbers. Elsewhere comparing them would wait for the device, and a replayed graph cannot.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, library

from tensornet.decompositions import Bottleneck
from tensornet.paths.layers import Operation
from tensornet.paths.lowrank import chosen, gradients, output
from tensornet.versions import state


class Keeper(Protocol):
    """What the operator asks of a layer: how it computes, and where it keeps things that can be computed again."""

    operation: Operation | None
    cache: dict[str, Any]


class _Sum:
    """W + scale · ΔW, and what it was made from."""

    def __init__(self, parts: Bottleneck, weight: Tensor, scale: float) -> None:
        self._weight, self._state = weight.detach(), state(weight)  # the address is not used again
        self._parts = [None if part is None else part.clone() for part in parts]
        self._scale = scale
        self.value = parts.added_to(weight, scale).to(weight.dtype)

    def holds(self, parts: Bottleneck, weight: Tensor, scale: float) -> bool:
        """Whether nothing has changed."""
        pairs = zip(parts, self._parts, strict=True)
        same = scale == self._scale and state(weight) == self._state
        return same and all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


_keepers: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count()


def numbered(keeper: Keeper) -> int:
    """A number by which the operator finds ``keeper`` while that lives: operators take tensors and numbers only."""
    number = next(_numbers)
    _keepers[number] = keeper
    return number


def _operation(number: int) -> Operation:
    own: Operation = _keepers[int(number)].operation
    return own


def compiled_layer(
    x: Tensor,
    parts: Bottleneck,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    allowed: str,
    number: int,
) -> Tensor:
    """The output of a layer with W + scale · ΔW.

    Args:
        x: the layer's input, padded.
        parts: of the delta.
        weight, bias: the layer's own, frozen.
        scale: of the delta.
        allowed: see `ALLOWED`; "kept" for a sum W + ΔW, without gradients.
        number: of the layer.
    """
    if allowed == "kept":
        return torch.ops.tensornet.low_rank_layer(x, *parts, weight, bias, scale, allowed, number)
    y: Tensor = _Layer.apply(x, *parts, weight, bias, scale, allowed, number)  # type: ignore[no-untyped-call]
    return y


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out: Tensor, core: Any, into: Any, weight: Tensor, bias: Any, *rest: Any) -> Tensor:
        ctx.save_for_backward(x, out, core, into, weight)
        ctx.rest = rest
        return torch.ops.tensornet.low_rank_layer(x, out, core, into, weight, bias, *rest)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, out, core, into, weight = ctx.saved_tensors
        wants_x = ctx.needs_input_grad[0]
        found = torch.ops.tensornet.low_rank_layer_backward(g, x, out, core, into, weight, *ctx.rest, wants_x)
        gx = found[0] if wants_x else None
        g_out = found[int(wants_x)]
        g_core = None if core is None else found[int(wants_x) + 1]
        g_into = None if into is None else found[-1]
        return gx, g_out, g_core, g_into, None, None, None, None, None


def _forward(x: Tensor, out: Tensor, core: Any, into: Any, weight: Tensor, bias: Any, *rest: Any) -> Tensor:
    scale, allowed, number = rest
    own, parts = _operation(number), Bottleneck(out, core, into)
    if allowed == "kept":
        bias = None if bias is None else bias.to(x.dtype)
        return own.apply(x, _sum(_keepers[number].cache, parts, weight, scale).to(x.dtype), bias)
    return output(x, parts, weight, bias, scale, own, chosen(own, x, parts, weight, allowed))


def _sum(cache: dict[str, Any], parts: Bottleneck, weight: Tensor, scale: float) -> Tensor:
    if weight.device.type != "cpu":
        return parts.added_to(weight, scale).to(weight.dtype)
    known: _Sum | None = cache.get("compiled")
    if known is None or not known.holds(parts, weight, scale):
        known = cache["compiled"] = _Sum(parts, weight, scale)
    return known.value


def _backward(g: Tensor, x: Tensor, out: Tensor, core: Any, into: Any, weight: Tensor, *rest: Any) -> list[Tensor]:
    """Gradients of x, where asked for, and of those of out, core and into that there are; contiguous but for that of x."""
    scale, allowed, number, wants_x = rest
    own, parts = _operation(number), Bottleneck(out, core, into)
    path = chosen(own, x, parts, weight, allowed)
    gx, *factors = gradients(g, x, parts, weight, scale, own, path, wants_x)
    return [*([gx] if gx is not None else []), *(f.contiguous() for f in factors if f is not None)]


def _fake_forward(x: Tensor, out: Any, core: Any, into: Any, weight: Tensor, bias: Any, *rest: Any) -> Tensor:
    return _operation(rest[-1]).apply(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _fake_backward(g: Tensor, x: Tensor, out: Tensor, core: Any, into: Any, weight: Tensor, *rest: Any) -> list[Tensor]:
    *_, number, wants_x = rest
    gx = [_operation(number).backward(g, x, weight.to(x.dtype), (True, False))[0]] if wants_x else []
    return [*gx, *(f.new_empty(f.shape) for f in (out, core, into) if f is not None)]


_PARTS = "Tensor x, Tensor out, Tensor? core, Tensor? into, Tensor weight"
_REST = "float scale, str allowed, SymInt number"
_operators = library.Library("tensornet", "DEF")
for _schema, _real, _fake in (
    (f"low_rank_layer({_PARTS}, Tensor? bias, {_REST}) -> Tensor", _forward, _fake_forward),
    (f"low_rank_layer_backward(Tensor g, {_PARTS}, {_REST}, bool wants_x) -> Tensor[]", _backward, _fake_backward),
):
    _name = _operators.define(_schema, tags=torch.Tag.pt2_compliant_tag)
    _operators.impl(_name, _real, "CompositeExplicitAutograd")
    library.register_fake(f"tensornet::{_name}", _fake, lib=_operators)
