"""How a delta meets its layer: on the weight, or on the activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tensornet.decompositions import Bottleneck, Decomposition, Factors
from tensornet.foldings import Fold, Member

_CONVOLVE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_STOCK_CONVOLUTIONS = {cls._conv_forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_STOCK = {cls.forward for cls in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)}


class Delta:
    """ΔW of one weight: a slice of a decomposed tensor, multiplied by a scale.

    Args:
        decomposition: stores the tensor.
        fold: names its modes.
        member: says which slice; the weight has shape (C_out, C_in, *kernel), C_in first where it is transposed.
        scale: multiplies the slice.
    """

    def __init__(self, decomposition: Decomposition, fold: Fold, member: Member, scale: float) -> None:
        self.decomposition = decomposition
        self.scale = scale
        self.target = member.target
        order = list(fold.order(decomposition.chain))
        shape = list(decomposition.shape)
        self._steps: list[tuple[tuple[int, ...], int, int]] = []
        for mode in [m for m in order if m in member.index]:
            position = order.index(mode)
            self._steps.append((tuple(shape), position, member.index[mode]))
            del order[position], shape[position]
        self._shape = tuple(shape)
        weight_order = ("in", "out", "kernel") if self.target.transposed else ("out", "in", "kernel")
        self._permutation = [order.index(mode) for mode in weight_order if mode in order]

    def factors(self) -> Factors | None:
        """Factors of the slice, found without forming the whole tensor; None where the decomposition cannot."""
        factors: Factors | None = self.decomposition.factors()
        for shape, mode, index in self._steps:
            if factors is not None:
                factors = self.decomposition.take(factors, shape, mode, index)
        return factors

    def bottleneck(self) -> Bottleneck | None:
        """The slice as maps into, inside and out of the rank; None where the decomposition has no such form."""
        factors = self.factors()
        return None if factors is None else self.decomposition.bottleneck(factors, self._shape)

    def dense(self) -> Tensor:
        """ΔW in the shape of the weight."""
        factors = self.factors()
        if factors is not None:
            tensor = self.decomposition.reconstruct(factors, self._shape)
        else:
            tensor = self.decomposition.to_tensor()
            for _, mode, index in self._steps:
                tensor = tensor.select(mode, index)
        return self.scale * tensor.permute(self._permutation).reshape(self.target.shape)

    def channels_first(self) -> Tensor:
        """ΔW as (C_out, C_in, K) or (C_out, C_in), also where the weight itself is transposed."""
        dense = self.dense()
        return (dense.transpose(0, 1) if self.target.transposed else dense).flatten(2) if dense.ndim > 2 else dense

    def inner(self, other: Delta) -> float:
        """⟨ΔW, ΔW'⟩ of two deltas of one weight, in factor space where both are of one decomposition."""
        if type(self.decomposition) is type(other.decomposition) and self._shape == other._shape:
            a, b = self.factors(), other.factors()
            if a is not None and b is not None:
                wide_a, wide_b = ({n: factor.detach().double() for n, factor in factors.items()} for factors in (a, b))
                product = self.decomposition.inner_product(wide_a, wide_b, self._shape)
                if product is not None:
                    return self.scale * other.scale * float(product)
        return float((self.dense().detach().double() * other.dense().detach().double()).sum())

    def norm(self) -> Tensor:
        """The Frobenius norm ‖ΔW‖ as a float64 scalar, in factor space where the decomposition can."""
        factors = self.factors()
        if factors is not None:
            wide = {name: factor.double() for name, factor in factors.items()}
            squared = self.decomposition.squared_norm(wide, self._shape)
            if squared is not None:
                return abs(self.scale) * squared.sqrt()
        return self.dense().double().norm()

    def factor_norms(self) -> dict[str, float]:
        """‖factor‖ of every stored factor, of the slice where the decomposition can take one."""
        factors = self.factors()
        factors = self.decomposition.factors() if factors is None else factors
        return {name: float(factor.detach().double().norm()) for name, factor in factors.items()}

    def component_norms(self) -> list[float]:
        """Norms of the terms that ΔW is a sum of; see `Decomposition.component_norms`."""
        factors = self.factors()
        if factors is None:
            found = torch.linalg.svdvals(self.dense().detach().double().flatten(1))
        else:
            wide = {name: factor.detach().double() for name, factor in factors.items()}
            found = abs(self.scale) * self.decomposition.component_norms(wide, self._shape)
        return [float(norm) for norm in found]

    def added_to(self, weight: Tensor) -> Tensor:
        """W + ΔW in the shape and dtype of ``weight``, computed in float32 at least and rounded once."""
        device = weight.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._sum(weight)
        return self._sum(weight)

    def _sum(self, weight: Tensor) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        bottleneck = self.bottleneck()
        if bottleneck is None:
            return (weight.to(wide) + self.dense().to(wide)).to(weight.dtype)
        core, into = (None if part is None else part.to(wide) for part in bottleneck[1:])
        out, rows = bottleneck.out.to(wide), Bottleneck(bottleneck.out, core, into).rows()
        if self.target.transposed:
            sums = torch.addmm(weight.to(wide).transpose(0, 1).flatten(1), out, rows, alpha=self.scale)
            return sums.reshape(weight.shape[1], weight.shape[0], *weight.shape[2:]).transpose(0, 1).to(weight.dtype)
        sums = torch.addmm(weight.to(wide).flatten(1), out, rows, alpha=self.scale)
        return sums.reshape(weight.shape).to(weight.dtype)

    def branches(self, layer: nn.Module) -> bool:
        """Whether ``layer`` can take this delta on its activations: its forward is the stock one and has no groups."""
        kind: Any = getattr(layer, "_base", type(layer))
        if self.bottleneck() is None or self.target.transposed or kind.forward not in _STOCK:
            return False
        if isinstance(layer, _ConvNd) and kind._conv_forward not in _STOCK_CONVOLUTIONS:
            return False
        if isinstance(layer, nn.Embedding):
            return layer.padding_idx is None and not layer.scale_grad_by_freq and not layer.sparse
        return not isinstance(layer, _ConvNd) or layer.groups == 1

    def branch(self, layer: nn.Module, x: Tensor) -> Tensor:
        """ΔW applied to the input of ``layer``: into the rank, a small core, out of the rank.

        Args:
            layer: one for which `branches` holds.
            x: its input; shape (N, …, in), (N, C_in, *size), or indices.
        """
        bottleneck = self.bottleneck()
        assert bottleneck is not None
        if isinstance(layer, nn.Embedding):
            y = F.linear(F.embedding(x, bottleneck.out), bottleneck.rows().T)
        elif isinstance(layer, _ConvNd):
            y = _convolve(layer, x, bottleneck)
        else:
            y = F.linear(F.linear(x, bottleneck.rows()), bottleneck.out)
        return self.scale * y


