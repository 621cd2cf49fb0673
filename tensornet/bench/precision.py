"""In what numbers products are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

import torch

from tensornet.errors import UnknownNameError

Precision = Literal["float32", "tf32", "bf16"]
"""float32 exactly; float32 whose products keep ten bits of the mantissa, where a device can; bfloat16 under autocast."""


def find_precision(name: str) -> Precision:
    """The precision called ``name``.

    Raises:
        UnknownNameError: there is none.
    """
    known: tuple[Precision, ...] = get_args(Precision)
    for precision in known:
        if precision == name:
            return precision
    raise UnknownNameError("precision", name, known)


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Inside, products and convolutions of float32 are exact, or, unless "float32" is asked for, rounded as in TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def autocast(precision: Precision, device: str) -> AbstractContextManager[None]:
    """What a forward of a network is computed under."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def stored(precision: Precision) -> torch.dtype:
    """The dtype of what lies between layers."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
