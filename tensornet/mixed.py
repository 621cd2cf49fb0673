"""Batches whose rows belong to several tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tensornet.attach import Attached, Unroutable
from tensornet.errors import ShapeError, StateError
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
        if len(every) > 1 and self._routable(every, args, kwargs):
            bounds = list(itertools.accumulate((len(group) for group in groups), initial=0))
            router = Segments(bounds, "weight" if on_weight else "activations")
            args, kwargs = take_rows((args, kwargs), order, batch)
            with self.slots.routed(every, router):
                output = self.backbone(*args, **kwargs)
            if router.head_parts is not None and output is router.head_output:
                rows = [row for part in router.head_parts for row in part.unbind(0)]
            else:
                rows = split_rows(output, batch)
        else:
            rows = []
            for group, content in zip(groups, every, strict=True):
                self.slots.fill(content, on_activations=False)
                part_args, part_kwargs = take_rows((args, kwargs), group, batch)
                rows += split_rows(self.backbone(*part_args, **part_kwargs), len(group))
        placed = dict(zip(order, rows, strict=True))
        return [placed[i] for i in range(batch)]

    def _routable(self, every: Sequence[Contents], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether one pass can serve these tasks; the backbone is probed once per kind of input and of layers changed."""
        leaves = tree_flatten((args, kwargs))[0]
        inputs = tuple((tuple(x.shape[1:]), x.dtype) if isinstance(x, Tensor) else repr(x) for x in leaves)
        touched = tuple(id(module) for module in self.slots.touched(every))
        key = (inputs, touched, self.backbone.training)
        if key not in self._routes:
            self._routes[key] = probe(self.backbone, self.slots, every, args, kwargs)
        routable, head_last = self._routes[key]
        heads = {id(c.replacement) for contents in every for p, c in contents.items() if self.slots.modules[p]._slot.is_head}
        return routable and (head_last or (len(heads) == 1 and all(heads)))


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
        x = _only_tensor(module, args, kwargs)
        deltas = [next(iter(content.deltas.values()), None) for content in contents]
        shared = all(content.replacement is None for content in contents)
        if shared and self.path == "activations" and all(d is None or d.branches(module) for d in deltas):
            with module._slot.reading_the_backbone():
                y = forward(x)
            parts = []
            for i, delta in enumerate(deltas):
                rows = self._rows(y, i)
                parts.append(rows if delta is None else rows + delta.branch(module, self._rows(x, i)))
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
        repeat = _repeats(x, self.bounds[-1])
        start, stop = self.bounds[segment], self.bounds[segment + 1]
        return x.narrow(0, start * repeat, (stop - start) * repeat)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """All rows together; heads of different widths are padded, and the network takes the parts."""
        if len({part.shape[1:] for part in parts}) == 1:
            return torch.cat(parts)
        widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        pads = [[n for w, h in zip(widest[::-1], p.shape[:0:-1], strict=True) for n in (0, w - h)] for p in parts]
        output = torch.cat([nn.functional.pad(part, pad) for part, pad in zip(parts, pads, strict=True)])
        self.head_parts, self.head_output = parts, output
        return output


class Probe:
    """Routes nothing: notes how many rows each layer sees per row of the batch, and whether the head comes last."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.repeats: list[int] = []
        self.head_output: Any = None

    def run(self, module: Attached, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's own output."""
        slot = module._slot
        if any(content.deltas or content.replacement is not None for content in slot.contents):
            self.repeats.append(_repeats(_only_tensor(module, args, kwargs), self.batch))
        with slot.reading_the_backbone():
            output = forward(*args, **kwargs)
        if slot.is_head:
            self.head_output = output
        return output


def probe(
    backbone: nn.Module, slots: Slots, every: Sequence[Contents], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, bool]:
    """Whether rows can be told apart in every layer that tasks change, and whether the head's output is the network's.

    Two batches of meta tensors of different sizes go through the backbone: each layer has to see rows in proportion.
    Nothing is computed. A backbone that does not run on meta tensors, or that reads adapted weights outside their
    layers' forward, cannot be routed: it runs once per task instead.
    """
    meta = {name: t.to("meta") for name, t in [*backbone.named_parameters(), *backbone.named_buffers()]}
    batch = batch_size(args, kwargs)
    seen = []
    for rows in (3, 5):

        def resized(leaf: Any, rows: int = rows) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            size = (rows, *leaf.shape[1:]) if leaf.ndim and leaf.shape[0] == batch else leaf.shape
            return torch.empty(size, dtype=leaf.dtype, device="meta")

        router = Probe(rows)
        try:
            with torch.no_grad(), slots.routed(every, router):
                meta_args, meta_kwargs = tree_map(resized, (args, kwargs))
                output = torch.func.functional_call(backbone, meta, meta_args, meta_kwargs)
        except (StateError, RuntimeError, TypeError, ValueError):
            return False, False
        seen.append((router.repeats, output is router.head_output))
    (first, last), (second, _) = seen
    return first == second, last


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the first tensor among the inputs.

    Raises:
        ShapeError: there is none.
    """
    for leaf in tree_flatten((args, kwargs))[0]:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise ShapeError("a mixed batch needs an input tensor with one row per task name; got none")


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


def _only_tensor(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].ndim == 0:
        raise Unroutable(f"a {type(module).__name__} is called with more than one tensor")
    return args[0]


def _repeats(x: Tensor, batch: int) -> int:
    """How many rows of ``x`` in sequence belong to one row of the batch."""
    repeat, rest = divmod(x.shape[0], batch)
    if rest:
        raise Unroutable(f"{x.shape[0]} rows are no multiple of the batch of {batch}")
    return repeat
