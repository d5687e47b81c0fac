"""A checkpoint dropped on the window, or opened from the File menu, becomes the dock's model."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_unet._napari.demo import TITLE
from napari_unet.importers import DESCRIPTIONS

if TYPE_CHECKING:
    import napari.viewer

    from napari_unet._napari.dock import UNetDock

__all__ = ["dock_of", "get_reader", "is_checkpoint"]

# What napari takes for "read, and there is nothing to show".
_NO_LAYER: list[tuple[None]] = [(None,)]
# Nobody else has files of these kinds; what is wrong with one, the dock says.
_OURS = (".safetensors", ".pt", ".pth", ".ckpt", ".caffemodel", ".keras")
_OURS_LONG = (".caffemodel.h5", ".modeldef.h5", ".weights.h5")
_HDF5 = b"\x89HDF\r\n\x1a\n"
# Names of groups and attributes that h5py and Caffe put near the start of a checkpoint.
_MARKS = (b"model_weights", b"layer_names", b"keras_version", b"unet_param", b"conv_d0a-b")
_START = 1 << 20
_MOST_MEMBERS = 10_000


def get_reader(path: str | Sequence[str]) -> Callable[..., list[tuple[None]]] | None:
    """Return a reader of a checkpoint, and None for any other file: npe2's protocol.

    Parameters
    ----------
    path : str or list of str
        One file; a stack of files is none of ours.
    """
    paths = [path] if isinstance(path, str) else list(path)
    return _read if len(paths) == 1 and is_checkpoint(Path(paths[0])) else None


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint, or can be nothing else; a look at its start or its list."""
    name = path.name.lower()
    if name.endswith((*_OURS, *_OURS_LONG)):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_START)
        if start.startswith(_HDF5):
            return any(mark in start for mark in _MARKS)
        with zipfile.ZipFile(path) as archive:
            names = {n.rpartition("/")[2] for n in islice(archive.namelist(), _MOST_MEMBERS)}
    except (OSError, ValueError, LookupError, RuntimeError, EOFError, zipfile.BadZipFile):
        return False
    return bool(names & {*DESCRIPTIONS, "data.pkl", "model.weights.h5"})


def dock_of(viewer: napari.viewer.Viewer) -> UNetDock:
    """Return the dock of a window, open and in front."""
    from napari_unet._napari.dock import UNetDock

    found = [w for w in viewer.window.dock_widgets.values() if isinstance(w, UNetDock)]
    dock = found[0] if found else UNetDock(viewer)
    if not found:
        viewer.window.add_dock_widget(dock, name=TITLE, area="right")
    holder: Any = dock.parent()
    holder.show()
    holder.raise_()
    return dock


def _read(path: str | Sequence[str]) -> list[tuple[None]]:
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None:
        dock_of(viewer).open_model(path if isinstance(path, str) else path[0])
    return _NO_LAYER
