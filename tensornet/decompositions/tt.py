"""Tensor train: a chain of cores, neighbours joined by a rank."""

from __future__ import annotations

from collections.abc import Sequence

import tensorly as tl
import torch
from tensorly.decomposition import tensor_train
from tensorly.tenalg import mode_dot
from torch import Tensor

from tensornet.decompositions.backend import on_pytorch
from tensornet.decompositions.base import Decomposition, Factors, Rung
from tensornet.decompositions.bottleneck import Bottleneck
from tensornet.decompositions.low_rank import LowRank
from tensornet.decompositions.named import register
from tensornet.decompositions.spectrum import Spectrum, best_ranks, fewest_parameters, rank_grids
from tensornet.shapes import Rank, Shape, check_rank, ranks_within, tensor_train_limits


@register("tt")
class TT(Decomposition):
    """A[i_1, …, i_n] = G_1[:, i_1, :] · G_2[:, i_2, :] ⋯ G_n[:, i_n, :] (Oseledets, SIAM J. Sci. Comput. 2011, eq. 1.2).

    Factors: `core_i` of shape (R_i, n_i, R_{i+1}) with R_0 = R_n = 1. The rank is the tuple of the inner ranks
    (the ones at both ends may be given too); an int is clipped to the smaller side of each unfolding.
    """

    chain = True
    zero = "core_0"
    stacks = True

    @classmethod
    def feasible_rank(cls, shape: Shape, rank: Rank) -> tuple[int, ...]:
        rank = check_rank(rank)
        if isinstance(rank, tuple) and len(rank) == len(shape) + 1 and rank[0] == rank[-1] == 1:
            rank = rank[1:-1]
        what = f"a tensor train of shape {tuple(shape)}"
        return ranks_within(rank, tensor_train_limits(shape), what)

    @classmethod
    def full_rank(cls, shape: Shape) -> tuple[int, ...]:
        return tensor_train_limits(shape)

    @classmethod
    def factor_shapes(cls, shape: Shape, rank: Rank) -> dict[str, Shape]:
        ranks = (1, *cls.feasible_rank(shape, rank), 1)
        return {f"core_{i}": (ranks[i], n, ranks[i + 1]) for i, n in enumerate(shape)}

    @classmethod
    @on_pytorch
    def reconstruct(cls, factors: Factors, shape: Shape) -> Tensor:
        return tl.tt_to_tensor(list(factors.values()))

    @classmethod
    @on_pytorch
    def decompose(cls, tensor: Tensor, rank: Rank, seed: int) -> dict[str, Tensor]:
        ranks = (1, *cls.feasible_rank(tuple(tensor.shape), rank), 1)
        cores = tensor_train(tensor, list(ranks)).factors
        return _fitted(cores, ranks)

    @classmethod
    def take(cls, factors: Factors, shape: Shape, mode: int, index: int) -> Factors:
        cores = list(factors.values())
        matrix = cores.pop(mode)[:, index]
        if mode < len(cores):
            cores[mode] = torch.tensordot(matrix, cores[mode], dims=1)
        else:
            cores[-1] = torch.tensordot(cores[-1], matrix, dims=1)
        return {f"core_{i}": core for i, core in enumerate(cores)}

    @classmethod
    def bottleneck(cls, factors: Factors, shape: Shape) -> Bottleneck | None:
        first, *kernel, last = factors.values()
        if len(kernel) > 1:
            return None
        core = kernel[0].mT if kernel else None
        return Bottleneck(first.squeeze(-3), core, last.squeeze(-1))

    @classmethod
    def inner_product(cls, a: Factors, b: Factors, shape: Shape) -> Tensor:
        seam = next(iter(a.values())).new_ones(1, 1)
        for left, right in zip(a.values(), b.values(), strict=True):
            seam = torch.einsum("ab,anc,bnd->cd", seam, left, right)
        return seam.squeeze()

    @classmethod
    def squared_norm(cls, factors: Factors, shape: Shape) -> Tensor:
        return _right_orthogonal(list(factors.values()))[0].square().sum()

    @classmethod
    def round_factors(cls, factors: Factors, shape: Shape, rank: Rank, seed: int) -> dict[str, Tensor]:
        """Orthogonalised from the right, truncated from the left (Oseledets 2011, algorithm 2)."""
        ranks = (1, *cls.feasible_rank(shape, rank), 1)
        cores = _right_orthogonal(list(factors.values()))
        for i in range(len(cores) - 1):
            before, n, _ = cores[i].shape
            u, s, v = torch.linalg.svd(cores[i].flatten(0, 1), full_matrices=False)
            keep = min(ranks[i + 1], len(s))
            cores[i] = u[:, :keep].unflatten(0, (before, n))
            cores[i + 1] = torch.tensordot(s[:keep, None] * v[:keep], cores[i + 1], dims=1)
        return _fitted(cores, ranks)

    @classmethod
    def mode_product(cls, factors: Factors, shape: Shape, mode: int, matrix: Tensor) -> Factors:
        return {**factors, f"core_{mode}": torch.einsum("mn,anb->amb", matrix, factors[f"core_{mode}"])}

    @classmethod
    def ladder(cls, spectrum: Spectrum, ranks: Sequence[int], seed: int) -> list[Rung]:
        """A train of two or three modes is a Tucker form with the middle mode left whole: its HOSVD serves every rank."""
        shape = tuple(spectrum.tensor.shape)
        if len(shape) > 3:
            return super().ladder(spectrum, ranks, seed)
        if len(shape) == 2:
            matrices = LowRank.ladder(spectrum, ranks, seed)
            pairs = [(m.factors["left"], m.factors["right"], m.error) for m in matrices]
            return [Rung((a.shape[1],), error, {"core_0": a[None], "core_1": b[:, :, None]}) for a, b, error in pairs]
        captured = spectrum.captured[:, -1]
        clipped = [cls.feasible_rank(shape, r) for r in ranks]
        best = best_ranks(captured, _costs(shape, captured), [cls.parameter_count(shape, r) for r in clipped])
        return [cls._rung(spectrum, chosen) for chosen in dict.fromkeys([*clipped, *best])]

    @classmethod
    def cheapest(cls, spectrum: Spectrum, error: float) -> Rung | None:
        if spectrum.tensor.ndim != 3:
            return None
        captured = spectrum.captured[:, -1]
        costs = _costs(tuple(spectrum.tensor.shape), captured)
        rank = fewest_parameters(captured, costs, spectrum.energy - error)
        return None if rank is None else cls._rung(spectrum, rank)

    @classmethod
    @on_pytorch
    def _rung(cls, spectrum: Spectrum, rank: tuple[int, ...]) -> Rung:
        core, (left, whole, right), error = spectrum.orthogonal((rank[0], spectrum.core.shape[1], rank[1]))
        cores = {"core_0": left[None], "core_1": mode_dot(core, whole, 1), "core_2": right.T[:, :, None]}
        return Rung(rank, error, cores)


