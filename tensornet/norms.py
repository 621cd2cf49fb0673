"""Which normalisation layers a backbone has, and which of them a task makes its own."""

from __future__ import annotations

from types import NoneType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tensornet.attach import Attached, plain_copy
from tensornet.config import AdaptConfig
from tensornet.lean import Lean, lean_kind
from tensornet.targets import check_patterns, inside, matches

_STATE = {*vars(nn.Module()), "_slot"}
_PLAIN = (bool, int, float, str, tuple, NoneType)
KINDS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""The normalisation layers of PyTorch."""


def find_norms(backbone: nn.Module, head: str | None) -> list[str]:
    """Paths of the normalisation layers outside the head that have something to own: affine or running statistics.

    A layer of another library counts where its class is called a norm and it holds vectors of parameters itself.
    """
    found = []
    for path, module in backbone.named_modules():
        if not inside(path, head) and _is_norm(module) and (module._parameters or module._buffers) and module.state_dict():
            found.append(path)
    return found


def task_norms(config: AdaptConfig, norms: list[str]) -> list[str]:
    """Those of ``norms`` that ``config`` makes the task's own.

    Raises:
        TargetError: a pattern matches none of them.
    """
    if config.norms == "task":
        return list(norms)
    if config.norms == "shared":
        return []
    check_patterns("norms", config.norms, norms)
    return [path for path in norms if matches(config.norms, path)]


def own_copy(norm: nn.Module) -> nn.Module:
    """A trainable copy of a shared layer, with its affine parameters and its running statistics, without its hooks."""
    if not norm._modules and all(isinstance(value, _PLAIN) for name, value in vars(norm).items() if name not in _STATE):
        return _leaf_copy(norm)
    return plain_copy(norm).requires_grad_(True).train()


def _leaf_copy(norm: nn.Module) -> nn.Module:
    """The same as a deep copy of a layer that holds tensors and numbers only, in a tenth of the time, and leaner."""
    kind = lean_kind(norm._base if isinstance(norm, Attached) else type(norm))  # type: ignore[arg-type]
    copied = kind.__new__(kind)
    Lean.__init__(copied)
    for name, value in vars(norm).items():
        if name not in _STATE:
            object.__setattr__(copied, name, value)  # one by one, so that instances share the keys of their dicts
    for name, parameter in norm._parameters.items():
        copied.register_parameter(name, None if parameter is None else nn.Parameter(parameter.detach().clone()))
    for name, buffer in norm._buffers.items():
        persistent = name not in norm._non_persistent_buffers_set
        copied.register_buffer(name, None if buffer is None else buffer.detach().clone(), persistent=persistent)
    return copied.train()


def _is_norm(module: nn.Module) -> bool:
    if isinstance(module, KINDS):
        return True
    called_one = "Norm" in type(module).__name__ and not isinstance(module, nn.Linear | nn.Embedding | _ConvNd)
    inside = [child for child in module.children() if next(child.parameters(), None) is not None]
    vectors = all(sum(n > 1 for n in p.shape) <= 1 for p in module._parameters.values() if p is not None)
    return called_one and bool(module._parameters) and vectors and not inside
