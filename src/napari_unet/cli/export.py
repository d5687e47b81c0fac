"""``valid-unet export``: a model as a package for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from napari_unet.cli.common import (
    Commands,
    Parents,
    add_assume,
    add_json,
    load_checkpoint,
    load_segmentation,
    print_json,
)
from napari_unet.errors import OptionError
from napari_unet.paths import user_path

_DESCRIPTION = """\
Write a model as a bioimage.io package of version 0.5: a .zip with the description, the weights as
a PyTorch state dict, the source of the network in one file, and a test with its expected result.
The output are logits. A package made here can be opened here again, with nothing lost.
"""


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "export",
        parents=parents,
        help="write a model as a bioimage.io package",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint, or a bundled model's name")
    parser.add_argument("target", type=Path, metavar="DST", help="a .zip file to write")
    parser.add_argument(
        "--format",
        choices=["bioimageio"],
        default="bioimageio",
        help="of the package (default: bioimageio, the only one so far)",
    )
    parser.add_argument(
        "--tileable",
        action="store_true",
        help="write the variant that pads its input, so that the output is as large, with a halo "
        "to cut off: for programs that tile images but ignore a valid network's offset",
    )
    parser.add_argument(
        "--author",
        action="append",
        default=[],
        metavar="NAME",
        help="can be given several times (default: what the model says)",
    )
    parser.add_argument(
        "--license",
        metavar="SPDX",
        help="identifier such as CC-BY-4.0 (default: what the model says, if it is clear)",
    )
    add_assume(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load, write, and say what is in the package."""
    target = user_path(arguments.target)
    if target.suffix != ".zip":
        raise OptionError(f"{target.name} has to end in .zip; choose another name.")
    load_segmentation()
    from napari_unet.checkpoint import find_checkpoint
    from napari_unet.export import export_package

    if target.exists() and target.samefile(find_checkpoint(arguments.model)):
        raise OptionError("Source and target are the same file; choose another name.")
    model = load_checkpoint(arguments)
    export_package(
        model,
        target,
        tileable=arguments.tileable,
        authors=arguments.author,
        license=arguments.license,
    )
    if arguments.json:
        print_json({"input": str(model.path), "output": str(target), "format": arguments.format})
        return 0
    same = arguments.tileable or model.config.padding == "same"
    sizes = "as large as its input, with a halo" if same else "smaller than its input, no halo"
    print(f"{model.path} -> {target}: {model.card.describe()}; output {sizes}")
    return 0
