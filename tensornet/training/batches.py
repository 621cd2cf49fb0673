"""Batches of images as a network sees them: in training, and in a test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tensornet.data.augment import centre_crop, normalised, random_crop, random_flip
from tensornet.data.images import Images, shuffled_loader
from tensornet.training.recipe import Input, Train

Device = torch.device | str


def augmented(images: Tensor, settings: Train, image: Input, generator: torch.Generator) -> Tensor:
    """Images as training sees them, but for the normalisation, and before they are mixed."""
    if settings.flip:
        images = random_flip(images, generator)
    if settings.pad or image.stored > image.size:
        images = random_crop(images, image.size, settings.pad, generator)
    return images


def as_trained(train: Images, settings: Train, image: Input, seed: int, device: Device = "cpu") -> Iterator[Tensor]:
    """An epoch of training images as a step sees them before they are mixed, normalised."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = _statistics(image, device)
    for images, _ in shuffled_loader(train, settings.batch_size, seed):
        yield normalised(augmented(images.to(device), settings, image, generator), mean, std)


def as_tested(
    batches: Iterable[tuple[Tensor, Tensor]], image: Input, device: Device = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images without augmentation, normalised, and their labels."""
    mean, std = _statistics(image, device)
    for images, labels in batches:
        yield normalised(centre_crop(images.to(device), image.size), mean, std), labels.to(device)


def _statistics(image: Input, device: Device) -> tuple[Tensor, Tensor]:
    return torch.tensor(image.mean, device=device), torch.tensor(image.std, device=device)
