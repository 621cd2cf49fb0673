"""Running statistics of a task's batch norms, estimated anew: what a delta that was pruned or decomposed leaves stale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from tensornet.errors import DataError
from tensornet.evaluation import evaluated
from tensornet.network import AdaptedNetwork


def reestimate(net: AdaptedNetwork, name: str, inputs: Iterable[Tensor]) -> None:
    """Set the running mean and variance of a task's own batch norms to their means over ``inputs``; nothing is trained.

    Args:
        net: an adapted network.
        name: of the task.
        inputs: batches as they were in training, augmentation included: the task knows no others.

    Raises:
        DataError: there is no batch.
        UnknownNameError: there is no task of that name.
    """
    with net.task(name):
        estimate(batch_norms(net[name].norms), net, inputs)


def batch_norms(module: nn.Module) -> list[_NormBase]:
    """The batch norms inside a module that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]


def estimate(norms: Sequence[_NormBase], network: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Set the running mean and variance of ``norms`` to their means over ``inputs`` of ``network``.

    Raises:
        DataError: there is no batch.
    """
    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise DataError("statistics cannot be estimated from no data at all")
    momenta = [norm.momentum for norm in norms]
    try:
        with torch.no_grad(), evaluated(network):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over all batches
                norm.train()
            network(first)
            for batch in batches:
                network(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
