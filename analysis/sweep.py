"""Accuracy against the threshold below which deltas are removed, for every task of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.kinds import Kind
from analysis.norms import layer_norms
from analysis.pruning import pruned_file
from tensornet.atomic import write_file
from tensornet.errors import ConfigError, TaskFileError
from tensornet.files import TaskFile, read_task
from tensornet.training.fit import evaluate
from tensornet.training.grid import Grid
from tensornet.training.run import Run
from tensornet.training.statistics import reestimate as estimate

POINTS = 9
"""Thresholds between nothing and everything removed, where none are given."""

RECORD = "sweep.json"


def sweep(
    grid: Grid,
    thresholds: Sequence[float] | None = None,
    kind: Kind = "delta",
    *,
    reestimate: bool = False,
    before: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Test every saved task of a run with the deltas below each threshold removed; nothing is trained.

    Points are kept in `sweep.json` in the run's folder as soon as they are known, and not computed again.

    Args:
        grid: of the recorded recipes of a run, with its data.
        thresholds: of the norm; by default 0, quantiles of all norms together, and one above the largest.
        kind: of the norm: "delta", "relative" or "per_parameter".
        reestimate: also test with the batch-norm statistics estimated anew on the training data.
        before: is told of every task and threshold before it is tested.

    Returns:
        A row per task, seed and threshold: `variant`, `task`, `seed`, `kind`, `threshold`, `removed` (layers), `layers`,
        `parameters` (of the deltas that are left), `accuracy` and `reestimated`, in [0, 1].

    Raises:
        ConfigError: a threshold below 0, or an unknown kind.
        TaskFileError: the run has no task with deltas.
    """
    found = [(run, read_task(run.folder(grid.out))) for run in grid.runs if run.folder(grid.out).is_dir()]
    found = [(run, file) for run, file in found if file.tensors]
    for run, _ in found:
        grid.check_classes(run)
    if not found:
        raise TaskFileError(f"{grid.out} has no saved task with deltas")
    if thresholds is None:
        thresholds = _spread([norm for _, file in found for norm in layer_norms(file, kind).values()])
    if not thresholds or any(not np.isfinite(t) or t < 0 for t in thresholds):
        raise ConfigError(f"thresholds are numbers ≥ 0, at least one; got {list(thresholds)}")
    record = grid.out / RECORD
    known = {_key(point): point for point in read_sweep(grid.out)}
    points = []
    for run, file in found:
        for threshold in sorted(set(thresholds)):
            point: dict[str, Any] = {
                "variant": run.variant,
                "task": run.task.name,
                "seed": run.seed,
                "kind": kind,
                "threshold": float(threshold),
                "sha256": file.record.sha256,
                "data_hash": grid.data.fingerprint(run.task),
            }
            done = known.get(_key(point))
            other_data = done is not None and done.get("data_hash") != point["data_hash"]
            if done is None or other_data or (reestimate and done["reestimated"] is None):
                if before is not None:
                    before(f"{run.label}, threshold {threshold:.3g}")
                done = point | _tested(grid, run, file, threshold, kind, reestimate)
                known |= {_key(other): other for other in read_sweep(grid.out)} | {_key(point): done}  # another's, meanwhile
                content = {"format": "tensornet-sweep", "points": list(known.values())}
                write_file(record, json.dumps(content, indent=1) + "\n")
            points.append(done)
    return pd.DataFrame(points).drop(columns=["sha256", "data_hash"])


def read_sweep(out: Path) -> list[dict[str, Any]]:
    """The points that sweeps of a run have found so far; none where there was no sweep.

    Raises:
        TaskFileError: the file is not one that a sweep wrote.
    """
    if not (out / RECORD).is_file():
        return []
    try:
        points: list[dict[str, Any]] = json.loads((out / RECORD).read_text())["points"]
        [_key(point) for point in points]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskFileError(f"{out / RECORD} is not what 'tensornet prune --sweep' wrote: {error}") from None
    return points


def _key(point: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(point[name] for name in ("variant", "task", "seed", "kind", "threshold", "sha256"))


def _spread(norms: Sequence[float]) -> list[float]:
    """Zero, quantiles, and a value above all, to three digits; what changed from a weight of zero is beyond them."""
    norms = [norm for norm in norms if math.isfinite(norm)] or [1.0]
    inner = [float(f"{value:.3g}") for value in np.quantile(norms, np.linspace(0.1, 0.9, POINTS - 2))]
    return [0.0, *inner, float(f"{1.01 * max(norms):.3g}")]


def _tested(grid: Grid, run: Run, file: TaskFile, threshold: float, kind: Kind, reestimate: bool) -> dict[str, Any]:
    norms = layer_norms(file, kind)
    everything = all(norm < threshold for norm in norms.values())
    pruned = pruned_file(file, keep=0, kind=kind) if everything else pruned_file(file, threshold=threshold, kind=kind)
    net = grid.network(run.recipe)
    name = net.load_task(pruned.file).name
    net.set_task(name)
    (_, test), image = grid.data.images(run), run.recipe.input
    found: dict[str, Any] = {
        "removed": len(pruned.removed),
        "layers": len(norms),
        "parameters": pruned.file.parameter_counts()["deltas"],
        "accuracy": evaluate(net, test, image),
        "reestimated": None,
    }
    if reestimate:
        estimate(net, name, grid.data.inputs(run))
        found["reestimated"] = evaluate(net, test, image)
    return found
