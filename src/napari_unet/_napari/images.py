"""Which image: the active layer, until a person picks one by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from magicgui.widgets import ComboBox

from napari_unet._napari.results import METADATA_KEY

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["ImageChooser"]

# What about a layer decides whether a model fits it.
_TELLING = ("data", "scale", "units", "axis_labels", "name")


class ImageChooser:
    """Keeps a combo box in step with the viewer's image layers.

    Parameters
    ----------
    viewer : ViewerModel
        Whose layers are offered.
    box : ComboBox
        Shows them; a choice that a person makes in it stays until that layer is gone.
    on_change : callable
        Called when another layer is chosen, or something about the chosen one changes.
    """

    def __init__(self, viewer: ViewerModel, box: ComboBox, on_change: Callable[[], None]) -> None:
        self._viewer, self._box, self._on_change = viewer, box, on_change
        self._picked = False
        self._watched: Image | None = None
        events = viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered, events.renamed):
            event.connect(self.refresh)
        viewer.layers.selection.events.active.connect(self.refresh)
        # Qt's signal for a choice by mouse or keyboard, not by code.
        cast("Any", box.native).activated.connect(self._pick)
        box.changed.connect(self._chosen)

    @property
    def layer(self) -> Image | None:
        """The chosen image, if there is one."""
        return cast("Image | None", self._box.value)

    def refresh(self, *_: object) -> None:
        """Offer the image layers there are now, the topmost first, and follow the active one."""
        from napari.layers import Image

        layers = [layer for layer in reversed(self._viewer.layers) if isinstance(layer, Image)]
        chosen = self.layer if self.layer in layers else None
        if chosen is None:
            self._picked = False
        active = self._viewer.layers.selection.active
        # A map of probabilities is looked at, not segmented.
        if not self._picked and active in layers and METADATA_KEY not in active.metadata:
            chosen = active
        with self._box.changed.blocked():
            self._box.choices = [(layer.name, layer) for layer in layers]
            if chosen is not None:
                self._box.value = chosen
        self._chosen()

    def disconnect(self) -> None:
        """Hear nothing of the viewer any more."""
        events = self._viewer.layers.events
        for event in (events.inserted, events.removed, events.reordered, events.renamed):
            event.disconnect(self.refresh)
        self._viewer.layers.selection.events.active.disconnect(self.refresh)
        self._watch(None)

    def _pick(self, *_: object) -> None:
        self._picked = self.layer is not None

    def _chosen(self, *_: object) -> None:
        self._watch(self.layer)
        self._on_change()

    def _watch(self, layer: Image | None) -> None:
        if layer is self._watched:
            return
        for name in _TELLING:
            if self._watched is not None:
                getattr(self._watched.events, name).disconnect(self._changed)
            if layer is not None:
                getattr(layer.events, name).connect(self._changed)
        self._watched = layer

    def _changed(self, *_: object) -> None:
        self._on_change()
