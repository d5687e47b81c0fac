"""Label and probability files that Fiji, QuPath and napari read, written completely or not at all.

Object numbers are stored as uint16 where they fit: it is the widest integer that ImageJ's own
format has, and every program shows it as labels. Beyond 65,535 objects the numbers are int32 in an
OME-TIFF, which QuPath, napari and Fiji's Bio-Formats importer read exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_unet._version import __version__
from napari_unet.atomic import check_folder, replacing_file, replacing_folder
from napari_unet.errors import ImageError
from napari_unet.files.image_file import ImageFile
from napari_unet.files.ome_zarr import needs_zarr, save_zarr
from napari_unet.paths import is_there

__all__ = [
    "LABEL_SUFFIXES",
    "check_output",
    "write_image",
    "write_labels",
    "write_picture",
    "write_probabilities",
]

LABEL_SUFFIXES = (".ome.tif", ".ome.tiff", ".tif", ".tiff", ".npy", ".png", ".zarr")
"""What a label file's name may end in."""

_CLASSIC_TIFF = (1 << 32) - (1 << 26)  # bytes that a TIFF with 32-bit offsets surely holds
_STRIP = 1 << 18
_COPIED = 1 << 28  # bytes that may be copied to be written
_PROPER = "end the name in .tif, .ome.tif, .npy, .png or .zarr"


def check_output(
    path: Path, source: Path | None = None, *, probabilities: bool = False, ndim: int = 2
) -> None:
    """See, before anything is computed, that a file can be written.

    Its folder is made where it is missing.

    Parameters
    ----------
    path : Path
        To be written.
    source : Path, optional
        The image, which must not be overwritten.
    probabilities : bool
        Whether probabilities are to be written, which a PNG cannot hold.
    ndim : int
        Axes of the labels, as far as they are known.

    Raises
    ------
    ImageError
        If it cannot.
    """
    suffix = _suffix(path)
    if suffix == ".png" and ndim > 2:
        raise ImageError(f"{path.name}: a PNG holds one plane; choose .tif for a stack.")
    if probabilities and suffix == ".png":
        raise ImageError(f"{path.name}: a PNG cannot hold probabilities; choose .tif or .npy.")
    # What may not be looked at is no file here; whoever opens it says why.
    if is_there(path) and source is not None and is_there(source):
        if path.samefile(source):
            raise ImageError(f"{path} is the image itself; choose another name for the result.")
        if path.resolve() in source.resolve().parents:
            raise ImageError(
                f"{path} holds the image itself ({source}); choose another name for the result."
            )
    if is_there(path) and path.is_dir() and suffix != ".zarr":
        raise ImageError(f"{path} is a folder; choose another name for the result.")
    if suffix == ".zarr":
        needs_zarr()
    check_folder(path)


def write_labels(
    path: Path,
    labels: NDArray[Any],
    image: ImageFile | None = None,
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    note: str = "",
) -> None:
    """Write labels, with the spacing, unit, axes and names of the image they belong to.

    Parameters
    ----------
    path : Path
        The ending says how: ``.tif`` (ImageJ's dialect, or OME if the image was OME or the
        numbers need it), ``.ome.tif``, ``.npy`` (int32), ``.png`` (one plane) or ``.zarr``
        (OME-Zarr 0.4). TIFFs are deflated, and BigTIFF where they need to be. An existing file
        is replaced.
    labels : ndarray of int, of shape ([T,] [Z,] Y, X)
        0 is the background.
    image : ImageFile, optional
        What was segmented.
    axes : str, optional
        One letter per axis of `labels`, where `image` does not say.
    spacing : sequence of float, optional
        Micrometres per pixel along the last axes, where `image` does not say.
    note : str
        What made the labels; it goes into the file's description.

    Raises
    ------
    ImageError
        If it cannot be written; then an existing file is as it was.
    """
    suffix = _suffix(path)
    top = int(labels.max(initial=0))
    names = axes or (image.axes.rstrip("C") if image and image.axes else _usual(labels.ndim))
    lengths = tuple(spacing) if spacing else image.spacing if image else None
    dtype = np.dtype(np.uint16 if top <= np.iinfo(np.uint16).max else np.int32)
    if suffix == ".npy":
        with replacing_file(path) as file:
            np.save(file, labels.astype(np.int32, copy=False))
    elif suffix == ".zarr":
        with replacing_folder(path) as folder:
            save_zarr(folder, labels, names, lengths, name=path.stem, labels=True, dtype=dtype)
    elif suffix == ".png":
        _write_png(path, labels.astype(dtype, copy=False))
    else:
        _write_tiff(path, labels, names, lengths, image, note, (0, top), dtype=dtype)


