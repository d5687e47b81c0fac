"""What several sub-commands share: arguments, opening images, tables and the progress bar."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from napari_unet.durations import duration
from napari_unet.errors import ValidUNetError
from napari_unet.options import DEVICES, ENGINES, PRECISIONS

if TYPE_CHECKING:
    from types import ModuleType

    from napari_unet.checkpoint import Model
    from napari_unet.config import UNetConfig
    from napari_unet.files import ImageFile
    from napari_unet.segmentation import Progress

Commands = Any  # what `ArgumentParser.add_subparsers` returns has no public name
Parents = list[argparse.ArgumentParser]


def spacing(text: str) -> tuple[float, ...]:
    """Read ``0.65`` or ``2,0.65,0.65``."""
    try:
        lengths = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers, as 0.65,0.65"
        ) from None
    if not all(0 < length < 1e6 for length in lengths):
        raise argparse.ArgumentTypeError(f"{text!r} holds a length that is not above 0")
    return lengths


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return number


_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def memory_size(text: str) -> int:
    """Read ``2GiB``, ``2 GB``, ``1.5G``, ``800M`` or a number of bytes.

    ``GB`` is the decimal gigabyte that it says, ``GiB`` and ``G`` are 1024 ** 3 bytes.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)(I?B)?\s*", text.upper())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory, as 2GiB or 800MB")
    number, unit, suffix = found.groups()
    decimal = suffix == "B" and unit
    size = int(float(number) * (1000 ** (_UNITS[unit] // 10) if decimal else 1 << _UNITS[unit]))
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory at all")
    return size


def add_json(parser: argparse.ArgumentParser, what: str = "the result as JSON") -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help=f"print {what}")


def assumption(text: str) -> tuple[str, str]:
    """Read ``order=skip-up``."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, as order=skip-up")
    return key, value


def add_assume(parser: argparse.ArgumentParser) -> None:
    """Add ``--assume``."""
    parser.add_argument(
        "--assume",
        type=assumption,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what a checkpoint of other software does not say, as order=skip-up; can be given "
        "several times (`valid-unet show` lists what is assumed otherwise)",
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what decides how a network runs over an image."""
    _add_means(parser)
    parser.add_argument(
        "--spacing",
        type=spacing,
        metavar="Y,X",
        help="micrometres per pixel, or Z,Y,X for volumes, or one number for all "
        "(default: what the file says)",
    )
    parser.add_argument(
        "--no-rescale",
        dest="rescale",
        action="store_false",
        help="take pixels as they are, whatever spacing the model was trained at",
    )
    parser.add_argument(
        "--axes",
        metavar="AXES",
        help="what the file's axes are, in its order, where it does not say or is wrong: "
        "letters of TZYXC such as ZYX, or CYX for channels in front",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=0,
        metavar="L",
        help="resolution of a pyramid (default: 0, the finest)",
    )


def _add_means(parser: argparse.ArgumentParser) -> None:
    """Add what the network may use: memory, device, precision; never what comes out."""
    parser.add_argument(
        "--tile-size",
        type=positive,
        metavar="N",
        help="pixels per side that are computed at once; changes speed and memory, never the "
        "result (default: what suits the model and the memory)",
    )
    parser.add_argument(
        "--memory",
        type=memory_size,
        metavar="SIZE",
        help="what a run may take, of the GPU's memory or of RAM, as 2GiB or 800MB; the tiles are "
        "chosen to fit (default: a safe share of what is free)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help=f"{', '.join(DEVICES)}, or cuda:1 (default: auto, a GPU if PyTorch can use one)",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=PRECISIONS,
        metavar="P",
        help=f"{', '.join(PRECISIONS)} (default: auto, bfloat16 where that is faster)",
    )
    parser.add_argument(
        "--engine",
        default="auto",
        choices=ENGINES,
        metavar="E",
        help=f"who computes: {', '.join(ENGINES)} (default: auto, on the CPU whoever is done "
        "first of those that are installed)",
    )


def load_segmentation() -> ModuleType:
    """Import what needs PyTorch.

    Raises
    ------
    ValidUNetError
        If PyTorch is there but cannot be loaded, or is not there.
    """
    try:
        from napari_unet import segmentation
    except (ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ValidUNetError(
            f"PyTorch cannot be loaded ({reason}); run `valid-unet doctor` to see what to install."
        ) from error
    return segmentation


def load_checkpoint(arguments: argparse.Namespace) -> Model:
    """Load ``--model`` with what ``--assume`` says; tell on stderr what was assumed besides."""
    from napari_unet.checkpoint import load_model

    model = load_model(arguments.model, assume=dict(arguments.assume))
    for warning in () if model.origin is None else model.origin.warnings:
        print(f"valid-unet: {arguments.model}: {warning}", file=sys.stderr)
    if model.origin is not None and model.origin.assumed:
        facts = ", ".join(f"{key} {value}" for key, value in model.origin.assumed.items())
        print(
            f"valid-unet: {arguments.model} does not say, and is assumed to have: {facts}; "
            "change it with --assume.",
            file=sys.stderr,
        )
    return model


def open_image(path: Path, arguments: argparse.Namespace, config: UNetConfig) -> ImageFile:
    """Read an image for a network; three equal channels are grey to one that takes one."""
    import numpy as np

    from napari_unet.files import read_image

    image = read_image(path, level=arguments.level, axes=arguments.axes)
    data = image.data
    if (
        image.axes is None
        or not image.axes.endswith("C")
        or config.in_channels > 1
        or not isinstance(data, np.ndarray)
        or not (data == data[..., :1]).all()
    ):
        return image
    remark = f"its {data.shape[-1]} channels are equal and were read as one"
    return replace(image, data=data[..., 0], axes=image.axes[:-1], remarks=(*image.remarks, remark))


def spacing_for(
    given: Sequence[float] | None, found: Sequence[float] | None, ndim: int
) -> tuple[float, ...] | None:
    """Lengths along a network's spatial axes: those given, or those of the file, or None."""
    if given is not None:
        return tuple(given) * ndim if len(given) == 1 else tuple(given)
    return tuple(found[-ndim:]) if found is not None and len(found) >= ndim else None


def print_json(document: Any) -> None:
    """Print a document; numbers that JSON lacks become null."""
    print(json.dumps(document, indent=2, allow_nan=False))


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Align columns; those of `right` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def by(numbers: Sequence[Any]) -> str:
    """572 x 572."""
    return " x ".join(map(str, numbers))


class Bar:
    """One line on a terminal that says how far a segmentation is; nothing anywhere else.

    Parameters
    ----------
    name : str
        Of the image.
    quiet : bool
        Show nothing.
    stream : TextIO, optional
        The terminal; stderr if left out.
    """

    def __init__(self, name: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.active = not quiet and self.stream.isatty()
        self.name = name

    def say(self, text: str) -> None:
        """Replace the line."""
        if self.active:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + text[:width].ljust(width))
            self.stream.flush()

    def update(self, progress: Progress) -> None:
        """Show tiles done, time left and speed."""
        done, total = progress.done, progress.total
        filled = 24 * done // max(total, 1)
        parts = [f"{done} of {total} tiles"]
        if done:
            speed = progress.pixels / 1e6 / max(progress.seconds, 1e-9)
            parts += [f"{duration(progress.left)} left", f"{speed:.2g} MPx/s"]
        elif progress.left > 1:
            parts.append(f"about {duration(progress.left)} left")
        if progress.stage == "objects":
            parts = ["finding objects"]
        self.say(f"{self.name}  [{'#' * filled}{'-' * (24 - filled)}]  {', '.join(parts)}")

    def clear(self) -> None:
        """Remove the line."""
        if self.active:
            self.say("")
            self.stream.write("\r")
            self.stream.flush()
