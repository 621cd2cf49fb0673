"""`tensornet demo`: the main job, with no data at hand."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from tensornet.commands.output import Json, print_json, print_table, say


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the backbone, the tasks and the pictures.")] = Path("demo"),
    domain: Annotated[
        list[str] | None, typer.Option(help="Of handwritten, outlines, clutter, texture, rotated; all by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Train a small network on printed digits, freeze it, and adapt it to five other domains: two to five minutes."""
    from tensornet.demo.picture import picture
    from tensornet.demo.run import NAMES, rendered_domains, run
    from tensornet.errors import UnknownNameError
    from tensornet.training.table import table

    names = list(dict.fromkeys(domain or NAMES))
    for name in names:
        if name not in NAMES:
            raise UnknownNameError("domain", name, NAMES)
    domains = rendered_domains(names)
    rows = run(out, say, domains)
    picture(rows, domains, out / "demo.png")
    tasks = [out / "tasks" / name for name in sorted(names)]
    figures = entry_points(group="tensornet.commands", name="norms")
    if figures:
        from contextlib import redirect_stdout
        from io import StringIO

        with redirect_stdout(StringIO()):
            next(iter(figures)).load()(tasks, out=out / "norms.png", json=True)
    if json:
        print_json(rows)
    else:
        print_table("Accuracy on test, percent", *table(rows))
    say(f"Pictures: {out / 'demo.png'} and {out / 'norms.png'}. Next:")
    say(f"  tensornet inspect {tasks[0]}")
    say(f"  tensornet norms {out / 'tasks'}/* --kind relative --out relative.png")
