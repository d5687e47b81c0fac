"""Valid-convolution U-Nets over microscopy images of any size, with exact seams.

The public names are loaded on first use, so that importing the package costs nothing: neither
torch, napari nor Qt is touched before it is needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from napari_unet._version import __version__

if TYPE_CHECKING:
    from napari_unet.checkpoint import Model, load_model, save_model
    from napari_unet.config import UNetConfig
    from napari_unet.errors import ValidUNetError
    from napari_unet.model import UNet
    from napari_unet.segmentation import Options, Segmentation, segment

__all__ = [
    "Model",
    "Options",
    "Segmentation",
    "UNet",
    "UNetConfig",
    "ValidUNetError",
    "__version__",
    "load_model",
    "save_model",
    "segment",
]

_HOME = {
    "Model": "checkpoint",
    "Options": "segmentation",
    "Segmentation": "segmentation",
    "UNet": "model",
    "UNetConfig": "config",
    "ValidUNetError": "errors",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "segment": "segmentation",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
