"""The dock, from a click to a layer that can be corrected by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from dock_models import bright_model
from dock_support import bright_squares, dock, finish, fresh_settings, notified
from napari.layers import Image, Labels
from napari.settings import get_plugin_settings
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QWidget

from napari_unet._napari.dock import UNetDock
from napari_unet._napari.results import METADATA_KEY

__all__ = ["dock", "fresh_settings"]  # fixtures


def result_of(dock: UNetDock, qtbot: Any) -> Labels:
    dock.controls.button.native.click()
    words = finish(dock, qtbot)
    assert not dock.failed, words
    layer = dock.viewer.layers[-1]
    assert isinstance(layer, Labels)
    return layer


def test_opening_the_dock_imports_no_torch() -> None:
    code = (
        "import sys, conftest, napari\n"
        "from napari_unet._napari.dock import UNetDock\n"
        "viewer = napari.Viewer(show=False)\n"
        "dock = UNetDock(viewer)\n"
        "viewer.window.add_dock_widget(dock)\n"
        "viewer.add_image(__import__('numpy').zeros((8, 8)))\n"
        "assert dock.images.layer is viewer.layers[0]\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "viewer.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr


def test_one_click_does_the_job(dock: UNetDock, qtbot: Any) -> None:
    image = dock.viewer.add_image(
        bright_squares(), name="cells", scale=(0.5, 0.25), translate=(3, 4), units=("um", "um")
    )
    layer = result_of(dock, qtbot)
    assert layer.name == "cells bright"
    assert layer.data.dtype == np.int32
    assert type(layer.data) is np.ndarray
    assert not layer.multiscale
    assert layer.data.shape == image.data.shape
    assert layer.data.max() == 24
    np.testing.assert_array_equal(layer.data > 0, image.data > 0.5)
    np.testing.assert_array_equal(layer.scale, image.scale)
    np.testing.assert_array_equal(layer.translate, image.translate)
    assert layer.units == image.units
    assert list(layer.features["index"]) == list(range(1, 25))
    assert set(layer.features["area"]) == {64}
    assert {"foreground_probability", "doubt", "touches_edge"} <= set(layer.features)
    report = layer.metadata[METADATA_KEY]
    assert report["model"] == "bright"
    assert len(report["model_sha256"]) == 64
    assert report["version"]
    assert report["settings"]["output"] == "instances"
    assert dock.viewer.layers.selection.active is layer
    words = dock.controls.answer.text()
    assert words.startswith("24 objects in ")
    # Which precision is worth taking depends on what is loaded already.
    assert words.endswith(f" s on the CPU ({report['precision']})")
    assert notified(dock) == []


def test_running_again_adds_a_layer(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(bright_squares(), name="cells")
    first = result_of(dock, qtbot)
    first.paint((30, 30), 7)
    painted = first.data.copy()
    second = result_of(dock, qtbot)
    assert [layer.name for layer in dock.viewer.layers] == [
        "cells", "cells bright", "cells bright [1]",
    ]  # fmt: skip
    assert second is not first
    np.testing.assert_array_equal(first.data, painted)


def test_every_stroke_on_a_result_can_be_undone(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(bright_squares())
    layer = result_of(dock, qtbot)
    before = layer.data.copy()
    layer.undo()
    np.testing.assert_array_equal(layer.data, before)
    layer.paint((30, 30), 77)
    layer.fill((6, 6), 78)
    assert {77, 78} <= set(np.unique(layer.data))
    layer.undo()
    layer.undo()
    np.testing.assert_array_equal(layer.data, before)
    layer.redo()
    assert 77 in layer.data
    layer.new_colormap()
    layer.selected_label = layer.data.max() + 1
    layer.mode = "erase"


def test_a_result_takes_no_part_in_the_run_that_follows(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(bright_squares(), name="cells")
    result_of(dock, qtbot)
    assert dock.images.layer.name == "cells"


def test_classes(dock: UNetDock, qtbot: Any) -> None:
    dock.controls.output.value = "classes"
    dock.viewer.add_image(bright_squares(), name="cells")
    layer = result_of(dock, qtbot)
    assert set(np.unique(layer.data)) == {0, 1}
    assert list(layer.features["class"]) == ["background", "foreground"]
    np.testing.assert_allclose(layer.get_color(1)[:3], [77 / 255, 175 / 255, 74 / 255], atol=1e-3)
    assert layer.colormap.map(0)[3] == 0
    assert layer.colormap.map(9)[3] == 1
    assert dock.controls.answer.text().startswith("foreground 25 % in ")


def test_probabilities_are_layers_too(dock: UNetDock, qtbot: Any) -> None:
    dock.controls.probabilities.value = True
    image = dock.viewer.add_image(bright_squares(), name="cells", scale=(0.5, 0.5))
    layer = result_of(dock, qtbot)
    maps = [one for one in dock.viewer.layers if isinstance(one, Image) and one is not image]
    assert [one.name for one in maps] == ["cells bright background", "cells bright foreground"]
    assert all(not one.visible and list(one.contrast_limits) == [0, 1] for one in maps)
    assert all(np.array_equal(one.scale, image.scale) for one in maps)
    np.testing.assert_allclose(maps[0].data + maps[1].data, 1, atol=1e-6)
    np.testing.assert_array_equal(maps[1].data > 0.5, layer.data > 0)
    assert "2 hidden layers" in dock.controls.answer.text()
    assert dock.images.layer is image


def test_a_current_slice_lies_on_its_plane(dock: UNetDock, qtbot: Any) -> None:
    stack = np.stack([np.zeros((64, 96), np.float32), bright_squares(), bright_squares()])
    image = dock.viewer.add_image(stack, name="stack", scale=(3, 1, 1))
    dock.viewer.dims.set_point(0, 3)
    dock.controls.region.value = "current slice"
    layer = result_of(dock, qtbot)
    assert layer.data.shape == (1, 64, 96)
    assert layer.data.max() == 24
    np.testing.assert_allclose(layer.data_to_world((0, 5, 6)), image.data_to_world((1, 5, 6)))


def test_a_visible_region_lies_where_it_was_seen(dock: UNetDock, qtbot: Any) -> None:
    image = dock.viewer.add_image(bright_squares((128, 128)), name="cells")
    image.corner_pixels = np.array([[16, 32], [47, 95]])
    dock.controls.region.value = "visible region"
    layer = result_of(dock, qtbot)
    assert layer.data.shape == (32, 64)
    assert layer.data.max() == 8
    np.testing.assert_allclose(layer.translate, (16, 32))


def test_stacks_show_every_plane(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(np.stack([bright_squares()] * 3), name="stack")
    layer = result_of(dock, qtbot)
    assert layer.data.shape == (3, 64, 96)
    assert layer.data.max() == 72
    assert len(layer.features) == 72


def test_rgb(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    dock.open_model(str(bright_model(tmp_path, "colour", config={"in_channels": 3})))
    rgba = np.repeat(bright_squares()[..., None], 4, axis=-1)
    image = dock.viewer.add_image(rgba, name="tissue", rgb=True)
    layer = result_of(dock, qtbot)
    assert layer.ndim == image.ndim == 2
    assert layer.data.max() == 24


def test_a_level_of_a_multiscale_image(dock: UNetDock, qtbot: Any) -> None:
    fine = bright_squares((128, 192), step=32)
    image = dock.viewer.add_image([fine, fine[::2, ::2]], multiscale=True, name="pyramid")
    assert not dock.controls.level.native.isHidden()
    dock.controls.level.value = 1
    assert dock.controls.brief.text() == "64x96 f32"
    layer = result_of(dock, qtbot)
    assert layer.data.shape == (64, 96)
    np.testing.assert_allclose(layer.data_to_world((5, 7)), image.data_to_world((10, 14)))
    dock.viewer.add_image(bright_squares())
    assert dock.controls.level.native.isHidden()


def test_spacing_is_passed_on(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    dock.open_model(str(bright_model(tmp_path, "spaced", spacing=(1.0, 1.0))))
    dock.viewer.add_image(bright_squares(), scale=(0.5, 0.5), units=("um", "um"))
    assert "runs at half size" in dock.controls.notices[0].text()
    layer = result_of(dock, qtbot)
    assert layer.data.shape == (64, 96)
    assert layer.metadata[METADATA_KEY]["network_shape"] == [32, 48]
    dock.viewer.layers[0].units = ("pixel", "pixel")
    assert "pixel size unknown" in dock.controls.notices[0].text()


def test_the_image_follows_the_active_layer_until_one_is_picked(dock: UNetDock) -> None:
    viewer, box = dock.viewer, dock.controls.image
    first, second = (viewer.add_image(np.zeros((8, 8)), name=name) for name in "ab")
    assert dock.images.layer is second
    viewer.layers.selection.active = first
    assert dock.images.layer is first
    labels = viewer.add_labels(np.zeros((8, 8), int))
    assert dock.images.layer is first
    viewer.layers.selection.active = second
    assert dock.images.layer is second
    # A person picks: Qt tells the click apart from code.
    box.native.setCurrentIndex(box.choices.index(first))
    box.native.activated.emit(box.native.currentIndex())
    viewer.layers.selection.active = second
    assert dock.images.layer is first
    viewer.layers.remove(first)
    assert dock.images.layer is second
    third = viewer.add_image(np.zeros((8, 8)))
    assert dock.images.layer is third
    viewer.layers.clear()
    assert dock.images.layer is None
    assert labels not in viewer.layers


def test_names_in_the_list_follow_the_layers(dock: UNetDock) -> None:
    layer = dock.viewer.add_image(np.zeros((8, 8)), name="before")
    layer.name = "after"
    assert dock.controls.image.native.currentText() == "after"


def test_the_model_shows_its_passport(dock: UNetDock, tmp_path: Path) -> None:
    path = bright_model(
        tmp_path, "stained", spacing=(0.5, 0.5), provenance={"data": "bright squares"},
        settings={"min_size": 12},
    )  # fmt: skip
    dock.open_model(str(path))
    text = dock.controls.passport.text()
    assert text.startswith("2-D, 1 channel, background + foreground, 0.5 µm/px")
    assert "Data: bright squares" in dock.controls.passport.toolTip()
    assert dock.controls.min_size.native.text() == "12 (model)"
    assert dock.controls.threshold.native.text() == "0.5 (model)"


def test_a_dropped_file_is_the_model(dock: UNetDock, tmp_path: Path) -> None:
    path = bright_model(tmp_path, "dropped")
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    event = QDropEvent(
        QPointF(5, 5), Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    dock.dropEvent(event)
    assert dock.controls.model.native.currentText() == "dropped"
    assert dock.card.name == "dropped"


def test_choices_reach_the_core(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(bright_squares())
    controls = dock.controls
    controls.threshold.value, controls.min_size.value = 0.3, 65
    controls.fill_holes.value, controls.tile_size.value = False, 40
    controls.memory.value, controls.engine.value = 1.5, "torch"
    layer = result_of(dock, qtbot)
    report = layer.metadata[METADATA_KEY]
    assert report["settings"]["threshold"] == pytest.approx(0.3)
    assert report["settings"]["min_size"] == 65
    assert report["settings"]["fill_holes"] is False
    assert report["settings"]["memory"] == 3 << 29
    assert report["tile_size"] == [40, 40]
    assert report["engine"] == "torch"
    assert report["objects"] == 0
    assert dock.controls.answer.text().startswith("No objects found in ")


def test_settings_survive(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    dock.viewer.add_image(bright_squares())
    dock.open_model(str(bright_model(tmp_path, "later")))
    dock.controls.output.value = "classes"
    dock.controls.tile_size.value = 256
    dock.controls.memory.value = 2.5
    dock.controls.engine.value = "torch"
    dock.controls.keep_tiles.value = True
    result_of(dock, qtbot)
    again = UNetDock(dock.viewer)
    qtbot.addWidget(again)
    assert again.controls.more.isChecked(), "what was chosen there is in force"
    assert again.controls.output.value == "classes"
    assert again.controls.tile_size.value == 256
    assert again.controls.memory.value == 2.5
    assert again.controls.engine.value == "torch"
    assert again.controls.keep_tiles.value is True
    assert again.controls.model.native.currentText() == "later"
    stored = (tmp_path / "config" / "napari-valid-unet.yaml").read_text()
    assert "tile_size: 256" in stored
    assert "memory: 2.5" in stored
    assert "engine: torch" in stored
    again._let_go()


def test_nothing_is_unfolded_that_is_as_usual(dock: UNetDock, qtbot: Any) -> None:
    dock.controls.output.value = "classes"  # in sight anyway
    again = UNetDock(dock.viewer)
    qtbot.addWidget(again)
    assert not again.controls.more.isChecked()
    again._let_go()


def test_opening_the_dock_writes_no_settings(dock: UNetDock, qtbot: Any) -> None:
    dock.controls.precision.value, dock.controls.tile_size.value = "float32", 256
    written: list[Any] = []
    group = get_plugin_settings("napari-valid-unet").segmentation
    group.events.connect(written.append)
    again = UNetDock(dock.viewer)
    qtbot.addWidget(again)
    assert (again.controls.precision.value, again.controls.tile_size.value) == ("float32", 256)
    assert not written
    group.events.disconnect(written.append)
    again._let_go()


def test_preferences_and_dock_show_the_same(dock: UNetDock) -> None:
    group = get_plugin_settings("napari-valid-unet").segmentation
    group.precision = "bfloat16"
    assert dock.controls.precision.value == "bfloat16"
    dock.controls.device.value = "cpu"
    assert group.device == "cpu"
    # Whatever the dock offers, the preferences take.
    for name in ("device", "precision", "engine"):
        box = getattr(dock.controls, name)
        for choice in box.choices:
            box.value = choice
            assert getattr(group, name) == choice


@pytest.mark.parametrize("installed", [True, False])
def test_a_library_is_offered_where_it_is_installed(
    dock: UNetDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    get_plugin_settings("napari-valid-unet").segmentation.engine = "openvino"
    monkeypatch.setattr(
        "napari_unet._napari.controls.find_spec", lambda _: object() if installed else None
    )
    again = UNetDock(dock.viewer)
    qtbot.addWidget(again)
    engine = again.controls.engine
    assert engine.choices == ("auto", "torch", "openvino", "ncnn")[: 2 + 2 * installed]
    assert engine.value == ("openvino" if installed else "auto")
    assert engine.native.itemText(1) == "PyTorch"
    assert again.controls.memory.native.text() == "automatic"
    again._let_go()


def test_a_model_that_is_gone_is_not_offered(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    dock.viewer.add_image(bright_squares())
    path = bright_model(tmp_path, "gone")
    dock.open_model(str(path))
    result_of(dock, qtbot)
    path.unlink()
    again = UNetDock(dock.viewer)
    qtbot.addWidget(again)
    assert not any("gone" in key for key in again.controls.model.choices)
    again._let_go()


def test_keyboard(dock: UNetDock, qtbot: Any) -> None:
    dock.viewer.add_image(bright_squares())
    dock.show()
    chain, widget = [], dock.controls.image.native
    for _ in range(60):
        if isinstance(widget, QWidget) and widget.focusPolicy() & Qt.FocusPolicy.TabFocus:
            chain.append(widget)
        widget = widget.nextInFocusChain()
    names = ["image", "model", "open", "probabilities", "region", "device", "keep_tiles", "button"]
    places = [chain.index(getattr(dock.controls, name).native) for name in names]
    assert places == sorted(places)
    assert chain.index(dock.controls.more) == places[4] + 1


def test_every_control_explains_itself(dock: UNetDock) -> None:
    controls = dock.controls
    for name in (
        "image", "level", "model", "output", "probabilities", "region", "device", "precision",
        "engine", "memory", "tile_size", "threshold", "min_size", "fill_holes", "rescale",
        "keep_tiles",
    ):  # fmt: skip
        tip = getattr(controls, name).tooltip
        assert "Default: " in tip, name
    for name in ("tile_size", "min_size"):
        assert "pixels" in getattr(controls, name).tooltip
    assert controls.button.tooltip
    assert controls.open.tooltip


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", [9, 14])
def test_fits_into_280_pixels(dock: UNetDock, theme: str, size: int) -> None:
    from napari.settings import get_settings

    dock.viewer.add_image(np.zeros((1024, 1360), np.uint16))
    appearance = get_settings().appearance
    appearance.theme, appearance.font_size = theme, size
    dock.controls.more.setChecked(True)
    assert dock.controls.minimumSizeHint().width() <= 280 - 20


def test_the_manifest_is_valid_and_whole(make_napari_viewer: Any) -> None:
    from npe2 import PluginManager

    viewer = make_napari_viewer()
    manifest = PluginManager.instance().get_manifest("napari-valid-unet")
    assert [widget.display_name for widget in manifest.contributions.widgets] == ["U-Net"]
    assert list(manifest.contributions.menus) == ["napari/layers/segment"]
    assert {command.id for command in manifest.contributions.commands} == {
        "napari-valid-unet.dock", "napari-valid-unet.open_checkpoint",
        "napari-valid-unet.sample_nuclei",
    }  # fmt: skip
    (layer,) = viewer.open_sample("napari-valid-unet", "nuclei")
    assert layer.name == "nuclei"
    assert layer.data.ndim == 2
