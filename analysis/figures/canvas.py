"""What all figures share: colours, marks, how layers are named on an axis, and how a figure becomes a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.kinds import FIGURES
from tensornet.atomic import write_figure
from tensornet.errors import WriteError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which the colour-blind can tell apart."""

MARKERS = "osD^vPX"


LONGEST = 36
"""Letters from which names of layers are shortened."""


def short(names: Sequence[str]) -> list[str]:
    """Names as an axis has room for: without the modules that all lie in, and long ones without their middle.

    They stay as they are where two would come to look alike.
    """
    if max(map(len, names), default=0) <= LONGEST:
        return list(names)
    paths = [name.split(".") for name in names]
    shared = next((i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), 0)
    cut = ["…" + ".".join(path[shared:]) if shared else name for name, path in zip(names, paths, strict=True)]
    cut = [name if len(name) <= LONGEST else f"{name[:14]}…{name[15 - LONGEST :]}" for name in cut]
    return cut if len(set(cut)) == len(set(names)) else list(names)


def name_layers(axes: Axes, layers: Sequence[object]) -> None:
    """Every layer by name along the horizontal axis, in network order; the figure grows by what long names take."""
    names = short([str(layer) for layer in layers])
    size = 9 if len(names) <= 30 else 7
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_xlim(-0.5, len(names) - 0.5)
    figure = axes.get_figure(root=True)
    assert figure is not None
    longest = max(map(len, names), default=0)
    figure.set_figheight(figure.get_figheight() + max(0, longest - 12) * 0.0085 * size)


def layers_wide(count: int) -> float:
    """Inches in which so many layer names stay apart."""
    return max(6.5, min(0.24 * count + 2, 16), 0.12 * count + 2)


def rows_high(count: int) -> float:
    """Inches in which so many rows of a map can be told apart, and their names where there are a few hundred or less."""
    return min(0.3 if count <= 20 else 0.17, 40 / count) * count


def name_rows(axes: Axes, names: Sequence[object]) -> None:
    """Every row of a map by name along the vertical axis."""
    axes.set_yticks(range(len(names)), [str(name) for name in names], fontsize=9 if len(names) <= 20 else 7)


def legend_below(figure: Figure, labels: Sequence[object], handles: Sequence[Any]) -> None:
    """A legend under the panels, in as many columns as fit; the figure grows by what its rows take."""
    longest = max(len(str(label)) for label in labels)
    fitting = max(1, int(figure.get_size_inches()[0] / (0.075 * longest + 0.55)))
    figure.set_figheight(figure.get_figheight() + 0.2 * ((len(labels) - 1) // fitting))
    figure.legend(
        list(handles),  # given, since axes leave out lines whose name begins with _
        [str(label) for label in labels],
        loc="outside lower center",
        frameon=False,
        ncols=min(len(labels), fitting),
        fontsize=9,
    )


def line_styles(count: int) -> list[tuple[str, str, str]]:
    """Colour, marker and dashes of so many lines; no two are alike up to 28."""
    dashes = ("-", "--", ":", "-.")
    return [(COLOURS[i % 7], MARKERS[i % 7], dashes[i // 7 % len(dashes)]) for i in range(count)]


def tidy(axes: Axes) -> None:
    """A light grid, no box."""
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of ``path``.

    Raises:
        WriteError: the place is not writable, or the suffix is another.
    """
    if path.suffix not in FIGURES:
        raise WriteError(f"{path}: a figure is written as .png, .svg or .pdf")
    write_figure(path, figure, dpi=150)
