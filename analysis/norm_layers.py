"""How much a task changed each normalisation layer, in what the layer puts out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from tensornet.errors import MismatchError
from tensornet.evaluation import evaluated
from tensornet.files import TaskFile
from tensornet.fingerprint import fingerprint, same_values
from tensornet.norms import KINDS


def norm_changes(file: TaskFile, backbone: nn.Module) -> dict[str, float]:
    """√(E‖y_task − y_backbone‖² / E‖y_task‖²) per norm layer, on inputs distributed as the task's statistics say.

    A batch norm computes y = s·x + b per channel, s = γ/√(σ² + ε), b = β − s·μ, and the task's x has mean μ_t and variance
    σ_t²; so E‖y_t − y‖² = Σ (s_t − s)² σ_t² + ((s_t − s) μ_t + b_t − b)². A norm without running statistics puts out
    γ·x̂ + β with x̂ of unit variance, so it is Σ (γ_t − γ)² + (β_t − β)². A norm of another library is run on 1024
    normal vectors; where it takes none, its change is infinite.

    Args:
        file: the task.
        backbone: the network that it belongs to.

    Raises:
        MismatchError: it belongs to another backbone.
    """
    record = file.record.backbone
    found = fingerprint(backbone, record.head) if _has(backbone, record.head) else {"stored": "no such head"}
    if not same_values(record.hash, record.hash_as, found):
        raise MismatchError(
            f"task {file.name!r} does not belong to this backbone",
            [f"backbone {record.name!r} with hash {record.hash[:12]}… expected; this one's is {found['stored'][:12]}…"],
        )
    changes = {}
    for path, own in file.norms.items():
        layer = backbone.get_submodule(path)
        changes[path] = _change(own, layer.state_dict(), layer) if isinstance(layer, KINDS) else _measured(own, layer)
    return changes


def _measured(own: Mapping[str, Tensor], layer: nn.Module) -> float:
    """The same of a layer of another library, by what it puts out."""
    width = max(tensor.numel() for tensor in own.values())
    x = torch.randn(1024, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = copy.deepcopy(layer).cpu().double()
    state = {name: tensor.cpu().double() if tensor.is_floating_point() else tensor.cpu() for name, tensor in own.items()}
    with torch.no_grad(), evaluated(wide):
        try:
            y, before = functional_call(wide, state, x).double(), wide(x).double()
        except Exception:  # code of others: what takes no rows of vectors stays the task's own
            return math.inf
    total = float(y.square().sum())
    return float((y - before).square().sum() / total) ** 0.5 if total else 0.0


def _change(own: Mapping[str, Tensor], shared: Mapping[str, Tensor], layer: nn.Module) -> float:
    scale, shift, mean, variance = _affine(own, layer)
    scale_shared, shift_shared, _, _ = _affine(shared, layer)
    moved = (scale - scale_shared).square() * variance + ((scale - scale_shared) * mean + shift - shift_shared).square()
    size = scale.square() * variance + (scale * mean + shift).square()
    total = float(size.sum())
    return float(moved.sum() / total) ** 0.5 if total else 0.0


def _affine(state: Mapping[str, Tensor], layer: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale and shift of each channel, and mean and variance of what comes in."""
    state = {name: tensor.cpu() for name, tensor in state.items()}
    any_one = next(tensor for name, tensor in state.items() if name != "num_batches_tracked")
    gamma = state.get("weight", torch.ones_like(any_one)).double()
    beta = state.get("bias", torch.zeros_like(any_one)).double()
    if isinstance(layer, _NormBase) and "running_var" in state:
        mean, variance = state["running_mean"].double(), state["running_var"].double()
        scale = gamma / (variance + layer.eps).sqrt()
        return scale, beta - scale * mean, mean, variance
    return gamma, beta, torch.zeros_like(gamma), torch.ones_like(gamma)


def _has(backbone: nn.Module, head: str | None) -> bool:
    return head is None or head in dict(backbone.named_modules())
