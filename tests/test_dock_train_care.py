"""What a training must not do to a person's layers, labels, other windows and next rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import label

pytest.importorskip("napari")

from dock_support import (
    Gated,
    bright_squares,
    dock,
    finish,
    finish_training,
    fresh_settings,
    gated,
    teachable,
)  # fmt: skip

from napari_unet._napari.dock import UNetDock

__all__ = ["dock", "fresh_settings", "gated", "teachable"]  # fixtures

Arrays = tuple[NDArray[Any], NDArray[Any]]


def stopped(dock: UNetDock, gated: Gated, qtbot: Any) -> None:
    """Train for twelve steps."""
    dock.training.train()
    qtbot.waitUntil(lambda: gated.taken >= 12 or not dock.training.running, timeout=60_000)
    dock.training.stop()
    finish_training(dock, qtbot)


@pytest.mark.parametrize(
    "change",
    [
        lambda image, labels: (image, labels.astype(np.int64)),
        lambda image, labels: (image.astype(np.float16), labels.astype(np.uint64)),
        lambda image, labels: ((1000 * image).astype(np.int64), labels.astype(np.uint8)),
        lambda image, labels: ((1000 * image).astype(">u2"), labels),
        lambda image, labels: (image > 0.1, np.where(labels > 0, labels + 2_000_000_000, 0)),
        lambda image, labels: (np.repeat((255 * image).astype(np.uint8)[..., None], 3, -1), labels),
    ],
    ids=["int64 labels", "float16", "int64", "big-endian", "large numbers", "grey colours"],
)
def test_whatever_is_trained_on_can_be_resumed(
    teachable: UNetDock, gated: Gated, qtbot: Any, change: Callable[[Any, Any], Arrays]
) -> None:
    viewer, page = teachable.viewer, teachable.training
    image, labels = change(viewer.layers["cells"].data, viewer.layers["truth"].data)
    viewer.layers.clear()
    viewer.add_image(image, name="cells", rgb=image.ndim == 3)
    viewer.add_labels(labels, name="truth")
    stopped(teachable, gated, qtbot)
    assert not page.failed, page.controls.answer.text()
    gated.gate.set()
    page.resume()
    finish_training(teachable, qtbot)
    assert not page.failed, page.controls.answer.text()
    assert page.done is not None
    assert page.done.trained.steps == 30


def test_a_running_training_is_no_interrupted_one(
    teachable: UNetDock, gated: Gated, qtbot: Any, tmp_path: Path
) -> None:
    teachable.training.train()
    qtbot.waitUntil(lambda: gated.taken >= 12, timeout=60_000)
    assert (tmp_path / "models" / "bright-cells.training").is_file()
    # In another window, and as well in another process.
    other = UNetDock(teachable.viewer)
    qtbot.addWidget(other)
    controls = other.training.controls
    controls.folder.setText(str(tmp_path / "models"))
    controls.folder.editingFinished.emit()
    assert controls.notice.text() == ""
    other.training.discard()
    other.training.resume()
    assert not other.training.running
    gated.gate.set()
    finish_training(teachable, qtbot)
    assert teachable.training.done is not None
    assert teachable.training.done.trained.steps == 30
    other._let_go()


def test_what_was_reviewed_is_what_decides(teachable: UNetDock, qtbot: Any) -> None:
    # The region does not reach the end of the image, which would be held out else.
    viewer, page = teachable.viewer, teachable.training
    scale, translate = viewer.layers["cells"].scale, viewer.layers["cells"].translate
    corners = np.array([[0, 0], [0, 70], [95, 70], [95, 0]], float)
    viewer.add_shapes([corners], name="looked", scale=scale, translate=translate)
    page.picker.refresh()
    page.controls.reviewed.value = viewer.layers["looked"]
    page.train()
    words = finish_training(teachable, qtbot)
    assert "is better than the old model" in words
    assert page.done is not None
    trained = page.done.trained
    assert trained.after is not None
    assert trained.after.mean["truth_objects"] > 0


def test_nobody_paints_into_the_preview_and_nothing_is_selected(
    teachable: UNetDock, gated: Gated, qtbot: Any
) -> None:
    viewer, page = teachable.viewer, teachable.training
    gated.free = 22
    truth = viewer.layers["truth"]
    viewer.layers.selection.active = truth
    truth.mode = "paint"
    page.train()
    qtbot.waitUntil(lambda: len(page.controls.plot.scores) == 2, timeout=60_000)
    qtbot.wait(100)
    preview = viewer.layers["preview of cells (training)"]
    assert not preview.editable
    assert viewer.layers.selection.active is truth
    assert truth.mode == "paint"
    gated.gate.set()
    finish_training(teachable, qtbot)
    new = viewer.layers["cells (new)"]
    assert new.editable
    assert not new._undo_history
    assert viewer.layers.selection.active is truth


def test_labels_of_another_image_are_not_taken(dock: UNetDock, qtbot: Any) -> None:
    viewer, controls = dock.viewer, dock.training.controls
    for name, shift in (("A", 0), ("B", 5)):
        viewer.add_image(np.roll(bright_squares((64, 64)), shift, 1), name=name)
        dock.segment()
        finish(dock, qtbot)
    viewer.layers.selection.active = viewer.layers["A"]
    assert (controls.image.value.name, controls.labels.value.name) == ("A", "A bright")
    viewer.layers.selection.active = viewer.layers["B"]
    assert (controls.image.value.name, controls.labels.value.name) == ("B", "B bright")
    # What is drawn by hand was made from no image that is known; it is the newest.
    viewer.add_labels(np.zeros((64, 64), np.int32), name="mine")
    dock.training.picker.refresh()
    assert controls.labels.value.name == "mine"


def test_an_image_that_is_gone_is_one_sentence(teachable: UNetDock, tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array")
    viewer, page = teachable.viewer, teachable.training
    image, there = viewer.layers["cells"].data, [True]

    def block(block_info: Any = None) -> Any:
        if not there:
            raise OSError("the network drive is gone")
        return image

    viewer.layers.clear()
    lazy = da.map_blocks(block, chunks=tuple((n,) for n in image.shape), dtype=image.dtype)
    viewer.add_image(lazy, name="cells", contrast_limits=(0, 1))
    viewer.add_labels(label(image > 0.5).astype(np.int32), name="truth")
    there.clear()
    words = "The image cannot be read any more (the network drive is gone); open it again."
    page.train()
    assert page.controls.answer.text() == words
    page.say("")
    page.picker.save(tmp_path / "pairs")
    assert page.controls.answer.text() == words
