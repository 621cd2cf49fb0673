"""What was measured as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensornet.bench.place import Row
from tensornet.training.table import Table
from tensornet.training.table import markdown as grid

TITLES: Mapping[str, str] = {
    "training": "A step of training",
    "operations": "A step of training by operation",
    "inference": "A forward in eval mode",
    "mixed": "32 rows of 8 tasks",
    "switching": "Eight tasks, one row each",
    "prefix": "Four tasks that share the first half of the layers",
    "tasks": "Adding, switching, loading",
    "memory": "A hundred tasks in one process",
    "compiled": "Ten tasks under torch.compile",
    "compiled-training": "A step of training under torch.compile",
    "rank": "A step of training against the rank of CP",
    "size": "A step of training against the size of the input",
    "number": "Against the number of tasks",
}
_COLUMNS: Mapping[str, tuple[str, Any]] = {
    "contender": ("", str),
    "operation": ("operation", str),
    "calls": ("calls", lambda x: f"{x:.0f}"),
    "size": ("size", str),
    "tasks": ("tasks", str),
    "graphs": ("graphs", str),
    "seconds": ("ms", lambda x: f"{1e3 * x:.3g}" if x < 0.1 else f"{1e3 * x:.0f}"),
    "ratio": ("ratio", lambda x: f"{x:.2f}" if x >= 1.1 else f"{x:.3f}"),
    "eager_ratio": ("of its own eager step", lambda x: f"{x:.2f}"),
    "multiply_adds": ("multiply-adds, millions", lambda x: f"{x / 1e6:,.0f}"),
    "multiply_adds_ratio": ("ratio of multiply-adds", lambda x: f"{x:.2f}"),
    "saved_bytes": ("saved, MiB", lambda x: f"{x / 2**20:.1f}"),
    "saved_ratio": ("ratio of saved", lambda x: f"{x:.3f}"),
    "trained_parameters": ("trained parameters", lambda x: f"{x:,}"),
    "bytes": ("MiB", lambda x: f"{x / 2**20:.1f}"),
    "expected_bytes": ("expected MiB", lambda x: f"{x / 2**20:.1f}"),
    "file_bytes": ("file, KiB", lambda x: f"{x / 2**10:.0f}"),
}


def table(rows: Sequence[Row]) -> Table:
    """The rows of one measure, one line each; only the columns that occur."""
    keys = [key for key in _COLUMNS if any(key in row for row in rows)]
    lines = [[_COLUMNS[key][1](row[key]) if key in row else "" for key in keys] for row in rows]
    return [_COLUMNS[key][0] for key in keys], lines


def markdown(result: Mapping[str, Any]) -> str:
    """Everything as one page."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    text = [
        f"Processor {machine['processor']}, {machine['threads']} threads of {machine['cores']} cores; "
        f"device {machine['device']}; {machine['precision']}; batches of {machine['rows'] or 'the set-ups'}; "
        f"{machine['repeats']} rounds; "
        f"Python {machine['python']}; {versions}.\n"
    ]
    for setup, measures in result["measures"].items():
        for measure, rows in measures.items():
            text.append(f"### {setup}: {TITLES[measure].lower()}\n\n{grid(table(rows))}")
    return "\n".join(text)
