"""The numbers of the rule that chooses how a layer is computed, fitted to what this machine measures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from tensornet.bench.clock import typical
from tensornet.decompositions import Bottleneck
from tensornet.paths.layers import Convolution, outer, product
from tensornet.paths.rule import Cost, Costs

_PLACES = ((4, 56), (4, 28), (4, 14), (4, 7), (16, 16), (16, 8), (16, 4))
_CHANNELS = ((64, 64), (64, 256), (256, 64), (128, 512), (512, 512), (1024, 256))
_RANKS = (4, 8, 16, 50)
_OPERATIONS = {"thin": 2, "dense": 1, "depthwise": 3, "build": 1}


Case = tuple[float, float, list[Callable[[], object]]]
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
    for (rows, size, into, _), rank in itertools.product(_maps(device), _RANKS):
        places = rows * size * size
        operation = _geometry(1)
        x = torch.randn(rows, into, size, size, device=device)
        flat = operation.flat(x)
        matrix, z = torch.randn(rank, into, device=device), torch.randn(flat.shape[0], rank, flat.shape[2], device=device)
        runs: list[Callable[[], object]] = [
            lambda matrix=matrix, flat=flat: product(matrix, flat),  # type: ignore[misc]
            lambda z=z, flat=flat: outer(z, flat),  # type: ignore[misc]
        ]
        yield places * rank * into, places * (rank + into), runs


def _dense(device: str) -> Iterator[Case]:
    for (rows, size, into, out), side in itertools.product(_maps(device), (1, 3)):
        places, kernel = rows * size * size, side * side
        x, g = (torch.randn(rows, n, size, size, device=device) for n in (into, out))
        weight = torch.randn(out, into, side, side, device=device)
        products, numbers = places * into * out * kernel, places * (into + out) + weight.numel()
        yield products, numbers, [lambda g=g, x=x, w=weight, o=_geometry(side): o.backward(g, x, w, (False, True))]  # type: ignore[misc]


def _depthwise(device: str) -> Iterator[Case]:
    for (rows, size), rank in itertools.product(_PLACES, _RANKS):
        places, operation = rows * size * size, _geometry(3)
        z, u = (torch.randn(rows, rank, size, size, device=device) for _ in range(2))
        kernel = torch.randn(rank, 9, device=device)

        runs: list[Callable[[], object]] = [
            lambda z=z, k=kernel, o=operation: o.core(z, k),  # type: ignore[misc]
            lambda u=u, z=z, k=kernel, o=operation: o.core_backward(u, z, k, True),  # type: ignore[misc]
        ]
        yield places * rank * 9, 2 * places * rank, runs


def _build(device: str) -> Iterator[Case]:
    for (into, out), side, rank in itertools.product(_CHANNELS, (1, 3), _RANKS):
        weight = torch.randn(out, into, side, side, device=device)
        parts = Bottleneck(
            torch.randn(out, rank, device=device),
            torch.randn(rank, side * side, device=device),
            torch.randn(rank, into, device=device),
        )
        yield rank * weight.numel(), 3 * weight.numel(), [lambda parts=parts, weight=weight: parts.added_to(weight, 1.0)]  # type: ignore[misc]


def _geometry(side: int) -> Convolution:
    return Convolution((side, side), (1, 1), (side // 2, side // 2), (1, 1))
