"""A sum of Kronecker products of two smaller tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tensornet.decompositions.base import Decomposition, Factors, Rung
from tensornet.decompositions.low_rank import LowRank
from tensornet.decompositions.named import register
from tensornet.decompositions.orthogonal import split
from tensornet.decompositions.spectrum import Spectrum
from tensornet.shapes import Rank, Shape, near_square, ranks_within, single_rank


@register("kronecker")
class Kronecker(Decomposition):
    """A = Σ_{r=1..R} L_r ⊗ S_r, every mode n_i = l_i · s_i (Van Loan and Pitsianis 1993; LoKr, arXiv 2309.14859).

    Factors: `left` of shape (R, l_1, …, l_n) and `right` of shape (R, s_1, …, s_n), where l_i and s_i are the divisors
    of n_i closest to its root, the larger on the left for every other mode. An int is clipped to the smaller side.
    """

    zero = "left"
    fewest_modes = 1

    @classmethod
    def feasible_rank(cls, shape: Shape, rank: Rank) -> int:
        return ranks_within(rank, (cls.full_rank(shape),), f"kronecker of shape {tuple(shape)}")[0]

    @classmethod
    def full_rank(cls, shape: Shape) -> int:
        left, right = _sides(shape)
        return min(math.prod(left), math.prod(right))

    @classmethod
    def factor_shapes(cls, shape: Shape, rank: Rank) -> dict[str, Shape]:
        r = single_rank(rank, "kronecker")
        left, right = _sides(shape)
        return {"left": (r, *left), "right": (r, *right)}

    @classmethod
    def reconstruct(cls, factors: Factors, shape: Shape) -> Tensor:
        left, right = factors["left"], factors["right"]
        product = left.flatten(1).T @ right.flatten(1)  # TensorLy multiplies matrices only by Kronecker
        return _interleaved(product, tuple(left.shape[1:]), tuple(right.shape[1:]))

    @classmethod
    def decompose(cls, tensor: Tensor, rank: Rank, seed: int) -> dict[str, Tensor]:
        left, right = _sides(tuple(tensor.shape))
        rows, columns = split(_rearranged(tensor), single_rank(rank, "kronecker"))
        return {"left": rows.T.reshape(-1, *left), "right": columns.reshape(-1, *right)}

    @classmethod
    def take(cls, factors: Factors, shape: Shape, mode: int, index: int) -> Factors:
        step = factors["right"].shape[1 + mode]
        return {
            "left": factors["left"].select(1 + mode, index // step),
            "right": factors["right"].select(1 + mode, index % step),
        }

    @classmethod
    def inner_product(cls, a: Factors, b: Factors, shape: Shape) -> Tensor:
        return LowRank.inner_product(_matrices(a), _matrices(b), shape)

    @classmethod
    def squared_norm(cls, factors: Factors, shape: Shape) -> Tensor:
        return LowRank.squared_norm(_matrices(factors), shape)

    @classmethod
    def component_norms(cls, factors: Factors, shape: Shape) -> Tensor:
        return LowRank.component_norms(_matrices(factors), shape)

    @classmethod
    def ladder(cls, spectrum: Spectrum, ranks: Sequence[int], seed: int) -> list[Rung]:
        shape = tuple(spectrum.tensor.shape)
        left, right = _sides(shape)
        rows = LowRank.ladder(Spectrum(_rearranged(spectrum.tensor)), ranks, seed)
        return [
            Rung(
                r.rank,
                r.error,
                {"left": r.factors["left"].T.reshape(-1, *left), "right": r.factors["right"].reshape(-1, *right)},
            )
            for r in rows
        ]

    @classmethod
    def round_factors(cls, factors: Factors, shape: Shape, rank: Rank, seed: int) -> dict[str, Tensor]:
        rounded = LowRank.round_factors(_matrices(factors), shape, rank, seed)
        left, right = _sides(shape)
        return {"left": rounded["left"].T.reshape(-1, *left), "right": rounded["right"].reshape(-1, *right)}


def _sides(shape: Shape) -> tuple[Shape, Shape]:
    pairs = [near_square(n)[:: 1 if i % 2 else -1] for i, n in enumerate(shape)]
    return tuple(a for a, _ in pairs), tuple(b for _, b in pairs)


def _matrices(factors: Factors) -> dict[str, Tensor]:
    """The rearrangement of Van Loan and Pitsianis, under which Σ L_r ⊗ S_r is a matrix of rank R."""
    return {"left": factors["left"].flatten(1).T, "right": factors["right"].flatten(1)}


def _rearranged(tensor: Tensor) -> Tensor:
    """The tensor as that matrix, of shape (∏ l_i, ∏ s_i)."""
    left, right = _sides(tuple(tensor.shape))
    order = len(left)
    pairs = tensor.reshape([n for pair in zip(left, right, strict=True) for n in pair])
    return pairs.permute(*range(0, 2 * order, 2), *range(1, 2 * order, 2)).reshape(math.prod(left), -1)


def _interleaved(product: Tensor, left: Shape, right: Shape) -> Tensor:
    order = len(left)
    modes = [axis for i in range(order) for axis in (i, order + i)]
    shape = [a * b for a, b in zip(left, right, strict=True)]
    return torch.permute(product.reshape(*left, *right), modes).reshape(shape)
