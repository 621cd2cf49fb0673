"""The picture of the demo: what the domains look like, and what accuracy costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from tensornet.atomic import write_figure
from tensornet.data.images import Images
from tensornet.demo.digits import SIZE, printed, rendered

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = "osD^v"


def picture(rows: Sequence[dict[str, Any]], domains: dict[str, tuple[Images, Images]], path: Path) -> None:
    """Write a PNG: six samples of every domain on the left, accuracy against parameters per task on the right."""
    samples = {"printed (backbone)": Images(rendered(printed, 12, 5), SIZE)} | {n: pair[1] for n, pair in domains.items()}
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.55], squeeze=False)[0]
    axes = left.subplots(len(samples), 1)
    for axis, (name, images) in zip(axes, samples.items(), strict=True):
        strip = Image.new("RGB", (6 * (SIZE + 2), SIZE), "white")
        for i in range(6):
            strip.paste(Image.fromarray(images[i][0].permute(1, 2, 0).numpy()), (i * (SIZE + 2), 0))
        axis.imshow(strip, interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    plot = right.subplots()
    methods = list(dict.fromkeys(row["variant"] for row in rows))
    for name, colour, marker in zip(domains, COLOURS, MARKERS, strict=False):
        values = {row["variant"]: 100 * row["value"] for row in rows if row["task"] == name}
        plot.plot([values[m] for m in methods], color=colour, marker=marker, label=name)
    shares = [mean(100 * row["ratio"] for row in rows if row["variant"] == m) for m in methods]
    labels = [f"{m.replace(', ', chr(10))}\n{share:.1f} %" for m, share in zip(methods, shares, strict=True)]
    plot.set_xticks(range(len(methods)), labels, fontsize=8)
    plot.set_xlabel("what a task owns, and its parameters as a share of the backbone's")
    plot.set_ylabel("accuracy on test, percent")
    plot.set_title("One frozen backbone, a line per domain", loc="left")
    plot.grid(axis="y", alpha=0.3)
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False, fontsize=9)
    write_figure(path, figure, dpi=130)
