"""Augmentation of whole batches, on the device where they are."""

from __future__ import annotations

import torch
from torch import Tensor


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left to right with probability one half.

    Args:
        images: shape (N, C, H, W).
        generator: on the CPU.
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


def random_crop(images: Tensor, size: int, pad: int, generator: torch.Generator) -> Tensor:
    """A square of ``size`` pixels from a random place of each image, which is padded with zeros first.

    Args:
        images: shape (N, C, H, W).
        size: at most H + 2 · pad.
        pad: pixels on each side.
        generator: on the CPU.
    """
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    n, _, height, width = padded.shape
    top = torch.randint(height - size + 1, (n, 1), generator=generator)
    left = torch.randint(width - size + 1, (n, 1), generator=generator)
    steps = torch.arange(size)
    rows, columns = (top + steps).to(images.device), (left + steps).to(images.device)
    chosen = padded.permute(0, 2, 3, 1)[
        torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    return chosen.permute(0, 3, 1, 2).contiguous()


def mixed_pairs(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Every image mixed with another one of the batch: λ · x_i + (1 − λ) · x_j (mixup; Zhang et al., ICLR 2018, eq. 1).

    Args:
        images: shape (N, C, H, W), floats.
        alpha: λ is drawn once, from Beta(alpha, alpha).
        generator: on the CPU.

    Returns:
        The mixed images, the index j of each image's partner of shape (N,), and λ.
    """
    both = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator)
    weight = float(both[0] / both.sum())
    partners = torch.randperm(len(images), generator=generator).to(images.device)
    return torch.lerp(images[partners], images, weight), partners, weight


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle square of ``size`` pixels of images of shape (N, C, H, W)."""
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    return images[:, :, top : top + size, left : left + size]


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 pixels as (x / 255 - mean) / std, the statistics of shape (3,)."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]
