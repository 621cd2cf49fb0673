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


class _Late:
    """An attribute that a module gets when it is first asked for."""

    def __init__(self, name: str, kind: type) -> None:
        self.name = name
        self.kind = kind

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        made = module.__dict__[self.name] = self.kind()
        return made


for _name, _kind in _COLLECTIONS.items():
    setattr(Lean, _name, _Late(_name, _kind))


class LeanKind(Lean):
    """Mix-in of what `lean_kind` makes."""

    _ordinary: type[nn.Module]

    def __init_subclass__(cls, **options: Any) -> None:
        """Do nothing: a class that, say, enters its subclasses by name should not enter ours."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self._ordinary,), self.__dict__


@functools.cache
def lean_kind(kind: type[nn.Module]) -> type[LeanKind]:
    """A lean subclass of ``kind``, under its name; itself where it is one."""
    if issubclass(kind, LeanKind):  # of a norm that was copied out of a task
        return kind
    body = {
        "_ordinary": kind,
        "__init__": kind.__init__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
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
