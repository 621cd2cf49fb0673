"""Running statistics of a task's batch norms, estimated anew: what a delta that was pruned or decomposed leaves stale."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tensornet.errors import DataError
from tensornet.evaluation import evaluated
from tensornet.network import AdaptedNetwork


def reestimate(net: AdaptedNetwork, name: str, inputs: Iterable[Any]) -> None:
    """Set the running mean and variance of a task's own batch norms to their means over ``inputs``; nothing is trained.

    Args:
        net: an adapted network.
        name: of the task.
        inputs: batches as they were in training, augmentation included: the task knows no others. Of a batch that is a tuple
            or a list, such as (images, labels), the first part.

    Raises:
        DataError: there is no batch.
        UnknownNameError: there is no task of that name.
    """
    with net.task(name):
        estimate(batch_norms(net[name].norms), net, inputs)


def batch_norms(module: nn.Module) -> list[_NormBase]:
    """The batch norms inside a module that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]


def estimate(norms: Sequence[_NormBase], network: nn.Module, inputs: Iterable[Any]) -> None:
    """Set the running mean and variance of ``norms`` to their means over ``inputs`` of ``network``, see `reestimate`.

    Where that fails, they are what they were.

    Raises:
        DataError: there is no batch.
    """
    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise DataError("statistics cannot be estimated from no data at all")
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        with torch.no_grad(), evaluated(network):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over all batches
                norm.train()
            for batch in itertools.chain([first], batches):
                network(batch[0] if isinstance(batch, tuple | list) else batch)
    except BaseException:
        for norm, kept in zip(norms, before, strict=True):
            norm.load_state_dict(kept, strict=False)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
