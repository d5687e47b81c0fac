"""TIFF in: plain, ImageJ and OME, pyramids, and files larger than memory."""

from __future__ import annotations

import logging
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from napari_unet.errors import ImageError
from napari_unet.files.calibration import calibration
from napari_unet.files.image_file import (
    ImageFile,
    LazyArray,
    Mapped,
    arrange,
    file_stamp,
    spacing_of,
)

__all__ = ["label_axes", "read_tiff"]

# A page or a tag that matters lies beyond the file's end. tifffile only logs it and goes on with
# fewer pages or without the axes; here it is an error.
_CUT_SHORT = re.compile(
    r"invalid page offset|series metadata invalid or corrupted"
    r"|TiffTag (270|273|279|282|283|324|325) .*invalid value offset"
)

# So is a file of a set that is not there; its planes would be black.
_ABSENT = re.compile(r"OME series failed to read '(.*?)', raised .*Missing data are zeroed")


def read_tiff(path: Path, level: int, axes: str | None, lazy_above: int) -> ImageFile:
    """Read the first image of a TIFF file.

    Parameters
    ----------
    path : Path
        The file.
    level : int
        Of a pyramid; 0 is the full resolution.
    axes : str, optional
        What a person says the axes are.
    lazy_above : int
        Bytes of pixels beyond which they stay in the file, if its layout allows it.

    Raises
    ------
    ImageError
        If the file is damaged, or has no such level.
    """
    with _log() as messages, tifffile.TiffFile(path) as file:
        if not file.series:
            raise ImageError(f"{path.name} holds no image; get the file again.")
        full = file.series[0]
        if not 0 <= level < len(full.levels):
            raise ImageError(
                f"{path.name} has {len(full.levels)} resolution level(s), counted from 0, and no "
                f"level {level}; choose another."
            )
        chosen = full.levels[level]
        shape, letters = tuple(chosen.shape), "".join(map(_letter, chosen.axes))
        if absent := _ABSENT.search("\n".join(messages)):
            raise ImageError(
                f"{path.name} is one of several files that make one image, and {absent[1]} cannot "
                "be read; put it beside the others."
            )
        if broken := [text for text in messages if _CUT_SHORT.search(text)]:
            raise ValueError(f"a part lies beyond its end: {broken[0]}")
        if 0 in shape or not shape:
            raise ImageError(f"{path.name} has no pixels; choose another image.")
        lengths, kind, metadata = calibration(file)
        # A pixel of a coarser level is as much larger as the level has fewer of them.
        finest = dict(zip(full.axes, full.shape, strict=True))
        ratio = {a: finest.get(a, n) / n for a, n in zip(chosen.axes, shape, strict=True)}
        lengths = {a: n and n * ratio.get(a, 1.0) for a, n in lengths.items()}
        negative = _is_negative(chosen)
        pixels = _pixels(path, chosen, level, sys.maxsize if negative else lazy_above)
        pixels = ~pixels if negative else pixels
        if not isinstance(pixels, np.ndarray):
            pixels = LazyArray(pixels, path, file_stamp(path))
        alpha = axes is None and _last_sample_is_alpha(chosen)
        remarks = _remarks(file)
    if alpha:
        samples = letters.index("C")
        pixels = pixels[(slice(None),) * samples + (slice(0, -1),)]
    pixels, known = arrange(pixels, letters, axes, path)
    return ImageFile(path, pixels, known, spacing_of(lengths, known), kind, metadata, remarks)


def label_axes(path: Path) -> str | None:
    """Axes of labels whose planes look like colours, as (Z)YX or TZYX; None for any other file.

    tifffile, with which napari saves layers, takes three or four planes for the colours of one, and
    names no axis; but it keeps the shape that it was given.

    Parameters
    ----------
    path : Path
        Any file.
    """
    if not path.is_file():
        return None
    try:
        with _log(), tifffile.TiffFile(path) as file:
            if not file.pages.first.is_shaped:
                return None  # before all pages of it are looked at
            series = file.series[0]
            axes, shaped = series.axes, series.kind == "shaped"
    except (tifffile.TiffFileError, IndexError):
        return None  # who reads it says what is wrong
    colours = "S" in axes[:-2] or axes[:-2].count("Q") == 2
    return "TZYX"[-len(axes) :] if shaped and colours and axes.endswith("YX") else None


def _letter(code: str) -> str:
    """Translate tifffile's axis code: samples of a pixel are channels, the unheard-of is open."""
    return code if code in "TZCYX" else "C" if code == "S" else "?"


@contextmanager
def _log() -> Iterator[list[str]]:
    """Collect what tifffile logs, instead of showing it."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("tifffile"), Collect(logging.WARNING)
    # Other programs turn this logger down (napari to errors only); what it says matters here.
    before = logger.propagate, logger.level, logger.disabled
    logger.addHandler(handler)
    logger.propagate, logger.disabled = False, False
    logger.setLevel(logging.WARNING)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate, level, logger.disabled = before
        logger.setLevel(level)


def _pixels(path: Path, series: Any, level: int, lazy_above: int) -> Any:
    """Read, or map, or open piece by piece."""
    if series.nbytes <= lazy_above:
        return series.asarray()
    try:
        return Mapped(tifffile.memmap(path, level=level, mode="r"))
    except ValueError:
        pass  # compressed, tiled, or in pieces
    try:
        import zarr
    except ImportError:
        return series.asarray()
    file = tifffile.TiffFile(path)
    try:
        stored = zarr.open_array(file.series[0].aszarr(level=level), mode="r")
    except (TypeError, ValueError, AttributeError):  # a zarr that tifffile does not know
        file.close()
        return series.asarray()
    weakref.finalize(stored, file.close)
    return stored


def _is_negative(series: Any) -> bool:
    """Whether 0 is white, in pixels of one bit, as fax compression has it.

    ImageJ writes grey values so that mean what they say, under an inverted colour table.
    """
    white = tifffile.PHOTOMETRIC.MINISWHITE
    return bool(series.keyframe.photometric == white and series.dtype == np.bool_)


def _last_sample_is_alpha(series: Any) -> bool:
    """Whether the last sample of a pixel is its opacity."""
    page = series.keyframe
    opacity = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA}
    colours = {tifffile.PHOTOMETRIC.RGB: 3, tifffile.PHOTOMETRIC.MINISBLACK: 1}
    return bool(
        page.samplesperpixel == colours.get(page.photometric, 0) + 1
        and len(page.extrasamples) == 1
        and page.extrasamples[0] in opacity
        and "S" in series.axes
        and "C" not in series.axes
    )


def _remarks(file: tifffile.TiffFile) -> tuple[str, ...]:
    if len(file.series) == 1 or file.is_imagej:
        return ()
    return (f"holds {len(file.series)} images; the first was read",)
