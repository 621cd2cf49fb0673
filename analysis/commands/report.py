"""`tensornet report`: everything about a run on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tensornet.commands.output import Json, print_json, say


def report(
    run: Annotated[Path, typer.Argument(help="A folder that `tensornet train` or `tensornet ranks` wrote.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    plan: Annotated[list[Path], typer.Option(help="A plan of `tensornet choose` to show. May be repeated.")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Write one page about a run that needs no network: results, norms with a live threshold, sweeps, ranks, plans."""
    from analysis.report.contents import contents
    from analysis.report.page import render
    from tensornet.atomic import write_file

    data = contents(run, plan)
    write_file(out, render(data))
    if json:
        print_json(data)
        return
    say(f"{out}: open it in a browser")
