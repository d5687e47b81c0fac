"""Loss and score over the steps, drawn in the colours of the theme."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

__all__ = ["CurvePlot"]

Points = Sequence[tuple[int, float]]
# Told apart also by people who do not see red and green; on dark, and on light.
_LOSS, _SCORE = (("#e69f00", "#a85f00"), ("#4aa3ec", "#1c66a8"))
_MIDDLE = 128  # of the lightness of a background
_HEIGHT = 150  # px
_LATEST = 400  # points that are drawn of a curve


class CurvePlot(QWidget):
    """Two curves over the steps: the loss on the left axis, the score on the right one.

    Parameters
    ----------
    parent : QWidget, optional
        Of this widget.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.loss: list[tuple[int, float]] = []
        self.scores: list[tuple[int, float]] = []
        self.measure, self.total = "", 0
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setToolTip(
            "Left, orange: the loss, how far the network's answers are from the labels; lower is "
            "better. Right, blue: the score on the held-out part, 0 to 1; higher is better."
        )

    def sizeHint(self) -> QSize:
        """As wide as there is room."""
        return QSize(240, _HEIGHT)

    def clear(self) -> None:
        """Begin anew."""
        self.loss, self.scores, self.measure, self.total = [], [], "", 0
        self.update()

    def add(self, loss: Points, scores: Points, measure: str, total: int) -> None:
        """Add points, and say how many steps there will be."""
        self.loss += loss
        self.scores += scores
        self.measure, self.total = measure or self.measure, total or self.total
        if len(self.loss) > 2 * _LATEST:
            self.loss = self.loss[::2]
        self.update()

    def show_all(self, loss: Points, scores: Points) -> None:
        """Replace both curves."""
        self.loss, self.scores = list(loss), list(scores)
        self.update()

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Draw both curves and their axes."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        font = painter.font()
        if font.pointSizeF() > 0:
            font.setPointSizeF(0.85 * font.pointSizeF())
        painter.setFont(font)
        letters = painter.fontMetrics()
        high, wide = letters.height(), letters.horizontalAdvance("0.000")
        area = QRectF(self.rect()).adjusted(wide + 4, 1.7 * high, -wide - 4, -high - 4)
        text = self.palette().color(QPalette.ColorRole.WindowText)
        on_light = text.lightness() < _MIDDLE
        steps = max([self.total, 1, *(step for step, _ in (*self.loss, *self.scores))])
        self._frame(painter, area, text, steps, high)
        self._axis(
            painter,
            area,
            high,
            self.loss,
            ("loss", QColor(_LOSS[on_light]), True),
            _nice(self.loss),
            steps,
        )
        scored = (self.measure or "score", QColor(_SCORE[on_light]), False)
        self._axis(painter, area, high, self.scores, scored, _nice(self.scores), steps)
        painter.end()

    def _frame(self, painter: QPainter, area: QRectF, text: QColor, steps: int, high: int) -> None:
        """Lines of the axes, and the numbers below."""
        faint = QColor(text)
        faint.setAlpha(110)
        painter.setPen(QPen(faint, 1))
        painter.drawLine(area.topLeft(), area.bottomLeft())
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        painter.drawLine(area.topRight(), area.bottomRight())
        painter.setPen(text)
        below = QRectF(area.left(), area.bottom() + 2, area.width(), high)
        painter.drawText(below, Qt.AlignmentFlag.AlignLeft, "0")
        painter.drawText(below, Qt.AlignmentFlag.AlignHCenter, "step")
        painter.drawText(below, Qt.AlignmentFlag.AlignRight, f"{steps:,}")

    def _axis(
        self,
        painter: QPainter,
        area: QRectF,
        high: int,
        points: Points,
        what: tuple[str, QColor, bool],
        top: float,
        steps: int,
    ) -> None:
        """One curve, its name, and the numbers at the ends of its axis."""
        name, colour, left = what
        painter.setPen(colour)
        side = Qt.AlignmentFlag.AlignLeft if left else Qt.AlignmentFlag.AlignRight
        painter.drawText(QRectF(0, 0, self.width(), high), side, name)
        inner = Qt.AlignmentFlag.AlignRight if left else Qt.AlignmentFlag.AlignLeft
        x = 0.0 if left else area.right() + 4
        width = area.left() - 4
        painter.drawText(QRectF(x, area.top() - high / 2, width, high), inner, f"{top:g}")
        painter.drawText(QRectF(x, area.bottom() - high / 2, width, high), inner, "0")
        dots = [
            QPointF(
                area.left() + area.width() * step / steps,
                area.bottom() - area.height() * min(max(value / top, 0), 1),
            )
            for step, value in points
        ]
        painter.setPen(QPen(colour, 1.6))
        painter.drawPolyline(QPolygonF(dots))
        if not left:
            painter.setBrush(colour)
            for dot in dots:
                painter.drawEllipse(dot, 2.2, 2.2)


def _nice(points: Points) -> float:
    """End of an axis: the next of 1, 2, 5, 10 ... above all values."""
    top = max((value for _, value in points), default=1.0)
    if top <= 0:
        return 1.0
    power = 10 ** floor(log10(top))
    return next(float(n * power) for n in (1, 2, 5, 10) if n * power >= top * 0.999)
