"""A task: all that is its own."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tensornet.attach import Content, released
from tensornet.config import AdaptConfig
from tensornet.decompositions import Decomposition
from tensornet.delta import Delta
from tensornet.errors import StateError, UnknownNameError
from tensornet.names import from_key, to_key
from tensornet.plan import TensorPlan


class Task(nn.Module):
    """Deltas, normalisation layers and head of one task; `parameters()` is what to train.

    The parameters are grouped under `deltas.`, `norms.` and `head.`; paths inside are written with `/`.

    Args:
        name: of the task.
        config: what it was made from.
        plans: its tensors.
        decompositions: the factors of each tensor, in the order of ``plans``.
        norms: its own normalisation layers by module path.
        head: takes the place of the backbone's head; None keeps that. Copies of the backbone's layers in it become ordinary.
        head_path: where the backbone's head is.

    Attributes:
        classes: what the outputs of the head stand for, in their order; None where no one has said so. `save_task` writes
            them, `tensornet train` sets them.
    """

    def __init__(
        self,
        name: str,
        config: AdaptConfig,
        plans: Sequence[TensorPlan],
        decompositions: Sequence[Decomposition],
        norms: dict[str, nn.Module],
        head: nn.Module | None,
        head_path: str | None,
    ) -> None:
        super().__init__()
        self._name = name
        self.config = config
        self.plans = {plan.fold.name: plan for plan in plans}
        self.deltas = nn.ModuleDict({to_key(p.fold.name): d for p, d in zip(plans, decompositions, strict=True)})
        self.norms = nn.ModuleDict({to_key(path): norm for path, norm in norms.items()})
        self.head = None if head is None else released(head)
        self.head_path = head_path
        self.classes: Sequence[str] | None = None
        self._parts: list[nn.Module | None] = []
        self._contents: dict[str, Content] | None = None

    @property
    def name(self) -> str:
        """Under which the network knows the task."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        raise StateError(
            f"task {self._name!r} keeps its name: save it, load it as load_task(path, name={name!r}), and remove this one"
        )

    def tensors(self) -> Iterator[tuple[TensorPlan, Decomposition]]:
        """Every decomposed tensor, in network order."""
        for plan, module in zip(self.plans.values(), self.deltas.values(), strict=True):
            assert isinstance(module, Decomposition)
            yield plan, module

    def own_norms(self) -> dict[str, nn.Module]:
        """The task's normalisation layers by module path."""
        return {from_key(key): norm for key, norm in self.norms.items()}

    def delta(self, layer: str) -> Tensor:
        """ΔW of one weight, given as a module path (with the parameter where that is not `weight`).

        Raises:
            UnknownNameError: the task has no delta there.
        """
        for plan, module in self.tensors():
            for member in plan.fold.members:
                if layer == member.target.name or any(layer == path for path, _ in member.target.places):
                    return Delta(module, plan.fold, member, plan.scale).dense()
        known = [member.target.name for plan, _ in self.tensors() for member in plan.fold.members]
        raise UnknownNameError("layer with a delta", layer, known)

    def squared_norm(self) -> Tensor:
        """Σ ‖scale · A‖² over all tensors, a differentiable scalar, by Gram matrices of the factors where it can be."""
        norms = []
        for plan, module in self.tensors():
            factors = module.factors()
            own = module.inner_product(factors, factors, module.shape)
            norms.append(plan.scale**2 * (module.to_tensor().square().sum() if own is None else own))
        return torch.stack(norms).sum() if norms else torch.zeros(())

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of deltas, norms and head, and their total."""
        parts = {"deltas": self.deltas, "norms": self.norms, "head": self.head}
        counts = {
            name: sum(p.numel() for p in module.parameters()) if module is not None else 0 for name, module in parts.items()
        }
        return counts | {"total": sum(counts.values())}

    def contents(self) -> dict[str, Content]:
        """What the task puts into the slots of the backbone, by module path; the same object while its modules are."""
        parts = [*self.deltas.values(), *self.norms.values(), self.head]
        if self._contents is None or len(parts) != len(self._parts) or not all(map(operator.is_, parts, self._parts)):
            self._parts, self._contents = parts, self._made()
        return self._contents

    def _made(self) -> dict[str, Content]:
        contents: dict[str, Content] = {}
        for plan, module in self.tensors():
            for member in plan.fold.members:
                delta = Delta(module, plan.fold, member, plan.scale)
                for path, parameter in member.target.places:
                    contents.setdefault(path, Content()).deltas[parameter] = delta
        for path, norm in self.own_norms().items():
            contents.setdefault(path, Content()).replacement = norm
        if self.head is not None and self.head_path is not None:
            contents[self.head_path] = Content(replacement=self.head)
        return contents

    def __repr__(self) -> str:
        counts = self.parameter_counts()
        kinds: dict[str, int] = {}
        for plan, _ in self.tensors():
            label = f"{plan.decomposition} {plan.rank}"
            kinds[label] = kinds.get(label, 0) + 1
        common = ", ".join(f"{n} × {label}" for label, n in sorted(kinds.items(), key=lambda kv: -kv[1])[:3])
        more = "" if len(kinds) <= 3 else f", {len(kinds) - 3} other kinds"
        head = (
            "the backbone's own"
            if self.head is None
            else repr(self.head)
            if not list(self.head.children())
            else type(self.head).__name__
        )
        return (
            f"Task({self.name!r}: {counts['total']:,} parameters\n"
            f"  deltas {counts['deltas']:,}: {common or 'none'}{more}\n"
            f"  norms  {counts['norms']:,}: {len(self.norms)} layers\n"
            f"  head   {counts['head']:,}: {head})"
        )
