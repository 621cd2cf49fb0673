"""One training: a task on an adapted network, or a copy of the whole network beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from safetensors.torch import save
from torch import nn

from tensornet.atomic import make_folder, write_file
from tensornet.backbones import load_weights
from tensornet.config import NONE, AdaptConfig
from tensornet.counting import parameters_outside
from tensornet.data.images import Images
from tensornet.errors import RecipeError
from tensornet.network import AdaptedNetwork
from tensornet.norms import find_norms
from tensornet.peers import PEERS, with_peer
from tensornet.states import packed
from tensornet.task import Task
from tensornet.training.fit import Fitted, fit
from tensornet.training.recipe import Input, Train
from tensornet.training.start import begin

Row = dict[str, Any]
"""What `results.json` says of one finished training."""


@dataclass(frozen=True)
class Adapted:
    """A finished training.

    Attributes:
        model: computes the task: the adapted network, or the copy that was trained as a whole or with a peer's adapters.
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
    teachers: Sequence[nn.Module] = (),
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
    task.classes = train.split.classes
    net.set_task(name)
    begin(net, name, train, settings, image, seed, teachers)
    model, trained, counts = _trained(net, task, settings)
    fitted = fit(
        model, trained, train, test, settings, image, seed, teachers=teachers, checkpoints=checkpoints, progress=progress
    )
    return Adapted(model, fitted, counts)


def _trained(net: AdaptedNetwork, task: Task, settings: Train) -> tuple[nn.Module, nn.Module, dict[str, int]]:
    """What computes a task, the part of it that is trained, and how many parameters that has."""
    counts = task.parameter_counts()
    if settings.method == "adapt":
        return net, task, counts
    model, norms = net.merged(task.name), 0
    if settings.method != "full":
        model = peer_network(net, task.name, settings)
        norms = sum(p.numel() for path in find_norms(net.backbone, net.head_path) for p in _parameters(net, path))
    total, head = sum(p.numel() for p in model.parameters() if p.requires_grad), counts["head"]
    return model, model, {"deltas": total - norms - head, "norms": norms, "head": head, "total": total}


def _parameters(net: AdaptedNetwork, path: str) -> Iterator[nn.Parameter]:
    return net.backbone.get_submodule(path).parameters()


def peer_network(net: AdaptedNetwork, name: str, settings: Train) -> nn.Module:
    """A copy of the backbone with a task's head and the adapters of the peer that ``settings`` name.

    Raises:
        RecipeError: the config has no single rank, or says what no peer can be told.
        MissingExtraError: the peer's library is not installed.
    """
    rank = net.default_config.rank
    if not isinstance(rank, int):
        raise RecipeError("a peer's adapters", [f"they have one rank, so adapt.rank has to be a whole number; got {rank!r}"])
    plain, config = AdaptConfig(), net.default_config
    keys = ("targets", "exclude", "layers", "folding", "norms", "scale")
    untold = [key for key in keys if getattr(config, key) != getattr(plain, key)]
    if untold:
        said = "a peer's are on every convolution and linear layer but the head, at one rank, beside norms of the task's own"
        raise RecipeError("a peer's adapters", [f"{said}; leave out {', '.join(f'adapt.{key}' for key in untold)}"])
    return with_peer(settings.method, net.merged(name), rank, net.head_path, settings.peer)


def headed(net: AdaptedNetwork, classes: int) -> nn.Module:
    """A plain copy of the backbone with a fresh head; ``net`` has no task called "base"."""
    net.add_task("base", fresh_head(net, classes))
    return net.merged("base")


def saved_network(net: AdaptedNetwork, path: Path, classes: int, settings: Train | None = None) -> nn.Module:
    """The network that a training wrote: a task folder, or a checkpoint of what was trained.

    Args:
        net: has no task called "base".
        path: of the folder or file.
        classes: of the task.
        settings: of the training, where a checkpoint may hold a peer's adapters; else it holds the whole network.

    Raises:
        BackboneError: the checkpoint cannot be read, or does not fit.
        TaskFileError, MismatchError: the task cannot be read, or is of another backbone.
        RecipeError, MissingExtraError: as `peer_network`.
    """
    if path.is_dir():
        return net.merged(net.load_task(path).name)
    model = headed(net, classes)
    if settings is not None and settings.method in PEERS:
        model = peer_network(net, "base", settings)
    load_weights(model, path, optional=_frozen(model))
    return model


def save_network(model: nn.Module, path: Path) -> None:
    """Write what was trained of a network, for `saved_network` to read.

    Raises:
        WriteError: the file cannot be written.
    """
    left = _frozen(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in left}
    make_folder(path.parent)
    write_file(path, save(packed(state)))


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def fresh_head(net: AdaptedNetwork, classes: int) -> nn.Linear:
    """A linear head of the kind of the backbone's: its width, with a bias where that has one, in its dtype.

    Raises:
        RecipeError: the backbone's head is no linear layer.
    """
    own = net.backbone.get_submodule(net.head_path) if net.head_path is not None else None
    if not isinstance(own, nn.Linear):
        raise RecipeError("this backbone", [f"its head {net.head_path!r} is no linear layer; set adapt.head to one"])
    weight = own.weight
    return nn.Linear(own.in_features, classes, own.bias is not None, device=weight.device, dtype=weight.dtype)


def result(variant: str, net: AdaptedNetwork, name: str, settings: Train, seed: int, adapted: Adapted) -> Row:
    """A training as a row of `results.json`; the ratio is of the backbone without its own head."""
    config = net.default_config.to_dict()
    size = parameters_outside(net.backbone, net.head_path)
    return {
        "variant": variant,
        "task": name,
        "method": settings.method,
        "decomposition": config["decomposition"] if settings.method == "adapt" else settings.method,
        "rank": None if settings.method == "full" or config["decomposition"] == NONE else config["rank"],
        "seed": seed,
        "epochs": settings.epochs,
        "metric": "accuracy",
        "split": "holdout" if settings.holdout else "test",
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
