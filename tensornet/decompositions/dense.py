"""The tensor itself: the oracle in tests and the upper bound in tables."""

from __future__ import annotations

from torch import Tensor

from tensornet.decompositions.base import Decomposition, Factors
from tensornet.decompositions.named import register
from tensornet.shapes import Rank, Shape, check_rank


@register("dense")
class Dense(Decomposition):
    """A stored whole. Factor: `tensor` of the shape itself. A rank is accepted and means nothing; it is kept as 1."""

    zero = "tensor"
    fewest_modes = 1

    @classmethod
    def feasible_rank(cls, shape: Shape, rank: Rank) -> int:
        check_rank(rank)
        return 1

    @classmethod
    def full_rank(cls, shape: Shape) -> int:
        return 1

    @classmethod
    def factor_shapes(cls, shape: Shape, rank: Rank) -> dict[str, Shape]:
        return {"tensor": tuple(shape)}

    @classmethod
    def reconstruct(cls, factors: Factors, shape: Shape) -> Tensor:
        return factors["tensor"]

    @classmethod
    def decompose(cls, tensor: Tensor, rank: Rank, seed: int) -> dict[str, Tensor]:
        return {"tensor": tensor}

    @classmethod
    def take(cls, factors: Factors, shape: Shape, mode: int, index: int) -> Factors:
        return {"tensor": factors["tensor"].select(mode, index)}
