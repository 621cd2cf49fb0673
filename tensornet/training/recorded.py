"""Runs as they were recorded: what `evaluate` and reports begin with."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tensornet.errors import RecipeError, TaskFileError
from tensornet.training.mistakes import dotted, mistakes
from tensornet.training.recipe import Recipe, TaskEntry
from tensornet.training.run import Run, every_run, picked, unknown


def recorded_recipes(out: Path) -> dict[str, Recipe]:
    """The recipes, one per variant, that made the runs in ``out``.

    Raises:
        RecipeError: the folder is not one that `tensornet train` wrote, or names what is not known here.
    """
    try:
        data = json.loads((out / "recipe.json").read_text())
        if not isinstance(data, dict):
            raise ValueError("its recipe.json holds no table")
        return {name: Recipe.model_validate(recipe) for name, recipe in data.items()}
    except ValidationError as error:
        found = [f"{dotted(path)}: {said}" for path, said in mistakes(error)]
        raise RecipeError(str(out), [f"its recipe.json cannot be used here: {'; '.join(found)}"]) from None
    except (OSError, ValueError) as error:
        raise RecipeError(str(out), [f"it is not a folder that 'tensornet train' wrote: {error}"]) from None


def trained_tasks(
    recipes: Mapping[str, Recipe],
    out: Path,
    tasks: Sequence[str] = (),
    variants: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[str]:
    """The names of the tasks of which ``out`` holds a trained network, one of those that were asked for.

    Raises:
        RecipeError: a name or a seed that no recipe has.
        TaskFileError: there is none.
    """
    if wrong := unknown(recipes, tasks, variants, seeds):
        raise RecipeError(str(out), wrong)
    runs = picked(every_run(recipes), tasks, variants, seeds)
    names = list(dict.fromkeys(run.task.name for run in runs if run.network(out).exists()))
    if not names:
        asked = "" if not (tasks or variants or seeds) else " of those that were asked for"
        raise TaskFileError(f"{out} holds no trained tasks yet{asked}")
    return names


def without_network(runs: Iterable[Run], out: Path) -> list[Run]:
    """Those of some runs that have a result in ``out``, and no network any more."""
    return [run for run in runs if not run.network(out).exists() and read_row(run.record(out)) is not None]


def together(out: Path, own: Mapping[str, Recipe], wanted: Container[str]) -> dict[str, Recipe]:
    """The recipes of all runs in a folder, after those of one more recipe.

    A variant that both have is taken from ``own`` where the folder has no results of it. Where its settings are the same,
    tasks and seeds of both are joined; a task with results keeps its data folder. Where its settings differ, the folder's is
    kept, unless it is ``wanted`` now.

    Args:
        out: the folder; it may be new.
        own: one recipe per variant.
        wanted: names of variants.

    Raises:
        RecipeError: the folder has results of a wanted variant with other settings, or its networks begin with another seed;
            or it is not one that `tensornet train` wrote.
    """
    if not (out / "recipe.json").is_file():
        return dict(own)
    before = recorded_recipes(out)
    found = dict(own)
    for name, recipe in before.items():
        now = own.get(name)
        if now is None:
            found[name] = recipe
            continue
        held = _with_results(out, before, name)
        if not held:
            continue
        first, second = recipe.train.seeds[0], now.train.seeds[0]
        if first != second:
            advice = "keep the first and pick seeds with --seed, or choose another --out"
            raise RecipeError(str(out), [f"train.seeds began with {first} here and begins with {second} now: {advice}"])
        if _settings(recipe) == _settings(now):
            found[name] = _joined(recipe, now, held)
            continue
        if name in wanted:
            what = f"variant {name}" if name else "this recipe"
            advice = "choose another --out" + (f", or delete {out / 'runs' / name} to run it again" if name else "")
            changed = ", ".join(_changes(_settings(recipe).model_dump(), _settings(now).model_dump()))
            raise RecipeError(str(out), [f"results of {what} were made with other settings ({changed}): {advice}"])
        found[name] = recipe
    return found


def _with_results(out: Path, recipes: Mapping[str, Recipe], variant: str) -> set[TaskEntry]:
    rows = ((run, read_row(run.record(out))) for run in every_run(recipes) if run.variant == variant)
    return {run.task for run, row in rows if row is not None and row["digest"] == run.digest}


def _settings(recipe: Recipe) -> Recipe:
    """A recipe without what its runs differ in."""
    return recipe.model_copy(update={"tasks": (), "train": recipe.train.model_copy(update={"seeds": ()})})


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], table: tuple[str, ...] = ()) -> Iterator[str]:
    """What differs between two recipes, key by key."""
    for key in dict.fromkeys((*before, *now)):
        was, is_now, path = before.get(key), now.get(key), (*table, key)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            yield from _changes(was, is_now, path)
        elif was != is_now:
            yield f"{dotted(path)} was {was!r} and is {is_now!r}"


def _joined(before: Recipe, now: Recipe, held: Container[TaskEntry]) -> Recipe:
    tasks = {task.name: task for task in before.tasks}
    tasks |= {task.name: task for task in now.tasks if tasks.get(task.name) not in held}
    seeds = tuple(dict.fromkeys((*before.train.seeds, *now.train.seeds)))
    train = now.train.model_copy(update={"seeds": seeds})
    return now.model_copy(update={"tasks": tuple(tasks.values()), "train": train})


def read_row(record: Path) -> dict[str, Any] | None:
    """The result in a file; None where there is none.

    Raises:
        RecipeError: it is no result that a training wrote.
    """
    if not record.is_file():
        return None
    try:
        row: dict[str, Any] = json.loads(record.read_text())
        if not isinstance(row["digest"], str):
            raise ValueError("its digest is no text")
        return row
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(str(record), [f"it is not a result that 'tensornet train' wrote: {error}"]) from None


def recorded_results(out: Path) -> list[dict[str, Any]]:
    """The rows of `results.json`.

    Raises:
        TaskFileError: there is no such file, or it is not one that `tensornet train` wrote.
    """
    try:
        rows: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskFileError(f"{out / 'results.json'} cannot be read: {error}") from None
    return rows
