"""Tucker decomposition: a core multiplied by a factor along every mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorly as tl
import torch
import torch.nn.functional as F
from tensorly.decomposition import tucker
from tensorly.tenalg import mode_dot, multi_mode_dot
from torch import Tensor

from tensornet.decompositions.backend import on_pytorch
from tensornet.decompositions.base import Decomposition, Factors, Rung
from tensornet.decompositions.bottleneck import Bottleneck
from tensornet.decompositions.named import register
from tensornet.decompositions.orthogonal import expand, reduce
from tensornet.decompositions.spectrum import Spectrum, best_ranks, fewest_parameters, rank_grids
from tensornet.shapes import Rank, Shape, ranks_within


@register("tucker")
class Tucker(Decomposition):
    """A = G ×_1 U_1 ×_2 U_2 … ×_n U_n (Tucker 1966; Kolda and Bader, SIAM Review 2009, eq. 4.1).

    Factors: `core` of shape (R_1, …, R_n) and `factor_i` of shape (n_i, R_i). An int is the rank of every mode,
    clipped to its length.
    """

    zero = "factor_0"
    stacks = True

    @classmethod
    def feasible_rank(cls, shape: Shape, rank: Rank) -> tuple[int, ...]:
        return ranks_within(rank, shape, f"Tucker of shape {tuple(shape)}")

    @classmethod
    def full_rank(cls, shape: Shape) -> tuple[int, ...]:
        return tuple(shape)

    @classmethod
    def within(cls, shape: Shape, rank: int) -> tuple[int, ...]:
        return tuple(min(rank, n, math.prod(shape) // n) for n in shape)

    @classmethod
    def factor_shapes(cls, shape: Shape, rank: Rank) -> dict[str, Shape]:
        ranks = cls.feasible_rank(shape, rank)
        return {"core": ranks} | {f"factor_{i}": (n, r) for i, (n, r) in enumerate(zip(shape, ranks, strict=True))}

    @classmethod
    def initial(cls, name: str, drawn: Tensor) -> Tensor:
        return super().initial(name, drawn) if name == "core" else F.normalize(drawn, dim=0)

    @classmethod
    @on_pytorch
    def reconstruct(cls, factors: Factors, shape: Shape) -> Tensor:
        core, matrices = _parts(factors)
        return tl.tucker_to_tensor((core, matrices))

    @classmethod
    @on_pytorch
    def decompose(cls, tensor: Tensor, rank: Rank, seed: int) -> dict[str, Tensor]:
        ranks = cls.feasible_rank(tuple(tensor.shape), rank)
        useful = [min(r, tensor.numel() // n) for r, n in zip(ranks, tensor.shape, strict=True)]
        core, matrices = tucker(tensor, useful, n_iter_max=20, init="svd", tol=1e-6, random_state=seed)
        return _fitted(core, matrices, ranks)

    @classmethod
    def take(cls, factors: Factors, shape: Shape, mode: int, index: int) -> Factors:
        core, matrices = _parts(factors)
        row = matrices.pop(mode)[index]
        return _named(torch.tensordot(row, core, dims=([0], [mode])), matrices)

    @classmethod
    def bottleneck(cls, factors: Factors, shape: Shape) -> Bottleneck | None:
        core, (out, into, *kernel) = _parts(factors)
        if len(kernel) > 1:
            return None
        core = torch.einsum("...qpr,...kr->...qpk", core, kernel[0]) if kernel else core.unsqueeze(-1)
        return Bottleneck(out, core, into.mT)

    @classmethod
    @on_pytorch
    def inner_product(cls, a: Factors, b: Factors, shape: Shape) -> Tensor:
        core_a, matrices_a = _parts(a)
        core_b, matrices_b = _parts(b)
        between = [u.T @ v for u, v in zip(matrices_a, matrices_b, strict=True)]
        return (core_a * multi_mode_dot(core_b, between)).sum()

    @classmethod
    @on_pytorch
    def squared_norm(cls, factors: Factors, shape: Shape) -> Tensor:
        core, matrices = _parts(factors)
        _, small = reduce(matrices)
        return multi_mode_dot(core, small).square().sum()

    @classmethod
    @on_pytorch
    def round_factors(cls, factors: Factors, shape: Shape, rank: Rank, seed: int) -> dict[str, Tensor]:
        core, matrices = _parts(factors)
        bases, small = reduce(matrices)
        for mode, matrix in enumerate(small):
            core = mode_dot(core, matrix, mode)
        if not core.any():
            return {n: core.new_zeros(size) for n, size in cls.factor_shapes(shape, rank).items()}
        ranks = cls.feasible_rank(shape, rank)
        inner = tuple(min(r, n) for r, n in zip(ranks, core.shape, strict=True))
        rounded_core, rounded = _parts(cls.decompose(core, inner, seed))
        return _fitted(rounded_core, expand(bases, rounded), ranks)

    @classmethod
    def mode_product(cls, factors: Factors, shape: Shape, mode: int, matrix: Tensor) -> Factors:
        return {**factors, f"factor_{mode}": matrix @ factors[f"factor_{mode}"]}

    @classmethod
    def ladder(cls, spectrum: Spectrum, ranks: Sequence[int], seed: int) -> list[Rung]:
        """Each rank, and the ranks per mode that lose least at the same number of parameters, as the HOSVD tells."""
        shape = tuple(spectrum.tensor.shape)
        useful = tuple(spectrum.captured.shape)
        clipped = [cls.within(shape, r) for r in ranks]
        budgets = [cls.parameter_count(shape, r) for r in clipped]
        best = best_ranks(spectrum.captured, _costs(shape, useful), budgets)
        return [cls._rung(spectrum, chosen) for chosen in dict.fromkeys([*clipped, *best])]

    @classmethod
    def cheapest(cls, spectrum: Spectrum, error: float) -> Rung | None:
        costs = _costs(tuple(spectrum.tensor.shape), tuple(spectrum.captured.shape))
        rank = fewest_parameters(spectrum.captured, costs, spectrum.energy - error)
        return None if rank is None else cls._rung(spectrum, rank)

    @classmethod
    def _rung(cls, spectrum: Spectrum, rank: tuple[int, ...]) -> Rung:
        core, matrices, error = spectrum.orthogonal(rank)
        return Rung(rank, error, _named(core, matrices))


def _costs(shape: Shape, useful: Shape) -> Tensor:
    """At [r_1 − 1, …] the parameters of core and factors; infinite where a rank is above the product of the others."""
    grids = torch.stack(rank_grids(useful)).double()
    core = grids.prod(0)
    factors = (grids * torch.tensor(shape, dtype=grids.dtype).reshape(-1, *[1] * len(shape))).sum(0)
    return torch.where((grids.square() <= core).all(0), core + factors, torch.inf)


def _parts(factors: Factors) -> tuple[Tensor, list[Tensor]]:
    return factors["core"], [factor for name, factor in factors.items() if name != "core"]


def _named(core: Tensor, matrices: list[Tensor]) -> dict[str, Tensor]:
    return {"core": core} | {f"factor_{i}": matrix for i, matrix in enumerate(matrices)}


def _fitted(core: Tensor, matrices: list[Tensor], ranks: tuple[int, ...]) -> dict[str, Tensor]:
    """Zeros up to ``ranks``, where the tensor itself had fewer."""
    pad = [size for want, have in zip(reversed(ranks), reversed(core.shape), strict=True) for size in (0, want - have)]
    core = torch.nn.functional.pad(core, pad)
    wide = [torch.nn.functional.pad(m, (0, r - m.shape[1])) for m, r in zip(matrices, ranks, strict=True)]
    return _named(core, wide)
