"""How much each layer was changed: the norm of its delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pandas as pd

from analysis.kinds import Kind
from tensornet.errors import ConfigError, TaskFileError
from tensornet.files import TaskFile, read_task

__all__ = ["Kind", "norms"]


def norms(tasks: Sequence[str | Path] | str | Path, kind: Kind = "delta") -> pd.DataFrame:
    """Norms per layer, in network order, one column per task.

    Args:
        tasks: task folders.
        kind: "delta": ‖ΔW‖; "relative": ‖ΔW‖ / ‖W‖; "per_parameter": ‖ΔW‖ over the root of the weight's size.

    Returns:
        Index: module paths; a layer that a task does not adapt is NaN in its column.

    Raises:
        ConfigError: an unknown kind.
        TaskFileError: a folder is not a task, holds no deltas, or belongs to another backbone than the first.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    files = [(Path(path), read_task(path)) for path in ([tasks] if isinstance(tasks, str | Path) else tasks)]
    if not files:
        raise TaskFileError("no task folder was given")
    _check(files)
    columns: dict[str, dict[str, float]] = {}
    order: dict[str, int] = {}
    names = [file.name for _, file in files]
    for path, file in files:
        label = file.name if names.count(file.name) == 1 else str(path)
        columns[label] = {}
        for _, delta, record in file.deltas():
            target = delta.target
            columns[label][target.name] = _MEASURES[kind](delta.norm().item(), record.norm, math.prod(target.shape))
            order[target.name] = target.order
    table = pd.DataFrame(columns).reindex(sorted(order, key=lambda name: order[name]))
    table.index.name = "layer"
    return table


_MEASURES: dict[str, Callable[[float, float, int], float]] = {
    "delta": lambda delta, weight, size: delta,
    "relative": lambda delta, weight, size: delta / weight if weight else float("nan"),
    "per_parameter": lambda delta, weight, size: delta / size**0.5,
}


def _check(files: Sequence[tuple[Path, TaskFile]]) -> None:
    first = files[0][1].record.backbone
    for path, file in files:
        if not file.tensors:
            raise TaskFileError(f"{path} has no deltas: nothing to measure")
        if file.record.backbone.hash != first.hash:
            theirs = file.record.backbone
            raise TaskFileError(
                f"{path} belongs to the backbone {theirs.name} ({theirs.hash[:12]}…), {files[0][0]} to {first.name} "
                f"({first.hash[:12]}…): norms of different backbones cannot be compared"
            )
