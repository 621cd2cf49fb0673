"""How alike tasks are: a dendrogram beside a heat map, and the layers below."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from analysis.figures.canvas import layers_wide, name_layers
from analysis.tables import pairs


def similarity_map(square: pd.DataFrame, layers: pd.DataFrame, title: str, label: str) -> Figure:
    """Tasks against tasks, in the order of their clustering, and every pair of tasks over the layers.

    Args:
        square: as `overall` gives it.
        layers: as `similarity` gives it.
        title: of the figure.
        label: of what ``layers`` holds.
    """
    height = 4.2 + 0.32 * layers.shape[1] + 1.6
    figure = Figure(figsize=(layers_wide(len(layers)), height), layout="constrained")
    parts = np.ravel(figure.subfigures(2, 1, height_ratios=[4.2, height - 4.2], squeeze=False))
    top, bottom = parts[0], parts[1]
    tree, heat = top.subplots(1, 2, width_ratios=[1, 1.3])
    order = _tree(tree, square)
    names = [str(square.index[i]) for i in order]
    image = _cells(heat, square.iloc[order, order].to_numpy(), names, names, cosine=True)
    heat.set_title("cosine of all deltas", loc="left", fontsize=10)
    top.colorbar(image, ax=heat)
    below = bottom.subplots()
    cosine = label == "cosine"
    names = [f"{a} – {b}" for a, b in pairs(layers)]
    low, high = (-1.0, 1.0) if cosine else (0.0, 1.0)
    image = below.imshow(layers.to_numpy().T, aspect="auto", cmap="RdBu_r" if cosine else "viridis", vmin=low, vmax=high)
    below.set_yticks(range(len(names)), names, fontsize=8)
    name_layers(below, list(layers.index))
    below.set_xlabel("layer, in network order")
    bottom.colorbar(image, ax=below, label=label)
    top.suptitle(title, x=0.01, ha="left")
    return figure


def _tree(axes: Axes, square: pd.DataFrame) -> list[int]:
    """Average linkage on 1 − cosine; the order of its leaves."""
    distance = np.clip(1 - square.to_numpy(), 0, 2)
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform((distance + distance.T) / 2, checks=False), "average")
    names = [str(name) for name in square.index]
    blue = {"color_threshold": 0, "above_threshold_color": "#0072B2"}
    drawn = dendrogram(merges, ax=axes, orientation="left", labels=names, **blue)
    axes.set_xlabel("1 − cosine")
    axes.spines[["top", "right", "left"]].set_visible(False)
    leaves: list[int] = drawn["leaves"]
    return leaves[::-1]


def _cells(axes: Axes, values: np.ndarray, rows: list[str], columns: list[str], *, cosine: bool) -> object:
    image = axes.imshow(values, cmap="RdBu_r" if cosine else "viridis", vmin=-1 if cosine else 0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    if len(rows) <= 12:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    return image
