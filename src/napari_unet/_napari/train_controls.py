"""The controls of the Train page: they show and emit, and decide nothing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from magicgui.widgets import CheckBox, ComboBox, FloatSpinBox, ProgressBar
from qtpy.QtCore import QStandardPaths
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QLabel,
    QLineEdit,
    QListWidget,
    QMenu,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_unet._napari.train_order import TrainChoices
from napari_unet._napari.train_plot import CurvePlot
from napari_unet._napari.train_results import ResultsView
from napari_unet._napari.widgets import (
    combo_box,
    folding_button,
    form_in,
    mark,
    pressed_by_enter,
    side_by_side,
    text_line,
    whole_number,
)
from napari_unet.options import DEVICES, PRECISIONS

__all__ = ["EVERYTHING", "NOTHING", "VIEW", "VOLUMES", "TrainControls", "models_folder"]

NOTHING, VOLUMES = "nothing", "volumes"  # instead of a model to start from: 2-D, 3-D
EVERYTHING, VIEW = "all of it", "the visible region"
_LIST_HEIGHT = 78  # px


def models_folder() -> Path:
    """Where new models go unless a person chooses another place."""
    place = QStandardPaths.StandardLocation.GenericDataLocation
    return Path(QStandardPaths.writableLocation(place)) / "napari-valid-unet" / "models"


def _button(text: str, tooltip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tooltip)
    # Words may be cut off in a narrow dock, but never widen it.
    button.setMinimumWidth(40)
    button.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return button


class TrainControls(QWidget):
    """Everything that a person chooses for a training, and what it answers.

    Parameters
    ----------
    parent : QWidget, optional
        Of this widget.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._make_pairs()
        self._make_advanced()
        self._make_answers()
        self._arrange()
        self._chain_tabs()

    def _make_pairs(self) -> None:
        self.start = combo_box(
            [],
            "Where the network starts: the model of the Segment page, which learns your images "
            "in minutes, or a new network that knows nothing and needs many labels and an hour. "
            "Default: the model.",
        )
        self.kind = combo_box(
            ["objects", "classes"],
            "objects: every object has a number of its own. classes: all pixels of a class have "
            "the same number. Default: objects.",
        )
        self.image = combo_box(
            [],
            "The image to learn from. Follows the selected image layer until you choose one here. "
            "Default: the selected layer.",
        )
        self.brief = QLabel()
        self.brief.setToolTip("Shape of the image in pixels, and the type of a pixel.")
        self.labels = combo_box(
            [],
            "Labels of the image, such as a result that you have corrected: only layers with its "
            "pixels are offered. Default: the newest.",
        )
        self.reviewed = combo_box(
            [EVERYTHING],
            "Which part you have looked at: there, unlabelled pixels are background; the rest is "
            "not learned from. All of it, what is on screen now, or the inside of the closed "
            "shapes of a Shapes layer. Default: all of it.",
        )
        self.sparse = CheckBox(
            text="unlabelled = not looked at",
            tooltip="Learn from labelled pixels only, as where you labelled some objects or drew "
            "scribbles; for objects, label or review some background, too. Default: off.",
        )
        self.add = _button("Add pair", "Put this image and these labels on the list below.")
        self.add_saved = _button("Add saved", "Put saved pairs on the list: a table or a folder.")
        menu = QMenu(self.add_saved)
        self.add_table = cast("Any", menu.addAction("From a table (.csv)…"))
        self.add_folder = cast("Any", menu.addAction("From a folder…"))
        self.add_saved.setMenu(menu)
        self.pairs = QListWidget()
        self.pairs.setToolTip("What is learned from; empty: the image and labels chosen above.")
        self.pairs.setFixedHeight(_LIST_HEIGHT)
        self.pairs.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.pairs.setMinimumWidth(80)
        self.remove = _button("Remove", "Take the selected pairs off the list; no file is deleted.")
        self.save = _button(
            "Save pairs…",
            "Copy the pairs into a folder, as TIFF files and a table (pairs.csv), for another day "
            "or for `valid-unet train`.",
        )
        self.minutes = FloatSpinBox(
            value=10, min=0.1, max=10_000, step=5, tooltip="Time to spend, in minutes. Default: 10."
        )

    def _make_advanced(self) -> None:
        self.held_out = whole_number(
            0,
            90,
            5,
            "Part of the images, in percent, that is never learned from but tells how good the "
            "model is; of a single image, the end of its longer side. Default: 15 %.",
        )
        self.held_out.value = 15
        self.replay = QLineEdit()
        self.replay.setToolTip(
            "Folder or table (.csv) of images that the old model was trained on: half of the tiles "
            "come from there, so that it does not forget them. Default: none."
        )
        self.replay.setPlaceholderText("none")
        self.rate = FloatSpinBox(
            value=0,
            min=0,
            max=1,
            step=0.0005,
            tooltip="Highest learning rate. Lower if the loss jumps. Default: automatic.",
        )
        rate = cast("QDoubleSpinBox", self.rate.native)
        rate.setDecimals(5)
        rate.setSpecialValueText("automatic")
        self.seed = whole_number(
            0, 1_000_000, 1, "Seed of all random numbers, also of what is held out. Default: 0."
        )
        self.device = combo_box(
            list(DEVICES),
            "Where the network learns. auto: the first GPU that PyTorch can use, else the CPU. "
            "Default: auto.",
        )
        self.precision = combo_box(
            list(PRECISIONS),
            "Numbers it computes with. auto: mixed precision where it is faster here, else "
            "float32. Default: auto.",
        )
        self.name = QLineEdit()
        self.name.setToolTip(
            "Name of the new model, and of its file. Default: the old model's and the image's."
        )
        self.folder = QLineEdit()
        self.folder.setToolTip(f"Folder of the new model. Default: {models_folder()}.")
        self.choose_folder = QPushButton("…")
        self.choose_folder.setToolTip("Choose the folder of the new model.")

    def _make_answers(self) -> None:
        self.notice = text_line()
        self.resume = _button("Resume", "Go on where the training was interrupted.")
        self.discard = _button("Discard", "Forget the interrupted training; models stay.")
        self.button = QPushButton("Train")
        self.button.setToolTip("Copy the pairs and learn from them (Enter).")
        pressed_by_enter(self.button)
        self.bar = ProgressBar(min=0, max=1, value=0)
        native = cast("Any", self.bar.native)
        native.setTextVisible(False)
        native.setMaximumHeight(8)
        native.setToolTip("Finished steps.")
        self.words = text_line()
        self.plot = CurvePlot()
        self.pause = _button("Pause", "Hold the training up after this step, and go on later.")
        self.stop = _button(
            "Stop and keep the best", "End now, with the network that did best so far (Escape)."
        )
        self.answer = text_line(selectable=True)
        self.results = ResultsView()

    def _arrange(self) -> None:
        self.form = QWidget()
        form = form_in(self.form)
        about = text_line()
        about.setText(
            "Make a model better on your images: it learns from labels that you drew or corrected."
        )
        form.addRow(about)
        form.addRow("Start from", self.start.native)
        self.kind_title = QLabel("Labels are")
        form.addRow(self.kind_title, self.kind.native)
        form.addRow("Image", self.image.native)
        form.addRow("", self.brief)
        form.addRow("Labels", self.labels.native)
        form.addRow("Reviewed", self.reviewed.native)
        form.addRow(self.sparse.native)
        form.addRow(side_by_side(self.add, self.add_saved))
        form.addRow(self.pairs)
        self.pair_buttons = side_by_side(self.remove, self.save)
        form.addRow(self.pair_buttons)
        form.addRow("Minutes", self.minutes.native)
        self.advanced = QWidget()
        deep = form_in(self.advanced)
        for title, widget in {
            "Held out (%)": self.held_out.native,
            "Replay": self.replay,
            "Learning rate": self.rate.native,
            "Seed": self.seed.native,
            "Device": self.device.native,
            "Precision": self.precision.native,
            "Name": self.name,
            "Save in": side_by_side(self.folder, self.choose_folder),
        }.items():
            deep.addRow(title, widget)
        self.more = folding_button(
            self.advanced,
            lambda open_: "▾ Advanced" if open_ else "▸ Advanced",
            "Held-out part, replay, learning rate, seed, device, name and folder.",
        )
        form.addRow(self.more)
        form.addRow(self.advanced)
        self.interrupted = side_by_side(self.resume, self.discard)
        self.running_buttons = side_by_side(self.pause, self.stop)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.setSpacing(6)
        for part in (
            self.form, self.notice, self.interrupted, self.button, cast("QWidget", self.bar.native),
            self.words, self.plot, self.running_buttons, self.answer, self.results,
        ):  # fmt: skip
            layout.addWidget(part)
        layout.addStretch()

    def _chain_tabs(self) -> None:
        """Tab goes from top to bottom."""
        first = (self.start, self.kind, self.image, self.labels, self.reviewed, self.sparse)
        chain: list[QWidget] = [
            *(cast("QWidget", box.native) for box in first),
            self.add, self.add_saved, self.pairs, self.remove, self.save,
            cast("QWidget", self.minutes.native), self.more,
            cast("QWidget", self.held_out.native), self.replay,
            *(cast("QWidget", b.native) for b in (self.rate, self.seed, self.device)),
            cast("QWidget", self.precision.native), self.name, self.folder, self.choose_folder,
            self.resume, self.discard, self.button, self.pause, self.stop,
        ]  # fmt: skip
        for before, after in pairwise(chain):
            QWidget.setTabOrder(before, after)

    def choices(self) -> TrainChoices:
        """State of the controls."""
        return TrainChoices(
            minutes=float(self.minutes.value),
            held_out=float(self.held_out.value) / 100,
            sparse=bool(self.sparse.value),
            replay=self.replay.text().strip(),
            rate=float(self.rate.value),
            seed=int(self.seed.value),
            device=str(self.device.value),
            precision=str(self.precision.value),
            ndim=3 if self.start.value == VOLUMES else 2,
        )

    @property
    def anew(self) -> bool:
        """Whether the network shall know nothing at first."""
        return self.start.value in (NOTHING, VOLUMES)

    def offer(self, box: ComboBox, choices: list[Any], value: Any) -> None:
        """Replace what a list offers, and choose a value."""
        with box.changed.blocked():
            # What was there already would keep its place in the list.
            box.choices = []
            box.choices = choices
            if choices:
                box.value = value

    def show_kind(self, visible: bool) -> None:
        """Ask what labels are; an older model knows it."""
        self.kind_title.setVisible(visible)
        cast("QWidget", self.kind.native).setVisible(visible)

    def show_pairs(self, lines: list[str]) -> None:
        """List the pairs; without any, the list takes no room."""
        self.pairs.clear()
        self.pairs.addItems(lines)
        self.pairs.setVisible(bool(lines))
        self.remove.setVisible(bool(lines))

    def show_notice(self, text: str, *, resume: bool) -> None:
        """Say what a person should know before the training, and offer to resume one."""
        self.notice.setText(text)
        self.notice.setVisible(bool(text))
        self.interrupted.setVisible(resume)

    def show_answer(self, text: str, *, failed: bool = False) -> None:
        """Say what happened, or what went wrong."""
        self.answer.setText(text)
        self.answer.setVisible(bool(text))
        mark(self.answer, warning=failed)

    def show_running(self, running: bool, *, curves: bool) -> None:
        """Show what belongs to a run, and disable what cannot change meanwhile."""
        self.form.setEnabled(not running)
        self.notice.setVisible(not running and bool(self.notice.text()))
        if running:
            self.interrupted.hide()
            # Two lines: as words come and go, Stop must not move away from under the mouse.
            self.words.setText("\n")
            self.words.setMinimumHeight(self.words.heightForWidth(self.words.width()))
        self.button.setVisible(not running)
        for widget in (cast("QWidget", self.bar.native), self.words, self.running_buttons):
            widget.setVisible(running)
        self.plot.setVisible(curves)

    def show_paused(self, paused: bool) -> None:
        """Turn Pause into Resume and back."""
        self.pause.setText("Go on" if paused else "Pause")

    def show_progress(self, done: int, total: int, text: str) -> None:
        """Move the bar; with ``total = 0`` it only shows that something is going on."""
        native = cast("Any", self.bar.native)
        native.setRange(0, total)
        native.setValue(done)
        self.words.setText(text)

    def reveal(self, widget: QWidget) -> None:
        """Scroll until something is in view, where the page is longer than the dock."""
        view = self.parentWidget()
        area = None if view is None else view.parentWidget()
        layout = self.layout()
        if isinstance(area, QScrollArea) and layout is not None:
            layout.activate()
            area.ensureWidgetVisible(widget)
