"""A tensor with its higher-order singular value decomposition: the errors of many ranks from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import tensorly as tl
import torch
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot
from torch import Tensor

from tensornet.decompositions.backend import on_pytorch

SWEEPS = 4
"""Of orthogonal iteration, which begins close to where it ends."""


class Spectrum:
    """T and its HOSVD, T = core ×_1 U_1 ×_2 U_2 ⋯ (De Lathauwer, De Moor, Vandewalle, SIAM J. Matrix Anal. 2000).

    Truncating to the leading r_i columns of every U_i is an orthogonal projection, so its squared error is
    ‖T‖² − ‖core[:r_1, :r_2, …]‖²: one decomposition answers for every rank. Each part is computed when it is first asked
    for, in float64.

    Args:
        tensor: finite, of two modes or more.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self._bases: dict[int, Tensor] = {}

    @cached_property
    def wide(self) -> Tensor:
        """The tensor in float64."""
        return self.tensor.to(torch.float64).contiguous()

    @cached_property
    def energy(self) -> float:
        """‖T‖²."""
        return float(self.wide.square().sum())

    def basis(self, mode: int) -> Tensor:
        """U of one mode: left singular vectors of that unfolding, shape (n, min(n, size / n)), the largest first."""
        if mode not in self._bases:
            self._bases[mode] = _left_vectors(self._unfolded(mode))
        return self._bases[mode]

    @cached_property
    @on_pytorch
    def core(self) -> Tensor:
        """The tensor in the bases of all its modes."""
        modes = range(self.tensor.ndim)
        return multi_mode_dot(self.wide, [self.basis(mode).T for mode in modes])

    @cached_property
    def captured(self) -> Tensor:
        """At [r_1 − 1, r_2 − 1, …] the energy of the leading r_1 × r_2 × … part of the core."""
        table = self.core.square()
        for mode in range(table.ndim):
            table = table.cumsum(mode)
        return table

    def matrix(self, mode: int, rank: int) -> tuple[Tensor, Tensor, float]:
        """The best rank-``rank`` product of an unfolding: left (n, rank), right (rank, size / n), squared error.

        Singular values are shared by both sides (Eckart and Young, 1936).
        """
        left = self.basis(mode)[:, :rank]
        right = left.T @ self._unfolded(mode)
        root = right.norm(dim=1).sqrt()
        error = max(self.energy - float(right.square().sum()), 0.0)
        return left * root, right / root.clamp_min(torch.finfo(root.dtype).tiny)[:, None], error

    @on_pytorch
    def orthogonal(self, ranks: Sequence[int]) -> tuple[Tensor, list[Tensor], float]:
        """Core, orthonormal factors and squared error at ``ranks``: the truncated HOSVD, bettered by a few sweeps.

        The sweeps (higher-order orthogonal iteration, De Lathauwer et al. 2000) work on the leading part of the core.
        """
        lead = self.core[tuple(slice(2 * r + 8) for r in ranks)]
        begin = [torch.eye(n, r, dtype=lead.dtype, device=lead.device) for n, r in zip(lead.shape, ranks, strict=True)]
        core = lead[tuple(slice(r) for r in ranks)]
        if sum(n > 1 for n in lead.shape) > 2 and core.shape != lead.shape:
            sweeps = [mode for mode, (r, n) in enumerate(zip(ranks, lead.shape, strict=True)) if r < n]
            (core, found), _ = partial_tucker(
                lead, [ranks[m] for m in sweeps], sweeps, SWEEPS, init=(core, [begin[m] for m in sweeps]), tol=0
            )
            for mode, factor in zip(sweeps, found, strict=True):
                begin[mode] = factor
        factors = [self.basis(mode)[:, : len(factor)] @ factor for mode, factor in enumerate(begin)]
        return core, factors, max(self.energy - float(core.square().sum()), 0.0)

    def permuted(self, order: Sequence[int]) -> Spectrum:
        """The same tensor with its modes in another order; bases that are known stay known."""
        other = Spectrum(self.tensor.permute(*order))
        other._bases = {i: self._bases[mode] for i, mode in enumerate(order) if mode in self._bases}
        if "core" in self.__dict__:
            other.__dict__["core"] = self.core.permute(*order)
        return other

    def squeezed(self) -> Spectrum:
        """The same tensor without its modes of length 1; one mode is always left."""
        shape = self.tensor.shape
        modes = [i for i, n in enumerate(shape) if n > 1] or [0]
        if len(modes) == len(shape):
            return self
        other = Spectrum(self.tensor.reshape([shape[i] for i in modes]))
        other._bases = {i: self._bases[mode] for i, mode in enumerate(modes) if mode in self._bases}
        return other

    @on_pytorch
    def _unfolded(self, mode: int) -> Tensor:
        return tl.unfold(self.wide, mode)


def _left_vectors(matrix: Tensor) -> Tensor:
    """By the smaller Gram matrix: a kernel's unfoldings are long, and only one side of them is needed."""
    rows, columns = matrix.shape
    if rows <= columns:
        return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)
    q, r = torch.linalg.qr(matrix)
    return q @ torch.linalg.eigh(r @ r.T).eigenvectors.flip(1)


def rank_grids(useful: Sequence[int]) -> tuple[Tensor, ...]:
    """For tables over every combination of ranks 1 … n: the rank of each mode at each place."""
    return torch.meshgrid(*(torch.arange(1, n + 1) for n in useful), indexing="ij")


def best_ranks(captured: Tensor, costs: Tensor, budgets: Sequence[int]) -> list[tuple[int, ...]]:
    """For each budget the ranks that capture most energy at no higher cost.

    Args:
        captured, costs: energy and parameters at [r_1 − 1, r_2 − 1, …].
        budgets: at least the cost of rank 1.
    """
    places = [int(torch.where(costs.to(captured.device) <= budget, captured, -1.0).argmax()) for budget in budgets]
    return [tuple(int(i) + 1 for i in torch.unravel_index(torch.tensor(place), captured.shape)) for place in places]


def fewest_parameters(captured: Tensor, costs: Tensor, energy: float) -> tuple[int, ...] | None:
    """The ranks of the least cost that capture ``energy``; None where none does."""
    prices = torch.where(captured >= energy, costs.to(captured), torch.inf)
    place = prices.argmin()
    if not torch.isfinite(prices.flatten()[place]):
        return None
    return tuple(int(i) + 1 for i in torch.unravel_index(place, captured.shape))
