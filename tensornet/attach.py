"""Layers of the backbone with a slot, through which they meet the task that is set.

A layer keeps its place, its parameters and its type: only its class is replaced by a subclass made of `Attached` and that
class, in which the adapted weights are properties. An empty slot leaves the layer what it was.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tensornet.delta import Delta
from tensornet.errors import StateError
from tensornet.hooks import clear_hooks
from tensornet.kept import Kept
from tensornet.paths.branch import Branch, Way, branch, transformed
from tensornet.paths.compiled import numbered
from tensornet.paths.layers import Operation, operation


class Unroutable(StateError):
    """A weight was read outside its layer's forward, where the rows of a mixed batch cannot be told apart."""


class _LookedAt(Tensor):
    """A weight that is read outside its layer's forward while rows of several tasks are at work.

    What is the same for all tasks, such as the dtype, can be had of it; its numbers cannot.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _LOOKS:
            raise Unroutable("an adapted weight is used outside its layer's forward")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


_LOOKS: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_cuda")),
    *(getattr(Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "is_complex", "element_size")),
}


class Content:
    """What one task puts into a slot: deltas by parameter name, and a module that takes the layer's place."""

    __slots__ = ("_branch", "deltas", "replacement")

    def __init__(self, deltas: dict[str, Delta] | None = None, replacement: nn.Module | None = None) -> None:
        self.deltas = deltas or {}
        self.replacement = replacement
        self._branch: tuple[Operation | None, Branch | None] | None = None

    def branch(self, layer: Attached) -> Branch | None:
        """The delta through its rank, where ``layer``, whose slot this content goes into, can take it so."""
        own = layer._slot.operation
        if self._branch is None or self._branch[0] is not own:
            self._branch = own, branch(layer, own, self.deltas)
        return self._branch[1]


