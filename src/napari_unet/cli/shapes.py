"""``valid-unet shapes``: the sizes of a U-Net layer by layer, and what breaks where."""

from __future__ import annotations

import argparse
import sys
import textwrap

from napari_unet.cli.common import Commands, Parents, add_json, by, positive, print_json, table
from napari_unet.config import UNetConfig
from napari_unet.errors import OptionError
from napari_unet.ledger import Ledger, Row, account

_DESCRIPTION = """\
Follow an input of SIZE x SIZE pixels through the U-Net of Ronneberger, Fischer and Brox (2015),
layer by layer: size and channels of every map, how much each skip connection is cropped, and
what comes out. For a size that does not work it says what breaks where, names the nearest sizes
that work, and ends with status 4.
"""


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "shapes",
        parents=parents,
        help="sizes and channels of the U-Net, layer by layer",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("size", type=positive, metavar="SIZE", help="pixels per side, such as 572")
    parser.add_argument(
        "--depth", type=int, default=4, metavar="D", help="number of poolings (default: 4)"
    )
    parser.add_argument(
        "--base-features",
        type=positive,
        default=64,
        metavar="F",
        help="channels at the first level, doubled at each next one (default: 64)",
    )
    add_json(parser, "the ledger as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the ledger."""
    if not 0 <= arguments.depth <= 11:
        raise OptionError(f"--depth must be from 0 to 11, not {arguments.depth}.")
    widths = tuple(arguments.base_features << level for level in range(arguments.depth + 1))
    ledger = account(UNetConfig(widths=widths), arguments.size)
    if arguments.json:
        print_json(ledger.to_dict())
    else:
        print(describe(ledger))
    if ledger.admissible:
        return 0
    if arguments.json:
        print(f"valid-unet: {by(ledger.size)} px does not work: {ledger.problem}.", file=sys.stderr)
    return 4


def describe(ledger: Ledger) -> str:
    """Return the ledger as text.

    Parameters
    ----------
    ledger : Ledger
        For a size that works or not.
    """
    config, axis = ledger.config, ledger.config.geometry.axes[-1]
    head = (
        f"U-Net with {config.depth} poolings and {config.widths[0]} features at the first level: "
        f"{config.n_parameters:,} parameters"
    )
    titles = ("layer", "level", "size", "channels", "")
    rows = [titles, *map(_cells, ledger.rows)]
    parts = [head, table(rows, right=(1, 3))]
    if ledger.output:
        parts.append(
            f"{by(ledger.size)} px in, {by(ledger.output)} px out: {axis.loss // 2} px per side "
            "are lost, since no convolution is padded."
        )
        if config.depth:
            parts.append(_where_it_goes_wrong(ledger))
    else:
        parts.append(_what_is_wrong(ledger))
    return "\n\n".join(parts)


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    """One line of the table."""
    name = row.layer if set(row.factor) == {1} else f"{row.layer} {'x'.join(map(str, row.factor))}"
    note = ""
    if row.layer == "crop":
        before = tuple(n + 2 * c for n, c in zip(row.size, row.cropped, strict=True))
        note = f"{row.cropped[-1]} px per side off the encoder's {by(before)}"
    elif row.layer == "concat":
        note = f"{row.parts[0]} from the encoder + {row.parts[1]} from the decoder"
    elif row.layer == "head":
        name, note = "head 1x1", "one map per class"
    return name, str(row.level), by(row.size), str(row.channels), note


def _where_it_goes_wrong(ledger: Ledger) -> str:
    """Explain the error that most people meet first, with this network's numbers."""
    at = next(i for i, row in enumerate(ledger.rows) if row.layer == "crop")
    bottom, up, crop, concat = ledger.rows[at - 2 : at + 2]
    have, want = crop.size[-1] + 2 * crop.cropped[-1], crop.size[-1]
    skip = crop.channels
    return _paragraph(
        f"The usual mistake is to concatenate ({have}, {have}, {skip}) with ({want}, {want}, "
        f'{bottom.channels}) at level {crop.level}. PyTorch then says "Sizes of tensors must match '
        f'except in dimension 1. Expected size {have} but got size {want}", Keras asks for '
        '"matching shapes except for the concatenation axis". Two steps are missing: the '
        f"up-convolution has to halve {bottom.channels} channels to {up.channels}, and the "
        f"encoder's map has to be cropped by {crop.cropped[-1]} px per side, from {have} to "
        f"{want}. Then {skip} + {up.channels} = {concat.channels} channels are concatenated."
    )


def _what_is_wrong(ledger: Ledger) -> str:
    """Say what breaks, what other frameworks make of it, and what works."""
    axis = ledger.config.geometry.axes[-1]
    wrong = f"{by(ledger.size)} px does not work: {ledger.problem}."
    if "skip connection" in ledger.silent:
        wrong += (
            f" A framework that drops the odd row goes on, but then {ledger.silent}: the "
            "difference is odd, and cropped all the same, the two are half a pixel apart."
        )
    works = [n[-1] for n in (ledger.below, ledger.above) if n is not None]
    listed = " and ".join(f"{n} px (-> {axis.output(n)} px)" for n in works)
    nearest = "The nearest sizes that work are" if ledger.below else "The smallest that works is"
    first = ", ".join(str(axis.smallest + n * axis.stride) for n in range(3))
    return f"{_paragraph(wrong)}\n\n{nearest} {listed}; all that work: {first}, ..."


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 96)
