"""The part of the network that tasks share, computed once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tensornet.attach import Attached

_KNOWN = (Tensor, NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


class _Seen:
    """Inputs or an output of a call, as they are now: tensors with their versions, and the containers around them."""

    def __init__(self, tree: Any) -> None:
        self.leaves, self.spec = tree_flatten(tree)
        self.versions = _versions(self.leaves)

    def told(self) -> bool:
        """Whether every change of them would be seen: nothing here is an object that says nothing of its changes."""
        return all(isinstance(leaf, _KNOWN) for leaf in self.leaves)

    def unchanged(self) -> bool:
        """Whether no tensor was changed in place."""
        return _versions(self.leaves) == self.versions

    def still(self, tree: Any) -> bool:
        """Whether this is what ``tree`` holds, with nothing changed in place."""
        leaves, spec = tree_flatten(tree)
        same = spec == self.spec and all(a is b for a, b in zip(leaves, self.leaves, strict=True))
        return same and self.unchanged()


class _Call:
    """One call of a module: its output, and the place on the tape where the calls after it begin."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.end = -1
        self.seen: _Seen | None = None

    def finish(self, output: Any, end: int) -> None:
        self.seen, self.end = _Seen(output), end

    def usable(self) -> bool:
        """Finished before the tasks parted, and not changed in place since."""
        return self.seen is not None and self.seen.told() and self.seen.unchanged()

    def output(self) -> Any:
        """In containers of its own, which the network may change."""
        assert self.seen is not None
        return tree_unflatten(self.seen.leaves, self.seen.spec)


class Prefix:
    """Runs a network several times; calls of modules before the first that ``differs`` are computed in the first run only.

    The calls are recorded in order. A later run makes the same calls up to that point, and gets their outputs back; an
    output that was changed in place meanwhile is computed afresh, and so is a call that changed its inputs, or that was
    given or gave an object of which nobody knows what it holds, such as a cache. Operations that are no modules are always
    computed. Calls of other threads are let through.

    Args:
        network: the modules under it take part.
        differs: the modules at which tasks part.
    """

    def __init__(self, network: nn.Module, differs: Sequence[Attached]) -> None:
        self._modules = [module for module in network.modules() if module is not network]
        self._differs = {id(module) for module in differs}
        self._readers = differs
        self._tape: list[_Call] = []
        self._cursor = 0
        self._recording = True
        self._thread = threading.get_ident()

    def each(
        self,
        names: Sequence[Any],
        task: Callable[[Any], AbstractContextManager[Any]],
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> dict[Any, Any]:
        """The output of ``call`` by name, each inside the context that ``task`` makes of the name."""
        outputs = {}
        for name in names:
            inputs, options = cloned((args, kwargs))  # a network may edit its input in place
            with task(name), self.run():
                outputs[name] = call(*inputs, **options)
        return outputs

    @contextmanager
    def run(self) -> Iterator[None]:
        """Inside, one run of the network uses or makes the record."""
        self._cursor = 0
        own = {id(module): module.__dict__.get("forward") for module in self._modules}
        try:
            for module in self._modules:
                module.__dict__["forward"] = self._remembered(module, module.forward)
            for module in self._readers:
                module._slot.on_read = self._part
            yield
        finally:
            for module in self._modules:
                module.__dict__.pop("forward", None)
                if own[id(module)] is not None:
                    module.__dict__["forward"] = own[id(module)]
            for module in self._readers:
                module._slot.on_read = None
            self._recording = False

    def _part(self) -> None:
        """The tasks part here: a layer that differs is called, or its weight is read from outside."""
        if self._recording and threading.get_ident() == self._thread:
            self._recording, self._cursor = False, len(self._tape)

    def _remembered(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return forward(*args, **kwargs)
            if self._recording:
                return self._record(module, forward, args, kwargs)
            known = self._tape[self._cursor] if self._cursor < len(self._tape) else None
            if known is None or known.module is not module:
                self._cursor = len(self._tape)  # past the shared part
            elif known.usable():
                self._cursor = known.end
                return known.output()
            else:
                self._cursor += 1
            return forward(*args, **kwargs)

        return call

    def _record(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if id(module) in self._differs:
            self._part()
            return forward(*args, **kwargs)
        call, given = _Call(module), _Seen((args, kwargs))
        self._tape.append(call)
        output = forward(*args, **kwargs)
        if self._recording and given.told() and given.still((args, kwargs)):
            call.finish(output, len(self._tape))
        return output


def _versions(leaves: list[Any]) -> list[int]:
    return [leaf._version for leaf in leaves if isinstance(leaf, Tensor)]


def cloned(inputs: Any) -> Any:
    """The same inputs, every tensor and every object with a state a copy."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf), inputs)
