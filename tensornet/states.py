"""State dicts: the tensors in them, how two of them differ, and tensors as a file takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict without the extra states of modules, which may be anything and which no file of tensors holds."""
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def packed(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict as safetensors writes them: on the CPU, contiguous, none sharing memory with another."""
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors(state).items()}


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], prefix: str = "") -> list[str]:
    """How tensors differ in names and shapes, a line each, the names after ``prefix``."""
    return [
        *(f"{prefix}{key}: missing" for key in wanted if key not in found),
        *(f"{prefix}{key}: unknown" for key in found if key not in wanted),
        *(
            f"{prefix}{key}: {tuple(found[key].shape)}, not {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in found and found[key].shape != tensor.shape
        ),
    ]


def behind_prefix(own: Iterable[str], given: Iterable[str]) -> str:
    """A sentence where all of a network's ``own`` names are ``given`` behind one prefix, as wrappers write them; or ""."""
    wanted, found = list(own), set(given)
    for prefix in ("module.", "backbone.", "model.", "_orig_mod."):
        if wanted and all(prefix + name in found for name in wanted):
            return f"Every name is there behind the prefix {prefix!r}: take it off the keys first."
    return ""
