"""What tells that a tensor was changed."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def state(tensor: Tensor) -> tuple[Any, ...]:
    """What most changes of a tensor change, in place or to another place."""
    return None if tensor.is_inference() else tensor._version, tensor.data_ptr(), tensor.dtype, tensor.device
