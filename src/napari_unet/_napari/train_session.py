"""One training at a time: its worker, its layers, and what the window hears of it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QTimer

from napari_unet._napari.runner import Failure, Stopped
from napari_unet._napari.train_layers import TrainLayers
from napari_unet._napari.train_news import Done, TrainUpdate
from napari_unet._napari.train_order import Order
from napari_unet._napari.train_worker import Learning

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["TrainSession"]

# In which the window is drawn before anything else is done.
_A_FRAME_MS = 20


class TrainSession(QObject):
    """What a click on Train sets off.

    Parameters
    ----------
    viewer : ViewerModel
        Layers are added to it, on the main thread, and only while the session is open.
    show : callable
        Called with each `TrainUpdate`.
    ended : callable
        Called once for each training with its outcome.
    parent : QObject
        Of this object.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        show: Callable[[TrainUpdate], None],
        ended: Callable[[Done | Stopped | Failure], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._show, self._ended = show, ended
        self._layers = TrainLayers(viewer)
        self._run: Learning | None = None
        self.stopping = False
        self._left: list[Callable[[], None]] = []
        self._learning = False
        # One thing at a time, so that the window is drawn in between.
        self._launch = self._timer(self._start_worker)
        self._settle = self._timer(self._go_on_ending)

    def _timer(self, callback: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(_A_FRAME_MS)
        timer.timeout.connect(callback)
        return timer

    @property
    def running(self) -> bool:
        """Whether a training has begun and not ended."""
        return self._run is not None

    @property
    def paused(self) -> bool:
        """Whether it is being held up."""
        return self._run is not None and self._run.paused

    def start(self, order: Order) -> None:
        """Begin a training."""
        self.stopping = self._learning = False
        self._run = Learning(order, self._on_update, self._on_end)
        self._show(TrainUpdate("loading PyTorch and the model"))
        self._launch.start()

    def _start_worker(self) -> None:
        if self._run is not None:
            # As for a segmentation: the collector would go over all that napari has made.
            gc.freeze()
            self._run.start()

    def pause(self) -> None:
        """Begin no other step, or go on."""
        if self._run is not None:
            self._run.go_on() if self._run.paused else self._run.pause()

    def stop(self) -> None:
        """End soon; the best network so far comes as the outcome."""
        if self._run is not None and not self.stopping:
            self.stopping = True
            self._run.cancel()
            self._run.go_on()

    def close(self) -> None:
        """End now, leave the state on the disk, and say nothing: the dock is going away."""
        self._launch.stop()
        self._settle.stop()
        self._left = []
        run, self._run = self._run, None
        if run is not None:
            run.abandon()
            run.go_on()
            self._layers.remove()
            gc.unfreeze()

    def _on_update(self, update: TrainUpdate) -> None:
        if self._run is None:
            return
        if update.step and not self._learning:
            # By now torch has been imported.
            self._learning = True
            gc.freeze()
        if update.shown is not None:
            self._layers.begin(update.shown, update.card)
        self._show(update)
        if update.labels is not None:
            self._layers.update(update.labels)

    def _on_end(self, outcome: Done | Stopped | Failure) -> None:
        if self._run is None:
            return
        if isinstance(outcome, Done):
            self._left = [
                partial(self._layers.show_new, outcome),
                partial(self._layers.show_old, outcome),
            ]
        else:
            self._left = [self._layers.remove]
        self._left.append(partial(self._finish, outcome))
        self._go_on_ending()

    def _go_on_ending(self) -> None:
        try:
            self._left.pop(0)()
        finally:
            # What was learned is there, whether or not it can be shown.
            if self._left:
                self._settle.start()

    def _finish(self, outcome: Done | Stopped | Failure) -> None:
        self._run = None
        gc.unfreeze()
        self._ended(outcome)
