"""Batches whose rows belong to several tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tensornet.attach import Attached, Unroutable
from tensornet.errors import ShapeError
from tensornet.probe import batch_size, check_rows, only_tensor, probe
from tensornet.slots import Contents, Slots


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
            return [row for part in router.head_parts for row in part.unbind(0)]
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
        inputs = tuple((tuple(x.shape[1:]), x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves)
        touched = tuple(id(module) for module in self.slots.touched(every))
        key = (inputs, touched, _learning(every))
        if key not in self._routes:
            self._routes[key] = probe(self.backbone, self.slots, every, args, kwargs)
        routable, head_last = self._routes[key]
        heads = {_head_of(contents, self.slots.head) for contents in every}
        return routable and (head_last or len(heads) == 1)


def _learning(every: Sequence[Contents]) -> bool:
    """Whether a norm or a head of these tasks is in train mode."""
    return any(c.replacement is not None and c.replacement.training for contents in every for c in contents.values())


def _head_of(contents: Contents, head: str | None) -> int | None:
    content = None if head is None else contents.get(head)
    return None if content is None or content.replacement is None else id(content.replacement)


class Segments:
    """Routes every layer over rows that are sorted by task: the shared layer once, each delta on its own rows.

    Args:
        bounds: rows of segment i go from bounds[i] to bounds[i + 1].
        path: "weight" runs an adapted layer once per segment on W + ΔW; "activations" adds each delta's branch.
    """

    def __init__(self, bounds: list[int], path: str) -> None:
        self.bounds = bounds
        self.path = path
        self.head_parts: list[Tensor] | None = None
        self.head_output: Tensor | None = None

    def run(self, module: Attached, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of ``module`` for the rows of all segments."""
        contents = module._slot.contents
        if not any(content.deltas or content.replacement is not None for content in contents):
            return forward(*args, **kwargs)
        x = only_tensor(module, args, kwargs)
        shared = all(content.replacement is None for content in contents)
        branches = [content.branch(module) for content in contents]
        beside = all(b is not None or not content.deltas for b, content in zip(branches, contents, strict=True))
        if shared and self.path == "activations" and beside:
            with module._slot.reading_the_backbone():
                y = forward(x)
            parts = []
            for i, branch in enumerate(branches):
                rows = self._rows(y, i)
                parts.append(rows if branch is None else rows + branch.beside(self._rows(x, i)))
            return torch.cat(parts)
        return self._joined([self._alone(module, forward, self._rows(x, i), i) for i in range(len(contents))])

    def _alone(self, module: Attached, forward: Callable[..., Any], rows: Tensor, segment: int) -> Tensor:
        slot = module._slot
        content = slot.contents[segment]
        if content.replacement is not None:
            replaced: Tensor = content.replacement(rows)
            return replaced
        slot.router, slot.deltas = None, content.deltas
        try:
            own: Tensor = forward(rows)
            return own
        finally:
            slot.router, slot.deltas = self, {}
            slot.cache.clear()

    def _rows(self, x: Tensor, segment: int) -> Tensor:
        check_rows(x, self.bounds[-1])
        start, stop = self.bounds[segment], self.bounds[segment + 1]
        return x.narrow(0, start, stop - start)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """All rows together; heads of different widths are padded, and the network takes the parts."""
        if any(not isinstance(part, Tensor) or part.ndim != parts[0].ndim for part in parts):
            raise Unroutable("heads whose outputs are not tensors of as many modes each")
        if len({part.shape[1:] for part in parts}) == 1:
            return torch.cat(parts)
        widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        pads = [[n for w, h in zip(widest[::-1], p.shape[:0:-1], strict=True) for n in (0, w - h)] for p in parts]
        output = torch.cat([nn.functional.pad(part, pad) for part, pad in zip(parts, pads, strict=True)])
        self.head_parts, self.head_output = parts, output
        return output


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
                f"the output of a mixed batch of {rows} rows must have one row each; got shape {tuple(leaf.shape)}. "
                "Call the network once per task instead."
            )
    columns = [leaf.unbind(0) if isinstance(leaf, Tensor) else [leaf] * rows for leaf in leaves]
    return [tree_unflatten([column[i] for column in columns], structure) for i in range(rows)]
