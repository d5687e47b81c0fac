"""Models as packages of other programs."""

from __future__ import annotations

from napari_unet.export.package import export_package

__all__ = ["export_package"]
