"""Modules without the eleven empty collections of hooks that every module of PyTorch carries.

A task is two small modules per layer, and the collections weigh more than the numbers of most of them: of a hundred tasks
on a ResNet-50, 19 MiB.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

from torch import nn

_MODULE = vars(nn.Module())
_COLLECTIONS = {name: type(value) for name, value in _MODULE.items() if isinstance(value, OrderedDict | set)}
_REST = {name: value for name, value in _MODULE.items() if name not in _COLLECTIONS}


class Lean(nn.Module):
    """A module whose collections of hooks are made where they are asked for."""

    def __init__(self) -> None:
        for name, value in _REST.items():  # as nn.Module does
            object.__setattr__(self, name, {} if isinstance(value, dict) else value)

    def __getattr__(self, name: str) -> Any:
        if name in _COLLECTIONS:
            object.__setattr__(self, name, _COLLECTIONS[name]())
            return self.__dict__[name]
        return super().__getattr__(name)


class LeanKind(Lean):
    """Mix-in of what `lean_kind` makes."""

    _ordinary: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self._ordinary,), self.__dict__


@functools.cache
def lean_kind(kind: type[nn.Module]) -> type[LeanKind]:
    """A lean subclass of ``kind``, under its name."""
    body = {"_ordinary": kind, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (LeanKind, kind), body)


def ordinary(module: nn.Module) -> nn.Module:
    """The same object; it and all inside it are of their ordinary classes again."""
    for part in module.modules():
        if isinstance(part, LeanKind):
            for name in _COLLECTIONS:
                getattr(part, name)
            part.__class__ = part._ordinary  # type: ignore[assignment]
    return module


def _blank(kind: type[nn.Module]) -> nn.Module:
    """What a copy or a pickle begins with."""
    made = lean_kind(kind)  # type: ignore[arg-type]
    return made.__new__(made)
