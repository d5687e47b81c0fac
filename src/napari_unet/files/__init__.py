"""Image files in, label files out: TIFF (ImageJ, OME), PNG, JPEG, NPY and OME-Zarr."""

from __future__ import annotations

from napari_unet.files.image_file import ImageFile, LazyArray
from napari_unet.files.reading import label_file, read_image, read_labels
from napari_unet.files.writing import (
    LABEL_SUFFIXES,
    check_output,
    write_image,
    write_labels,
    write_picture,
    write_probabilities,
)

__all__ = [
    "LABEL_SUFFIXES",
    "ImageFile",
    "LazyArray",
    "check_output",
    "label_file",
    "read_image",
    "read_labels",
    "write_image",
    "write_labels",
    "write_picture",
    "write_probabilities",
]
