"""The probe from the dock: image and labels in, answers to open questions out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from dock_models import bright_model, foreign_model
from dock_support import bright_squares, dock, fresh_settings, notified, opened
from skimage.measure import label

from napari_unet._napari.dock import UNetDock
from napari_unet._napari.results import METADATA_KEY
from napari_unet.errors import Cancelled, ImageError
from napari_unet.probe import Probe, ProbeProgress

__all__ = ["dock", "fresh_settings"]  # fixtures


@dataclass
class Told:
    """In place of the core's `probe_steps`: says what it is told to."""

    outcome: Probe | Exception
    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, path, image, labels, *, axes, spacing, assume, should_stop):
        self.asked.append((path, image, labels, axes, spacing, assume))
        yield ProbeProgress(0.25, "trying the order", 1.0)
        while not self.gate.wait(0.01):
            if should_stop():
                raise Cancelled("Stopped.")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    fake = Told(Probe((), {"order": "skip-up", "shift": "-0.5"}, "order skip-up won clearly."))
    monkeypatch.setattr("napari_unet.probe.probe_steps", fake)
    yield fake
    fake.gate.set()


@pytest.fixture
def ready(dock: UNetDock, qtbot: Any, tmp_path: Path) -> UNetDock:
    """An imported model, an image, and labels that belong to it."""
    opened(dock, foreign_model(tmp_path), qtbot)
    image = bright_squares()
    place = {"scale": (0.5, 0.25), "units": ("um", "um")}
    dock.viewer.add_image(image, name="cells", **place)
    dock.viewer.add_labels(label(image > 0.5), name="truth", **place)
    return dock


def ended(dock: UNetDock, qtbot: Any) -> str:
    qtbot.waitUntil(lambda: not dock.running and not dock.models.busy, timeout=60_000)
    return dock.controls.answer.text()


def test_only_labels_that_fit_are_offered(ready: UNetDock, tmp_path: Path) -> None:
    questions, viewer = ready.controls.questions, ready.viewer
    viewer.add_labels(np.zeros((3, 3), int), name="small")
    viewer.add_labels(
        np.zeros((64, 96), int), name="result", metadata={METADATA_KEY: {"model": "x"}}
    )
    # What a person drew comes before what a model made.
    assert [layer.name for layer in questions.labels.choices] == ["truth", "result"]
    assert questions.labels.value.name == "truth"
    assert questions.probe.isEnabled()
    viewer.layers.remove("truth")
    viewer.layers.remove("result")
    assert not questions.probe.isEnabled()
    assert "Needs a Labels layer" in questions.probe.toolTip()
    assert questions.labels.native.placeholderText() == "none fits"


def test_a_clear_winner_fills_the_fields(ready: UNetDock, told: Told, qtbot: Any) -> None:
    controls = ready.controls
    controls.questions.probe.click()
    qtbot.waitUntil(lambda: controls.bar_text.text() == "trying the order", timeout=20_000)
    assert controls.bar.native.value() == 25
    assert controls.button.text == "Cancel"
    assert not controls.form.isEnabled()
    told.gate.set()
    assert ended(ready, qtbot) == "order skip-up won clearly."
    ((path, image, labels, axes, spacing, assume),) = told.asked
    opened_ = ready.models.opened
    assert path == opened_.path
    assert image.shape == labels.shape == (64, 96)
    assert (axes, spacing, assume) == (None, (0.5, 0.25), {})
    assert opened_.given == {"order": "skip-up", "shift": "-0.5"}
    fields = controls.questions.fields
    assert {key for key, one in fields.items() if one.sure.isChecked()} == {"order", "shift"}
    assert fields["shift"].value == "-0.5"
    assert controls.button.text == "Segment"
    assert controls.button.native.isEnabled()
    # It took a minute: it is remembered, whether the model is used or not.
    assert ready.settings.recent.of(opened_.key).assume == opened_.given


def test_without_a_winner_the_fields_stay(ready: UNetDock, told: Told, qtbot: Any) -> None:
    told.outcome = Probe((), None, "Nothing matches the labels clearly.")
    told.gate.set()
    before = ready.models.opened
    ready.probe()
    assert ended(ready, qtbot) == "Nothing matches the labels clearly."
    assert ready.models.opened is before
    assert not ready.failed


def test_what_is_known_is_kept(ready: UNetDock, told: Told, qtbot: Any) -> None:
    told.gate.set()
    ready.models.say({"padding": "valid", "order": "up-skip"}, frozenset({"order"}))
    ended(ready, qtbot)
    ready.probe()
    ended(ready, qtbot)
    assert told.asked[0][-1] == {"padding": "valid"}


@pytest.mark.parametrize("way", ["button", "escape"])
def test_cancel(ready: UNetDock, told: Told, qtbot: Any, way: str) -> None:
    before = ready.models.opened
    ready.probe()
    qtbot.waitUntil(lambda: bool(told.asked), timeout=20_000)
    ready.controls.button.native.click() if way == "button" else ready._escape.activated.emit()
    assert not ready.running
    assert ready.controls.answer.text() == "Cancelled; the answers are as they were."
    assert ready.models.opened is before
    assert ready.controls.form.isEnabled()


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ImageError("There are no objects in the labels; paint some."), "paint some"),
        (RuntimeError("mkldnn broke\nlong"), "The probe failed (mkldnn broke)"),
        (MemoryError(), "Out of memory"),
    ],
)
def test_failures(ready: UNetDock, told: Told, qtbot: Any, error: Exception, part: str) -> None:
    told.outcome = error
    told.gate.set()
    ready.probe()
    assert part in ended(ready, qtbot)
    assert ready.failed
    assert notified(ready) == [ready.controls.answer.text()]


def test_closing_the_dock_stops_it(ready: UNetDock, told: Told, qtbot: Any) -> None:
    ready.probe()
    qtbot.waitUntil(lambda: bool(told.asked), timeout=20_000)
    ready._let_go()
    assert not ready.running


@pytest.mark.timeout(300)
def test_the_real_probe_finds_what_is_bright(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    # A network that hands its (unscaled) image through: only class 1 can be the foreground.
    import torch
    from families import Jvanvugt

    network = Jvanvugt(depth=1, wf=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name, parameter in network.named_parameters():
            if name.endswith("weight") and parameter.shape[-1] == 3:
                parameter[0, 0, 1, 1] = 1
        network.last.weight[0, 0], network.last.bias[0] = 40, -20
    path = tmp_path / "through.pt"
    torch.save(network.state_dict(), path)
    opened(dock, path, qtbot)
    image = bright_squares((160, 160))
    dock.viewer.add_image(image, name="cells")
    dock.viewer.add_labels(label(image > 0.5))
    dock.controls.questions.probe.click()
    words = ended(dock, qtbot)
    assert not dock.failed, words
    assert dock.models.opened.given.get("foreground") == "0", words
    dock.segment()
    qtbot.waitUntil(lambda: not dock.running, timeout=60_000)
    np.testing.assert_array_equal(dock.viewer.layers[-1].data > 0, image > 0.5)


def test_native_models_have_nothing_to_probe(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    opened(dock, bright_model(tmp_path, "native"), qtbot)
    assert dock.controls.questions.isHidden()
