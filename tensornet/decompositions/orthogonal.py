"""Factor matrices reduced to their triangular parts, so that norms and rounding work on small tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def orthonormal(matrix: Tensor) -> tuple[Tensor | None, Tensor]:
    """``matrix`` (n × r) as Q (n × min(n, r), orthonormal columns; None for the identity) and R: QR = matrix."""
    if matrix.shape[0] <= matrix.shape[1]:
        return None, matrix
    q, r = torch.linalg.qr(matrix)
    return q, r


def reduce(matrices: Sequence[Tensor]) -> tuple[list[Tensor | None], list[Tensor]]:
    """`orthonormal` of each: a multilinear form in the R has the norm of the same form in the matrices."""
    pairs = [orthonormal(matrix) for matrix in matrices]
    return [q for q, _ in pairs], [r for _, r in pairs]


def expand(bases: Sequence[Tensor | None], matrices: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix of the reduced problem back in the coordinates of the original modes."""
    return [m if q is None else q @ m for q, m in zip(bases, matrices, strict=True)]


def split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best left (m × rank) and right (rank × n) of ``matrix``: Eckart and Young (1936), balanced singular values.

    Beyond the rank that the matrix can have, they are zero.
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    beyond = rank - len(root)
    return F.pad(u[:, :rank] * root, (0, beyond)), F.pad(root[:, None] * v[:rank], (0, 0, 0, beyond))


def singular_values(matrix: Tensor) -> Tensor:
    """Those of ``matrix`` that are no rounding errors (Golub and Van Loan), the largest first; 0 alone of a zero matrix."""
    found = torch.linalg.svdvals(matrix)
    above = found > found[0] * max(matrix.shape) * torch.finfo(found.dtype).eps
    return found[: max(int(above.sum()), 1)]
