"""How alike tasks are: a dendrogram beside a heat map, and below the layers, by pairs of tasks or by tasks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from analysis.figures.canvas import layers_wide, name_layers, name_rows, rows_high
from analysis.tables import pairs

MOST_PAIRS = 45
"""Rows of pairs that one can look through: those of ten tasks."""

MISSING = "0.45"
"""The colour of a layer that one of two tasks has no delta in: no shade of the maps' colours."""


def similarity_map(square: pd.DataFrame, layers: pd.DataFrame, title: str, label: str) -> Figure:
    """Tasks against tasks, in the order of their clustering, and every pair of tasks over the layers.

    Where there are more than `MOST_PAIRS`, a row below is a task: its mean over the pairs it is in.

    Args:
        square: as `overall` gives it.
        layers: as `similarity` gives it.
        title: of the figure.
        label: of what ``layers`` holds.
    """
    count, by_pair = len(square), layers.shape[1] <= MOST_PAIRS
    above, below = max(4.2, rows_high(count) + 1.8), rows_high(layers.shape[1] if by_pair else count) + 1.8
    width = max(layers_wide(len(layers)), 1.75 * rows_high(count) + 3)
    figure = Figure(figsize=(width, above + below), layout="constrained")
    parts = np.ravel(figure.subfigures(2, 1, height_ratios=[above, below], squeeze=False))
    top, bottom = parts[0], parts[1]
    tree, heat = top.subplots(1, 2, width_ratios=[1, 1.3 if count <= 20 else 2])
    order = _tree(tree, square)
    names = [str(square.index[i]) for i in order]
    image = _cells(heat, square.iloc[order, order].to_numpy(), names, names, cosine=True)
    heat.set_title("cosine of all deltas", loc="left", fontsize=10)
    top.colorbar(image, ax=heat)
    axes = bottom.subplots()
    cosine = label == "cosine"
    low, high = (-1.0, 1.0) if cosine else (0.0, 1.0)
    rows = layers if by_pair else _by_task(layers, names)
    image = axes.imshow(rows.to_numpy().T, aspect="auto", cmap="RdBu_r" if cosine else "viridis", vmin=low, vmax=high)
    axes.set_facecolor(MISSING)
    name_rows(axes, [f"{a} – {b}" for a, b in pairs(layers)] if by_pair else names)
    name_layers(axes, list(layers.index))
    lacking = "; dark grey: not in both" if rows.isna().to_numpy().any() else ""
    axes.set_xlabel(f"layer, in network order{lacking}")
    bottom.colorbar(image, ax=axes, label=label if by_pair else f"{label}, mean over the other tasks")
    top.suptitle(title, x=0.01, ha="left")
    return figure


def _by_task(layers: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """The mean of every task over the pairs it is in, tasks in ``order``."""
    own = {name: [i for i, pair in enumerate(pairs(layers)) if name in pair] for name in order}
    return pd.DataFrame({name: layers.iloc[:, columns].mean(axis=1) for name, columns in own.items()})


def _tree(axes: Axes, square: pd.DataFrame) -> list[int]:
    """Average linkage on 1 − cosine; the order of its leaves."""
    distance = np.clip(1 - square.to_numpy(), 0, 2)
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform((distance + distance.T) / 2, checks=False), "average")
    blue = {"color_threshold": 0, "above_threshold_color": "#0072B2"}
    drawn = dendrogram(merges, ax=axes, orientation="left", no_labels=True, **blue)  # the map beside it names its rows
    axes.set_xlabel("1 − cosine")
    axes.spines[["top", "right", "left"]].set_visible(False)
    leaves: list[int] = drawn["leaves"]
    return leaves[::-1]


def _cells(axes: Axes, values: np.ndarray, rows: list[str], columns: list[str], *, cosine: bool) -> object:
    image = axes.imshow(values, aspect="auto", cmap="RdBu_r" if cosine else "viridis", vmin=-1 if cosine else 0, vmax=1)
    few = len(columns) <= 20
    axes.set_xticks(range(len(columns)), columns, rotation=45 if few else 90, ha="right" if few else "center")
    axes.tick_params(axis="x", labelsize=9 if few else 7)
    name_rows(axes, rows)
    if len(rows) <= 12:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    return image
