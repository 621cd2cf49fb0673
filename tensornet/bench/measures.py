"""The measures by name, and what a table of each shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tensornet.bench.lifecycle import memory, tasks
from tensornet.bench.operations import operations
from tensornet.bench.place import Row, Workplace
from tensornet.bench.scaling import cost_of_rank, cost_of_size, cost_of_tasks
from tensornet.bench.serving import compiled, inference, mixed, prefix, switching
from tensornet.bench.training import compiled_training, training

MEASURES: Mapping[str, Callable[[Workplace], list[Row]]] = {
    "training": training,
    "operations": operations,
    "inference": inference,
    "mixed": mixed,
    "switching": switching,
    "prefix": prefix,
    "tasks": tasks,
    "memory": memory,
    "compiled": compiled,
    "compiled-training": compiled_training,
    "rank": cost_of_rank,
    "size": cost_of_size,
    "number": cost_of_tasks,
}
DEFAULT = tuple(name for name in MEASURES if name != "compiled-training")
"""What is measured where nothing is named: a compiler takes minutes for every set-up."""
