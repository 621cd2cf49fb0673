"""What verbs print: a table for people, or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
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


def say(text: str) -> None:
    """A line on standard error for people, as it is."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def some(names: Sequence[str], limit: int) -> str:
    """The first of some names, for people."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def print_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table on standard output, all but the first ``left`` columns aligned to the right.

    Where it is too wide, columns go into further tables below, each with the first ``left`` columns again.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for number, columns in enumerate(_blocks(console.width, header, lines, left)):
        grid = Table(title=escape(title) if not number else None, title_justify="left", title_style="bold")
        for i in columns:
            grid.add_column(header[i], justify="left" if i < left else "right", overflow="fold")
        for line in lines:
            grid.add_row(*(line[i] for i in columns))
        console.print(grid, markup=False)


def _blocks(width: int, header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> list[list[int]]:
    """The columns of tables that are no wider than ``width`` where that can be."""
    widths = [max(cell_len(row[i]) for row in (header, *lines)) + 3 for i in range(len(header))]
    room = width - 1 - sum(widths[:left])
    blocks: list[list[int]] = [[]]
    used = 0
    for i in range(left, len(header)):
        if blocks[-1] and used + widths[i] > room:
            blocks.append([])
            used = 0
        blocks[-1].append(i)
        used += widths[i]
    return [[*range(left), *block] for block in blocks]
