"""Sums W + ΔW of many layers as one step of autograd, made before a forward begins.

On an accelerator, the processor that launches the operations is what takes long. Layers that the rule leaves to plain
autograd need a dozen small ones each for W + ΔW and its gradients; layers of one shape need that dozen once, on stacks.
Every layer still has the rule's answer in every call: a sum that was made for another call than it gets is left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tensornet.autocast import without_autocast
from tensornet.delta import Delta
from tensornet.paths.lowrank import scaled
from tensornet.paths.rule import Costs


class LayerCall(NamedTuple):
    """All that the answer of the rule depends on for one layer, with the delta, which has a bottleneck."""

    delta: Delta
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    allowed: str
    costs: Costs


class Wanted(NamedTuple):
    """A sum W + ΔW that a layer is likely to need.

    Attributes:
        number: of the layer.
        call: that it is likely to get.
        weight: of the layer.
    """

    number: int
    call: LayerCall
    weight: Tensor


# of one thread: another one's backward would use up its graph
_made: ContextVar[Mapping[int, tuple[LayerCall, Tensor]]] = ContextVar("made", default=MappingProxyType({}))


def made_for(number: int, call: LayerCall) -> Tensor | None:
    """W + ΔW in the dtype of the call, where it was made for this call of the layer with this number."""
    known = _made.get().get(number)
    return None if known is None or known[0] != call or saved_elsewhere() else known[1]


@contextmanager
def made_together(every: Iterable[Wanted]) -> Iterator[None]:
    """Inside, `made_for` finds the sums of those layers among ``every`` whose deltas can be stacked."""
    alike: dict[torch.device, dict[Hashable, list[Wanted]]] = defaultdict(lambda: defaultdict(list))
    for wanted in every:
        form, weight = wanted.call.delta.form(), wanted.weight
        if form is not None:
            alike[weight.device][form, wanted.call.dtype, weight.shape, weight.stride(), weight.dtype].append(wanted)
    made: dict[int, tuple[LayerCall, Tensor]] = {}
    for device, groups in alike.items():
        stacks = [_Stack(group) for group in groups.values()]
        with without_autocast(device.type):
            sums = _Sums.apply(stacks, *(factor for stack in stacks for factor in stack.factors()))  # type: ignore[no-untyped-call]
        layers = [wanted for stack in stacks for wanted in stack.group]
        made |= {wanted.number: (wanted.call, own) for wanted, own in zip(layers, sums, strict=True)}
    token = _made.set(made)
    try:
        yield
    finally:
        _made.reset(token)


def saved_elsewhere() -> bool:
    """Whether hooks take what autograd saves, as those of activation checkpointing: it computes the layer alone again."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class _Stack:
    """Layers whose weights, and whose deltas, have one shape."""

    def __init__(self, group: Sequence[Wanted]) -> None:
        weight = group[0].weight
        self.group = group
        self.delta = group[0].call.delta
        self.names = list(self.delta.decomposition.factors())
        self._last = not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()

    def factors(self) -> list[Tensor]:
        """Of all deltas, by factor and then by layer."""
        every = [wanted.call.delta.decomposition.factors() for wanted in self.group]
        return [own[name] for name in self.names for own in every]

    def maps(self, factors: Sequence[Tensor]) -> _Maps:
        """The maps of all deltas from what `factors` gives, differentiable in its stacks."""
        n = len(self.group)
        stacks = [torch.stack(tuple(factors[i : i + n])) for i in range(0, len(factors), n)]
        stacks = [stack if stack.requires_grad else stack.requires_grad_() for stack in stacks]
        parts = self.delta.bottleneck_of(dict(zip(self.names, stacks, strict=True)))
        parts = parts.to(torch.promote_types(parts.out.dtype, torch.float32))
        return _Maps(stacks, parts.out, parts.rows_last() if self._last else parts.rows())

    def sums(self, maps: _Maps) -> Sequence[Tensor]:
        """W + ΔW of every layer, in the dtype of its call."""
        weights = self._seen([wanted.weight for wanted in self.group])
        total = torch.baddbmm(weights.to(maps.out.dtype).flatten(2), maps.out, maps.rows, alpha=self.delta.scale)
        total = total.to(self.group[0].call.dtype).view(weights.shape)
        return (total.movedim(-1, 2) if self._last else total).unbind()

    def gradients(self, maps: _Maps, found: Sequence[Tensor | None]) -> list[Tensor]:
        """Those of ``maps.out`` and ``maps.rows`` from those of the sums, of which one at least is there."""
        some = next(g for g in found if g is not None)
        g = self._seen([torch.zeros_like(some) if g is None else g for g in found]).to(maps.out.dtype).flatten(2)
        g = scaled(g, self.delta.scale)
        return [torch.bmm(g, maps.rows.mT), torch.bmm(maps.out.mT, g)]

    def _seen(self, weights: Sequence[Tensor]) -> Tensor:
        """A stack, the channels of each last where those of the weights are: it is contiguous, whatever its parts are."""
        return torch.stack([weight.movedim(1, -1) for weight in weights] if self._last else list(weights))


class _Maps(NamedTuple):
    """Stacked factors, and what comes of them: ΔW = out · rows, in float32 at least."""

    stacks: list[Tensor]
    out: Tensor
    rows: Tensor


class _Sums(torch.autograd.Function):
    """The sums of all stacks, from all their factors.

    One backward may reach some of the layers and a later one the others, as they may where each has a sum of its own.
    """

    @staticmethod
    def forward(ctx: Any, stacks: Sequence[_Stack], *factors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*factors)
        ctx.stacks = stacks
        with torch.enable_grad():
            ctx.maps = _maps(stacks, [factor.detach() for factor in factors])
        return tuple(own for stack, maps in zip(stacks, ctx.maps, strict=True) for own in stack.sums(maps))

    @staticmethod
    def backward(ctx: Any, *found: Tensor | None) -> tuple[Any, ...]:
        with without_autocast(ctx.stacks[0].group[0].weight.device.type):
            return None, *_of_factors(ctx, found)


def _of_factors(ctx: Any, found: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of all factors from those of the sums."""
    twice = torch.is_grad_enabled()
    every = _maps(ctx.stacks, ctx.saved_tensors) if twice else ctx.maps
    rest = iter(found)
    own = [[next(rest) for _ in stack.group] for stack in ctx.stacks]
    triples = zip(ctx.stacks, every, own, strict=True)
    reached = [(stack, maps, gs) for stack, maps, gs in triples if any(g is not None for g in gs)]
    ends = [end for _, maps, _ in reached for end in (maps.out, maps.rows)]
    gradients = [g for stack, maps, gs in reached for g in stack.gradients(maps, gs)]
    begins = [stack for _, maps, _ in reached for stack in maps.stacks]
    if not reached:
        return [None] * len(ctx.needs_input_grad[1:])
    of_stacks = iter(torch.autograd.grad(ends, begins, gradients, retain_graph=True, create_graph=twice))
    result: list[Tensor | None] = []
    for stack, gs in zip(ctx.stacks, own, strict=True):
        if all(g is None for g in gs):
            result += [None] * (len(stack.names) * len(gs))
            continue
        for _ in stack.names:
            layers = next(of_stacks).contiguous().unbind()
            result += [None if g is None else layer for g, layer in zip(gs, layers, strict=True)]
    return result


def _maps(stacks: Sequence[_Stack], factors: Sequence[Tensor]) -> list[_Maps]:
    """Those of every stack, of all factors in turn."""
    rest = iter(factors)
    return [stack.maps([next(rest) for _ in range(len(stack.names) * len(stack.group))]) for stack in stacks]
