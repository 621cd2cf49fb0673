"""W + ΔW of one layer, kept while nothing that it was computed from has changed."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from tensornet.delta import Delta
from tensornet.versions import state


class _Steps:
    """How many steps all optimizers of the process have taken."""

    taken = 0

    @classmethod
    def count(cls, *_: object) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_Steps.count)  # fused optimizers write to parameters and leave the version counters


class Kept:
    """W + ΔW, and what it was computed from.

    Version counters tell most changes, and the steps that optimizers have taken tell those of optimizers that leave the
    counters as they are. On the CPU the factors are compared as well, which tells every change, also one that goes round
    both (`p.data.add_(1)`); off the CPU that would wait for the device.

    Attributes:
        value: W + ΔW.
    """

    def __init__(self, delta: Delta, weight: Tensor) -> None:
        self._delta = delta
        self._steps = _Steps.taken
        factors = list(delta.decomposition.factors().values())
        self._weight, *self._factors = (tensor.detach() for tensor in (weight, *factors))  # addresses are not used again
        self._states = [state(tensor) for tensor in (weight, *factors)]
        self._bits = [_bits(factor) for factor in self._factors] if weight.device.type == "cpu" else []
        self._values = [bits.clone() for bits in self._bits]
        # some kernels are chosen by whether a weight requires gradients: so this one does where W + ΔW would
        trainable = weight.requires_grad or any(factor.requires_grad for factor in factors)
        self.value = delta.added_to(weight).detach().requires_grad_(trainable)

    def holds(self, delta: Delta, weight: Tensor) -> bool:
        """Whether nothing has changed."""
        if delta is not self._delta or self._steps != _Steps.taken or state(weight) != self._states[0]:
            return False
        factors = delta.decomposition._parameters.values()
        if not self._values:
            return all(map(operator.eq, map(state, factors), self._states[1:]))  # type: ignore[arg-type]
        same = all(map(Tensor.is_set_to, factors, self._factors))  # type: ignore[arg-type]
        return same and all(map(torch.equal, self._bits, self._values))


def _bits(tensor: Tensor) -> Tensor:
    """The same memory, as integers of eight bytes where it can be seen so: half as many numbers to compare."""
    size = tensor.element_size()
    if tensor.is_contiguous() and tensor.numel() * size % 8 == 0 and tensor.storage_offset() * size % 8 == 0:
        return tensor.flatten().view(torch.int64)
    return tensor