def write_image(path: Path, image: NDArray[Any], *, axes: str, spacing: Sequence[float]) -> None:
    """Write a grey image as a TIFF that Fiji, QuPath and napari open with its spacing.

    Parameters
    ----------
    path : Path
        Ends in ``.tif``.
    image : ndarray of uint8, uint16 or float32
        Pixels.
    axes : str
        One letter per axis.
    spacing : sequence of float
        Micrometres per pixel along the last axes.

    Raises
    ------
    ImageError
        If it cannot be written.
    """
    shown = (float(image.min()), float(image.max()))
    _write_tiff(path, image, axes, tuple(spacing), None, "", shown)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write colours (Y, X, 3) as a PNG.

    Raises
    ------
    ImageError
        If it cannot be written.
    """
    from PIL import Image

    with replacing_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def write_probabilities(
    path: Path,
    probabilities: NDArray[np.float32],
    image: ImageFile | None = None,
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    classes: Sequence[str] = (),
    note: str = "",
) -> None:
    """Write class probabilities as float32 with a channel per class.

    Parameters
    ----------
    path : Path
        As for `write_labels`, but no PNG.
    probabilities : ndarray of float32, of shape (K, [T,] [Z,] Y, X)
        0 to 1. A TIFF or zarr has its channels in front of Y and X, or of Z, Y and X, as their
        metadata say; an NPY is the array as it is.
    image, axes, spacing, note
        As for `write_labels`; `axes` without the channels.
    classes : sequence of str
        Names of the channels.

    Raises
    ------
    ImageError
        If it cannot be written.
    """
    suffix = _suffix(path)
    names = axes or (
        image.axes.rstrip("C") if image and image.axes else _usual(probabilities.ndim - 1)
    )
    lengths = tuple(spacing) if spacing else image.spacing if image else None
    values = probabilities.astype(np.float32, copy=False)
    if suffix == ".npy":
        with replacing_file(path) as file:
            np.save(file, values)
        return
    if suffix == ".png":
        raise ImageError(f"{path.name}: a PNG cannot hold probabilities; choose .tif or .npy.")
    # Time first, then channels in front of the planes for zarr, behind them for ImageJ.
    where = names.find("Y") if suffix != ".zarr" else names.count("T")
    values = np.moveaxis(values, 0, where)
    names = f"{names[:where]}C{names[where:]}"
    if suffix == ".zarr":
        with replacing_folder(path) as folder:
            save_zarr(folder, values, names, lengths, name=path.stem, labels=False)
    else:
        _write_tiff(path, values, names, lengths, image, note, (0, 1), classes)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    suffix = next((end for end in LABEL_SUFFIXES if name.endswith(end) and name != end), None)
    if suffix is None:
        raise ImageError(f"{path.name or path} has no ending that says what to write; {_PROPER}.")
    return suffix


def _usual(ndim: int) -> str:
    """Axes where nothing names them, as ImageJ takes a stack: planes first."""
    names = {2: "YX", 3: "ZYX", 4: "TZYX"}.get(ndim)
    if names is None:
        raise ImageError(f"An array of {ndim} axes is no label image; give 2 to 4 axes.")
    return names


def _write_png(path: Path, labels: NDArray[Any]) -> None:
    if labels.ndim != 2:
        raise ImageError(f"{path.name}: a PNG holds one plane, not {labels.shape}; choose .tif.")
    if labels.dtype != np.uint16:
        raise ImageError(f"{path.name}: a PNG holds at most 65,535 objects; choose .tif.")
    from PIL import Image

    with replacing_file(path) as file:
        Image.fromarray(labels).save(file, format="PNG")


def _write_tiff(
    path: Path,
    array: NDArray[Any],
    axes: str,
    spacing: tuple[float, ...] | None,
    image: ImageFile | None,
    note: str,
    shown: tuple[float, float],
    classes: Sequence[str] = (),
    dtype: np.dtype[Any] | None = None,
) -> None:
    """Write a deflated TIFF in strips, which ImageJ reads; tiles it does not."""
    dtype = dtype or array.dtype
    # Deflate may grow what it cannot shrink, so the size is judged before.
    big = array.size * dtype.itemsize > _CLASSIC_TIFF
    ome = (
        ".ome.tif" in path.name.lower()
        or (image is not None and image.kind == "ome")
        or dtype == np.int32
        or big
        # tifffile's ImageJ stacks lose an X axis of one pixel.
        or (array.ndim > 2 and array.shape[-1] == 1)
    )
    known = dict(zip("ZYX"[-len(spacing) :], spacing, strict=True)) if spacing else {}
    metadata: dict[str, Any] = {"axes": axes}
    options: dict[str, Any] = {}
    if ome:
        metadata |= _ome_metadata(array, axes, known, image, note, classes)
        if known:
            options["resolution"] = (1e4 / known["X"], 1e4 / known["Y"])
            options["resolutionunit"] = "CENTIMETER"
    else:
        metadata |= _imagej_metadata(array, axes, known, image, note, classes)
        metadata |= {"min": float(shown[0]), "max": float(max(shown[1], shown[0] + 1))}
        if known:
            options["resolution"] = (1 / known["X"], 1 / known["Y"])
    rows = max(1, _STRIP // max(1, array.shape[-1] * dtype.itemsize))
    with replacing_file(path) as file:
        tifffile.imwrite(
            file,
            _strips(array, dtype, rows)
            if array.nbytes > _COPIED
            else array.astype(dtype, copy=False),
            shape=array.shape,
            dtype=dtype,
            ome=ome,
            imagej=not ome,
            bigtiff=big,
            photometric="minisblack",
            planarconfig=None,
            compression="zlib",
            rowsperstrip=rows,
            software=f"napari-valid-unet {__version__}",
            metadata=metadata,
            **options,
        )


def _strips(array: NDArray[Any], dtype: np.dtype[Any], rows: int) -> Iterator[bytes]:
    """Deflate strip by strip, without a copy of the whole in another type."""
    for index in np.ndindex(array.shape[:-2]):
        plane = array[index]
        for start in range(0, len(plane), rows):
            yield zlib.compress(plane[start : start + rows].astype(dtype).tobytes())


def _imagej_metadata(
    array: NDArray[Any],
    axes: str,
    known: Mapping[str, float],
    image: ImageFile | None,
    note: str,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Name unit, distances and origin as ImageJ does."""
    metadata: dict[str, Any] = {}
    source = dict(image.metadata) if image and image.kind == "imagej" else {}
    metadata |= {key: source[key] for key in ("xorigin", "yorigin", "zorigin") if key in source}
    if known:
        metadata["unit"] = "um"
    if "Z" in known:
        metadata["spacing"] = known["Z"]
    if image and "interval" in image.metadata:
        interval = image.metadata["interval"]
        metadata |= {"finterval": interval, "fps": 1 / interval, "tunit": "sec"}
    text = "\n".join(part for part in (note, str(source.get("Info", ""))) if part)
    if text:
        metadata["Info"] = text
    planes = int(np.prod(array.shape[:-2]))
    if classes:
        metadata["Labels"] = list(classes) * (planes // len(classes))
        metadata["mode"] = "grayscale"
    elif len(source.get("Labels", ())) == planes:
        metadata["Labels"] = source["Labels"]
    return metadata


def _ome_metadata(
    array: NDArray[Any],
    axes: str,
    known: Mapping[str, float],
    image: ImageFile | None,
    note: str,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Name unit, distances and positions as OME does."""
    metadata: dict[str, Any] = {}
    source = dict(image.metadata) if image else {}
    for axis, length in known.items():
        metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": "µm"}
    if "interval" in source:
        metadata |= {"TimeIncrement": source["interval"], "TimeIncrementUnit": "s"}
    if image:
        name = source.get("name", image.path.name)
        # On Linux a file's name may be no text at all.
        metadata["Name"] = str(name).encode(errors="replace").decode()
    if "AcquisitionDate" in source:
        metadata["AcquisitionDate"] = source["AcquisitionDate"]
    if note:
        metadata["Description"] = note
    planes = int(np.prod(array.shape[:-2]))
    position = {key: [source[key]] * planes for key in source if key.startswith("Position")}
    if position:
        metadata["Plane"] = position
    if classes:
        metadata["Channel"] = {"Name": list(classes)}
    return metadata
