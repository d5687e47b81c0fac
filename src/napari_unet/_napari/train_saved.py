"""Pairs in a folder: TIFF files and a table of them, which ``valid-unet train`` reads too."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_unet._napari.train_pairs import SavedPair, count_objects
from napari_unet.atomic import check_folder, replacing_file
from napari_unet.errors import ImageError
from napari_unet.files import read_labels
from napari_unet.training.pairs import Pair, PairFiles, find_pairs

__all__ = ["TABLE", "as_saved", "file_name", "find_saved", "look_at", "save_pairs"]

TABLE = "pairs.csv"
_COLUMNS = ("image", "labels", "reviewed", "stack")
_KINDS = {"b": np.uint8, "i": np.int32, "u": np.uint32, "f": np.float64}
_STORED = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64")


def file_name(text: str) -> str:
    """What is left of a name once all is taken out that a file system may refuse."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"


def save_pairs(folder: Path, pairs: Sequence[Pair]) -> Path:
    """Write pairs into a folder, beside those that are there already.

    Every file is there completely or not at all, and the table is written last: it never names a
    file that is missing.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    pairs : sequence of Pair
        To save.

    Returns
    -------
    Path
        The table.

    Raises
    ------
    ImageError
        If the folder has a table that cannot be read.
    OutputError
        If something cannot be written.
    """
    table = folder / TABLE
    check_folder(table)
    rows = [_row(files, folder) for files in find_pairs(str(table), None)] if table.exists() else []
    for pair in pairs:
        stem = _free_name(folder, file_name(re.sub(r"(\.ome)?\.tiff?(?=\[|$)", "", pair.name)))
        names = [f"{stem}.ome.tif", f"{stem}_labels.ome.tif", "", pair.stack]
        axes = pair.axes.rstrip("C")
        pixels, letters = pair.image, pair.axes
        if pair.axes.endswith("C"):
            # Before Y and X, where all programs look for channels.
            pixels = np.moveaxis(pixels, -1, -3)
            letters = f"{axes[:-2]}CYX"
        _write(folder / names[0], pixels, letters, pair.spacing)
        _write(folder / names[1], pair.labels, axes, pair.spacing)
        if pair.reviewed is not None:
            names[2] = f"{stem}_reviewed.ome.tif"
            _write(folder / names[2], pair.reviewed, axes, pair.spacing)
        rows.append(names)
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_COLUMNS, *rows])
    with replacing_file(table) as file:
        file.write(text.getvalue().encode())
    return table


def as_saved(pair: Pair) -> Pair:
    """Give a pair the types of numbers that it will be read with: all follows from those."""
    return replace(pair, image=_storable(pair.image), labels=_storable(pair.labels))


def find_saved(place: Path) -> list[PairFiles]:
    """Pairs of a table, or of a folder.

    Parameters
    ----------
    place : Path
        A ``.csv``; or a folder that holds one, or ``images`` and ``labels`` (or ``masks``).

    Raises
    ------
    ImageError
        If there are none.
    """
    if not place.is_dir():
        if place.suffix.lower() != ".csv":
            raise ImageError(f"{place} is no folder and no table (.csv) of pairs; choose one.")
        return find_pairs(str(place), None)
    tables = sorted(place.glob("*.csv"))
    if (place / TABLE) in tables or len(tables) == 1:
        return find_pairs(str(place / TABLE if (place / TABLE) in tables else tables[0]), None)
    for name in ("labels", "masks"):
        if (place / "images").is_dir() and (place / name).is_dir():
            return find_pairs(str(place / "images"), str(place / name))
    raise ImageError(
        f"{place} holds neither {TABLE} nor the folders images and labels; choose another folder."
    )


def look_at(files: Sequence[PairFiles]) -> list[SavedPair]:
    """Read how large pairs are, and how much is labelled.

    Raises
    ------
    ImageError
        If one cannot be read.
    """
    found = []
    for one in files:
        labels = read_labels(one.labels)
        found.append(SavedPair(one, labels.shape, count_objects(labels)))
    return found


def _free_name(folder: Path, stem: str) -> str:
    number, name = 1, stem
    while (folder / f"{name}.ome.tif").exists():
        number, name = number + 1, f"{stem}-{number + 1}"
    return name


def _row(files: PairFiles, folder: Path) -> list[str]:
    """Line of the table; paths inside the folder stay relative to it."""
    paths = (files.image, files.labels, files.reviewed)
    names = [
        ""
        if path is None
        else (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
        for path in paths
    ]
    return [*names, files.stack]


def _write(path: Path, array: NDArray[Any], axes: str, spacing: tuple[float, ...] | None) -> None:
    """Write a TIFF with its axes and, to the last digit, its spacing."""
    array = _storable(array)
    metadata: dict[str, Any] = {"axes": axes}
    for axis, length in zip("ZYX"[-len(spacing) :] if spacing else "", spacing or (), strict=True):
        metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": "µm"}
    with replacing_file(path) as file:
        tifffile.imwrite(
            file,
            np.ascontiguousarray(array),
            ome=True,
            photometric="minisblack",
            planarconfig=None,
            compression="zlib",
            metadata=metadata,
        )


def _storable(array: NDArray[Any]) -> NDArray[Any]:
    """Numbers that a TIFF has, in this machine's order of bytes."""
    kind = np.dtype(array.dtype.name if array.dtype.name in _STORED else _KINDS[array.dtype.kind])
    return array.astype(kind, copy=False)
