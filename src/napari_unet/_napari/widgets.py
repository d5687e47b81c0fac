"""Small pieces that the controls are made of: magicgui's widgets, set up for a narrow dock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from magicgui.widgets import ComboBox, FloatSpinBox, PushButton
from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSizePolicy,
    QWidget,
)

__all__ = [
    "as_button",
    "combo_box",
    "folding_button",
    "form_in",
    "mark",
    "narrow",
    "pressed_by_enter",
    "side_by_side",
    "text_line",
    "warnings_in",
    "whole_number",
]

# Above and below the words of a warning, and beside them, in pixels.
_MARGINS = (3, 5)


def combo_box(choices: Any, tooltip: str) -> ComboBox:
    """List to choose from; long names do not widen the dock, the list that opens shows them."""
    box = ComboBox(choices=choices, tooltip=tooltip)
    narrow(cast("QComboBox", box.native))
    return box


def narrow(box: QComboBox) -> QComboBox:
    """Let a list be narrower than its longest entry."""
    box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    box.setMinimumWidth(64)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box


def folding_button(body: QWidget, title: Callable[[bool], str], tooltip: str) -> QPushButton:
    """Line of text that shows and hides what is below it; hidden at first.

    Parameters
    ----------
    body : QWidget
        What is below.
    title : callable
        Text of the line, given whether the body is shown.
    tooltip : str
        What there is to find.
    """
    button = QPushButton()
    button.setCheckable(True)
    button.setFlat(True)
    button.setStyleSheet("text-align: left; background: transparent; border: none; padding: 3px 0;")
    button.setToolTip(tooltip)

    def unfold(open_: bool) -> None:
        body.setVisible(open_)
        button.setText(title(open_))

    button.toggled.connect(unfold)
    unfold(False)
    return button


def whole_number(least: int, most: int, step: int, tooltip: str) -> FloatSpinBox:
    """Box of whole numbers; magicgui's own for those cannot show words at its lowest value."""
    box = FloatSpinBox(value=least, min=least, max=most, step=step, tooltip=tooltip)
    cast("QDoubleSpinBox", box.native).setDecimals(0)
    return box


class _Line(QLabel):
    """Text whose height is right with the frame that a warning has, too."""

    def heightForWidth(self, width: int) -> int:
        """Height of the text, and of the frame around it."""
        if not self.property("warning"):
            return super().heightForWidth(width)
        return super().heightForWidth(width - 2 * _MARGINS[1]) + 2 * _MARGINS[0]


def text_line(*, selectable: bool = False) -> QLabel:
    """Text that breaks where the dock ends."""
    line = _Line()
    line.setWordWrap(True)
    line.setTextFormat(Qt.TextFormat.PlainText)
    if selectable:
        line.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return line


def side_by_side(*widgets: QWidget) -> QWidget:
    """One row of widgets."""
    row = QWidget()
    layout = QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(6)
    for widget in widgets:
        layout.addWidget(widget)
    return row


def form_in(parent: QWidget) -> QFormLayout:
    """Titles on the left, or above where there is no room for both."""
    form = QFormLayout(parent)
    form.setContentsMargins(0, 0, 0, 0)
    form.setHorizontalSpacing(8)
    form.setVerticalSpacing(6)
    form.setRowWrapPolicy(QFormLayout.RowWrapPolicy.WrapLongRows)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    form.setLabelAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
    return form


def mark(line: QLabel, *, warning: bool) -> None:
    """Set what the style sheet looks at, and let it look again."""
    if line.property("warning") != warning:
        line.setProperty("warning", warning)
        if (style := line.style()) is not None:
            style.unpolish(line)
            style.polish(line)
        line.updateGeometry()


def warnings_in(color: str) -> str:
    """Style sheet of a page: warnings in the theme's colour; dark on it is legible in both."""
    above, beside = _MARGINS
    return (
        # Room for words in the boxes of numbers, whatever the font.
        "QDoubleSpinBox { min-width: 6.5em; }"
        f'QLabel[warning="true"] {{ background: {color}; color: #1e1e21; '
        f"border-radius: 2px; padding: {above}px {beside}px; }}"
    )


def pressed_by_enter(button: QPushButton) -> None:
    """Let both Enter keys press a button that has the focus."""
    for key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
        enter = QShortcut(QKeySequence(key), button)
        enter.setContext(Qt.ShortcutContext.WidgetShortcut)
        enter.activated.connect(button.click)


def as_button(button: PushButton) -> QPushButton:
    """Qt's button."""
    return cast("QPushButton", button.native)
