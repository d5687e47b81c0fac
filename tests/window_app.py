"""napari in a window of its own, for test_window.py: tells in a file where things are on screen.

    python tests/window_app.py STATE.json

Nothing is clicked from in here: the test moves the mouse. Every tenth of a second the state file
is replaced by one with the screen position of each visible menu entry, of the dock's button and of
the canvas, and with what the layers hold.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import napari
from napari.layers import Labels
from qtpy.QtCore import QPoint, QTimer
from qtpy.QtWidgets import QApplication, QFileDialog, QLineEdit, QMenu, QMenuBar, QWidget


def centre(widget: QWidget) -> list[int]:
    """Middle of a widget, in pixels of the screen."""
    point = widget.mapToGlobal(widget.rect().center())
    return [point.x(), point.y()]


def entries(menu: QMenu | QMenuBar) -> dict[str, list[int]]:
    """Middle of each entry of an open menu, or of the menu bar."""
    found = {}
    for action in menu.actions():
        if action.isVisible() and action.text():
            point = menu.mapToGlobal(menu.actionGeometry(action).center())
            found[action.text().replace("&", "")] = [point.x(), point.y()]
    return found


def describe(layer: Any) -> dict[str, Any]:
    """What a layer holds, in short."""
    content = ""
    if isinstance(layer, Labels):
        content = hashlib.sha256(layer.data.tobytes()).hexdigest()
    return {
        "name": layer.name,
        "type": type(layer).__name__,
        "mode": str(layer.mode),
        "content": content,
    }


def training(dock: Any) -> dict[str, Any]:
    """What the pages and their tabs are, and how a training goes."""
    bar, page = dock.pages.tabBar(), dock.training
    places = {bar.tabText(n): bar.mapToGlobal(bar.tabRect(n).center()) for n in range(bar.count())}
    controls = page.controls
    buttons = {
        "segment": dock.controls.button.native,
        "train": controls.button,
        "stop": controls.stop,
        "use": controls.results.use,
    }
    opened = dock.models.opened
    return {
        "tabs": {text: [point.x(), point.y()] for text, point in places.items()},
        "page": bar.tabText(dock.pages.currentIndex()),
        "model": "" if opened is None else opened.card.name,
        "training": page.running,
        "trained": controls.answer.text(),
        "step": controls.bar.value,
        "places": {name: centre(w) for name, w in buttons.items() if w.isVisible()},
    }


def state(viewer: napari.Viewer) -> dict[str, Any]:
    """Everything the test looks at."""
    window = viewer.window._qt_window
    widgets = [w for w in QApplication.allWidgets() if w.isVisible()]
    menus = [entries(w) for w in widgets if isinstance(w, QMenu)]
    docks = [w for w in widgets if type(w).__name__ == "UNetDock"]
    dialogs = [w for w in widgets if isinstance(w, QFileDialog)]
    found: dict[str, Any] = {
        "bar": entries(window.menuBar()),
        "menus": {text: place for menu in menus for text, place in menu.items()},
        "canvas": centre(viewer.window._qt_viewer.canvas.native),
        "layers": [describe(layer) for layer in viewer.layers],
        "active": getattr(viewer.layers.selection.active, "name", None),
        "docks": len(docks),
        "dialog": [centre(w) for d in dialogs for w in d.findChildren(QLineEdit)[:1]],
    }
    if docks:
        controls = docks[0].controls
        found |= {
            "button": centre(controls.button.native),
            "button_text": controls.button.text,
            "running": docks[0].session.running,
            "answer": controls.answer.text(),
            **training(docks[0]),
        }
    return found


def main() -> None:
    """Open the window and keep the state file up to date."""
    # Where the test waits in vain, it asks what each thread is doing.
    faulthandler.register(signal.SIGUSR1)
    path = Path(sys.argv[1])
    viewer = napari.Viewer()
    viewer.window._qt_window.move(QPoint(0, 0))
    viewer.window.resize(1500, 950)

    def tell() -> None:
        # Small tiles make a run that is long enough to be cancelled by hand.
        slow = path.with_name("slow")
        if slow.exists():
            for widget in QApplication.allWidgets():
                if type(widget).__name__ == "UNetDock":
                    widget.controls.tile_size.value = 104
            slow.unlink()
        new = path.with_suffix(".new")
        new.write_text(json.dumps(state(viewer)))
        new.replace(path)

    timer = QTimer()
    timer.timeout.connect(tell)
    timer.start(100)
    napari.run()


if __name__ == "__main__":
    main()
