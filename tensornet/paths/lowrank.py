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
from tensornet.paths.rule import ALLOWED, COSTS, Call, Core, Path, choose


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
        return output(x, Bottleneck(out, core, into), weight, bias, scale, operation, path)

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
    add_product(operation, y, scaled(parts.out, scale), Inside(operation, parts, x).output)
    return y


def gradients(
    g: Tensor, x: Tensor, stored: Bottleneck, weight: Tensor, scale: float, operation: Operation, path: Path, wants_x: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of x, where asked for, and of out, core and into, in their dtypes, from that of y."""
    parts = stored.to(x.dtype)
    on_weight = wants_x and path.inputs == "weight"
    dense = path.factors == "weight"
    full = (stored.added_to(weight, scale) if on_weight else weight).to(x.dtype)
    gx, gw = operation.backward(g, x, full, (wants_x, dense)) if wants_x or dense else (None, None)
    if dense:
        assert gw is not None
        gw, out, rows = gw.flatten(1), parts.out, parts.rows()
        g_out, g_rows = gw @ rows.T, out.T @ gw
        g_core, g_into = parts.rows_backward(scaled(g_rows, scale))
    else:
        flat = operation.flat(g)
        u = product(scaled(parts.out, scale).T, flat)
        inside = Inside(operation, parts, x)
        g_out = outer(inside.output, flat).T
        g_core, g_into = inside.backward(u, gx if wants_x and path.inputs == "rank" else None)
    grads = [scaled(g_out, scale), g_core, g_into]
    return gx, *(None if grad is None else grad.to(f.dtype) for grad, f in zip(grads, stored, strict=True))  # type: ignore[union-attr]


def chosen(operation: Operation, x: Tensor, parts: Bottleneck, weight: Tensor, allowed: str) -> Path:
    """The path of one call with the padded input ``x``, of those that are ``allowed``; see `ALLOWED`."""
    paths = ALLOWED[allowed]
    if len(paths) == 1:
        return paths[0]
    kernel = weight.shape[2:].numel()
    outputs = operation.outputs(tuple(x.shape))
    inputs = outputs if operation.pointwise else x.numel() // weight.shape[1]
    into = weight.shape[1] if parts.into is None else parts.into.shape[0]
    core: Core = "none" if parts.core is None or operation.pointwise else "full" if parts.core.ndim == 3 else "diagonal"
    rank = parts.out.shape[1]
    call = Call(outputs, inputs, weight.shape[0], weight.shape[1], kernel, rank, rank if core == "none" else into, core)
    return choose(call, COSTS[x.device.type], paths)


class Inside:
    """What happens between the input and the rank of the outputs: z = core ∘ into · x, and its gradients.

    Args:
        operation: of the layer.
        parts: of the delta.
        x: the layer's input, padded.

    Attributes:
        output: z, flat: shape (N, Q, P).
        like: a tensor with the rows and places of the output.
    """

    def __init__(self, operation: Operation, parts: Bottleneck, x: Tensor) -> None:
        self.operation = operation
        self.parts = parts
        if isinstance(operation, Linear) or operation.pointwise:
            self.rows = parts.rows()
            self.like = operation.seen(x)
            self.flat = operation.flat(self.like)
            self.output = product(self.rows, self.flat)
            return
        assert parts.core is not None
        if parts.into is not None:
            self.flat = operation.flat(x)
            x = operation.unflat(product(parts.into, self.flat), x)
        self.z = x
        self.like = operation.core(x, parts.core)
        self.output = operation.flat(self.like)

    def backward(self, u: Tensor, gx: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of core and into from that of z; what goes through the rank to the input is added to ``gx``.

        Args:
            u: gradient of z, flat.
            gx: the gradient of the input so far; None where that is on the weight, or not asked for.
        """
        operation, parts = self.operation, self.parts
        if isinstance(operation, Linear) or operation.pointwise:
            if gx is not None:
                add_product(operation, operation.seen(gx), self.rows.T, u)
            return parts.rows_backward(outer(u, self.flat))
        assert parts.core is not None
        wants = gx is not None or parts.into is not None
        v, g_core = operation.core_backward(operation.unflat(u, self.like), self.z, parts.core, wants)
        if v is None:
            return g_core, None
        if parts.into is None:
            if gx is not None:
                gx += v
            return g_core, None
        v = operation.flat(v)
        if gx is not None:
            add_product(operation, gx, parts.into.T, v)
        return g_core, outer(v, self.flat)


def scaled(tensor: Tensor, scale: float) -> Tensor:
    """scale · tensor, without a copy where the scale is 1."""
    return tensor if scale == 1 else scale * tensor
