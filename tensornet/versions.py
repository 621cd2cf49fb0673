"""What tells that a tensor was changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def state(tensor: Tensor) -> tuple[Any, ...]:
    """What most changes of a tensor change, in place or to another place."""
    return None if tensor.is_inference() else tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device


@contextmanager
def versions_counted() -> Iterator[None]:
    """Inside, tensors count their changes in place, which they do not in inference mode; gradients stay off if they were."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield
