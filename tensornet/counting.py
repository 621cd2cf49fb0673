"""What tasks weigh, from shapes alone: no factor is built, and a backbone on the meta device will do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tensornet.config import AdaptConfig
from tensornet.norms import find_norms, task_norms
from tensornet.plan import TensorPlan, plan
from tensornet.targets import candidates, find_head, in_head


@dataclass(frozen=True)
class Count:
    """Parameters of a backbone and of its tasks, counted as Factorized Tensor Networks does (arXiv 2310.06124).

    Attributes:
        base: convolution, linear and embedding weights and affine parameters of norms, without the head and without biases.
        deltas, norms: of one task.
        tasks: how many tasks.
        plans: the tensors of one task.
    """

    base: int
    deltas: int
    norms: int
    tasks: int
    plans: tuple[TensorPlan, ...]

    @property
    def total(self) -> int:
        """Backbone and all tasks."""
        return self.base + self.tasks * (self.deltas + self.norms)

    @property
    def ratio(self) -> float:
        """The total over the backbone alone."""
        return self.total / self.base


def parameters_outside(backbone: nn.Module, head: str | None) -> int:
    """Parameters of a backbone without its own head: what the share of a task is taken of."""
    return sum(p.numel() for name, p in backbone.named_parameters() if head is None or not name.startswith(head + "."))


def count_tasks(backbone: nn.Module, config: AdaptConfig, tasks: int = 1) -> Count:
    """What ``tasks`` tasks of ``config`` add to ``backbone``; heads are not counted.

    Raises:
        TargetError, RankError: the config does not suit the backbone.
    """
    head = find_head(backbone, config.head)
    plans = plan(backbone, config, head)
    norms = find_norms(backbone, head)
    affine = {path: sum(p.numel() for p in backbone.get_submodule(path).parameters()) for path in norms}
    outside = [t for t in candidates(backbone) if not in_head(t, head)]
    weights = sum(t.weight_in(backbone).numel() for t in outside)
    own = sum(affine[path] for path in task_norms(config, norms))
    return Count(weights + sum(affine.values()), sum(p.parameters for p in plans), own, tasks, tuple(plans))
