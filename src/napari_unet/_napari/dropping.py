"""Files dropped on the window while the dock is open: checkpoints are for the dock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from weakref import ref

from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QWidget

from napari_unet._napari.reader import is_checkpoint

__all__ = ["WindowDrops", "local_files"]

# The part of napari's window that takes dropped files.
_TARGET = "QtViewer"


def local_files(event: QDropEvent) -> list[str]:
    """Paths of the files that are dropped."""
    data = event.mimeData()
    return [] if data is None else [u.toLocalFile() for u in data.urls() if u.isLocalFile()]


class WindowDrops(QObject):
    """Takes a checkpoint that is dropped on the canvas before napari asks who is to read it.

    napari's own reader claims every ``.h5``, so that it would ask for each one. Where this finds
    no place to listen, napari asks, and nothing else is lost.

    Parameters
    ----------
    open_file : callable
        Called with the path.
    parent : QObject
        Of this object.
    """

    def __init__(self, open_file: Callable[[str], None], parent: QObject) -> None:
        super().__init__(parent)
        self._open = open_file
        # Not held: a window has to be able to go.
        self._targets: list[ref[QWidget]] = []
        self._dock: QWidget | None = None
        # A dock has a parent before that is part of the window.
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._listen)

    def listen(self, dock: QWidget) -> None:
        """Look at what is dropped on the window of a dock from now on."""
        self.stop()
        self._dock = dock
        self._soon.start(0)

    def _listen(self) -> None:
        window = None if self._dock is None else self._dock.window()
        widgets = [] if window is None else window.findChildren(QWidget)
        targets = [widget for widget in widgets if type(widget).__name__ == _TARGET]
        for widget in targets:
            widget.installEventFilter(self)
        self._targets = [ref(widget) for widget in targets]

    def stop(self) -> None:
        """Leave everything to napari again."""
        self._soon.stop()
        for target in self._targets:
            if (widget := target()) is not None:
                widget.removeEventFilter(self)
        self._targets = []

    def eventFilter(self, _target: QObject | None, event: QEvent | None) -> bool:
        """Take drops of one checkpoint; everything else goes its way."""
        if not isinstance(event, QDropEvent) or event.type() != QEvent.Type.Drop:
            return False
        files = local_files(event)
        if len(files) != 1 or not Path(files[0]).is_file() or not is_checkpoint(Path(files[0])):
            return False
        event.acceptProposedAction()
        if (holder := self._dock and self._dock.parentWidget()) is not None:
            holder.show()
            holder.raise_()
        self._open(files[0])
        return True
