"""File > Open Sample: images to try the dock on."""

from __future__ import annotations

from typing import Any

__all__ = ["nuclei"]


def nuclei() -> list[tuple[Any, dict[str, Any], str]]:
    """Give the nuclei sample as a layer, with its pixel size where it is known."""
    from napari_unet.sample import sample_nuclei

    image, spacing = sample_nuclei()
    arguments: dict[str, Any] = {"name": "nuclei", "axis_labels": ("y", "x")}
    if spacing is not None:
        arguments |= {"scale": spacing, "units": ("um", "um")}
    return [(image, arguments, "image")]