def _convolve(layer: _ConvNd, x: Tensor, bottleneck: Bottleneck) -> Tensor:
    """1×1 into the rank, the core with the layer's own geometry, 1×1 out. Padding commutes with mixing channels."""
    ones = (1,) * len(layer.kernel_size)
    batched = x.ndim == len(layer.kernel_size) + 2
    x = x if batched else x.unsqueeze(0)
    convolve = _CONVOLVE[x.ndim]
    out, core, into = bottleneck
    if core is None or (into is not None and max(layer.kernel_size) == 1):
        core, into = bottleneck.rows()[:, :, None], None
    if into is not None:
        x = convolve(x, into.reshape(*into.shape, *ones))
    groups = core.shape[0] if core.ndim == 2 else 1
    kernel = core.reshape(core.shape[0], -1 if groups == 1 else 1, *layer.kernel_size)
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0,) * len(layer.kernel_size)
    z = convolve(x, kernel, None, layer.stride, padding, layer.dilation, groups)
    y = convolve(z, out.reshape(*out.shape, *ones))
    return y if batched else y.squeeze(0)


def gathered(deltas: Mapping[str, Tensor], fold: Fold, chain: bool) -> Tensor:
    """The tensor that a fold makes of the deltas of its members: what `Delta.dense` takes apart.

    Args:
        deltas: ΔW in the shape of the weight, by target name.
        fold: names the modes and places the members; where it has none, the tensor is zero.
        chain: of the decomposition; see `Fold.order`.
    """
    order = fold.order(chain)
    first = deltas[fold.members[0].target.name]
    tensor = first.new_zeros(fold.shape(chain))
    for member in fold.members:
        target = member.target
        stored = [m for m in (("in", "out", "kernel") if target.transposed else ("out", "in", "kernel")) if m in fold.modes]
        own = [mode for mode in order if mode not in member.index]
        delta = deltas[target.name].reshape([fold.modes[mode] for mode in stored])
        tensor[tuple(member.index.get(mode, slice(None)) for mode in order)] = delta.permute([stored.index(m) for m in own])
    return tensor
