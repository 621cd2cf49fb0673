"""What the output of a network says of classes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def logits(output: Any) -> Any:
    """The logits of an output: the attribute of that name, which outputs of transformers have, or the output itself.

    A tuple is left as it is: those of torchvision's networks with auxiliary heads hold the logits of these as well.
    """
    return output if isinstance(output, Tensor | tuple) else getattr(output, "logits", output)


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """The cross entropy of the `logits` of an output, a scalar."""
    return F.cross_entropy(logits(output), labels)
