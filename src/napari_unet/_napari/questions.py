"""What an imported checkpoint does not say: a folded section with a field for each question."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from qtpy.QtCore import Signal  # type: ignore[attr-defined]
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QGridLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_unet._napari.opening import Opened
from napari_unet._napari.widgets import (
    combo_box,
    folding_button,
    narrow,
    side_by_side,
    text_line,
)
from napari_unet.importers import CHOICES

__all__ = ["Questions"]

# Title and explanation of each question, without its default, which every file has of its own.
_TEXTS = {
    "padding": (
        "Padding",
        "How the convolutions met the border in training. valid: not padded, each shrinks its "
        "input. same: padded, the size stays.",
    ),
    "order": (
        "Order",
        "What comes first where the paths meet. skip-up: the encoder's channels. up-skip: the "
        "up-sampled ones.",
    ),
    "norm-order": (
        "Batch norm",
        "norm-act: before the activation. act-norm: after it.",
    ),
    "up": ("Up-sampling", "How pixels are doubled. nearest: repeated. linear: blended."),
    "up-activation": (
        "Activation",
        "Whether an activation follows the up-sampling.",
    ),
    "slope": (
        "Slope",
        "Of the activation, 0 to 1. 0 is a plain ReLU, 0.1 the leaky one of the Freiburg U-Nets.",
    ),
    "normalisation": (
        "Grey levels",
        "How images were scaled in training. percentile: 1st and 99.8th to 0 and 1. min-max: "
        "smallest and largest to 0 and 1. mean-std: mean 0, standard deviation 1. dtype-range: the "
        "largest number of the pixels' type to 1. none: as they are.",
    ),
    "shift": (
        "Shift",
        "Added to the scaled grey levels. -0.5 brings 0 to 1 around 0.",
    ),
    "foreground": (
        "Foreground",
        "Number of the class that means object, counted from 0; several as 1+2.",
    ),
    "contour": (
        "Contour",
        "Number of the class that keeps touching objects apart, counted from 0; or none.",
    ),
}  # fmt: skip
_SURE = "Tick it once you know that this is right. What is not ticked is assumed. Default: off."
_DOUBTFUL = "Your answer for the file as it was before it changed. Tick it if it still holds."
_PROBE = (
    "Try every combination of what is not ticked on the image, and keep the one that matches the "
    "labels clearly best. Takes seconds, or some minutes with a large network."
)
_NO_LABELS = (
    "Needs a Labels layer of the chosen image's size, in which each object is painted with a "
    "number of its own: open one, or add one and paint some objects."
)
# Numbers that are often met; others are written.
_USUAL = {"slope": ("0", "0.01", "0.1", "0.2"), "shift": ("0", "-0.5", "-1")}


@dataclass(frozen=True)
class _Field:
    """One question's widgets."""

    box: QComboBox
    sure: QCheckBox

    @property
    def value(self) -> str:
        return self.box.currentText().strip()

    def show(self, value: str, *, sure: bool) -> None:
        """Set without telling anyone."""
        for widget in (self.box, self.sure):
            widget.blockSignals(True)
        if self.box.findText(value) < 0:
            self.box.addItem(value)
        self.box.setCurrentText(value)
        self.sure.setChecked(sure)
        for widget in (self.box, self.sure):
            widget.blockSignals(False)


