"""Accuracy against the threshold below which deltas are removed."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.canvas import COLOURS, legend_below, tidy


def sweep_lines(table: pd.DataFrame, title: str, label: str) -> Figure:
    """A panel per task; each marker says its threshold and, in parentheses, how many layers lost their delta.

    Args:
        table: as `sweep` gives it: a row per task and threshold, accuracies in [0, 1].
        title: of the figure.
        label: of the threshold, with its unit.
    """
    tasks = list(dict.fromkeys(table["task"]))
    columns = 1 if len(tasks) == 1 else 2
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(6.6 * columns, 3.4 * rows + 0.8), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    handles: dict[str, object] = {}
    for axes, task in zip(panels, tasks, strict=False):
        own = (
            table[table["task"] == task]
            .sort_values("threshold")
            .groupby("threshold", as_index=False)
            .mean(numeric_only=True)
        )
        handles |= _panel(axes, own)
        axes.set_title(str(task), loc="left", fontsize=11)
        axes.set_xlabel(label)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left")
    legend_below(figure, list(handles), list(handles.values()))
    return figure


def _panel(axes: Axes, own: pd.DataFrame) -> dict[str, object]:
    places = range(len(own))
    handles: dict[str, object] = {}
    beside = axes.twinx()
    handles["parameters of the deltas"] = beside.bar(places, own["parameters"], width=0.55, color="#DDDDDD", zorder=0)
    beside.set_ylabel("parameters", fontsize=9)
    beside.set_ylim(0, 1.6 * max(own["parameters"].max(), 1))
    beside.spines[["top"]].set_visible(False)
    axes.set_zorder(beside.get_zorder() + 1)
    axes.patch.set_visible(False)
    (handles["accuracy"],) = axes.plot(places, 100 * own["accuracy"], color=COLOURS[0], marker="o", linewidth=1.6)
    if "reestimated" in own and own["reestimated"].notna().any():
        (handles["batch-norm statistics re-estimated"],) = axes.plot(
            places, 100 * own["reestimated"], "--", color=COLOURS[1], marker="s", linewidth=1.6
        )
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= 100])
    axes.set_ylim(low, high + 0.28 * (high - low))
    top = 100 * own[[c for c in ("accuracy", "reestimated") if c in own]].max(axis=1)
    for place, height, threshold, removed in zip(places, top, own["threshold"], own["removed"], strict=True):
        axes.annotate(
            f"{threshold:.3g} ({removed:.0f})",
            (place, height),
            xytext=(0, 6),
            textcoords="offset points",
            rotation=50,
            fontsize=8,
            ha="left",
            va="bottom",
        )
    axes.set_xticks(places, [f"{threshold:.3g}" for threshold in own["threshold"]], fontsize=8)
    axes.set_xlim(-0.6, len(own) - 0.1)
    axes.set_ylabel("accuracy, percent", fontsize=9)
    tidy(axes)
    return handles
