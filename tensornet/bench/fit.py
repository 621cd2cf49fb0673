"""The numbers of the rule that chooses how a layer is computed, fitted to what this machine measures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls

from tensornet.bench.clock import typical
from tensornet.decompositions import Bottleneck
from tensornet.paths.layers import Convolution, outer, product
from tensornet.paths.rule import Cost, Costs

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


def fit(device: str = "cpu", repeats: int = 5, limit: int | None = None) -> tuple[Costs, dict[str, float]]:
    """Costs by non-negative least squares on relative errors, over a grid of shapes as convolutional networks have them.

    Args:
        device: to measure on.
        repeats: of each measurement; its median counts.
        limit: measure only so many shapes of each kind.

    Returns:
        The costs, and for each kind of operation the median relative error of what they predict.
    """
    kinds: dict[str, Callable[[str], Iterator[Case]]] = {
        "thin": _thin,
        "dense": _dense,
        "depthwise": _depthwise,
        "build": _build,
    }
    costs: dict[str, Cost] = {}
    errors: dict[str, float] = {}
    with torch.no_grad():
        for kind, cases in kinds.items():
            samples = [
                Sample(products, numbers, sum(typical(run, repeats, device) for run in runs) / _OPERATIONS[kind])
                for products, numbers, runs in itertools.islice(cases(device), limit)
            ]
            costs[kind], errors[kind] = _fitted(samples)
    return Costs(**costs), errors


def _fitted(samples: list[Sample]) -> tuple[Cost, float]:
    measured = np.array([sample.seconds for sample in samples])
    features = np.array([[1.0, sample.products, sample.numbers] for sample in samples])
    scale = features.max(0)
    found, _ = nnls(features / scale / measured[:, None], np.ones(len(samples)))
    cost = Cost(*(float(x) for x in found / scale))
    predicted = features @ (found / scale)
    return cost, float(np.median(np.abs(predicted / measured - 1)))


def _maps(device: str) -> Iterator[tuple[int, int, int, int]]:
    """Rows, size, C_in, C_out."""
    for (rows, size), (into, out) in itertools.product(_PLACES, _CHANNELS):
        yield rows, size, into, out


def _thin(device: str) -> Iterator[Case]:
    operation = _geometry(1)
    for (rows, size, into, _), rank in itertools.product(_maps(device), _RANKS):
        places = rows * size * size
        flat = operation.flat(torch.randn(rows, into, size, size, device=device), False)
        matrix, z = torch.randn(rank, into, device=device), torch.randn(flat.shape[0], rank, flat.shape[2], device=device)
        yield places * rank * into, places * (rank + into), [partial(product, matrix, flat), partial(outer, z, flat)]


def _dense(device: str) -> Iterator[Case]:
    for (rows, size, into, out), side in itertools.product(_maps(device), (1, 3)):
        places = rows * size * size
        x, g = (torch.randn(rows, n, size, size, device=device) for n in (into, out))
        weight = torch.randn(out, into, side, side, device=device)
        run = partial(_geometry(side).backward, g, x, weight, (False, True))
        yield places * weight.numel(), places * (into + out) + weight.numel(), [run]


def _depthwise(device: str) -> Iterator[Case]:
    operation = _geometry(3)
    for (rows, size), rank in itertools.product(_PLACES, _RANKS):
        places = rows * size * size
        z, u = (torch.randn(rows, rank, size, size, device=device) for _ in range(2))
        kernel = torch.randn(rank, 9, device=device)
        runs: list[Callable[[], object]] = [
            partial(operation.core, z, kernel),
            partial(operation.core_backward, u, z, kernel, True),
        ]
        yield places * rank * 9, 2 * places * rank, runs


def _build(device: str) -> Iterator[Case]:
    for (into, out), side, rank in itertools.product(_CHANNELS, (1, 3), _RANKS):
        weight = torch.randn(out, into, side, side, device=device)
        maps = (torch.randn(*size, device=device) for size in ((out, rank), (rank, side * side), (rank, into)))
        yield rank * weight.numel(), 3 * weight.numel(), [partial(Bottleneck(*maps).added_to, weight, 1.0)]


def _geometry(side: int) -> Convolution:
    return Convolution((side, side), (1, 1), (side // 2, side // 2), (1, 1))
