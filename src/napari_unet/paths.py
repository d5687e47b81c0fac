"""Paths as a person writes them."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["is_there", "user_path"]


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
