"""Batches whose rows belong to several tasks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tensornet.attach import Unroutable
from tensornet.errors import ShapeError
from tensornet.probe import batch_size, probe
from tensornet.segments import Segments
from tensornet.slots import Contents, Slots

_REMEMBERED = 256
"""Kinds of batches of which it is kept how they are served."""


class MixedBatch:
    """Serves a batch with one task per row: in one pass where the rows can be told apart everywhere, else task by task.

    Args:
        backbone: the network.
        slots: its attached layers.
    """

    def __init__(self, backbone: nn.Module, slots: Slots) -> None:
        self.backbone = backbone
        self.slots = slots
        self._routes: dict[Any, tuple[bool, bool]] = {}

    def run(
        self,
        names: Sequence[str | None],
        contents: Mapping[str | None, Contents],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_weight: bool,
    ) -> list[Any]:
        """One output per row. The slots are left empty.

        Args:
            names: of every row's task.
            contents: of each of these tasks.
            args, kwargs: the backbone's inputs; tensors with as many rows as there are names are split.
            on_weight: run an adapted layer once per task, not once with a branch per task.

        Raises:
            ShapeError: there is not one name per row.
        """
        batch = batch_size(args, kwargs)
        if len(names) != batch:
            raise ShapeError(f"a mixed batch needs one task name per row; got {len(names)} names for {batch} rows")
        groups = [[i for i, name in enumerate(names) if name == wanted] for wanted in contents]
        order = [i for group in groups for i in group]
        every = list(contents.values())
        routed = None
        if len(every) > 1 and self._routable(every, args, kwargs):
            routed = self._in_one_pass(every, groups, args, kwargs, on_weight)
        rows = self._task_by_task(every, groups, args, kwargs) if routed is None else routed
        placed = dict(zip(order, rows, strict=True))
        return [placed[i] for i in range(batch)]

    def _in_one_pass(
        self, every: list[Contents], groups: list[list[int]], args: Any, kwargs: Any, on_weight: bool
    ) -> list[Any] | None:
        """The rows of all groups in turn; None where a layer turns out not to tell them apart."""
        bounds = list(itertools.accumulate((len(group) for group in groups), initial=0))
        router = Segments(bounds, "weight" if on_weight else "activations")
        args, kwargs = take_rows((args, kwargs), [i for group in groups for i in group], bounds[-1])
        try:
            with self.slots.routed(every, router):
                output = self.backbone(*args, **kwargs)
        except Unroutable:
            if _learning(every):  # statistics may have moved: computing again would move them twice
                raise
            return None
        if router.head_parts is not None and output is router.head_output:
            parts = zip(router.head_parts, groups, strict=True)
            return [row for part, group in parts for row in split_rows(part, len(group))]
        return split_rows(output, bounds[-1])

    def _task_by_task(self, every: list[Contents], groups: list[list[int]], args: Any, kwargs: Any) -> list[Any]:
        """The rows of all groups in turn, one call of the backbone for each."""
        batch = sum(len(group) for group in groups)
        rows: list[Any] = []
        for group, content in zip(groups, every, strict=True):
            self.slots.fill(content, "weight")
            part_args, part_kwargs = take_rows((args, kwargs), group, batch)
            rows += split_rows(self.backbone(*part_args, **part_kwargs), len(group))
        return rows

    def _routable(self, every: Sequence[Contents], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether one pass can serve these tasks; the backbone is probed once per kind of input and of layers changed."""
        leaves = tree_flatten((args, kwargs))[0]
        inputs = tuple(_kind(leaf) for leaf in leaves)
        touched = tuple(id(module) for module in self.slots.touched(every))
        key = (inputs, touched, _learning(every))
        if key not in self._routes:
            if len(self._routes) == _REMEMBERED:
                del self._routes[next(iter(self._routes))]
            self._routes[key] = probe(self.backbone, self.slots, every, args, kwargs)
        routable, head_last = self._routes[key]
        heads = {_head_of(contents, self.slots.head) for contents in every}
        return routable and (head_last or len(heads) == 1)


def _kind(leaf: Any) -> Any:
    """What of an input may decide how it goes through the network; the value of a float, such as a temperature, does not."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape[1:]), leaf.dtype
    return float if isinstance(leaf, float) else repr(leaf)


def _learning(every: Sequence[Contents]) -> bool:
    """Whether a norm or a head of these tasks is in train mode."""
    return any(c.replacement is not None and c.replacement.training for contents in every for c in contents.values())


def _head_of(contents: Contents, head: str | None) -> int | None:
    content = None if head is None else contents.get(head)
    return None if content is None or content.replacement is None else id(content.replacement)


def take_rows(inputs: Any, rows: Sequence[int], batch: int) -> Any:
    """The same inputs with only ``rows`` of every tensor that has one row per row of the batch."""

    def taken(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != batch:
            return leaf
        return leaf.index_select(0, torch.tensor(rows, device=leaf.device))

    return tree_map(taken, inputs)


def split_rows(output: Any, rows: int) -> list[Any]:
    """One output per row, of the same structure.

    Raises:
        ShapeError: a tensor of the output has another number of rows.
    """
    leaves, structure = tree_flatten(output)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != rows):
            raise ShapeError(
                f"a mixed batch needs an output with one row per row; got shape {tuple(leaf.shape)} for {rows} rows. "
                "Call the network once per task instead."
            )
    columns = [leaf.unbind(0) if isinstance(leaf, Tensor) else [leaf] * rows for leaf in leaves]
    return [tree_unflatten([column[i] for column in columns], structure) for i in range(rows)]
