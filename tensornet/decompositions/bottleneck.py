"""A kernel as maps into, inside and out of a rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bottleneck(NamedTuple):
    """A kernel as three maps: into the rank, a small core, out of the rank.

    ΔW[o, i, k] = Σ_q Σ_p out[o, q] · core[q, p, k] · into[p, i]

    In a stack of several, every map has a mode before these; `rows`, `rows_last` and `to` take it.

    Attributes:
        out: shape (C_out, Q).
        core: shape (Q, P, K); shape (Q, K) for a diagonal core, where Q = P; None for the identity.
        into: shape (P, C_in); None for the identity, where P = C_in.
    """

    out: Tensor
    core: Tensor | None
    into: Tensor | None

    def rows(self) -> Tensor:
        """The kernel without its last map: shape (Q, C_in · K), so that ΔW = out @ rows."""
        if self.core is None:
            assert self.into is not None
            return self.into
        if self.into is None:
            return self.core.flatten(-2) if self._full() else self.core
        if not self._full():
            if self.core.shape[-1] == 1:
                return self.into * self.core
            return (self.into.unsqueeze(-1) * self.core.unsqueeze(-2)).flatten(-2)
        return torch.matmul(self._beside_the_core(self.into.mT), self.core).flatten(-2)

    def columns(self) -> Tensor:
        """The kernel without its first map: shape (P, C_out · K), so that ΔW[o, i, k] = Σ_p into[p, i] · columns[p, ok]."""
        if self.core is None:
            return self.out.T
        if not self._full():
            return (self.out.T.unsqueeze(2) * self.core.unsqueeze(1)).flatten(1)
        return torch.einsum("oq,qpk->pok", self.out, self.core).flatten(1)

    def rows_last(self) -> Tensor:
        """`rows` with the channels last: shape (Q, K · C_in), made in that order and not turned into it."""
        if self.core is None or (not self._full() and (self.into is None or self.core.shape[-1] == 1)):
            return self.rows()
        if self.into is None:
            return self.core.mT.flatten(-2)
        if not self._full():
            return (self.core.unsqueeze(-1) * self.into.unsqueeze(-2)).flatten(-2)
        return torch.matmul(self.core.mT, self._beside_the_core(self.into)).flatten(-2)

    def rows_backward(self, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of ``core`` and ``into`` from that of `rows`, of shape (Q, C_in · K)."""
        if self.core is None:
            return None, gradient
        if self.into is None:
            return gradient.reshape(self.core.shape), None
        if not self._full() and self.core.shape[1] == 1:
            return (gradient * self.into).sum(1, keepdim=True), gradient * self.core
        shaped = gradient.unflatten(1, (self.into.shape[1], -1))  # (Q, C_in, K)
        if not self._full():
            return (shaped * self.into[:, :, None]).sum(1), (shaped * self.core[:, None, :]).sum(2)
        core = torch.matmul(self.into, shaped)
        return core, torch.tensordot(self.core, shaped, dims=([0, 2], [0, 2]))

    def to(self, dtype: torch.dtype) -> Bottleneck:
        """The same maps in another dtype."""
        if all(part is None or part.dtype == dtype for part in self):
            return self
        return Bottleneck(*(None if part is None else part.to(dtype) for part in self))  # type: ignore[arg-type]

    def added_to(self, weight: Tensor, scale: float) -> Tensor:
        """W + scale · ΔW for a weight (C_out, C_in, *kernel), in float32 at least; the caller rounds it once.

        It lies in memory as the weight does, also where that has its input channels last.
        """
        wide = torch.promote_types(weight.dtype, torch.float32)
        parts = self.to(wide)
        if weight.is_contiguous() or not (last := weight.movedim(1, -1)).is_contiguous():
            return torch.addmm(weight.to(wide).flatten(1), parts.out, parts.rows(), alpha=scale).view(weight.shape)
        total = torch.addmm(last.to(wide).flatten(1), parts.out, parts.rows_last(), alpha=scale)
        return total.view(last.shape).movedim(-1, 1)

    def _full(self) -> bool:
        """Whether the core has a number for each pair of P and Q."""
        return self.core is not None and self.core.ndim > self.out.ndim

    def _beside_the_core(self, matrix: Tensor) -> Tensor:
        """A matrix for every row of a stack, as the core's matrices meet it."""
        return matrix if self.out.ndim == 2 else matrix.unsqueeze(-3)
