"""The matrix case: the tensor unfolded along its first mode, as a product of two thin matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorly as tl
import torch
from torch import Tensor

from tensornet.decompositions.backend import on_pytorch
from tensornet.decompositions.base import Decomposition, Factors, Rung
from tensornet.decompositions.bottleneck import Bottleneck
from tensornet.decompositions.named import register
from tensornet.decompositions.orthogonal import expand, reduce, split
from tensornet.decompositions.spectrum import Spectrum
from tensornet.shapes import Rank, Shape, ranks_within, single_rank


@register("low_rank")
class LowRank(Decomposition):
    """unfold(A, 0) = left · right: the update of LoRA (Hu et al., arXiv 2106.09685) on the matricised weight.

    Factors: `left` of shape (n_1, R) and `right` of shape (R, n_2 ⋯ n_n). An int is clipped to the smaller side.
    """

    zero = "left"
    stacks = True

    @classmethod
    def feasible_rank(cls, shape: Shape, rank: Rank) -> int:
        limit = min(shape[0], math.prod(shape[1:]))
        return ranks_within(rank, (limit,), f"low_rank of shape {tuple(shape)}")[0]

    @classmethod
    def full_rank(cls, shape: Shape) -> int:
        return min(shape[0], math.prod(shape[1:]))

    @classmethod
    def factor_shapes(cls, shape: Shape, rank: Rank) -> dict[str, Shape]:
        r = single_rank(rank, "low_rank")
        return {"left": (shape[0], r), "right": (r, math.prod(shape[1:]))}

    @classmethod
    @on_pytorch
    def reconstruct(cls, factors: Factors, shape: Shape) -> Tensor:
        return tl.fold(tl.dot(factors["left"], factors["right"]), 0, shape)

    @classmethod
    @on_pytorch
    def decompose(cls, tensor: Tensor, rank: Rank, seed: int) -> dict[str, Tensor]:
        left, right = split(tl.unfold(tensor, 0), single_rank(rank, "low_rank"))
        return {"left": left, "right": right}

    @classmethod
    def take(cls, factors: Factors, shape: Shape, mode: int, index: int) -> Factors | None:
        if mode == 0:
            return None
        rows = factors["right"].unflatten(1, shape[1:]).select(mode, index)
        return {"left": factors["left"], "right": rows.flatten(1)}

    @classmethod
    def bottleneck(cls, factors: Factors, shape: Shape) -> Bottleneck:
        return Bottleneck(factors["left"], factors["right"].unflatten(-1, (shape[1], -1)), None)

    @classmethod
    def inner_product(cls, a: Factors, b: Factors, shape: Shape) -> Tensor:
        return ((a["left"].T @ b["left"]) * (a["right"] @ b["right"].T)).sum()

    @classmethod
    def squared_norm(cls, factors: Factors, shape: Shape) -> Tensor:
        _, (left, right) = reduce([factors["left"], factors["right"].T])
        return (left @ right.T).square().sum()

    @classmethod
    def component_norms(cls, factors: Factors, shape: Shape) -> Tensor:
        _, (left, right) = reduce([factors["left"], factors["right"].T])
        return torch.linalg.svdvals(left @ right.T)

    @classmethod
    def round_factors(cls, factors: Factors, shape: Shape, rank: Rank, seed: int) -> dict[str, Tensor]:
        bases, (left, right) = reduce([factors["left"], factors["right"].T])
        small_left, small_right = split(left @ right.T, single_rank(rank, "low_rank"))
        new_left, new_right = expand(bases, [small_left, small_right.T])
        return {"left": new_left, "right": new_right.T}

    @classmethod
    def mode_product(cls, factors: Factors, shape: Shape, mode: int, matrix: Tensor) -> Factors:
        if mode == 0:
            return {"left": matrix @ factors["left"], "right": factors["right"]}
        rows = factors["right"].unflatten(1, shape[1:]).movedim(mode, 1)
        return {"left": factors["left"], "right": torch.tensordot(matrix, rows, ([1], [1])).movedim(0, mode).flatten(1)}

    @classmethod
    def ladder(cls, spectrum: Spectrum, ranks: Sequence[int], seed: int) -> list[Rung]:
        rungs = []
        for rank in dict.fromkeys(single_rank(cls.within(tuple(spectrum.tensor.shape), r), "low_rank") for r in ranks):
            left, right, error = spectrum.matrix(0, rank)
            rungs.append(Rung(rank, error, {"left": left, "right": right}))
        return rungs