class Router(Protocol):
    """Runs one layer for a batch whose rows belong to several tasks; see `mixed`."""

    def run(self, module: Attached, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of ``module`` for all rows; ``forward`` is the layer's own."""


class Slot:
    """What the layer's forward looks at: the content of the task that is set, or one per segment of a mixed batch."""

    def __init__(self) -> None:
        self.is_head = False
        self.operation: Operation | None = None
        self.number = numbered(self)
        self.clear()

    def __getstate__(self) -> dict[str, Any]:
        # a copy or a file has no use for what can be computed again, nor for a batch that is at work in another thread
        return vars(self) | {"cache": {}, "router": None, "contents": [], "inside": False, "on_read": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.number = numbered(self)  # of a copy

    def clear(self) -> None:
        """No task: the layer is the backbone's own."""
        self.deltas: dict[str, Delta] = {}
        self.replacement: nn.Module | None = None
        self.branch: Branch | None = None
        self.way: Way = "auto"
        self.inside = False
        self.router: Router | None = None
        self.contents: list[Content] = []
        self.cache: dict[str, Any] = {}  # what can be computed again
        self.on_read: Callable[[], None] | None = None
        self.several_tasks_passed = False

    def kept(self, name: str, weight: Tensor) -> Tensor:
        """W + ΔW of the task that is set; computed anew where either has changed."""
        delta = self.deltas[name]
        known: Kept | None = self.cache.get(name)
        if known is None or not known.holds(delta, weight):
            known = self.cache[name] = Kept(delta, weight)
        return known.value

    @contextmanager
    def reading_the_backbone(self) -> Iterator[None]:
        """Inside, the layer reads its own W: the delta is added to its output."""
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


class Attached(nn.Module):
    """Mix-in of a layer that has a slot; see `attach`."""

    _slot: Slot
    _base: type[nn.Module]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """`type(layer)(…)` of an attached layer makes an ordinary one."""
        return cls._base(*args, **kwargs)

    def __init_subclass__(cls, **options: Any) -> None:
        """Do nothing: a class that, say, enters its subclasses by name should not enter ours."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        slot = self._slot
        if slot.several_tasks_passed and torch._C._current_graph_task_id() != -1:
            raise StateError(
                "activation checkpointing computes this layer again in backward, where the tasks of a mixed batch or of "
                "forward_tasks are gone; call the network once per task, or checkpoint nothing. If this is the backward "
                "of an ordinary call, set its task again before that call"
            )
        if slot.router is not None:
            return slot.router.run(self, super().forward, args, kwargs)
        if slot.replacement is not None:
            return slot.replacement(*args, **kwargs)
        if slot.branch is not None and len(args) == 1 and not kwargs:
            on_activations = slot.way == "activations"
            wanted = on_activations or torch.is_grad_enabled() or torch.compiler.is_compiling()
            if wanted and slot.branch.takes(self, args[0]):
                return slot.branch.step(self, args[0], slot.way, slot.number)
            if on_activations:
                with slot.reading_the_backbone():
                    y = super().forward(*args)
                return y + slot.branch.beside(*args)
        return super().forward(*args, **kwargs)

    def train(self, mode: bool = True) -> Attached:
        if mode != self.training:
            self._slot.cache.clear()  # training may leave no trace to compare, as steps replayed from a CUDA graph do not
        super().train(mode)
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _blank, (self._base, _properties(type(self)), isinstance(self, AttachedFrozen)), self.__getstate__()  # type: ignore[no-untyped-call]


class AttachedFrozen(Attached):
    """An attached layer that owns buffers: in eval mode whatever happens, so that its running statistics never move."""

    def train(self, mode: bool = True) -> AttachedFrozen:
        super().train(mode)
        self.training = False  # its own mode only: a dropout inside it follows the network
        return self

    def reset_running_stats(self) -> None:
        """Refuse what `torch.optim.swa_utils.update_bn` begins with: it would go on with the norms of every task."""
        raise StateError(
            f"the running statistics of this {self._base.__name__} are the backbone's, which never changes. For those of a "
            "task after its weights were averaged: tensornet.training.statistics.reestimate(net, task, inputs)"
        )


def attach(module: nn.Module, parameters: tuple[str, ...] = (), *, frozen: bool = False, head: bool = False) -> None:
    """Give ``module`` a slot, and properties in place of the named parameters; again for more of them.

    The module is not scripted, and its forward is that of its class.
    """
    base = type(module)
    if isinstance(module, Attached):
        base = module._base
        known = _properties(type(module))
        parameters = (*known, *(name for name in parameters if name not in known))
        frozen = frozen or isinstance(module, AttachedFrozen)
    slot: Slot = module.__dict__.setdefault("_slot", Slot())
    module.__class__ = _attached_class(base, parameters, frozen)  # type: ignore[arg-type]
    slot.is_head = slot.is_head or head
    slot.operation = operation(module)
    if frozen:
        module.training = False


def why_not(module: nn.Module) -> str | None:
    """Why the class of ``module`` cannot be replaced; None where it can."""
    root: Any = getattr(module, "_base", type(module))
    try:
        object.__new__(root).__class__ = _attached_class(root, (), False)
    except TypeError:  # its instances are laid out otherwise: it got its dict from another base than nn.Module
        while issubclass(root.__base__, nn.Module):
            root = root.__base__
        name, first = root.__name__, root.__base__.__name__
        return (
            f"a {type(module).__name__} cannot be given a slot, because {name} has {first} before the module among its "
            f"bases; put {first} last, as in class {name}(nn.Module, {first})"
        )
    return None


def detach(module: nn.Module) -> None:
    """Make ``module`` what it was before `attach`."""
    module.__class__ = module.__class__._base  # type: ignore[attr-defined]
    del module.__dict__["_slot"]


def released(module: nn.Module) -> nn.Module:
    """Undo `attach` in a module that holds copies of parts of the backbone, make those trainable, and return it."""
    for part in [part for part in module.modules() if isinstance(part, Attached)]:
        detach(part)
        part.requires_grad_(True)
    return module


def plain_copy(part: nn.Module) -> nn.Module:
    """An ordinary, trainable copy of a part of the backbone, without hooks: the slot calls those of the part itself."""
    slots = [module._slot for module in part.modules() if isinstance(module, Attached)]
    copied = released(copy.deepcopy(part, {id(slot): slot for slot in slots}))
    clear_hooks(copied)
    return copied


@functools.cache
def _attached_class(base: type[nn.Module], parameters: tuple[str, ...], frozen: bool) -> type[nn.Module]:
    body: dict[str, Any] = {name: _effective_weight(name) for name in parameters}
    body |= {"_base": base, "__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (AttachedFrozen if frozen else Attached, base), body)


def _properties(cls: type) -> tuple[str, ...]:
    return tuple(name for name, value in vars(cls).items() if isinstance(value, property))


def _blank(base: type[nn.Module], parameters: tuple[str, ...], frozen: bool) -> nn.Module:
    """What a copy or a pickle of an attached layer begins with."""
    return base.__new__(_attached_class(base, parameters, frozen))  # type: ignore[arg-type]


def _effective_weight(name: str) -> property:
    def read(module: nn.Module) -> Tensor | None:
        return _effective(module, name)

    return property(read)


def _effective(module: nn.Module, name: str) -> Tensor | None:
    """What a layer reads as its weight: W, or W + ΔW of the task that is set; kept while neither changes."""
    if name not in module._parameters:
        raise StateError(
            f"'{name}' of this {type(module).__name__} is no parameter any more: a parametrization, weight_norm or pruning "
            "took it away after the backbone was adapted; change the backbone first, then adapt it"
        )
    weight = module._parameters[name]
    slot: Slot = module.__dict__["_slot"]
    if slot.router is not None and not slot.inside and any(name in content.deltas for content in slot.contents):
        return None if weight is None else weight.as_subclass(_LookedAt)
    if slot.on_read is not None:
        slot.on_read()
    delta = slot.deltas.get(name)
    if delta is None or slot.inside or weight is None:
        return weight
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed():
        return delta.added_to(weight)
    return slot.kept(name, weight)
