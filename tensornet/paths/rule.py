"""Which way a delta meets its layer where: a rule of shapes, ranks and device, never of history or timing.

Each step of training has two ways. On the weight: build W + ΔW and compute as the layer always does; the gradients of the
factors from the dense gradient of the weight. Through the rank: compute with W, and add what goes through the bottleneck.
The rule adds up what each way costs from three numbers per kind of operation, fitted to measurements
(`tensornet bench --fit`), and takes the cheaper one.

On an accelerator, what takes long is often the processor that launches the operations. There, a step that is on the weight
throughout is left to plain autograd, which launches the fewest, and keeps W + ΔW for the backward.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Way = Literal["weight", "rank"]
Core = Literal["none", "diagonal", "full"]


class Path(NamedTuple):
    """How one layer is computed: the way of its output, of the gradient of its input, and of those of its factors."""

    forward: Way
    inputs: Way
    factors: Way


THROUGH_RANK = Path("rank", "rank", "rank")
ON_WEIGHT = Path("weight", "weight", "weight")
_GRADIENTS: tuple[tuple[Way, Way], ...] = (("weight", "rank"), ("rank", "rank"), ("weight", "weight"))
_WAYS: tuple[Way, ...] = ("weight", "rank")
PATHS = tuple(Path(forward, inputs, factors) for forward in _WAYS for inputs, factors in _GRADIENTS)
_ON_WEIGHT = tuple(path for path in PATHS if path.forward == "weight")
ALLOWED: Mapping[str, tuple[Path, ...]] = {
    "auto": PATHS,
    "output on the weight": _ON_WEIGHT,
    "weight": tuple(path for path in _ON_WEIGHT if path.inputs == "weight"),
    "activations": (THROUGH_RANK,),
}
"""Paths by what is asked for: the three ways of a user, and "output on the weight", which is "auto" in eval mode. There the
output has to have the same bits as that of a kept W + ΔW, which is used without gradients."""


class Call(NamedTuple):
    """One call of an adapted layer, in numbers.

    Attributes:
        outputs, inputs: places of the output and of the input, over all rows of the batch.
        out, into, kernel: C_out, C_in and K of the weight.
        rank_out, rank_in: Q and P of the bottleneck; P = C_in where it has no map into the rank.
        core: whether a core convolution lies inside the rank: none, one number per channel and place, or all pairs.
    """

    outputs: int
    inputs: int
    out: int
    into: int
    kernel: int
    rank_out: int
    rank_in: int
    core: Core


@dataclass(frozen=True)
class Cost:
    """Seconds of an operation: per call, per multiply-add, and per number read or written."""

    call: float
    product: float
    number: float

    def of(self, products: float, numbers: float) -> float:
        """Of one call."""
        return self.call + self.product * products + self.number * numbers


@dataclass(frozen=True, eq=False)  # looked up by identity, in every call of a layer
class Costs:
    """What the operations of a device cost.

    Attributes:
        thin, dense, depthwise: products with thin matrices, convolutions, depthwise convolutions.
        build: sums W + out · rows.
        own: seconds by which a step of autograd of our own is dearer than the plain one; None where the plain one is never
            taken, because it would keep W + ΔW for the backward.
    """

    thin: Cost
    dense: Cost
    depthwise: Cost
    build: Cost
    own: float | None = None

    def plain(self, path: Path) -> bool:
        """Whether a step on this path is left to plain autograd."""
        return self.own is not None and path == ON_WEIGHT

    def total(self, call: Call, path: Path) -> float:
        """Seconds that a training step spends beyond the frozen layer."""
        c = call
        weight = c.out * c.into * c.kernel
        build = self.build.of(c.rank_out * weight, 3 * weight)
        outputs = self.thin.of(c.outputs * c.rank_out * c.out, c.outputs * (c.rank_out + c.out))
        inputs = self.thin.of(c.inputs * c.rank_in * c.into, c.inputs * (c.rank_in + c.into)) if self._has_into(c) else 0.0
        core = self._core(c)
        seconds = build if path.forward == "weight" else outputs + inputs + core
        if path.factors == "weight":
            dense = self.dense.of(c.outputs * weight, c.outputs * c.out + c.inputs * c.into + weight)
            seconds += dense + 2 * self.thin.of(c.rank_out * weight, weight)
            return seconds if self.plain(path) else seconds + build + (self.own or 0)
        seconds += (self.own or 0) + 2 * outputs + 2 * inputs + 3 * core
        return seconds + (build if path.inputs == "weight" else inputs or core)

    def _has_into(self, call: Call) -> bool:
        return call.core != "full" or call.rank_in != call.into

    def _core(self, c: Call) -> float:
        if c.core == "none":
            return 0.0
        numbers = c.inputs * c.rank_in + c.outputs * c.rank_out
        if c.core == "diagonal":
            return self.depthwise.of(c.outputs * c.rank_out * c.kernel, numbers)
        return self.dense.of(c.outputs * c.rank_out * c.rank_in * c.kernel, numbers)


@functools.lru_cache(maxsize=4096)
def choose(call: Call, costs: Costs, allowed: str = "auto") -> Path:
    """The cheapest path for one call, of those that are ``allowed``; among equals the first. See `ALLOWED`."""
    return min(ALLOWED[allowed], key=lambda path: costs.total(call, path))


# fitted on two cores of an AMD EPYC of the fourth generation (Zen 4, AVX-512), float32, PyTorch 2.13
_CPU = Costs(
    thin=Cost(1.1e-5, 1.6e-11, 4.9e-11),
    dense=Cost(9.1e-5, 1.13e-11, 4.3e-11),
    depthwise=Cost(7.8e-5, 8e-11, 0.0),
    build=Cost(1.4e-5, 1.2e-11, 5.7e-11),
)
# fitted on an NVIDIA H100 (80 GB HBM3), TF32 products, channels last, PyTorch 2.11
_CUDA = Costs(
    thin=Cost(1.6e-5, 8.7e-16, 1.1e-12),
    dense=Cost(2.6e-5, 9.2e-15, 2.3e-13),
    depthwise=Cost(3e-5, 0.0, 0.0),
    build=Cost(5.6e-5, 0.0, 0.0),
    own=2.8e-4,
)
COSTS = defaultdict(lambda: _CUDA, cpu=_CPU)
"""By device type; of other accelerators as of CUDA. May be replaced by what `tensornet bench --fit` finds on a machine."""
