"""The change of one weight, as a slice of a decomposed tensor."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from tensornet.autocast import without_autocast
from tensornet.decompositions import Bottleneck, Decomposition, Factors
from tensornet.decompositions.orthogonal import singular_values
from tensornet.foldings import Fold, Member


class Delta:
    """ΔW of one weight: a slice of a decomposed tensor, multiplied by a scale.

    Args:
        decomposition: stores the tensor.
        fold: names its modes.
        member: says which slice; the weight has shape (C_out, C_in, *kernel), C_in first where it is transposed.
        scale: multiplies the slice.
    """

    __slots__ = ("_permutation", "_shape", "_steps", "decomposition", "scale", "target")

    def __init__(self, decomposition: Decomposition, fold: Fold, member: Member, scale: float) -> None:
        self.decomposition = decomposition
        self.scale = scale
        self.target = member.target
        order = list(fold.order(decomposition.chain))
        shape = list(decomposition.shape)
        steps: list[tuple[tuple[int, ...], int, int]] = []
        for mode in [m for m in order if m in member.index]:
            position = order.index(mode)
            steps.append((tuple(shape), position, member.index[mode]))
            del order[position], shape[position]
        self._steps, self._shape = tuple(steps), tuple(shape)
        weight_order = ("in", "out", "kernel") if self.target.transposed else ("out", "in", "kernel")
        self._permutation = tuple(order.index(mode) for mode in weight_order if mode in order)

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

    def form(self) -> Hashable | None:
        """What deltas, with a bottleneck each, have in common that can meet weights together; None: this one cannot."""
        own = self.decomposition
        if self._steps or not own.stacks:
            return None
        return type(own), own.rank, self._shape, self.scale, own.factors()[own.zero].dtype

    def bottleneck_of(self, stacked: Factors) -> Bottleneck:
        """The bottlenecks of deltas of this `form` whose factors are ``stacked`` along a mode before their own."""
        parts = self.decomposition.bottleneck(stacked, self._shape)
        assert parts is not None
        return parts

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
            found = singular_values(self.dense().detach().double().flatten(1))
        else:
            wide = {name: factor.detach().double() for name, factor in factors.items()}
            found = abs(self.scale) * self.decomposition.component_norms(wide, self._shape)
        return [float(norm) for norm in found]

    def added_to(self, weight: Tensor) -> Tensor:
        """W + ΔW in the shape and dtype of ``weight``, computed in float32 at least and rounded once."""
        with without_autocast(weight.device.type):
            return self._sum(weight)

    def _sum(self, weight: Tensor) -> Tensor:
        bottleneck = self.bottleneck()
        if bottleneck is None:
            wide = torch.promote_types(weight.dtype, torch.float32)
            return (weight.to(wide) + self.dense().to(wide)).to(weight.dtype)
        if self.target.transposed:
            return bottleneck.added_to(weight.transpose(0, 1), self.scale).transpose(0, 1).to(weight.dtype)
        return bottleneck.added_to(weight, self.scale).to(weight.dtype)


def weight_change(before: Tensor, after: Tensor) -> Tensor:
    """ΔW = after − before without a graph, in float32 at least, on the device of ``after``."""
    wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    return after.detach().to(wide) - before.detach().to(after.device, wide)


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
