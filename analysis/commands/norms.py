"""`tensornet norms`: how much each layer was changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.places import Csv, Figure
from analysis.kinds import LABELS, Kind
from tensornet.commands.output import Json, print_json, print_table


def norms(
    tasks: Annotated[list[Path], typer.Argument(help="Task folders.")],
    kind: Annotated[Kind, typer.Option(help="Which norm.")] = "delta",
    out: Figure = None,
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Norm of each layer's delta, in network order: a column per task, or per task and factor or component."""
    from analysis.norms import norms as measure
    from analysis.tables import names
    from tensornet.atomic import write_file

    table = measure(tasks, kind)
    if csv is not None:
        write_file(csv, table.to_csv())
    if out is not None:
        from analysis.figures import component_map, layer_norms_figure, save_figure

        draw = component_map if kind == "component" else layer_norms_figure
        save_figure(draw(table, "Change of every layer", LABELS[kind]), out)
    labels = names(table)
    if json:
        columns = (table.iloc[:, i].dropna().to_dict() for i in range(len(labels)))
        print_json(dict(zip(labels, columns, strict=True)))
        return
    shown = table.map(lambda value: "" if value != value else f"{value:.4g}")  # NaN: the task leaves this layer alone
    print_table(LABELS[kind], ["layer", *labels], [[str(name), *row] for name, *row in shown.itertuples()])
