"""What can be known of a run before the first training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tensornet.errors import RecipeError, near
from tensornet.network import AdaptedNetwork
from tensornet.outputs import logits
from tensornet.training.adapting import fresh_head, peer_network
from tensornet.training.recipe import Recipe


def nowhere(out: Path) -> list[str]:
    """What is wrong with a folder for results: a file is in its place."""
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    return [] if there.is_dir() else [f"the results cannot go to {out}: {there} is a file; name a folder"]


def try_image(net: AdaptedNetwork, recipe: Recipe) -> None:
    """One image, and two in train mode, through a network with a fresh task, or through a peer's where the recipe says so.

    Raises:
        RecipeError: it fails, or gives something else than logits.
        MissingExtraError: the peer's library is not installed.
    """
    task = net.add_task("trial", fresh_head(net, 2))
    net.set_task("trial")
    train, size = recipe.train, recipe.input.size
    peer = None if train.method in ("adapt", "full") else peer_network(net, task.name, train)
    try:
        with torch.no_grad():
            network = net if peer is None else peer
            output = logits(network.eval()(torch.zeros(1, 3, size, size)))
            learning = logits(network.train()(torch.zeros(2, 3, size, size)))
    except Exception as error:  # code of others: whatever it raises is the reason
        raise RecipeError(
            "this backbone",
            [f"it fails on an image of {size}×{size} pixels with a head of two classes as its {net.head_path!r}: {error}"],
        ) from error
    if not isinstance(output, Tensor) or output.shape != (1, 2):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise RecipeError(
            "this backbone", [f"one image and a head of two classes should give the shape (1, 2); got {shape}"]
        )
    if not isinstance(learning, Tensor):
        kind = type(learning).__name__
        raise RecipeError("this backbone", [f"in train mode it gives a {kind}, not logits; switch its auxiliary heads off"])


def why_not_taught(variant: str, recipes: Mapping[str, Recipe]) -> str | None:
    """Why a variant cannot learn from the teacher that it names; None where it can, or names none."""
    recipe = recipes[variant]
    how = recipe.train.distill
    if how is None:
        return None
    name = how.teacher
    where, teacher = f"{f'variant {variant}: ' if variant else ''}train.distill.teacher", recipes.get(name)
    if teacher is None:
        known = near(name, recipes) if variant else 'The recipe has none, and "full" is always there.'
        return f"{where}: there is no variant {name!r}. {known}"
    if teacher.train.distill is not None or teacher.train.method not in ("adapt", "full"):
        return f"{where}: {name!r} has a teacher itself or is a peer's; choose a variant that adapts or is full"
    if (teacher.backbone, teacher.input) != (recipe.backbone, recipe.input):
        return f"{where}: {name!r} has another backbone or input"
    if teacher.train.holdout != recipe.train.holdout:
        return f"{where}: {name!r} holds out other images, so that one of the two has trained on what the other is scored on"
    seeds = sorted({*(how.seeds or recipe.train.seeds)} - {*teacher.train.seeds})
    if seeds:
        own = list(teacher.train.seeds)
        return f"{where}: {name!r} is not trained with the seeds {seeds}; its train.seeds are {own}, so add them there"
    tasks = [task.name for task in recipe.tasks if task not in teacher.tasks]
    return f"{where}: {name!r} lacks the tasks {', '.join(tasks)}" if tasks else None
