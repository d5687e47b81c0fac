"""Run the combinations that matter and let the annotation decide."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from napari_unet.probe.outcome import Probe, ProbeProgress

__all__ = ["probe", "probe_steps"]

ShouldStop = Callable[[], bool] | None


def probe_steps(
    path: str | os.PathLike[str],
    image: Any,
    labels: Any,
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    assume: Mapping[str, object] | None = None,
    should_stop: ShouldStop = None,
) -> Generator[ProbeProgress, None, Probe]:
    """Find out step by step what a checkpoint's file does not say.

    Parameters
    ----------
    path : str or path
        A checkpoint of other software.
    image : array-like of shape (T)(Z)YX(C)
        A picture such as the network was trained on.
    labels : array-like of integers, of the image's shape without channels
        What is in it: 0 is background, above 0 are objects (ids, or classes), below 0 is unknown
        and left out.
    axes : str, optional
        One letter per axis of the image, in the order of ``TZYXC``; guessed if left out.
    spacing : sequence of float, optional
        Micrometres per pixel along the network's spatial axes.
    assume : mapping, optional
        What the person knows already; it is kept.
    should_stop : callable, optional
        Asked before every layer of the network.

    Yields
    ------
    ProbeProgress

    Returns
    -------
    Probe

    Raises
    ------
    CheckpointError, ImageError, OptionError
        If the file, the picture or an assumption does not work.
    Cancelled
        If `should_stop` said yes.
    """
    yield ProbeProgress(0.0, "reading the checkpoint", 0.0)
    raise NotImplementedError


def probe(
    path: str | os.PathLike[str],
    image: Any,
    labels: Any,
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    assume: Mapping[str, object] | None = None,
    should_stop: ShouldStop = None,
) -> Probe:
    """Find out what a checkpoint's file does not say; `probe_steps` in one call."""
    steps = probe_steps(
        path, image, labels, axes=axes, spacing=spacing, assume=assume, should_stop=should_stop
    )
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: Probe = stop.value
            return found
