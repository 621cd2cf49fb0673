"""A kernel as maps into, inside and out of a rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bottleneck(NamedTuple):
    """A kernel as three maps: into the rank, a small core, out of the rank.

    ΔW[o, i, k] = Σ_q Σ_p out[o, q] · core[q, p, k] · into[p, i]

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
            return self.core.flatten(1)
        if self.core.ndim == 2:
            return (self.into[:, :, None] * self.core[:, None, :]).flatten(1)
        return torch.matmul(self.into.T, self.core).flatten(1)
