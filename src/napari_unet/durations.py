"""How long something takes, in words."""

from __future__ import annotations

__all__ = ["duration"]


def duration(seconds: float, *, tenths: bool = False) -> str:
    """Say how long: in seconds, from 90 on in minutes, from 90 of those on in hours.

    Parameters
    ----------
    seconds : float
        At least 0.
    tenths : bool
        Whether tenths of a second are worth saying: of what was measured.
    """
    if seconds < 90:
        return f"{seconds:.{int(tenths)}f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
