"""The tiles of one frame go in, its labels come out, in memory that does not grow with the frame.

Of every tile the classes are settled at once, in the label image itself; only probabilities that
are asked for later are kept, in memory or in a temporary file. Then objects are found and scored
slab by slab.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet import instances
from napari_unet.answers import is_no_number
from napari_unet.errors import ImageError
from napari_unet.flooding import Floats, Labels
from napari_unet.maps import ArrayMaps, Maps, maps_for
from napari_unet.plan import Job
from napari_unet.resample import resize_linear
from napari_unet.runs import ShouldStop, bands, runs_of
from napari_unet.scores import Scores
from napari_unet.tidying import raster_order, replace
from napari_unet.tiling import Window

__all__ = ["Assembly", "classes_of"]


class Assembly:
    """One frame.

    Parameters
    ----------
    job : Job
        What runs.
    labels : int32 array of the region's spatial shape
        Zeros; becomes the labels, on the image's grid.
    probabilities : float32 array of shape (K,) + ``labels.shape``, optional
        Zeros; becomes the probabilities, on the image's grid.
    in_memory : int
        Bytes of probabilities that are kept in memory; more go to a temporary file.
    """

    def __init__(
        self, job: Job, labels: Labels, probabilities: Floats | None, in_memory: int
    ) -> None:
        self._job, self._labels, self._probabilities = job, labels, probabilities
        self._region = job.plan.region
        shape = self._region.shape
        self._finds = job.options.output == "instances"
        # On the image's own grid nothing has to be kept twice.
        direct = job.grid.same
        self._codes = labels if direct else np.zeros(shape if self._finds else (0,), np.int32)
        self._maps: Maps | None = None
        if probabilities is not None and direct:
            self._maps = ArrayMaps(probabilities)
        elif probabilities is not None or self._finds:
            self._maps = maps_for(job.n_classes, shape, in_memory)

    def add(self, window: Window, found: NDArray[Any]) -> None:
        """Take in a window of the network's grid.

        Parameters
        ----------
        window : Window
            Its place.
        found : ndarray
            Classes of shape (1, ...) if ``job.only_classes``, else probabilities (K, ...).

        Raises
        ------
        ImageError
            If there are NaN in it.
        """
        job = self._job
        local = window.within(self._region.start)
        if self._maps is not None:
            self._maps.write(local, found)
        if self._finds:
            found = instances.as_probabilities(found, "The model's output")
            self._codes[local.slices] = instances.seeds_and_rims(
                self._foreground(found), job.contour(found) if job.splits else None, job.threshold
            )
        else:
            classes = classes_of(job, found)
            place = job.grid.to_image(window, job.window)
            self._labels[place.within(job.window.start).slices] = job.grid.labels_to_image(
                classes, window.start, place
            )

    def finish(self, should_stop: ShouldStop = None) -> dict[str, NDArray[Any]]:
        """Make objects of what was taken in.

        Parameters
        ----------
        should_stop : callable, optional
            Asked every few milliseconds on images of usual size.

        Returns
        -------
        dict of columns
            The objects' scores, as `scores.object_scores` gives them; empty for classes.

        Raises
        ------
        Cancelled
            If `should_stop` returned true.
        """
        job = self._job
        if self._probabilities is not None and not job.grid.same:
            self._resize(self._probabilities, should_stop)
        if not self._finds:
            return {}
        count = instances.find_objects(
            self._codes,
            _Foreground(self),
            min_size=round(job.min_size * job.grid.volume_ratio),
            fill_holes=job.options.fill_holes,
            waist=job.waist * job.grid.volume_ratio ** (1 / len(job.grid.image)),
            should_stop=should_stop,
        )
        if not job.grid.same:
            count = self._to_image(count, should_stop)
        return self._scores(count, should_stop)

    def _foreground(self, found: Floats) -> Floats:
        """What is flooded: objects, and what lies between them where that is not told apart."""
        inside = self._job.foreground(found)
        return inside if self._job.splits else inside + self._job.contour(found)

    def _slabs(self, should_stop: ShouldStop) -> Iterator[tuple[slice, Window]]:
        """Rows of the result, and their window; fewer of finer grids or of many classes."""
        first, shape = self._job.window.start, self._labels.shape
        finer = max(1, ceil(self._job.grid.volume_ratio)) * ceil(self._job.n_classes / 4)
        for rows in bands((*shape[:-1], finer * shape[-1]), should_stop):
            start = (first[0] + rows.start, *first[1:])
            yield rows, Window(start, (first[0] + rows.stop, *self._job.window.stop[1:]))

    def _read(self, window: Window) -> Floats:
        """Probabilities of a window of the network's grid."""
        assert self._maps is not None
        return self._maps.read(window.within(self._region.start))

    def _to_image(self, count: int, should_stop: ShouldStop) -> int:
        """Bring the objects onto the image's grid, and number them anew."""
        origin, none = self._region.start, self._labels.size
        first = np.full(count + 1, none)
        for rows, window in self._slabs(should_stop):
            part = self._labels[rows]
            part[...] = self._job.grid.labels_to_image(self._codes, origin, window)
            runs = runs_of(part)
            ids, head = np.unique(runs.values(part), return_index=True)
            offset = rows.start * int(np.prod(part.shape[1:]))
            first[ids] = np.minimum(first[ids], runs.starts[head] + offset)
        first[0] = none
        # An object of less than a pixel may be gone on the coarser grid.
        ids = raster_order(first, first < none)
        replace(self._labels, ids, should_stop=should_stop)
        return int(ids.max(initial=0))

    def _scores(self, count: int, should_stop: ShouldStop) -> dict[str, NDArray[Any]]:
        job = self._job
        scores = Scores(count, self._labels.shape)
        for rows, window in self._slabs(should_stop):
            part = self._labels[rows]
            under = job.grid.centres(window)
            found = self._read(under)
            if not job.grid.same:
                maps = [job.grid.labels_to_image(one, under.start, window) for one in found]
                found = np.stack(maps)
            scores.add(rows, part, job.foreground(found) + job.contour(found), found)
        return scores.table()

    def _resize(self, probabilities: Floats, should_stop: ShouldStop) -> None:
        """Bring the probabilities onto the image's grid."""
        grid, region = self._job.grid, self._region
        for rows, window in self._slabs(should_stop):
            under = grid.to_network(window)
            # As far as the interpolation reaches, and within what was computed.
            reach = [m // n + 3 for n, m in zip(grid.image, grid.network, strict=True)]
            bounds = list(zip(region.start, region.stop, strict=True))
            start = (
                min(max(a - r, low), high - 1)
                for a, r, (low, high) in zip(under.start, reach, bounds, strict=True)
            )
            stop = (
                max(min(b + r, high), low + 1)
                for b, r, (low, high) in zip(under.stop, reach, bounds, strict=True)
            )
            read = Window(tuple(start), tuple(stop))
            probabilities[:, rows] = resize_linear(self._read(read), read.start, grid, window)


def classes_of(job: Job, found: NDArray[Any]) -> NDArray[Any]:
    """Class of each pixel, from what the network was asked for.

    Raises
    ------
    ImageError
        If there are NaN in it.
    """
    if not job.only_classes:
        return instances.classes_from(found, job.options.threshold)
    if is_no_number(found).any():
        raise ImageError(
            "The model's output has NaN values; choose the precision float32, or another model."
        )
    chosen: NDArray[Any] = found[0]
    return chosen


class _Foreground:
    """What is flooded, read box by box."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly

    def __getitem__(self, key: Any) -> Floats:
        start = tuple(part.start for part in key)
        window = Window(start, tuple(part.stop for part in key))
        maps = self._assembly._maps
        assert maps is not None
        return self._assembly._foreground(maps.read(window))
