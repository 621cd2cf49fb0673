"""One task as an ordinary module."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tensornet.attach import Attached, detach
from tensornet.attention import without_hooks
from tensornet.hooks import CALL_HOOKS
from tensornet.lean import ordinary
from tensornet.slots import Contents


def merged_copy(backbone: nn.Module, contents: Contents) -> nn.Module:
    """A copy of an adapted backbone that computes one task: W + ΔW rounded once, its norms, its head.

    Args:
        backbone: with attached layers; it is left as it is.
        contents: of the task; empty for the backbone itself.

    Returns:
        A module of the backbone's own classes, nothing of this package in it, every parameter trainable.
    """
    memo: dict[int, Any] = {id(m._slot): m._slot for m in backbone.modules() if isinstance(m, Attached)}
    plain = without_hooks(copy.deepcopy(backbone, memo))
    for path in [path for path, module in plain.named_modules() if isinstance(module, Attached)]:
        detach(plain.get_submodule(path))
    weights: dict[int, nn.Parameter] = {}
    for path, content in contents.items():
        layer = plain.get_submodule(path)
        for name, delta in content.deltas.items():
            weight = layer._parameters[name]
            assert weight is not None
            if id(weight) not in weights:
                with torch.no_grad():
                    weights[id(weight)] = nn.Parameter(torch.empty_like(weight).copy_(delta.added_to(weight)))
            layer.register_parameter(name, weights[id(weight)])
    for path, content in contents.items():
        if content.replacement is not None:
            plain = _replaced(plain, path, ordinary(copy.deepcopy(content.replacement)))
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return plain


def _replaced(root: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """``root`` with ``module`` at ``path``, and wherever else the layer that was there is registered."""
    layer = root.get_submodule(path)
    _hooked(module, layer)
    if layer is root:
        return module
    for place in [p for p, other in root.named_modules(remove_duplicate=False) if other is layer]:
        parent, _, leaf = place.rpartition(".")
        setattr(root.get_submodule(parent), leaf, module)
    return root


def _hooked(module: nn.Module, layer: nn.Module) -> None:
    """The hooks of ``layer`` go around those of the module that takes its place, as they do in the adapted network."""
    if module._is_full_backward_hook is None:
        module._is_full_backward_hook = layer._is_full_backward_hook
    for name in CALL_HOOKS:
        own, around = getattr(module, name), getattr(layer, name)
        setattr(module, name, around | own if "pre" in name else own | around)
