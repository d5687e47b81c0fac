"""Every failure is one sentence in the dock and one notification; nothing is left behind."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
    opened,
)  # fmt: skip

from napari_unet._napari.dock import UNetDock
from napari_unet.errors import MemoryLimitError

__all__ = ["dock", "fresh_settings", "held"]  # fixtures


def assert_said(dock: UNetDock, part: str, layers: int) -> None:
    """One sentence, in both places, in the warning colour; the dock is ready again."""
    text = dock.controls.answer.text()
    assert part in text
    assert text.endswith((".", ". ", '".')), text
    assert "\n" not in text
    assert "Traceback" not in text
    assert notified(dock) == [text]
    assert dock.controls.answer.property("warning") is True
    assert dock.failed
    assert not dock.session.running
    assert dock.controls.form.isEnabled()
    assert dock.controls.button.text == "Segment"
    assert len(dock.viewer.layers) == layers


def test_no_image(dock: UNetDock) -> None:
    dock.segment()
    assert_said(dock, "There is no image: open one", 0)


def test_labels_are_no_image(dock: UNetDock) -> None:
    dock.viewer.add_labels(np.zeros((8, 8), int))
    dock.segment()
    assert_said(dock, "There is no image", 1)


def test_no_model(dock: UNetDock) -> None:
    dock.viewer.add_image(bright_squares())
    dock.models.opened = None
    dock.segment()
    assert_said(dock, "There is no model: click Open…", 1)


@pytest.mark.parametrize(
    ("shape", "arguments", "model", "part"),
    [
        ((16, 16, 3), {"rgb": True}, {}, "has 3 channels, the model takes 1"),
        ((16, 16), {}, {"in_channels": 3}, "too few axes"),
        ((16, 16), {}, {"ndim": 3}, "too few axes"),
        ((2, 2, 2, 16, 16), {}, {}, "take one position or channel of it"),
        ((16, 16), {"axis_labels": ("x", "y")}, {}, "give letters in the order TZYXC"),
    ],
)
def test_an_image_that_does_not_fit(
    dock: UNetDock, tmp_path: Path, shape: Any, arguments: Any, model: Any, part: str
) -> None:
    dock.open_model(str(bright_model(tmp_path, "other", config=model)))
    dock.viewer.add_image(np.zeros(shape, np.uint8), **arguments)
    # It is said before the click, and the click says it again.
    assert part in dock.controls.notices[0].text()
    assert dock.controls.notices[0].property("warning") is True
    dock.segment()
    assert_said(dock, part, 1)


@pytest.mark.parametrize("kind", ["current slice", "visible region"])
def test_a_region_outside_the_image(dock: UNetDock, kind: str) -> None:
    image = dock.viewer.add_image(np.stack([bright_squares()] * 2))
    dock.viewer.add_points(np.array([[50, 0, 0]]))
    dock.viewer.layers.selection.active = image
    dock.viewer.dims.set_point(0, 40)
    dock.controls.region.value = kind
    dock.segment()
    assert_said(dock, "move the sliders", 2)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


FILES = {
    "text": (b"hello world, this is text", "is not a readable .safetensors checkpoint"),
    "empty": (b"", "is empty"),
    "pickle": (pickle.dumps(Evil()), "could run code"),
    "tiff": (b"II*\x00" + bytes(100), "is a TIFF image"),
    "zip": (b"PK\x03\x04" + bytes(100), "is damaged or cut short"),
    "truncated": (None, "or is cut short"),
}


@pytest.mark.parametrize("name", FILES)
def test_not_a_checkpoint(
    dock: UNetDock, qtbot: Any, tmp_path: Path, name: str, capsys: Any
) -> None:
    content, part = FILES[name]
    path = tmp_path / f"{name}.safetensors"
    if content is None:
        content = bright_model(tmp_path, "whole").read_bytes()[:-40]
    path.write_bytes(content)
    before = dock.controls.model.value
    opened(dock, path, qtbot)
    assert part in dock.controls.answer.text()
    assert notified(dock) == [dock.controls.answer.text()]
    assert dock.controls.model.value == before
    assert dock.card is not None
    assert "executed" not in capsys.readouterr().out


def test_a_checkpoint_that_is_gone(dock: UNetDock, tmp_path: Path) -> None:
    dock.viewer.add_image(bright_squares())
    Path(dock.controls.model.value).unlink()
    dock.segment()
    assert_said(dock, "There is no checkpoint", 1)


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (MemoryLimitError("Out of memory on the CPU; choose a smaller tile size."), "smaller tile"),
        (MemoryError(), "Out of memory; choose the visible region"),
        (RuntimeError("mkldnn broke\nlong trace"), "The computation failed (mkldnn broke)"),
        (OSError("file vanished"), "The image cannot be read any more (file vanished)"),
    ],
)
def test_failures_of_the_worker(
    dock: UNetDock, held: Held, qtbot: Any, error: Exception, part: str
) -> None:
    held.error = error
    dock.viewer.add_image(bright_squares())
    dock.segment()
    finish(dock, qtbot)
    assert_said(dock, part, 1)


def test_out_of_memory_in_the_network(
    dock: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: 9 GB")

    # At every size, whoever computes: nothing smaller is left to try.
    where = "napari_unet.predictors"
    monkeypatch.setattr(f"{where}.torch_predictor.TorchPredictor.forward", refuse)
    monkeypatch.setattr(f"{where}.openvino_predictor.OpenVinoPredictor.start", refuse)
    monkeypatch.setattr(f"{where}.ncnn_predictor.NcnnPredictor.start", refuse)
    monkeypatch.setattr("napari_unet.devices._learned", {})
    dock.viewer.add_image(bright_squares())
    dock.segment()
    finish(dock, qtbot)
    assert_said(dock, "Memory ran out on the CPU with tiles of", 1)


def test_no_memory_for_the_labels(dock: UNetDock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("napari_unet._napari.session.Canvas", refuse)
    dock.viewer.add_image(bright_squares())
    dock.segment()
    assert_said(dock, "There is no memory for labels of 64 x 96", 1)


def test_torch_that_does_not_load(
    dock: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    # What `import` does where a module of that name is None.
    monkeypatch.setitem(sys.modules, "napari_unet.segmentation", None)
    dock.viewer.add_image(bright_squares())
    dock.segment()
    finish(dock, qtbot)
    assert_said(dock, "run `valid-unet doctor`", 1)


def test_a_bug_is_said_and_shown(dock: UNetDock, held: Held, qtbot: Any) -> None:
    held.error = ZeroDivisionError("a bug")
    dock.viewer.add_image(bright_squares())
    dock.segment()
    finish(dock, qtbot)
    sentence = "Something went wrong that should not (a bug)."
    assert dock.controls.answer.text() == sentence
    # napari's own notification holds the traceback, behind a button.
    assert notified(dock) == ["a bug", sentence]
    assert len(dock.viewer.layers) == 1


def test_an_image_deleted_halfway(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array")
    path = tmp_path / "image.npy"
    np.save(path, bright_squares((64, 96)))

    def load(block_info: Any = None) -> np.ndarray:
        (rows, columns), *_ = (block_info[None]["array-location"],)
        return np.load(path)[slice(*rows), slice(*columns)]

    lazy = da.map_blocks(load, chunks=((32, 32), (48, 48)), dtype=np.float32, meta=np.zeros((0, 0)))
    dock.viewer.add_image(lazy, name="file", contrast_limits=(0, 1))
    path.unlink()
    dock.segment()
    finish(dock, qtbot)
    assert_said(dock, "check that its file is still there", 1)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((40, 50), np.nan, np.float32),
        np.full((40, 50), np.inf, np.float32),
        np.full((40, 50), 7, np.uint16),
        np.zeros((1, 1), np.uint8),
        np.zeros((40, 50), bool),
    ],
    ids=["nan", "infinite", "constant", "1x1", "bool"],
)
def test_odd_pixels(dock: UNetDock, qtbot: Any, pixels: np.ndarray) -> None:
    dock.viewer.add_image(pixels, contrast_limits=(0, 1))
    dock.segment()
    finish(dock, qtbot)
    layer = dock.viewer.layers[-1]
    if dock.failed:
        assert_said(dock, "", 1)
    else:
        assert layer.data.shape == pixels.shape
        assert layer.data.dtype == np.int32


def test_an_error_that_superqt_swallows(
    dock: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A RuntimeError that leaves a generator ends superqt's worker without a word."""

    def refuse() -> None:
        raise RuntimeError("docstrings are there already")

    monkeypatch.setattr("napari_unet._napari.runner.link_torch", refuse)
    dock.viewer.add_image(bright_squares())
    dock.segment()
    finish(dock, qtbot, 10_000)
    sentence = "Something went wrong that should not (docstrings are there already)."
    assert notified(dock) == ["docstrings are there already", sentence]
    assert dock.controls.button.text == "Segment"


@pytest.mark.parametrize("step", ["Preview", "Run.start", "Preview.become"])
def test_a_step_in_the_window_that_goes_wrong(
    dock: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The run ends; nothing else would ever end it."""

    def refuse(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(f"napari_unet._napari.session.{step}", refuse)
    dock.viewer.add_image(bright_squares())
    with qtbot.captureExceptions() as raised:
        dock.segment()
        finish(dock, qtbot)
    assert [str(error) for _, error, _ in raised] == ["a bug"]
    assert_said(dock, "Something went wrong that should not (a bug).", 1)
