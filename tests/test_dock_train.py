"""The Train page: from an image and its labels to a model that Segment uses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from dock_support import bright_squares, dock, fresh_settings
from skimage.measure import label

from napari_unet._napari import train_worker
from napari_unet._napari.dock import UNetDock

__all__ = ["dock", "fresh_settings"]  # fixtures


def made(dock: UNetDock, qtbot: Any) -> str:
    """Wait for the end of a training; what the page says then."""
    qtbot.waitUntil(lambda: not dock.training.running, timeout=120_000)
    return dock.training.controls.answer.text()


def steps_only(dock: UNetDock, steps: int, **more: Any) -> None:
    """Count steps instead of minutes."""
    controls = dock.training.controls
    choices = controls.choices
    controls.choices = lambda: replace(choices(), steps=steps, **more)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile of 48 px a step."""
    recipe = train_worker._recipe

    def smaller(*given: Any) -> Any:
        return replace(recipe(*given), write=48, batch=1, every=10)

    monkeypatch.setattr(train_worker, "_recipe", smaller)


@pytest.fixture
def ready(dock: UNetDock, tmp_path: Path) -> Iterator[UNetDock]:
    """An image whose objects are dark, which the model has never seen, and their labels."""
    image = bright_squares((96, 128))
    dock.viewer.add_image(0.4 * image, name="cells", scale=(0.5, 0.5), translate=(3, 5))
    dock.viewer.add_labels(label(image > 0.5), name="truth", scale=(0.5, 0.5), translate=(3, 5))
    dock.training.controls.folder.setText(str(tmp_path / "models"))
    steps_only(dock, 30, rate=0.02)
    yield dock


def test_one_click_trains_and_another_uses_the_model(ready: UNetDock, qtbot: Any) -> None:
    page, controls = ready.training, ready.training.controls
    assert controls.image.value.name == "cells"
    assert controls.labels.value.name == "truth"
    assert controls.name.text() == "bright-cells"
    controls.button.click()
    words = made(ready, qtbot)
    assert not page.failed, words

    assert page.done is not None
    controls.results.use.click()
    path = page._paths("bright-cells")[0]
    assert ready.models.opened.path == path
    assert ready.pages.currentIndex() == 0
    ready.segment()
    qtbot.waitUntil(lambda: not ready.running, timeout=60_000)
    assert ready.controls.answer.text().startswith("48 objects")
