"""Names of tasks, and module paths as keys of `nn.ModuleDict`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from tensornet.errors import NameTakenError, ShapeError

_TASK = re.compile(r"\w(?:[\w.+ -]{0,98}[\w+])?")
_ESCAPES = {"~": "~0", "/": "~1", ".": "/"}
_EMPTY = nn.ModuleDict()


def check_task_name(name: object) -> str:
    """``name``, if it can name a task, which is a key, a folder and a word in commands.

    Raises:
        NameTakenError: it is not a string of letters, digits, `_`, `-`, `+`, spaces and inner dots, or is too long.
    """
    if not isinstance(name, str) or not _TASK.fullmatch(name) or ".." in name:
        raise NameTakenError(
            f"{name!r} cannot name a task: use up to 100 letters, digits, '_', '-', '+', spaces and single dots, and begin "
            "and end with a letter or digit; a task is also a folder"
        )
    return name


def row_names(tasks: object) -> list[str | None]:
    """Names of tasks, one per row of a batch, as a list; None is the untouched backbone.

    Raises:
        ShapeError: it is not a list of names.
    """
    if isinstance(tasks, str) or not isinstance(tasks, Iterable):
        raise ShapeError(f"tasks must be a list of names; got {tasks!r}")
    names = list(tasks)
    for name in names:
        if name is not None and not isinstance(name, str):
            raise ShapeError(f"tasks must be a list of names; it holds {name!r}")
    return names


def inputs_and_names(args: tuple[Any, ...], tasks: object) -> tuple[tuple[Any, ...], list[str | None]]:
    """The inputs of a call, and the names of tasks, each once, which are the last of ``args`` where ``tasks`` is None.

    Raises:
        ShapeError: there are no names.
    """
    if tasks is None:
        if not args:
            raise ShapeError("the names of tasks are missing: net.forward_tasks(x, ['sketch', 'flowers'])")
        *inputs, tasks = args
        args = tuple(inputs)
    return args, list(dict.fromkeys(row_names(tasks)))


def to_key(path: str) -> str:
    """A module path as one key without dots: '.' becomes '/', '/' and '~' are escaped as '~1' and '~0'.

    A key that `nn.ModuleDict` keeps for itself, such as 'train', gets a '~' at its end; the empty path is '~'.
    """
    key = sys.intern("".join(_ESCAPES.get(c, c) for c in path))
    return key + "~" if not key or hasattr(_EMPTY, key) else key


def from_key(key: str) -> str:
    """The module path of a key that `to_key` made."""
    return key.removesuffix("~").replace("/", ".").replace("~1", "/").replace("~0", "~")
