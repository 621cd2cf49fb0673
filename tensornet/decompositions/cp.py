"""Canonical polyadic decomposition: a sum of rank-one terms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorly as tl
import torch
import torch.nn.functional as F
from torch import Tensor

from tensornet.decompositions.alternating import alternating, ascending, constructed
from tensornet.decompositions.backend import on_pytorch
from tensornet.decompositions.base import Decomposition, Factors, Rung
from tensornet.decompositions.bottleneck import Bottleneck
from tensornet.decompositions.named import register
from tensornet.decompositions.orthogonal import expand, reduce, split
from tensornet.decompositions.spectrum import Spectrum
from tensornet.shapes import Rank, Shape, single_rank


@register("cp")
class CP(Decomposition):
    """A = Σ_{r=1..R} a_1^r ∘ a_2^r ∘ … ∘ a_n^r (Hitchcock 1927; Kolda and Bader, SIAM Review 2009, eq. 3.1).

    Factors: `factor_i` of shape (n_i, R). The rank is one int and is never clipped: R · Σ n_i parameters. With the
    modes (C_out, C_in, k²) this is the delta of Factorized Tensor Networks (arXiv 2310.06124).
    """

    zero = "factor_0"
    stacks = True

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
    def initial(cls, name: str, drawn: Tensor) -> Tensor:
        return F.normalize(drawn, dim=0)  # of each term

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
            found = constructed(core)
        elif core.ndim == 2:
            left, right = split(core, rank)
            found = [left, right.T]
        else:
            found = alternating(core, rank, seed)
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
        return Bottleneck(out, kernel[0].mT if kernel else None, into.mT)

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
    def mode_product(cls, factors: Factors, shape: Shape, mode: int, matrix: Tensor) -> Factors:
        return {**factors, f"factor_{mode}": matrix @ factors[f"factor_{mode}"]}

    @classmethod
    def component_norms(cls, factors: Factors, shape: Shape) -> Tensor:
        """Of the rank-one terms a_1^r ∘ a_2^r ∘ …, the largest first."""
        return torch.stack([factor.norm(dim=0) for factor in factors.values()]).prod(0).sort(descending=True).values

    @classmethod
    def ladder(cls, spectrum: Spectrum, ranks: Sequence[int], seed: int) -> list[Rung]:
        """Alternating least squares on the HOSVD core, each rank beginning with the factors of the rank before it."""
        shape = tuple(spectrum.tensor.shape)
        modes = [i for i, n in enumerate(shape) if n > 1] if max(shape) > 1 else [0]
        rungs = []
        for fit in ascending(spectrum.squeezed(), sorted({min(r, cls.full_rank(shape)) for r in ranks}), seed):
            columns = dict(zip(modes, fit.factors, strict=True))
            one = fit.factors[0].new_ones(1, fit.rank)
            factors = {f"factor_{i}": columns.get(i, one) for i in range(len(shape))}
            rungs.append(Rung(fit.rank, fit.error, factors, fit.note))
        return rungs

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


def _padded(factor: Tensor, rank: int) -> Tensor:
    """``factor`` with columns of zeros up to ``rank``."""
    return torch.cat([factor, factor.new_zeros(factor.shape[0], rank - factor.shape[1])], dim=1)
