"""`tensornet bench`: what adapted networks cost, beside their peers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tensornet.commands.output import Json, print_json, print_table, say

_SETUP = (
    "Set-up: resnet50-64, resnet50-224, resnet50-224-last (channels last), mobilenet-128 (needs --data), vit-224, "
    "minilm-128, tiny. May be repeated."
)
_MEASURE = (
    "Measure: training, inference, operations, mixed, switching, prefix, tasks, memory, compiled, rank, size, number, or "
    "compiled-training, which takes minutes more. May be repeated."
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
    precision: Annotated[str, typer.Option(help="Of products: float32, tf32, or bf16 (autocast).")] = "float32",
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of a batch, instead of the set-up's; of mixed, 32.")] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Fit the rule of paths to this machine instead, and print it.")] = False,
    json: Json = False,
) -> None:
    """Time training, inference and tasks against the frozen backbone and against peers, side by side in one process."""
    from tensornet.bench import clock, measures, setups
    from tensornet.bench.fit import fit as fitted
    from tensornet.bench.place import check_device
    from tensornet.bench.precision import find_precision, products_in, stored
    from tensornet.bench.run import Settings, run
    from tensornet.bench.tables import TITLES, table

    products = find_precision(precision)
    check_device(device)
    if fit:
        with clock.threads(threads), products_in(products):
            costs, errors = fitted(device, repeats, dtype=stored(products))
        fits = {kind: asdict(getattr(costs, kind)) | {"median_error": error} for kind, error in errors.items()}
        if costs.own is not None:
            fits["own"] = {"call": costs.own}
        if json:
            print_json(fits)
        else:
            header = {
                "call": "per call",
                "product": "per multiply-add",
                "number": "per number",
                "median_error": "median error",
            }
            lines = [[kind, *(f"{cost[key]:.3g}" if key in cost else "" for key in header)] for kind, cost in fits.items()]
            print_table(f"Seconds on {device}, {precision}, {threads} threads", ["operation", *header.values()], lines)
        return
    chosen = setup or setups.DEFAULT, measure or measures.DEFAULT
    settings = Settings(*chosen, contender, repeats, threads, device, data, products, rows)
    result = run(settings, out, say)
    if json:
        print_json(result)
        return
    for name, by_measure in result["measures"].items():
        for measured, found in by_measure.items():
            print_table(f"{name}: {TITLES[measured].lower()}", *table(found))
    say(f"All of it: {out / 'bench.md'} and bench.json, with pictures beside them.")
