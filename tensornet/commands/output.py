"""What verbs print: a table for people, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(data: Any) -> None:
    """JSON on standard output."""
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False))


def print_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table on standard output, all but the first ``left`` columns aligned to the right."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(header):
        grid.add_column(name, justify="left" if i < left else "right", overflow="fold")
    for line in lines:
        grid.add_row(*line)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(grid, markup=False)
