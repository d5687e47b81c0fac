"""TIFF in: plain, ImageJ and OME, pyramids, and files larger than memory."""

from __future__ import annotations

import logging
import re
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

__all__ = ["read_tiff"]

# A page or a tag that matters lies beyond the file's end. tifffile only logs it and goes on with
# fewer pages or without the axes; here it is an error.
_CUT_SHORT = re.compile(
    r"invalid page offset|series metadata invalid or corrupted"
    r"|TiffTag (270|273|279|282|283|324|325) .*invalid value offset"
)


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
        if broken := [text for text in messages if _CUT_SHORT.search(text)]:
            raise ValueError(f"a part lies beyond its end: {broken[0]}")
        if 0 in shape or not shape:
            raise ImageError(f"{path.name} has no pixels; choose another image.")
        lengths, kind, metadata = calibration(file)
        # A pixel of a coarser level is as much larger as the level has fewer of them.
        finest = dict(zip(full.axes, full.shape, strict=True))
        ratio = {a: finest.get(a, n) / n for a, n in zip(chosen.axes, shape, strict=True)}
        lengths = {a: n and n * ratio.get(a, 1.0) for a, n in lengths.items()}
        pixels = _pixels(path, chosen, level, lazy_above)
        if not isinstance(pixels, np.ndarray):
            pixels = LazyArray(pixels, path, file_stamp(path))
        alpha = axes is None and _last_sample_is_alpha(chosen)
        remarks = _remarks(file)
    if alpha:
        samples = letters.index("C")
        pixels = pixels[(slice(None),) * samples + (slice(0, -1),)]
    pixels, known = arrange(pixels, letters, axes, path)
    return ImageFile(path, pixels, known, spacing_of(lengths, known), kind, metadata, remarks)


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


def _last_sample_is_alpha(series: Any) -> bool:
    """Whether the last sample of a pixel is its opacity."""
    page = series.keyframe
    opacity = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA}
    return bool(
        page.photometric == tifffile.PHOTOMETRIC.RGB
        and len(page.extrasamples) == 1
        and page.extrasamples[0] in opacity
        and "S" in series.axes
        and "C" not in series.axes
        and page.samplesperpixel == 4
    )


def _remarks(file: tifffile.TiffFile) -> tuple[str, ...]:
    if len(file.series) == 1 or file.is_imagej:
        return ()
    return (f"holds {len(file.series)} images; the first was read",)
