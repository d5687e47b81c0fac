"""How far a run is, for the bar and in words."""

from __future__ import annotations

from dataclasses import dataclass

from napari_unet.durations import duration

__all__ = ["Part", "Update"]

Part = tuple[slice, ...]

# Seconds worth telling before anything is done.
_LONG = 1.5
# Seconds by which a tile may be late before that is told.
_LATE = 2.0
# Of a tile that is being computed, the bar tells no more than this share.
_MOST = 0.95


@dataclass(frozen=True, eq=False)
class Update:
    """What happened since the last one.

    Parameters
    ----------
    parts : tuple of tuple of slice
        Which pixels of the canvas are new.
    done, total : int
        Tiles.
    seconds : float
        Since the run began.
    pixels : int
        Finished.
    stage : {"network", "objects"}
        What is being done.
    left : float
        Seconds until the last tile is done; 0 if nobody knows.
    remarks : tuple of str
        What had to be changed so far; sentences.
    """

    parts: tuple[Part, ...]
    done: int
    total: int
    seconds: float
    pixels: int
    stage: str
    left: float = 0.0
    remarks: tuple[str, ...] = ()

    def share(self, since: float = 0.0) -> float:
        """Part of the tiles that is done, and of the next one going by the time `since` (s)."""
        waiting = self.total - self.done
        ahead = min(since * waiting / self.left, _MOST) if self.left and waiting else 0.0
        return (self.done + ahead) / max(self.total, 1)

    def in_words(self, since: float = 0.0) -> str:
        """``12 of 20 tiles, 3 s left, 1.2 MPx/s``, and below it the last remark.

        Before the first tile: ``0 of 20 tiles, about 8 s left``, or where that was wrong
        ``0 of 20 tiles, longer than expected``. After the last one, on large images:
        ``finding the objects, 8 s so far``.

        Parameters
        ----------
        since : float
            Seconds that have gone by.
        """
        return "\n".join((self._tiles(since), *self.remarks[-1:]))

    def _tiles(self, since: float) -> str:
        if self.stage == "objects":
            gone = f", {duration(since)} so far" if since > _LONG else ""
            return f"finding the objects{gone}"
        tiles = f"{self.done} of {self.total} tile{'s' * (self.total != 1)}"
        left = f"{duration(max(self.left - since, 0))} left"
        if self.left and since > self.left + _LATE:
            left = "longer than expected"
        elif not self.done:
            left = f"about {left}"
        if not self.done or not self.seconds:
            return f"{tiles}, {left}" if self.left > _LONG else tiles
        rate = self.pixels / self.seconds / 1e6
        return f"{tiles}, {left}, {rate:.2g} MPx/s"
