"""Arguments of ``valid-unet train``, and the network and recipe that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_unet.cli.common import add_assume, add_json, positive
from napari_unet.errors import OptionError
from napari_unet.options import DEVICES, PRECISIONS

if TYPE_CHECKING:
    from napari_unet.checkpoint import Model
    from napari_unet.training.recipe import Recipe

_MINUTES = 10.0


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add what says where to start and what labels mean."""
    add = parser.add_argument
    add("--from", dest="start", metavar="MODEL", help="model to fine-tune: a name or a file")
    add_assume(parser)
    add(
        "--val",
        default="0.15",
        metavar="FRACTION|DIR",
        help="part of the images to hold out, or a folder with images/ and labels/, or a .csv "
        "(default: 0.15; of a single image, the end of its longest axis)",
    )
    add(
        "--classes",
        metavar="A,B,...",
        help="labels are classes: NAME, NAME=LABEL or NAME=LABEL:ROLE each, background first",
    )
    add("--sparse", action="store_true", help="label 0 means that nobody has looked there")
    add(
        "--replay",
        metavar="DIR",
        help="images that the old model was trained on, as for --val, to keep what it knows",
    )
    add("--axes", metavar="AXES", help="the images' axes where their files do not say, as ZYX")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add how to train."""
    add = parser.add_argument
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--steps", type=positive, metavar="N", help="steps of the optimiser")
    long.add_argument(
        "--minutes", type=float, metavar="M", help=f"time to spend (default: {_MINUTES:g})"
    )
    add("--paper", action="store_true", help="the network and recipe of Ronneberger et al. 2015")
    add("--ndim", type=int, choices=(2, 3), help="axes of a new network (default: 2)")
    add(
        "--widths",
        metavar="A,B,...",
        help="channels of a new network at each level (default: 16,32,64,128)",
    )
    add("--no-contour", action="store_true", help="of objects, learn foreground only")
    add(
        "--tile",
        type=positive,
        metavar="N",
        help="output pixels of a tile (default: 240; 64 in 3-D; 388 with --paper)",
    )
    add("--batch", type=positive, metavar="N", help="tiles of a step (default: 4)")
    add("--optimiser", choices=("adamw", "sgd"), help="default: adamw, with one cycle")
    add("--rate", type=float, metavar="R", help="highest learning rate (default: 0.003; 0.002 "
        "with --from)")  # fmt: skip
    add("--weights", choices=("gaps", "paper", "later", "none"), help="weight map (default: gaps)")
    add("--elastic", type=float, metavar="PX", help="spread of the deformation (default: 10)")
    add("--dropout", type=float, metavar="P", help="in the contracting path's end (default: 0)")
    add("--patience", type=int, default=0, metavar="N", help="end after N looks at the held-out "
        "images without a better score (default: never)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of all random numbers (default: 0)")
    workers = "processes that cut tiles, beside a GPU one for each core (default: 1, a thread)"
    add("--workers", type=int, default=1, metavar="N", help=workers)
    add("--device", default="auto", metavar="D", help=f"{', '.join(DEVICES)}, or cuda:1")
    add("--precision", default="auto", choices=PRECISIONS, metavar="P", help=", ".join(PRECISIONS))


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add what is written besides."""
    add = parser.add_argument
    add("--name", help="of the new model (default: the file's)")
    add("--resume", action="store_true", help="go on with a training that was interrupted")
    add(
        "--save-every",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds between two saved states (default: 60)",
    )
    add("--report", type=Path, metavar="FILE", help="HTML page (default: NEW.html)")
    add("--tensorboard", type=Path, metavar="DIR", help="write TensorBoard event files there")
    add_json(parser, "what came out as JSON, and nothing else")


def config_of(arguments: argparse.Namespace) -> Any:
    """Build the configuration of a new network."""
    from dataclasses import replace

    from napari_unet.config import UNetConfig
    from napari_unet.training.plan import DEFAULT_CONFIG

    config = UNetConfig(dropout=0.5) if arguments.paper else DEFAULT_CONFIG
    changes: dict[str, Any] = {"n_classes": 2 if arguments.no_contour else 3}
    if arguments.widths:
        try:
            changes["widths"] = tuple(int(part) for part in arguments.widths.split(","))
        except ValueError:
            raise OptionError(f"--widths is numbers as 16,32,64, not {arguments.widths}.") from None
    widths = changes.get("widths", config.widths)
    ndim = arguments.ndim or 2
    if ndim == 3 or widths != config.widths:
        changes |= {"ndim": ndim, "kernels": (), "pools": (), "up_widths": ()}
    return replace(config, **changes)


def recipe_of(arguments: argparse.Namespace, start: Model | None) -> Recipe:
    """Build the recipe from what was given."""
    from dataclasses import replace

    from napari_unet.training.recipe import Recipe, fine_tuning_recipe, paper_recipe
    from napari_unet.training.targets import Targets

    steps, minutes = arguments.steps, arguments.minutes
    if steps is None and minutes is None:
        minutes = _MINUTES
    length = {"steps": steps, "minutes": minutes}
    if arguments.paper:
        recipe = paper_recipe(Targets(), **length)
    else:
        recipe = (Recipe if start is None else fine_tuning_recipe)(**length)
    changes: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("seed", "workers", "device", "precision", "patience")
    }
    if arguments.tile or (start.config.ndim if start is not None else arguments.ndim) == 3:
        changes["write"] = arguments.tile or 64
    if arguments.batch:
        changes["batch"] = arguments.batch
    optimisation = recipe.optimisation
    if arguments.optimiser:
        optimisation = replace(optimisation, kind=arguments.optimiser)
    if arguments.rate is not None:
        optimisation = replace(optimisation, rate=arguments.rate)
    changes["optimisation"] = optimisation
    if arguments.weights:
        changes["weighting"] = replace(recipe.weighting, kind=arguments.weights)
    if arguments.elastic is not None:
        changes["augmentation"] = replace(recipe.augmentation, elastic=arguments.elastic)
    return replace(recipe, **changes)
