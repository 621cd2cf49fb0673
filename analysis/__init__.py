"""What is in trained tasks, and what new ones should be: tables, figures, smaller tasks and plans."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from analysis.norms import norms as norms
from analysis.pruning import prune as prune
from analysis.report import report as report
from analysis.similarity import similarity as similarity

if TYPE_CHECKING:
    from analysis.selection import Plan as Plan
    from analysis.selection import choose as choose
    from analysis.selection import gradients as gradients

_LATER = ("Plan", "choose", "gradients")


def __getattr__(name: str) -> Any:
    """Names whose optimiser need not be loaded by those who only look."""
    if name in _LATER:
        return getattr(import_module("analysis.selection"), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
