"""OME-Zarr (0.1 to 0.5) and plain zarr arrays, read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from napari_unet.errors import ImageError
from napari_unet.files.image_file import (
    ImageFile,
    LazyArray,
    arrange,
    file_stamp,
    spacing_of,
    to_micrometre,
)

__all__ = ["needs_zarr", "read_zarr", "save_zarr"]

_OLD_AXES = ("t", "c", "z", "y", "x")  # versions 0.1 and 0.2 do not name them
_CHUNK = 1024
_INSTALL = 'run: pip install "napari-valid-unet[zarr]"'


def needs_zarr() -> Any:
    """Import zarr, which is an extra."""
    try:
        import zarr
    except ImportError as error:
        raise ImageError(f"zarr files need another package; {_INSTALL}") from error
    return zarr


def read_zarr(path: Path, level: int, axes: str | None) -> ImageFile:
    """Open an OME-Zarr image or a zarr array.

    Parameters
    ----------
    path : Path
        The image's folder, or that of one array.
    level : int
        Of an image's resolutions; 0 is the first.
    axes : str, optional
        What a person says the axes are.

    Raises
    ------
    ImageError
        If there is no image in the folder, or zarr is not installed.
    """
    zarr = needs_zarr()
    node = zarr.open(path, mode="r")
    lengths: dict[str, float | None] = {}
    if isinstance(node, zarr.Array):
        if level:
            raise ImageError(f"{path.name} has one resolution only; choose level 0.")
        array = node
        names = getattr(node.metadata, "dimension_names", None) or ()
        letters = "".join(map(_letter, names)) or "?" * array.ndim
    else:
        group, image = _multiscale(node, path)
        scales = image["datasets"]
        if not 0 <= level < len(scales):
            raise ImageError(
                f"{path.name} has {len(scales)} resolution level(s), counted from 0, and no level "
                f"{level}; choose another."
            )
        array = group[scales[level]["path"]]
        names = _axes(image, array.ndim)
        letters = "".join(_letter(axis["name"]) for axis in names)
        lengths = _lengths(image, scales[level], names)
    if 0 in array.shape or not array.shape:
        raise ImageError(f"{path.name} has no pixels; choose another image.")
    pixels, known = arrange(LazyArray(array, path, _stamp(path, array)), letters, axes, path)
    return ImageFile(path, pixels, known, spacing_of(lengths, known), "zarr")


def _multiscale(group: Any, path: Path) -> tuple[Any, Mapping[str, Any]]:
    """Find the image in a group."""
    for inside in (group, group.get("0")):  # bioformats2raw puts its images into numbered groups
        attributes = dict(getattr(inside, "attrs", {}))
        scales = attributes.get("ome", attributes).get("multiscales")
        if scales and hasattr(inside, "group_keys"):
            return inside, scales[0]
    arrays = sorted(group.array_keys())
    hint = f"; give one of its arrays, such as {path / arrays[0]}" if arrays else ""
    raise ImageError(f"{path.name} is a zarr group without an OME-Zarr image{hint or '.'}")


def _axes(image: Mapping[str, Any], ndim: int) -> list[dict[str, Any]]:
    found = image.get("axes", _OLD_AXES[-ndim:])
    return [dict(axis) if isinstance(axis, Mapping) else {"name": axis} for axis in found]


def _letter(name: Any) -> str:
    """Translate an axis' name."""
    letter = str(name)[:1].upper()
    return letter if letter in {"T", "C", "Z", "Y", "X"} else "?"


def _lengths(
    image: Mapping[str, Any], scale: Mapping[str, Any], axes: Sequence[Mapping[str, Any]]
) -> dict[str, float | None]:
    """Micrometres per pixel: the level's scale times the image's, in the axes' units."""
    factors = [1.0] * len(axes)
    for source in (scale, image):
        for step in source.get("coordinateTransformations", ()):
            if step.get("type") == "scale" and isinstance(step.get("scale"), list):
                factors = [a * b for a, b in zip(factors, step["scale"], strict=False)]
    pairs = zip(axes, factors, strict=False)
    return {_letter(axis["name"]): to_micrometre(n, axis.get("unit")) for axis, n in pairs}


def _stamp(path: Path, array: Any) -> Callable[[], object]:
    """Watch the array's metadata: removing or rewriting an array touches it."""
    folder = path / array.path if not (path / "zarr.json").is_file() or array.path else path
    files = [folder / name for name in ("zarr.json", ".zarray")]
    return file_stamp(next((file for file in files if file.is_file()), path))


def save_zarr(
    folder: Path,
    array: Any,
    axes: str,
    spacing: tuple[float, ...] | None,
    *,
    name: str,
    labels: bool,
    dtype: Any = None,
) -> None:
    """Write an OME-Zarr 0.4 image of one resolution, which is what most programs read.

    Parameters
    ----------
    folder : Path
        Does not exist yet.
    array : ndarray
        Pixels.
    axes : str
        One letter per axis of `array`.
    spacing : tuple of float, optional
        Micrometres along the last spatial axes.
    name : str
        Of the image.
    labels : bool
        Whether pixels are object numbers.
    dtype : dtype, optional
        Of the file, if not that of `array`.

    Raises
    ------
    ImageError
        If zarr is not installed.
    """
    zarr = needs_zarr()
    kinds = {"T": "time", "C": "channel"}
    spatial = [letter for letter in axes if letter in "ZYX"]
    known = dict(zip(spatial[-len(spacing) :], spacing, strict=True)) if spacing else {}
    described = [
        {"name": letter.lower(), "type": kinds.get(letter, "space")}
        | ({"unit": "micrometer"} if letter in known else {})
        for letter in axes
    ]
    scale = {"type": "scale", "scale": [float(known.get(letter, 1.0)) for letter in axes]}
    image = {
        "version": "0.4",
        "name": name,
        "axes": described,
        "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
    }
    group = zarr.open_group(folder, mode="w-", zarr_format=2)
    chunks = tuple(
        min(n, _CHUNK) if letter in "YX" else 1 for letter, n in zip(axes, array.shape, strict=True)
    )
    stored = group.create_array(
        "0",
        shape=array.shape,
        dtype=dtype or array.dtype,
        chunks=chunks,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    # One row of chunks at a time: zarr copies what it is given.
    for index in np.ndindex(array.shape[:-2]):
        for start in range(0, array.shape[-2], _CHUNK):
            place = (*index, slice(start, start + _CHUNK))
            stored[place] = array[place].astype(stored.dtype, copy=False)
    group.attrs["multiscales"] = [image]
    if labels:
        group.attrs["image-label"] = {"version": "0.4"}
