"""A network that is evaluated: in eval mode and back again, and what it says of classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """The logits of an output: what transformers call so in theirs, or the output itself."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)
