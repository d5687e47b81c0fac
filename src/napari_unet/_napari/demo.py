"""``valid-unet demo``: napari with a sample and the dock, and a picture of both if asked for."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from napari_unet._napari.settings import PLUGIN

if TYPE_CHECKING:
    import napari.viewer

    from napari_unet._napari.dock import UNetDock

__all__ = ["TITLE", "run"]

_WIDTH, _HEIGHT, _DOCK_WIDTH = 1400, 900, 330  # px
_LONGEST = 300.0  # seconds that the picture is waited for
# napari's own name for the dock: opened from the menu afterwards, it is this one.
TITLE = "U-Net (Valid U-Net)"


def run(screenshot: Path | None = None) -> int:
    """Open napari with the nuclei sample and the dock.

    Parameters
    ----------
    screenshot : Path, optional
        Segment the sample, save a picture of the window there, and quit.

    Returns
    -------
    int
        Exit status: 0, or 1 if the sample could not be segmented or the picture not be written.
    """
    import napari

    viewer = napari.Viewer()
    dock = open_dock(viewer)
    if screenshot is None:
        napari.run()
        return 0
    try:
        return _picture(viewer, dock, screenshot)
    finally:
        viewer.close()


def open_dock(viewer: napari.viewer.Viewer) -> UNetDock:
    """Add the sample and the dock to a window."""
    from qtpy.QtCore import Qt

    from napari_unet._napari.dock import UNetDock

    viewer.window.resize(_WIDTH, _HEIGHT)
    viewer.open_sample(PLUGIN, "nuclei")
    dock = UNetDock(viewer)
    # The sample's model, whatever was used last.
    dock.open_model("nuclei")
    holder = viewer.window.add_dock_widget(dock, name=TITLE, area="right")
    window = holder.parent()
    window.resizeDocks([holder], [_DOCK_WIDTH], Qt.Orientation.Horizontal)
    return dock


def _picture(viewer: napari.viewer.Viewer, dock: UNetDock, path: Path) -> int:
    _pump(0.5)
    viewer.reset_view()
    dock.segment()
    end = time.monotonic() + _LONGEST
    while dock.session.running and time.monotonic() < end:
        _pump(0.05)
    if dock.session.running or dock.failed:
        dock.session.drop()
        sys.stderr.write(f"The demo did not finish: {dock.controls.answer.text()}\n")
        return 1
    _pump(0.5)
    try:
        viewer.screenshot(str(path), canvas_only=False, flash=False)
    except OSError as error:
        sys.stderr.write(f"{path} cannot be written ({error.strerror}); choose another folder.\n")
        return 1
    return 0


def _pump(seconds: float) -> None:
    """Let the window live for a while."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.005)
