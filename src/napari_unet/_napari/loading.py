"""Importing torch beside a living window."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["in_one_line", "link_torch", "no_torch", "uncollected", "unreadable"]

# In the order in which torch loads them itself; the last one needs all the others.
_LIBRARIES = ("libtorch_global_deps", "libtorch_python")


def link_torch() -> None:
    """Let the system link torch's libraries, so that importing torch finds them linked.

    Python holds its global lock while an import links a library, and the largest of torch's takes
    200 ms: as long, every other thread stands still, and with it the window. A call through ctypes
    lets go of the lock. Where this does not work, nothing is lost: the import links them, and says
    what is wrong. (On Windows torch goes this way by itself.)
    """
    if "torch" in sys.modules or sys.platform == "win32":
        return
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    for name in _LIBRARIES:
        path = Path(found.origin).parent / "lib" / f"{name}{suffix}"
        scope = os.RTLD_GLOBAL if name.endswith("global_deps") else os.RTLD_LOCAL
        dlopen(os.fsencode(path), os.RTLD_NOW | scope)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from collecting garbage meanwhile.

    An import makes a hundred thousand objects, and no garbage; each collection that they set off
    goes over all that napari has made, with the global lock held, for 200 ms.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def no_torch(error: BaseException) -> str:
    """Say that torch cannot be imported, and what to do."""
    return (
        f"PyTorch cannot be loaded ({in_one_line(error)}); run `valid-unet doctor`, or on "
        'Windows start napari with: python -c "import torch, napari; napari.Viewer(); '
        'napari.run()".'
    )


def unreadable(error: BaseException) -> str:
    """Say that an image is gone whose pixels are only read when they are used."""
    return f"The image cannot be read any more ({in_one_line(error)}); open it again."


def in_one_line(error: BaseException) -> str:
    """Beginning of an error's message, to stand within a sentence."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]
