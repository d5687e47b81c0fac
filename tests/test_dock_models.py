"""Opening, dropping and remembering checkpoints of other programs in the dock."""

from __future__ import annotations

import json
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

import torch
from dock_models import bright_model, foreign_model
from dock_support import bright_squares, dock, finish, fresh_settings, notified, opened
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication

from napari_unet._napari.dock import UNetDock
from napari_unet._napari.reader import get_reader, is_checkpoint
from napari_unet._napari.recent import Recent, RecentList
from napari_unet._napari.results import METADATA_KEY
from napari_unet.checkpoint import file_sha256, load_model
from napari_unet.importers import CHOICES, SUFFIXES

__all__ = ["dock", "fresh_settings"]  # fixtures


def deliver(widget: Any, path: Path) -> None:
    """Drag a file over a widget and let it go there, as Qt does it: through filters and parents."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path))])
    how = (
        Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier,
    )  # fmt: skip
    QApplication.sendEvent(widget, QDragEnterEvent(QPoint(5, 5), *how))
    QApplication.sendEvent(widget, QDropEvent(QPointF(5, 5), *how))


def answers(dock: UNetDock) -> dict[str, str]:
    return {key: field.value for key, field in dock.controls.questions.fields.items()}


def pick(dock: UNetDock, key: str, value: str) -> None:
    """As a person does: with the mouse, in the list of a question."""
    box = dock.controls.questions.fields[key].box
    box.setCurrentText(value)
    box.activated.emit(box.currentIndex())


def recent_of(folder: Path) -> Any:
    return json.loads((folder / "napari-valid-unet-recent.json").read_text())


def test_the_window_lives_while_a_file_is_opened(
    dock: UNetDock, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(*arguments: Any, **more: Any) -> Any:
        assert gate.wait(20)
        return load_model(*arguments, **more)

    monkeypatch.setattr("napari_unet._napari.opening.load_model", slow)
    before = dock.models.opened
    dock.viewer.add_image(bright_squares())
    dock.open_model(str(foreign_model(tmp_path)))
    assert dock.controls.passport.text() == "Opening foreign.pt…"
    assert not dock.controls.button.native.isEnabled()
    dock.segment()
    assert not dock.session.running
    assert "still being opened" in dock.controls.answer.text()
    # Escape returns to the model that there was, and what comes later is not heard.
    dock.cancel()
    gate.set()
    qtbot.wait(300)
    assert dock.models.opened is before
    assert dock.controls.model.native.currentText() == "bright"
    assert dock.controls.passport.text().startswith("2-D, 1 channel")
    assert dock.controls.button.native.isEnabled()


def test_the_passport_says_what_was_read_and_what_was_assumed(
    dock: UNetDock, qtbot: Any, tmp_path: Path
) -> None:
    path = foreign_model(tmp_path)
    opened(dock, path, qtbot)
    origin = load_model(path).origin
    questions = dock.controls.questions
    assert not questions.isHidden()
    # Numbers are written as a person writes them.
    assert answers(dock) == {**origin.assumed, "slope": "0", "shift": "0"}
    assert list(answers(dock)) == [key for key in CHOICES if key in origin.assumed]
    assert not any(field.sure.isChecked() for field in questions.fields.values())
    assert questions.fold.text() == f"▸ {len(origin.assumed)} assumptions made"
    for heading in ("Imported from: ", "Read: ", "Assumed: "):
        assert heading in dock.controls.passport.toolTip()
    for field in questions.fields.values():
        assert "assumed" in field.box.toolTip()
        assert "Default: " in field.sure.toolTip()
    opened(dock, bright_model(tmp_path, "native"), qtbot)
    assert questions.isHidden()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("order", "skip-up"), ("up-activation", "yes"), ("normalisation", "none"),
        ("foreground", "0"), ("padding", "same"),
    ],
)  # fmt: skip
def test_an_answer_in_the_dock_is_the_network_of_load_model(
    dock: UNetDock, qtbot: Any, tmp_path: Path, key: str, value: str
) -> None:
    path = foreign_model(tmp_path)
    opened(dock, path, qtbot)
    count = len(answers(dock))
    pick(dock, key, value)
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    expected = load_model(path, assume={key: value})
    model = dock.models.opened.model
    assert model.card == expected.card
    assert model.origin == expected.origin
    image = torch.rand(1, 1, *(48, 48))
    with torch.inference_mode():
        assert torch.equal(model.network(image), expected.network(image))
    field = dock.controls.questions.fields[key]
    assert field.sure.isChecked()
    assert field.value == value
    assert dock.controls.questions.fold.text().endswith(f"{count - 1} assumptions made")
    # No more sure: what is usual comes back.
    field.sure.click()
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    assert dock.models.opened.origin == load_model(path).origin


@pytest.mark.parametrize("size", [9, 14])
def test_the_questions_fit_into_280_pixels(
    dock: UNetDock, qtbot: Any, tmp_path: Path, size: int
) -> None:
    from napari.settings import get_settings

    dock.viewer.add_image(np.zeros((1024, 1360), np.uint16))
    get_settings().appearance.font_size = size
    opened(dock, foreign_model(tmp_path, family="padded"), qtbot)
    dock.controls.questions.fold.setChecked(True)
    assert dock.controls.minimumSizeHint().width() <= 280 - 20


def test_tab_goes_through_the_questions(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    dock.show()
    questions = dock.controls.questions
    # Twice: the fields of the second file are made anew.
    for family in ("valid", "padded"):
        opened(dock, foreign_model(tmp_path, family, family=family), qtbot)
    chain, widget = [], dock.controls.open.native
    for _ in range(80):
        chain.append(widget)
        widget = widget.nextInFocusChain()
    wanted = [*questions.chain(), dock.controls.probabilities.native, dock.controls.more]
    places = [chain.index(one) for one in wanted]
    assert places == sorted(places)


def test_answers_in_quick_succession_are_all_heard(
    dock: UNetDock, qtbot: Any, tmp_path: Path
) -> None:
    opened(dock, foreign_model(tmp_path), qtbot)
    wanted = {"order": "skip-up", "normalisation": "mean-std", "shift": "-0.5"}
    pick(dock, "order", "skip-up")
    pick(dock, "normalisation", "mean-std")
    line = dock.controls.questions.fields["shift"].box.lineEdit()
    line.setText("-0.50")
    line.editingFinished.emit()
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    assert dock.models.opened.given == wanted
    assert answers(dock).items() >= wanted.items()


def test_an_answer_that_cannot_be_is_said_and_taken_back(
    dock: UNetDock, qtbot: Any, tmp_path: Path
) -> None:
    opened(dock, foreign_model(tmp_path), qtbot)
    before, model = answers(dock), dock.models.opened
    box = dock.controls.questions.fields["foreground"].box
    box.lineEdit().setText("7")
    box.lineEdit().editingFinished.emit()
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    assert "There is no class 7" in dock.controls.answer.text()
    assert answers(dock) == before
    assert dock.models.opened is model


def test_the_layer_holds_the_origin(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    path = foreign_model(tmp_path)
    opened(dock, path, qtbot)
    pick(dock, "normalisation", "none")
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    dock.viewer.add_image(bright_squares())
    dock.segment()
    words = finish(dock, qtbot)
    assert not dock.failed, words
    report = dock.viewer.layers[-1].metadata[METADATA_KEY]
    assert report["origin"] == dock.models.opened.origin.to_dict()
    assert report["origin"]["given"] == {"normalisation": "none"}
    assert report["model_sha256"] == file_sha256(path)
    assert json.loads(json.dumps(report)) == report


def test_the_run_takes_what_is_open(
    dock: UNetDock, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(dock, foreign_model(tmp_path), qtbot)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded twice")

    monkeypatch.setattr("napari_unet.checkpoint.import_checkpoint", refuse)
    dock.viewer.add_image(bright_squares())
    dock.segment()
    words = finish(dock, qtbot)
    assert not dock.failed, words


def test_a_padded_network_says_so(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    path = foreign_model(tmp_path, family="padded")
    opened(dock, path, qtbot)
    (warning,) = load_model(path).origin.warnings
    assert dock.controls.warnings.text() == warning
    assert dock.controls.warnings.property("warning") is True
    assert not dock.controls.warnings.isHidden()
    assert answers(dock)["padding"] == "same"


def test_a_bad_file_leaves_the_model_as_it_was(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    good = foreign_model(tmp_path)
    opened(dock, good, qtbot)
    before, shown = dock.models.opened, dock.controls.passport.text()
    bad = tmp_path / "bad.pt"
    bad.write_bytes(good.read_bytes()[:-100])
    opened(dock, bad, qtbot)
    assert "bad.pt" in dock.controls.answer.text()
    assert notified(dock) == [dock.controls.answer.text()]
    assert dock.models.opened is before
    assert dock.controls.passport.text() == shown
    assert dock.controls.model.native.currentText() == "foreign"
    assert dock.controls.button.native.isEnabled()


def test_the_last_one_asked_for_is_the_one_that_comes(
    dock: UNetDock, qtbot: Any, tmp_path: Path
) -> None:
    for name in "abc":
        foreign_model(tmp_path, name)
        dock.open_model(str(tmp_path / f"{name}.pt"))
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    qtbot.wait(200)
    assert dock.card.name == "c"


# --- what is remembered ---------------------------------------------------------------------------


def used(dock: UNetDock, qtbot: Any) -> None:
    dock.segment()
    words = finish(dock, qtbot)
    assert not dock.failed, words


def test_answers_come_back_with_the_content(
    dock: UNetDock, qtbot: Any, tmp_path: Path, fresh_settings: Path
) -> None:
    path = foreign_model(tmp_path)
    dock.viewer.add_image(bright_squares())
    opened(dock, path, qtbot)
    pick(dock, "order", "skip-up")
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    used(dock, qtbot)
    assert recent_of(fresh_settings)[0] == {
        "model": str(path), "sha256": file_sha256(path), "assume": {"order": "skip-up"},
    }  # fmt: skip
    opened(dock, bright_model(tmp_path, "other"), qtbot)
    opened(dock, path, qtbot)
    assert dock.models.opened.given == {"order": "skip-up"}
    assert dock.controls.remark.isHidden()
    # Under another name it is the same file.
    twin = path.rename(tmp_path / "moved.pt")
    opened(dock, twin, qtbot)
    assert dock.models.opened.given == {"order": "skip-up"}
    assert dock.models.opened.doubtful == frozenset()
    again = UNetDock(dock.viewer)
    qtbot.addWidget(again)
    qtbot.waitUntil(lambda: not again.models.busy, timeout=20_000)
    assert not any("foreign" in key for key in again.controls.model.choices)
    again._let_go()


def test_a_changed_file_is_noticed(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    path = foreign_model(tmp_path)
    was = file_sha256(path)[:4]
    dock.viewer.add_image(bright_squares())
    opened(dock, path, qtbot)
    pick(dock, "order", "skip-up")
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    used(dock, qtbot)
    foreign_model(tmp_path, seed=1)
    # Changed under an open dock: it is read again, not run as what it was.
    dock.segment()
    assert not dock.session.running
    assert "has changed since it was opened" in dock.controls.answer.text()
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    now = file_sha256(path)[:4]
    remark = dock.controls.remark
    assert remark.text().startswith(
        f"foreign.pt has changed since you last used it (was {was}…, now {now}…)."
    )
    assert "check them" in remark.text()
    assert not remark.isHidden()
    assert dock.controls.questions.fold.isChecked()
    field = dock.controls.questions.fields["order"]
    assert field.value == "skip-up"
    assert not field.sure.isChecked()
    assert field.sure.text() == "?"
    field.sure.click()
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    assert dock.models.opened.given == {"order": "skip-up"}
    assert dock.models.opened.doubtful == frozenset()
    used(dock, qtbot)
    opened(dock, path, qtbot)
    assert remark.isHidden()


def test_a_changed_native_file_is_noticed(dock: UNetDock, qtbot: Any, tmp_path: Path) -> None:
    path = bright_model(tmp_path, "native")
    dock.viewer.add_image(bright_squares())
    opened(dock, path, qtbot)
    used(dock, qtbot)
    bright_model(tmp_path, "native", steep=50)
    opened(dock, path, qtbot)
    qtbot.waitUntil(lambda: not dock.controls.remark.isHidden(), timeout=20_000)
    assert "native.safetensors has changed since you last used it" in dock.controls.remark.text()
    used(dock, qtbot)
    opened(dock, path, qtbot)
    qtbot.waitUntil(lambda: dock.models.opened.sha256 == file_sha256(path), timeout=20_000)
    assert dock.controls.remark.isHidden()


def test_answers_that_the_changed_file_does_not_take_are_dropped(
    dock: UNetDock, qtbot: Any, tmp_path: Path
) -> None:
    path = foreign_model(tmp_path)
    dock.settings.recent.put(Recent(str(path), "0" * 64, {"up": "linear", "foreground": "9"}))
    opened(dock, path, qtbot)
    assert not dock.failed
    assert dock.models.opened.given == {}
    assert "has changed" in dock.controls.remark.text()


@pytest.mark.parametrize(
    "content",
    [
        '["a", "b"]',
        '["a", {"model": "b", "sha256": "12", "assume": {"order": "skip-up"}}]',
        '["a", {"model": "b", "sha256": 3, "assume": []}, {"model": 4}, 5, null]',
        '{"a": 1}', "[[[[", "", "null",
    ],
)  # fmt: skip
def test_any_list_can_be_read_and_added_to(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recent.json"
    path.write_text(content)
    before = [entry.model for entry in RecentList(path).entries]
    assert before == (["a", "b"] if content.startswith('["a"') else [])
    new = Recent("new", "ab" * 32, {"shift": "-0.5"})
    RecentList(path).put(new)
    assert RecentList(path).entries[0] == new
    assert [entry.model for entry in RecentList(path).entries[1:]] == before
    assert RecentList(path).of("new") == RecentList(path).same_file("ab" * 32) == new
    assert RecentList(path).same_file("") is None
    assert not list(tmp_path.glob("*.part"))


def test_a_last_model_that_does_not_open_is_replaced(
    dock: UNetDock, qtbot: Any, tmp_path: Path
) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"\x80\x02}q\x00.")
    dock.settings.recent.put(Recent(str(path)))
    again = UNetDock(dock.viewer)
    qtbot.addWidget(again)
    qtbot.waitUntil(lambda: not again.models.busy, timeout=20_000)
    assert "broken.pt" in again.controls.answer.text()
    assert again.card is not None
    assert again.controls.model.native.currentText() == "nuclei"
    again._let_go()


# --- the window -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["native", "foreign"])
@pytest.mark.parametrize("way", ["open", "drop"])
def test_a_file_for_the_window_is_the_model(
    make_napari_viewer: Any, fresh_settings: Path, qtbot: Any, tmp_path: Path, way: str, kind: str
) -> None:
    viewer = make_napari_viewer()
    path = (bright_model if kind == "native" else foreign_model)(tmp_path, "fallen")
    docks = viewer.window.dock_widgets

    def give() -> UNetDock:
        if way == "open":
            assert viewer.open(str(path), plugin=None) == []
        else:
            deliver(viewer.window._qt_viewer, path)
        (widget,) = (w for w in docks.values() if isinstance(w, UNetDock))
        qtbot.waitUntil(lambda: not widget.models.busy, timeout=20_000)
        return widget

    dock = give()
    assert dock.card.name == "fallen"
    assert len(viewer.layers) == 0
    # Where it is open and hidden, it comes back, and is the only one.
    dock.parent().hide()
    assert give() is dock
    assert not dock.parent().isHidden()
    qtbot.wait(100)


def test_a_file_dropped_on_a_button_of_the_dock_is_the_model(
    dock: UNetDock, qtbot: Any, tmp_path: Path
) -> None:
    deliver(dock.controls.button.native, foreign_model(tmp_path, "fallen"))
    qtbot.waitUntil(lambda: not dock.models.busy, timeout=20_000)
    assert dock.card.name == "fallen"
    assert len(dock.viewer.layers) == 0


def test_with_the_dock_open_no_dialog_asks_who_reads_hdf5(
    dock: UNetDock, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    for name, group in [("ours.h5", "data/conv_d0a-b"), ("images.h5", "data")]:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group(group)
    target = dock.viewer.window._qt_viewer
    qtbot.wait(50)
    opened_, left = [], []
    monkeypatch.setattr(dock._drops, "_open", opened_.append)
    monkeypatch.setattr(type(target), "_qt_open", lambda _, files, **__: left.extend(files))
    for name in ("ours.h5", "images.h5"):
        deliver(target, tmp_path / name)
    assert opened_ == [str(tmp_path / "ours.h5")]
    assert left == [str(tmp_path / "images.h5")]
    dock._let_go()
    deliver(target, tmp_path / "ours.h5")
    assert left == [str(tmp_path / "images.h5"), str(tmp_path / "ours.h5")]


def test_other_files_are_left_to_other_readers(tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.tif", b"II*\0")
    (tmp_path / "text.h5").write_text("no HDF5 at all")
    (tmp_path / "empty.zip").touch()
    (tmp_path / "image.tif").write_bytes(b"II*\0" + bytes(100))
    (tmp_path / "folder.zip").mkdir()
    for path in tmp_path.iterdir():
        assert not is_checkpoint(path), path
        assert get_reader(str(path)) is None
    assert get_reader(["a.pt", "b.pt"]) is None


def test_archives_of_checkpoints_are_ours(tmp_path: Path) -> None:
    for index, name in enumerate(["net/data.pkl", "rdf.yaml", "x/bioimageio.yaml"]):
        path = tmp_path / f"{index}.zip"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"")
        assert is_checkpoint(path)
    assert is_checkpoint(foreign_model(tmp_path).rename(tmp_path / "torch.zip"))


def test_hdf5_checkpoints_are_told_from_images(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for name, group, attribute in [
        ("keras.h5", "model_weights", "keras_version"),
        ("freiburg.h5", "unet_param", ""),
        ("caffe.h5", "data/conv_d0a-b", ""),
        ("image.h5", "data", ""),
    ]:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group(group)
            file["pixels"] = np.zeros((400, 400))
            if attribute:
                file.attrs[attribute] = "2.1"
        assert is_checkpoint(tmp_path / name) is (name != "image.h5")


def test_every_suffix_is_offered(dock: UNetDock, monkeypatch: pytest.MonkeyPatch) -> None:
    from npe2 import PluginManager

    asked = []
    monkeypatch.setattr(
        "napari_unet._napari.dock.QFileDialog.getOpenFileName",
        lambda *arguments: asked.append(arguments) or ("", ""),
    )
    dock.controls.open.native.click()
    ((_, _, _, filters),) = asked
    manifest = PluginManager.instance().get_manifest("napari-valid-unet")
    (reader,) = manifest.contributions.readers
    for suffix in SUFFIXES:
        assert f"*{suffix}" in filters
        assert f"*{suffix}" in reader.filename_patterns
    assert "All files (*)" in filters
    assert not reader.accepts_directories
