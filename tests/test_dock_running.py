"""While a run goes on: what is shown, what a person may do, and how it stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("napari")

from dock_models import bright_model
from dock_support import (
    Held,
    bright_squares,
    dock,
    finish,
    fresh_settings,
    held,
    notified,
)  # fmt: skip
from napari.layers import Labels
from napari.settings import get_plugin_settings
from qtpy.QtCore import Qt, QTimer

from napari_unet import devices
from napari_unet._napari.dock import UNetDock
from napari_unet._napari.progress import Update
from napari_unet._napari.results import METADATA_KEY
from napari_unet.predictors.torch_predictor import TorchPredictor

__all__ = ["dock", "fresh_settings", "held"]  # fixtures

# Generous: shared machines stop for a while without anyone being to blame.
STALL, ANSWER = 0.5, 1.5  # s


@pytest.fixture
def begun(dock: UNetDock, held: Held, qtbot: Any) -> UNetDock:
    """A run whose first tile of eight is on screen."""
    dock.viewer.add_image(bright_squares(), name="cells", scale=(0.5, 0.5))
    dock.controls.keep_tiles.value = True
    dock.controls.button.native.click()
    qtbot.waitUntil(lambda: "1 of 8" in dock.controls.bar_text.text(), timeout=60_000)
    return dock


def share_of(dock: UNetDock) -> float:
    bar = dock.controls.bar.native
    return float(bar.value() / bar.maximum())


def labels_of(dock: UNetDock) -> list[Labels]:
    return [layer for layer in dock.viewer.layers if isinstance(layer, Labels)]


def test_what_is_shown(begun: UNetDock, held: Held, qtbot: Any) -> None:
    controls = begun.controls
    assert controls.button.text == "Cancel"
    assert controls.button.native.isEnabled()
    assert not controls.form.isEnabled()
    assert controls.bar_text.text() == "1 of 8 tiles, 7 s left, 0.00077 MPx/s"
    assert 1 / 8 <= share_of(begun) < 2 / 8
    # By now the next tile should be on its way, and then soon done; more is not claimed.
    qtbot.waitUntil(lambda: "6 s left" in controls.bar_text.text(), timeout=5_000)
    assert 1.5 / 8 < share_of(begun) < 2 / 8
    held.gate.set()
    finish(begun, qtbot)
    assert controls.button.text == "Segment"
    assert controls.form.isEnabled()
    assert controls.bar.native.isHidden()


def test_before_the_first_tile_the_time_is_told_as_expected(
    dock: UNetDock, held: Held, qtbot: Any
) -> None:
    held.free, held.expected = 0, 9.0
    dock.viewer.add_image(bright_squares(), name="cells")
    dock.controls.button.native.click()
    for left in "98":
        words = f"0 of 8 tiles, about {left} s left"
        qtbot.waitUntil(lambda words=words: dock.controls.bar_text.text() == words, timeout=60_000)
    assert 0 < share_of(dock) < 1 / 8
    held.gate.set()
    finish(dock, qtbot)


@given(
    total=st.integers(1, 300),
    done=st.integers(0, 300),
    left=st.floats(0, 1e5),
    waits=st.lists(st.floats(0, 1e6), min_size=2, max_size=2),
)
def test_the_bar_claims_no_tile_that_is_not_done(
    total: int, done: int, left: float, waits: list[float]
) -> None:
    done = min(done, total)
    update = Update((), done, total, 5.0, 10**6, "network", left)
    sooner, later = (update.share(since) for since in sorted(waits))
    assert done / total <= sooner <= later <= 1
    assert later < (done + 1) / total
    assert update.share() == done / total


def test_a_tile_that_is_late_is_said_to_be() -> None:
    begun = Update((), 0, 1, 0.1, 0, "network", 7.0)
    assert begun.in_words(3) == "0 of 1 tile, about 4 s left"
    assert begun.in_words(8) == "0 of 1 tile, about 0 s left"
    assert begun.in_words(10) == "0 of 1 tile, longer than expected"
    further = Update((), 1, 2, 5.0, 10**7, "network", 5.0, ("Memory ran out.",))
    assert further.in_words(4) == "1 of 2 tiles, 1 s left, 2 MPx/s\nMemory ran out."
    assert further.in_words(8) == "1 of 2 tiles, longer than expected, 2 MPx/s\nMemory ran out."
    unknown = Update((), 0, 9, 0.1, 0, "network")
    assert unknown.in_words(60) == "0 of 9 tiles"
    last = Update((), 9, 9, 20, 9, "objects")
    assert last.in_words(1) == "finding the objects"
    assert last.in_words(8) == "finding the objects, 8 s so far"


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory runs out on tiles of more than 40 x 40 pixels."""
    forward = TorchPredictor.forward

    def less(self: TorchPredictor, pixels: Any, should_stop: Any = None) -> Any:
        if pixels[0, 0].numel() > 40 * 40:
            raise MemoryError
        return forward(self, pixels, should_stop)

    monkeypatch.setattr(TorchPredictor, "forward", less)
    yield
    devices._learned.clear()


