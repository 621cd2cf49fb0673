"""The part of the network that tasks share, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from tensornet.attach import Attached


class _Call:
    """One call of a module: its output, and the place on the tape where the calls after it begin."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.end = -1
        self.output: Any = None
        self.versions: list[int] = []

    def finish(self, output: Any, end: int) -> None:
        self.output, self.end = output, end
        self.versions = _versions(output)

    def usable(self) -> bool:
        """Finished before the tasks parted, and not changed in place since."""
        return self.end >= 0 and _versions(self.output) == self.versions


class Prefix:
    """Runs a network several times; calls of modules before the first that ``differs`` are computed in the first run only.

    The calls are recorded in order. A later run makes the same calls up to that point, and gets their outputs back; an
    output that was changed in place meanwhile is computed afresh. Operations that are no modules are always computed.

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

    @contextmanager
    def run(self) -> Iterator[None]:
        """Inside, one run of the network uses or makes the record."""
        self._cursor = 0
        own = {id(module): module.__dict__.get("forward") for module in self._modules}
        for module in self._modules:
            module.__dict__["forward"] = self._remembered(module, module.forward)
        for module in self._readers:
            module._slot.on_read = self._part
        try:
            yield
        finally:
            for module in self._modules:
                del module.__dict__["forward"]
                if own[id(module)] is not None:
                    module.__dict__["forward"] = own[id(module)]
            for module in self._readers:
                module._slot.on_read = None
            self._recording = False

    def _part(self) -> None:
        """The tasks part here: a layer that differs is called, or its weight is read from outside."""
        if self._recording:
            self._recording, self._cursor = False, len(self._tape)

    def _remembered(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._recording:
                return self._record(module, forward, args, kwargs)
            known = self._tape[self._cursor] if self._cursor < len(self._tape) else None
            if known is None or known.module is not module:
                self._cursor = len(self._tape)  # past the shared part
            elif known.usable():
                self._cursor = known.end
                return known.output
            else:
                self._cursor += 1
            return forward(*args, **kwargs)

        return call

    def _record(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if id(module) in self._differs:
            self._part()
            return forward(*args, **kwargs)
        call = _Call(module)
        self._tape.append(call)
        output = forward(*args, **kwargs)
        if self._recording:
            call.finish(output, len(self._tape))
        return output


def _versions(output: Any) -> list[int]:
    return [leaf._version for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def cloned(inputs: Any) -> Any:
    """The same inputs, every tensor a copy."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)


@contextmanager
def versions_counted() -> Iterator[None]:
    """Inside, tensors count their changes in place, which they do not in inference mode; gradients stay off if they were."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
