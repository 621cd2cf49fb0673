"""The multiple-choice knapsack: one option per layer, least error within a budget, with a proof."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array


@dataclass(frozen=True)
class Packed:
    """A choice of one option per group.

    Attributes:
        picks: the index of the option of each group.
        error: their errors together.
        cost: their costs together.
        bound: no choice within the budget has a lower error.
    """

    picks: tuple[int, ...]
    error: float
    cost: int
    bound: float

    @property
    def gap(self) -> float:
        """How far the error may be above the best possible, as a share of it."""
        return max(self.error - self.bound, 0.0) / self.error if self.error > 0 else 0.0


def pack(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int) -> Packed:
    """minimise Σ_l e_l(i_l) subject to Σ_l c_l(i_l) ≤ budget, one i_l per group, by branch and bound (HiGHS).

    Args:
        errors, costs: per group, per option; every group has an option of cost 0.
        budget: of the costs together.
    """
    kept = [_undominated(e, c) for e, c in zip(errors, costs, strict=True)]
    ceiling = sum(max(e) for e in errors)
    found = _packed(errors, costs, budget, kept, ceiling)
    while 0 < found.error < ceiling / 10:  # the solver ignores a millionth: without the worst options that is less
        ceiling = found.error
        kept = [[option for option in options if errors[g][option] <= ceiling] for g, options in enumerate(kept)]
        finer = _packed(errors, costs, budget, kept, ceiling)
        if finer.error > ceiling:  # out of time
            break
        found = finer
    return found


def _packed(
    errors: Sequence[Sequence[float]], costs: Sequence[Sequence[int]], budget: int, kept: list[list[int]], ceiling: float
) -> Packed:
    """`pack` with the options that are ``kept``, where no choice worth having has an error above ``ceiling``."""
    groups = np.repeat(np.arange(len(kept)), [len(options) for options in kept])
    flat = [(group, option) for group, options in enumerate(kept) for option in options]
    cost = np.array([costs[g][o] for g, o in flat], dtype=float)
    error = np.array([errors[g][o] for g, o in flat], dtype=float)
    scale = 1e3 / max(ceiling, np.finfo(float).tiny)
    one_each = csr_array((np.ones(len(flat)), (groups, np.arange(len(flat)))), shape=(len(kept), len(flat)))
    limit, bound = float(budget), None
    while True:
        with _stdout_closed():
            solved = milp(
                error * scale,
                integrality=np.ones(len(flat)),
                bounds=(0, 1),
                constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost[None, :], -np.inf, limit)],
                options={"mip_rel_gap": 0.0, "time_limit": 60.0},
            )
        if solved.x is None:  # nothing found in time: the option of cost 0 everywhere is always there
            picks, bound = tuple(int(np.argmin(c)) for c in costs), 0.0
            break
        taken = [
            max((i for i, (g, _) in enumerate(flat) if g == group), key=lambda i: solved.x[i]) for group in range(len(kept))
        ]
        picks = tuple(flat[i][1] for i in taken)
        if bound is None:  # of the whole budget, also where the limit is lowered below
            bound = float(solved.mip_dual_bound) / scale
        over = sum(c[i] for c, i in zip(costs, picks, strict=True)) - budget
        if over <= 0:
            break
        limit -= over  # the solver's tolerance let it go above by a little
    total = float(sum(e[i] for e, i in zip(errors, picks, strict=True)))
    return Packed(picks, total, sum(c[i] for c, i in zip(costs, picks, strict=True)), min(max(bound, 0.0), total))


@contextmanager
def _stdout_closed() -> Iterator[None]:
    """HiGHS prints a line of its own at times, past Python, in the middle of what a command prints."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _undominated(errors: Sequence[float], costs: Sequence[int]) -> list[int]:
    """Options that no other beats in cost and error at once."""
    best = float("inf")
    kept = []
    for option in sorted(range(len(errors)), key=lambda i: (costs[i], errors[i])):
        if errors[option] < best:
            kept.append(option)
            best = errors[option]
    return kept
