"""The finished tiles on screen while the rest is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_unet._napari.region import View, look
from napari_unet._napari.request import Request
from napari_unet._napari.results import class_look
from napari_unet._napari.runner import Canvas, Part

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels

__all__ = ["Preview"]


class Preview:
    """A Labels layer that grows; it goes when the run ends, and the result is a fresh one.

    Made before the worker starts, so that the first tile only has to add it.

    Only what is new goes to the graphics card: drawing anew all of a 2048 x 2048 layer for each
    tile would stop the window for as long as the tiles take.

    Parameters
    ----------
    viewer : ViewerModel
        Where the layer is added; the selection stays as it is.
    request : Request
        What is computed.
    """

    def __init__(self, viewer: ViewerModel, request: Request) -> None:
        from napari.layers import Labels

        self._viewer = viewer
        self._added = False
        self.canvas = Canvas(request)
        look_of = {}
        if request.options.output == "classes":
            look_of = {"colormap": class_look(request.card.classes)["colormap"]}
        self.layer: Labels = Labels(
            self.canvas.shown,
            name=f"{request.name} (running)",
            **look_of,
            **request.placement.arguments(),
        )
        self.layer.editable = False

    @property
    def shown(self) -> bool:
        """Whether the layer is there: a person may remove it."""
        return self.layer in self._viewer.layers

    def update(self, parts: tuple[Part, ...]) -> None:
        """Show new pixels, as far as they are on screen."""
        if not self._added:
            self._add()
        elif self.shown and self.layer.visible:
            self._show(parts)

    def _add(self) -> None:
        self._added = True
        layers = self._viewer.layers
        selected, active = set(layers.selection), layers.selection.active
        self._viewer.add_layer(self.layer)
        layers.selection = selected
        layers.selection.active = active

    def _show(self, parts: tuple[Part, ...]) -> None:
        if self._viewer.dims.ndisplay != 2:
            self.layer.refresh(extent=False, thumbnail=False)
            return
        view = look(self._viewer, self.layer)
        for part in parts:
            self._upload(part, view)

    def _upload(self, part: Part, view: View) -> None:
        hidden = [axis for axis in range(len(part)) if axis not in view.displayed]
        if any(not part[axis].start <= view.index[axis] < part[axis].stop for axis in hidden):
            return
        index = tuple(view.index[axis] if axis in hidden else s for axis, s in enumerate(part))
        block = self.canvas.shown[index]
        rows, columns = view.displayed
        self.layer.events.labels_update(
            data=block if rows < columns else block.T,
            offset=[part[rows].start, part[columns].start],
        )

    def remove(self) -> None:
        """Take the layer away, if it is still there."""
        if self.shown:
            self._viewer.layers.remove(self.layer)
