"""Whether autocast is at work."""

import torch


def autocast_on(device: str) -> bool:
    """Whether autocast is on for a type of device; on one that it does not know, as "meta", it is not."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
