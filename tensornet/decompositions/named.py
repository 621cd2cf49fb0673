"""Decompositions by name."""

from __future__ import annotations

from collections.abc import Callable

from tensornet.decompositions.base import Decomposition
from tensornet.errors import UnknownNameError
from tensornet.registry import DECOMPOSITIONS


def register(name: str) -> Callable[[type[Decomposition]], type[Decomposition]]:
    """Class decorator that makes a decomposition available by name in configs, files and commands."""
    return DECOMPOSITIONS.register(name)


def decompositions() -> list[str]:
    """The names of all decompositions, installed plug-ins included."""
    return DECOMPOSITIONS.names()


def decomposition(name: str) -> type[Decomposition]:
    """The class registered under ``name``.

    Raises:
        UnknownNameError: nothing is; the sentence lists the names.
    """
    found: type[Decomposition] = DECOMPOSITIONS.get(name)
    return found


def name_of(cls: type[Decomposition]) -> str:
    """The name under which ``cls`` is registered.

    Raises:
        UnknownNameError: it is not.
    """
    for name in DECOMPOSITIONS.names():
        if DECOMPOSITIONS.get(name) is cls:
            return name
    raise UnknownNameError("decomposition", cls.__name__, DECOMPOSITIONS.names(), " Register it: @tensornet.register(name).")
