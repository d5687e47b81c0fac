"""Paths as a person writes them."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from napari_unet.errors import OptionError

__all__ = ["is_there", "matching", "user_path"]


def user_path(path: str | os.PathLike[str]) -> Path:
    """Put the home folder in the place of ``~``.

    A name that only begins with one, as those of files that are open in Office do, stays as it is.

    Parameters
    ----------
    path : str or path
        As written.

    Returns
    -------
    Path
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user
        return Path(path)


def is_there(path: Path) -> bool:
    """Whether there is a file or folder, as far as one may look; a name too long is none.

    Parameters
    ----------
    path : Path
        To be looked for.

    Returns
    -------
    bool
    """
    try:
        return path.exists()
    except OSError:
        return False


def matching(text: str) -> list[Path] | None:
    """Files of a pattern, which the Windows shell passes on as it is.

    Parameters
    ----------
    text : str
        As written.

    Returns
    -------
    list of Path, or None if it is no pattern

    Raises
    ------
    OptionError
        If no file could ever match it.
    """
    if not glob.has_magic(text):
        return None
    path = user_path(text)
    start = Path(path.anchor)
    try:
        return sorted(start.glob(str(path.relative_to(start))))
    except ValueError as error:
        raise OptionError(f"{text} is no pattern for files ({error}); check it.") from error
