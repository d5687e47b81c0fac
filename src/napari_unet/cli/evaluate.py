"""``valid-unet evaluate``: compare label images with the truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_unet.cli.common import Commands, Parents, add_json, print_json, table
from napari_unet.errors import ImageError
from napari_unet.paths import user_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DESCRIPTION = """\
Compare label images with the truth, object by object, as the 2018 Data Science Bowl did: two
objects match if they share more than a part of their union (IoU).

  F1@0.5       2 TP / (2 TP + FP + FN), matches at IoU > 0.5
  mean AP      TP / (TP + FP + FN), mean over IoU > 0.50, 0.55 ... 0.95
  IoU          of all foreground, whatever the objects
  pixel error  part of the pixels that are foreground in one of the two only

LABELS and TRUTH are two files, or two folders whose files have the same names; `_labels`,
`_classes` or `_masks` at the end of a name does not count. Of folders, each image's scores and
their mean are given.

With --membranes, LABELS is the probability (0 to 1) of being no membrane, and TRUTH is 0 on
membranes; scores are those of the ISBI 2012 challenge, at the best of ten thresholds:

  V_Rand, V_Info  foreground-restricted Rand and information scores after thinning
  pixel error     part of the pixels on the wrong side
"""
_SUFFIXES = (".tif", ".tiff", ".png", ".npy", ".zarr")
_ENDINGS = ("_labels", "_label", "_classes", "_masks", "_mask", "_truth")
_COLUMNS = (
    ("F1@0.5", "f1_50", "{:.4f}"),
    ("mean AP", "mean_ap", "{:.4f}"),
    ("IoU", "iou", "{:.4f}"),
    ("pixel error", "pixel_error", "{:.5f}"),
    ("objects", "objects", "{:.0f}"),
    ("truth", "truth_objects", "{:.0f}"),
)
_MEMBRANE_COLUMNS = (
    ("V_Rand", "rand", "{:.4f}"),
    ("at", "rand_threshold", "{:.1f}"),
    ("V_Info", "info", "{:.4f}"),
    ("at", "info_threshold", "{:.1f}"),
    ("pixel error", "pixel_error", "{:.5f}"),
    ("at", "pixel_threshold", "{:.1f}"),
)


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "evaluate",
        parents=parents,
        help="compare labels with the truth: F1, average precision, IoU",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("labels", type=Path, metavar="LABELS", help="what was found")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="what is there")
    parser.add_argument(
        "--membranes",
        action="store_true",
        help="score how well membranes part a stack of slices, as ISBI 2012 did; of two files",
    )
    add_json(parser, "the scores as JSON; of folders also those of each image, as `images`")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the scores."""
    from napari_unet.evaluate import aggregate

    labels, truth = user_path(arguments.labels), user_path(arguments.truth)
    folders = _is_folder(labels), _is_folder(truth)
    if folders[0] != folders[1]:
        raise ImageError("LABELS and TRUTH must both be files, or both be folders of files.")
    if arguments.membranes and folders[0]:
        raise ImageError("--membranes compares two files; give a stack of slices as one file.")
    if not folders[0]:
        membranes = arguments.membranes
        scores = _compare_membranes(labels, truth) if membranes else _compare(labels, truth)
        if arguments.json:
            print_json({"labels": str(labels), "truth": str(truth), **scores})
        else:
            print(_table([(labels.name, scores)], _MEMBRANE_COLUMNS if membranes else _COLUMNS))
        return 0
    pairs = _pairs(labels, truth)
    each = [(found.name, _compare(found, there)) for found, there in pairs]
    mean = aggregate(scores for _, scores in each)
    if arguments.json:
        images = [
            {"labels": str(found), "truth": str(there), **scores}
            for (found, there), (_, scores) in zip(pairs, each, strict=True)
        ]
        summary = {**mean, "image_count": mean["images"], "images": images}
        print_json({"labels": str(labels), "truth": str(truth), **summary})
    else:
        print(_table([*each, (f"mean of {len(each)}, sums", mean)]))
    return 0


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder of files, not a zarr image."""
    marks = ("zarr.json", ".zarray", ".zgroup")
    return path.is_dir() and not any((path / mark).is_file() for mark in marks)


def _compare(labels: Path, truth: Path) -> dict[str, float]:
    from napari_unet.evaluate import evaluate
    from napari_unet.files import label_file

    files = label_file(labels), label_file(truth)
    found, there = (file.data for file in files)
    if found.shape != there.shape:
        raise ImageError(
            f"{labels.name} has shape {found.shape} but {truth.name} has {there.shape}; compare "
            "label images of the same picture."
        )
    if any((file.axes or "").startswith("T") for file in files):
        found, there = _each_for_itself(found), _each_for_itself(there)
    return evaluate(found, there)


def _each_for_itself(labels: NDArray[Any]) -> NDArray[Any]:
    """Let no object go on from one time point to the next, whether its number does or not."""
    import numpy as np

    from napari_unet.runs import compact

    frames, last = [], 0
    for frame in labels:
        numbers, rank = compact(frame.ravel())
        frames.append(np.where(rank > 0, rank + last, 0).reshape(frame.shape))
        last += numbers.size
    # The scores are of pixels that share a number: the planes of each volume may follow each other.
    return np.stack(frames).reshape(-1, *labels.shape[-2:])


def _compare_membranes(interior: Path, truth: Path) -> dict[str, float]:
    import numpy as np

    from napari_unet.files import read_image, read_labels
    from napari_unet.files.image_file import decoding
    from napari_unet.membranes import evaluate_membranes

    image = read_image(interior)
    with decoding(interior):
        found = np.asarray(image.data)
    if found.dtype.kind != "f" or not (found.size and 0 <= found.min() <= found.max() <= 1):
        raise ImageError(
            f"{interior.name} holds no probabilities from 0 to 1 but {found.dtype}; give the "
            "probability of the inside of cells, as one channel of what "
            "`valid-unet segment --output probabilities` writes."
        )
    return evaluate_membranes(found, read_labels(truth))


def _pairs(labels: Path, truth: Path) -> list[tuple[Path, Path]]:
    """Files of both folders by name; every truth needs its labels, or the mean would flatter."""
    found, there = _by_name(labels), _by_name(truth)
    if not there:
        raise ImageError(f"{truth} holds no label image ({', '.join(_SUFFIXES)}); check the path.")
    if missing := sorted(set(there) - set(found)):
        names = ", ".join(there[key].name for key in missing[:3])
        raise ImageError(
            f"{labels} has no labels for {len(missing)} of {len(there)} images in {truth} "
            f"({names}{', ...' if len(missing) > 3 else ''}); names must be the same in both."
        )
    if more := len(set(found) - set(there)):
        print(f"valid-unet: {more} label images without a truth are left out.", file=sys.stderr)
    return [(found[key], there[key]) for key in sorted(there)]


def _by_name(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
            continue
        name = path.stem.removesuffix(".ome")
        key = next((name.removesuffix(end) for end in _ENDINGS if name.endswith(end)), name)
        if key in files:
            raise ImageError(
                f"{files[key].name} and {path.name} in {folder} are labels of the same name; "
                "move one of them away."
            )
        files[key] = path
    return files


def _table(
    rows: list[tuple[str, dict[str, Any]]], columns: Sequence[tuple[str, str, str]] = _COLUMNS
) -> str:
    titles = ("", *(title for title, _, _ in columns))
    lines = [
        (name, *(pattern.format(scores[key]) for _, key, pattern in columns))
        for name, scores in rows
    ]
    return table([titles, *lines], right=range(1, len(titles)))
