"""Threads that use one network take turns where they set its task."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class Turns:
    """A lock that one thread can take several times; a copy, or one that was pickled, is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def taken(self) -> AbstractContextManager[Any]:
        """Inside, it is this thread's turn; while a compiler traces, it is anyone's."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    def __reduce__(self) -> tuple[type[Turns], tuple[()]]:
        return Turns, ()
