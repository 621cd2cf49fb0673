"""Figures; each takes a table and returns a matplotlib figure."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tensornet.errors import WriteError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which the colour-blind can tell apart."""

MARKERS = "osD^vPX"


def layer_lines(table: pd.DataFrame, title: str, label: str) -> Figure:
    """A line per column over the layers in network order.

    Args:
        table: index layers, columns tasks.
        title: of the figure.
        label: of the vertical axis, with its unit.
    """
    layers = list(table.index)
    width = min(max(6.5, 0.24 * len(layers) + 2), 16)
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, marker in zip(table.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        axes.plot(range(len(layers)), values, color=colour, marker=marker, markersize=4, linewidth=1.4, label=str(name))
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=9 if len(layers) <= 30 else 7)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer, in network order")
    axes.set_ylabel(label)
    axes.set_title(title, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, ncols=min(table.shape[1], 6), fontsize=9)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of ``path``.

    Raises:
        WriteError: the place is not writable, or the suffix is another.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise WriteError(f"{path}: a figure is written as .png, .svg or .pdf")
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
