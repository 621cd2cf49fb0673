"""What verbs print: a table for people, or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(data: Any) -> None:
    """JSON on standard output; what is not finite is null."""
    typer.echo(json.dumps(finite(data), indent=1, ensure_ascii=False, allow_nan=False))


def finite(data: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


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
