"""Who computes the network: one interface, PyTorch as the reference, others where installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_unet.answers import Answer

__all__ = ["Pending", "Predictor", "PredictorError", "ShouldStop"]

ShouldStop = Callable[[], bool] | None


class PredictorError(Exception):
    """A predictor cannot run this network here; another one may."""


class Pending(Protocol):
    """Tiles on their way through the network."""

    def result(self, should_stop: ShouldStop) -> NDArray[Any]:
        """Wait for what is made of the logits (B, K, [Z,] Y, X): `answers`.

        Raises
        ------
        Cancelled
            If `should_stop` said yes; it is asked often, and the work is given up.
        """

    def drop(self) -> None:
        """Give the work up."""


class Predictor(Protocol):
    """A network made ready for one device and precision.

    Attributes
    ----------
    name : str
        ``torch``, ``openvino`` or ``ncnn``.
    ahead : int
        Calls worth starting before the result of the last is fetched: 0 where the device does not
        work on its own while Python reads and writes.
    answer : callable
        What is made of the logits (`answers`), on the device.
    """

    name: str
    ahead: int
    answer: Answer

    @property
    def held(self) -> int:
        """Bytes that it holds while it rests."""

    def prepare(self, tiles: int, shape: tuple[int, ...]) -> None:
        """Do what can be done for so many tiles of one shape before their pixels are there."""

    def start(self, pixels: NDArray[np.float32]) -> Pending:
        """Begin with tiles (B, C, [Z,] Y, X) of one shape."""

    def rest(self, most: int = 0) -> None:
        """Give back memory that only the next tile has a use for, beyond `most` bytes."""
