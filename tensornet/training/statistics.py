"""Running statistics of a task's batch norms, estimated anew: what a delta that was pruned or decomposed leaves stale."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from tensornet.errors import DataError
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
    norms = [m for m in net[name].norms.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise DataError("statistics cannot be estimated from no data at all")
    momenta, training = [norm.momentum for norm in norms], net.training
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    try:
        with net.task(name), torch.no_grad():
            net(first)
            for batch in batches:
                net(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.train(training)
