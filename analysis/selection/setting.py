"""One task of a recipe as a place to choose in: its network, its images, its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis.selection.changes import Change, gradients
from tensornet.config import NONE
from tensornet.errors import ConfigError, near
from tensornet.network import AdaptedNetwork
from tensornet.training.adapting import headed, saved_network, train_task
from tensornet.training.batches import as_tested
from tensornet.training.fit import evaluate
from tensornet.training.grid import Grid
from tensornet.training.reading import load_recipe

HEAD_EPOCHS = 3
"""Of a head on frozen features, before gradients are taken: those of a random head say nothing."""


class Setting:
    """A task of a recipe.

    Args:
        recipe: a TOML file, or the name of one in the package.
        variant: of the recipe; the first where it is empty.
        task: name of one of its tasks.
        data: folder from which its paths begin.
        images: how many training images are looked at.

    Raises:
        ConfigError: there is no such variant, or no images are asked for.
        RecipeError: the recipe, its task, its backbone or its data cannot be used.
    """

    def __init__(self, recipe: str, variant: str, task: str, data: Path, images: int) -> None:
        recipes = load_recipe(recipe)
        variant = variant or next(iter(recipes))
        if variant not in recipes:
            raise ConfigError(f"{recipe} has no variant {variant!r}. {near(variant, recipes)}")
        if images < 1:
            raise ConfigError(f"images must be at least 1; got {images}")
        self._grid = Grid(recipes, data, Path(), [task], [variant])
        self._run = self._grid.runs[0]
        self._recipe = recipes[variant]
        self._images = images

    @property
    def head(self) -> str | None:
        """Path of the backbone's head, where the recipe names it."""
        return self._recipe.config.head

    def network(self) -> AdaptedNetwork:
        """The backbone, adapted, with no task yet."""
        return self._grid.network(self._recipe)

    def base(self) -> nn.Module:
        """The backbone with a head for the task's classes."""
        return headed(self.network(), len(self.classes))

    def tuned(self, path: Path) -> nn.Module:
        """The network with the weights of a checkpoint, or of a task folder.

        Raises:
            BackboneError: the checkpoint cannot be read, or does not fit.
            TaskFileError: the task cannot be read, or is of another backbone.
        """
        return saved_network(self.network(), path, len(self.classes))

    def gradients(self) -> list[Change]:
        """−∂L/∂W on the training images, with a head trained for a few epochs on frozen features."""
        head_only = self._recipe.model_copy(update={"adapt": {"decomposition": NONE, "norms": "shared", "head": self.head}})
        net, image = self._grid.network(head_only), self._recipe.input
        train, test = self._grid.data.images(self._run)
        settings = self._recipe.train.model_copy(
            update={"epochs": HEAD_EPOCHS, "method": "adapt", "start": "random", "distill": None}
        )
        train_task(net, "head", train, test, settings, image, self._run.seed, progress=False)
        return gradients(net.merged("head"), self._batches(), head=net.head_path)

    def accuracy(self, network: nn.Module) -> float:
        """On the test split, in [0, 1]."""
        return evaluate(network, self._grid.data.images(self._run)[1], self._recipe.input)

    def inputs(self) -> list[Tensor]:
        """Training images without augmentation, normalised, in batches."""
        return [images for images, _ in self._batches()]

    def training_inputs(self) -> Iterator[Tensor]:
        """An epoch of training images as training sees them."""
        return self._grid.data.inputs(self._run)

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the task, in their order."""
        return self._grid.data.classes(self._run.task)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        train, _ = self._grid.data.images(self._run)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self._run.seed))[: self._images]
        chosen = (train.__getitems__(rows.tolist()) for rows in order.split(64))  # at random: files often lie class by class
        return as_tested(chosen, self._recipe.input)
