"""A stock layer without its weight, as the products that a low-rank delta needs.

A tensor of the batch is seen as (N, C, P): rows, channels, places. Where rows have few places, as on the last maps of a
convolutional network, all places of the batch are one row: one large product is faster than many small. Where the channels
lie next to each other in memory, as in a linear layer and in images with the channels last, all places of the batch are cut
into a few rows: a product with a thin matrix runs at twice the speed on them, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_CONVOLUTIONS = {cls._conv_forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_FORWARDS = {cls.forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_FEW_PLACES = 8
_CUT = 4


@dataclass(frozen=True)
class Convolution:
    """An ungrouped convolution of any number of dimensions; its methods are those of `Linear`, documented there.

    Attributes:
        pad, mode: what `torch.nn.functional.pad` does before it, where the layer's own padding is of another kind.
        pointwise: a 1×1 kernel without padding, so that every output place depends on one input place.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...] = ()
    mode: str = "constant"
    pointwise: bool = field(init=False)
    _zeros: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pointwise", max(self.kernel) == 1 and max(self.padding) == 0)
        object.__setattr__(self, "_zeros", (0,) * len(self.kernel))

    def padded(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad, mode=self.mode) if self.pad else x

    def batched(self, x: Tensor) -> Tensor:
        return x if x.ndim == len(self.kernel) + 2 else x.unsqueeze(0)

    def outputs(self, shape: tuple[int, ...]) -> int:
        sizes = zip(shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return shape[0] * math.prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
        return torch.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, self._zeros, groups)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool], groups: int = 1) -> tuple[Any, Any]:
        # oneDNN takes much longer for the input gradient of a strided pointwise layer than on the places that it sees
        if self.pointwise and max(self.stride) > 1 and g.device.type == "cpu":
            small, gw = self._unstrided.backward(g, self.seen(x), weight, mask, groups)
            if small is None:
                return None, gw
            gx = torch.zeros_like(x)
            self.seen(gx).copy_(small)
            return gx, gw
        gx, gw, _ = torch.ops.aten.convolution_backward.default(
            g, x, weight, None, self.stride, self.padding, self.dilation, False, self._zeros, groups, (*mask, False)
        )
        return gx, gw

    @cached_property
    def _unstrided(self) -> Convolution:
        return replace(self, stride=(1,) * len(self.stride))

    def seen(self, x: Tensor) -> Tensor:
        if max(self.stride) == 1:
            return x
        return x[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]

    def channels_last(self, x: Tensor) -> bool:
        if x.ndim == 3:  # PyTorch computes one-dimensional convolutions in its own layout, whatever that of the input
            return False
        return x.stride(1) == 1 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()

    def flat(self, x: Tensor, last: bool) -> Tensor:
        if last:
            return _cut(x.movedim(1, -1))
        places = x.shape[2:].numel()
        if places > _FEW_PLACES or x.shape[0] == 1:
            return x.flatten(2)
        return x.transpose(0, 1).reshape(1, x.shape[1], -1)

    def unflat(self, flat: Tensor, like: Tensor, last: bool) -> Tensor:
        if last:
            return flat.transpose(1, 2).reshape(like.shape[0], *like.shape[2:], -1).movedim(-1, 1)
        if flat.shape[0] == like.shape[0]:
            return flat.view(*flat.shape[:2], *like.shape[2:])
        return flat.view(flat.shape[1], like.shape[0], *like.shape[2:]).transpose(0, 1)

    def core(self, z: Tensor, kernel: Tensor) -> Tensor:
        """The core with the layer's geometry; ``kernel`` is (Q, P, K), or (Q, K) for a diagonal one."""
        return self.apply(_laid_out(z, kernel), self._shaped(kernel), None, self._groups(kernel))

    def core_backward(self, u: Tensor, z: Tensor, kernel: Tensor, inputs: bool) -> tuple[Tensor | None, Tensor]:
        """Gradients of ``z``, where asked for, and of ``kernel``."""
        u, z = _laid_out(u, kernel), _laid_out(z, kernel)
        gz, gk = self.backward(u, z, self._shaped(kernel), (inputs, True), self._groups(kernel))
        return gz, gk.reshape(kernel.shape)

    def _shaped(self, kernel: Tensor) -> Tensor:
        return kernel.reshape(kernel.shape[0], -1 if kernel.ndim == 3 else 1, *self.kernel)

    def _groups(self, kernel: Tensor) -> int:
        return 1 if kernel.ndim == 3 else kernel.shape[0]


