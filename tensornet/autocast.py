"""Whether autocast is at work."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_on(device: str) -> bool:
    """Whether autocast is on for a type of device; on one that it does not know, as "meta", it is not."""
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)  # which PyTorch 2.11 cannot trace
    return known and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Inside, autocast is off for a type of device."""
    return torch.autocast(device, enabled=False) if autocast_on(device) else nullcontext()
