"""Columns of tables, as figures and commands name them."""

from __future__ import annotations

from typing import Any

import pandas as pd


def pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The columns of a table whose columns are pairs."""
    columns: list[Any] = table.columns.to_list()
    return [(str(first), str(second)) for first, second in columns]


def names(table: pd.DataFrame) -> list[str]:
    """The columns by name; pairs joined by a comma."""
    columns: list[Any] = table.columns.to_list()
    return [", ".join(map(str, column)) if isinstance(column, tuple) else str(column) for column in columns]


def shown_rank(rank: Any) -> str:
    """A rank for people: one number, or several with commas; a dash for no delta."""
    if rank is None or rank != rank:
        return "–"
    return ", ".join(map(str, rank)) if isinstance(rank, tuple | list) else str(int(rank))
