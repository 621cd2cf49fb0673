"""Accuracy against rank: one training per task, rank and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from tensornet.config import NONE
from tensornet.errors import ConfigError, TaskFileError
from tensornet.training.grid import Grid
from tensornet.training.recipe import Recipe

RANKS = (0, 1, 2, 4, 8, 16, 32)
"""0 is a task of norm layers and head alone."""


def rank_recipes(recipe: Recipe, ranks: Sequence[int], seeds: int | None = None) -> dict[str, Recipe]:
    """The same recipe at several ranks, as variants `rank-R`.

    Args:
        recipe: its rank, budget and plan of layers are replaced.
        ranks: ints; 0 is no delta at all.
        seeds: train with seeds 0 … seeds − 1; the recipe's own where it is None.

    Raises:
        ConfigError: a rank or a number of seeds that cannot be, or the recipe has no deltas, a teacher, or trains
            whole networks.
    """
    if not ranks or any(isinstance(r, bool) or not isinstance(r, int) or r < 0 for r in ranks):
        raise ConfigError(f"ranks are ints ≥ 0, at least one; got {list(ranks)}")
    if seeds is not None and seeds < 1:
        raise ConfigError(f"seeds must be at least 1; got {seeds}")
    if recipe.train.distill is not None:
        raise ConfigError(
            "this recipe learns from a teacher, which is no part of a comparison of ranks; choose another variant"
        )
    if recipe.train.method != "adapt" or recipe.config.decomposition == NONE:
        raise ConfigError("this recipe has no deltas whose rank could vary; choose a variant that has")
    train = recipe.train if seeds is None else recipe.train.model_copy(update={"seeds": tuple(range(seeds))})
    shared = {key: value for key, value in recipe.adapt.items() if key not in ("rank", "budget", "layers")}
    adapts = {rank: shared | ({"rank": rank} if rank else {"decomposition": NONE}) for rank in ranks}
    return {f"rank-{r}": recipe.model_copy(update={"adapt": adapt, "train": train}) for r, adapt in sorted(adapts.items())}


def run_ranks(grid: Grid, progress: bool = True, before: Callable[[str], None] | None = None) -> dict[str, str]:
    """Train what is not trained yet, seed by seed; a run that fails is reported at the end and stops nothing.

    Args:
        grid: of `rank_recipes`.
        progress: show a progress bar for each training.
        before: is told of every run, and of a teacher that has to be trained first, before it begins, in a line.

    Returns:
        Why each run that failed did, by its label.

    Raises:
        RecipeError: as `Grid.done`.
    """
    grid.done()
    failed = {}
    for i, run in enumerate(sorted(grid.runs, key=lambda run: run.seed), 1):
        if grid.finished(run) is None:
            if before is not None:
                before(f"[{i}/{len(grid.runs)}] {run.label}")
            try:
                grid.execute(run, progress, before)
            except Exception as error:  # whatever went wrong in one of many runs, the others go on
                failed[run.label] = f"{type(error).__name__}: {error}"
            grid.results()
    grid.results()
    return failed


def rank_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Accuracy per rank and task, from the rows of `results.json`.

    Returns:
        Index: ranks, 0 for norm layers and head alone; columns pairs of task and "mean", "deviation" (standard deviation
        over seeds, NaN with one seed) and "seeds".

    Raises:
        TaskFileError: there is no row of a variant `rank-R`.
    """
    found = [
        {"rank": int(row["variant"].removeprefix("rank-")), "task": row["task"], "value": row["value"]}
        for row in rows
        if row["variant"].startswith("rank-") and row["variant"].removeprefix("rank-").isdigit()
    ]
    if not found:
        raise TaskFileError("there are no finished runs of variants rank-R; 'tensornet ranks' makes them")
    frame = pd.DataFrame(found)
    tasks = list(dict.fromkeys(frame["task"]))
    columns: dict[tuple[str, str], pd.Series] = {}
    for task in tasks:
        own = frame[frame["task"] == task].groupby("rank")["value"]
        columns |= {(task, "mean"): own.mean(), (task, "deviation"): own.std(), (task, "seeds"): own.size()}
    return pd.DataFrame(columns).sort_index()
