"""Old against new, as numbers, and what can be done with the new model."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from napari_unet._napari.train_news import MEASURES, Done
from napari_unet._napari.widgets import side_by_side
from napari_unet.durations import duration

__all__ = ["ResultsView", "rows_of", "verdict"]

_TIPS = {
    "F1@0.5": "Objects found, 0 to 1: an object counts where found and true overlap by more than "
    "half.",
    "mean AP": "Objects found and how well they are outlined, 0 to 1: the mean over overlaps from "
    "0.5 to 0.95.",
    "IoU": "Overlap of what is found with the labels, 0 to 1, whatever the objects.",
    "mean IoU": "Overlap of each class with its labels, 0 to 1; the mean of all but the "
    "background.",
    "pixel error": "Part of the pixels that are wrong, 0 to 1; lower is better.",
}


class ResultsView(QWidget):
    """A small table, and two buttons.

    Parameters
    ----------
    parent : QWidget, optional
        Of this widget.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._table = QWidget()
        self._grid = QGridLayout(self._table)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setVerticalSpacing(2)
        self.use = QPushButton("Use the new model")
        self.use.setToolTip("Choose the new model on the Segment page; it is saved already.")
        self.report = QPushButton("Report…")
        self.report.setToolTip(
            "Write a page with curves, the worst images and a table of all beside the model, and "
            "open it."
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        layout.addWidget(side_by_side(self.use, self.report))
        self.hide()

    def cells(self) -> list[list[str]]:
        """Texts of the table, row by row."""
        rows, columns = self._grid.rowCount(), self._grid.columnCount()
        found = []
        for row in range(rows):
            items = [self._grid.itemAtPosition(row, column) for column in range(columns)]
            widgets = [None if item is None else item.widget() for item in items]
            texts = [w.text() if isinstance(w, QLabel) else "" for w in widgets]
            if any(texts):
                found.append(texts)
        return found

    def show_done(self, done: Done) -> None:
        """Show what came out of a training."""
        while (item := self._grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.setParent(None)
        rows = rows_of(done)
        for number, (name, *values) in enumerate([("", "old", "new"), *rows] if rows else []):
            for column, text in enumerate((name, *values)):
                line = QLabel(text)
                line.setToolTip(_TIPS.get(name, "Overlap with the labels, 0 to 1."))
                side = Qt.AlignmentFlag.AlignRight if column else Qt.AlignmentFlag.AlignLeft
                self._grid.addWidget(line, number, column, side)
        self._table.setVisible(bool(rows))
        self._table.setToolTip("Scores on the held-out part.")
        self.show_unsaved(done)
        self.show()

    def show_unsaved(self, done: Done) -> None:
        """Say on the button what using the model means."""
        worse = done.trained.worse
        self.use.setText("Use the new model anyway" if worse else "Use the new model")
        where = f"{done.order.out} is " + ("there already." if done.saved else "written first.")
        self.use.setToolTip(f"Choose the new model on the Segment page. {where}")


def rows_of(done: Done) -> list[tuple[str, str, str]]:
    """Name, old and new value of each score."""
    trained = done.trained
    if trained.after is None:
        return []
    old: Mapping[str, float] = {} if trained.before is None else trained.before.mean
    new = trained.after.mean
    classes = done.card.classes
    names: dict[str, str] = {f"iou_{n}": f"IoU {classes[n].name}" for n in range(1, len(classes))}
    # Of objects, the pixel error says what the IoU says.
    titles = {**MEASURES, **names}
    found = [key for key in titles if key in new and (key != "pixel_error" or "mean_iou" in new)]
    return [
        (titles[key], f"{old[key]:.3f}" if key in old else "–", f"{new[key]:.3f}") for key in found
    ]


def verdict(done: Done) -> str:
    """Say in words what came out."""
    trained, name = done.trained, done.card.name
    count = f"{trained.steps:,} step{'s' * (trained.steps != 1)}"
    steps = f"{count} in {duration(trained.seconds)}"
    if trained.after is None:
        found = f"{steps}. Nothing was held out, so nothing tells how good {name} is."
    elif trained.before is None:
        why = "there is no older model"
        if done.order.start is not None:
            why = "the old model takes other images, or gives other classes"
        found = f"{steps}. {name} has learned; there is nothing to compare it with, as {why}."
    elif trained.worse:
        return (
            f"{steps}. The old model stays: on the held-out part it is at least as good as the new "
            "one. Give more labels or more minutes."
        )
    else:
        found = (
            f"{steps}. {name} is better than the old model on the held-out part: flip through the "
            "layers (old) and (new)."
        )
    if done.problem:
        return f"{found} It is not saved yet: {done.problem}"
    return f"{found} It is saved."
