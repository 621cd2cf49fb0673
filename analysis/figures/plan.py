"""What a plan gave each layer, and how its error falls with the budget."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.canvas import COLOURS, MARKERS, layers_wide, name_layers, tidy
from analysis.selection.plan import Plan
from tensornet.config import NONE


def plan_figure(plan: Plan) -> Figure:
    """Above, the parameters of each layer, coloured by decomposition and marked with the rank; below, error against budget.

    Args:
        plan: as `choose` made it.
    """
    figure = Figure(figsize=(layers_wide(len(plan.table)), 9.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[1, 1])
    every = dict.fromkeys([*plan.curve.columns, *plan.table["decomposition"]])
    colours = dict(zip([kind for kind in every if kind not in (NONE, "plan")], cycle(COLOURS[1:]), strict=False))
    _bars(upper, plan, colours)
    _curve(lower, plan, colours)
    return figure


def _bars(axes: Axes, plan: Plan, colours: dict[str, str]) -> None:
    table = plan.table
    for kind, colour in colours.items():
        if kind not in set(table["decomposition"]):
            continue
        own = [i for i, found in enumerate(table["decomposition"]) if found == kind]
        axes.bar(own, table["parameters"].iloc[own], color=colour, label=kind)
    highest = max(table["parameters"].max(), 1)
    for i, (kind, rank, count) in enumerate(zip(table["decomposition"], table["rank"], table["parameters"], strict=True)):
        text = "–" if kind == NONE else ",".join(map(str, rank)) if isinstance(rank, tuple) else str(rank)
        axes.text(i, count + 0.02 * highest, text, rotation=90, ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, 1.25 * highest)
    name_layers(axes, list(table.index))
    axes.set_ylabel("parameters")
    axes.set_title(f"{plan.parameters:,} parameters; numbers are ranks, – is no delta", loc="left")
    tidy(axes)
    axes.legend(frameon=False, loc="upper left", fontsize=9)


def _curve(axes: Axes, plan: Plan, colours: dict[str, str]) -> None:
    alone = [name for name in plan.curve.columns if name != "plan"]
    for name, marker in zip(alone, cycle(MARKERS[1:]), strict=False):
        own = plan.curve[name].dropna()
        style: dict[str, Any] = {"color": colours[name], "marker": marker, "markersize": 4, "linewidth": 1.2}
        axes.plot(own.index, own, label=f"{name}, one rank everywhere", **style)
    own = plan.curve["plan"].dropna()
    axes.plot(own.index, own, color=COLOURS[0], marker=MARKERS[0], markersize=5, linewidth=2.2, label="chosen per layer")
    axes.axvline(plan.budget, color="#777777", linestyle=":", label="the budget")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.set_xlabel({"multiply_adds": "multiply-adds of one sample"}.get(plan.unit, plan.unit))
    axes.set_ylabel("relative error of all layers")
    tidy(axes)
    axes.legend(frameon=False, fontsize=9)
