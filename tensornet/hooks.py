"""The hooks around a module's forward and backward."""

from __future__ import annotations

from torch import nn

CALL_HOOKS = tuple(name for name in vars(nn.Module()) if name.startswith(("_forward", "_backward")) and "hooks" in name)
"""The attributes of a module that hold them; those of state dicts are others."""


def clear_hooks(module: nn.Module) -> None:
    """Take the hooks off a copy of a module and of all inside it."""
    for part in module.modules():
        for name in CALL_HOOKS:
            getattr(part, name).clear()
