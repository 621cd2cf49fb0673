"""Whether the rows of a batch can be told apart in every layer of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map

from tensornet.attach import Attached, Slot, Unroutable
from tensornet.errors import ShapeError
from tensornet.slots import Contents, Slots


class Probe:
    """Routes nothing: sees that each layer that tasks change gets one row per row of the batch, and where the head is."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.head_output: Any = None

    def run(self, module: Attached, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's own output."""
        slot = module._slot
        if any(content.deltas or content.replacement is not None for content in slot.contents):
            check_rows(only_tensor(module, args, kwargs), self.batch)
        with slot.reading_the_backbone():
            output = forward(*args, **kwargs)
        if slot.is_head:
            self.head_output = output
        return output


def probe(
    backbone: nn.Module, slots: Slots, every: Sequence[Contents], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, bool]:
    """Whether rows can be told apart in every layer that tasks change, and whether the head's output is the network's.

    Two batches of meta tensors of different sizes go through a copy of the backbone that holds no numbers: each layer has to
    see as many rows as the batch has. A backbone that does not run on meta tensors, that reads adapted weights outside
    their layers' forward, or that mixes rows in a batch norm without running statistics, cannot be routed: it runs once
    per task instead.
    """
    if any(isinstance(module, _BatchNorm) and module.running_mean is None for module in backbone.modules()):
        return False, False
    batch = batch_size(args, kwargs)
    last = True
    for rows in (3, 5):

        def resized(leaf: Any, rows: int = rows) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            size = (rows, *leaf.shape[1:]) if leaf.ndim and leaf.shape[0] == batch else leaf.shape
            return torch.empty(size, dtype=leaf.dtype, device="meta")

        router = Probe(rows)
        try:
            network = _skeleton(backbone, slots, every, router)
            with torch.no_grad():
                meta_args, meta_kwargs = tree_map(resized, (args, kwargs))
                output = network(*meta_args, **meta_kwargs)
        except Exception:  # code of others: whatever it raises, it cannot be probed
            return False, False
        last = last and output is router.head_output
    return True, last


def _skeleton(backbone: nn.Module, slots: Slots, every: Sequence[Contents], router: Probe) -> nn.Module:
    """A copy of the backbone whose tensors are on the meta device, whose layers ask ``router``, and that has no hooks."""
    memo: dict[int, Any] = {}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    for path, module in slots.modules.items():
        slot = Slot()
        slot.is_head, slot.router = module._slot.is_head, router
        slot.contents = [contents[path] for contents in every if path in contents]
        memo[id(module._slot)] = slot
        for content in slot.contents:
            memo[id(content)] = content
    copied = copy.deepcopy(backbone, memo)
    for layer in copied.modules():
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            hooks.clear()
    return copied


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the first tensor among the inputs.

    Raises:
        ShapeError: there is none.
    """
    for leaf in tree_flatten((args, kwargs))[0]:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise ShapeError("a mixed batch needs an input tensor with one row per task name; got none")


def only_tensor(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The one tensor with which a layer is called.

    Raises:
        Unroutable: it is called with something else.
    """
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or args[0].ndim == 0:
        raise Unroutable(f"a {type(module).__name__} is called with more than one tensor")
    return args[0]


def check_rows(x: Tensor, batch: int) -> None:
    """A layer has to see one row per row of the batch.

    Raises:
        Unroutable: it sees more or fewer, and nobody knows which belongs to which.
    """
    if x.shape[0] != batch:
        raise Unroutable(f"a layer sees {x.shape[0]} rows of a batch of {batch}; call the network once per task")
