"""``valid-unet verify``: tiled inference against a single pass over the whole image."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from napari_unet.cli.common import (
    Commands,
    Parents,
    add_assume,
    add_json,
    add_run_arguments,
    by,
    load_checkpoint,
    load_segmentation,
    open_image,
    print_json,
    spacing_for,
)
from napari_unet.paths import user_path

_DESCRIPTION = """\
Run a model over an image tile by tile and once more over all of it in one pass, and compare the
logits and the classes. In float32 they agree but for rounding (about 1e-5) and no label changes:
the seams are exact. Of time points and planes the first is compared. The single pass needs memory
for the whole image at once.
"""


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "verify",
        parents=parents,
        help="compare tiled with whole-image inference",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image file or zarr folder")
    parser.add_argument(
        "--model",
        default="nuclei",
        metavar="M",
        help="a bundled model's name, or a checkpoint of any format that `convert` reads "
        "(default: nuclei)",
    )
    add_assume(parser)
    add_run_arguments(parser)
    add_json(parser, "max_abs_logit_difference, changed_labels, pixels, tile_size and tiles")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print how far they differ."""
    load_segmentation()
    from napari_unet.verification import verify

    model = load_checkpoint(arguments)
    image = open_image(user_path(arguments.image), arguments, model.config)
    result = verify(
        image.data,
        model,
        axes=image.axes,
        spacing=spacing_for(arguments.spacing, image.spacing, model.config.ndim),
        tile_size=arguments.tile_size,
        memory=arguments.memory,
        device=arguments.device,
        precision=arguments.precision,
        engine=arguments.engine,
        rescale=arguments.rescale,
    )
    if arguments.json:
        print_json({"input": str(arguments.image), "model": model.card.name, **asdict(result)})
        return 0
    print(
        f"{arguments.image}: {result.tiles} tile{'s' * (result.tiles != 1)} of "
        f"{by(result.tile_size)} px against one pass over {result.pixels:,} pixels\n"
        f"largest difference of a logit: {result.max_abs_logit_difference:.3g}\n"
        f"changed labels: {result.changed_labels:,}"
    )
    if result.tiles == 1:
        print("All of it fits into one tile: choose a smaller --tile-size to test the seams.")
    return 0
