"""`tensornet evaluate`: the tasks of a run on their test data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tensornet.commands.output import Json, print_json, print_table, say

if TYPE_CHECKING:
    from torch import nn

    from tensornet.files import TaskFile
    from tensornet.network import AdaptedNetwork
    from tensornet.training.grid import Grid
    from tensornet.training.recipe import Recipe
    from tensornet.training.run import Run


def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `tensornet train` wrote.")],
    data: Annotated[Path, typer.Option(help="Folder from which the recipe's paths begin.")] = Path(),
    task: Annotated[list[str], typer.Option(help="Only this task. May be repeated.")] = [],  # noqa: B006
    folder: Annotated[
        list[Path],
        typer.Option(help="Test this task folder instead, such as one that was pruned. May be repeated."),
    ] = [],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="Only this variant. May be repeated.")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Only this seed. May be repeated.")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Load every saved task of a run into the one backbone of its variant and test it on its test split.

    Whole networks, and networks with a peer's adapters, are tested as they were written. With --folder, tasks of the run's
    backbone that are elsewhere are tested on the test split of the run's task of their name.
    """
    from tensornet.errors import ConfigError
    from tensornet.training.recorded import recorded_recipes

    if folder and seed:
        raise ConfigError("--folder tests a task that is elsewhere, whatever its seed; leave out --seed")
    recipes = recorded_recipes(run)
    rows = _folders(recipes, folder, run, data, task, variant) if folder else _run(recipes, run, data, task, variant, seed)
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


def _folders(
    recipes: dict[str, Recipe], folders: list[Path], run: Path, data: Path, task: list[str], variant: list[str]
) -> list[dict[str, Any]]:
    """The results of task folders, each on the data of the run's task of its name, or all on the one that is given."""
    from tensornet.errors import ConfigError, DataError
    from tensornet.files import read_task
    from tensornet.training.grid import Grid

    if len(task) > 1:
        raise ConfigError(f"--folder is tested on the data of one task; got --task {', --task '.join(task)}")
    files = {folder: read_task(folder) for folder in folders}
    names = {folder: task[0] if task else file.name for folder, file in files.items()}
    grid = Grid(recipes, data, run, list(dict.fromkeys(names.values())), variant)
    runs = {one.task.name: one for one in reversed(grid.runs)}  # the first of each
    networks: dict[str, AdaptedNetwork] = {}
    rows = []
    for folder, file in files.items():
        one = runs[names[folder]]
        known, classes = file.record.classes, grid.data.classes(one.task)
        if known is not None and list(known) != list(classes):
            raise DataError(f"{folder} tells {', '.join(known)}, in this order; the data has {', '.join(classes)}")
        net = _with_task(grid, networks, one, file)
        rows.append(_tested(grid, one, net) | {"variant": str(folder), "seed": None, "trained_value": None})
    return rows


def _run(
    recipes: dict[str, Recipe], run: Path, data: Path, task: list[str], variant: list[str], seed: list[int]
) -> list[dict[str, Any]]:
    """The results of what a run has trained."""
    from tensornet.training.grid import Grid
    from tensornet.training.recorded import trained_tasks, without_network
    from tensornet.training.run import every_run, picked

    for one in without_network(picked(every_run(recipes), task, variant, seed), run):
        lost = f"left out: {one.label} has a result, but its network {one.network(run)} is gone"
        say(lost)
    grid = Grid(recipes, data, run, trained_tasks(recipes, run, task, variant, seed), variant, seed)
    networks: dict[str, AdaptedNetwork] = {}
    rows: list[dict[str, Any]] = []
    for one in grid.runs:
        written = one.network(run)
        if written.exists():
            grid.check_classes(one)
            net = _with_task(grid, networks, one, written) if written.is_dir() else grid.trained(one)
            rows.append(_tested(grid, one, net))
    return rows


def _with_task(grid: Grid, networks: dict[str, AdaptedNetwork], one: Run, task: Path | TaskFile) -> AdaptedNetwork:
    """The network of a variant, of which ``networks`` keeps one, with a task set that was written."""
    if one.variant not in networks:
        networks[one.variant] = grid.network(one.recipe)
    net = networks[one.variant]
    net.set_task(net.load_task(task, "evaluated", replace=True).name)
    return net


def _tested(grid: Grid, one: Run, net: nn.Module) -> dict[str, Any]:
    """The result of a network on the test split of a run."""
    from tensornet.data.images import Images
    from tensornet.training import fit

    images = Images(grid.data.splits(one.task)[1], one.recipe.input.stored)
    before = grid.recorded(one)
    return {
        "variant": one.variant,
        "task": one.task.name,
        "seed": one.seed,
        "metric": "accuracy",
        "value": fit.evaluate(net, images, one.recipe.input, one.recipe.train.batch_size),
        "images": len(images),
        "trained_value": None if before is None else before["value"],
    }
