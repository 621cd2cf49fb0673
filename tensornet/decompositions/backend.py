"""TensorLy on its PyTorch backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorly as tl

P = ParamSpec("P")
T = TypeVar("T")


def on_pytorch(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: TensorLy runs on its PyTorch backend inside ``function``, in this thread only, as it was after it."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with tl.backend_context("pytorch", local_threadsafe=True):
            return function(*args, **kwargs)

    return inside
