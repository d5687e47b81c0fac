"""One run at a time: its worker, its preview, its bar, and the layers that it leaves.

napari's own list of activities stays out of it: while there is an entry it turns a wheel in the
status bar, for which the window is put together anew many times a second. Where there is no
graphics card to do that (a remote desktop), a run took four tenths longer.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np
from qtpy.QtCore import QObject, QTimer

from napari_unet._napari.preview import Preview
from napari_unet._napari.progress import Update
from napari_unet._napari.request import Request
from napari_unet._napari.results import LayerData
from napari_unet._napari.runner import (
    Canvas,
    Failure,
    Finished,
    Outcome,
    Run,
    unforeseen,
)
from napari_unet.errors import MemoryLimitError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["Session"]

# A cancelled run that has not ended by then is left to end by itself, unheard.
_PATIENCE_MS = 250
# Of the bar.
_STEPS = 1000
# After a layer was added the window is drawn before anything else is done.
_A_FRAME_MS = 20

Given = ParamSpec("Given")


def _or_end(
    step: Callable[Concatenate[Session, Given], None],
) -> Callable[Concatenate[Session, Given], None]:
    """Let a run end where a step of it goes wrong in the window: nothing would ever end it."""

    @wraps(step)
    def safe(self: Session, /, *args: Given.args, **more: Given.kwargs) -> None:
        try:
            step(self, *args, **more)
        except Exception as error:
            self._words = None
            self.drop(unforeseen(error), failed=True)
            raise

    return safe


class Session(QObject):
    """What a click on Segment sets off.

    Parameters
    ----------
    viewer : ViewerModel
        Layers are added to it, on the main thread, and only while the session is open.
    show : callable
        Called with how far it is, of how much (0: not known yet), and words.
    ended : callable
        Called once for each run, with words, whether they tell of a failure, and what more there
        is to say.
    parent : QObject
        Of this object.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        show: Callable[[int, int, str], None],
        ended: Callable[[str, bool, str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._viewer, self._show, self._ended = viewer, show, ended
        self._run: Run | None = None
        self._image: Image | None = None
        self._preview: Preview | None = None
        self._last: Update | None = None
        self._since = 0.0
        self._words: str | None = None
        self._remarks: tuple[str, ...] = ()
        self.cancelling = False
        # One step at a time, so that the window is drawn in between.
        self._lay_out = self._timer(0, self._add_preview)
        self._launch = self._timer(_A_FRAME_MS, self._start_worker)
        self._settle = self._timer(_A_FRAME_MS, self._finish)
        self._patience = self._timer(_PATIENCE_MS, self.drop)
        self._next_second = self._timer(1000, self._tell)
        viewer.layers.events.removed.connect(self._on_layer_removed)
        _warm_up()

    def _timer(self, milliseconds: int, callback: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(milliseconds)
        timer.timeout.connect(callback)
        return timer

    @property
    def running(self) -> bool:
        """Whether a run has begun and not ended."""
        return self._run is not None

    def start(self, request: Request, image: Image) -> None:
        """Begin a run on a layer.

        Raises
        ------
        MemoryLimitError
            If there is no room for the labels.
        """
        try:
            canvas = Canvas(request)
        except MemoryError as error:
            raise MemoryLimitError(
                f"There is no memory for labels of {' x '.join(map(str, request.shape))}; choose "
                "the current slice or the visible region."
            ) from error
        self._image, self._last, self.cancelling = image, None, False
        self._run = Run(request, canvas, self._on_update, self._on_end)
        self._show(0, 0, "loading PyTorch and the model")
        self._lay_out.start()

    @_or_end
    def _add_preview(self) -> None:
        run = self._run
        if run is not None:
            self._preview = Preview(self._viewer, run.request, run.canvas)
            self._launch.start()

    @_or_end
    def _start_worker(self) -> None:
        run = self._run
        if run is not None:
            # The collector would stop all threads for 200 ms at a time to go over what napari and
            # torch have made; frozen, it is left out until the run has ended.
            gc.freeze()
            run.start()

    def cancel(self) -> bool:
        """Stop soon; True if what was finished is made into a result, which takes a moment."""
        run = self._run
        if run is None or self._words is not None:
            return False
        if self.cancelling:
            self.drop()
            return False
        self.cancelling = True
        run.cancel()
        keeping = run.request.options.keep_finished and bool(self._last and self._last.done)
        if keeping and self._last is not None:
            count = f"{self._last.done} finished tile{'s' * (self._last.done != 1)}"
            self._show(0, 0, f"stopped; keeping the {count}")
        else:
            self._patience.start()
        return keeping

    def drop(self, words: str = "Cancelled; nothing was added.", *, failed: bool = False) -> None:
        """Stop now: nothing is added, whatever the worker still does."""
        if self._words is not None:
            self._finish()
        elif self._run is not None:
            self._run.abandon()
            self._close(words, failed=failed)

    def close(self) -> None:
        """Stop for good, and say nothing: the dock is going away."""
        self._viewer.layers.events.removed.disconnect(self._on_layer_removed)
        self._ended = _say_nothing
        self.drop()

    def _on_update(self, update: Update) -> None:
        if self._run is None or self.cancelling:
            return
        if self._last is None:
            # By now torch has been imported.
            gc.freeze()
        self._last, self._since = update, time.monotonic()
        self._tell()
        if update.parts and self._preview is not None:
            self._preview.update(update.parts)

    def _tell(self) -> None:
        """Say how far it is, and again each second until the next tile is done."""
        if self._last is not None and not self.cancelling:
            since = time.monotonic() - self._since
            self._show(round(_STEPS * self._last.share(since)), _STEPS, self._last.in_words(since))
            self._next_second.start()

    @_or_end
    def _on_end(self, outcome: Outcome) -> None:
        if isinstance(outcome, Finished):
            self._add(outcome.layers)
            self._words, self._remarks = outcome.words, outcome.remarks
            self._settle.start()
        elif isinstance(outcome, Failure):
            self._close(outcome.message, failed=True)
        else:
            self._close("Cancelled; nothing was added.", failed=False)

    def _add(self, layers: tuple[LayerData, ...]) -> None:
        from napari.layers import Layer

        *maps, labels = layers
        viewer, preview = self._viewer, self._preview
        if preview is not None and preview.become(labels):
            result = preview.layer
        else:
            result = viewer.add_layer(Layer.create(*labels))
        self._preview = None
        active = viewer.layers.selection.active
        for layer in maps:
            viewer.layers.insert(viewer.layers.index(result), Layer.create(*layer))
        if maps:
            viewer.layers.selection.active = active

    @_or_end
    def _finish(self) -> None:
        words, self._words = self._words, None
        if words is not None:
            self._close(words, failed=False)

    def _close(self, words: str, *, failed: bool) -> None:
        for timer in self.findChildren(QTimer):
            timer.stop()
        self._run = self._image = None
        self.cancelling = False
        preview, self._preview = self._preview, None
        remarks, self._remarks = self._remarks, ()
        try:
            if preview is not None:
                preview.remove()
        finally:
            gc.unfreeze()
            self._ended(words, failed, "\n".join(remarks))

    def _on_layer_removed(self, event: Any) -> None:
        if self._image is not None and event.value is self._image:
            self.drop(
                f"The image {self._image.name} was removed, so its segmentation was stopped; "
                "open it again to start over.",
                failed=True,
            )


def _warm_up() -> None:
    """Make what the first Labels layer makes once: now, not when a run begins."""
    from napari.layers import Labels

    Labels(np.zeros((1, 1), np.uint8))


def _say_nothing(_words: str, _failed: bool, _more: str) -> None:
    """Nobody is there to hear."""
