"""The probe: what a checkpoint does not say, found out on an image and its labels, in a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject

from napari_unet._napari.loading import in_one_line, link_torch, no_torch, uncollected
from napari_unet._napari.results import METADATA_KEY
from napari_unet._napari.runner import audible, unforeseen
from napari_unet.errors import Cancelled, ValidUNetError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels

    from napari_unet.probe import Probe, ProbeProgress

__all__ = ["Probing", "ToProbe", "labels_of_shape"]

_PERCENT = 100
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ToProbe:
    """One probe, complete.

    Parameters
    ----------
    path : Path
        The checkpoint.
    image : array-like of shape (T)(Z)YX(C)
    labels : array-like of integers
        Of the image's shape without channels.
    axes : str, optional
        Of the image; None leaves it to the core.
    spacing : tuple of float, optional
        Micrometres per pixel along the network's axes.
    assume : mapping of str
        What is known already.
    """

    path: Path
    image: Any
    labels: Any
    axes: str | None
    spacing: tuple[float, ...] | None
    assume: Mapping[str, str]


class Probing(QObject):
    """Runs one probe at a time.

    Parameters
    ----------
    show : callable
        Called with finished and all steps, and words.
    ended : callable
        Called once for each probe: with what was found, a sentence about a failure, or None after
        a cancel.
    parent : QObject
        Of this object.
    """

    def __init__(
        self,
        show: Callable[[int, int, str], None],
        ended: Callable[[Probe | str | None], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._show, self._ended = show, ended
        self._stop: Callable[[], None] | None = None

    @property
    def running(self) -> bool:
        """Whether a probe has begun and not ended."""
        return self._stop is not None

    def start(self, job: ToProbe) -> None:
        """Begin in a thread of napari's pool."""
        from napari.qt.threading import create_worker

        asked: list[bool] = []
        steps = _work(job, lambda: bool(asked) or worker.abort_requested)
        worker: Any = create_worker(audible, steps, _ignore_errors=True)

        def stop() -> None:
            asked.append(True)

        def ended(outcome: Probe | str | None = None) -> None:
            if self._stop is stop:
                self._stop = None
                self._ended(outcome)

        def errored(error: Exception) -> None:
            from napari.utils.notifications import notification_manager

            try:
                notification_manager.receive_error(type(error), error, error.__traceback__)
            finally:
                ended(unforeseen(error))

        def yielded(step: ProbeProgress) -> None:
            if self._stop is stop and not asked:
                self._show(round(_PERCENT * step.fraction), _PERCENT, step.text)

        self._stop = stop
        self._show(0, 0, "loading PyTorch and the model")
        worker.yielded.connect(yielded)
        worker.returned.connect(ended)
        worker.errored.connect(errored)
        worker.aborted.connect(ended)
        worker.start()

    def cancel(self) -> None:
        """Stop now, whatever the worker still does."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
            self._ended(None)

    def close(self) -> None:
        """Stop for good, and say nothing: the dock is going away."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()


def labels_of_shape(viewer: ViewerModel, shape: tuple[int, ...]) -> list[Labels]:
    """Labels layers that could belong to an image: what a person drew first, then our results.

    Parameters
    ----------
    viewer : ViewerModel
        Whose layers are looked at, the topmost first.
    shape : tuple of int
        Of the image without channels.
    """
    from napari.layers import Labels

    fitting = [
        layer
        for layer in reversed(viewer.layers)
        if isinstance(layer, Labels) and not layer.multiscale and layer.data.shape == shape
    ]
    return sorted(fitting, key=lambda layer: METADATA_KEY in layer.metadata)


def _work(
    job: ToProbe, should_stop: Callable[[], bool]
) -> Generator[ProbeProgress, None, Probe | str | None]:
    """Probe in a worker's thread; every failure that has a sentence comes back as one."""
    try:
        link_torch()
        with uncollected():
            import torch  # noqa: F401 (what follows imports it too late for `uncollected`)

            from napari_unet.probe import probe_steps
    except (ImportError, OSError) as error:
        return no_torch(error)
    try:
        return (
            yield from probe_steps(
                job.path,
                job.image,
                job.labels,
                axes=job.axes,
                spacing=job.spacing,
                assume=job.assume,
                should_stop=should_stop,
            )
        )
    except Cancelled:
        return None
    except ValidUNetError as error:
        return str(error)
    except MemoryError:
        return "Out of memory; choose a smaller image and its labels, or close other programs."
    except (OSError, RuntimeError) as error:
        logger.warning("The probe stopped.", exc_info=True)
        return f"The probe failed ({in_one_line(error)}); try another image and its labels."
