"""All slots of one backbone, filled and emptied together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from tensornet.attach import Attached, Content, Router, attach, why_not
from tensornet.errors import NonFiniteError, StateError
from tensornet.paths.branch import Way, transformed
from tensornet.paths.layers import operation
from tensornet.paths.together import Wanted, made_together, saved_elsewhere
from tensornet.plan import TensorPlan
from tensornet.versions import state

Contents = Mapping[str, Content]
"""What a task puts into the slots, by module path."""

NO_CONTENTS: Contents = {}
"""Of the untouched backbone."""

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
        StateError: a layer is scripted, something has replaced its forward, or its class cannot be replaced; nothing is
            attached.
    """

    def __init__(self, backbone: nn.Module, norms: Sequence[str], head: str | None, plans: Sequence[TensorPlan]) -> None:
        check_finite(backbone, plans)
        self.backbone = backbone
        self.head = head
        self.contents = NO_CONTENTS
        self.modules: dict[str, Attached] = {}
        self._admitted: set[tuple[str, str]] = set()
        self._tree: dict[str, tuple[nn.Module, str, nn.Module]] = {}
        owners = [path for path, module in backbone.named_modules() if module._buffers and not _is_scripted(module)]
        heads = [] if head is None else [head]
        self._check_own_forward([*norms, *owners, *heads, *_layers(plans)])
        for path in dict.fromkeys([*norms, *owners]):
            self._attach(path, frozen=True)
        if head is not None:
            self._attach(head, head=True)
        self._attach_targets(plans)
        self.keep_scripted_in_eval()

    def admit(self, plans: Sequence[TensorPlan]) -> None:
        """Attach every layer that has a weight in ``plans``.

        Raises:
            NonFiniteError: such a weight holds NaN or infinity; nothing is attached.
            StateError: as of the class; nothing is attached.
        """
        plans = [plan for plan in plans if not self._admitted.issuperset(_places(plan))]
        check_finite(self.backbone, plans)
        self._check_own_forward(_layers(plans))
        self._attach_targets(plans)

    def _check_own_forward(self, paths: Sequence[str]) -> None:
        for path in paths:
            module = self.backbone.get_submodule(path)
            kind = type(module).__name__
            if _is_scripted(module):
                raise StateError(f"{path}: a scripted module cannot be adapted; got {kind}")
            if "forward" in vars(module):
                raise StateError(
                    f"{path}: something has replaced the forward of this {kind}; adapt the backbone before that"
                )
            if (why := why_not(module)) is not None:
                raise StateError(f"{path}: {why}")

    def check_places(self) -> None:
        """Every attached layer has to be where it was when it was attached.

        Raises:
            StateError: it was replaced, so that no task would reach what is there now.
        """
        for path, (parent, name, module) in self._tree.items():
            if parent._modules.get(name) is not module:
                raise StateError(
                    f"{path}: this {type(module).__name__} was replaced after the backbone was adapted, and no task reaches "
                    "what is there now; change the backbone first, then adapt it"
                )

    def keep_scripted_in_eval(self) -> None:
        """Scripted modules cannot be attached: whoever sets the mode of the backbone has to leave theirs."""
        for module in self.backbone.modules():
            if _is_scripted(module):
                module.eval()

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
        parent, names = self.backbone, path.split(".") if path else []
        for depth, name in enumerate(names, 1):
            child = parent.get_submodule(name)
            self._tree[".".join(names[:depth])] = parent, name, child
            parent = child

    def fill(self, contents: Contents, way: Way) -> None:
        """Put ``contents`` into the slots, deltas to be computed in this ``way``; slots without any are emptied."""
        self.contents = contents
        for path, module in self.modules.items():
            slot, content = module._slot, contents.get(path, _NOTHING)
            slot.several_tasks_passed = False
            if content.deltas:
                slot.operation = operation(module)  # a user may have set another stride or dilation
            slot.deltas, slot.replacement = content.deltas, content.replacement
            slot.branch, slot.way = content.branch(module), way

    def sums_made(self) -> AbstractContextManager[None]:
        """The context of one forward in train mode: sums W + ΔW that its layers are likely to need are made together."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or transformed() or saved_elsewhere():
            return nullcontext()
        wanted = []
        for path in self.contents:
            module = self.modules[path]
            branch, weight = module._slot.branch, module._parameters.get("weight")
            if branch is None or branch.plain is None or weight is None or not module.training:
                continue
            call, known = branch.plain
            if state(weight) == known:  # else it was offloaded, and comes when its layer is called
                wanted.append(Wanted(module._slot.number, call, weight))
        return made_together(wanted) if wanted else nullcontext()

    def forget_kept(self) -> None:
        """Drop every W + ΔW that is kept."""
        for module in self.modules.values():
            module._slot.cache.clear()

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
            weight = member.target.weight_in(backbone)
            if not weight.is_meta and not torch.isfinite(weight).all():
                where = f"{member.target.module}: '{member.target.parameter}'"
                raise NonFiniteError(f"{where} holds NaN or infinity; repair or reload the backbone first")


def _layers(plans: Sequence[TensorPlan]) -> list[str]:
    """Paths of the layers that plans change."""
    return sorted({path for plan in plans for path, _ in _places(plan)})


def _places(plan: TensorPlan) -> set[tuple[str, str]]:
    """Every (module, parameter) that a tensor changes."""
    return {place for member in plan.fold.members for place in member.target.places}


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)
