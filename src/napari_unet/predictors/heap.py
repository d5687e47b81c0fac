"""What the C library keeps of freed memory, and what goes back to the system (Linux with glibc).

Other systems give maps back by themselves.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["USUAL", "keep", "trim"]

# What glibc itself comes to keep once larger pieces were freed: the most it lets itself keep.
USUAL = 32 << 20, 64 << 20


def keep(pieces: int, heap: int) -> None:
    """Keep freed pieces up to so many bytes, and so many of them in all.

    Left alone, glibc comes to keep all up to 32 MiB in one heap, where maps of different sizes
    leave holes that the next ones do not fit into: twice the memory by the third tile, and not to
    be foreseen.
    """
    mallopt = _function("mallopt")
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, pieces)
        mallopt(m_trim_threshold, heap)


def trim() -> None:
    """Give back all that is kept."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


@cache
def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
