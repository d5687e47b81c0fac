"""Open an image file, whatever it is, by what it begins with."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import ImageError
from napari_unet.files.image_file import (
    ImageFile,
    LazyArray,
    Mapped,
    arrange,
    decoding,
    file_stamp,
    spacing_of,
)
from napari_unet.files.ome_zarr import read_zarr
from napari_unet.files.tiff import label_axes, read_tiff
from napari_unet.paths import user_path

__all__ = ["LAZY_BYTES", "label_file", "read_image", "read_labels"]

LAZY_BYTES = 1 << 28
"""Bytes of pixels beyond which an image stays in its file and is read tile by tile."""

_READABLE = "TIFF, PNG, JPEG, NPY and zarr"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURE = (b"\x89PNG", b"\xff\xd8\xff")
_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_MICROSCOPES = {".czi", ".nd2", ".lif", ".oib", ".oif", ".ims", ".vsi", ".dv", ".lof"}
# What Pillow's modes are read as; all others are colours, with or without a palette or opacity.
_PICTURE_MODES = {m: m for m in ("1", "L", "I", "F", "I;16")} | {"LA": "L", "I;16B": "I;16"}
_SIXTEEN_BIT_COLOUR = {(16, 2), (16, 4), (16, 6)}  # bit depth and colour type in a PNG's header


def read_image(
    path: str | os.PathLike[str],
    *,
    level: int = 0,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
) -> ImageFile:
    """Read an image file.

    Parameters
    ----------
    path : str or path
        TIFF (ImageJ, OME, pyramids), PNG, JPEG, NPY, or the folder of a zarr image or array.
    level : int
        Resolution of a pyramid; 0 is the finest.
    axes : str, optional
        What the file's axes are, in its order, where it does not say or is wrong: for instance
        ``"ZYX"``, or ``"CYX"`` for channels in front. Axes of one pixel may be left out.
    lazy_above : int
        Images of more bytes than this stay in their file, if its layout allows it, and are read
        tile by tile. zarr images always do.

    Returns
    -------
    ImageFile
        Pixels in the order (T)(Z)YX(C). A transparent channel is dropped, a palette turned into
        colours.

    Raises
    ------
    ImageError
        If there is no such file, it is no image, damaged, or has no such level or axes.

    Examples
    --------
    >>> image = read_image("cells.ome.tif")             # doctest: +SKIP
    >>> image.axes, image.data.shape, image.spacing     # doctest: +SKIP
    ('ZYX', (40, 1024, 1024), (1.0, 0.32, 0.32))
    """
    path = user_path(path)
    with decoding(path):
        if path.is_dir():
            if not any((path / name).is_file() for name in _ZARR_FILES):
                raise ImageError(f"{path} is a folder but no zarr image; give an image file.")
            return read_zarr(path, level, axes)
        if not path.exists():
            raise ImageError(f"There is no file {path}; check the path.")
        with path.open("rb") as file:
            start = file.read(26)
        if start.startswith(_TIFF):
            return read_tiff(path, level, axes, lazy_above)
        if level and start.startswith((*_PICTURE, b"\x93NUMPY")):
            raise ImageError(f"{path.name} has one resolution only; choose level 0.")
        if start.startswith(_PICTURE):
            return _read_picture(path, axes, start)
        if start.startswith(b"\x93NUMPY"):
            return _read_npy(path, axes, lazy_above)
        raise ImageError(_not_an_image(path, start))


def read_labels(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read a label image: whole numbers, 0 for the background.

    Parameters
    ----------
    path : str or path
        Any file that `read_image` reads.

    Returns
    -------
    ndarray of an integer dtype

    Raises
    ------
    ImageError
        If it has colours, fractions or negative numbers.
    """
    return label_file(path).data  # type: ignore[no-any-return]


def label_file(path: str | os.PathLike[str]) -> ImageFile:
    """Read a label image, and what its file says of it; as `read_labels`."""
    path = user_path(path)
    with decoding(path):
        image = _indexed(path) or read_image(path, axes=label_axes(path))
        labels = np.asarray(image.data)
    if image.axes is not None and image.axes.endswith("C"):
        raise ImageError(
            f"{image.path.name} has {labels.shape[-1]} channels, a label image has one number per "
            "pixel; give the file of labels, not a coloured picture of them."
        )
    if labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)):
        labels = labels.astype(np.int64)  # as Fiji saves 32-bit images
    if labels.dtype.kind not in "bui" or (labels.size and labels.min() < 0):
        raise ImageError(
            f"{image.path.name} is no label image: its pixels are {labels.dtype}, not whole "
            "numbers from 0; give the file of labels."
        )
    return replace(image, data=labels.astype(np.uint8) if labels.dtype.kind == "b" else labels)


def _indexed(path: Path) -> ImageFile | None:
    """Read a PNG whose pixels are numbers of colours, as Pascal VOC keeps its masks."""
    if path.is_dir() or not path.exists():
        return None
    with path.open("rb") as file:
        start = file.read(26)
    if start[:8] != b"\x89PNG\r\n\x1a\n" or start[25] != 3:  # colour type "palette"
        return None
    return _read_picture(path, None, start, indices=True)


def _read_picture(
    path: Path, axes: str | None, start: bytes, *, indices: bool = False
) -> ImageFile:
    """Read PNG or JPEG: grey stays grey, colour becomes RGB, unless its numbers are wanted."""
    from PIL import Image

    remarks: tuple[str, ...] = ()
    if start.startswith(b"\x89PNG") and tuple(start[24:26]) in _SIXTEEN_BIT_COLOUR:
        remarks = ("holds 16-bit colours, read as 8-bit; save it as TIFF to keep them",)
    with warnings.catch_warnings():
        # Microscope images may be as large as they like, up to twice what Pillow calls a bomb.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(path)
        except Image.DecompressionBombError:
            raise ImageError(
                f"{path.name} is too large for a PNG or JPEG to be read; save it as TIFF."
            ) from None
        with picture:
            mode = picture.mode if indices else _PICTURE_MODES.get(picture.mode, "RGB")
            pixels = np.asarray(picture if mode == picture.mode else picture.convert(mode))
    letters = "YXC"[: pixels.ndim]
    pixels, known = arrange(pixels, letters, axes, path)
    return ImageFile(path, pixels, known, None, "picture", {}, remarks)


def _read_npy(path: Path, axes: str | None, lazy_above: int) -> ImageFile:
    """Read one numpy array; nothing that would run code is opened."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if not mapped.shape or 0 in mapped.shape:
        raise ImageError(f"{path.name} has no pixels; choose another image.")
    lazy = mapped.nbytes > lazy_above
    pixels = LazyArray(Mapped(mapped), path, file_stamp(path)) if lazy else np.array(mapped)
    pixels, known = arrange(pixels, "?" * mapped.ndim, axes, path)
    return ImageFile(path, pixels, known, spacing_of({}, known), "npy")


def _not_an_image(path: Path, start: bytes) -> str:
    """Say what a file is instead."""
    if not start:
        return f"{path.name} is empty; get the file again."
    if path.suffix.lower() in _MICROSCOPES:
        return (
            f"{path.name} is in a microscope's own format; save it as TIFF, for instance in Fiji."
        )
    if path.suffix.lower() == ".npz":
        return f"{path.name} holds several arrays; save the image alone with numpy.save."
    return f"{path.name} is no image that can be read here; {_READABLE} can."
