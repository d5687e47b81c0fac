"""Walking through a generator that yields progress and returns a result."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

__all__ = ["walk"]

Step = TypeVar("Step")
Result = TypeVar("Result")


def walk(
    steps: Generator[Step, None, Result], each: Callable[[Step], object] | None = None
) -> Result:
    """Go to the end, and return what the generator returns.

    Parameters
    ----------
    steps : generator
        Such as `napari_unet.segmentation.segment_steps` gives.
    each : callable, optional
        Called with every step.
    """
    while True:
        try:
            step = next(steps)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        if each is not None:
            each(step)
