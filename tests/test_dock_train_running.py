"""While a training goes on: what is shown, what a person may do, how it stops and goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("napari")

from dock_support import (
    Gated,
    Held,
    dock,
    finish,
    finish_training,
    fresh_settings,
    gated,
    held,
    teachable,
)  # fmt: skip
from qtpy.QtCore import QThreadPool
from test_dock_running import STALL, Heart

from napari_unet._napari.dock import UNetDock
from napari_unet.checkpoint import load_model
from napari_unet.training.run import Run

__all__ = ["dock", "fresh_settings", "gated", "held", "teachable"]  # fixtures


@pytest.fixture
def begun(teachable: UNetDock, gated: Gated, qtbot: Any) -> UNetDock:
    """A training of 30 steps after its twelfth, with a preview."""
    teachable.training.train()
    qtbot.waitUntil(lambda: gated.taken >= 12, timeout=60_000)
    qtbot.waitUntil(lambda: len(teachable.viewer.layers) == 3, timeout=20_000)
    return teachable


def names(dock: UNetDock) -> list[str]:
    return [layer.name for layer in dock.viewer.layers]


def test_what_is_shown(begun: UNetDock, gated: Gated, qtbot: Any) -> None:
    page, controls = begun.training, begun.training.controls
    qtbot.waitUntil(lambda: controls.bar.native.value() >= 10, timeout=20_000)
    words = controls.words.text()
    assert words.startswith(f"step {controls.bar.native.value()} of 30, loss ")
    assert ", best mean AP " in words
    assert words.endswith(" left")
    assert controls.bar.native.maximum() == 30
    assert controls.plot.measure == "mean AP"
    assert [step for step, _ in controls.plot.scores] == [10]
    assert controls.plot.grab().toImage().size().height() == controls.plot.height()
    assert "Held out: cells (X >= 109)" in controls.answer.text()
    # The preview lies on the held-out part, and nobody paints into it.
    preview = begun.viewer.layers["preview of cells (training)"]
    image = begun.viewer.layers["cells"]
    assert preview.data.shape == (96, 19)
    assert not preview.editable
    np.testing.assert_allclose(preview.data_to_world((0, 0)), image.data_to_world((0, 109)))
    # One at a time.
    begun.segment()
    assert "A training is running" in begun.controls.answer.text()
    assert not begun.session.running
    gated.gate.set()
    finish_training(begun, qtbot)
    assert names(begun) == ["cells", "truth", "cells (old)", "cells (new)"]
    assert len(controls.plot.loss) > 10
    assert page.done is not None


@pytest.mark.usefixtures("held")
def test_no_training_beside_a_segmentation(teachable: UNetDock, held: Held, qtbot: Any) -> None:
    teachable.segment()
    teachable.training.train()
    assert not teachable.training.running
    assert "A segmentation is running" in teachable.training.controls.answer.text()
    held.gate.set()
    finish(teachable, qtbot)


def test_memory_that_runs_out_names_what_the_page_has(
    teachable: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Run, "_learn", full)
    page = teachable.training
    page.train()
    finish_training(teachable, qtbot)
    assert page.failed
    # No "choose the CPU": that is where it ran.
    assert page.controls.answer.text() == "Out of memory on cpu; close other programs."


def test_a_pause_stops_the_steps(begun: UNetDock, gated: Gated, qtbot: Any) -> None:
    controls = begun.training.controls
    controls.pause.click()
    assert controls.pause.text() == "Go on"
    gated.gate.set()
    qtbot.waitUntil(lambda: controls.words.text().startswith("paused after step"), timeout=20_000)
    taken = gated.taken
    qtbot.wait(400)
    assert gated.taken == taken < 30
    controls.pause.click()
    assert controls.pause.text() == "Pause"
    finish_training(begun, qtbot)
    assert gated.taken == 30
    # A pause is no time spent.
    done = begun.training.done
    assert done is not None
    assert done.trained.complete


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stop_keeps_the_best_and_resume_goes_on(
    begun: UNetDock, gated: Gated, qtbot: Any, way: str
) -> None:
    page, controls = begun.training, begun.training.controls
    controls.stop.click() if way == "button" else begun._escape.activated.emit()
    finish_training(begun, qtbot)
    done = page.done
    assert done is not None
    assert not done.trained.complete
    assert done.trained.best_step == 10
    assert load_model(done.order.out).card.name == "bright-cells"
    assert controls.notice.text() == "The training of bright-cells was interrupted: it can go on."
    assert not begun._escape.isEnabled()
    if way == "escape":
        # What is used need not go on.
        controls.results.use.click()
        assert controls.notice.text() == ""
        return
    gated.gate.set()
    # It goes on with what was there when it began, and not with what is there now.
    begun.viewer.layers.clear()
    controls.resume.click()
    finish_training(begun, qtbot)
    assert not page.failed, controls.answer.text()
    assert page.done is not None
    assert page.done.trained.steps == 30
    assert gated.taken in (30, 31)
    assert page.done.trained.before is not None
    assert [path.name for path in done.order.out.parent.iterdir()] == ["bright-cells.safetensors"]


def test_layers_are_copied_when_it_begins(begun: UNetDock, gated: Gated, qtbot: Any) -> None:
    image, truth = (begun.viewer.layers[name] for name in ("cells", "truth"))
    before = image.data.copy(), truth.data.copy()
    image.data[:] = truth.data[:] = 0
    gated.gate.set()
    finish_training(begun, qtbot)
    done = begun.training.done
    assert done is not None
    for one, whole in zip((done.plan.held[0].image, done.plan.held[0].labels), before, strict=True):
        np.testing.assert_array_equal(one, whole[:, 109:])
    assert done.plan.samples[0].image.any()
    assert (done.plan.samples[0].labels == before[1][:, :109]).all()


def test_removed_layers_do_no_harm(begun: UNetDock, gated: Gated, qtbot: Any) -> None:
    begun.viewer.layers.clear()
    gated.gate.set()
    words = finish_training(begun, qtbot)
    assert "better than the old model" in words
    assert names(begun) == ["cells (old)", "cells (new)"]


def test_closing_the_dock_leaves_the_state(
    begun: UNetDock, gated: Gated, qtbot: Any, tmp_path: Path
) -> None:
    viewer = begun.viewer
    viewer.window.remove_dock_widget(begun)
    assert gated.ended.wait(20)
    assert QThreadPool.globalInstance().waitForDone(20_000)
    qtbot.wait(50)
    assert [layer.name for layer in viewer.layers] == ["cells", "truth"]
    gated.gate.set()
    again = UNetDock(viewer)
    viewer.window.add_dock_widget(again, name="again")
    page = again.training
    page.controls.folder.setText(str(tmp_path / "models"))
    page.controls.folder.editingFinished.emit()
    assert page.controls.notice.text().startswith("The training of bright-cells was interrupted")
    page.controls.resume.click()
    finish_training(again, qtbot)
    assert page.done is not None
    assert page.done.trained.steps == 30
    assert page.done.trained.best_step >= 10
    # Twelve steps were not taken again.
    assert gated.taken < 40


def test_the_viewer_is_closed(begun: UNetDock, gated: Gated, qtbot: Any, tmp_path: Path) -> None:
    begun.viewer.close()
    assert gated.ended.wait(20)
    qtbot.wait(100)
    assert (tmp_path / "models" / "bright-cells.training").is_file()


def test_the_window_lives_while_it_learns(begun: UNetDock, gated: Gated, qtbot: Any) -> None:
    heart = Heart()
    gated.gate.set()
    finish_training(begun, qtbot)
    qtbot.wait(100)
    heart.timer.stop()
    assert gated.taken == 30
    assert heart.longest < STALL


def test_a_crash_costs_no_labels(begun: UNetDock, gated: Gated, qtbot: Any, tmp_path: Path) -> None:
    # What lies on the disk in the middle of a run is all that a crash leaves.
    shutil.copytree(tmp_path / "models", tmp_path / "left")
    truth = begun.viewer.layers["truth"].data.copy()
    gated.gate.set()
    finish_training(begun, qtbot)
    begun.viewer.layers.clear()
    page = begun.training
    page.controls.folder.setText(str(tmp_path / "left"))
    page.controls.folder.editingFinished.emit()
    page.controls.resume.click()
    finish_training(begun, qtbot)
    assert not page.failed, page.controls.answer.text()
    done = page.done
    assert done is not None
    assert done.trained.steps == 30
    np.testing.assert_array_equal(done.plan.held[0].labels, truth[:, 109:])
    assert done.order.out == tmp_path / "left" / "bright-cells.safetensors"
    assert done.order.out.is_file()
