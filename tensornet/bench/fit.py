"""The numbers of the rule that chooses how a layer is computed, fitted to what this machine measures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from tensornet.bench.clock import typical
from tensornet.decompositions import Bottleneck
from tensornet.paths.layers import Convolution, outer, product
from tensornet.paths.lowrank import LowRankLayer, output
from tensornet.paths.rule import ON_WEIGHT, Cost, Costs

_PLACES = ((4, 56), (4, 28), (4, 14), (4, 7), (16, 16), (16, 8), (16, 4))
_CHANNELS = ((64, 64), (64, 256), (256, 64), (128, 512), (512, 512), (1024, 256))
_RANKS = (4, 8, 16, 50)
_OPERATIONS = {"thin": 2, "dense": 1, "depthwise": 3, "build": 1}


Case = tuple[float, float, Sequence[Callable[[], object]]]
"""Multiply-adds and numbers of one operation, and calls that make up as many operations as `_OPERATIONS` says."""


class Sample(NamedTuple):
    """One measured operation: multiply-adds, numbers read or written, seconds."""

    products: float
    numbers: float
    seconds: float


def fit(
    device: str = "cpu", repeats: int = 5, limit: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Costs, dict[str, float]]:
    """Costs by non-negative least squares on relative errors, over a grid of shapes as convolutional networks have them.

    Args:
        device: to measure on.
        repeats: of each measurement; its median counts.
        limit: measure only so many shapes of each kind.
        dtype: of what lies between layers.

    Returns:
        The costs, and for each kind of operation the median relative error of what they predict.
    """
    kinds: dict[str, Callable[[Drawn], Iterator[Case]]] = {
        "thin": _thin,
        "dense": _dense,
        "depthwise": _depthwise,
        "build": _build,
    }
    drawn = Drawn(device, dtype)
    costs: dict[str, Cost] = {}
    errors: dict[str, float] = {}
    with torch.no_grad():
        for kind, cases in kinds.items():
            samples = [
                Sample(products, numbers, sum(typical(run, repeats, device) for run in runs) / _OPERATIONS[kind])
                for products, numbers, runs in itertools.islice(cases(drawn), limit)
            ]
            costs[kind], errors[kind] = _fitted(samples)
    return Costs(**costs, own=None if device == "cpu" else _own(drawn, repeats)), errors


def _own(drawn: Drawn, repeats: int) -> float:
    """Seconds by which a layer's own step of autograd is dearer than a plain one, where all work is small."""
    operation, weight = _geometry(3), drawn.tensor(8, 8, 3, 3)
    x = drawn.images(2, 8, 4).requires_grad_()
    parts = Bottleneck(*(drawn.tensor(*size).requires_grad_() for size in ((8, 4), (4, 9), (4, 8))))
    arguments = (weight, None, 1.0, operation, ON_WEIGHT)

    def own() -> None:
        LowRankLayer.apply(x, *parts, *arguments).sum().backward()  # type: ignore[no-untyped-call]

    def plain() -> None:
        output(x, parts, *arguments).sum().backward()

    return max(typical(own, repeats, drawn.device) - typical(plain, repeats, drawn.device), 0.0)


def _fitted(samples: list[Sample]) -> tuple[Cost, float]:
    measured = np.array([sample.seconds for sample in samples])
    features = np.array([[1.0, sample.products, sample.numbers] for sample in samples])
    scale = features.max(0)
    found, _ = nnls(features / scale / measured[:, None], np.ones(len(samples)))
    cost = Cost(*(float(x) for x in found / scale))
    predicted = features @ (found / scale)
    return cost, float(np.median(np.abs(predicted / measured - 1)))


class Drawn(NamedTuple):
    """Random tensors on a device. Off the CPU, batches are larger, and images have their channels last, as in training."""

    device: str
    dtype: torch.dtype

    def tensor(self, *size: int) -> Tensor:
        """Of this size."""
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def images(self, rows: int, channels: int, size: int) -> Tensor:
        """Of shape (rows, channels, size, size)."""
        images = self.tensor(rows, channels, size, size)
        return images if self.device == "cpu" else images.contiguous(memory_format=torch.channels_last)

    def places(self) -> Iterator[tuple[int, int]]:
        """Rows of a batch, and pixels of a side."""
        for rows, size in _PLACES:
            yield rows if self.device == "cpu" else 16 * rows, size

    def maps(self) -> Iterator[tuple[int, int, int, int]]:
        """Rows, size, C_in, C_out."""
        for (rows, size), (into, out) in itertools.product(self.places(), _CHANNELS):
            yield rows, size, into, out


def _thin(drawn: Drawn) -> Iterator[Case]:
    operation = _geometry(1)
    for (rows, size, into, _), rank in itertools.product(drawn.maps(), _RANKS):
        places = rows * size * size
        x = drawn.images(rows, into, size)
        flat = operation.flat(x, operation.channels_last(x))
        matrix, z = drawn.tensor(rank, into), drawn.tensor(flat.shape[0], rank, flat.shape[2])
        yield places * rank * into, places * (rank + into), [partial(product, matrix, flat), partial(outer, z, flat)]


def _dense(drawn: Drawn) -> Iterator[Case]:
    for (rows, size, into, out), side in itertools.product(drawn.maps(), (1, 3)):
        places = rows * size * size
        x, g = (drawn.images(rows, n, size) for n in (into, out))
        weight = drawn.tensor(out, into, side, side)
        run = partial(_geometry(side).backward, g, x, weight, (False, True))
        yield places * weight.numel(), places * (into + out) + weight.numel(), [run]


def _depthwise(drawn: Drawn) -> Iterator[Case]:
    operation = _geometry(3)
    for (rows, size), rank in itertools.product(drawn.places(), _RANKS):
        places = rows * size * size
        z, u = (drawn.images(rows, rank, size) for _ in range(2))
        kernel = drawn.tensor(rank, 9)
        runs: list[Callable[[], object]] = [
            partial(operation.core, z, kernel),
            partial(operation.core_backward, u, z, kernel, True),
        ]
        yield places * rank * 9, 2 * places * rank, runs


def _build(drawn: Drawn) -> Iterator[Case]:
    wide = drawn._replace(dtype=torch.float32)  # weights and factors stay as they are
    for (into, out), side, rank in itertools.product(_CHANNELS, (1, 3), _RANKS):
        weight = wide.tensor(out, into, side, side)
        maps = (wide.tensor(*size) for size in ((out, rank), (rank, side * side), (rank, into)))
        yield rank * weight.numel(), 3 * weight.numel(), [partial(Bottleneck(*maps).added_to, weight, 1.0)]


def _geometry(side: int) -> Convolution:
    return Convolution((side, side), (1, 1), (side // 2, side // 2), (1, 1))
