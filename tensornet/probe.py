"""Whether the rows of a batch can be told apart in every layer of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tensornet.attach import Attached, Slot, Unroutable
from tensornet.hooks import clear_hooks
from tensornet.rows import CONSTANTS, batch_size, mapped, taken
from tensornet.slots import Contents, Slots
from tensornet.versions import versions_counted

_MOST = 10_000
"""Questions of one forward: a loop that ends with an answer would not."""


class Probe:
    """Routes nothing: sees that each layer that tasks change gets one row per row of the batch, and where the head is."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.head_output: Any = None
        self.version = 0

    def run(self, module: Attached, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer's own output."""
        slot = module._slot
        if any(content.deltas or content.replacement is not None for content in slot.contents):
            check_rows(only_tensor(module, args, kwargs), self.batch)
        with slot.reading_the_backbone():
            output = forward(*args, **kwargs)
        if slot.is_head:
            if isinstance(output, Tensor) and output.is_floating_point():
                torch.set_grad_enabled(True)  # until the end of the probe: what is computed from it will tell
                output = output.detach().requires_grad_().clone()
                self.version = output._version
            self.head_output = output
        return output


class _Answers(TorchDispatchMode):
    """Answers a network that asks a tensor without numbers for yes or no, as many do of a mask: is any of it padding?"""

    def __init__(self, answer: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.answer = answer
        self.asked = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._local_scalar_dense.default or not args[0].is_meta or args[0].dtype != torch.bool:
            return func(*args, **(kwargs or {}))
        self.asked += 1
        if self.asked > _MOST:
            raise Unroutable("a layer asks for ever")
        return self.answer


def probe(
    backbone: nn.Module, slots: Slots, every: Sequence[Contents], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, bool]:
    """Whether rows can be told apart in every layer that tasks change, and whether the heads come last.

    Two batches of meta tensors of different sizes go through a copy of the backbone that holds no numbers: each layer has to
    see as many rows as the batch has. Where the network asks a tensor for yes or no, both answers are tried. A backbone that
    does not run on meta tensors, that computes with adapted weights outside their layers' forward, or that mixes rows in a
    batch norm without running statistics, cannot be routed: it runs once per task instead.
    """
    if any(isinstance(module, _BatchNorm) and module.running_mean is None for module in backbone.modules()):
        return False, False
    apart = True
    try:
        for answers in (_Answers(True), _Answers(False)):
            for rows in (3, 5):
                apart = _heads_apart(backbone, slots, every, args, kwargs, rows, answers) and apart
            if not answers.asked:
                break
    except Exception:  # code of others: whatever it raises, it cannot be probed
        return False, False
    return True, apart


def _heads_apart(
    backbone: nn.Module,
    slots: Slots,
    every: Sequence[Contents],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rows: int,
    answers: _Answers,
) -> bool:
    """Whether the head's output is in that of the network, and nothing else in it is computed from it, for so many rows.

    Raises:
        Unroutable: rows cannot be told apart.
        Exception: what the backbone raises.
    """
    batch, router = batch_size(args, kwargs), Probe(rows)

    def resized(part: Any, has_rows: bool) -> Any:
        if isinstance(part, Tensor):
            size = (rows, *part.shape[1:]) if has_rows else part.shape
            return torch.empty(size, dtype=part.dtype, device="meta")
        return taken(part, [i % batch for i in range(rows)]) if has_rows else copy.deepcopy(part)  # it may be written into

    with versions_counted(), torch.no_grad(), answers:
        network = _skeleton(backbone, slots, every, router)
        meta_args, meta_kwargs = mapped((args, kwargs), batch, resized)
        output = network(*meta_args, **meta_kwargs)
    head = router.head_output
    if isinstance(head, Tensor) and head._version != router.version:
        return False
    if output is head:
        return True
    parts = tree_leaves(output)
    others = [part for part in parts if part is not head]
    free = all(not part.requires_grad if isinstance(part, Tensor) else isinstance(part, CONSTANTS) for part in others)
    return free and len(others) == len(parts) - 1


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
    clear_hooks(copied)
    return copied


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
