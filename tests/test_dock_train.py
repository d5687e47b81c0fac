"""The Train page: from an image and its labels to a model that Segment uses; what goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("napari")

from dock_models import bright_model
from dock_support import (
    bright_squares,
    dock,
    fewer_steps,
    finish_training,
    fresh_settings,
    notified,
    teachable,
)  # fmt: skip
from napari.layers import Image, Labels
from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QAbstractButton, QComboBox, QLineEdit, QListWidget
from skimage.measure import label

from napari_unet._napari.dock import UNetDock
from napari_unet._napari.settings import Settings
from napari_unet._napari.train_pairs import collect
from napari_unet.checkpoint import load_model

__all__ = ["dock", "fresh_settings", "teachable"]  # fixtures


def labels_named(dock: UNetDock, name: str) -> Labels:
    layer = dock.viewer.layers[name]
    assert isinstance(layer, Labels)
    return layer


def test_one_click_trains_and_another_uses_the_model(
    teachable: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, controls = teachable.training, teachable.training.controls
    assert (controls.image.value.name, controls.labels.value.name) == ("cells", "truth")
    assert controls.name.text() == "bright-cells"
    controls.button.click()
    assert not controls.form.isEnabled()
    words = finish_training(teachable, qtbot)
    assert "bright-cells is better than the old model" in words
    assert controls.form.isEnabled()
    cells = {row[0]: row[1:] for row in controls.results.cells()}
    assert cells[""] == ["old", "new"]
    assert list(cells) == ["", "mean AP", "F1@0.5", "IoU"]
    assert all(float(new) > float(old) for old, new in list(cells.values())[1:])
    # Old and new lie where the held-out part lies, and colours are those of the labels.
    old, new = labels_named(teachable, "cells (old)"), labels_named(teachable, "cells (new)")
    assert (old.visible, new.visible) == (False, True)
    assert not old.data.any()
    image = teachable.viewer.layers["cells"]
    np.testing.assert_allclose(new.data_to_world((0, 0)), image.data_to_world((0, 109)))
    truth = labels_named(teachable, "truth").data[:, 109:]
    both = (new.data > 0) & (truth > 0)
    np.testing.assert_array_equal(new.data[both], truth[both])
    assert len(teachable.viewer.layers) == 4

    done = page.done
    assert done is not None
    out = page._paths("bright-cells")[0]
    saved = load_model(out)
    for key, tensor in done.trained.network.state_dict().items():
        assert torch.equal(saved.network.state_dict()[key], tensor)
    assert [path.name for path in out.parent.iterdir()] == ["bright-cells.safetensors"]
    shown: list[QUrl] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", shown.append)
    controls.results.report.click()
    assert shown[0].toLocalFile() == str(out.with_suffix(".html"))
    assert "bright-cells is better" in out.with_suffix(".html").read_text("utf-8")

    controls.results.use.click()
    assert teachable.models.opened.path == out
    assert teachable.settings.recent.entries[0].model == str(out)
    assert teachable.pages.currentIndex() == 0
    assert "1 labelled images" in teachable.controls.passport.toolTip()
    assert "Started from: bright" in teachable.controls.passport.toolTip()
    assert controls.start.choices[0] == "model"
    # The next one is named anew, and nothing is overwritten.
    assert controls.name.text() == "bright-cells-cells"
    teachable.segment()
    qtbot.waitUntil(lambda: not teachable.running, timeout=60_000)
    assert teachable.controls.answer.text().startswith("48 objects")


def test_a_worse_model_leaves_the_old_one(teachable: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    page, controls = teachable.training, teachable.training.controls
    teachable.viewer.layers["cells"].data = bright_squares((96, 128))
    before = teachable.models.opened
    controls.rate.value = 1e-5
    page.train()
    assert "The old model stays" in finish_training(teachable, qtbot)
    assert teachable.models.opened is before
    assert not list((tmp_path / "models").iterdir())
    controls.results.use.click()
    assert teachable.models.opened.path.name == "bright-cells.safetensors"


@pytest.mark.parametrize("kind", ["objects", "classes"])
def test_from_nothing(teachable: UNetDock, qtbot: Any, kind: str) -> None:
    controls = teachable.training.controls
    fewer_steps(teachable)
    assert controls.kind.native.isHidden()
    controls.start.value, controls.kind.value = "nothing", kind
    assert not controls.kind.native.isHidden()
    assert controls.name.text() == "unet-cells"
    if kind == "classes":
        truth = teachable.viewer.layers["truth"]
        truth.data = np.where(truth.data > 0, 1 + 4 * (truth.data % 2), 0)
    controls.button.click()
    words = finish_training(teachable, qtbot)
    assert "there is no older model" in words, words
    done = teachable.training.done
    assert done is not None
    names = [info.name for info in done.card.classes]
    wanted = ["background", "class 1", "class 5"] if kind == "classes" else None
    assert wanted is None or names == wanted
    titles = [row[0] for row in controls.results.cells()]
    assert ("IoU class 5" in titles) == (kind == "classes")
    assert all(row[1] == "–" for row in controls.results.cells()[1:])
    assert [layer.name for layer in teachable.viewer.layers][2:] == ["cells (new)"]


def test_a_plane_of_a_stack(teachable: UNetDock, qtbot: Any) -> None:
    viewer = teachable.viewer
    image, truth = (np.repeat(viewer.layers[n].data[None], 3, axis=0) for n in ("cells", "truth"))
    truth[::2] = 0
    viewer.layers.clear()
    stack = viewer.add_image(image, name="stack", scale=(2, 0.5, 0.5), translate=(1, 2, 3))
    viewer.add_labels(truth, scale=(2, 0.5, 0.5), translate=(1, 2, 3))
    fewer_steps(teachable)
    teachable.training.train()
    words = finish_training(teachable, qtbot)
    assert not teachable.training.failed, words
    new = labels_named(teachable, "stack[1] (new)")
    assert new.data.shape == (1, 96, 19)
    np.testing.assert_allclose(new.data_to_world((0, 0, 0)), stack.data_to_world((1, 0, 109)))


def test_volumes(teachable: UNetDock, qtbot: Any) -> None:
    viewer, controls = teachable.viewer, teachable.training.controls
    viewer.layers.clear()
    image = np.repeat(bright_squares((32, 64))[None], 16, axis=0)
    stack = viewer.add_image(image, name="stack", scale=(2, 1, 1))
    viewer.add_labels(label(image > 0.5), scale=(2, 1, 1))
    fewer_steps(teachable)
    controls.start.value = "volumes"
    teachable.training.train()
    words = finish_training(teachable, qtbot)
    assert not teachable.training.failed, words
    assert teachable.training.done is not None
    assert teachable.training.done.card.config.ndim == 3
    new = labels_named(teachable, "stack (new)")
    assert new.data.shape == (16, 32, 10)
    np.testing.assert_allclose(new.data_to_world((0, 0, 0)), stack.data_to_world((0, 0, 54)))


def test_saved_pairs_are_learned_from(teachable: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    page, viewer = teachable.training, teachable.viewer
    controls = page.controls
    shapes = viewer.add_shapes([np.array([(0, 0), (0, 60), (40, 60), (40, 0)])], name="seen")
    controls.reviewed.value = shapes
    controls.add.click()
    controls.add.click()
    assert [one.text() for one in map(controls.pairs.item, range(controls.pairs.count()))] == [
        "cells + truth: 96x128, 48 objects, reviewed part"
    ]
    page.picker.save(tmp_path / "kept")
    assert controls.answer.text().startswith("1 pair saved;")
    controls.pairs.selectAll()
    controls.remove.click()
    assert not page.picker.pairs
    viewer.layers.clear()
    page.picker.add_files(tmp_path / "kept")
    qtbot.waitUntil(lambda: bool(page.picker.pairs), timeout=20_000)
    assert controls.pairs.item(0).text() == ("cells.ome.tif: 96x128, 48 objects, reviewed part")
    controls.held_out.value = 50
    fewer_steps(teachable)
    page.train()
    words = finish_training(teachable, qtbot)
    assert not page.failed, words
    assert page.done is not None
    assert page.done.plan.held[0].known.sum() > 0
    # No layer to lie on: its image comes, too.
    image = viewer.layers["cells.ome.tif (held out)"]
    assert isinstance(image, Image)
    assert image.data.shape == viewer.layers["cells.ome.tif (new)"].data.shape == (96, 64)


def test_faults_are_told_in_a_sentence(teachable: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    page, controls, viewer = teachable.training, teachable.training.controls, teachable.viewer
    truth = labels_named(teachable, "truth")
    numbers = truth.data

    def tells(part: str) -> None:
        before = [layer.name for layer in viewer.layers]
        page.train()
        words = finish_training(teachable, qtbot)
        assert part in words
        assert page.failed
        assert notified(teachable)[-1] == words
        assert [layer.name for layer in viewer.layers] == before
        assert controls.form.isEnabled()
        assert not list(tmp_path.rglob("*.training*"))

    bright_model(tmp_path, "there")
    controls.folder.setText(str(tmp_path))
    controls.name.setText("there")
    tells("there is there already: give the new model another name")
    controls.folder.setText(str(tmp_path / "there.safetensors"))
    controls.name.setText("new")
    tells("is not a folder; choose another place")
    controls.folder.setText(str(tmp_path / "models"))
    controls.replay.setText(str(tmp_path / "nowhere"))
    tells("nowhere is no folder and no table")
    controls.replay.clear()
    controls.reviewed.value = viewer.add_shapes(name="none")
    tells("lies inside a closed shape of none; draw")
    viewer.layers.remove("none")
    truth.data = np.ones_like(numbers)
    tells("a network needs at least two classes")
    truth.data = np.zeros_like(numbers)
    tells("label some objects first")
    controls.held_out.value = 0
    truth.data = numbers[:50]
    page.picker.refresh()
    tells("No Labels layer has the pixels of cells: choose the image")
    truth.data = numbers
    page.picker.refresh()
    teachable.open_model(str(bright_model(tmp_path, "deep", config={"ndim": 3})))
    tells("cells is flat, and this network needs volumes")
    viewer.layers.remove("truth")
    tells("There are no labels for cells: add a Labels layer")
    viewer.layers.remove("cells")
    tells("There is no image to learn from: open one")


def test_a_loss_that_is_no_number_leaves_the_state(
    teachable: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_unet.training.run import Run

    learn = Run.step
    monkeypatch.setattr(
        Run, "step", lambda *given: learn(*given) if given[2] < 15 else float("nan")
    )
    page = teachable.training
    page.train()
    words = finish_training(teachable, qtbot)
    assert "The loss is no number any more at step 15" in words
    assert page.failed
    assert page.controls.notice.text().startswith("The training of bright-cells was interrupted")
    # Its preview is gone; a new training gets another name, until the old one is discarded.
    assert [layer.name for layer in teachable.viewer.layers] == ["cells", "truth"]
    assert page.controls.name.text() == "bright-cells-2"
    page.controls.discard.click()
    assert page.controls.name.text() == "bright-cells"
    assert page.controls.interrupted.isHidden()


def test_a_full_disk_costs_no_model(
    teachable: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_unet._napari import train_worker
    from napari_unet.errors import OutputError

    def full(*_: Any) -> None:
        raise OutputError("The disk is full; free some space.")

    monkeypatch.setattr(train_worker, "save_model", full)
    page = teachable.training
    page.train()
    words = finish_training(teachable, qtbot)
    assert words.endswith("It is not saved yet: The disk is full; free some space.")
    monkeypatch.undo()
    page.controls.results.use.click()
    assert teachable.models.opened.path.name == "bright-cells.safetensors"


def test_choices_survive_a_restart(teachable: UNetDock, tmp_path: Path) -> None:
    controls = teachable.training.controls
    controls.minutes.value, controls.held_out.value = 25, 30
    controls.folder.setText(str(tmp_path / "elsewhere"))
    controls.folder.editingFinished.emit()
    saved = Settings().training
    assert (saved.minutes, saved.held_out) == (25, 30)
    assert saved.folder == str(tmp_path / "elsewhere")
    choices = controls.choices()
    assert (choices.minutes, choices.held_out) == (25, 0.3)


def test_every_control_has_a_tooltip_and_fits(teachable: UNetDock) -> None:
    controls = teachable.training.controls
    controls.more.setChecked(True)
    kinds = (QAbstractButton, QComboBox, QLineEdit, QListWidget)
    for kind in kinds:
        for widget in controls.findChildren(kind):
            inner = widget.parent() is not None and "spinbox" in widget.objectName()
            assert widget.toolTip() or inner, widget
    for box in (controls.minutes, controls.held_out, controls.rate, controls.seed):
        assert "Default:" in box.tooltip
    assert controls.minimumSizeHint().width() <= 270


def test_the_visible_region_is_what_is_on_screen(teachable: UNetDock) -> None:
    picker, controls = teachable.training.picker, teachable.training.controls
    image = teachable.viewer.layers["cells"]
    image.corner_pixels = np.array([[16, 32], [47, 50]])
    controls.reviewed.value = "the visible region"
    controls.add.click()
    wanted = np.zeros((96, 128), bool)
    wanted[16:48, 32:51] = True
    # As it was when the pair was added.
    image.corner_pixels = np.array([[0, 0], [95, 127]])
    (pair,), _ = picker.chosen()
    np.testing.assert_array_equal(collect(pair, 2)[0].pair.reviewed, wanted)


def test_labels_are_the_newest_that_lie_on_the_image(dock: UNetDock) -> None:
    viewer, controls = dock.viewer, dock.training.controls
    viewer.add_image(bright_squares(), name="cells")
    viewer.add_labels(label(bright_squares() > 0.5), name="first")
    viewer.add_labels(np.zeros((5, 5), int), name="small")
    second = viewer.add_labels(label(bright_squares() > 0.5), name="second")
    assert [layer.name for layer in controls.labels.choices] == ["second", "first"]
    assert controls.labels.value is second
    # What a person picks stays.
    controls.labels.value = viewer.layers["first"]
    controls.labels.native.activated.emit(1)
    viewer.add_labels(np.zeros((64, 96), int), name="third")
    assert controls.labels.value.name == "first"
    viewer.layers.remove("first")
    assert controls.labels.value.name == "third"


def test_stop_stays_under_the_mouse(dock: UNetDock) -> None:
    """Words come and go above it."""
    controls = dock.training.controls
    layout = controls.layout()
    assert layout is not None
    controls.show_running(True, curves=True)
    places = set()
    for more in ("", ", loss 0.123, best mean AP 0.456, 10 min left"):
        controls.show_progress(1, 2000, f"step 1 of 2,000{more}")
        controls.resize(270, 900)
        layout.activate()
        places.add(controls.running_buttons.y())
    assert len(places) == 1
