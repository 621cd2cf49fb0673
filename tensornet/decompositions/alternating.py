"""CP factors by alternating least squares: one rank, or many ranks in ascending order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import tensorly as tl
import torch
from tensorly.decomposition import parafac
from torch import Tensor

from tensornet.decompositions.backend import on_pytorch
from tensornet.decompositions.spectrum import Spectrum


def constructed(tensor: Tensor) -> list[Tensor]:
    """An exact CP of rank ∏ n_i / max n_i: the fibres of the longest mode, each against unit vectors of the others."""
    longest = max(range(tensor.ndim), key=lambda i: tensor.shape[i])
    others = [n for i, n in enumerate(tensor.shape) if i != longest]
    grid = torch.cartesian_prod(*(torch.arange(n, device=tensor.device) for n in others))
    grid = grid.reshape(-1, len(others))
    factors = [torch.eye(n, dtype=tensor.dtype, device=tensor.device)[:, grid[:, i]] for i, n in enumerate(others)]
    factors.insert(longest, tensor.movedim(longest, 0).flatten(1))
    return factors


def alternating(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
    """Alternating least squares by TensorLy, with a ridge where the plain normal equations are singular."""
    best: list[Tensor] | None = None
    for ridge in (0.0, 1e-6, 1e-3):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorLy warns of ranks above a mode, which CP allows
                weights, factors = parafac(
                    tensor, rank, n_iter_max=100, init="svd", tol=1e-7, random_state=seed, l2_reg=ridge
                )
        except (RuntimeError, ValueError):  # torch.linalg reports a singular system as RuntimeError
            continue
        if all(torch.isfinite(f).all() for f in factors):
            best = [f.contiguous() for f in factors]
            best[0] = best[0] * weights
            break
    if best is None:
        raise RuntimeError(f"CP of rank {rank} did not converge on a tensor of shape {tuple(tensor.shape)}")
    return balanced(best)


def balanced(factors: list[Tensor]) -> list[Tensor]:
    """The same tensor with the norm of every component shared equally by its columns."""
    norms = torch.stack([f.norm(dim=0) for f in factors])
    shared = norms.log().mean(0).exp() if (norms > 0).all() else norms.prod(0) ** (1 / len(factors))
    safe = norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return [f * (shared / n) for f, n in zip(factors, safe, strict=True)]


class Fit(NamedTuple):
    """CP factors of one rank with their squared error; `note` says what went wrong on the way, if anything."""

    rank: int
    error: float
    factors: list[Tensor]
    note: str = ""


STEPS = 60
"""Sweeps over the modes at each rank; the rank before has done most of the work."""

OPPOSITE = -0.75
"""Cosine of two components, each longer than the sum of all, below which a fit is degenerate."""

WORTH = 0.01
"""Share of the energy that a regularised fit may lose beyond the plain one and still be taken."""


@on_pytorch
def ascending(spectrum: Spectrum, ranks: Sequence[int], seed: int) -> list[Fit]:
    """Fits of ascending ranks, each beginning with the factors of the one before it.

    The tensor is replaced by the leading part of its HOSVD core (Carroll, Pruzansky and Kruskal 1980), whose error adds up
    with that of the fit. Where components of a fit cancel, it is done again with a ridge on the factors, and where sweeps
    end before the error has settled, the note says so. Errors never rise with the rank.

    Args:
        spectrum: of a tensor without modes of length 1.
        ranks: ascending.
        seed: of the factors that a higher rank adds.
    """
    shape = tuple(spectrum.tensor.shape)
    if len(shape) == 1:
        return [Fit(rank, 0.0, [spectrum.wide[:, None]]) for rank in ranks[:1]]
    if len(shape) == 2:
        pairs = [(rank, spectrum.matrix(0, rank)) for rank in ranks]
        return [Fit(rank, error, [left, right.T]) for rank, (left, right, error) in pairs]
    exact = spectrum.tensor.numel() // max(shape)
    widest = max([rank for rank in ranks if rank < exact], default=1)
    core = spectrum.core[tuple(slice(2 * widest) for _ in shape)]
    bases = [spectrum.basis(mode)[:, : core.shape[mode]] for mode in range(core.ndim)]
    size = float(core.norm())
    lost = max(spectrum.energy - size**2, 0.0)
    small = (core / size).float()
    generator = torch.Generator().manual_seed(seed)
    fits: list[Fit] = []
    warm = [small.new_zeros(n, 0) for n in small.shape]
    for rank in ranks:
        if rank >= exact:
            fits.append(Fit(rank, 0.0, constructed(spectrum.wide)))
            break
        found, residual, note = _swept(small, _widened(warm, rank, generator))
        before = fits[-1].error if fits else spectrum.energy
        if lost + residual * size**2 > before:
            found = [torch.cat([f, f.new_zeros(f.shape[0], rank - f.shape[1])], dim=1) for f in warm]
            fits.append(Fit(rank, before, _outside(found, bases, size), "no better than the rank before"))
            continue
        warm = found
        fits.append(Fit(rank, lost + residual * size**2, _outside(found, bases, size), note))
    return fits


def _outside(factors: list[Tensor], bases: list[Tensor], size: float) -> list[Tensor]:
    """Factors of the core as factors of the tensor."""
    wide = [basis @ factor.double() for basis, factor in zip(bases, factors, strict=True)]
    wide[0] = wide[0] * size
    return balanced(wide)


def _swept(tensor: Tensor, begin: list[Tensor]) -> tuple[list[Tensor], float, str]:
    """Alternating least squares from given factors, with a ridge where components cancel: factors, squared error, note."""
    plain: tuple[list[Tensor], float, str] | None = None
    for ridge in (0.0, 1e-4, 1e-3, 1e-2):
        found, errors = _least_squares(tensor, begin, ridge)
        if found is None:
            continue
        residual = float((tl.cp_to_tensor((None, [f.double() for f in found])) - tensor.double()).square().sum())
        settled = len(errors) < STEPS or errors[-2] - errors[-1] < 1e-3
        if not _degenerate(found) and (plain is None or residual <= plain[1] + WORTH):
            note = "regularised: components cancelled" if ridge else "" if settled else f"not settled after {STEPS} sweeps"
            return found, residual, note
        plain = plain or (found, residual, "components cancel")
    if plain is None:
        nothing = [torch.zeros_like(f) for f in begin]
        return nothing, float(tensor.double().square().sum()), "the equations were singular"
    return plain


def _least_squares(tensor: Tensor, begin: list[Tensor], ridge: float) -> tuple[list[Tensor] | None, list[float]]:
    """Factors and the relative error after each sweep; None where the equations were singular."""
    start = (None, [f.clone() for f in begin])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorLy warns of ranks above a mode, which CP allows
            (_, factors), errors = parafac(
                tensor, begin[0].shape[1], STEPS, init=start, tol=1e-5, l2_reg=ridge, return_errors=True
            )
    except (RuntimeError, ValueError):  # torch.linalg reports a singular system as RuntimeError
        return None, []
    if not all(torch.isfinite(f).all() for f in factors):
        return None, []
    return balanced([f.contiguous() for f in factors]), [float(error) for error in errors]


def _degenerate(factors: list[Tensor]) -> bool:
    """Whether two large components cancel (Kruskal, Harshman and Lundy 1989): they would grow with every sweep."""
    grams = torch.stack([f.double().T @ f.double() for f in factors]).prod(0)
    lengths = grams.diagonal().clamp_min(torch.finfo(grams.dtype).tiny).sqrt()
    large = lengths > grams.sum().clamp_min(0).sqrt()
    cosines = grams / torch.outer(lengths, lengths)
    return bool((cosines[large][:, large] < OPPOSITE).any())


def _widened(factors: list[Tensor], rank: int, generator: torch.Generator) -> list[Tensor]:
    """The same components and new ones up to ``rank``: leading directions of each mode, random where it has no more.

    A little off those directions: a start exactly on them can be a saddle.
    """
    wide = []
    for factor in factors:
        n, have = factor.shape
        fresh = torch.randn(n, rank - have, generator=generator) / n**0.5
        along = torch.eye(n, rank)[:, have:]
        fresh = torch.where(along.any(0), along + 0.2 * fresh, fresh)
        wide.append(torch.cat([factor, fresh.to(factor)], dim=1))
    return wide
