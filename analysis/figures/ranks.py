"""Accuracy against rank."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.canvas import legend_below, line_styles, tidy
from analysis.tables import pairs


def rank_lines(table: pd.DataFrame, title: str) -> Figure:
    """A line per task over the ranks, 0 being norm layers and head alone; bars are one standard deviation over seeds.

    Args:
        table: as `rank_table` gives it: index ranks, columns pairs of task and "mean", "deviation", "seeds"; in [0, 1].
        title: of the figure.
    """
    ranks = list(table.index)
    tasks = list(dict.fromkeys(task for task, _ in pairs(table)))
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes, lines = figure.subplots(), []
    for task, (colour, marker, dashes) in zip(tasks, line_styles(len(tasks)), strict=True):
        line = axes.errorbar(
            range(len(ranks)),
            100 * table[task]["mean"],
            100 * table[task]["deviation"],
            color=colour,
            marker=marker,
            linestyle=dashes,
            markersize=5,
            linewidth=1.4,
            capsize=3,
            label=str(task),
        )
        lines.append(line)
    axes.set_xticks(range(len(ranks)), ["0\n(norms only)" if rank == 0 else str(rank) for rank in ranks])
    axes.set_xlabel("rank")
    axes.set_ylabel("accuracy, percent")
    axes.set_title(title, loc="left")
    tidy(axes)
    legend_below(figure, tasks, lines)
    return figure
