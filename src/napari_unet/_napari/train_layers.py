"""The layers of a training: a preview while it runs, old and new to flip through afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._napari.results import METADATA_KEY, class_look
from napari_unet._napari.train_news import Done, Shown

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_unet.checkpoint import Card

__all__ = ["TrainLayers", "coloured_alike"]


class TrainLayers:
    """Adds layers for one held-out image, and takes them away again.

    Parameters
    ----------
    viewer : ViewerModel
        Where they are added.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._shown: Shown | None = None
        self._look: dict[str, Any] = {}
        self._preview: Any = None
        self._image: Any = None

    def begin(self, shown: Shown | None, card: Card | None) -> None:
        """Say what will be shown; nothing is added yet."""
        self._shown, self._preview, self._image = shown, None, None
        self._look = {}
        if card is not None:
            self._look = {"colormap": class_look(card.classes)["colormap"]}

    def update(self, labels: NDArray[np.int32]) -> None:
        """Show what the network finds by now; a person may have removed the layer."""
        shown = self._shown
        if shown is None:
            return
        found = shown.lifted(self._coloured(labels))
        if self._preview is None:
            self._add_image()
            self._preview = self._add(f"preview of {shown.name} (training)", found)
            self._preview.editable = False
        elif self._preview in self._viewer.layers:
            self._put(found)

    def show_new(self, done: Done) -> None:
        """Show what the new model finds: the preview becomes its layer.

        Removing a layer would stop the window for longer than adding one.
        """
        shown, preview = self._shown, self._preview
        if shown is None or done.new is None:
            return
        self._add_image()
        if preview is None or preview not in self._viewer.layers:
            preview = self._add(f"{shown.name} (new)", shown.lifted(self._coloured(done.new)))
        else:
            self._put(shown.lifted(self._coloured(done.new)))
            preview.name, preview.editable = f"{shown.name} (new)", True
        self._preview = preview

    def show_old(self, done: Done) -> None:
        """Put what the old model finds below that, hidden."""
        shown, new, layers = self._shown, self._preview, self._viewer.layers
        self._preview = None
        if shown is None or done.old is None or new not in layers:
            return
        old = shown.lifted(self._coloured(done.old))
        self._add(f"{shown.name} (old)", old, visible=False, index=layers.index(new))

    def remove(self) -> None:
        """Take away what the training added, as far as it is still there."""
        for layer in (self._preview, self._image):
            self._remove(layer)
        self._preview = self._image = self._shown = None

    def _put(self, labels: NDArray[np.int32]) -> None:
        """Replace what the preview shows; napari would let a person paint into it from then on."""
        self._preview.data = labels
        self._preview.editable = False  # which empties its undo history, too

    def _coloured(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        assert self._shown is not None
        return labels if self._look else coloured_alike(labels, self._shown.truth)

    def _add_image(self) -> None:
        """Show the held-out image itself, where it comes from a file."""
        shown = self._shown
        if shown is None or shown.placement is not None or self._image is not None:
            return
        from napari.layers import Image

        rgb = shown.axes.endswith("C") and shown.image.shape[-1] == 3
        pixels = shown.image
        if shown.axes.endswith("C") and not rgb:
            pixels = np.moveaxis(pixels, -1, 0)
        name = f"{shown.name} (held out)"
        about = {METADATA_KEY: {"training": True}}
        self._image = self._viewer.add_layer(Image(pixels, name=name, rgb=rgb, metadata=about))

    def _add(
        self,
        name: str,
        labels: NDArray[np.int32],
        *,
        visible: bool = True,
        index: int | None = None,
    ) -> Any:
        from napari.layers import Labels

        assert self._shown is not None
        place = self._shown.placement
        layer = Labels(
            np.require(labels, np.int32, ["C", "W"]),
            name=name,
            visible=visible,
            metadata={METADATA_KEY: {"training": True}},
            **self._look,
            **({} if place is None else place.arguments()),
        )
        layers = self._viewer.layers
        selected = set(layers.selection)
        layers.insert(len(layers) if index is None else index, layer)
        # A person goes on painting where they were.
        if selected:
            layers.selection = selected
        return layer

    def _remove(self, layer: Layer | None) -> None:
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)


def coloured_alike(labels: NDArray[np.int32], truth: NDArray[Any]) -> NDArray[np.int32]:
    """Number objects as those that they mostly cover, so that napari gives them the same colours.

    Parameters
    ----------
    labels : ndarray of int32
        What a network found.
    truth : integer ndarray of the same shape
        Objects with the numbers to take over.

    Returns
    -------
    ndarray of int32
        The same objects; one of more than half of whose union with an object of `truth` is in
        both has its number, all others have numbers that `truth` does not have.
    """
    found = labels.astype(np.int64).ravel()
    names, true = np.unique(truth.astype(np.int64).ravel(), return_inverse=True)
    objects, which = np.unique(found, return_inverse=True)
    fresh = int(names.max(initial=0)) + 1
    table = np.arange(fresh, fresh + len(objects), dtype=np.int64)
    pairs, both = np.unique(which * len(names) + true, return_counts=True)
    row, column = pairs // len(names), pairs % len(names)
    union = np.bincount(which)[row] + np.bincount(true)[column] - both
    same = (2 * both > union) & (names[column] > 0)
    table[row[same]] = names[column[same]]
    table[objects == 0] = 0
    return table[which].reshape(labels.shape).astype(np.int32)