def _costs(shape: Shape, captured: Tensor) -> Tensor:
    """At [r − 1, q − 1] the parameters of a train of three modes; infinite where a rank is above what the other allows."""
    first, middle, last = shape
    r, q = (grid.double() for grid in rank_grids(captured.shape))
    counts = first * r + r * middle * q + q * last
    return torch.where((r <= middle * q) & (q <= middle * r), counts, torch.inf)


def _right_orthogonal(cores: list[Tensor]) -> list[Tensor]:
    """The same train with every core but the first orthonormal from the right; the first carries the norm."""
    for i in range(len(cores) - 1, 0, -1):
        _, n, after = cores[i].shape
        q, r = torch.linalg.qr(cores[i].flatten(1).T)
        cores[i] = q.T.unflatten(1, (n, after))
        cores[i - 1] = torch.tensordot(cores[i - 1], r.T, dims=1)
    return cores


def _fitted(cores: list[Tensor], ranks: tuple[int, ...]) -> dict[str, Tensor]:
    """Zeros up to ``ranks``, where the tensor itself had fewer."""
    pads = [(0, ranks[i + 1] - c.shape[2], 0, 0, 0, ranks[i] - c.shape[0]) for i, c in enumerate(cores)]
    return {f"core_{i}": torch.nn.functional.pad(c, p) for i, (c, p) in enumerate(zip(cores, pads, strict=True))}
