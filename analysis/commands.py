"""Verbs of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.kinds import Kind
from tensornet.commands.output import Json, print_json, print_table

LABELS = {
    "delta": "norm of the delta ‖ΔW‖",
    "relative": "relative norm ‖ΔW‖ / ‖W‖",
    "per_parameter": "root mean square of ΔW",
}


def norms(
    tasks: Annotated[list[Path], typer.Argument(help="Task folders.")],
    kind: Annotated[Kind, typer.Option(help="Which norm.")] = "delta",
    out: Annotated[Path | None, typer.Option(help="Write a figure: .png, .svg or .pdf.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
    json: Json = False,
) -> None:
    """Norm of each layer's delta, in network order, one column per task."""
    from analysis.norms import norms as measure
    from tensornet.atomic import write_file

    table = measure(tasks, kind)
    if csv is not None:
        write_file(csv, table.to_csv())
    if out is not None:
        from analysis.figures import layer_lines, save_figure

        save_figure(layer_lines(table, "Change of every layer", LABELS[kind]), out)
    if json:
        print_json({name: column.dropna().to_dict() for name, column in table.items()})
        return
    shown = table.map(lambda value: "" if value != value else f"{value:.4g}")  # NaN: the task leaves this layer alone
    print_table(LABELS[kind], ["layer", *map(str, table.columns)], [[str(name), *row] for name, *row in shown.itertuples()])
