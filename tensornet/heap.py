"""What a process does with memory that it frees."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_NEVER = -1
_LARGEST, _LARGEST_BEFORE = 1 << 30, 1 << 25  # since glibc 2.35, and before


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, so that the system need not clear it again for the tensors of every step.

    A step of training on a CPU frees hundreds of MiB and asks for them again. glibc gives large blocks back at once, and
    the system then clears them page by page. Other C libraries are left as they are.

    Returns:
        Whether it was done.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    kept = mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _NEVER))


def give_freed_memory_back() -> None:
    """Give back what was kept until now: before work of other sizes, which would not find it of use."""
    gc.collect()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(function: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
