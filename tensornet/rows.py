"""Which parts of a network's inputs and outputs are the rows of a batch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from tensornet.errors import ShapeError

CONSTANTS = (type(None), bool, int, float, complex, str, bytes, Enum, type, torch.dtype, torch.device, torch.Size)
"""Types of what belongs to no row: all rows have the same."""


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the first tensor among the inputs.

    Raises:
        ShapeError: there is none.
    """
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise ShapeError("a mixed batch needs an input tensor with one row per task name; got none")


def mapped(inputs: Any, batch: int, change: Callable[[Any, bool], Any]) -> Any:
    """The same inputs with every part changed: a tensor, an array, a list with one item per row, or anything else.

    Args:
        inputs: nested tuples, lists and dicts.
        batch: how many rows there are.
        change: is given a part, and whether it has one row per row of the batch.
    """
    return tree_map(lambda part: change(part, _has_rows(part, batch)), inputs, is_leaf=lambda part: _lists(part, batch))


def taken(part: Any, rows: Sequence[int]) -> Any:
    """Only these rows of a part that has rows; one may be asked for several times."""
    if isinstance(part, Tensor):
        return part.index_select(0, torch.tensor(rows, device=part.device))
    return [part[i] for i in rows] if isinstance(part, list) else part[list(rows)]


def take_rows(inputs: Any, rows: Sequence[int], batch: int) -> Any:
    """The same inputs with only ``rows`` of every part that has one row per row of the batch."""
    return mapped(inputs, batch, lambda part, has_rows: taken(part, rows) if has_rows else part)


def split_rows(output: Any, rows: int) -> list[Any]:
    """One output per row, of the same structure; an object in it of which nobody knows what belongs to which row is None.

    Raises:
        ShapeError: a tensor or an array has another number of rows, or the whole output is such an object.
    """
    found = _split(output, rows)
    if found is None:
        raise ShapeError(
            f"a mixed batch needs an output that can be taken apart into rows; got a {type(output).__name__}. Return "
            "tensors, or dicts, tuples or dataclasses of them, or call the network once per task instead."
        )
    return list(found)


def _split(output: Any, rows: int) -> Sequence[Any] | None:
    """One output per row; None where the whole output cannot be taken apart."""
    parts, structure = tree_flatten(output, is_leaf=lambda part: _answers(part, rows))
    if len(parts) == 1 and parts[0] is output:
        return _column(output, rows)
    columns = [_column(part, rows) or [None] * rows for part in parts]
    return [tree_unflatten([column[i] for column in columns], structure) for i in range(rows)]


def _column(part: Any, rows: int) -> Sequence[Any] | None:
    """What each row gets of a part of the output; None of an object that cannot be taken apart, such as a cache."""
    if isinstance(part, Tensor | np.ndarray):
        if part.ndim == 0 or part.shape[0] != rows:
            raise ShapeError(
                f"a mixed batch needs an output with one row per row; got shape {tuple(part.shape)} for {rows} rows. "
                "Call the network once per task instead."
            )
        return part.unbind(0) if isinstance(part, Tensor) else list(part)
    if isinstance(part, list):
        return part
    if isinstance(part, CONSTANTS):
        return [part] * rows
    if not dataclasses.is_dataclass(part):
        return None
    copies = [copy.copy(part) for _ in range(rows)]
    for field in dataclasses.fields(part):
        column = _split(getattr(part, field.name), rows) or [None] * rows
        for own, value in zip(copies, column, strict=True):
            object.__setattr__(own, field.name, value)  # also of a frozen one
    return copies


def _has_rows(part: Any, batch: int) -> bool:
    if isinstance(part, Tensor | np.ndarray):
        return part.ndim > 0 and part.shape[0] == batch
    return _lists(part, batch)


def _answers(part: Any, rows: int) -> bool:
    """Whether it is a list with an answer for each row, such as the boxes that were found in it; not one of tensors."""
    return isinstance(part, list) and len(part) == rows and not any(isinstance(item, Tensor | np.ndarray) for item in part)


def _lists(part: Any, batch: int) -> bool:
    """Whether it is a list with something for each row of the inputs, such as lengths or texts; nowhere a tensor in it."""
    if not isinstance(part, list) or len(part) != batch:
        return False
    return not any(isinstance(leaf, Tensor | np.ndarray) for leaf in tree_leaves(part))
