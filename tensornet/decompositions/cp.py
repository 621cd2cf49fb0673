"""Canonical polyadic decomposition: a sum of rank-one terms."""

from __future__ import annotations

import math
import warnings

import tensorly as tl
import torch
from tensorly.decomposition import parafac
from torch import Tensor

from tensornet.decompositions.backend import on_pytorch
from tensornet.decompositions.base import Decomposition, Factors, register
from tensornet.decompositions.bottleneck import Bottleneck
from tensornet.decompositions.orthogonal import expand, reduce, split
from tensornet.shapes import Rank, Shape, single_rank


@register("cp")
class CP(Decomposition):
    """A = Σ_{r=1..R} a_1^r ∘ a_2^r ∘ … ∘ a_n^r (Hitchcock 1927; Kolda and Bader, SIAM Review 2009, eq. 3.1).

    Factors: `factor_i` of shape (n_i, R). The rank is one int and is never clipped: R · Σ n_i parameters. With the
    modes (C_out, C_in, k²) this is the delta of Factorized Tensor Networks (arXiv 2310.06124).
    """

    zero = "factor_0"

    @classmethod
    def feasible_rank(cls, shape: Shape, rank: Rank) -> int:
        return single_rank(rank, "CP")

    @classmethod
    def full_rank(cls, shape: Shape) -> int:
        return math.prod(shape) // max(shape)

    @classmethod
    def factor_shapes(cls, shape: Shape, rank: Rank) -> dict[str, Shape]:
        return {f"factor_{i}": (n, single_rank(rank, "CP")) for i, n in enumerate(shape)}

    @classmethod
    def initial_scale(cls, name: str, size: Shape) -> float:
        return 1 / math.sqrt(size[0])

    @classmethod
    @on_pytorch
    def reconstruct(cls, factors: Factors, shape: Shape) -> Tensor:
        return tl.cp_to_tensor((None, list(factors.values())))

    @classmethod
    @on_pytorch
    def decompose(cls, tensor: Tensor, rank: Rank, seed: int) -> dict[str, Tensor]:
        rank = single_rank(rank, "CP")
        modes = [i for i, n in enumerate(tensor.shape) if n > 1]
        core = tensor.squeeze()
        if core.ndim <= 1:
            found = [core[:, None]] if core.ndim else []
        elif rank >= cls.full_rank(tuple(core.shape)):
            found = _constructed(core)
        elif core.ndim == 2:
            left, right = split(core, rank)
            found = [left, right.T]
        else:
            found = _alternating(core, rank, seed)
        width = found[0].shape[1] if found else 1
        factors = [tensor.new_ones(1, width)] * tensor.ndim
        for mode, factor in zip(modes, found, strict=True):
            factors[mode] = factor
        if not found:
            factors[0] = tensor.reshape(1, 1)
        return {f"factor_{i}": _padded(f, rank) for i, f in enumerate(factors)}

    @classmethod
    def take(cls, factors: Factors, shape: Shape, mode: int, index: int) -> Factors:
        kept = list(factors.values())
        row = kept.pop(mode)[index]
        kept[0] = kept[0] * row
        return {f"factor_{i}": factor for i, factor in enumerate(kept)}

    @classmethod
    def bottleneck(cls, factors: Factors, shape: Shape) -> Bottleneck | None:
        out, into, *kernel = factors.values()
        if len(kernel) > 1:
            return None
        return Bottleneck(out, kernel[0].T if kernel else None, into.T)

    @classmethod
    def inner_product(cls, a: Factors, b: Factors, shape: Shape) -> Tensor:
        gram = torch.ones((), dtype=torch.float64)
        for left, right in zip(a.values(), b.values(), strict=True):
            gram = gram.to(left.device) * (left.T @ right)
        return gram.sum()

    @classmethod
    @on_pytorch
    def squared_norm(cls, factors: Factors, shape: Shape) -> Tensor:
        _, small = reduce(list(factors.values()))
        return tl.cp_to_tensor((None, small)).square().sum()

    @classmethod
    @on_pytorch
    def round_factors(cls, factors: Factors, shape: Shape, rank: Rank, seed: int) -> dict[str, Tensor]:
        rank = single_rank(rank, "CP")
        bases, small = reduce(list(factors.values()))
        core = tl.cp_to_tensor((None, small))
        if not core.any():
            return {n: f.new_zeros(f.shape[0], rank) for n, f in factors.items()}
        rounded = cls.decompose(core, rank, seed)
        return dict(zip(factors, expand(bases, list(rounded.values())), strict=True))


def _constructed(tensor: Tensor) -> list[Tensor]:
    """An exact CP of rank ∏ n_i / max n_i: the fibres of the longest mode, each against unit vectors of the others."""
    longest = max(range(tensor.ndim), key=lambda i: tensor.shape[i])
    others = [n for i, n in enumerate(tensor.shape) if i != longest]
    grid = torch.cartesian_prod(*(torch.arange(n, device=tensor.device) for n in others))
    grid = grid.reshape(-1, len(others))
    factors = [torch.eye(n, dtype=tensor.dtype, device=tensor.device)[:, grid[:, i]] for i, n in enumerate(others)]
    factors.insert(longest, tensor.movedim(longest, 0).flatten(1))
    return factors


def _alternating(tensor: Tensor, rank: int, seed: int) -> list[Tensor]:
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
    return _balanced(best)


def _balanced(factors: list[Tensor]) -> list[Tensor]:
    """The same tensor with the norm of every component shared equally by its columns."""
    norms = torch.stack([f.norm(dim=0) for f in factors])
    shared = norms.log().mean(0).exp() if (norms > 0).all() else norms.prod(0) ** (1 / len(factors))
    safe = norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return [f * (shared / n) for f, n in zip(factors, safe, strict=True)]


def _padded(factor: Tensor, rank: int) -> Tensor:
    """``factor`` with columns of zeros up to ``rank``."""
    return torch.cat([factor, factor.new_zeros(factor.shape[0], rank - factor.shape[1])], dim=1)
