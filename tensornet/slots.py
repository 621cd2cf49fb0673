"""All slots of one backbone, filled and emptied together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tensornet.attach import Attached, Content, Router, attach
from tensornet.errors import NonFiniteError, StateError
from tensornet.paths.branch import Way
from tensornet.plan import TensorPlan

Contents = Mapping[str, Content]
"""What a task puts into the slots, by module path."""

_NOTHING = Content()


class Slots:
    """The attached layers of a backbone by module path.

    Args:
        backbone: whose layers are attached.
        norms: paths of its normalisation layers.
        head: path of its head.
        plans: tensors whose weights are attached at once; `admit` attaches more.

    Raises:
        NonFiniteError: a weight in ``plans`` holds NaN or infinity; nothing is attached.
        StateError: something has replaced the forward of a norm or of the head.
    """

    def __init__(self, backbone: nn.Module, norms: Sequence[str], head: str | None, plans: Sequence[TensorPlan]) -> None:
        check_finite(backbone, plans)
        self.backbone = backbone
        self.head = head
        self.modules: dict[str, Attached] = {}
        self._admitted: set[tuple[str, str]] = set()
        for path in [*norms, *([head] if head is not None else [])]:
            module = backbone.get_submodule(path)
            if "forward" in vars(module):
                kind = type(module).__name__
                raise StateError(
                    f"{path}: something has replaced the forward of this {kind}; adapt the backbone before that"
                )
        owners = [path for path, module in backbone.named_modules() if module._buffers and not _is_scripted(module)]
        for path in dict.fromkeys([*norms, *owners]):
            self._attach(path, frozen=True)
        if head is not None:
            self._attach(head, head=True)
        self._attach_targets(plans)

    def admit(self, plans: Sequence[TensorPlan]) -> None:
        """Attach every layer that has a weight in ``plans``.

        Raises:
            NonFiniteError: such a weight holds NaN or infinity; nothing is attached.
        """
        plans = [plan for plan in plans if not self._admitted.issuperset(_places(plan))]
        check_finite(self.backbone, plans)
        self._attach_targets(plans)

    def _attach_targets(self, plans: Sequence[TensorPlan]) -> None:
        parameters: dict[str, list[str]] = {}
        for plan in plans:
            self._admitted |= _places(plan)
            for path, parameter in sorted(_places(plan)):
                parameters.setdefault(path, []).append(parameter)
        for path, names in parameters.items():
            self._attach(path, tuple(names))

    def _attach(self, path: str, parameters: tuple[str, ...] = (), frozen: bool = False, head: bool = False) -> None:
        module = self.backbone.get_submodule(path)
        attach(module, parameters, frozen=frozen, head=head)
        assert isinstance(module, Attached)
        self.modules[path] = module

    def fill(self, contents: Contents, way: Way) -> None:
        """Put ``contents`` into the slots, deltas to be computed in this ``way``; slots without any are emptied."""
        for path, module in self.modules.items():
            slot, content = module._slot, contents.get(path, _NOTHING)
            slot.several_tasks_passed = False
            slot.deltas, slot.replacement = content.deltas, content.replacement
            slot.branch, slot.way = content.branch(module), way

    def touched(self, every: Sequence[Contents]) -> list[Attached]:
        """The layers that at least one of these contents changes."""
        return [module for path, module in self.modules.items() if any(path in contents for contents in every)]

    @contextmanager
    def routed(self, every: Sequence[Contents], router: Router) -> Iterator[None]:
        """Inside, layers ask ``router``, and each slot holds its content of every segment."""
        for path, module in self.modules.items():
            module._slot.clear()
            module._slot.router = router
            module._slot.contents = [contents.get(path, _NOTHING) for contents in every]
        try:
            yield
        finally:
            for module in self.modules.values():
                module._slot.clear()

    def remember_several_tasks(self) -> None:
        """A backward through what several tasks computed cannot compute a layer again; it will say so."""
        for module in self.modules.values():
            module._slot.several_tasks_passed = True


def check_finite(backbone: nn.Module, plans: Sequence[TensorPlan]) -> None:
    """No adapted weight may hold NaN or infinity.

    Raises:
        NonFiniteError: one does.
    """
    for plan in plans:
        for member in plan.fold.members:
            weight = backbone.get_submodule(member.target.module)._parameters[member.target.parameter]
            if weight is not None and not weight.is_meta and not torch.isfinite(weight).all():
                where = f"{member.target.module}: '{member.target.parameter}'"
                raise NonFiniteError(f"{where} holds NaN or infinity; repair or reload the backbone first")


def _places(plan: TensorPlan) -> set[tuple[str, str]]:
    """Every (module, parameter) that a tensor changes."""
    return {place for member in plan.fold.members for place in member.target.places}


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)
