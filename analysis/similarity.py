"""How alike the deltas of tasks are: cosines, and angles between the spaces that they write to and read from."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.kinds import Likeness
from analysis.reading import Folders, read_tasks
from tensornet.delta import Delta
from tensornet.errors import ConfigError, TaskFileError
from tensornet.files import TaskFile

LEADING = 0.9
"""Share of ‖ΔW‖² whose singular directions count as the space of a delta."""


def similarity(tasks: Folders, kind: Likeness = "cosine") -> pd.DataFrame:
    """How alike the deltas of each two tasks are, per layer.

    Args:
        tasks: two task folders or more.
        kind: "cosine": ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖), in factor space; "output" and "input": mean cos² of the principal
            angles between the spaces of output (input) channels that hold nine tenths of each delta (Björck and Golub,
            1973), 1 where the smaller space lies within the larger.

    Returns:
        Index: module paths in network order; columns pairs of tasks; NaN where one of them has no delta.

    Raises:
        ConfigError: an unknown kind.
        TaskFileError: as `norms`, or only one task.
    """
    if kind not in get_args(Likeness):
        raise ConfigError(f"kind must be one of {', '.join(get_args(Likeness))}; got {kind!r}")
    found = {label: _deltas(file) for label, file in _several(tasks).items()}
    order = {name: delta.target.order for deltas in found.values() for name, delta in deltas.items()}
    alike = _cosine if kind == "cosine" else _Spaces(0 if kind == "output" else 1).overlap
    columns = {
        (a, b): {name: alike(found[a][name], found[b][name]) for name in found[a] if name in found[b]}
        for a, b in combinations(found, 2)
    }
    table = pd.DataFrame(columns).reindex(sorted(order, key=lambda name: order[name]))
    table.index.name = "layer"
    return table


def overall(tasks: Folders) -> pd.DataFrame:
    """Cosines between all deltas of each two tasks together, as a square table: Σ_l ⟨a_l, b_l⟩ / √(Σ ‖a_l‖² Σ ‖b_l‖²)."""
    found = {label: _deltas(file) for label, file in _several(tasks).items()}
    table = pd.DataFrame(np.eye(len(found)), index=list(found), columns=list(found))
    sizes = {
        label: sum(float(delta.norm().detach()) ** 2 for delta in deltas.values()) ** 0.5 for label, deltas in found.items()
    }
    for a, b in combinations(found, 2):
        product = sum(found[a][name].inner(found[b][name]) for name in found[a] if name in found[b])
        size = sizes[a] * sizes[b]
        table.loc[a, b] = table.loc[b, a] = product / size if size else 0.0
    return table


def shareable(tasks: Folders, least: float = 0.5) -> pd.DataFrame:
    """Factors that two tasks could share: spaces that overlap far more than random ones of their sizes would.

    Random spaces of p and q dimensions out of n overlap by max(p, q) / n on average; ``excess`` is how much of what is
    left above that the two do.

    Args:
        tasks: two task folders or more.
        least: excess from which a pair is listed.

    Returns:
        Columns `layer`, `side` ("output" or "input"), `a`, `b`, `overlap`, `chance`, `excess`, `dimensions` (of the two
        spaces), the most alike first.
    """
    found = {label: _deltas(file) for label, file in _several(tasks).items()}
    rows = []
    sides = {"output": _Spaces(0), "input": _Spaces(1)}
    for a, b in combinations(found, 2):
        for name in [name for name in found[a] if name in found[b]]:
            for side, spaces in sides.items():
                overlap, chance, sizes = spaces.compared(found[a][name], found[b][name])
                if chance < 1 and (overlap - chance) / (1 - chance) >= least:
                    excess = (overlap - chance) / (1 - chance)
                    rows.append((name, side, a, b, overlap, chance, excess, sizes))
    columns = ["layer", "side", "a", "b", "overlap", "chance", "excess", "dimensions"]
    return pd.DataFrame(rows, columns=columns).sort_values("excess", ascending=False, ignore_index=True)


def _several(tasks: Folders) -> dict[str, TaskFile]:
    files = read_tasks(tasks)
    if len(files) < 2:
        raise TaskFileError(f"two tasks or more can be compared; got only {next(iter(files))!r}")
    return files


def _deltas(file: TaskFile) -> dict[str, Delta]:
    found = sorted(file.deltas(), key=lambda entry: entry[1].target.order)
    return {delta.target.name: delta for _, delta, _ in found}


def _cosine(a: Delta, b: Delta) -> float:
    size = a.norm().item() * b.norm().item()
    return a.inner(b) / size if size else float("nan")


class _Spaces:
    """The spaces of deltas on one side, each found once, however many pairs it is in."""

    def __init__(self, mode: int) -> None:
        self._mode = mode
        self._known: dict[Delta, Tensor] = {}

    def compared(self, a: Delta, b: Delta) -> tuple[float, float, tuple[int, int]]:
        """Mean cos² of the principal angles, what random spaces would have, and the dimensions of both."""
        left, right = self._of(a), self._of(b)
        p, q = left.shape[1], right.shape[1]
        if not p or not q:
            return float("nan"), 1.0, (p, q)
        return float((left.T @ right).square().sum()) / min(p, q), max(p, q) / len(left), (p, q)

    def overlap(self, a: Delta, b: Delta) -> float:
        """Mean cos² of the principal angles."""
        return self.compared(a, b)[0]

    def _of(self, delta: Delta) -> Tensor:
        if delta not in self._known:
            self._known[delta] = _space(delta, self._mode)
        return self._known[delta]


def _space(delta: Delta, mode: int) -> Tensor:
    """Orthonormal directions of the output (0) or input (1) channels that hold `LEADING` of the energy."""
    with torch.no_grad():
        thin = _product(delta, mode)
        matrix = delta.channels_first().double().movedim(mode, 0).flatten(1) if thin is None else thin
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    energy = s.square().cumsum(0)
    if not float(energy[-1]):
        return u[:, :0]
    return u[:, : int((energy < LEADING * energy[-1]).sum()) + 1]


def _product(delta: Delta, mode: int) -> Tensor | None:
    """A matrix of a few columns with the singular values and left vectors of the unfolding; None where factors give none.

    The unfolding is left · right with a thin left; with QR = rightᵀ, left · Rᵀ is that matrix.
    """
    parts = delta.bottleneck()
    if parts is None or (mode == 1 and parts.into is None):
        return None
    wide = parts.to(torch.float64)
    left, right = (wide.out, wide.rows()) if mode == 0 else (wide.into.T, wide.columns())  # type: ignore[union-attr]
    return left @ torch.linalg.qr(right.T, mode="r").R.T
