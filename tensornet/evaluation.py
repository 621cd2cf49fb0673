"""A network that is evaluated: in eval mode and back again, and what its outputs say of classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def evaluated(network: nn.Module) -> Iterator[None]:
    """Inside, a network is in eval mode; after it, each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def logits(output: Any) -> Any:
    """The logits of an output: what transformers call so in theirs, or the output itself.

    A tuple is left as it is: those of torchvision's networks with auxiliary heads hold the logits of these as well.
    """
    return output if isinstance(output, Tensor | tuple) else getattr(output, "logits", output)


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """The cross entropy of the `logits` of an output, a scalar."""
    return F.cross_entropy(logits(output), labels)
