"""``valid-unet probe``: find out on an annotated picture what a checkpoint does not say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from napari_unet.cli.common import (
    Bar,
    Commands,
    Parents,
    add_assume,
    add_json,
    load_segmentation,
    open_image,
    print_json,
    spacing,
    spacing_for,
    table,
)
from napari_unet.errors import OptionError
from napari_unet.paths import user_path
from napari_unet.steps import walk

if TYPE_CHECKING:
    from napari_unet.probe import Probe, ProbeProgress

_DESCRIPTION = """\
Run a checkpoint of other software in every way that its file leaves open over a part of an
annotated picture, and say which way finds what is annotated: order of the concatenation,
activations, input normalisation (percentile, min-max, mean-std, dtype-range or none), which class
is the foreground. LABELS has 0 for background and numbers above 0 for objects.

Where no answer is clearly better than the others, it says so and chooses nothing; the exit status
is 0 then, too. The score is 1 where the network is sure and right everywhere, 0 for a coin toss.
"""
_SHOWN = 8


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "probe",
        parents=parents,
        help="find out what a checkpoint does not say, on an annotated picture",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of other software")
    parser.add_argument("image", type=Path, metavar="IMAGE", help="like those it was trained on")
    parser.add_argument("labels", type=Path, metavar="LABELS", help="what is in it")
    add_assume(parser)
    parser.add_argument(
        "--axes",
        metavar="AXES",
        help="what the image file's axes are, in its order, where it does not say or is wrong",
    )
    parser.add_argument(
        "--spacing",
        type=spacing,
        metavar="Y,X",
        help="micrometres per pixel, or Z,Y,X for volumes (default: what the file says)",
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="DST",
        help="a .safetensors file for the network with what was found, if something was",
    )
    add_json(parser, "candidates, best, open_questions and sentence as JSON")
    parser.set_defaults(run=run, level=0)


def run(arguments: argparse.Namespace) -> int:
    """Probe, and print the best combinations and what to do with them."""
    target = user_path(arguments.write) if arguments.write else None
    if target is not None and target.suffix != ".safetensors":
        raise OptionError(f"{target.name} has to end in .safetensors; choose another name.")
    load_segmentation()
    from napari_unet.checkpoint import find_checkpoint, load_model, read_card, save_model
    from napari_unet.files import read_labels
    from napari_unet.probe import probe_steps

    assume = dict(arguments.assume)
    if (
        target is not None
        and target.exists()
        and target.samefile(find_checkpoint(arguments.checkpoint))
    ):
        raise OptionError("Source and target are the same file; choose another name.")
    config = read_card(arguments.checkpoint, assume=assume).config
    image = open_image(user_path(arguments.image), arguments, config)
    steps = probe_steps(
        arguments.checkpoint,
        image.data,
        read_labels(user_path(arguments.labels)),
        axes=image.axes,
        spacing=spacing_for(arguments.spacing, image.spacing, config.ndim),
        assume=assume,
    )
    found = _watched(steps, Path(arguments.checkpoint).name, quiet=arguments.json)
    written = None
    if target is not None and found.best is not None:
        model = load_model(arguments.checkpoint, assume=found.best)
        written = str(save_model(target, model.network, model.card))
    if arguments.json:
        print_json(_document(found, arguments, written))
    else:
        _print(found, written)
    if target is not None and written is None:
        print(f"valid-unet: {target} was not written.", file=sys.stderr)
    return 0


def _watched(steps: Generator[ProbeProgress, None, Probe], name: str, *, quiet: bool) -> Probe:
    """Run to the end, with a line on the terminal."""
    bar = Bar(name, quiet=quiet)
    try:
        return walk(steps, lambda at: bar.say(f"{name}  {at.fraction:4.0%}  {at.text}"))
    finally:
        bar.clear()


def _document(
    found: Probe, arguments: argparse.Namespace, written: str | None
) -> dict[str, object]:
    return {
        "checkpoint": arguments.checkpoint,
        "image": str(arguments.image),
        "labels": str(arguments.labels),
        "best": found.best,
        "sentence": found.sentence,
        "open_questions": {key: list(values) for key, values in found.open_questions.items()},
        "candidates": [
            {"assume": dict(c.assume), "score": c.score, "low": c.low, "high": c.high}
            for c in found.candidates
        ],
        "output": written,
    }


def _print(found: Probe, written: str | None) -> None:
    keys = list(found.candidates[0].assume)
    rows = [("score", "99 % interval", *keys)]
    rows += [
        (f"{c.score:.3f}", f"{c.low:.3f} to {c.high:.3f}", *(c.assume[key] for key in keys))
        for c in found.candidates[:_SHOWN]
    ]
    print(table(rows))
    if more := len(found.candidates) - _SHOWN:
        print(f"and {more} more that are no better" if more > 0 else "", end="\n" * (more > 0))
    print(found.sentence)
    if found.best:
        flags = " ".join(f"--assume {key}={value}" for key, value in found.best.items())
        print(f"Use: {flags}")
    if written:
        print(f"Written: {written}")
