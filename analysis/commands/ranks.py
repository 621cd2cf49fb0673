"""`tensornet ranks`: accuracy against rank."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.commands.places import Csv, Figure
from tensornet.commands.output import Json, print_json, print_table, say
from tensornet.commands.train import print_check


def ranks(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a recipe in the package.")],
    out: Annotated[Path, typer.Option(help="Folder for tasks and results.")],
    rank: Annotated[list[int], typer.Option(help="A rank; 0 is norm layers alone. May be repeated.")] = [],  # noqa: B006
    seeds: Annotated[int | None, typer.Option(help="Train each with so many seeds; the recipe's own by default.")] = None,
    variant: Annotated[str, typer.Option(help="Which variant of the recipe to vary.")] = "",
    data: Annotated[Path, typer.Option(help="Folder from which the recipe's paths begin.")] = Path(),
    settings: Annotated[list[str], typer.Option("--set", help="Change a setting: train.epochs=3. May be repeated.")] = [],  # noqa: B006
    task: Annotated[list[str], typer.Option(help="Only this task. May be repeated.")] = [],  # noqa: B006
    figure: Figure = None,
    csv: Csv = None,
    check: Annotated[bool, typer.Option("--check", help="Check recipe and data, say what would run, and stop.")] = False,
    json: Json = False,
) -> None:
    """Train every task of a recipe at several ranks; done runs are kept, and failed ones are reported at the end."""
    from analysis.figures import rank_lines, save_figure
    from analysis.ranks import RANKS, rank_recipes, rank_table, run_ranks
    from analysis.tables import pairs
    from tensornet.atomic import write_file
    from tensornet.errors import ConfigError, RecipeError, near
    from tensornet.training.grid import Grid
    from tensornet.training.reading import load_recipe
    from tensornet.training.table import scored_on

    recipes = load_recipe(recipe, settings)
    if variant and list(recipes) == [""]:
        raise ConfigError(f"{recipe} has no variants; leave --variant out")
    if variant not in recipes:
        raise ConfigError(f"say with --variant which variant of {recipe} to vary. {near(variant, recipes)}")
    grid = Grid(rank_recipes(recipes[variant], rank or RANKS, seeds), data, out, task)
    if recipes[variant].config.per_layer:
        say("the choices per layer of [adapt] are left out: every layer has the decomposition of the recipe, and the rank")
    done = grid.done()
    say(f"{len(grid.runs)} runs, {done} done; results go to {out}")
    if check:
        print_check(grid, done, json)
        return
    failed = run_ranks(grid, progress=Console(stderr=True).is_terminal, before=say)
    rows = grid.results()
    if rows:
        table = rank_table(rows)
        if csv is not None:
            write_file(csv, table.to_csv())
        if figure is not None:
            save_figure(rank_lines(table, "Accuracy against rank"), figure)
        if json:
            print_json(rows)
        else:
            tasks = list(dict.fromkeys(name for name, _ in pairs(table)))
            columns = [
                [_score(*pair) for pair in zip(table[(t, "mean")], table[(t, "deviation")], strict=True)] for t in tasks
            ]
            lines = [[str(r), *row] for r, row in zip(table.index, zip(*columns, strict=True), strict=True)]
            title = f"Accuracy on {scored_on(rows)}, percent; ± one standard deviation over seeds"
            print_table(title, ["rank", *tasks], lines)
    if failed:
        raise RecipeError(f"{len(failed)} of {len(grid.runs)} runs", [f"{label}: {why}" for label, why in failed.items()])


def _score(mean: float, deviation: float) -> str:
    if mean != mean:
        return "–"
    return f"{100 * mean:.1f}" if deviation != deviation else f"{100 * mean:.1f} ± {100 * deviation:.1f}"
