"""What a report says, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.norms import layer_norms
from analysis.ranks import rank_table
from analysis.reading import read_tasks
from analysis.similarity import overall
from analysis.sweep import read_sweep
from analysis.tables import pairs, shown_rank
from tensornet.config import AdaptConfig
from tensornet.errors import TaskFileError
from tensornet.files import TaskFile, read_task
from tensornet.training.recipe import Recipe
from tensornet.training.recorded import recorded_recipes, recorded_results
from tensornet.training.run import Run
from tensornet.training.table import table

KINDS = ("delta", "relative", "per_parameter")


def contents(run: Path, plans: Sequence[Path] = ()) -> dict[str, Any]:
    """All that is known of a run from its folder: results, deltas of its tasks, sweeps, ranks, plans, likeness.

    Raises:
        RecipeError, TaskFileError: the folder is not one that `tensornet train` wrote, or a file in it cannot be read.
        ConfigError: a plan cannot be read.
    """
    recipes, rows = recorded_recipes(run), recorded_results(run)
    header, lines = table(rows)
    tasks = {variant: _folders(run, variant, recipe) for variant, recipe in recipes.items()}
    groups = [_group(variant, folders) for variant, folders in tasks.items() if folders]
    backbones = {row["backbone_hash"]: (row["backbone"], row["backbone_parameters"], row["backbone_hash"]) for row in rows}
    saved = _saved(run, recipes)
    return {
        "run": run.resolve().name,
        "backbones": list(backbones.values()),
        "summary": {"header": header, "lines": lines},
        "groups": groups,
        "sweep": [point for point in read_sweep(run) if point["sha256"] in saved],
        "ranks": _ranks(rows),
        "plans": [_plan(path) for path in plans],
        "likeness": [_likeness(variant, folders) for variant, folders in tasks.items() if len(folders) > 1],
    }


def _folders(run: Path, variant: str, recipe: Recipe) -> list[Path]:
    """The saved tasks of a variant that have deltas, of its first seed."""
    found = []
    for task in recipe.tasks:
        folder = Run(recipe, variant, task, recipe.train.seeds[0]).folder(run)
        if folder.is_dir() and read_task(folder).tensors:
            found.append(folder)
    return found


def _saved(run: Path, recipes: dict[str, Recipe]) -> set[str]:
    """Hashes of all saved tasks as they are now: a sweep of a task that was trained again since says nothing of it."""
    runs = [
        Run(recipe, variant, task, seed).folder(run)
        for variant, recipe in recipes.items()
        for task in recipe.tasks
        for seed in recipe.train.seeds
    ]
    return {read_task(folder).record.sha256 for folder in runs if folder.is_dir()}


def _group(variant: str, folders: Sequence[Path]) -> dict[str, Any]:
    files = read_tasks(folders)
    order: dict[str, int] = {}
    for file in files.values():
        order |= {delta.target.name: delta.target.order for _, delta, _ in file.deltas()}
    layers = sorted(order, key=lambda layer: order[layer])
    return {"variant": variant, "layers": layers, "tasks": [_task(label, file) for label, file in files.items()]}


def _task(label: str, file: TaskFile) -> dict[str, Any]:
    counts = file.parameter_counts()
    return {
        "name": label,
        "norms": {kind: layer_norms(file, kind) for kind in KINDS},  # type: ignore[arg-type]
        "tensors": [
            {"layers": [m.target.name for m in plan.fold.members], "parameters": plan.parameters} for plan, _ in file.tensors
        ],
        "own": counts["norms"] + counts["head"],
        "sha256": file.record.sha256,
    }


def _ranks(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    try:
        found = rank_table(rows)
    except TaskFileError:
        return None
    tasks = list(dict.fromkeys(task for task, _ in pairs(found)))
    curves = [
        {"task": task} | {what: _numbers(found[(task, what)]) for what in ("mean", "deviation", "seeds")} for task in tasks
    ]
    return {"ranks": [int(rank) for rank in found.index], "tasks": curves}


def _numbers(values: Any) -> list[float | None]:
    return [None if value != value else float(value) for value in values]


def _plan(path: Path) -> dict[str, Any]:
    config = AdaptConfig("none", layers=path)
    rows = [
        {"layer": pattern.replace("\\", ""), "decomposition": choice.decomposition, "rank": shown_rank(choice.rank)}
        for pattern, choice in config.per_layer.items()
    ]
    said = [line.removeprefix("# ") for line in path.read_text("utf-8").splitlines() if line.startswith("# ")]
    return {"name": path.name, "said": said, "rows": rows}


def _likeness(variant: str, folders: Sequence[Path]) -> dict[str, Any]:
    square = overall(folders)
    return {"variant": variant, "tasks": [str(name) for name in square.index], "cosines": square.to_numpy().tolist()}
