"""Threads that use one network: those that set its task take turns, and none changes what another is computing with."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import WeakSet

import torch

from tensornet.errors import StateError

BESIDE_MIXED = (
    "another thread is computing a mixed batch on this network; beside mixed batches, call it inside "
    "`with net.task(name)` or with tasks=…, which take turns"
)
INSIDE_MIXED = "a hook inside a mixed batch cannot call the network again: its layers are at work for the rows of the batch"


class Turns:
    """Who is at work on a network; of a copy, of one that was pickled, and in a forked process, nobody is.

    Where Dynamo traces, everything is allowed: what it makes of the network knows no threads. (`torch.compiler.is_compiling`
    would not do: it is true in all threads while one of them compiles anything.)
    """

    def __init__(self) -> None:
        self.renew()
        _LIVING.add(self)

    def renew(self) -> None:
        """Nobody is at work any more."""
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._calls: dict[int, int] = {}  # plain calls that are at work, by thread
        self._alone: int | None = None  # the thread that changes the task
        self._refuses = False

    def taken(self) -> AbstractContextManager[None]:
        """Inside, it is this thread's turn, which it can take several times."""
        return nullcontext() if torch.compiler.is_dynamo_compiling() else self._in_turn()

    def changing(self) -> AbstractContextManager[None]:
        """Inside a turn, a change of the task: it waits for plain calls of other threads, and new ones wait for it."""
        return nullcontext() if torch.compiler.is_dynamo_compiling() else self._alone_at_work(self._refuses)

    def refusing(self) -> AbstractContextManager[None]:
        """Inside a turn, a mixed batch: as `changing`, but it may last, so new calls of other threads are refused."""
        return nullcontext() if torch.compiler.is_dynamo_compiling() else self._alone_at_work(refuses=True)

    def call(self) -> AbstractContextManager[None]:
        """A plain call of the network; those of several threads go side by side.

        Raises:
            StateError: another thread computes a mixed batch; or this one does, and a hook calls the network again.
        """
        return nullcontext() if torch.compiler.is_dynamo_compiling() else self._beside_others()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:  # a call whose hook wants a turn is waited for by nobody: it waits itself
            held = self._calls.pop(me, 0)
            self._changed.notify_all()
        try:
            with self._lock:
                yield
        finally:
            if held:
                with self._changed:
                    self._changed.wait_for(lambda: self._alone in (None, me))
                    self._calls[me] = held

    @contextmanager
    def _alone_at_work(self, refuses: bool) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            before = self._alone, self._refuses
        try:
            with self._changed:
                self._alone, self._refuses = me, refuses
                self._changed.wait_for(lambda: not self._calls.keys() - {me})
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
                if self._alone is not None and self._refuses:
                    raise StateError(INSIDE_MIXED if self._alone == me else BESIDE_MIXED)
            self._calls[me] = self._calls.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                left = self._calls.pop(me, 1) - 1
                if left:
                    self._calls[me] = left
                self._changed.notify_all()

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()


_LIVING: WeakSet[Turns] = WeakSet()


def _renewed() -> None:
    for turns in list(_LIVING):
        turns.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renewed)  # the other threads, whom it would wait for, are not there
