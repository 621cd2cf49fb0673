"""`tensornet similarity`: how alike tasks are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.commands.places import Csv, Figure
from analysis.kinds import Likeness
from tensornet.commands.output import Json, print_json, print_table


def similarity(
    tasks: Annotated[list[Path], typer.Argument(help="Two task folders or more.")],
    kind: Annotated[Likeness, typer.Option(help="What is compared in every layer.")] = "cosine",
    share: Annotated[float, typer.Option(help="Excess overlap from which two tasks could share a factor.")] = 0.5,
    out: Figure = None,
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Cosines between tasks' deltas, the spaces they share per layer, and which factors two tasks could share."""
    from analysis.similarity import overall, shareable
    from analysis.similarity import similarity as compare
    from analysis.tables import pairs
    from tensornet.atomic import write_file

    square, layers, shared = overall(tasks), compare(tasks, kind), shareable(tasks, share)
    label = {"cosine": "cosine", "output": "overlap of output spaces", "input": "overlap of input spaces"}[kind]
    if csv is not None:
        write_file(csv, layers.to_csv())
    if out is not None:
        from analysis.figures import save_figure, similarity_map

        save_figure(similarity_map(square, layers, "Likeness of the tasks' deltas", label), out)
    if json:
        each = {f"{a} – {b}": layers[(a, b)].dropna().to_dict() for a, b in pairs(layers)}
        print_json({"overall": square.to_dict(), "kind": kind, "layers": each, "shareable": shared.to_dict("records")})
        return
    names = [str(name) for name in square.index]
    lines = [[name, *(f"{value:.3f}" for value in square.loc[name])] for name in names]
    print_table("Cosine of all deltas", ["", *names], lines)
    if len(shared):
        rows: list[dict[Any, Any]] = shared.head(20).to_dict("records")
        found = [
            [
                r["layer"],
                r["side"],
                f"{r['a']} – {r['b']}",
                f"{r['overlap']:.2f}",
                f"{r['chance']:.2f}",
                ", ".join(map(str, r["dimensions"])),
            ]
            for r in rows
        ]
        title = f"Factors that two tasks could share: {len(shared)}, the most alike first"
        print_table(title, ["layer", "side", "tasks", "overlap", "by chance", "dimensions"], found, left=3)
