"""Norms per layer, as lines over the layers or as a map of components."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.canvas import (
    COLOURS,
    MARKERS,
    layers_wide,
    legend_below,
    line_styles,
    name_layers,
    name_rows,
    rows_high,
    tidy,
)
from analysis.tables import names, pairs

MOST_LINES = 20
"""Lines that one can tell apart in one panel."""


def layer_norms_figure(table: pd.DataFrame, title: str, label: str) -> Figure:
    """Norms over the layers in network order: as lines, or as a map where there are too many columns to tell lines apart."""
    return (layer_lines if table.shape[1] <= MOST_LINES else layer_map)(table, title, label)


def layer_map(table: pd.DataFrame, title: str, label: str) -> Figure:
    """A row per column of the table, layers across.

    Args:
        table, title, label: as `layer_lines` takes them; ``label`` is of the colours.
    """
    layers, rows = list(table.index), names(table)
    figure = Figure(figsize=(layers_wide(len(layers)) + 1.5, rows_high(len(rows)) + 2.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table.to_numpy().T, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    name_rows(axes, rows)
    name_layers(axes, layers)
    axes.set_xlabel("layer, in network order")
    axes.set_title(title, loc="left")
    figure.colorbar(image, ax=axes, label=label, aspect=40)
    return figure


def layer_lines(table: pd.DataFrame, title: str, label: str) -> Figure:
    """A line per column over the layers in network order.

    Columns that differ by rank alone get colours in their order; of columns that are pairs, such as task and factor, the
    first of a pair gives the colour and the second the marker.

    Args:
        table: index layers, columns tasks.
        title: of the figure.
        label: of the vertical axis, with its unit.
    """
    layers = list(table.index)
    figure = Figure(figsize=(layers_wide(len(layers)), 5.0), layout="constrained")
    axes = figure.subplots()
    labels, lines = names(table), []
    for i, (colour, marker, line) in enumerate(_styles(table.columns.to_list())):
        values, shown = table.iloc[:, i], labels[i]
        style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.4}
        lines += axes.plot(range(len(layers)), values, line, label=shown, **style)
    name_layers(axes, layers)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer, in network order")
    axes.set_ylabel(label)
    axes.set_title(title, loc="left")
    tidy(axes)
    legend_below(figure, labels, lines)
    return figure


def component_map(table: pd.DataFrame, title: str, label: str) -> Figure:
    """A map per task, layers across and components upwards, the largest at the bottom.

    Args:
        table: index layers, columns pairs of task and component.
        title: of the figure.
        label: of the colours, with its unit.
    """
    tasks = list(dict.fromkeys(task for task, _ in pairs(table)))
    layers = list(table.index)
    panel = max(0.8, min(2.2, 30 / len(tasks)))
    figure = Figure(figsize=(layers_wide(len(layers)), 1.6 + panel * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 1, sharex=True, squeeze=False)[:, 0]
    highest = float(np.nanmax(table.to_numpy()))
    for axes, task in zip(panels, tasks, strict=True):
        values = table[task].to_numpy().T
        image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=highest)
        axes.set_yticks(np.unique(np.linspace(0, len(values) - 1, min(len(values), 5)).astype(int)))
        axes.set_yticklabels([str(int(i) + 1) for i in axes.get_yticks()])
        axes.set_ylabel("component" if panel > 1.2 else "")  # the word is that long
        axes.set_title(str(task), loc="left", fontsize=10)
    name_layers(panels[-1], layers)
    panels[-1].set_xlabel("layer, in network order")
    figure.suptitle(title, x=0.01, ha="left")
    figure.colorbar(image, ax=list(panels), label=label)
    return figure


def _styles(columns: Sequence[Hashable]) -> Sequence[tuple[Any, str, str]]:
    """Colour, marker and line of each column."""
    count = len(columns)
    pairs = [column for column in columns if isinstance(column, tuple)]
    if pairs:
        firsts, seconds = (list(dict.fromkeys(pair[i] for pair in pairs)) for i in (0, 1))
        places = [(firsts.index(a) % len(COLOURS), seconds.index(b) % len(MARKERS)) for a, b in pairs]
        return [(COLOURS[i], MARKERS[j], "-") for i, j in places]
    if count > 1 and all(re.search(r"rank \d+$", str(column)) for column in columns):
        ramp = matplotlib.colormaps["viridis"]
        return [(ramp(0.92 * i / (count - 1)), MARKERS[i % len(MARKERS)], "-") for i in range(count)]
    return line_styles(count)
