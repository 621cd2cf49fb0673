"""Runs as they were recorded: what `evaluate` and reports begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensornet.errors import RecipeError, TaskFileError
from tensornet.training.recipe import Recipe


def recorded_recipes(out: Path) -> dict[str, Recipe]:
    """The recipes, one per variant, that made the runs in ``out``.

    Raises:
        RecipeError: the folder is not one that `tensornet train` wrote.
    """
    try:
        data = json.loads((out / "recipe.json").read_text())
        return {name: Recipe.model_validate(recipe) for name, recipe in data.items()}
    except (OSError, ValueError) as error:
        raise RecipeError(str(out), [f"it is not a folder that 'tensornet train' wrote: {error}"]) from None


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
