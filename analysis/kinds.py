"""Words for choices; light enough for the command line to import."""

from typing import Literal

Kind = Literal["delta", "relative", "per_parameter", "factor", "component"]
"""Norms of a layer."""

Cost = Literal["parameters", "bytes", "multiply_adds"]
"""What a budget is in."""

Likeness = Literal["cosine", "output", "input"]
"""How two tasks' deltas are compared."""

LABELS: dict[str, str] = {
    "delta": "norm of the delta ‖ΔW‖",
    "relative": "relative norm ‖ΔW‖ / ‖W‖",
    "per_parameter": "root mean square of ΔW",
    "factor": "norm of each stored factor",
    "component": "norm of each component of ΔW",
}
"""Norms in words, for axes and titles."""

FIGURES = (".png", ".svg", ".pdf")
"""Suffixes of the files that figures are written to."""

ROUNDING = 1e-12
"""Share of a squared norm that float32 factors cannot tell from nothing."""


def plain(value: float) -> float:
    """A number of NumPy's or PyTorch's as Python's own."""
    number: float = value.item() if hasattr(value, "item") else value
    return number
