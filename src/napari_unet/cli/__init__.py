"""The command ``valid-unet``: one module for each of its sub-commands.

Exit status: 0 done, 1 a bug, 2 wrong usage, 3 trained but no better than before, 4 an image, model
or size that does not work, 130 interrupted. Errors are one line on stderr; ``--debug`` shows where
they came from.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from napari_unet._version import __version__
from napari_unet.cli import (
    convert,
    demo,
    doctor,
    evaluate,
    export,
    probe,
    segment,
    shapes,
    show,
    train,
    verify,
)
from napari_unet.errors import Cancelled, OptionError, ValidUNetError

__all__ = ["main"]

_BUG, _USAGE, _BAD_INPUT, _INTERRUPTED = 1, 2, 4, 130
_COMMANDS = (
    segment, train, verify, shapes, show, probe, convert, export, evaluate, doctor, demo,
)  # fmt: skip
_ISSUES = "https://github.com/napari-valid-unet/napari-valid-unet/issues"
_EXAMPLES = """\
examples:
  valid-unet segment cells.tif -o labels.tif        one image
  valid-unet segment *.tif -o labels/               many images, into a folder
  valid-unet train images/ labels/ -o new.safetensors   a network for your images
  valid-unet shapes 572                             sizes of the U-Net, layer by layer
  valid-unet demo                                   napari with a sample, ready to click

`valid-unet COMMAND --help` explains a command.

exit status: 0 done, 1 a bug, 2 wrong usage, 3 trained but no better than before, 4 an image, model
or size that does not work, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if left out.

    Returns
    -------
    int
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign such as µ gets a question mark instead of a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else _USAGE
    if "run" not in arguments:
        parser.print_help(sys.stderr)
        return _USAGE
    return _guarded(arguments)


def _parser() -> argparse.ArgumentParser:
    debug = argparse.ArgumentParser(add_help=False)
    debug.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser = argparse.ArgumentParser(
        prog="valid-unet",
        description="Segment images of any size with a valid-convolution U-Net, without seams.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[debug],
    )
    parser.add_argument("--version", action="version", version=f"valid-unet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(commands, [debug])
    return parser


def _guarded(arguments: argparse.Namespace) -> int:
    """Run the sub-command; every failure becomes one line and a status."""
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except OptionError as error:
        return _failed(arguments, error, str(error), _USAGE)
    except (KeyboardInterrupt, Cancelled):
        print("valid-unet: interrupted; no file was left half-written.", file=sys.stderr)
        return _INTERRUPTED
    except ValidUNetError as error:
        return _failed(arguments, error, str(error), _BAD_INPUT)
    except BrokenPipeError:
        # Whoever read the output has seen enough, such as `head`; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # A folder that may not be looked into, a name that is too long, a full disk.
        place = f"{error.filename}: " if error.filename else ""
        words = f"{place}{error.strerror or error}; check the path and its permissions."
        return _failed(arguments, error, words, _BAD_INPUT)
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback on screen
        words = (
            f"an unexpected error, which is a bug: {type(error).__name__}: {error} - run it again "
            f"with --debug and report what it prints at {_ISSUES}"
        )
        return _failed(arguments, error, " ".join(words.split()), _BUG)


def _failed(arguments: argparse.Namespace, error: Exception, words: str, status: int) -> int:
    if getattr(arguments, "debug", False):
        traceback.print_exception(error)
    print(f"valid-unet: {words}", file=sys.stderr)
    return status