@pytest.mark.usefixtures("scarce")
def test_memory_that_runs_out_is_told_and_no_failure(dock: UNetDock, qtbot: Any) -> None:
    dock.controls.engine.value, dock.controls.precision.value = "torch", "float32"
    dock.viewer.add_image(bright_squares(), name="cells")
    told: list[str] = []
    show = dock.session._show
    dock.session._show = lambda *now: (told.append(now[2]), show(*now))
    dock.segment()
    words = finish(dock, qtbot)
    (labels,) = labels_of(dock)
    remarks = labels.metadata[METADATA_KEY]["remarks"]
    assert len(remarks) > 1
    assert all(remark.startswith("Memory ran out on the CPU with tiles of ") for remark in remarks)
    assert told[0] == "loading PyTorch and the model"
    assert told[-1] == f"finding the objects\n{remarks[-1]}"
    assert words.startswith("24 objects in ")
    assert words.endswith(f" on the CPU (float32). {remarks[-1]}")
    assert dock.controls.answer.toolTip() == "\n".join(remarks)
    assert not dock.controls.answer.property("warning")
    assert not dock.failed
    assert notified(dock) == []
    np.testing.assert_array_equal(labels.data > 0, bright_squares() > 0.5)
    # What a later run has to say is its own.
    dock.controls.show_answer("")
    assert dock.controls.answer.toolTip() == ""


def test_what_is_on_screen_comes_first(dock: UNetDock, held: Held, qtbot: Any) -> None:
    image = dock.viewer.add_image(bright_squares(), name="cells", scale=(0.5, 0.5))
    held.gate.set()
    image.corner_pixels = np.array([[16, 32], [47, 50]])
    dock.controls.button.native.click()
    finish(dock, qtbot)
    assert held.focus == (slice(16, 48), slice(32, 51))


def test_finished_tiles_are_on_screen(begun: UNetDock, held: Held, qtbot: Any) -> None:
    (preview,) = labels_of(begun)
    image = begun.viewer.layers["cells"].data
    np.testing.assert_array_equal(preview.data[:8], image[:8] > 0.5)
    assert not preview.data[8:].any()
    assert not preview.editable
    np.testing.assert_array_equal(preview.scale, (0.5, 0.5))
    # What napari draws is the same memory: a tile needs no slicing anew.
    assert np.shares_memory(preview._slice.image.view, preview.data)
    held.gate.set()
    finish(begun, qtbot)
    assert labels_of(begun) == [preview]
    assert preview.data.dtype == np.int32
    assert preview.editable
    assert preview.data.max() == 24
    assert not preview._undo_history
    assert preview._slice.image.raw.dtype == np.int32
    np.testing.assert_array_equal(preview._slice.image.view > 0, preview.data > 0)


def test_only_new_pixels_are_uploaded(begun: UNetDock, held: Held, qtbot: Any) -> None:
    (preview,) = labels_of(begun)
    sent: list[tuple[list[int], tuple[int, ...]]] = []
    preview.events.labels_update.connect(
        lambda event: sent.append((list(event.offset), event.data.shape))
    )
    held.gate.set()
    finish(begun, qtbot)
    assert sorted(sent) == [([row, 0], (8, 96)) for row in range(8, 64, 8)]


