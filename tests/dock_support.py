"""What the tests of the dock share: a dock of its own, and a segmentation that can be held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from dock_models import bright_model
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QThreadPool
from skimage.measure import label

from napari_unet._napari.dock import UNetDock
from napari_unet.errors import Cancelled
from napari_unet.segmentation import Progress, Segmentation, segment_steps
from napari_unet.tiling import Window

__all__ = [
    "Gated",
    "Held",
    "bright_squares",
    "dock",
    "fewer_steps",
    "finish",
    "finish_training",
    "fresh_settings",
    "gated",
    "notified",
    "teachable",
]


def bright_squares(shape: tuple[int, ...] = (64, 96), step: int = 16) -> np.ndarray:
    """Draw squares of 8 px, one in each cell of `step` px, on the last two axes."""
    image = np.zeros(shape, np.float32)
    for y in range(4, shape[-2] - 8, step):
        for x in range(4, shape[-1] - 8, step):
            image[..., y : y + 8, x : x + 8] = 1
    return image


@pytest.fixture
def fresh_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Settings of this test alone, as napari's own fixture for plugins makes them."""
    from napari import settings

    settings._clear_plugin_settings_cache()
    folder = tmp_path / "config"
    folder.mkdir()
    monkeypatch.setattr(settings, "_CFG_PATH", str(folder / "settings.yaml"))
    yield folder
    settings._clear_plugin_settings_cache()


@pytest.fixture
def dock(make_napari_viewer: Any, fresh_settings: Path, tmp_path: Path, qtbot: Any) -> Any:
    """A dock in a viewer without layers, with a model that finds what is bright."""
    viewer = make_napari_viewer()
    widget = UNetDock(viewer)
    viewer.window.add_dock_widget(widget, name="U-Net")
    widget.open_model(str(bright_model(tmp_path)))
    before = len(notification_manager.records)
    widget.seen_before = before
    yield widget
    QThreadPool.globalInstance().waitForDone(20_000)
    qtbot.wait(50)


def notified(dock: UNetDock) -> list[str]:
    """Messages of the notifications since the dock was made."""
    return [str(record.message) for record in notification_manager.records[dock.seen_before :]]


def opened(dock: UNetDock, path: Path, qtbot: Any, timeout: int = 60_000) -> None:
    """Open a checkpoint and wait for it."""
    dock.open_model(str(path))
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=timeout)


def finish(dock: UNetDock, qtbot: Any, timeout: int = 60_000) -> str:
    """Wait for a run to end; what the dock says then."""
    qtbot.waitUntil(lambda: not dock.session.running, timeout=timeout)
    return dock.controls.answer.text()


