"""What was measured as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tensornet.atomic import write_figure
from tensornet.bench.place import Row

OURS, PEERS, BOUNDS = "#0072B2", "#E69F00", "#999999"
Found = Mapping[str, Mapping[str, Sequence[Row]]]
"""Rows by set-up and measure."""


def figures(found: Found, out: Path) -> None:
    """Write `training.png` and `scaling.png`, of those set-ups that have such rows.

    Raises:
        WriteError: ``out`` cannot be written.
    """
    steps = {setup: measures["training"] for setup, measures in found.items() if "training" in measures}
    if steps:
        write_figure(out / "training.png", training_figure(steps), dpi=130)
    for setup, measures in found.items():
        if {"rank", "size", "number"} & set(measures):
            write_figure(out / f"scaling-{setup}.png", scaling_figure(setup, measures), dpi=130)


def training_figure(steps: Mapping[str, Sequence[Row]]) -> Figure:
    """Bars: a step of training as a multiple of the limit's, one panel per set-up."""
    names = list(dict.fromkeys(row["contender"] for rows in steps.values() for row in rows))
    figure = Figure(figsize=(2.2 + 2.4 * len(steps), 0.8 + 0.28 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(steps), sharey=True, squeeze=False)[0]
    for axes, (setup, rows) in zip(panels, steps.items(), strict=True):
        values = {row["contender"]: row["ratio"] for row in rows}
        for i, name in enumerate(names):
            if name not in values:
                continue
            axes.barh(i, values[name], color=_colour(name), height=0.7)
            axes.annotate(
                f"{values[name]:.2f}", (values[name], i), (2, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(setup, loc="left", fontsize=10)
        axes.set_xlim(0, 1.18 * max(values.values()))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.supxlabel(
        "time of a training step, as a multiple of the limit: frozen weights, norms and head trained", fontsize=9
    )
    return figure


def scaling_figure(setup: str, measures: Mapping[str, Sequence[Row]]) -> Figure:
    """Lines: measured time and multiply-adds against rank, size and number of tasks."""
    kept = [name for name in ("rank", "size", "number") if name in measures]
    figure = Figure(figsize=(4.2 * len(kept), 3.6), layout="constrained")
    panels = figure.subplots(1, len(kept), squeeze=False)[0]
    draw = {"rank": _rank, "size": _size, "number": _number}
    for axes, name in zip(panels, kept, strict=True):
        draw[name](axes, measures[name])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(setup, x=0.01, ha="left", fontsize=10)
    return figure


def _rank(axes: Axes, rows: Sequence[Row]) -> None:
    ranks = [max(int(row["contender"]), 0) for row in rows]
    axes.plot(ranks, [row["ratio"] for row in rows], color=OURS, marker="o", label="measured")
    work = [row["multiply_adds_ratio"] for row in rows]
    axes.plot(ranks, work, color=PEERS, marker="s", linestyle="--", label="multiply-adds")
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_xlabel("rank of CP (0: the limit)")
    axes.set_ylabel("training step, as a multiple of the limit")


def _size(axes: Axes, rows: Sequence[Row]) -> None:
    own = [row for row in rows if row["contender"] != "limit"]
    sizes = [row["size"] for row in own]
    axes.plot(sizes, [row["ratio"] for row in own], color=OURS, marker="o", label="measured, CP 8")
    work = [row["multiply_adds_ratio"] for row in own]
    axes.plot(sizes, work, color=PEERS, marker="s", linestyle="--", label="multiply-adds, CP 8")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("size of the input")
    axes.set_ylabel("training step, as a multiple of the limit")


def _number(axes: Axes, rows: Sequence[Row]) -> None:
    for name, colour, marker in zip(dict.fromkeys(row["contender"] for row in rows), (OURS, PEERS), "os", strict=False):
        own = [row for row in rows if row["contender"] == name]
        counts = [row["tasks"] for row in own]
        axes.plot(
            counts, [r["seconds"] / own[0]["seconds"] for r in own], color=colour, marker=marker, label=f"{name}: time"
        )
        work = [row["multiply_adds"] / own[0]["multiply_adds"] for row in own]
        axes.plot(counts, work, color=colour, linestyle="--", label=f"{name}: multiply-adds")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = [row["tasks"] for row in rows]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("number of tasks")
    axes.set_ylabel("as a multiple of one task")


def _colour(name: str) -> str:
    if name in ("limit", "full fine-tuning"):
        return BOUNDS
    return PEERS if name.startswith(("PEFT", "LyCORIS")) else OURS
