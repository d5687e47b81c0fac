"""Everything that can go wrong for a person, as one family of exceptions.

Each message is one sentence that says what to do next; the faces (dock, command line) show it as
it is.
"""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "CheckpointError",
    "GeometryError",
    "ImageError",
    "MemoryLimitError",
    "OptionError",
    "OutputError",
    "ValidUNetError",
]


class ValidUNetError(Exception):
    """Base of every error this package raises on purpose."""


class GeometryError(ValidUNetError, ValueError):
    """A size does not fit the network's grid of poolings and crops."""


class CheckpointError(ValidUNetError, ValueError):
    """A file is not a checkpoint, or not one that can be trusted."""


class ImageError(ValidUNetError, ValueError):
    """An image does not fit the model, or cannot be read or written."""


class OptionError(ValidUNetError, ValueError):
    """A setting is outside what it may be."""


class OutputError(ValidUNetError):
    """A file cannot be written."""


class MemoryLimitError(ValidUNetError):
    """The device has too little memory for one tile.

    Parameters
    ----------
    message : str
        One sentence that says what to do next.
    device : str
        Where a training ran out of it, for those who have other advice to give; else empty.
    """

    def __init__(self, message: str, device: str = "") -> None:
        super().__init__(message)
        self.device = device


class Cancelled(ValidUNetError):
    """The person asked to stop; not a failure."""
