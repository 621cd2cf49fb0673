"""Where the deltas to be decomposed come from: two networks or checkpoints, a task, or gradients."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tensornet.config import NONE, AdaptConfig
from tensornet.delta import weight_change
from tensornet.errors import ConfigError, MismatchError, NonFiniteError, TaskFileError, near
from tensornet.files import read_task
from tensornet.gradients import weight_gradients
from tensornet.network import adapt
from tensornet.outputs import cross_entropy
from tensornet.targets import Target, find_head, inside, select

Network = nn.Module | str | Path
"""A module, or the path of a safetensors checkpoint; for what was tuned also a task folder."""


@dataclass(frozen=True)
class Change:
    """What one weight should change by.

    Attributes:
        target: the weight.
        delta: ΔW, in the shape of the weight.
        weight: W with its delta, where it is known.
        itemsize: bytes of one stored number.
    """

    target: Target
    delta: Tensor
    weight: Tensor | None = None
    itemsize: int = 4


def changes(base: Network | None, tuned: Network | Sequence[Change], head: str | None = None) -> list[Change]:
    """ΔW = W_tuned − W_base of every target, in network order.

    Args:
        base: a module or a safetensors file; None where ``tuned`` says it all.
        tuned: a module, a safetensors file, a task folder, or the changes themselves. A task folder is enough alone; with
            a module as base it is loaded on it.
        head: path of the head, which is no target. By default the last linear layer; in files the linear layer whose shape
            differs, or else the last by name.

    Returns:
        For modules the targets of `AdaptConfig()`; for files every tensor of two or more modes called `….weight` but the
        head's (names do not tell embeddings and transposed convolutions from others: give modules where there are such);
        for a task folder the layers that it adapts.

    Raises:
        ConfigError: a checkpoint as base of a task folder, or no such head, which in files is whatever has weights below.
        MismatchError: names or shapes differ; all that do are listed.
        NonFiniteError: weights hold NaN or infinity; all that do are listed.
        TaskFileError: a file cannot be read, or nothing changed.
    """
    if isinstance(tuned, str | Path) and Path(tuned).is_dir():
        if base is not None:
            raise ConfigError(f"{tuned} is a task folder and says its change itself: leave out the base {base}")
        deltas = [(delta, delta.dense().detach()) for _, delta, _ in read_task(tuned).deltas()]
        found = [Change(delta.target, dense, itemsize=dense.element_size()) for delta, dense in deltas]
        found.sort(key=lambda change: change.target.order)
    elif isinstance(tuned, nn.Module | str | Path):
        found = _between(base, tuned, head)
    else:
        found = list(tuned)
    broken = [change.target.name for change in found if not torch.isfinite(change.delta).all()]
    if broken:
        raise NonFiniteError(f"NaN or infinity in the weights of {len(broken)} layers: {', '.join(broken[:20])}")
    if not found or not any(change.delta.any() for change in found):
        raise TaskFileError("nothing changed: the deltas of all layers are zero, so there is nothing to decompose")
    return found


def loaded(base: nn.Module, task: Path) -> nn.Module:
    """A copy of a backbone with a task merged into it.

    Raises:
        MismatchError: the task belongs to another backbone.
    """
    file = read_task(task)
    net = adapt(copy.deepcopy(base), AdaptConfig(NONE, norms="shared", head=file.record.backbone.head or NONE))
    return net.merged(net.load_task(file).name)


def gradients(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy,
    head: str | None = None,
) -> list[Change]:
    """ΔW = −∂L/∂W of every target of `AdaptConfig()`, summed over batches: where a first step would go.

    Args:
        network: with a head that suits the labels; it is left as it is.
        batches: pairs of input and labels.
        loss: of output and labels, a scalar.
        head: path of the head, which is no target; the last linear layer by default.

    Raises:
        DataError: there is no batch.
    """
    targets = _targets(network, head)
    weights = [target.weight_in(network) for target in targets]
    found = weight_gradients(network, weights, batches, loss)
    return [
        Change(target, -gradient, weight.detach(), weight.element_size())
        for target, gradient, weight in zip(targets, found, weights, strict=True)
    ]


def _between(base: Network | None, tuned: Network, head: str | None) -> list[Change]:
    if base is None:
        if isinstance(tuned, str | Path) and not Path(tuned).exists():
            raise TaskFileError(f"{tuned}: there is no such file or folder")
        raise TaskFileError("a tuned network alone says nothing of its change: give its base too")
    module = next((network for network in (base, tuned) if isinstance(network, nn.Module)), None)
    before, after = _state(base), _state(tuned)
    if module is not None:
        targets = _targets(module, head)
        keys = [target.key for target in targets]
    else:
        modules = {name.rpartition(".")[0] for name in before}
        parts = {".".join(path.split(".")[:depth]) for path in modules for depth in range(1, path.count(".") + 2)}
        if head is not None and head not in parts:
            raise ConfigError(f"head: {base} has no module {head!r}. {near(head, parts)}")
        targets = _targets_of_file(before, head or _head_in_file(before, after))
        keys = [f"{target.module}.weight" for target in targets]
        extra = [name.removesuffix(".weight") for name in _weights(after) if name not in before]
        _refuse([f"{name}.weight: only in the tuned checkpoint" for name in extra])
    problems = []
    for key in keys:
        missing = [where for where, state in (("base", before), ("tuned", after)) if key not in state]
        if missing:
            problems.append(f"{key}: not in the {' and the '.join(missing)}")
        elif before[key].shape != after[key].shape:
            problems.append(f"{key}: {tuple(before[key].shape)} in the base, {tuple(after[key].shape)} in the tuned")
    _refuse(problems)
    found = []
    for target, key in zip(targets, keys, strict=True):
        delta = weight_change(before[key], after[key])
        found.append(Change(target, delta, after[key].detach().to(delta.dtype), before[key].element_size()))
    return found


def _refuse(problems: list[str]) -> None:
    if problems:
        raise MismatchError("base and tuned are not the same architecture", problems, "Give two checkpoints of one network.")


def _state(network: Network) -> Mapping[str, Tensor]:
    if isinstance(network, nn.Module):
        return network.state_dict()
    try:
        return load_file(network)
    except (OSError, SafetensorError) as error:
        advice = "a checkpoint is a .safetensors file with the names of a state dict"
        raise TaskFileError(f"{network} cannot be read: {error}; {advice}") from None


def _targets(network: nn.Module, head: str | None) -> list[Target]:
    return [target for target, _ in select(network, AdaptConfig(), find_head(network, head))]


def _head_in_file(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    """The linear layer that has another shape after tuning, or else the last one; file names say no more."""
    linear = [name for name in _weights(before) if before[name].ndim == 2]
    changed = [name for name in linear if name in after and after[name].shape != before[name].shape]
    found = changed if len(changed) == 1 else linear[-1:]
    return found[0].removesuffix(".weight") if found else None


def _weights(state: Mapping[str, Tensor]) -> list[str]:
    """Tensors of two or more modes called `….weight`, numbers in names in their order."""
    names = [name for name in state if name.endswith(".weight") and state[name].ndim >= 2]
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def _targets_of_file(state: Mapping[str, Tensor], head: str | None) -> list[Target]:
    paths = [name.removesuffix(".weight") for name in _weights(state)]
    shapes = [tuple(state[f"{path}.weight"].shape) for path in paths]
    every = [Target(p, "weight", s, kernel=len(s) > 2, order=i) for i, (p, s) in enumerate(zip(paths, shapes, strict=True))]
    return [target for target in every if not inside(target.module, head)]
