"""PyTorch's fused attention, which reads weights past the layers that hold them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class SlowAttention:
    """Keeps a backbone off the fused paths of `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` while it has to.

    In eval mode without gradients, the fused encoder layer reads the weights of its norms and never calls them, so that a
    task's norms would be missed; and fused attention rounds otherwise than the one that can be trained.
    """

    def __init__(self, backbone: nn.Module) -> None:
        kinds = nn.TransformerEncoderLayer | nn.MultiheadAttention
        self._concerned = any(isinstance(module, kinds) for module in backbone.modules())
        self._layers = [m.dropout1 for m in backbone.modules() if isinstance(m, nn.TransformerEncoderLayer)]
        self._handles: list[RemovableHandle] = []
        self._required = False

    def require(self, slow: bool) -> None:
        """Whether `path` has to be slow: while a task is set."""
        self._required = slow and self._concerned
        for handle in self._handles:
            handle.remove()
        # an encoder layer is not fused where any module in it has a hook, also when a compiler traces it
        self._handles = [layer.register_forward_pre_hook(_nothing) for layer in self._layers] if slow else []

    def path(self) -> AbstractContextManager[None]:
        """The context in which the backbone has to run."""
        return _FastPath.off() if self._required and not torch.compiler.is_dynamo_compiling() else nullcontext()


def without_hooks(copied: nn.Module) -> nn.Module:
    """The same copy of a backbone, without what kept the backbone off the fused paths when it was copied."""
    for module in copied.modules():
        hooks = module._forward_pre_hooks
        for number in [number for number, hook in hooks.items() if hook is _nothing]:
            del hooks[number]
    return copied


def _nothing(module: nn.Module, inputs: Any) -> None:
    pass


class _FastPath:
    """PyTorch's switch of its fused attention, which is one for all threads: off while at least one asks for that."""

    _lock = threading.Lock()
    _asked = 0
    _before = True

    @classmethod
    @contextmanager
    def off(cls) -> Iterator[None]:
        with cls._lock:
            if cls._asked == 0:
                cls._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            cls._asked += 1
        try:
            yield
        finally:
            with cls._lock:
                cls._asked -= 1
                if cls._asked == 0:
                    torch.backends.mha.set_fastpath_enabled(cls._before)
