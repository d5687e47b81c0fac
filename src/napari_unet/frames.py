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

__all__ = ["Frame", "Lead"]


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
        view = Lead(self.data, self.index, self.axes)
        try:
            pixels = read_mirrored(view, window)
        except (OSError, KeyError, IndexError, RuntimeError) as error:
            # Lazy arrays fail here in their own ways: a file that was deleted or cut short.
            raise ImageError(
                f"The image could not be read ({error}); check that its file is still there."
            ) from error
        pixels = np.moveaxis(pixels, -1, 0) if self.axes.has_channels else pixels[None]
        return self.intensity.apply(pixels)


class Lead:
    """A frame of an array, indexed in one step, so that lazy arrays read no more than asked.

    Parameters
    ----------
    data : array-like
        The whole image.
    index : tuple of int
        On its first axes.
    axes : ImageAxes
        Of `data`.
    """

    def __init__(self, data: Any, index: tuple[int, ...], axes: ImageAxes) -> None:
        self._data, self._index = data, index
        self.shape = axes.shape[len(index) :]
        self.ndim = len(self.shape)
        self.dtype = np.dtype(data.dtype)

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """What is stored in one piece, if anything is."""
        return chunks_of(self._data, self._index)

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        return self._data[(*self._index, *keys)]


def chunks_of(data: Any, index: tuple[int, ...] = ()) -> tuple[int, ...] | None:
    """Extents of the pieces that an array is stored in, behind `index`; None if it is one."""
    chunks = getattr(data, "chunks", None)
    if not isinstance(chunks, tuple) or len(chunks) != len(data.shape):
        return None
    # dask tells the extent of every chunk, zarr of one.
    return tuple(int(c[0] if isinstance(c, tuple) else c) for c in chunks[len(index) :])