class Linear:
    """A linear layer; its channels come last."""

    pointwise = True

    def batched(self, x: Tensor) -> Tensor:
        """The input with a mode for the rows of the batch; itself where it has one."""
        return x

    def outputs(self, shape: tuple[int, ...]) -> int:
        """Places of the output over all rows, of an input of ``shape``."""
        return math.prod(shape[:-1])

    def padded(self, x: Tensor) -> Tensor:
        """The input as the other methods take it."""
        return x

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output."""
        return F.linear(x, weight, bias)

    def backward(self, g: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool]) -> tuple[Any, Any]:
        """Gradients of input and weight, those that ``mask`` asks for."""
        gx = g @ weight if mask[0] else None
        return gx, g.reshape(-1, g.shape[-1]).T @ x.reshape(-1, x.shape[-1]) if mask[1] else None

    def seen(self, x: Tensor) -> Tensor:
        """The places of the input that a pointwise layer looks at; a view."""
        return x

    def channels_last(self, x: Tensor) -> bool:
        """Whether the channels of a place lie next to each other in memory."""
        return True

    def flat(self, x: Tensor, last: bool) -> Tensor:
        """A tensor of the batch as (N, C, P), with rows of the batch or others; a view where that is possible.

        Tensors of one call that meet in a product have to be seen alike, so ``last`` says it of all: see `channels_last`.
        """
        return _cut(x)

    def unflat(self, flat: Tensor, like: Tensor, last: bool) -> Tensor:
        """A flat tensor with the rows and places of ``like``; a view where that is possible."""
        return flat.transpose(1, 2).reshape(*like.shape[:-1], flat.shape[1])


Operation = Convolution | Linear


_LINEAR = Linear()


def operation(layer: nn.Module) -> Operation | None:
    """The operation of a layer whose forward is the stock one and that has no groups; None for another.

    It is the same object as long as the layer's geometry is the same.
    """
    kind: Any = getattr(layer, "_base", type(layer))
    if kind.forward is nn.Linear.forward:
        return _LINEAR
    if not isinstance(layer, _ConvNd) or kind.forward not in _FORWARDS or kind._conv_forward not in _CONVOLUTIONS:
        return None
    if layer.groups > 1:
        return None
    dims = len(layer.kernel_size)
    stride, dilation = _each(layer.stride, dims), _each(layer.dilation, dims)
    if layer.padding_mode != "zeros":
        pad = tuple(layer._reversed_padding_repeated_twice)
        return _convolution(layer.kernel_size, stride, (0,) * dims, dilation, pad, layer.padding_mode)
    padding = layer.padding
    if isinstance(padding, str):
        both = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, layer.kernel_size, strict=True)]
        if any(n % 2 for n in both):
            sides = tuple(side for n in reversed(both) for side in (n // 2, n - n // 2))
            return _convolution(layer.kernel_size, stride, (0,) * dims, dilation, sides)
        padding = tuple(n // 2 for n in both)
    padding = _each(padding, dims)
    if max(layer.kernel_size) == 1 and max(padding) > 0:
        return None  # padded places see nothing of the input: no matrix product
    return _convolution(layer.kernel_size, stride, padding, dilation)


@cache
def _convolution(*geometry: Any) -> Convolution:
    return Convolution(*geometry)


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A number per dimension: PyTorch also computes with one for all, where a user has set that on a layer."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _laid_out(z: Tensor, kernel: Tensor) -> Tensor:
    """With the channels last before a diagonal core: a depthwise convolution on the CPU takes half the time on that."""
    if kernel.ndim == 2 and z.ndim == 4 and z.device.type == "cpu":
        return z.contiguous(memory_format=torch.channels_last)
    return z


def _cut(x: Tensor) -> Tensor:
    """A tensor (…, C) as (N, C, P), on the CPU with up to `_CUT` rows of equal length; a view where that is possible."""
    places = x.shape[:-1].numel()
    rows = math.gcd(places, _CUT) if x.device.type == "cpu" and places else 1
    return x.reshape(rows, places // rows, x.shape[-1]).transpose(1, 2)


def product(matrix: Tensor, flat: Tensor) -> Tensor:
    """Σ_c matrix[q, c] · flat[n, c, p]: shape (N, Q, P), its channels last in memory where those of ``flat`` are."""
    places = flat.transpose(1, 2)
    if places.is_contiguous():  # flat · matrixᵀ: matrix · flat takes up to twenty times as long with fewer than eight rows
        return torch.bmm(places, matrix.T.expand(flat.shape[0], *matrix.T.shape)).transpose(1, 2)
    return torch.bmm(matrix.expand(flat.shape[0], *matrix.shape), flat)


def add_product(operation: Operation, y: Tensor, matrix: Tensor, thin: Tensor, last: bool) -> None:
    """Add matrix · thin to ``y``, a tensor with as many rows and places as ``thin``, in place."""
    flat = operation.flat(y, last)
    if flat.data_ptr() == y.data_ptr():
        flat.baddbmm_(matrix.expand(flat.shape[0], *matrix.shape), thin)
    else:
        y += operation.unflat(product(matrix, thin), y, last)


def outer(thin: Tensor, flat: Tensor) -> Tensor:
    """Σ_n Σ_p thin[n, q, p] · flat[n, c, p]: shape (Q, C). With the thin one first, the product takes half the time."""
    products = torch.bmm(thin, flat.transpose(1, 2))
    return products.squeeze(0) if products.shape[0] == 1 else products.sum(0)
