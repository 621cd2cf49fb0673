"""What the layers of a network see: second moments of their inputs, and how often they are applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from analysis.selection.changes import Change
from tensornet.errors import NonFiniteError, ShapeError
from tensornet.evaluation import evaluated

LARGEST = 4608
"""Inputs of one output value above which correlations between kernel positions are left out: 512 channels of 3×3."""


_PROJECTED = {"q_proj_weight": "query", "k_proj_weight": "key", "v_proj_weight": "value"}


@dataclass
class Seen:
    """What one layer saw.

    Attributes:
        moment: Σ x xᵀ over everything that it was applied to; shape (groups, d, d), d = C_in / groups · k², the patch of
            one output value. For layers too wide for that, and for transposed convolutions and embeddings, an
            approximation without correlations between kernel positions, or between inputs.
        applied: how many output positions.
        entered: how many input positions.
        samples: how many rows of the batch.
    """

    moment: Tensor
    applied: int = 0
    entered: int = 0
    samples: int = 0

    def root(self) -> Tensor:
        """L with L Lᵀ = E[x xᵀ] per output position, so that E‖ΔW x‖² = ‖ΔW L‖²; shape (groups, d, d)."""
        mean = (self.moment / max(self.applied, 1)).double()
        values, vectors = torch.linalg.eigh(mean)
        return vectors * values.clamp_min(0).sqrt()[:, None, :]

    def channel_root(self, channels: int) -> tuple[Tensor, Tensor]:
        """Symmetric root of the mean second moment of the input channels, and its inverse; shape (channels, channels)."""
        mean = (self.moment / max(self.applied, 1)).double().mean(0)
        kernel = mean.shape[0] // channels
        mean = mean.reshape(channels, kernel, channels, kernel).diagonal(dim1=1, dim2=3).mean(-1)
        values, vectors = torch.linalg.eigh(mean)
        values = values.clamp_min(1e-4 * float(values.mean()))  # directions that hardly occur are not blown up
        return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def calibrate(network: nn.Module, inputs: Tensor | Iterable[Any], changes: Sequence[Change]) -> dict[str, Seen]:
    """Run a network on inputs and keep what its layers see, by target name.

    A weight that is used without its layer being called counts as one whose inputs are alike in all directions; of the
    output projection of `nn.MultiheadAttention` it is known how often it is applied. One weight of three projections counts
    as seeing what all three see.

    Args:
        network: in which the changed layers are; it is left as it is.
        inputs: one batch, or an iterable of batches; of a batch that is a tuple, the first entry.
        changes: whose layers to watch.

    Raises:
        NonFiniteError: a layer saw NaN or infinity.
        ShapeError: no layer was ever applied.
    """
    found: dict[str, Seen] = {}
    batches = [inputs] if isinstance(inputs, Tensor) else inputs
    rows = 0
    with _watching(network, changes, found), torch.no_grad():
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            network(x)
            rows += len(x)
    if not found:
        raise ShapeError("the calibration data reaches no layer that changed: is it for this network, and is there any?")
    broken = [name for name, seen in found.items() if not torch.isfinite(seen.moment).all()]
    if broken:
        raise NonFiniteError(f"the calibration data gives NaN or infinity at {', '.join(broken[:20])}")
    for change in changes:
        target = change.target
        if target.name not in found:
            width = target.modes()["in"] * target.modes().get("kernel", 1)
            found[target.name] = Seen(torch.eye(width, device=change.delta.device)[None], applied=1)
        found[target.name].samples = rows
    return found


@contextmanager
def _watching(network: nn.Module, changes: Sequence[Change], found: dict[str, Seen]) -> Iterator[None]:
    hooks = []
    for change in changes:
        for path, _ in change.target.places:
            layer = network.get_submodule(path)
            hooks.append(layer.register_forward_hook(_Watch(change, found), with_kwargs=True))
            parent = network.get_submodule(path.rpartition(".")[0])
            if isinstance(parent, nn.MultiheadAttention):
                hooks.append(parent.register_forward_hook(partial(_count_projections, change, found)))
    try:
        with evaluated(network):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _count_projections(change: Change, found: dict[str, Seen], layer: nn.Module, args: Any, output: Any) -> None:
    """A forward hook of an attention, whose output projection is not called."""
    width = change.target.modes()["in"]
    applied = output[0].numel() // output[0].shape[-1]
    alike = torch.eye(width, device=change.delta.device)[None]
    seen = found.setdefault(change.target.name, Seen(torch.zeros_like(alike)))
    seen.moment += alike * applied
    seen.applied += applied
    seen.entered += applied


class _Watch:
    """A forward hook that adds up what its layer sees."""

    def __init__(self, change: Change, found: dict[str, Seen]) -> None:
        self.change = change
        self.found = found

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = _input(layer, self.change.target.parameter, args, kwargs).detach()
        y = output[0] if isinstance(output, tuple) else output
        if self.change.target.parameter in ("k_proj_weight", "v_proj_weight"):
            y = x  # keys have places of their own
        spatial = isinstance(layer, _ConvNd)
        applied = y.numel() // y.shape[1 if spatial else -1]
        moment = _moment(layer, x, self.change, applied)
        seen = self.found.setdefault(self.change.target.name, Seen(torch.zeros_like(moment)))
        seen.moment += moment
        seen.applied += applied
        seen.entered += x.numel() // x.shape[1] if spatial else applied


def _input(layer: nn.Module, parameter: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What is multiplied by a weight; by one weight of three projections, all that they see."""
    if not isinstance(layer, nn.MultiheadAttention):
        return next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    named: dict[str, Tensor] = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    if parameter != "in_proj_weight":
        return named[_PROJECTED[parameter]]
    query, key, value = (named[name] for name in _PROJECTED.values())
    return query if query is key is value else torch.cat([x.reshape(-1, x.shape[-1]) for x in (query, key, value)])


def _moment(layer: nn.Module, x: Tensor, change: Change, applied: int) -> Tensor:
    modes = change.target.modes()
    width = modes["in"] * modes.get("kernel", 1)
    if isinstance(layer, nn.Conv2d) and width <= LARGEST:
        padding = layer.padding if isinstance(layer.padding, tuple) else None
        if padding is not None and layer.padding_mode == "zeros":
            patches = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
            rows = patches.transpose(1, 2).reshape(-1, layer.groups, width).transpose(0, 1).float()
            return rows.transpose(1, 2) @ rows
    if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
        rows = x.transpose(0, 1).reshape(layer.groups, modes["in"], -1).float()
        share = applied / max(rows.shape[2], 1)
        kernel = torch.eye(modes["kernel"], device=x.device)
        return torch.stack([torch.kron(m, kernel) for m in rows @ rows.transpose(1, 2) * share])
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        rows = x.reshape(-1, x.shape[-1]).float()
        return (rows.T @ rows)[None] * (applied / max(len(rows), 1))
    square = float(x.float().square().mean()) if x.is_floating_point() else 1 / modes["out"]
    return (torch.eye(width, device=x.device) * square * applied)[None]
