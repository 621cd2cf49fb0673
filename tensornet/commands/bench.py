"""`tensornet bench`: what adapted networks cost, beside their peers."""

from __future__ import annotations

import json as jsons
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tensornet.commands.output import Json, print_json, print_table

_SETUP = (
    "Set-up: resnet50-64, resnet50-224, resnet50-224-last (channels last), mobilenet-128 (needs --data), vit-224, "
    "minilm-128, tiny. May be repeated."
)
_MEASURE = (
    "Measure: training, inference, operations, mixed, prefix, tasks, memory, compiled, rank, size, number. May be repeated."
)


def bench(
    out: Annotated[Path, typer.Option(help="Folder for the results; what is measured there already is kept.")] = Path(
        "bench"
    ),
    setup: Annotated[list[str], typer.Option(help=_SETUP)] = [],  # noqa: B006
    measure: Annotated[list[str], typer.Option(help=_MEASURE)] = [],  # noqa: B006
    contender: Annotated[list[str], typer.Option(help="Only this contender of training steps. May be repeated.")] = [],  # noqa: B006
    data: Annotated[Path | None, typer.Option(help="Folder with backbones/hubconf.py, for mobilenet-128.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians over them are reported.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    fit: Annotated[bool, typer.Option("--fit", help="Fit the rule of paths to this machine instead, and print it.")] = False,
    json: Json = False,
) -> None:
    """Time training, inference and tasks against the frozen backbone and against peers, side by side in one process."""
    from tensornet.bench import clock
    from tensornet.bench.fit import fit as fitted
    from tensornet.bench.measures import MEASURES
    from tensornet.bench.run import Settings, run
    from tensornet.bench.setups import DEFAULT
    from tensornet.bench.tables import TITLES, table

    console = Console(stderr=True)
    if fit:
        with clock.threads(threads):
            costs, errors = fitted(device, repeats)
        found = {kind: cost | {"median_error": errors[kind]} for kind, cost in asdict(costs).items()}
        if json:
            print_json(found)
        else:
            lines = [[kind, *(f"{number:.3g}" for number in cost.values())] for kind, cost in found.items()]
            header = ["operation", "per call", "per multiply-add", "per number", "median error"]
            print_table(f"Seconds on {device}, {threads} threads", header, lines)
        return
    settings = Settings(setup or DEFAULT, measure or list(MEASURES), contender, repeats, threads, device, data)
    result = run(settings, out, lambda text: console.print(text, markup=False, highlight=False))
    if json:
        typer.echo(jsons.dumps(result, indent=1))
        return
    for name, measures in result["measures"].items():
        for measured, rows in measures.items():
            print_table(f"{name}: {TITLES[measured].lower()}", *table(rows))
    console.print(f"All of it: {out / 'bench.md'} and bench.json, with pictures beside them.", markup=False, highlight=False)
