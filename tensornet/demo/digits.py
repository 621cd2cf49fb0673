"""Digits of six kinds: printed ones, four disguises of them, and handwritten ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tensornet.data.sources import Split
from tensornet.errors import MissingExtraError

try:
    import matplotlib
    from PIL import Image, ImageDraw, ImageFilter, ImageFont
    from sklearn.datasets import load_digits
except ImportError as error:
    raise MissingExtraError("the demo", "demo", error.name) from error

SIZE = 24
"""Side of every image in pixels."""

CLASSES = tuple("0123456789")
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
TEST_FONTS = ("DejaVuSerif-Bold", "DejaVuSansMono", "STIXGeneralItalic", "cmss10")
TRAIN_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmtt10",
)

Pixels = NDArray[np.float64]
Disguise = Callable[[str, Path, np.random.Generator], Pixels]
"""From a digit and a font to an image of shape (SIZE, SIZE, 3) with values in [0, 1]."""


def _mask(digit: str, font: Path, rng: np.random.Generator, stroke: int = 0, angle: float = 0.0) -> Pixels:
    """Where the ink of a digit is, at a random size and place; with a stroke, only its outline."""
    big = 4 * SIZE
    face = ImageFont.truetype(str(font), int(big * rng.uniform(0.6, 0.85)))
    image = Image.new("L", (big, big))
    draw = ImageDraw.Draw(image)
    shift = rng.uniform(-0.08, 0.08, 2) * big
    centre = (big / 2 + shift[0], big / 2 + shift[1])
    draw.text(centre, digit, font=face, anchor="mm", fill=0 if stroke else 255, stroke_width=stroke, stroke_fill=255)
    if stroke:
        draw.text(centre, digit, font=face, anchor="mm", fill=0)
    image = image.rotate(angle + rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64) / 255


def _blend(mask: Pixels, ink: Pixels, paper: Pixels) -> Pixels:
    return mask[..., None] * ink + (1 - mask[..., None]) * paper


def printed(digit: str, font: Path, rng: np.random.Generator) -> Pixels:
    """Light ink on dark paper: what the backbone is trained on."""
    return _blend(_mask(digit, font, rng), np.full(3, rng.uniform(0.7, 1)), np.full(3, rng.uniform(0, 0.2)))


def outlines(digit: str, font: Path, rng: np.random.Generator) -> Pixels:
    """Only the contour of the digit."""
    return _blend(_mask(digit, font, rng, stroke=4), np.full(3, rng.uniform(0.6, 1)), np.full(3, rng.uniform(0, 0.25)))


def clutter(digit: str, font: Path, rng: np.random.Generator) -> Pixels:
    """Dark ink on light paper full of lines."""
    image = Image.new("L", (2 * SIZE, 2 * SIZE), int(rng.uniform(190, 255)))
    draw = ImageDraw.Draw(image)
    for _ in range(10):
        ends = [float(v) for v in rng.uniform(0, 2 * SIZE, 4)]
        draw.line(ends, fill=int(rng.uniform(90, 255)), width=int(rng.integers(1, 4)))
    paper = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64) / 255
    return _blend(_mask(digit, font, rng), np.full(3, rng.uniform(0, 0.25)), np.repeat(paper[..., None], 3, 2))


def texture(digit: str, font: Path, rng: np.random.Generator) -> Pixels:
    """Coloured texture on another coloured texture."""

    def cloth(colour: Pixels) -> Pixels:
        noise = Image.fromarray((rng.random((SIZE, SIZE, 3)) * 255).astype(np.uint8))
        rough = np.asarray(noise.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float64) / 255 - 0.5
        return np.clip(colour + 0.4 * rough, 0, 1)

    ink = rng.random(3)
    paper = (ink + rng.choice([-1, 1], 3) * rng.uniform(0.4, 0.6, 3)) % 1
    return _blend(_mask(digit, font, rng), cloth(ink), cloth(paper))


def rotated(digit: str, font: Path, rng: np.random.Generator) -> Pixels:
    """Turned by a quarter, to the left or to the right."""
    angle = float(rng.choice([-90, 90]) + rng.uniform(-25, 25))
    return _blend(_mask(digit, font, rng, angle=angle), np.full(3, rng.uniform(0.7, 1)), np.full(3, rng.uniform(0, 0.2)))


def handwritten() -> tuple[Split, Split]:
    """Real digits: the set of scikit-learn (Alpaydin and Kaynak, 1998), 8×8 pixels each, shuffled, the last 500 for test."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    pixels = [np.repeat(bunch.images[i][..., None] / 16, 3, 2) for i in order]
    images, labels = [_encoded(p) for p in pixels], [int(bunch.target[i]) for i in order]
    return (
        Split("handwritten digits, train", images[:-500], labels[:-500], CLASSES),
        Split("handwritten digits, test", images[-500:], labels[-500:], CLASSES),
    )


DOMAINS: dict[str, Disguise] = {"outlines": outlines, "clutter": clutter, "texture": texture, "rotated": rotated}


def rendered(disguise: Disguise, count: int, seed: int, test: bool = False) -> Split:
    """``count`` digits in the fonts that matplotlib ships; those of the test split are in fonts of their own."""
    rng = np.random.default_rng(seed)
    fonts = [FONTS / f"{name}.ttf" for name in (TEST_FONTS if test else TRAIN_FONTS)]
    labels = [int(v) for v in rng.integers(0, 10, count)]
    images = [_encoded(disguise(str(label), fonts[int(rng.integers(len(fonts)))], rng)) for label in labels]
    return Split(f"rendered digits ({disguise.__name__})", images, labels, CLASSES)


def _encoded(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
