"""The choice of decomposition and rank per layer: least error within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from torch import Tensor, nn

from analysis.kinds import Cost, plain
from analysis.selection.calibration import Seen, calibrate
from analysis.selection.candidates import Candidate, candidates, cost, fold_of, whole, worthwhile
from analysis.selection.changes import Change, Network, changes, loaded
from analysis.selection.knapsack import pack
from analysis.selection.plan import Plan, relative
from tensornet.config import NONE
from tensornet.decompositions import Decomposition, decomposition, decompositions
from tensornet.errors import ConfigError, RankError
from tensornet.shapes import Rank

LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)
"""Ranks that are tried for every layer; Tucker and TT also try the ranks per mode that are best at the same parameters."""


def choose(
    base: Network | None,
    tuned: Network | Sequence[Change],
    budget: float,
    decompositions: Sequence[str] | None = None,
    calibration: Tensor | Iterable[Any] | None = None,
    *,
    unit: Cost = "parameters",
    ranks: Sequence[int] = LADDER,
    head: str | None = None,
    seed: int = 0,
) -> Plan:
    """The plan of least error within a budget, by an exact multiple-choice knapsack over all layers.

    minimise Σ_l error_l subject to Σ_l cost_l ≤ budget, error_l = ‖ΔW_l − ΔŴ_l‖²

    Args:
        base: the network before it was tuned; see `changes`.
        tuned: what it became; see `changes`.
        budget: an int in ``unit``; a float in (0, 1] is a share of what the targeted weights themselves cost.
        decompositions: registered names; every one by default.
        calibration: inputs, a batch or an iterable of batches: errors are then those of the layers' outputs as a share
            of the output, E‖(ΔW − ΔŴ) x‖² / E‖W x‖², by the second moments of the inputs x in the tuned network, which
            says much more about accuracy. Needs modules.
        unit: "parameters", "bytes" or "multiply_adds" (of one sample, beside the layer; needs calibration).
        ranks: tried for every layer.
        head: path of the head, which is no target; see `changes`.
        seed: of the decompositions.

    Raises:
        ConfigError: an unknown unit, a budget that is none, or calibration without a module.
        RankError: the budget does not buy the cheapest delta.
        MismatchError, NonFiniteError, TaskFileError: see `changes`.
        UnknownNameError: a decomposition is not registered.
    """
    names = _names(decompositions)
    if unit not in get_args(Cost):
        raise ConfigError(f"a budget is in one of {', '.join(get_args(Cost))}; got {unit!r}")
    amount = _checked(plain(budget), unit)
    if isinstance(base, nn.Module) and isinstance(tuned, str | Path) and Path(tuned).is_dir():
        tuned = loaded(base, Path(tuned))
    found = changes(base, tuned, head)
    seen = _seen(base, tuned, calibration, unit, found)
    total = sum(whole(change, seen.get(change.target.name), unit) for change in found)
    limit = amount if isinstance(amount, int) else math.floor(amount * total)

    def priced(change: Change, name: str, rank: int) -> int:
        return cost(change, seen.get(change.target.name), unit, name, _stored(change, name, rank)[1])

    alive = [change for change in found if change.delta.any()]
    cheapest = min(priced(change, name, 1) for change in alive for name in names)
    if cheapest > limit:
        raise RankError(f"the cheapest delta of any layer costs {cheapest:,} {unit}; the budget is {limit:,}: raise it")
    everywhere = {n: _uniform_rank(lambda r, n=n: sum(priced(c, n, r) for c in alive), limit) for n in names}
    options: list[list[Candidate]] = []
    for change in found:
        ladder = {}
        for name in names:
            kept = worthwhile(change, name, ranks) or [1]
            ladder[name] = sorted({*kept, everywhere[name] or 1})
        own = candidates(change, seen.get(change.target.name), unit, ladder, seed)
        options.append(_lean(own, {_stored(change, n, r) for n, r in everywhere.items() if r is not None}))
    packed = pack([[c.error for c in own] for own in options], [[c.cost for c in own] for own in options], limit)
    picks = [own[i] for own, i in zip(options, packed.picks, strict=True)]
    energy = sum(own[0].error for own in options)
    alone = {n: _alone(found, options, n, r) for n, r in everywhere.items() if r is not None}
    best = min(alone.values(), key=lambda own: sum(c.error for c in own), default=[own[0] for own in options])
    curve = _curve(found, options, names, ranks, limit, energy)
    made = {"budget": limit, "unit": unit, "whole": total, "curve": curve}
    bound, energies = relative(packed.bound, energy), [own[0].error for own in options]
    uniform = _plan(found, best, energies, bound, uniform=None, **made)
    return _plan(found, picks, energies, bound, uniform=uniform, **made)


def _names(asked: Sequence[str] | None) -> list[str]:
    if isinstance(asked, str):
        raise ConfigError(f"decompositions are a list of names; got {asked!r}, so pass [{asked!r}]")
    names = list(dict.fromkeys(decompositions() if asked is None else asked))
    if not names:
        raise ConfigError(f"name at least one decomposition; there is {', '.join(decompositions())}")
    for name in names:
        decomposition(name)
    return names


def _seen(
    base: Network | None,
    tuned: Network | Sequence[Change],
    inputs: Tensor | Iterable[Any] | None,
    unit: Cost,
    found: list[Change],
) -> Mapping[str, Seen]:
    if inputs is None:
        if unit == "multiply_adds":
            raise ConfigError("multiply-adds depend on the size of the inputs: give calibration data, and a network")
        return {}
    network = next((n for n in (tuned, base) if isinstance(n, nn.Module)), None)
    if network is None:
        raise ConfigError("calibration data has to run through the network: give base or tuned as a module")
    return calibrate(network, inputs, found)


def _checked(budget: float, unit: Cost) -> float:
    """The budget, if it is a whole number of its unit or a share."""
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0 or not math.isfinite(budget):
        raise ConfigError(f"a budget is a positive number of {unit}, or a share in (0, 1]; got {budget!r}")
    if isinstance(budget, float) and budget > 1:
        raise ConfigError(
            f"a fractional budget is a share in (0, 1] of the weights; got {budget}: a number of {unit} is an int"
        )
    return budget


def _uniform_rank(price: Any, limit: int) -> int | None:
    """The largest rank that all layers together can have; None where even rank 1 costs more."""
    if price(1) > limit:
        return None
    low, high = 1, 2
    while price(high) <= limit and price(high) > price(low) and high < 2**14:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if price(middle) <= limit else (low, middle)
    return low


def _stored(change: Change, name: str, rank: int) -> tuple[str, Rank]:
    """A decomposition and one int for every rank, as it stores it for this layer."""
    cls = decomposition(name)
    return name, cls.within(fold_of(change).shape(cls.chain), rank)


def _lean(own: list[Candidate], needed: set[tuple[str, Rank]]) -> list[Candidate]:
    """The same candidates without the factors of those that nobody would take."""
    kept = []
    for one in own:
        beaten = any(other.cost <= one.cost and other.error < one.error for other in own)
        kept.append(replace(one, factors={}) if beaten and (one.decomposition, one.rank) not in needed else one)
    return kept


def _alone(found: Sequence[Change], options: Sequence[list[Candidate]], name: str, rank: int) -> list[Candidate]:
    """One decomposition at one rank for every layer, clipped to what each can have or is worth having."""
    picks = []
    for change, own in zip(found, options, strict=True):
        same = [c for c in own if c.decomposition == name]
        exact = [c for c in same if c.rank == _stored(change, name, rank)[1]]
        picks.append(min(exact or same or own[:1], key=lambda c: c.error))
    return picks


def _curve(
    found: Sequence[Change],
    options: Sequence[list[Candidate]],
    names: Sequence[str],
    ranks: Sequence[int],
    limit: int,
    energy: float,
) -> pd.DataFrame:
    """Relative error against cost: each decomposition alone at every rank, and the plan at budgets around this one.

    Where one alone is below the plan at the next lower budget, the plan is made at its cost too.
    """
    points: dict[int, dict[str, float]] = {}
    for name in names:
        for rank in ranks:
            picks = _alone(found, options, name, rank)
            spent = sum(c.cost for c in picks)
            if spent <= 4 * limit:
                points.setdefault(spent, {})[name] = relative(sum(c.error for c in picks), energy)
    errors, costs = [[c.error for c in own] for own in options], [[c.cost for c in own] for own in options]
    planned: dict[int, float] = {}

    def make(budget: int) -> None:
        packed = pack(errors, costs, budget)
        planned[packed.cost] = relative(packed.error, energy)

    for share in (1, 2, 4, 6, 8, 12, 16, 32):
        make(max(limit * share // 8, 1))
    for spent, alone in sorted(points.items()):
        if min(alone.values()) < min((error for cost, error in planned.items() if cost <= spent), default=math.inf):
            make(spent)
    for spent, error in planned.items():
        points.setdefault(spent, {})["plan"] = error
    return pd.DataFrame.from_dict(points, orient="index").sort_index().rename_axis("cost")


def _plan(found: Sequence[Change], picks: Sequence[Candidate], energies: Sequence[float], bound: float, **rest: Any) -> Plan:
    rows = [
        {
            "layer": change.target.name,
            "decomposition": pick.decomposition,
            "rank": pick.rank,
            "parameters": pick.parameters,
            "cost": pick.cost,
            "error": pick.error,
            "relative": relative(pick.error, energy),
            "note": pick.note,
        }
        for change, pick, energy in zip(found, picks, energies, strict=True)
    ]
    table = pd.DataFrame(rows).set_index("layer")
    table["rank"] = pd.Series([pick.rank for pick in picks], index=table.index, dtype=object)  # ints stay ints beside None
    made: dict[str, Decomposition] = {}
    for change, pick in zip(found, picks, strict=True):
        if pick.decomposition != NONE and pick.rank is not None:
            cls = decomposition(pick.decomposition)
            made[change.target.name] = cls.from_factors(fold_of(change).shape(cls.chain), pick.rank, pick.factors)
    return Plan(table, relative(sum(p.error for p in picks), sum(energies)), bound, decompositions=made, **rest)
