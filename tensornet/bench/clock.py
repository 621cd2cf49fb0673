"""Timing in a noisy place: contenders in turn, round after round, and medians of what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Inside, PyTorch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device != "cpu":
        torch.accelerator.synchronize()


def now(device: str) -> float:
    """The time when the device has done what it was given."""
    synchronize(device)
    return time.perf_counter()


def seconds(run: Callable[[], object], device: str = "cpu", calls: int = 1) -> float:
    """How long one call takes, where so many follow one another."""
    start = now(device)
    for _ in range(calls):
        run()
    return (now(device) - start) / calls


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu", warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` rounds in which every contender has its turn."""
    for run in runs.values():
        for _ in range(warmup):
            run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(seconds(run, device))
    return taken


def ratio(own: list[float], other: list[float]) -> float:
    """The median over rounds of one contender's seconds over another's of the same round."""
    return median(a / b for a, b in zip(own, other, strict=True))


def typical(run: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """The median seconds of one call after two that are not counted.

    An accelerator is given many calls at once, as a network gives them: launching them counts where it takes longer.
    """
    calls = 1 if device == "cpu" else 20
    seconds(run, device, 2)
    return median(seconds(run, device, calls) for _ in range(repeats))
