"""The tensors that a config asks for: which weights, which decomposition, which rank; no factor is built here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tensornet.config import AdaptConfig, Choice
from tensornet.decompositions import Decomposition, decomposition
from tensornet.errors import RankError, ShapeError, bulleted
from tensornet.foldings import Fold, check_folds, check_names
from tensornet.registry import FOLDINGS
from tensornet.shapes import Rank, Shape
from tensornet.targets import Target, select


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of a task, before or beside its factors.

    Attributes:
        fold: the weights that make it up.
        decomposition: registered name.
        rank: as the decomposition stores it.
        folding: registered name.
        scale: the deltas are multiplied by it.
    """

    fold: Fold
    decomposition: str
    rank: Rank
    folding: str
    scale: float

    @property
    def cls(self) -> type[Decomposition]:
        """The class of the decomposition."""
        return decomposition(self.decomposition)

    @property
    def shape(self) -> Shape:
        """The shape of the tensor, modes in the order that the decomposition stores."""
        return self.fold.shape(self.cls.chain)

    @property
    def parameters(self) -> int:
        """How many numbers the factors hold."""
        return self.cls.parameter_count(self.shape, self.rank)


def plan(backbone: nn.Module, config: AdaptConfig, head: str | None) -> list[TensorPlan]:
    """The tensors that ``config`` asks of ``backbone``, in network order.

    Raises:
        TargetError: as `targets.select`.
        ShapeError: a folding of the user's does not place every weight once, or names two tensors alike.
        RankError: ranks or budgets that shapes cannot serve; every tensor concerned is listed.
    """
    groups: dict[Choice, list[Target]] = {}
    for target, choice in select(backbone, config, head):
        groups.setdefault(choice, []).append(target)
    plans: list[TensorPlan] = []
    problems: list[str] = []
    for choice, targets in groups.items():
        assert choice.decomposition is not None
        cls = decomposition(choice.decomposition)
        folds = FOLDINGS.get(config.folding)(targets)
        check_folds(config.folding, folds, targets)
        for fold in folds:
            try:
                rank = _rank(cls, fold.shape(cls.chain), choice)
            except (RankError, ShapeError) as error:
                problems.append(f"{fold.name}: {error}")
                continue
            plans.append(TensorPlan(fold, choice.decomposition, rank, config.folding, config.scale))
    if problems:
        lines = bulleted(problems)
        advice = "change the rank or budget, exclude these layers, or give them their own under `layers`"
        raise RankError(f"{len(problems)} of {len(plans) + len(problems)} tensors cannot be made:{lines}\n{advice}")
    check_names(config.folding, [own.fold for own in plans])
    return sorted(plans, key=lambda p: p.fold.members[0].target.order)


def parameter_total(plans: Sequence[TensorPlan]) -> int:
    """How many numbers the factors of all tensors hold together."""
    return sum(p.parameters for p in plans)


def _rank(cls: type[Decomposition], shape: Shape, choice: Choice) -> Rank:
    if choice.budget is not None:
        return cls.rank_for_budget(shape, math.floor(choice.budget * math.prod(shape)))
    assert choice.rank is not None
    return cls.feasible_rank(shape, choice.rank)