def test_tiles_of_another_plane_stay_off_screen(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(np.stack([bright_squares()] * 3), name="stack")
    dock.viewer.dims.set_point(0, 1)
    dock.segment()
    qtbot.waitUntil(lambda: bool(labels_of(dock)))
    (preview,) = labels_of(dock)
    sent = []
    preview.events.labels_update.connect(lambda event: sent.append(event.data.copy()))
    finish(dock, qtbot)
    tiles = preview.metadata[METADATA_KEY]["tiles"]
    assert len(sent) == tiles // 3
    assert preview.data.max() == 72


@pytest.mark.parametrize("seen", ["plane", "turned", "upright", "volume", "hidden"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_however_the_volume_is_seen(
    dock: UNetDock, qtbot: Any, tmp_path: Any, seen: str, ndim: int
) -> None:
    dock.open_model(str(bright_model(tmp_path, "solid", config={"ndim": ndim})))
    volume = np.stack([bright_squares((32, 48))] * 5)
    dock.viewer.add_image(volume, name="volume")
    dims = dock.viewer.dims
    dims.ndisplay = 3 if seen == "volume" else 2
    dims.order = {"turned": (0, 2, 1), "upright": (1, 0, 2)}.get(seen, (0, 1, 2))
    dock.segment()
    qtbot.waitUntil(lambda: bool(labels_of(dock)))
    (layer,) = labels_of(dock)
    layer.visible = seen != "hidden"
    words = finish(dock, qtbot)
    assert not dock.failed, words
    np.testing.assert_array_equal(layer.data > 0, volume > 0.5)
    assert layer.data.max() == (6 if ndim == 3 else 30)


def test_cancel_keeps_what_is_finished(begun: UNetDock, qtbot: Any) -> None:
    begun.controls.button.native.click()
    assert begun.controls.bar_text.text() == "stopped; keeping the 1 finished tile"
    assert begun.controls.button.text == "Drop finished tiles"
    words = finish(begun, qtbot)
    assert words == "24 objects in the 1 finished tile, kept on cancel"
    (layer,) = labels_of(begun)
    assert layer.name == "cells bright (partial)"
    assert layer.data.dtype == np.int32
    assert layer.metadata[METADATA_KEY]["complete"] is False
    assert notified(begun) == []


def test_a_second_cancel_drops_them(
    begun: UNetDock, held: Held, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "deaf", True)
    begun.controls.button.native.click()
    begun.controls.button.native.click()
    assert not begun.session.running
    assert labels_of(begun) == []
    assert begun.controls.answer.text() == "Cancelled; nothing was added."
    held.gate.set()
    assert held.stopped.wait(20)
    qtbot.wait(100)
    assert labels_of(begun) == []


def test_cancel_drops_where_nothing_is_to_be_kept(begun: UNetDock, held: Held, qtbot: Any) -> None:
    begun.session._run.request.options.__dict__["keep_finished"] = False
    began = time.monotonic()
    begun.controls.button.native.click()
    assert finish(begun, qtbot) == "Cancelled; nothing was added."
    assert time.monotonic() - began < ANSWER
    assert labels_of(begun) == []
    assert not begun.failed


def test_cancel_answers_even_if_the_worker_does_not(
    begun: UNetDock, held: Held, qtbot: Any
) -> None:
    held.deaf = True
    begun.session._run.request.options.__dict__["keep_finished"] = False
    began = time.monotonic()
    begun.controls.button.native.click()
    assert finish(begun, qtbot) == "Cancelled; nothing was added."
    assert time.monotonic() - began < ANSWER
    # What is left of the old run disturbs neither the window nor a new run.
    held.gate.set()
    begun.controls.button.native.click()
    assert finish(begun, qtbot).startswith("24 objects")
    assert len(labels_of(begun)) == 1


def test_a_result_that_is_there_cannot_be_cancelled(
    begun: UNetDock, held: Held, qtbot: Any
) -> None:
    held.gate.set()
    qtbot.waitUntil(lambda: begun.session._words is not None, timeout=60_000)
    begun.cancel()
    assert finish(begun, qtbot).startswith("24 objects")
    assert labels_of(begun)[0].data.max() == 24


def test_cancel_before_it_began(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(bright_squares(), name="cells")
    dock.segment()
    dock.cancel()
    assert finish(dock, qtbot) == "Cancelled; nothing was added."
    assert labels_of(dock) == []


def test_escape_cancels(begun: UNetDock, qtbot: Any) -> None:
    begun._escape.activated.emit()
    assert begun.session.cancelling
    finish(begun, qtbot)
    assert not begun._escape.isEnabled()


def test_enter_on_the_button(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(bright_squares())
    dock.viewer.window._qt_window.show()
    button = dock.controls.button.native
    button.setFocus()
    qtbot.keyClick(button, Qt.Key.Key_Return)
    assert dock.session.running
    finish(dock, qtbot)


def test_the_preview_may_be_removed(begun: UNetDock, held: Held, qtbot: Any) -> None:
    begun.viewer.layers.remove(labels_of(begun)[0])
    held.gate.set()
    assert finish(begun, qtbot).startswith("24 objects")
    (layer,) = labels_of(begun)
    assert layer.data.max() == 24


def test_other_layers_may_come_and_go(begun: UNetDock, held: Held, qtbot: Any) -> None:
    other = begun.viewer.add_image(np.zeros((8, 8)), name="other")
    begun.viewer.layers.selection.active = begun.viewer.layers["cells"]
    begun.viewer.layers.remove(other)
    held.gate.set()
    finish(begun, qtbot)
    assert not begun.failed
    assert begun.viewer.layers.selection.active.name == "cells"


@pytest.mark.parametrize("deaf", [False, True])
def test_the_image_is_removed(begun: UNetDock, held: Held, qtbot: Any, deaf: bool) -> None:
    held.deaf = deaf
    begun.viewer.layers.remove("cells")
    assert not begun.session.running
    assert begun.failed
    sentence = (
        "The image cells was removed, so its segmentation was stopped; open it again to start over."
    )
    assert begun.controls.answer.text() == sentence
    assert notified(begun) == [sentence]
    held.gate.set()
    assert held.stopped.wait(20)
    qtbot.wait(100)
    assert not begun.viewer.layers


@pytest.mark.parametrize("deaf", [False, True])
def test_the_dock_is_closed(begun: UNetDock, held: Held, qtbot: Any, deaf: bool) -> None:
    held.deaf = deaf
    begun.viewer.window.remove_dock_widget(begun)
    assert [layer.name for layer in begun.viewer.layers] == ["cells"]
    held.gate.set()
    assert held.stopped.wait(20)
    qtbot.wait(100)
    assert [layer.name for layer in begun.viewer.layers] == ["cells"]
    assert notified(begun) == []
    # Nothing listens to the viewer any more.
    begun.viewer.add_image(np.zeros((8, 8)))
    begun.viewer.theme = "light"


def test_the_viewer_is_closed(begun: UNetDock, held: Held, qtbot: Any) -> None:
    begun.viewer.close()
    assert held.stopped.wait(20)
    qtbot.wait(100)


def test_a_hidden_dock_goes_on(begun: UNetDock, held: Held, qtbot: Any) -> None:
    begun.parent().setVisible(False)
    held.gate.set()
    finish(begun, qtbot)
    assert labels_of(begun)[0].data.max() == 24


class Heart:
    """Beats on the main thread; remembers the longest pause."""

    def __init__(self) -> None:
        self.timer, self.last, self.longest = QTimer(), time.perf_counter(), 0.0
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.timeout.connect(self.beat)
        self.timer.start(5)

    def beat(self) -> None:
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last), now


def test_the_window_lives_while_it_runs(dock: UNetDock, qtbot: Any, tmp_path: Any) -> None:
    dock.open_model(str(bright_model(tmp_path, "real", depth=3)))
    dock.viewer.add_image(bright_squares((1024, 1024)), name="cells")
    dock.segment()
    qtbot.waitUntil(lambda: dock.session._last is not None, timeout=60_000)
    heart = Heart()
    words = finish(dock, qtbot)
    qtbot.wait(100)
    heart.timer.stop()
    assert words.startswith("4,096 objects"), words
    assert heart.longest < STALL


def test_cancel_answers_in_the_middle_of_a_tile(dock: UNetDock, qtbot: Any, tmp_path: Any) -> None:
    dock.open_model(str(bright_model(tmp_path, "real", depth=3)))
    dock.controls.tile_size.value = 2000
    dock.controls.keep_tiles.value = False
    dock.viewer.add_image(bright_squares((4000, 4000), step=64), name="cells")
    dock.segment()
    qtbot.waitUntil(lambda: dock.session._last is not None, timeout=60_000)
    qtbot.wait(200)
    began = time.monotonic()
    dock.cancel()
    assert finish(dock, qtbot) == "Cancelled; nothing was added."
    assert time.monotonic() - began < ANSWER


def test_preferences_that_change_during_a_run_are_shown_after_it(
    dock: UNetDock, held: Held, qtbot: Any
) -> None:
    group = get_plugin_settings("napari-valid-unet").segmentation
    dock.viewer.add_image(bright_squares(), name="cells")
    dock.segment()
    qtbot.waitUntil(lambda: "1 of 8" in dock.controls.bar_text.text(), timeout=60_000)
    group.precision, group.keep_tiles = "float32", True
    held.gate.set()
    finish(dock, qtbot)
    assert dock.controls.precision.value == "float32"
    dock.controls.probabilities.value = True
    # Nothing of it was overwritten.
    assert (group.precision, group.keep_tiles) == ("float32", True)


def test_a_flat_image_beside_a_stack_seen_from_its_side(
    dock: UNetDock, held: Held, qtbot: Any
) -> None:
    dock.viewer.add_image(np.zeros((5, 64, 96), np.float32), name="stack")
    dock.viewer.add_image(bright_squares(), name="cells")
    dock.viewer.dims.order = (1, 0, 2)
    dock.segment()
    qtbot.waitUntil(lambda: "1 of 8" in dock.controls.bar_text.text(), timeout=60_000)
    held.gate.set()
    assert "objects" in finish(dock, qtbot)
    assert not dock.failed