@dataclass
class Held:
    """In place of the core's `segment_steps`: a tile is a row of `height` pixels.

    Attributes
    ----------
    gate : threading.Event
        Tiles after the first `free` wait for it.
    error : Exception, optional
        Raised instead of the tile after the free ones.
    deaf : bool
        Whether `should_stop` is not looked at.
    expected : float
        Seconds that it says it will take.
    focus : tuple of slice, optional
        What the last run was asked to begin with.
    """

    free: int = 1
    height: int = 8
    error: BaseException | None = None
    deaf: bool = False
    expected: float = 0.0
    focus: tuple[slice, ...] | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __call__(self, image, model, options, *, should_stop, preview, focus):
        self.focus = focus
        try:
            return (yield from self._steps(image, model, options, should_stop))
        finally:
            self.stopped.set()

    def _steps(self, image, model, options, should_stop):
        rows, columns = image.shape
        total = -(-rows // self.height)
        yield Progress("network", 0, total, 0, 0.0, left=self.expected)
        for done in range(total):
            if done >= self.free:
                if self.error is not None:
                    raise self.error
                try:
                    self._wait(should_stop)
                except Cancelled:
                    if not (options.keep_finished and done):
                        raise
                    return self._result(image, model, options, done)
            window = Window((done * self.height, 0), (min((done + 1) * self.height, rows), columns))
            labels = (image[window.slices] > 0.5).astype(np.int32) * (done + 1)
            yield Progress(
                "network", done + 1, total, (done + 1) * self.height * columns, done + 1.0,
                window=window, preview=labels, left=total - done - 1.0,
            )  # fmt: skip
        yield Progress("objects", total, total, image.size, 1.0)
        return self._result(image, model, options, total)

    def _wait(self, should_stop) -> None:
        while not self.gate.wait(0.01):
            if should_stop() and not self.deaf:
                raise Cancelled("Stopped.")
        time.sleep(0.01)

    def _result(self, image, model, options, done: int) -> Segmentation:
        # The real one, bound before it is replaced.
        steps = segment_steps(image, model, replace(options, keep_finished=False))
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                found: Segmentation = stop.value
                break
        total = -(-image.shape[0] // self.height)
        report = replace(found.report, tiles=done, complete=done == total)
        return replace(found, report=report)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Segmentations wait after the first tile until the gate is opened."""
    fake = Held()
    monkeypatch.setattr("napari_unet.segmentation.segment_steps", fake)
    yield fake
    fake.gate.set()


def fewer_steps(dock: UNetDock) -> None:
    """For tests that do not look at what is learned."""
    controls = dock.training.controls
    choose = controls.choices
    controls.choices = lambda: replace(choose(), steps=4)


def finish_training(dock: UNetDock, qtbot: Any, timeout: int = 120_000) -> str:
    """Wait for a training to end; what the page says then."""
    qtbot.waitUntil(lambda: not dock.training.running, timeout=timeout)
    return dock.training.controls.answer.text()


@pytest.fixture
def teachable(dock: UNetDock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UNetDock:
    """A dock whose model finds nothing on the image that is there, and labels to learn from.

    A training is 30 steps of one small tile.
    """
    from napari_unet._napari import train_worker
    from napari_unet.config import UNetConfig
    from napari_unet.training import plan

    image, place = bright_squares((96, 128)), {"scale": (0.5, 0.5), "translate": (3, 5)}
    dock.viewer.add_image(0.4 * image, name="cells", **place)
    dock.viewer.add_labels(label(image > 0.5), name="truth", **place)
    controls, recipe = dock.training.controls, train_worker._recipe
    controls.folder.setText(str(tmp_path / "models"))
    choose = controls.choices
    controls.choices = lambda: replace(choose(), steps=30, rate=choose().rate or 0.02)

    def smaller(*given: Any) -> Any:
        return replace(recipe(*given), write=48 if given[2] == 2 else 16, batch=1, every=10)

    monkeypatch.setattr(train_worker, "_recipe", smaller)
    monkeypatch.setattr(plan, "DEFAULT_CONFIG", UNetConfig(n_classes=3, widths=(4, 8)))
    return dock


@dataclass
class Gated:
    """In place of the core's `train_steps`: the real one, but no step is taken before its time.

    Attributes
    ----------
    gate : threading.Event
        Steps after the first `free` wait for it.
    taken : int
        Steps so far.
    ended : threading.Event
        Set once the generator is closed.
    """

    steps: Callable[..., Any]
    free: int = 12
    taken: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def __call__(self, *given: Any, **more: Any) -> Any:
        steps = self.steps(*given, **more)
        try:
            while True:
                while self.taken >= self.free and not self.gate.wait(0.01):
                    if more["should_stop"]():
                        break
                try:
                    progress = next(steps)
                except StopIteration as stop:
                    return stop.value
                self.taken += 1
                yield progress
        finally:
            steps.close()
            self.ended.set()


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    """Trainings wait after twelve steps, when the first look is past, until the gate is opened."""
    from napari_unet.training import loop

    fake = Gated(loop.train_steps)
    monkeypatch.setattr(loop, "train_steps", fake)
    yield fake
    fake.gate.set()
