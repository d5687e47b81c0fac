"""The finished tiles on screen while the rest is computed, and the result in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_unet._napari.progress import Part
from napari_unet._napari.region import View, look
from napari_unet._napari.request import Request
from napari_unet._napari.results import METADATA_KEY, LayerData, class_look
from napari_unet._napari.runner import Canvas

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels

__all__ = ["Preview"]


class Preview:
    """A Labels layer that grows with the tiles, and in the end becomes the result.

    Adding or removing a layer stops napari's window for a tenth of a second and more, so a run
    does it once, before anything is computed. Until the end nobody can edit the layer: its undo
    history is empty when it becomes the result.

    Parameters
    ----------
    viewer : ViewerModel
        Where the layer is added.
    request : Request
        What is computed.
    canvas : Canvas
        Its finished tiles.
    """

    def __init__(self, viewer: ViewerModel, request: Request, canvas: Canvas) -> None:
        from napari.layers import Labels

        self._viewer = viewer
        self.canvas = canvas
        look_of = {}
        if request.options.output == "classes":
            look_of = {"colormap": class_look(request.card.classes)["colormap"]}
        self.layer: Labels = Labels(
            self.canvas.shown, name=request.name, **look_of, **request.placement.arguments()
        )
        self.layer.editable = False
        viewer.add_layer(self.layer)

    @property
    def shown(self) -> bool:
        """Whether the layer is there: a person may remove it."""
        return self.layer in self._viewer.layers

    def update(self, parts: tuple[Part, ...]) -> None:
        """Show new pixels, as far as they are on screen."""
        if self.shown and self.layer.visible:
            self._show(parts)

    def become(self, result: LayerData) -> bool:
        """Turn the layer into the result; False if it is not there any more."""
        if not self.shown:
            return False
        data, arguments, _ = result
        self.layer.data = data
        self.layer.features = arguments["features"]
        self.layer.metadata = arguments["metadata"]
        if not arguments["metadata"][METADATA_KEY]["complete"]:
            self.layer.name = f"{self.layer.name} (partial)"
        self.layer.editable = True
        return True

    def _show(self, parts: tuple[Part, ...]) -> None:
        flat = self._viewer.dims.ndisplay == 2
        view = look(self._viewer, self.layer) if flat else None
        # In 3-D, or where a flat image lies beside a stack that is looked at from its side.
        if view is None or len(view.displayed) != 2:
            self.layer.refresh(extent=False, thumbnail=False)
            return
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
            # napari collects garbage then; while a run is on, most of it is frozen.
            self._viewer.layers.remove(self.layer)
