"""What a TIFF file says about lengths and times, in the dialects of OME, ImageJ and plain tags."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any
from xml.etree import ElementTree

import tifffile

from napari_unet.files.image_file import Kind, to_micrometre

__all__ = ["calibration"]

Lengths = dict[str, float | None]

# Resolution tags of files that name no microscope are mostly a screen's or a printer's. A flatbed
# scanner's 4800 dpi are 5.3 µm; what is finer was measured.
_FINER_THAN_A_SCANNER = 5.0
_SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0}
_OME_KEPT = ("PositionX", "PositionXUnit", "PositionY", "PositionYUnit")
_IMAGEJ_KEPT = ("xorigin", "yorigin", "zorigin", "Info", "Labels")


def calibration(file: tifffile.TiffFile) -> tuple[Lengths, Kind, dict[str, Any]]:
    """Read lengths, kind of file and what to write back.

    Parameters
    ----------
    file : tifffile.TiffFile
        Open.

    Returns
    -------
    lengths : dict
        Micrometres per pixel along ``X``, ``Y`` and ``Z``; None, or left out, where unknown.
    kind : {"ome", "imagej", "tiff"}
        Whose dialect it is.
    metadata : dict
        See `ImageFile`.
    """
    page = file.pages.first
    if file.ome_metadata:
        return _ome(file.ome_metadata)
    if file.imagej_metadata is not None:
        return _imagej(file.imagej_metadata, page)
    if file.lsm_metadata:
        sizes = {a: file.lsm_metadata.get(f"VoxelSize{a}") for a in "XYZ"}
        return {a: to_micrometre(size, "m") for a, size in sizes.items()}, "tiff", {}
    unit = {2: "inch", 3: "cm"}.get(_tag(page, "ResolutionUnit", 2))
    lengths = {a: to_micrometre(_per_pixel(page, a), unit) for a in "XY"}
    measured = all(n is not None and n < _FINER_THAN_A_SCANNER for n in lengths.values())
    return (lengths if measured else {}), "tiff", {}


def _ome(text: str) -> tuple[Lengths, Kind, dict[str, Any]]:
    """Read OME-XML, whose default unit is the micrometre."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return {}, "ome", {}
    # Each release of the schema has its own namespace.
    image = next((e for e in root.iter() if _name(e) == "Image"), None)
    pixels = next((e for e in root.iter() if _name(e) == "Pixels"), None)
    if image is None or pixels is None:
        return {}, "ome", {}
    lengths = {
        a: to_micrometre(pixels.get(f"PhysicalSize{a}"), pixels.get(f"PhysicalSize{a}Unit", "µm"))
        for a in "XYZ"
    }
    metadata: dict[str, Any] = {}
    if image.get("Name"):
        metadata["name"] = image.get("Name")
    interval = _number(pixels.get("TimeIncrement"))
    seconds = _SECONDS.get(pixels.get("TimeIncrementUnit", "s"))
    if interval and seconds:
        metadata["interval"] = interval * seconds
    date = next((e for e in image if _name(e) == "AcquisitionDate"), None)
    if date is not None and date.text:
        metadata["AcquisitionDate"] = date.text
    plane = next((e for e in pixels if _name(e) == "Plane"), None)
    if plane is not None:
        metadata |= {key: plane.get(key) for key in _OME_KEPT if plane.get(key)}
    return lengths, "ome", metadata


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _imagej(found: Mapping[str, Any], page: Any) -> tuple[Lengths, Kind, dict[str, Any]]:
    """Read ImageJ's description: resolution tags count in the unit that it names."""
    unit = str(found.get("unit", "")) or None
    lengths = {a: to_micrometre(_per_pixel(page, a), unit) for a in "XY"}
    lengths["Z"] = to_micrometre(found.get("spacing"), unit)
    if unit in {"inch", "in"} and not all((lengths[a] or 99) < _FINER_THAN_A_SCANNER for a in "XY"):
        lengths = {}  # what ImageJ took over from a screenshot or a scan
    metadata = {key: found[key] for key in _IMAGEJ_KEPT if key in found}
    interval = _number(found.get("finterval"))
    seconds = _SECONDS.get(str(found.get("tunit", "s")))
    if interval and seconds:
        metadata["interval"] = interval * seconds
    return lengths, "imagej", metadata


def _per_pixel(page: Any, axis: str) -> float | None:
    """Units per pixel: the reciprocal of the resolution tag, a fraction."""
    value = _tag(page, f"{axis}Resolution", None)
    try:
        pixels, units = value
        return float(units) / float(pixels) if pixels and units else None
    except (TypeError, ValueError):
        return None


def _tag(page: Any, name: str, default: Any) -> Any:
    tag = page.tags.get(name)
    return default if tag is None else tag.value


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) and number > 0 else None
