"""What is measured on: a backbone, and a batch for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensornet.backbones import load_backbone
from tensornet.errors import BackboneError, MissingExtraError, near

CLASSES = 10


@dataclass(frozen=True)
class Setup:
    """A backbone with random weights, in train mode, and inputs of one size.

    Attributes:
        name: such as "resnet50-64".
        build: makes the backbone; from the folder with data, where it comes from there.
        rows: of a batch.
        size: pixels of a side of an image, or tokens of a text.
        tokens: the size of the vocabulary; None for images.
        layout: of the images; that of the weights is up to ``build``.
    """

    name: str
    build: Callable[[Path | None], nn.Module]
    rows: int
    size: int
    tokens: int | None = None
    layout: torch.memory_format = torch.contiguous_format

    def inputs(self, rows: int, device: str = "cpu", size: int | None = None) -> Tensor:
        """A batch of (rows, 3, size, size) images or (rows, size) tokens."""
        size = size or self.size
        if self.tokens is not None:
            return torch.randint(self.tokens, (rows, size), device=device)
        return torch.randn(rows, 3, size, size, device=device).contiguous(memory_format=self.layout)


class Logits(nn.Module):
    """A network of transformers as one that maps its inputs to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def _transformers(model: str, config: str, **options: Any) -> Callable[[Path | None], nn.Module]:
    def build(data: Path | None) -> nn.Module:
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("this set-up", "bench", error.name) from error
        settings = getattr(transformers, config)(num_labels=CLASSES, **options)
        return Logits(getattr(transformers, model)(settings))

    return build


def _hub(entry: str) -> Callable[[Path | None], nn.Module]:
    def build(data: Path | None) -> nn.Module:
        if data is None:
            raise BackboneError(f"{entry} lies in a folder of data: pass --data DIR, with DIR/backbones/hubconf.py")
        return load_backbone(f"hub:backbones:{entry}", root=data, options={"num_classes": CLASSES})

    return build


def _channels_last(build: Callable[[Path | None], nn.Module]) -> Callable[[Path | None], nn.Module]:
    return lambda data: build(data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


_RESNET50 = _transformers("ResNetForImageClassification", "ResNetConfig")
_TINY = _transformers(
    "ResNetForImageClassification",
    "ResNetConfig",
    embedding_size=8,
    hidden_sizes=[16, 32],
    depths=[1, 1],
    layer_type="basic",
)
_VIT = _transformers("ViTForImageClassification", "ViTConfig")
_MINILM = _transformers(
    "BertForSequenceClassification",
    "BertConfig",
    hidden_size=384,
    intermediate_size=1536,
    num_hidden_layers=12,
    num_attention_heads=12,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
SETUPS = {
    setup.name: setup
    for setup in (
        Setup("resnet50-64", _RESNET50, 16, 64),
        Setup("resnet50-224", _RESNET50, 4, 224),
        Setup("resnet50-224-last", _channels_last(_RESNET50), 4, 224, layout=torch.channels_last),
        Setup("mobilenet-128", _hub("mobilenet_v2_035"), 32, 128),
        Setup("vit-224", _VIT, 4, 224),
        Setup("minilm-128", _MINILM, 8, 128, tokens=30522),
        Setup("tiny", _TINY, 8, 32),
    )
}
DEFAULT = ("resnet50-64", "resnet50-224", "resnet50-224-last", "mobilenet-128", "vit-224", "minilm-128")


def find_setup(name: str) -> Setup:
    """The set-up called ``name``.

    Raises:
        BackboneError: there is none.
    """
    if name not in SETUPS:
        raise BackboneError(f"there is no set-up {name!r}. {near(name, SETUPS)}")
    return SETUPS[name]
