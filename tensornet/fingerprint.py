"""What identifies a backbone: a hash of its values outside the head."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class Identity:
    """The fingerprint of a backbone, computed again only where one of its tensors changed.

    Args:
        backbone: whose.
        head: path of its head.
    """

    def __init__(self, backbone: nn.Module, head: str | None) -> None:
        self._backbone = backbone
        self._head = head
        self._known: tuple[list[Any], dict[str, str]] | None = None

    def hashes(self) -> dict[str, str]:
        """As `fingerprint`."""
        held = [*self._backbone.parameters(), *self._backbone.buffers()]
        state = [(t.data_ptr(), t.dtype, None if t.is_inference() else t._version) for t in held]
        if self._known is None or self._known[0] != state:
            self._known = (state, fingerprint(self._backbone, self._head))
        return self._known[1]


def fingerprint(backbone: nn.Module, head: str | None) -> dict[str, str]:
    """SHA-256 over name, dtype, shape and bytes of every tensor outside the head.

    Returns:
        Under "stored" the hash in the dtypes as they are, and for each of float16, bfloat16, float32 and float64 the hash
        of the same tensors with every floating-point value converted to it.
    """
    hashes = {"stored": hashlib.sha256()} | {name: hashlib.sha256() for name in DTYPES}
    for name, tensor in tensors(backbone, head).items():
        for label, digest in hashes.items():
            same = label == "stored" or not tensor.is_floating_point()
            converted = tensor if same else tensor.to(DTYPES[label])
            digest.update(f"{name}|{converted.dtype}|{tuple(converted.shape)}|".encode())
            digest.update(_bytes(converted))
    return {label: digest.hexdigest() for label, digest in hashes.items()}


def same_values(stored: str, others: Mapping[str, str], identity: Mapping[str, str]) -> bool:
    """Whether a recorded hash, or one of the same tensors in ``others`` dtypes, is of this backbone, in whatever dtype."""
    return identity["stored"] in (stored, *others.values()) or stored in identity.values()


def head_fingerprint(backbone: nn.Module, head: str | None) -> str | None:
    """SHA-256 over name, dtype, shape and bytes of every tensor of the head; None where there is no head."""
    if head is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in tensors(backbone.get_submodule(head), None).items():
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def tensors(backbone: nn.Module, head: str | None) -> dict[str, Tensor]:
    """Every parameter and buffer of the backbone outside its head, by name."""
    return {
        name: tensor.detach()
        for name, tensor in backbone.state_dict().items()
        if isinstance(tensor, Tensor) and (head is None or not name.startswith(head + "."))  # no extra states
    }


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
