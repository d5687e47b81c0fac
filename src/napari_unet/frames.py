"""What the network reads: normalised pixels of one frame, on its own grid, mirrored outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.axes import ImageAxes
from napari_unet.errors import ImageError
from napari_unet.intensity import Intensity
from napari_unet.resample import Grid, interpolate
from napari_unet.tiling import Window, read_mirrored

__all__ = ["Frame"]


@dataclass(frozen=True)
class Frame:
    """One time point, or for a 2-D network one plane.

    Parameters
    ----------
    data : array-like
        The whole image, (T)(Z)YX(C): numpy, dask or zarr; read window by window.
    axes : ImageAxes
        Of `data`.
    index : tuple of int
        The frame's place on the leading axes.
    intensity : Intensity
        Fitted normalisation.
    grid : Grid
        The image's pixels and the network's.
    """

    data: Any
    axes: ImageAxes
    index: tuple[int, ...]
    intensity: Intensity
    grid: Grid

    def read(self, window: Window) -> NDArray[np.float32]:
        """Read a window of the network's grid.

        Parameters
        ----------
        window : Window
            May reach outside the image, where pixels are mirrored.

        Returns
        -------
        ndarray of float32, of shape (C,) + ``window.shape``

        Raises
        ------
        ImageError
            If the image cannot be read, such as a file that is gone.
        """
        if self.grid.same:
            return self._source(window)
        return interpolate(self._source, self.grid, window)

    def _source(self, window: Window) -> NDArray[np.float32]:
        """Pixels of the image's own grid."""
        view = _Lead(self.data, self.index, self.axes)
        try:
            pixels = read_mirrored(view, window)
        except (OSError, KeyError, IndexError, RuntimeError) as error:
            # Lazy arrays fail here in their own ways: a file that was deleted or cut short.
            raise ImageError(
                f"The image could not be read ({error}); check that its file is still there."
            ) from error
        pixels = np.moveaxis(pixels, -1, 0) if self.axes.has_channels else pixels[None]
        return self.intensity.apply(pixels)


class _Lead:
    """A frame of an array, indexed in one step, so that lazy arrays read no more than asked."""

    def __init__(self, data: Any, index: tuple[int, ...], axes: ImageAxes) -> None:
        self.data, self.index = data, index
        self.shape = axes.shape[axes.lead :]

    def __getitem__(self, window: tuple[slice, ...]) -> Any:
        return self.data[(*self.index, *window)]
