"""The worker: segmentation in a thread of its own, and what the window holds of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._napari.loading import in_one_line, link_torch, no_torch, uncollected, unreadable
from napari_unet._napari.progress import Part, Update
from napari_unet._napari.request import Request
from napari_unet._napari.results import LayerData, in_words, layers_of
from napari_unet.errors import Cancelled, ValidUNetError

if TYPE_CHECKING:
    from napari_unet.segmentation import Progress, Segmentation

__all__ = [
    "Canvas",
    "Failure",
    "Finished",
    "Outcome",
    "Run",
    "Stopped",
    "Walk",
    "Wish",
    "audible",
    "unforeseen",
    "work",
]

# Between two looks at the window: fast enough to look alive, seldom enough to cost nothing.
_INTERVAL = 0.2
# Ids that uint8 can show; more are repeated, as napari repeats its colours.
_SHOWN_IDS = 255

Steps = Generator["Progress", None, "Segmentation"]
logger = logging.getLogger(__name__)


class Canvas:
    """Labels of the finished tiles: written by the worker, shown by the window.

    Parameters
    ----------
    request : Request
        What is computed.

    Attributes
    ----------
    shown : uint8 array of shape ``request.shape``
        For the screen: one byte per pixel goes to the graphics card as it is.
    """

    def __init__(self, request: Request) -> None:
        self.shown: NDArray[np.uint8] = np.zeros(request.shape, np.uint8)
        self._origin = request.origin

    def write(self, progress: Progress) -> Part | None:
        """Put a tile in its place; None for a step that finished none."""
        preview, window = progress.preview, progress.window
        if preview is None or window is None or preview.size == 0:
            return None
        start = (*progress.frame, *window.start)
        stop = (*(index + 1 for index in progress.frame), *window.stop)
        part = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, self._origin, strict=True))
        block = preview.reshape([s.stop - s.start for s in part])
        self.shown[part] = np.where(block > 0, (block - 1) % _SHOWN_IDS + 1, 0)
        return part


@dataclass(frozen=True)
class Finished:
    """A complete run: the layers to add, what happened in words, and every remark on it."""

    layers: tuple[LayerData, ...]
    words: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """A person asked to stop."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, in one sentence."""

    message: str


Outcome = Finished | Stopped | Failure


class _UnforeseenError(Exception):
    """A bug, or what nobody has thought of."""


class Wish(Enum):
    """What the window wants of the worker."""

    GO_ON = 0
    STOP = 1
    DROP = 2


def work(
    request: Request, canvas: Canvas, wish: Callable[[], Wish]
) -> Generator[Update, None, Outcome]:
    """Segment in a worker's thread.

    Every failure that has a sentence comes back as an outcome: a RuntimeError that leaves a
    generator worker is taken for a deleted window and swallowed, and torch raises RuntimeErrors.

    Parameters
    ----------
    request : Request
        What to do.
    canvas : Canvas
        Finished tiles are written into it.
    wish : callable
        Asked often. At `Wish.STOP` the run ends with what was finished, if it is to be kept, or
        with `Stopped`; at `Wish.DROP` it ends.

    Yields
    ------
    Update
        A few times a second.
    """
    try:
        link_torch()
        with uncollected():
            from napari_unet.segmentation import segment_steps
    except (ImportError, OSError) as error:
        return Failure(no_torch(error))
    try:
        segmentation = yield from _show(request, canvas, segment_steps, wish)
        words = in_words(request, segmentation)
        return Finished(layers_of(request, segmentation), words, segmentation.report.remarks)
    except Cancelled:
        return Stopped()
    except ValidUNetError as error:
        return Failure(str(error))
    except MemoryError:
        return Failure(
            "Out of memory; choose the visible region or a smaller tile size, or close other "
            "programs."
        )
    except OSError as error:
        logger.warning("Segmentation stopped.", exc_info=True)
        return Failure(unreadable(error))
    except RuntimeError as error:
        logger.warning("Segmentation stopped.", exc_info=True)
        return Failure(
            f"The computation failed ({in_one_line(error)}); try float32 on the CPU under Advanced."
        )


