"""Gradients of a loss in dense weights, over many batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tensornet.errors import DataError
from tensornet.evaluation import evaluated
from tensornet.outputs import cross_entropy


def weight_gradients(
    network: nn.Module,
    weights: Sequence[Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy,
) -> list[Tensor]:
    """∂L/∂W of each weight, summed over batches in eval mode; zero where the loss does not depend on it.

    Args:
        network: with a head that suits the labels; it is left as it is.
        weights: of the network.
        batches: pairs of input and labels.
        loss: of output and labels, a scalar.

    Raises:
        DataError: there is no batch.
    """
    required = [weight.requires_grad for weight in weights]
    sums = [torch.zeros_like(weight) for weight in weights]
    seen = False
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with evaluated(network):  # running statistics stay as they are
            for x, y in batches:
                seen = True
                found = torch.autograd.grad(loss(network(x), y), weights, allow_unused=True)
                for total, grad in zip(sums, found, strict=True):
                    if grad is not None:
                        total += grad
    finally:
        for weight, before in zip(weights, required, strict=True):
            weight.requires_grad_(before)
    if not seen:
        raise DataError("gradients need data: there is no batch")
    return [total.detach() for total in sums]
