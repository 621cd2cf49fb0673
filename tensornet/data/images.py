"""Images as batches of bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from tensornet.data.sources import Split
from tensornet.errors import DataError, MissingExtraError, bulleted

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise MissingExtraError("reading images", "train", error.name) from error

IN_MEMORY = 2**31
"""Bytes of decoded pixels up to which a split is decoded once and kept."""


_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class Images(Dataset[tuple[Tensor, Tensor]]):
    """A split as square images; `__getitems__` answers a whole batch.

    Args:
        split: to decode.
        size: side of the square: the shorter side is resized to it, the centre cut out. Images are turned as their camera
            says, and drawn on white where they are transparent.

    Raises:
        DataError: images cannot be decoded; they are listed.
    """

    def __init__(self, split: Split, size: int) -> None:
        self.split = split
        self.size = size
        self.labels = torch.tensor(split.labels, dtype=torch.long)
        self._pixels: Tensor | None = None
        if len(split.images) * 3 * size * size <= IN_MEMORY:
            self._pixels = torch.empty(len(split.images), 3, size, size, dtype=torch.uint8)
        if self._pixels is None:
            check_readable(split)
        else:
            _every(split, self._keep)

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self._late(index) if self._pixels is None else self._pixels[index]
        return pixels, self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """uint8 pixels of shape (N, 3, size, size) and labels of shape (N,)."""
        chosen = torch.as_tensor(indices)
        if self._pixels is None:
            return torch.stack([self._late(i) for i in indices]), self.labels[chosen]
        return self._pixels[chosen], self.labels[chosen]

    def _late(self, index: int) -> Tensor:
        """An image that is decoded when it is asked for; that its file begins well is known already."""
        try:
            return self._decode(index)
        except _UNREADABLE as error:
            raise DataError(f"{self.split.where}: {_name(self.split, index)} cannot be decoded: {error}") from error

    def _decode(self, index: int) -> Tensor:
        with _opened(self.split.images[index]) as image:
            rgb = _on_white(_eight_bits(ImageOps.exif_transpose(image)))
        if rgb.size != (self.size, self.size):
            width, height = rgb.size
            ratio = self.size / min(width, height)
            resized = rgb.resize(
                (max(self.size, round(width * ratio)), max(self.size, round(height * ratio))), Image.Resampling.BICUBIC
            )
            left, top = (resized.width - self.size) // 2, (resized.height - self.size) // 2
            rgb = resized.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()

    def _keep(self, index: int) -> None:
        assert self._pixels is not None
        self._pixels[index] = self._decode(index)


def check_readable(split: Split) -> None:
    """See that the file of every image can be read; pixels are not decoded.

    Raises:
        DataError: some cannot; they are listed.
    """

    def verify(index: int) -> None:
        with _opened(split.images[index]) as image:
            image.verify()

    _every(split, verify)


def _opened(source: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _on_white(image: Image.Image) -> Image.Image:
    """Without transparency: a black drawing on nothing would be black on black."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    drawn = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The upper eight bits of sixteen: Pillow cuts all larger values down to white."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits a channel")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its pixels are between {values.min()} and {values.max()}; save it with 8 or 16 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _name(split: Split, index: int) -> str:
    source = split.images[index]
    return str(source) if isinstance(source, Path) else f"row {index}"


def _every(split: Split, read: Callable[[int], None]) -> None:
    bad = []
    for i in range(len(split.images)):
        try:
            read(i)
        except _UNREADABLE as error:
            bad.append(f"{_name(split, i)}: {error}")
    if bad:
        raise DataError(f"{split.where}: {len(bad)} of {len(split.images)} images cannot be read:{bulleted(bad, 10)}")


class Shuffled(BatchSampler):
    """Batches in an order that depends on the seed and the epoch alone, so that a resumed run goes on as it would have.

    A last batch of a single image is joined to the one before: batch norm could not use it.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        full, rest = divmod(self.length, self.batch_size)
        return max(full + (rest > 1), 1)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        for i in range(len(self)):
            stop = self.length if i == len(self) - 1 else (i + 1) * self.batch_size
            yield order[i * self.batch_size : stop]

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch


def shuffled_loader(images: Images, batch_size: int, seed: int, workers: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of all images."""
    sampler = Shuffled(len(images), batch_size, seed)
    return DataLoader(images, batch_sampler=sampler, collate_fn=_as_is, num_workers=workers)


def ordered_loader(images: Images, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """All images in order."""
    return DataLoader(images, batch_size=batch_size, shuffle=False, collate_fn=_as_is)


def _as_is(batch: Any) -> Any:
    return batch
