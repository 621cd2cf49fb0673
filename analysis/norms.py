"""How much each layer was changed: norms of its delta, of its factors and of its components."""

from __future__ import annotations

import math
from typing import get_args

import pandas as pd

from analysis.kinds import Kind
from analysis.reading import Folders, read_tasks
from tensornet.delta import Delta
from tensornet.errors import ConfigError
from tensornet.files import TaskFile

__all__ = ["Kind", "norms"]


def norms(tasks: Folders, kind: Kind = "delta") -> pd.DataFrame:
    """Norms per layer, in network order, one column per task.

    Args:
        tasks: task folders.
        kind: "delta": ‖ΔW‖; "relative": ‖ΔW‖ / ‖W‖; "per_parameter": ‖ΔW‖ / √(size of W); "factor": ‖factor‖ of each
            factor as it is stored; "component": norms of the terms that ΔW is a sum of, the largest first (rank-one terms
            for CP, singular values of the first unfolding for decompositions whose terms are not unique).

    Returns:
        Index: module paths; a layer that a task does not adapt is NaN in its column. For "factor" and "component" the
        columns are pairs of task and factor, or of task and number of the component.

    Raises:
        ConfigError: an unknown kind.
        TaskFileError: a folder is not a task, holds no deltas, or belongs to another backbone than the first.
    """
    check_kind(kind)
    columns: dict[object, dict[str, float]] = {}
    order: dict[str, int] = {}
    for label, file in read_tasks(tasks).items():
        for _, delta, record in file.deltas():
            name = delta.target.name
            order[name] = delta.target.order
            if kind in ("factor", "component"):
                parts = delta.factor_norms() if kind == "factor" else _numbered(delta)
                for part, value in parts.items():
                    columns.setdefault((label, part), {})[name] = value
            else:
                columns.setdefault(label, {})[name] = measured(delta, record.norm, kind)
    table = pd.DataFrame(columns).reindex(sorted(order, key=lambda name: order[name]))
    table.index.name = "layer"
    return table


def measured(delta: Delta, weight: float, kind: Kind) -> float:
    """One norm of one delta; ``weight`` is ‖W‖. A relative norm of a zero weight is infinite."""
    norm = delta.norm().item()
    if kind == "relative":
        return norm / weight if weight else math.inf if norm else 0.0
    if kind == "per_parameter":
        return norm / math.sqrt(math.prod(delta.target.shape))
    return norm


def layer_norms(file: TaskFile, kind: Kind) -> dict[str, float]:
    """One norm per layer of a task, in network order.

    Raises:
        ConfigError: an unknown kind, or one with several norms per layer.
    """
    check_kind(kind)
    if kind in ("factor", "component"):
        raise ConfigError(f"one norm per layer is needed: delta, relative or per_parameter; got {kind!r}")
    found = sorted(file.deltas(), key=lambda entry: entry[1].target.order)
    return {delta.target.name: measured(delta, record.norm, kind) for _, delta, record in found}


def check_kind(kind: str) -> None:
    """A kind has to be one of `Kind`.

    Raises:
        ConfigError: it is not.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")


def _numbered(delta: Delta) -> dict[str, float]:
    return {str(i + 1): value for i, value in enumerate(delta.component_norms())}
