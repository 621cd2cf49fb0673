"""Names for things that can be plugged in: decompositions and foldings."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from tensornet.errors import NameTakenError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names mapped to objects; packages add theirs through an entry-point group."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that stores an object under ``name``.

        Raises:
            NameTakenError: the name is taken by an object that was defined elsewhere, or is not an identifier.
        """
        if not name.isidentifier() or name == "none":
            raise NameTakenError(f"a {self.kind} cannot be called {name!r}: use letters, digits and '_', not 'none'")

        def store(item: T) -> T:
            taken = self._items.get(name)
            if taken is not None and _source(taken) != _source(item):
                raise NameTakenError(f"the {self.kind} {name!r} is {taken!r} already; register {item!r} otherwise")
            self._items[name] = item
            return item

        return store

    def get(self, name: str) -> T:
        """The object called ``name``; an installed plug-in of that name is loaded on demand.

        Raises:
            UnknownNameError: nothing has that name; the sentence lists what does.
        """
        if name not in self._items:
            for point in entry_points(group=self.group):
                if point.name == name:
                    self.register(name)(point.load())
        if name not in self._items:
            own = " One of your own is known once its module is imported: tensornet --import MODULE."
            raise UnknownNameError(self.kind, name, self.names(), own)
        return self._items[name]

    def names(self) -> list[str]:
        """Every name that ``get`` would answer, sorted."""
        return sorted({*self._items, *(point.name for point in entry_points(group=self.group))})


def _source(item: Any) -> Any:
    """Where a class or function was defined: a cell that is run again, or a reloaded module, makes a new one there."""
    return (item.__module__, item.__qualname__) if hasattr(item, "__qualname__") else id(item)


DECOMPOSITIONS: Registry[Any] = Registry("decomposition", "tensornet.decompositions")
FOLDINGS: Registry[Any] = Registry("folding", "tensornet.foldings")
