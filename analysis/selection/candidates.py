"""What one layer's delta could be stored as: every decomposition at a ladder of ranks, with its cost and its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analysis.kinds import ROUNDING, Cost
from analysis.selection.calibration import Seen
from analysis.selection.changes import Change
from tensornet.config import NONE
from tensornet.decompositions import Decomposition, Factors, Spectrum, decomposition
from tensornet.delta import gathered
from tensornet.errors import ConfigError
from tensornet.foldings import Fold
from tensornet.foldings import layer as fold_per_layer
from tensornet.shapes import Rank, Shape


@dataclass(frozen=True)
class Candidate:
    """One way to store one layer's delta.

    Attributes:
        decomposition: registered name, or "none".
        rank: as the decomposition stores it; None for no delta.
        parameters: how many numbers are stored.
        cost: in the unit of the budget.
        error: squared, ‖ΔW − ΔŴ‖² or as `Measure` weighs it; 0 where it is rounding.
        factors: of ΔŴ, modes in the order of the decomposition.
        note: what a reader should know.
    """

    decomposition: str
    rank: Rank | None
    parameters: int
    cost: int
    error: float
    factors: Factors
    note: str = ""


class Measure:
    """The squared error of an approximation of one layer's delta.

    Without calibration ‖ΔW − ΔŴ‖². With it E‖(ΔW − ΔŴ) x‖² / E‖W x‖² over the inputs x that the layer saw, from their
    second moments: the error of the layer's output as a share of that output, W being the tuned weight.

    Args:
        change: the layer's delta.
        seen: what the layer saw; None without calibration.
    """

    def __init__(self, change: Change, seen: Seen | None) -> None:
        self.fold = fold_of(change)
        self._deltas = {change.target.name: change.delta.double()}
        self._root = None if seen is None else seen.root()
        matrix = self._matrix(gathered(self._deltas, self.fold, False))
        if self._root is not None and change.weight is not None:
            whole = self._matrix(gathered({change.target.name: change.weight.double()}, self.fold, False))
            size = (whole @ self._root).norm()
            if not size:
                raise ConfigError(
                    f"{change.target.name} puts out nothing but zeros on the calibration data, so no error can be a share "
                    "of that; leave the layer out, or choose without calibration"
                )
            self._root = self._root / size
        self._wanted = matrix if self._root is None else matrix @ self._root
        self.energy = float(self._wanted.square().sum())

    def tensor(self, chain: bool) -> Tensor:
        """ΔW with its modes in the order of a decomposition."""
        return gathered(self._deltas, self.fold, chain)

    def error(self, cls: type[Decomposition], factors: Factors) -> float:
        """Of the tensor that ``factors`` stand for."""
        shape = self.fold.shape(cls.chain)
        bottleneck = cls.bottleneck(factors, shape)
        if bottleneck is not None and self._root is not None and len(self._root) == 1:
            found = bottleneck.out @ (bottleneck.rows() @ self._root[0])
            return float((found - self._wanted[0]).square().sum())
        order = self.fold.order(cls.chain)
        tensor = cls.reconstruct(factors, shape).permute([order.index(mode) for mode in self.fold.order(False)])
        matrix = self._matrix(tensor)
        return float(((matrix if self._root is None else matrix @ self._root) - self._wanted).square().sum())

    def _matrix(self, tensor: Tensor) -> Tensor:
        """(C_out, C_in, k²) as (groups, C_out / groups, C_in · k²), the groups being those of the inputs' moments."""
        groups = 1 if self._root is None else len(self._root)
        return tensor.reshape(groups, tensor.shape[0] // groups, -1)


def candidates(
    change: Change, seen: Seen | None, unit: Cost, ladder: Mapping[str, Sequence[int]], seed: int
) -> list[Candidate]:
    """No delta at all, and every decomposition at its ranks.

    With calibration the input channels are weighed by their second moments before the tensor is decomposed, and the factor
    of that mode is unweighed after it, so that directions that the layer seldom sees cost no rank.

    Args:
        change, seen: of the layer.
        unit: of the cost.
        ladder: ranks by the name of the decomposition.
        seed: of the decompositions.
    """
    measure = Measure(change, seen)
    if not measure.energy:
        return [Candidate(NONE, None, 0, 0, 0.0, {}, "it changes nothing")]
    found = [Candidate(NONE, None, 0, 0, measure.energy, {})]
    root, inverse = (None, None) if seen is None else seen.channel_root(measure.fold.modes["in"])
    spectra: dict[tuple[bool, bool], Spectrum] = {}
    for name in sorted(ladder, key=lambda name: decomposition(name).chain):
        cls = decomposition(name)
        shape, place = measure.fold.shape(cls.chain), measure.fold.order(cls.chain).index("in")
        weigh = root if _can_be_weighed(cls, shape, place) else None
        for rung in cls.ladder(_spectrum(spectra, measure, cls.chain, weigh), ladder[name], seed):
            factors = rung.factors
            if weigh is not None and inverse is not None:
                factors = cls.mode_product(factors, shape, place, inverse) or factors
            error = rung.error if seen is None else measure.error(cls, factors)
            if error <= ROUNDING * measure.energy:
                error = 0.0  # or a budget would be spent on telling roundings apart
            stored = {factor: tensor.to(change.delta.dtype) for factor, tensor in factors.items()}
            parameters, price = cls.parameter_count(shape, rung.rank), cost(change, seen, unit, name, rung.rank)
            found.append(Candidate(name, rung.rank, parameters, price, error, stored, rung.note))
    return found


def _can_be_weighed(cls: type[Decomposition], shape: Shape, mode: int) -> bool:
    """Whether a tensor of this decomposition stays one when it is multiplied along a mode."""
    sizes = cls.factor_shapes(shape, cls.feasible_rank(shape, 1))
    factors = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
    return cls.mode_product(factors, shape, mode, torch.empty(shape[mode], shape[mode], device="meta")) is not None


def fold_of(change: Change) -> Fold:
    """The tensor of one weight."""
    (fold,) = fold_per_layer([change.target])
    return fold


def cost(change: Change, seen: Seen | None, unit: Cost, name: str, rank: Rank) -> int:
    """What a decomposition at a rank costs, from shapes alone.

    Multiply-adds are those of one sample with the delta on the activations, or of the layer's own weight where the
    decomposition has no such form.
    """
    cls, fold = decomposition(name), fold_of(change)
    shape = fold.shape(cls.chain)
    if unit != "multiply_adds":
        return cls.parameter_count(shape, rank) * (change.itemsize if unit == "bytes" else 1)
    assert seen is not None
    sizes = cls.factor_shapes(shape, cls.feasible_rank(shape, rank))
    bottleneck = cls.bottleneck({factor: torch.empty(size, device="meta") for factor, size in sizes.items()}, shape)
    if bottleneck is None or change.target.transposed or len(seen.moment) > 1:  # no branch beside groups
        return whole(change, seen, unit)
    out, core, into = bottleneck
    before = into.numel() * seen.entered if into is not None else 0
    return (before + ((core.numel() if core is not None else 0) + out.numel()) * seen.applied) // seen.samples


def whole(change: Change, seen: Seen | None, unit: Cost) -> int:
    """What the layer's own weight costs."""
    size = change.delta.numel()
    if unit == "multiply_adds":
        assert seen is not None
        return size * (seen.entered if change.target.transposed else seen.applied) // seen.samples
    return size * (change.itemsize if unit == "bytes" else 1)


def worthwhile(change: Change, name: str, ranks: Sequence[int]) -> list[int]:
    """Those of ``ranks`` whose factors hold no more numbers than the weight itself."""
    cls, fold = decomposition(name), fold_of(change)
    shape = fold.shape(cls.chain)
    return [r for r in ranks if cls.parameter_count(shape, cls.within(shape, r)) <= math.prod(shape)]


def _spectrum(known: dict[tuple[bool, bool], Spectrum], measure: Measure, chain: bool, root: Tensor | None) -> Spectrum:
    """The spectrum of the layer's delta, its input channels weighed by ``root``; a chain shares the bases of the others."""
    key = (chain, root is not None)
    if key not in known:
        other = known.get((not chain, root is not None))
        if other is not None:
            order, wanted = measure.fold.order(not chain), measure.fold.order(chain)
            known[key] = other.permuted([order.index(mode) for mode in wanted])
        else:
            tensor = measure.tensor(chain)
            if root is not None:
                place = measure.fold.order(chain).index("in")
                tensor = torch.tensordot(root, tensor, ([1], [place])).movedim(0, place)
            known[key] = Spectrum(tensor)
    return known[key]
