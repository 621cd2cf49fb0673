"""Results as a table: one line per variant, one column per task."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from tensornet.config import NONE

Table = tuple[list[str], list[list[str]]]
"""Header and lines."""


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracy in percent per task (mean over seeds), their mean, and parameters per task, their ratio and seconds.

    Behind the mean is its standard deviation over the seeds that have every task, where there are two or more.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        scores = {task: [100 * row["value"] for row in own if row["task"] == task] for task in tasks}
        found = [mean(values) for values in scores.values() if values]
        whole = len(found) == len(tasks)
        lines.append(
            [
                variant or _label(own[0]),
                *(f"{mean(values):.1f}" if values else "…" for values in scores.values()),
                f"{mean(found):.1f}{_spread(own, len(tasks))}" if whole else "…",
                f"{mean(row['trainable_parameters'] for row in own):,.0f}",
                f"{100 * mean(row['ratio'] for row in own):.1f} %",
                f"{sum(row['seconds'] for row in own):,.0f}",
            ]
        )
    return ["method", *tasks, "mean", "parameters per task", "of the backbone", "seconds"], lines


def scored_on(rows: Sequence[dict[str, Any]]) -> str:
    """The splits that rows were scored on: "test", "holdout", or both."""
    return " and ".join(sorted({row.get("split", "test") for row in rows}))


def _spread(rows: Sequence[dict[str, Any]], tasks: int) -> str:
    seeds: dict[int, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(100 * row["value"])
    means = [mean(values) for values in seeds.values() if len(values) == tasks]
    return f" ± {stdev(means):.1f}" if len(means) > 1 else ""


def markdown(content: Table) -> str:
    """A table in Markdown."""
    header, lines = content
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *lines])


def _label(row: dict[str, Any]) -> str:
    if row["decomposition"] == NONE and row["parameters"]["deltas"]:
        return "per layer"  # as a plan says
    return row["decomposition"] + ("" if row["rank"] is None else f" {row['rank']}")
