"""Images and labels that belong together: folders, patterns, single files, or a table of pairs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import ImageError
from napari_unet.files import read_image, read_labels
from napari_unet.paths import matching, user_path

__all__ = ["Pair", "PairFiles", "find_pairs", "load_pair"]

_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy", ".zarr")
_ENDINGS = ("_labels", "_label", "_masks", "_mask", "_classes", "_truth", "_img", "_image")
_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_COLUMNS = ("image", "labels")


@dataclass(frozen=True)
class PairFiles:
    """Files of one pair.

    Parameters
    ----------
    image, labels : Path
        Any file that `read_image` reads.
    reviewed : Path, optional
        Mask of the region that was looked at.
    stack : str
        What the image is a plane of, if it is one.
    """

    image: Path
    labels: Path
    reviewed: Path | None = None
    stack: str = ""


@dataclass(frozen=True, eq=False)
class Pair:
    """One labelled image: a plane for a 2-D network, or a volume.

    Parameters
    ----------
    name : str
        For messages.
    image : ndarray of shape ([Z,] Y, X) or with channels behind
        Pixels as in the file.
    axes : str
        Of `image`: ``YX``, ``ZYX``, ``YXC`` or ``ZYXC``.
    labels : integer ndarray of shape ([Z,] Y, X)
        As in the file.
    reviewed : ndarray of bool, optional
        Where somebody has looked.
    spacing : tuple of float, optional
        Micrometres per pixel, along the spatial axes.
    stack : str
        What it is a plane of, if it is one.
    """

    name: str
    image: NDArray[Any]
    axes: str
    labels: NDArray[Any]
    reviewed: NDArray[np.bool_] | None = None
    spacing: tuple[float, ...] | None = None
    stack: str = ""

    @property
    def channels(self) -> int:
        """Of the image."""
        return int(self.image.shape[-1]) if self.axes.endswith("C") else 1

    @property
    def channel_first(self) -> NDArray[Any]:
        """The image as (C, [Z,] Y, X)."""
        return np.moveaxis(self.image, -1, 0) if self.axes.endswith("C") else self.image[None]


def find_pairs(images: str, labels: str | None) -> list[PairFiles]:
    """Match images with labels.

    Parameters
    ----------
    images : str
        A folder, a pattern, a file, or a ``.csv`` with the columns image, labels and, if there
        are any, reviewed and stack (the same for planes of one stack); its paths are relative to
        its folder.
    labels : str, optional
        A folder, a pattern or a file; none for a table. Files belong together whose names are
        equal, apart from ``_labels``, ``_mask`` and the like at the end; where no two names are,
        and there are as many of both, their order decides.

    Returns
    -------
    list of PairFiles
        Sorted by name.

    Raises
    ------
    ImageError
        If something is missing or does not go together.
    """
    if images.lower().endswith(".csv"):
        return _from_table(user_path(images))
    if labels is None:
        raise ImageError("Say where the labels are: a folder, a pattern, or a file.")
    pictures, truths = _files(images, "image"), _files(labels, "label image")
    by_name = {_key(path): path for path in truths}
    if len(by_name) < len(truths):
        raise ImageError(f"Two files in {labels} have the same name; move one of them away.")
    found = [PairFiles(path, by_name[_key(path)]) for path in pictures if _key(path) in by_name]
    if len(found) == len(pictures) == len(truths):
        return found
    if not found and len(pictures) == len(truths):
        return [PairFiles(a, b) for a, b in zip(pictures, truths, strict=True)]
    lonely = [path for path in pictures if _key(path) not in by_name]
    extra = {_key(path) for path in pictures}
    lonely += [path for path in truths if _key(path) not in extra]
    raise ImageError(
        f"There are {len(pictures)} images and {len(truths)} label images, and {len(lonely)} have "
        f"no partner of the same name (such as {lonely[0].name}); give as many of both, named "
        "alike."
    )


def load_pair(
    files: PairFiles, ndim: int, *, axes: str | None = None, grey: bool = True
) -> list[Pair]:
    """Read one pair.

    Parameters
    ----------
    files : PairFiles
        What to read.
    ndim : int
        Spatial axes of the network. With 2, every plane of a stack is a pair of its own.
    axes : str, optional
        What the image's axes are, where its file does not say.
    grey : bool
        Whether equal channels are read as one.

    Raises
    ------
    ImageError
        If a file cannot be read, labels are fractions, or shapes differ.
    """
    found = read_image(files.image, axes=axes)
    pixels = np.asarray(found.data)
    if pixels.dtype.kind not in "buif":
        raise ImageError(f"{files.image.name} holds {pixels.dtype}; save it as integers or floats.")
    labels = read_labels(files.labels)
    colour = _has_channels(found.axes, pixels.shape, labels.shape)
    if grey and colour and (pixels == pixels[..., :1]).all():
        pixels, colour = pixels[..., 0], False
    shape = pixels.shape[:-1] if colour else pixels.shape
    if shape != labels.shape:
        raise ImageError(
            f"{files.image.name} has shape {shape} but {files.labels.name} has {labels.shape}; "
            "labels must be of the same pixels as their image."
        )
    if len(shape) < ndim:
        raise ImageError(
            f"{files.image.name} is flat, and this network needs volumes (Z, Y, X); take a 2-D "
            "model, or stacks."
        )
    reviewed = None
    if files.reviewed is not None:
        reviewed = read_labels(files.reviewed) > 0
        if reviewed.shape != labels.shape:
            raise ImageError(
                f"{files.reviewed.name} has shape {reviewed.shape} but {files.labels.name} has "
                f"{labels.shape}; the reviewed region must be of the same pixels."
            )
    spacing = found.spacing[-ndim:] if found.spacing and len(found.spacing) >= ndim else None
    letters = "ZYX"[-ndim:] + "C" * colour
    pairs = []
    for index in np.ndindex(*shape[: len(shape) - ndim]):
        at = "".join(f"[{i}]" for i in index)
        part = None if reviewed is None else reviewed[index]
        name = f"{files.image.name}{at}"
        stack = files.stack or (str(files.image) if at else "")
        pairs.append(Pair(name, pixels[index], letters, labels[index], part, spacing, stack))
    return pairs


def _has_channels(axes: str | None, shape: Sequence[int], labels: Sequence[int]) -> bool:
    """Whether the last axis is channels; labels tell where the file does not."""
    if axes is not None:
        return axes.endswith("C")
    return tuple(shape[:-1]) == tuple(labels)


def _files(text: str, what: str) -> list[Path]:
    """Image files of a folder, a pattern, or a path."""
    path = user_path(text)
    if path.is_dir() and not any((path / name).is_file() for name in _ZARR_FILES):
        found = _readable(path.iterdir())
    elif path.exists():
        return [path]
    elif (matched := matching(text)) is not None:
        found = _readable(matched)
    else:
        raise ImageError(f"There is no {text}; check the path of the {what}s.")
    if not found:
        raise ImageError(f"{text} holds no {what} ({', '.join(_SUFFIXES)}); check the path.")
    return found


def _readable(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        p for p in paths if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")
    )  # fmt: skip


def _key(path: Path) -> str:
    """Name that images and labels share."""
    name = path.name[: -len(path.suffix)] if path.suffix else path.name
    name = name.removesuffix(".ome")
    return next((name.removesuffix(end) for end in _ENDINGS if name.endswith(end)), name)


def _from_table(path: Path) -> list[PairFiles]:
    """Pairs of a ``.csv``."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImageError(f"{path} cannot be read as a table; check the file.") from error
    if not rows:
        raise ImageError(f"{path.name} names no pair; give one image and its labels a line.")
    if missing := [name for name in _COLUMNS if not rows[0].get(name)]:
        raise ImageError(
            f"{path.name} has no column {missing[0]!r}; its first line must name the columns image "
            "and labels."
        )

    def of(text: str | None) -> Path | None:
        return path.parent / text if text else None

    found = []
    for number, row in enumerate(rows, start=2):
        image, labels = of(row["image"]), of(row["labels"])
        if image is None or labels is None:
            raise ImageError(f"Line {number} of {path.name} lacks an image or its labels.")
        found.append(PairFiles(image, labels, of(row.get("reviewed")), row.get("stack") or ""))
    return found
