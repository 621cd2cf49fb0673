"""`tensornet train`: every task of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tensornet.commands.output import Json, print_json, print_table, say, some

if TYPE_CHECKING:
    from tensornet.training.grid import Grid


def train(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a recipe in the package.")],
    out: Annotated[Path, typer.Option(help="Folder for tasks and results.")],
    data: Annotated[Path, typer.Option(help="Folder from which the recipe's paths begin.")] = Path(),
    settings: Annotated[list[str], typer.Option("--set", help="Change a setting: train.epochs=3. May be repeated.")] = [],  # noqa: B006
    task: Annotated[list[str], typer.Option(help="Only this task. May be repeated.")] = [],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="Only this variant. May be repeated.")] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Only this seed of the recipe. May be repeated.")] = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Check recipe and data, say what would run, and stop.")] = False,
    json: Json = False,
) -> None:
    """Train every task of a recipe; runs that are done are kept, and a killed run goes on from its last epoch."""
    from tensornet.training.grid import Grid
    from tensornet.training.reading import load_recipe
    from tensornet.training.recorded import without_network
    from tensornet.training.table import scored_on, table

    recipes = load_recipe(recipe, settings)
    grid = Grid(recipes, data, out, task, variant, seed)
    done = grid.done()
    runs = "1 run" if len(grid.runs) == 1 else f"{len(grid.runs)} runs"
    say(f"{runs}, {done} done; results go to {out}")
    first = grid.teachers_to_train()
    if first:
        say(f"{len(first)} more to train first, to learn from{', such as' if len(first) > 1 else ':'} {first[0].label}")
    lost = without_network(grid.runs, out)
    if lost:
        said = f"{len(lost)} done without a network that could be used, such as {lost[0].label}"
        advice = f"delete {lost[0].record(out)} to train it again"
        say(f"{said}: {advice}")
    if check:
        print_check(grid, done, json)
        return
    for row in grid.all(progress=Console(stderr=True).is_terminal, before=say):
        accuracy = f"{100 * row['value']:.1f} %"
        say(f"  {row['variant']} {row['task']}: {accuracy}, {row['seconds']:.0f} s")
    rows = grid.results()
    if json:
        print_json(rows)
    else:
        print_table(f"Accuracy on {scored_on(rows)}, percent", *table(rows))


def print_check(grid: Grid, done: int, json: bool) -> None:
    """What a grid would run, and the data that it found."""
    found = grid.data.summary()
    if json:
        print_json({"runs": len(grid.runs), "done": done, "teachers": len(grid.teachers_to_train()), "tasks": found})
        return
    lines = [
        [one["task"], f"{one['train']:,}", f"{one['test']:,}", str(len(one["classes"])), some(one["classes"], 6)]
        for one in found
    ]
    print_table("Images", ["task", "train", "test", "classes", "their order"], lines)
