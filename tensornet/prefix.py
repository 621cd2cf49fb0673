"""The part of the network that tasks share, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten


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

    def __init__(self, network: nn.Module, differs: Sequence[nn.Module]) -> None:
        self._modules = [module for module in network.modules() if module is not network]
        self._differs = {id(module) for module in differs}
        self._tape: list[_Call] = []
        self._cursor = 0
        self._recording = True

    @contextmanager
    def run(self) -> Iterator[None]:
        """Inside, one run of the network uses or makes the record."""
        self._cursor = 0
        for module in self._modules:
            module.__dict__["forward"] = self._remembered(module, module.forward)
        try:
            yield
        finally:
            for module in self._modules:
                del module.__dict__["forward"]
            self._recording = False

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
            self._recording, self._cursor = False, len(self._tape)
            return forward(*args, **kwargs)
        call = _Call(module)
        self._tape.append(call)
        output = forward(*args, **kwargs)
        if self._recording:
            call.finish(output, len(self._tape))
        return output


def _versions(output: Any) -> list[int]:
    return [leaf._version for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and not leaf.is_inference()]
