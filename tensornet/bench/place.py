"""Where, on what and how often is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensornet.bench.contenders import Contender, Maker, adapted, twin
from tensornet.bench.precision import Precision, autocast
from tensornet.bench.setups import Setup
from tensornet.errors import ConfigError
from tensornet.network import AdaptedNetwork

Row = dict[str, Any]
"""What a measure says of one contender."""


def check_device(device: str) -> None:
    """A device has to be one that this PyTorch can use.

    Raises:
        ConfigError: it is not.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch asserts that it was built with CUDA
        raise ConfigError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


@dataclass(frozen=True)
class Workplace:
    """Where and how often is measured.

    Attributes:
        setup: the backbone and its inputs.
        backbone: fresh, on the CPU; contenders get copies.
        device: "cpu", or of an accelerator.
        repeats: rounds.
        only: names of contenders; all where it is empty.
        data: the folder from which the backbone comes, where it comes from there.
        precision: of products.
    """

    setup: Setup
    backbone: nn.Module
    device: str
    repeats: int
    only: tuple[str, ...] = ()
    data: Path | None = None
    precision: Precision = "float32"

    def inputs(self, rows: int | None = None, size: int | None = None) -> Tensor:
        """A batch of the set-up."""
        return self.setup.inputs(rows or self.setup.rows, self.device, size)

    def made(self, maker: Maker) -> Contender:
        """A contender on the device."""
        return maker(twin(self.backbone).to(self.device))

    def network(self, rank: int = 8, tasks: int = 1) -> AdaptedNetwork:
        """A network of this project, in eval mode."""
        return adapted(twin(self.backbone).to(self.device), "cp", rank, tasks).eval()

    def call(self, network: Callable[..., Any], x: Tensor, **options: Any) -> Any:
        """What ``network`` makes of ``x``, in the precision that is measured."""
        with autocast(self.precision, self.device):
            return network(x, **options)
