"""A layer with a low-rank delta as one step of autograd, which keeps its input and nothing else.

With ΔW = s · out · rows, where rows = core · into, and the layer's own products written as *:

    y  = x * (W + ΔW)  =  x * W  +  out · z,       z = s · core ∘ into · x
    gx = g * (W + ΔW)ᵀ =  g * Wᵀ +  intoᵀ · v,     v = coreᵀ ∘ u,  u = s · outᵀ · g
    ∂out = g zᵀ,   ∂core from (u, into · x),   ∂into = v xᵀ        or all three from the dense g xᵀ

Each line has two ways, on the weight and through the rank; `rule` says which is cheaper where.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensornet.decompositions.bottleneck import Bottleneck
from tensornet.paths.layers import Linear, Operation, add_product, outer, product
from tensornet.paths.rule import COSTS, THROUGH_RANK, Call, Core, Path, choose


class LowRankLayer(torch.autograd.Function):
    """y = x * (W + s · out · rows), differentiable in x, out, core and into; W and the bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        out: Tensor,
        core: Tensor | None,
        into: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        operation: Operation,
        path: Path,
    ) -> Tensor:
        ctx.save_for_backward(x, out, core, into, weight)
        ctx.rest = (scale, operation, path)
        y = output(x, Bottleneck(out, core, into), weight, bias, scale, operation, path)
        # autograd forbids what comes next to change a view in place, as a ReLU may; of tokens, a linear layer returns one
        return torch.ops.aten._unsafe_view.default(y, y.shape) if y._is_view() else y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, *factors, weight = ctx.saved_tensors
        scale, operation, path = ctx.rest
        found = gradients(g, x, Bottleneck(*factors), weight, scale, operation, path, ctx.needs_input_grad[0])
        return *found, None, None, None, None, None


def output(
    x: Tensor, parts: Bottleneck, weight: Tensor, bias: Tensor | None, scale: float, operation: Operation, path: Path
) -> Tensor:
    """y, from the padded input."""
    bias = None if bias is None else bias.to(x.dtype)
    if path.forward == "weight":
        return operation.apply(x, parts.added_to(weight, scale).to(x.dtype), bias)
    parts = parts.to(x.dtype)
    y = operation.apply(x, weight.to(x.dtype), bias)
    inside = Inside(operation, parts, x)
    add_product(operation, y, scaled(parts.out, scale), inside.output, inside.last)
    return y


def gradients(
    g: Tensor, x: Tensor, stored: Bottleneck, weight: Tensor, scale: float, operation: Operation, path: Path, wants_x: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of x, where asked for, and of out, core and into, in their dtypes, from that of y."""
    parts = stored.to(x.dtype)
    dense = path.factors == "weight"
    inside = None
    if dense:
        gw = operation.backward(g, x, weight.to(x.dtype), (False, True))[1].flatten(1)
        g_out, g_rows = gw @ parts.rows().T, parts.out.T @ gw
        g_core, g_into = parts.rows_backward(scaled(g_rows, scale))
    else:
        inside = Inside(operation, parts, x)
        flat = operation.flat(g, inside.last)
        u = product(scaled(parts.out, scale).T, flat)
        g_out = outer(inside.output, flat).T
        g_core, g_into = inside.backward(u, wants_x and path.inputs == "rank")
    grads = [scaled(g_out, scale), g_core, g_into]
    gx = None
    if wants_x:  # last, so that it is still at hand for the layer before
        full = stored.added_to(weight, scale) if path.inputs == "weight" else weight
        gx = operation.backward(g, x, full.to(x.dtype), (True, False))[0]
        if inside is not None and path.inputs == "rank":
            inside.add_to(gx)
    return gx, *(None if grad is None else grad.to(f.dtype) for grad, f in zip(grads, stored, strict=True))  # type: ignore[union-attr]


def chosen(operation: Operation, x: Tensor, parts: Bottleneck, weight: Tensor, allowed: str) -> Path:
    """The path of one call with the padded input ``x``, of those that are ``allowed``; see `ALLOWED`."""
    if allowed == "activations":
        return THROUGH_RANK
    kernel = weight.shape[2:].numel()
    outputs = operation.outputs(tuple(x.shape))
    inputs = outputs if operation.pointwise else x.numel() // weight.shape[1]
    into = weight.shape[1] if parts.into is None else parts.into.shape[0]
    core: Core = "none" if parts.core is None or operation.pointwise else "full" if parts.core.ndim == 3 else "diagonal"
    rank = parts.out.shape[1]
    call = Call(outputs, inputs, weight.shape[0], weight.shape[1], kernel, rank, rank if core == "none" else into, core)
    return choose(call, COSTS[x.device.type], allowed)


class Inside:
    """What happens between the input and the rank of the outputs: z = core ∘ into · x, and its gradients.

    Args:
        operation: of the layer.
        parts: of the delta.
        x: the layer's input, padded.

    Attributes:
        last: whether the input has its channels last.
        output: z, flat: shape (N, Q, P).
        like: a tensor with the rows and places of the output.
    """

    def __init__(self, operation: Operation, parts: Bottleneck, x: Tensor) -> None:
        self.operation = operation
        self.parts = parts
        self.last = last = operation.channels_last(x)
        if isinstance(operation, Linear) or operation.pointwise:
            self.rows = parts.rows()
            self.like = operation.seen(x)
            self.flat = operation.flat(self.like, last)
            self.output = product(self.rows, self.flat)
            return
        assert parts.core is not None
        if parts.into is not None:
            self.flat = operation.flat(x, last)
            x = operation.unflat(product(parts.into, self.flat), x, last)
        self.z = x
        self.like = operation.core(x, parts.core)
        self.output = operation.flat(self.like, last)

    def backward(self, u: Tensor, wants_x: bool) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of core and into from that of z, which is ``u``, flat; with ``wants_x``, `add_to` may follow."""
        operation, parts = self.operation, self.parts
        if isinstance(operation, Linear) or operation.pointwise:
            self.v: Tensor | None = u
            return parts.rows_backward(outer(u, self.flat))
        assert parts.core is not None
        wants = wants_x or parts.into is not None
        self.v, g_core = operation.core_backward(operation.unflat(u, self.like, self.last), self.z, parts.core, wants)
        if parts.into is None:
            return g_core, None
        assert self.v is not None
        self.v = operation.flat(self.v, self.last)
        return g_core, outer(self.v, self.flat)

    def add_to(self, gx: Tensor) -> None:
        """Add what goes through the rank to the gradient of the input."""
        operation, parts = self.operation, self.parts
        assert self.v is not None
        if isinstance(operation, Linear) or operation.pointwise:
            add_product(operation, operation.seen(gx), self.rows.T, self.v, self.last)
        elif parts.into is None:
            gx += self.v
        else:
            add_product(operation, gx, parts.into.T, self.v, self.last)


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """scale · tensor, without a copy where the scale is 1."""
    return tensor if scale == 1 else scale * tensor
