"""`tensornet evaluate`: the tasks of a run on their test data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tensornet.commands.output import Json, print_json, print_table, say


def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `tensornet train` wrote.")],
    data: Annotated[Path, typer.Option(help="Folder from which the recipe's paths begin.")] = Path(),
    task: Annotated[list[str], typer.Option(help="Only this task. May be repeated.")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Load every saved task of a run into the one backbone of its variant and test it on its test split.

    Whole networks, and networks with a peer's adapters, are tested as they were written.
    """
    from torch import nn

    from tensornet.data.images import Images
    from tensornet.errors import TaskFileError
    from tensornet.network import AdaptedNetwork
    from tensornet.training import fit
    from tensornet.training.grid import Grid
    from tensornet.training.recorded import recorded_recipes, trained_tasks, without_network
    from tensornet.training.run import every_run

    recipes = recorded_recipes(run)
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
    if json:
        print_json(rows)
        return
    lines = [
        [row["variant"], row["task"], str(row["seed"]), str(row["images"]), f"{100 * row['value']:.1f}"] for row in rows
    ]
    print_table("Accuracy on test, percent", ["variant", "task", "seed", "images", "accuracy"], lines, left=2)
