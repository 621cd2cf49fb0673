"""What identifies a backbone: a hash of its values outside the head."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tensornet.errors import StateError
from tensornet.states import tensors
from tensornet.versions import state

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
        self._first = self._marks = marks(backbone, head)
        self._known: tuple[list[Any], dict[str, str]] | None = None

    def hashes(self) -> dict[str, str]:
        """As `fingerprint`."""
        now = marks(self._backbone, self._head)
        if now != self._marks:  # `p.data.add_(1)` changes no state
            self._marks, self._known = now, None
        return self.quick()

    def quick(self) -> dict[str, str]:
        """As `hashes`, of a backbone that nothing has changed without a trace: it reads none of the numbers."""
        found = list(map(state, (*self._backbone.parameters(), *self._backbone.buffers())))
        known = self._known
        if known is None or known[0] != found:
            known = self._known = (found, fingerprint(self._backbone, self._head))
        return known[1]

    def for_saving(self, task: str) -> dict[str, str]:
        """As `hashes`, and warn that ``task`` is saved as one of another backbone than that of the beginning.

        Warns:
            UserWarning: values outside the head have changed; another dtype is no change.
        """
        found = self.hashes()
        before, now = self._first, self._marks
        same_dtype = [name for name, mark in now.items() if name in before and mark[0] == before[name][0]]
        changed = [name for name in same_dtype if now[name] != before[name]]
        if changed:
            some = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
            warnings.warn(
                f"{len(changed)} tensors of the backbone have changed since it was adapted ({some}); task {task!r} is saved "
                "as one of the backbone as it is now, and the one of before will refuse it",
                stacklevel=3,
            )
        return found


def fingerprint(backbone: nn.Module, head: str | None) -> dict[str, str]:
    """SHA-256 over name, dtype, shape and bytes of every tensor outside the head.

    Returns:
        Under "stored" the hash in the dtypes as they are, and for each of float16, bfloat16, float32 and float64 the hash
        of the same tensors with every floating-point value converted to it.
    """
    hashes = {"stored": hashlib.sha256()} | {name: hashlib.sha256() for name in DTYPES}
    for name, tensor in outside_head(backbone, head).items():
        for label, digest in hashes.items():
            same = label == "stored" or not tensor.is_floating_point()
            converted = tensor if same else tensor.to(DTYPES[label])
            digest.update(f"{name}|{converted.dtype}|{tuple(converted.shape)}|".encode())
            digest.update(_bytes(converted))
    return {label: digest.hexdigest() for label, digest in hashes.items()}


def marks(backbone: nn.Module, head: str | None) -> dict[str, tuple[torch.dtype, int]]:
    """The dtype of every tensor outside the head, and the sum of its bytes by fours: much faster than a fingerprint."""
    return {name: (tensor.dtype, _sum(tensor)) for name, tensor in outside_head(backbone, head).items()}


def _sum(tensor: Tensor) -> int:
    """0 for a tensor that holds no numbers, or holds them in a way of its own."""
    if type(tensor) is not Tensor or tensor.is_meta or tensor.layout != torch.strided:
        return 0
    own = tensor.contiguous().reshape(-1).view(torch.uint8)
    fours = len(own) // 4 * 4
    aligned = own[:fours] if own.storage_offset() % 4 == 0 else own[:fours].clone()
    # in 32 bits, which it may overflow: PyTorch sums 64 at a fiftieth of that speed
    return int(aligned.view(torch.int32).sum(dtype=torch.int32)) + int(own[fours:].sum())


def same_values(stored: str, others: Mapping[str, str], identity: Mapping[str, str]) -> bool:
    """Whether a backbone is the recorded one up to its dtype.

    Args:
        stored: the recorded hash.
        others: recorded hashes of the same tensors in other dtypes.
        identity: what `fingerprint` says of the backbone.
    """
    return identity["stored"] in (stored, *others.values()) or stored in identity.values()


def head_fingerprint(backbone: nn.Module, head: str | None) -> str | None:
    """SHA-256 over name, dtype, shape and bytes of every tensor of the head; None where there is no head."""
    if head is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in outside_head(backbone.get_submodule(head), None).items():
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def outside_head(backbone: nn.Module, head: str | None) -> dict[str, Tensor]:
    """Every parameter and buffer of the backbone outside its head, by name."""
    every = tensors(backbone.state_dict())
    return {name: tensor.detach() for name, tensor in every.items() if head is None or not name.startswith(head + ".")}


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        raise StateError("the backbone is on the device 'meta' and has no numbers yet: load its weights first")
    flat = tensor.cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