class Questions(QWidget):
    """The section; hidden where the file says all.

    Attributes
    ----------
    answered : Signal(str, str)
        A person says what the answer to a question is.
    forgotten : Signal(str)
        A person is not sure of an answer any more.
    """

    answered = Signal(str, str)
    forgotten = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._fields: dict[str, _Field] = {}
        # What is shown, or was last said of it.
        self._answers: dict[str, str] = {}
        self._assumed = 0
        self.body = QWidget()
        self.fold = folding_button(
            self.body,
            self._title,
            "What the file does not say of how the network was built and trained.",
        )
        self.hint = text_line()
        self._grid_holder = QWidget()
        self._grid = QGridLayout(self._grid_holder)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setHorizontalSpacing(4)
        self._grid.setVerticalSpacing(4)
        self._grid.setColumnStretch(1, 1)
        self.labels = combo_box(
            [],
            "The Labels layer that holds the right answer for the chosen image: each object "
            "painted with a number of its own. Default: the topmost of the image's size.",
        )
        native = cast("QComboBox", self.labels.native)
        native.setPlaceholderText("none fits")
        self.probe = QPushButton("Probe…")
        inside = QVBoxLayout(self.body)
        inside.setContentsMargins(0, 0, 0, 4)
        inside.setSpacing(6)
        inside.addWidget(self.hint)
        inside.addWidget(self._grid_holder)
        inside.addWidget(side_by_side(QLabel("Labels"), native, self.probe))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(3)
        layout.addWidget(self.fold)
        layout.addWidget(self.body)
        self.show_opened(None)
        self.show_labels([])

    @property
    def fields(self) -> dict[str, _Field]:
        """By question."""
        return dict(self._fields)

    def show_opened(self, opened: Opened | None) -> None:
        """Show the open questions of a checkpoint, and their answers."""
        origin = None if opened is None else opened.origin
        known = {} if origin is None else {**origin.assumed, **origin.given}
        answers = {key: _plain(key, value) for key, value in known.items()}
        self._answers = answers
        self.setVisible(bool(answers))
        if opened is None or origin is None:
            return
        keys = [key for key in CHOICES if key in answers]
        count = max(opened.card.config.n_classes, 2)
        if keys != list(self._fields):
            self._rebuild(keys)
        for key in keys:
            sure = key in origin.given and key not in opened.doubtful
            field = self._fields[key]
            if key in ("foreground", "contour"):
                _offer_classes(field.box, key, count)
            field.show(answers[key], sure=sure)
            doubtful = key in opened.doubtful
            field.sure.setText("?" if doubtful else "")
            field.sure.setToolTip(_DOUBTFUL if doubtful else _SURE)
            _, tip = _TEXTS[key]
            how = "assumed" if key in origin.assumed else "given by you"
            field.box.setToolTip(f"{tip} Here: {answers[key]}, {how}.")
        self._assumed = sum(not self._fields[key].sure.isChecked() for key in keys)
        self.hint.setText(self._hint())
        if opened.doubtful:
            self.fold.setChecked(True)
        self.fold.setText(self._title(self.fold.isChecked()))

    def show_labels(self, layers: list[tuple[str, Any]]) -> None:
        """Offer layers to probe with: their names, and they themselves."""
        chosen = self.labels.value
        self.labels.choices = layers
        if chosen in [layer for _, layer in layers]:
            self.labels.value = chosen
        self.probe.setEnabled(bool(layers))
        self.probe.setToolTip(_PROBE if layers else _NO_LABELS)

    def chain(self) -> list[QWidget]:
        """Widgets in the order of the Tab key."""
        pairs = (widget for field in self._fields.values() for widget in (field.box, field.sure))
        return [self.fold, *pairs, self.labels.native, self.probe]

    def _hint(self) -> str:
        if not self._assumed:
            return "The file does not say this; you answered all of it."
        return (
            "The file does not say this. Tick what you know is right; to find out the rest, open "
            "an image with labels of its objects and click Probe…"
        )

    def _title(self, open_: bool) -> str:
        arrow, count = "▾" if open_ else "▸", self._assumed
        if not count:
            return f"{arrow} No assumptions made"
        return f"{arrow} {count} assumption{'s' * (count != 1)} made"

    def _rebuild(self, keys: list[str]) -> None:
        while (item := self._grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.setParent(None)
                widget.deleteLater()
        self._fields = {key: self._make(key, row) for row, key in enumerate(keys)}
        for before, after in pairwise(self.chain()):
            QWidget.setTabOrder(before, after)

    def _make(self, key: str, row: int) -> _Field:
        title, tip = _TEXTS[key]
        field = _Field(_box(key), QCheckBox())
        field.box.setToolTip(tip)
        box = field.box
        # Qt's signal for a choice by mouse or keyboard, of the same answer, too.
        box.activated.connect(lambda: self._say(key))
        if (line := box.lineEdit()) is not None:
            line.editingFinished.connect(lambda: self._say(key, written=True))
        field.sure.toggled.connect(
            lambda sure: self._say(key) if sure else self.forgotten.emit(key)
        )
        name = QLabel(title)
        name.setToolTip(tip)
        for column, widget in enumerate((name, field.box, field.sure)):
            self._grid.addWidget(widget, row, column)
        return field

    def _say(self, key: str, *, written: bool = False) -> None:
        value = self._fields[key].value
        # Leaving a box in which nothing was written says nothing.
        if not written or value != self._answers.get(key):
            self._answers[key] = value
            self.answered.emit(key, value)


def _box(key: str) -> QComboBox:
    box = narrow(QComboBox())
    box.addItems(CHOICES[key] or _USUAL.get(key, ()))
    if not CHOICES[key]:
        box.setEditable(True)
        box.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        if (line := box.lineEdit()) is not None:
            # A dropped file is for the dock.
            line.setAcceptDrops(False)
    return box


def _plain(key: str, value: str) -> str:
    """Write a number as a person does, and so that it reads back as the same."""
    if key not in _USUAL:
        return value
    number = float(value)
    return str(int(number)) if number.is_integer() else repr(number)


def _offer_classes(box: Any, key: str, count: int) -> None:
    """Offer each class, and for the foreground all but the background."""
    numbers = [str(number) for number in range(count)]
    more = ["none"] if key == "contour" else ["+".join(numbers[1:])] if count > 2 else []
    box.blockSignals(True)
    box.clear()
    box.addItems([*numbers, *more])
    box.blockSignals(False)
