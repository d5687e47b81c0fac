"""``valid-unet convert``: a checkpoint of other software into one that says all about itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from napari_unet.cli.common import (
    Commands,
    Parents,
    add_assume,
    add_json,
    load_segmentation,
    print_json,
    table,
)
from napari_unet.errors import OptionError
from napari_unet.paths import user_path

_DESCRIPTION = """\
Write a checkpoint in the native format: weights, network, normalisation and where each fact comes
from in one .safetensors file. Read are PyTorch's .pt, .pth and .ckpt, plain .safetensors, Keras's
.keras, .h5 and .weights.h5, Freiburg's .caffemodel.h5 and .caffemodel, and bioimage.io packages; no
code in them is ever run.

What the weights do not say is assumed from the habits of the code they come from, and printed. Set
it with --assume: padding=valid, order=skip-up|up-skip, norm-order=norm-act|act-norm,
up=nearest|linear, up-activation=yes|no, slope=0.1,
normalisation=percentile|min-max|mean-std|dtype-range|none (dtype-range: 8-bit images by 255),
shift=-0.5, foreground=1 or 1+2 (numbers of classes), contour=2|none. `valid-unet probe` finds them
on an annotated image.
"""


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "convert",
        parents=parents,
        help="write a checkpoint of other software in the native format",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="checkpoint, or a bundled model's name")
    parser.add_argument("target", type=Path, metavar="DST", help="a .safetensors file to write")
    add_assume(parser)
    add_json(parser, "what is known about the network as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, write, and say what was read, inferred and assumed."""
    target = user_path(arguments.target)
    if target.suffix != ".safetensors":
        raise OptionError(f"{target.name} has to end in .safetensors; choose another name.")
    load_segmentation()
    from napari_unet.checkpoint import find_checkpoint, load_model, save_model

    if target.exists() and target.samefile(find_checkpoint(arguments.source)):
        raise OptionError("Source and target are the same file; choose another name.")
    model = load_model(arguments.source, assume=dict(arguments.assume))
    save_model(target, model.network, model.card)
    if arguments.json:
        origin = None if model.origin is None else model.origin.to_dict()
        print_json({"input": str(model.path), "output": str(target), "origin": origin})
        return 0
    print(f"{model.path} -> {target}: {model.card.describe()}")
    if model.origin is not None:
        print(table([(f"  {key}", text) for key, text in model.origin.provenance().items()]))
        if model.origin.assumed:
            print("What is assumed decides the result: check it, and set it with --assume.")
    return 0
