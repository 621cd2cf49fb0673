"""One training: a task on an adapted network, or a copy of the whole network beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from tensornet.counting import parameters_outside
from tensornet.data.images import Images
from tensornet.errors import RecipeError
from tensornet.network import AdaptedNetwork
from tensornet.training.fit import Fitted, fit
from tensornet.training.recipe import Input, Train

Row = dict[str, Any]
"""What `results.json` says of one finished training."""


@dataclass(frozen=True)
class Adapted:
    """A finished training.

    Attributes:
        model: computes the task: the adapted network, or the copy that was trained as a whole.
        fitted: accuracy, seconds and loss.
        counts: parameters that were trained: deltas, norms, head and total; a whole copy counts as delta and head.
    """

    model: nn.Module
    fitted: Fitted
    counts: dict[str, int]


def train_task(
    net: AdaptedNetwork,
    name: str,
    train: Images,
    test: Images,
    settings: Train,
    image: Input,
    seed: int,
    *,
    checkpoints: Path | None = None,
    progress: bool = True,
) -> Adapted:
    """Add a task with a fresh linear head to ``net``, train it as ``settings`` say, and test it.

    Raises:
        RecipeError: the backbone has no linear head.
        NonFiniteError, WriteError: as `fit`.
    """
    L.seed_everything(seed, verbose=False)
    task = net.add_task(name, fresh_head(net, len(train.split.classes)))
    net.set_task(name)
    whole = settings.method == "full"
    model = net.merged(name) if whole else net
    trained: nn.Module = model if whole else task
    fitted = fit(model, trained, train, test, settings, image, seed, checkpoints=checkpoints, progress=progress)
    if not whole:
        return Adapted(model, fitted, task.parameter_counts())
    total, outside = sum(p.numel() for p in model.parameters()), parameters_outside(model, net.head_path)
    return Adapted(model, fitted, {"deltas": outside, "norms": 0, "head": total - outside, "total": total})


def fresh_head(net: AdaptedNetwork, classes: int) -> nn.Linear:
    """A linear head with the width of the backbone's.

    Raises:
        RecipeError: the backbone's head is no linear layer.
    """
    own = net.backbone.get_submodule(net.head_path) if net.head_path is not None else None
    if not isinstance(own, nn.Linear):
        raise RecipeError("this backbone", [f"its head {net.head_path!r} is no linear layer; set adapt.head to one"])
    return nn.Linear(own.in_features, classes)


def result(variant: str, net: AdaptedNetwork, name: str, settings: Train, seed: int, adapted: Adapted) -> Row:
    """A training as a row of `results.json`; the ratio is of the backbone without its own head."""
    whole = settings.method == "full"
    config = net.config.to_dict()
    size = parameters_outside(net.backbone, net.head_path)
    return {
        "variant": variant,
        "task": name,
        "method": settings.method,
        "decomposition": "full" if whole else config["decomposition"],
        "rank": None if whole else config["rank"],
        "seed": seed,
        "epochs": settings.epochs,
        "metric": "accuracy",
        "value": adapted.fitted.accuracy,
        "loss": adapted.fitted.loss,
        "trainable_parameters": adapted.counts["total"],
        "parameters": adapted.counts,
        "backbone_parameters": size,
        "ratio": adapted.counts["total"] / size,
        "seconds": round(adapted.fitted.seconds, 2),
        "backbone": net.backbone_name,
        "backbone_hash": net.identity()["stored"],
    }