def _show(
    request: Request,
    canvas: Canvas,
    segment_steps: Callable[..., Steps],
    wish: Callable[[], Wish],
) -> Generator[Update, None, Segmentation]:
    """Pass steps on as updates, the first at once and then a few a second."""
    parts, shown, stage = list[Part](), -_INTERVAL, "network"

    def should_stop() -> bool:
        if request.options.keep_finished and stage == "objects":
            # All tiles are there: what a person wants to keep is a moment away.
            return wish() is Wish.DROP
        return wish() is not Wish.GO_ON

    steps = segment_steps(
        request.array,
        request.model,
        request.options,
        should_stop=should_stop,
        preview=True,
        focus=request.focus,
    )
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                segmentation: Segmentation = end.value
                return segmentation
            stage = step.stage
            if (part := canvas.write(step)) is not None:
                parts.append(part)
            now = time.monotonic()
            # The first tile is what a person waits for, the last what they see next.
            if now - shown < _INTERVAL and 1 < step.done < step.total:
                continue  # a glance, too: it comes while `done` is still 0
            shown = now
            yield Update(
                tuple(parts),
                step.done,
                step.total,
                step.seconds,
                step.pixels,
                stage,
                step.left,
                step.remarks,
            )
            parts.clear()
    finally:
        steps.close()


def audible(steps: Generator[Any, None, Any]) -> Generator[Any, None, Any]:
    """Walk through steps; every error that leaves them is heard of in the window.

    superqt takes a RuntimeError that leaves a generator for a deleted window: its worker ends
    without a word, and the dock would wait for ever. What else leaves a worker is told.

    Parameters
    ----------
    steps : generator
        What a worker does.
    """
    try:
        return (yield from steps)
    except RuntimeError as error:
        raise _UnforeseenError(in_one_line(error)) from error


def unforeseen(error: BaseException) -> str:
    """Say that something went wrong that should not."""
    return f"Something went wrong that should not ({in_one_line(error)})."


class Walk:
    """A generator that is walked through in a thread; all methods are for the main thread.

    Parameters
    ----------
    steps : callable
        Given what says the `Wish`, returns a generator of updates, whose result is an outcome.
    on_update : callable
        Called with each update, while nobody has asked to stop.
    on_end : callable
        Called once with the outcome, unless the walk was abandoned.
    """

    def __init__(
        self,
        steps: Callable[[Callable[[], Wish]], Generator[Any, None, Any]],
        on_update: Callable[[Any], None],
        on_end: Callable[[Any], None],
    ) -> None:
        self._steps = steps
        self._wish = Wish.GO_ON
        self._on_update: Callable[[Any], None] | None = on_update
        self._on_end: Callable[[Any], None] | None = on_end
        self.worker: Any = None

    def start(self) -> None:
        """Begin in a thread of napari's pool."""
        from napari.qt.threading import create_worker

        self.worker = create_worker(audible, self._steps(self._asked), _ignore_errors=True)
        self.worker.yielded.connect(self._yielded)
        self.worker.returned.connect(self._end)
        self.worker.errored.connect(self._errored)
        self.worker.aborted.connect(self._aborted)
        self.worker.start()

    def cancel(self) -> None:
        """Ask to stop; the outcome still comes."""
        self._wish = Wish.STOP

    def abandon(self, *_: object) -> None:
        """Ask to stop, and hear nothing of it any more."""
        self._wish = Wish.DROP
        self._on_update = self._on_end = None

    def _asked(self) -> Wish:
        # napari quits its workers when the window closes.
        quitting = self.worker is not None and self.worker.abort_requested
        return Wish.DROP if quitting else self._wish

    def _yielded(self, update: Any) -> None:
        if self._on_update is not None and self._wish is Wish.GO_ON:
            self._on_update(update)

    def _end(self, outcome: Any) -> None:
        on_end = self._on_end
        self._on_update = self._on_end = None
        if on_end is not None:
            on_end(outcome)

    def _aborted(self) -> None:
        self._end(Stopped())

    def _errored(self, error: Exception) -> None:
        from napari.utils.notifications import notification_manager

        try:
            # A bug: napari's notification has the traceback behind a button.
            notification_manager.receive_error(type(error), error, error.__traceback__)
        finally:
            self._end(Failure(unforeseen(error)))


class Run(Walk):
    """A segmentation on its way.

    Parameters
    ----------
    request : Request
        What to do.
    canvas : Canvas
        Where finished tiles are written.
    on_update, on_end : callable
        As of `Walk`, for `Update` and `Outcome`.
    """

    def __init__(
        self,
        request: Request,
        canvas: Canvas,
        on_update: Callable[[Update], None],
        on_end: Callable[[Outcome], None],
    ) -> None:
        super().__init__(partial(work, request, canvas), on_update, on_end)
        self.request, self.canvas = request, canvas
