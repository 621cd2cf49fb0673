"""How a step of training changes parameters: groups with rates of their own, the optimizer, its schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tensornet.task import Task
from tensornet.training.recipe import Train


def groups(trained: nn.Module, settings: Train) -> list[dict[str, Any]]:
    """The parameters that are trained, with their learning rates.

    A task has four kinds, each with its multiple of `lr` in `[train.rates]`: the factors that start at zero, the other
    factors, norms and head. Any other module has one kind.
    """
    kinds: dict[float, list[nn.Parameter]] = {}
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault(settings.lr * _multiple(trained, name, settings), []).append(parameter)
    return [{"params": parameters, "lr": lr} for lr, parameters in kinds.items()]


def _multiple(trained: nn.Module, name: str, settings: Train) -> float:
    if not isinstance(trained, Task):
        return 1.0
    kind, _, rest = name.partition(".")
    rates = settings.rates
    if kind != "deltas":
        return rates.norms if kind == "norms" else rates.head
    key, _, factor = rest.rpartition(".")
    module = trained.deltas.get_submodule(key)
    return rates.zero if factor == module.zero else rates.factors


def optimizer(trained: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """The optimizer of a recipe."""
    parameters, decay, momentum = groups(trained, settings), settings.weight_decay, settings.momentum
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=decay)
    return torch.optim.SGD(parameters, settings.lr, momentum=momentum, weight_decay=decay, nesterov=momentum > 0)


def schedule(optimizer: torch.optim.Optimizer, settings: Train, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rates of ``steps`` steps."""
    schedulers = torch.optim.lr_scheduler
    if settings.schedule == "onecycle":
        return schedulers.OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=max(steps, 2))
    if settings.schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, max(steps, 1))
    if settings.schedule == "step":
        return schedulers.MultiStepLR(optimizer, [int(steps * m) for m in settings.milestones], gamma=0.1)
    return schedulers.ConstantLR(optimizer, factor=1.0)
