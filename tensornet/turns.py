"""Threads that use one network: those that set its task take turns, and none changes what another is computing with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from tensornet.errors import StateError

BESIDE_MIXED = (
    "another thread is computing a mixed batch on this network; beside mixed batches, call it inside "
    "`with net.task(name)` or with tasks=…, which take turns"
)


class Turns:
    """Who is at work on a network; of a copy, or of one that was pickled, nobody is.

    While a compiler traces, everything is allowed: what it makes of the network knows no threads.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._calls: dict[int, int] = {}  # plain calls that are at work, by thread
        self._alone: int | None = None  # the thread that changes the task
        self._refuses = False

    def taken(self) -> AbstractContextManager[Any]:
        """Inside, it is this thread's turn, which it can take several times."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    def alone(self, refuses: bool = False) -> AbstractContextManager[None]:
        """Inside a turn, for a change of the task: waits for the plain calls of other threads, and lets none begin.

        Args:
            refuses: what would begin is refused, as the change lasts; or else it waits.
        """
        return nullcontext() if torch.compiler.is_compiling() else self._for_itself(refuses)

    def call(self) -> AbstractContextManager[None]:
        """A plain call of the network; those of several threads go side by side.

        Raises:
            StateError: another thread computes a mixed batch.
        """
        return nullcontext() if torch.compiler.is_compiling() else self._beside_others()

    @contextmanager
    def _for_itself(self, refuses: bool) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            before = self._alone, self._refuses
            self._alone, self._refuses = me, refuses or self._refuses
            self._changed.wait_for(lambda: not self._calls.keys() - {me})
        try:
            yield
        finally:
            with self._changed:
                self._alone, self._refuses = before
                self._changed.notify_all()

    @contextmanager
    def _beside_others(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            if me not in self._calls:  # a call inside a call goes on
                self._changed.wait_for(lambda: self._alone in (None, me) or self._refuses)
                if self._alone not in (None, me):
                    raise StateError(BESIDE_MIXED)
            self._calls[me] = self._calls.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._calls[me] -= 1
                if not self._calls[me]:
                    del self._calls[me]
                    self._changed.notify_all()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()
