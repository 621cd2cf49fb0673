"""`tensornet evaluate`: the tasks of a run on their test data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tensornet.commands.output import Json, print_json, print_table, say

if TYPE_CHECKING:
    from tensornet.training.recipe import Recipe


def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `tensornet train` wrote.")],
    data: Annotated[Path, typer.Option(help="Folder from which the recipe's paths begin.")] = Path(),
    task: Annotated[list[str], typer.Option(help="Only this task. May be repeated.")] = [],  # noqa: B006
    folder: Annotated[
        list[Path],
        typer.Option(help="Test this task folder instead, such as one that was pruned. May be repeated."),
    ] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Load every saved task of a run into the one backbone of its variant and test it on its test split.

    Whole networks, and networks with a peer's adapters, are tested as they were written. With --folder, tasks of the run's
    backbone that are elsewhere are tested on the test split of the run's task of their name.
    """
    from tensornet.training.recorded import recorded_recipes

    recipes = recorded_recipes(run)
    rows = [_folder(recipes, one, run, data, task) for one in folder] if folder else _run(recipes, run, data, task)
    if json:
        print_json(rows)
        return
    lines = [
        [
            row["variant"],
            row["task"],
            "" if row["seed"] is None else str(row["seed"]),
            str(row["images"]),
            f"{100 * row['value']:.1f}",
        ]
        for row in rows
    ]
    print_table("Accuracy on test, percent", ["variant", "task", "seed", "images", "accuracy"], lines, left=2)


def _folder(recipes: dict[str, Recipe], folder: Path, run: Path, data: Path, task: list[str]) -> dict[str, Any]:
    """The result of a task folder on the data of a task of a run."""
    from tensornet.data.images import Images
    from tensornet.errors import DataError
    from tensornet.files import read_task
    from tensornet.training import fit
    from tensornet.training.grid import Grid

    file = read_task(folder)
    grid = Grid(recipes, data, run, task or [file.name])
    one = grid.runs[0]
    (_, test), recipe = grid.splits(one.task), one.recipe
    known = file.record.classes
    if known is not None and list(known) != list(test.classes):
        raise DataError(f"{folder} tells {', '.join(known)}, in this order; the data has {', '.join(test.classes)}")
    net = grid.network(recipe)
    net.set_task(net.load_task(folder, "evaluated").name)
    images = Images(test, recipe.input.stored)
    value = fit.evaluate(net, images, recipe.input, recipe.train.batch_size)
    tested = {"variant": str(folder), "task": one.task.name, "seed": None, "metric": "accuracy"}
    return tested | {"value": value, "images": len(images), "trained_value": None}


def _run(recipes: dict[str, Recipe], run: Path, data: Path, task: list[str]) -> list[dict[str, Any]]:
    """The results of what a run has trained."""
    from torch import nn

    from tensornet.data.images import Images
    from tensornet.errors import TaskFileError
    from tensornet.network import AdaptedNetwork
    from tensornet.training import fit
    from tensornet.training.grid import Grid
    from tensornet.training.recorded import trained_tasks, without_network
    from tensornet.training.run import every_run

    for one in without_network(every_run(recipes), run):
        if not task or one.task.name in task:
            lost = f"left out: {one.label} has a result, but its network {one.network(run)} is gone"
            say(lost)
    grid = Grid(recipes, data, run, task or trained_tasks(recipes, run))
    networks: dict[str, AdaptedNetwork] = {}
    net: nn.Module
    rows: list[dict[str, Any]] = []
    for one in grid.runs:
        written = one.network(run)
        if not written.exists():
            continue
        grid.check_classes(one)
        if written.is_dir():
            if one.variant not in networks:
                networks[one.variant] = grid.network(one.recipe)
            net = networks[one.variant]
            if net.tasks:
                net.remove_task("evaluated")
            net.set_task(net.load_task(written, "evaluated").name)
        else:
            net = grid.trained(one)
        images = Images(grid.splits(one.task)[1], one.recipe.input.stored)
        before = grid.recorded(one)
        rows.append(
            {
                "variant": one.variant,
                "task": one.task.name,
                "seed": one.seed,
                "metric": "accuracy",
                "value": fit.evaluate(net, images, one.recipe.input, one.recipe.train.batch_size),
                "images": len(images),
                "trained_value": None if before is None else before["value"],
            }
        )
    if not rows:
        raise TaskFileError(f"{run} holds no trained tasks yet")
    return rows
