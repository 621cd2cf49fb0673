"""Batches whose rows belong to several tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tensornet.attach import Unroutable
from tensornet.errors import ShapeError
from tensornet.paths.branch import Way
from tensornet.probe import probe
from tensornet.rows import batch_size, mapped, split_rows, take_rows, taken
from tensornet.segments import Segments
from tensornet.slots import Contents, Slots
from tensornet.tasks import task_contents, task_names

_Route = tuple[bool, bool]
"""What `probe` says."""
_REMEMBERED = 256
"""Kinds of batches of which it is kept how they are served."""


class MixedBatch:
    """Serves a batch with one task per row: in one pass where the rows can be told apart everywhere, else task by task.

    Args:
        backbone: the network.
        slots: its attached layers.
        tasks: of the network; see `tasks`.
    """

    def __init__(self, backbone: nn.Module, slots: Slots, tasks: nn.ModuleDict) -> None:
        self.backbone = backbone
        self.slots = slots
        self.tasks = tasks
        self._routes: dict[Any, _Route] = {}
        self._of_all: dict[Any, _Route] = {}  # what holds of some tasks because it holds of all

    def run(self, names: Sequence[str | None], args: tuple[Any, ...], kwargs: dict[str, Any], way: Way) -> list[Any]:
        """One output per row. The slots are left empty.

        Args:
            names: of every row's task.
            args, kwargs: the backbone's inputs; what has as many rows as there are names is split (see `rows`).
            way: "weight" runs an adapted layer once per task on W + ΔW, and "activations" through its rank; "auto" adds a
                branch per task to one run of the layer, and where tasks are called one by one it is on W + ΔW.

        Raises:
            ShapeError: there is not one name per row.
            UnknownNameError: a name is not a task.
        """
        contents = {name: task_contents(self.tasks, name) for name in dict.fromkeys(names)}
        batch = batch_size(args, kwargs)
        if len(names) != batch:
            raise ShapeError(f"a mixed batch needs one task name per row; got {len(names)} names for {batch} rows")
        groups = [[i for i, name in enumerate(names) if name == wanted] for wanted in contents]
        order = [i for group in groups for i in group]
        every = list(contents.values())
        routed = None
        if len(every) > 1 and self._routable(every, args, kwargs):
            routed = self._in_one_pass(every, groups, args, kwargs, way)
        rows = self._task_by_task(every, groups, args, kwargs, way) if routed is None else routed
        placed = dict(zip(order, rows, strict=True))
        return [placed[i] for i in range(batch)]

    def _in_one_pass(
        self, every: list[Contents], groups: list[list[int]], args: Any, kwargs: Any, way: Way
    ) -> list[Any] | None:
        """The rows of all groups in turn; None where a layer turns out not to tell them apart."""
        bounds = list(itertools.accumulate((len(group) for group in groups), initial=0))
        router = Segments(bounds, "weight" if way == "weight" else "activations")
        args, kwargs = take_rows((args, kwargs), [i for group in groups for i in group], bounds[-1])
        try:
            with self.slots.routed(every, router):
                output = self.backbone(*args, **kwargs)
        except Unroutable:
            if _learning(every):  # statistics may have moved: computing again would move them twice
                raise
            return None
        if router.head_parts is None:
            return split_rows(output, bounds[-1])
        segments = enumerate(itertools.pairwise(bounds))
        return [row for i, (start, stop) in segments for row in split_rows(_segment(output, router, i), stop - start)]

    def _task_by_task(self, every: list[Contents], groups: list[list[int]], args: Any, kwargs: Any, way: Way) -> list[Any]:
        """The rows of all groups in turn, one call of the backbone for each."""
        batch = sum(len(group) for group in groups)
        rows: list[Any] = []
        for group, content in zip(groups, every, strict=True):
            self.slots.fill(content, "activations" if way == "activations" else "weight")
            part_args, part_kwargs = take_rows((args, kwargs), group, batch)
            rows += split_rows(self.backbone(*part_args, **part_kwargs), len(group))
        return rows

    def _routable(self, every: list[Contents], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether one pass can serve these tasks; the backbone is probed once per kind of input.

        Where it could not serve all tasks of the network at once, it is probed once more per choice of layers that change.
        """
        inputs = tuple(tree_leaves(mapped((args, kwargs), batch_size(args, kwargs), _kind)))
        kind = inputs, _learning(every)
        key = self._key(kind, every)
        known = self._routes.get(key) or self._of_all.get(key)
        if known is None:
            known = self._probed(kind, [task_contents(self.tasks, name) for name in task_names(self.tasks)], args, kwargs)
            if known[0]:
                _keep(self._of_all, key, known)
        if not known[0]:
            known = self._probed(kind, every, args, kwargs)
        routable, head_apart = known
        return routable and (head_apart or self._heads_alike(every))

    def _probed(self, kind: Any, every: Sequence[Contents], args: Any, kwargs: Any) -> _Route:
        """As `probe`, which is asked once for each kind of input and choice of layers that change."""
        key = self._key(kind, every)
        if key not in self._routes:
            _keep(self._routes, key, probe(self.backbone, self.slots, every, args, kwargs))
        return self._routes[key]

    def _key(self, kind: Any, every: Sequence[Contents]) -> Any:
        return kind, tuple(id(module) for module in self.slots.touched(every))

    def _heads_alike(self, every: Sequence[Contents]) -> bool:
        """Whether what the heads of these tasks return is one tensor, so that the network goes on with it."""
        head = self.slots.head
        if head is None:
            return True
        heads = [contents[head].replacement if head in contents else None for contents in every]
        own = self.slots.modules[head]
        modules = {id(module): module for module in (own if h is None else h for h in heads)}.values()
        return len(modules) == 1 or len({m.out_features if isinstance(m, nn.Linear) else m for m in modules}) == 1


def _keep(routes: dict[Any, _Route], key: Any, route: _Route) -> None:
    if len(routes) == _REMEMBERED:
        del routes[next(iter(routes))]
    routes[key] = route


def _segment(output: Any, router: Segments, number: int) -> Any:
    """The output for the rows of one segment, of whose head's output only the first segment's is in ``output``."""
    bounds, heads = router.bounds, router.head_parts
    assert heads is not None
    if output is router.head_output:
        return heads[number]
    own = range(bounds[number], bounds[number + 1])

    def cut(part: Any, has_rows: bool) -> Any:
        if part is router.head_output:
            return heads[number]
        return taken(part, own) if has_rows else part

    return mapped(output, bounds[-1], cut)


def _kind(part: Any, has_rows: bool) -> str:
    """What of an input may decide how it goes through the network; the value of a float, such as a temperature, does not."""
    if isinstance(part, Tensor | np.ndarray):
        return f"{tuple(part.shape[1:])} {part.dtype}"
    return type(part).__name__ if has_rows or isinstance(part, float) else repr(part)


def _learning(every: Sequence[Contents]) -> bool:
    """Whether a norm or a head of these tasks is in train mode."""
    return any(c.replacement is not None and c.replacement.training for contents in every for c in contents.values())
