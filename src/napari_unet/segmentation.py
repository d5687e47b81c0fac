"""The main job: image + model + options -> labels.

First everything is decided (`plan_job`, a frozen value), then it runs (`segment_steps`, a
generator that yields after each tile); `segment` is both in one call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_unet.answers import classes, probabilities
from napari_unet.assembly import Assembly, classes_of
from napari_unet.checkpoint import Model, load_again
from napari_unet.devices import idle_memory
from napari_unet.engine import run_tiles
from napari_unet.errors import Cancelled, ImageError
from napari_unet.focus import Focus
from napari_unet.frames import Frame, Lead
from napari_unet.intensity import Intensity, fit_intensity
from napari_unet.options import Options
from napari_unet.plan import Job, plan_job
from napari_unet.prepared import Prepared
from napari_unet.report import Report
from napari_unet.runs import bands
from napari_unet.steps import walk
from napari_unet.tiling import Window

__all__ = [
    "Options",
    "Progress",
    "Segmentation",
    "segment",
    "segment_steps",
]

# Bytes of a frame's probabilities up to which they stay in memory.
_IN_MEMORY = 1 << 28

ModelLike = str | os.PathLike[str] | Model
ShouldStop = Callable[[], bool] | None


@dataclass(frozen=True)
class Progress:
    """How far a segmentation has come; one before the first tile, then one after each.

    Parameters
    ----------
    stage : {"network", "objects"}
        Whether tiles run, or objects are being made of them.
    done, total : int
        Tiles of all frames.
    pixels : int
        Image pixels whose tiles are done.
    seconds : float
        Since the start.
    frame : tuple of int
        Index on the image's leading axes.
    window : Window, optional
        What the last tile wrote, in image pixels; None where no tile has just ended.
    preview : ndarray of int32, of the window's shape, optional
        Classes, or objects of this tile alone, with ids that no other tile has.
    remarks : tuple of str
        What had to be changed so far, such as smaller tiles where memory ran out; sentences.
    left : float
        Seconds for the tiles that are not done, going by those that are, or before the first one as
        expected (`Job.expected`); 0 if nobody knows.
    """

    stage: str
    done: int
    total: int
    pixels: int
    seconds: float
    frame: tuple[int, ...] = ()
    window: Window | None = None
    preview: NDArray[np.int32] | None = None
    remarks: tuple[str, ...] = ()
    left: float = 0.0


@dataclass(frozen=True)
class Segmentation:
    """What came out.

    Parameters
    ----------
    labels : ndarray of int32
        Objects (ids in raster order over the whole array, 0 the background) or classes, on the
        image's grid: its shape without channels, or that of the region.
    probabilities : ndarray of float32, of shape (K,) + ``labels.shape``, optional
        Of each class, if asked for.
    objects : dict of columns
        ``index`` (id), ``area`` (px), ``foreground_probability``, ``doubt`` (0 sure, 1 a coin
        toss), ``touches_edge``; empty for classes.
    report : Report
        What was done, for people and for machines.
    """

    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32] | None
    objects: dict[str, NDArray[Any]]
    report: Report


@dataclass
class _Result:
    """Arrays that frames are written into as they finish."""

    job: Job
    labels: NDArray[np.int32]
    probabilities: NDArray[np.float32] | None
    tables: dict[tuple[int, ...], dict[str, NDArray[Any]]] = field(default_factory=dict)
    last_id: int = 0
    pixels: int = 0
    done: int = 0

    def _place(self, index: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i - s.start for i, s in zip(index, self.job.region, strict=False))

    def assembly(self, index: tuple[int, ...]) -> Assembly:
        """Where the tiles of a frame go."""
        place = self._place(index)
        kept = self.probabilities
        whole: tuple[slice | int, ...] = (slice(None), *place)
        probabilities = None if kept is None else kept[whole]
        budget, in_memory = self.job.options.memory, _IN_MEMORY
        if budget is not None and self.job.runtime.device.type == "cpu":
            in_memory = min(in_memory, budget // 4)
        return Assembly(self.job, self.labels[place], probabilities, in_memory)

    def number_objects(self) -> dict[str, NDArray[Any]]:
        """Let the ids of each frame follow those of the one before, in one table."""
        before = 0
        for index, table in sorted(self.tables.items()):
            if not table:
                continue
            labels = self.labels[self._place(index)]
            for rows in bands(labels.shape) if before else ():
                np.add(labels[rows], before, out=labels[rows], where=labels[rows] > 0)
            table["index"] = table["index"] + before
            before += len(table["index"])
            if self.job.axes.lead:
                number = np.ravel_multi_index(index, self.job.lead_shape)
                table["frame"] = np.full(len(table["index"]), number)
        tables = [table for _, table in sorted(self.tables.items())]
        names = tables[0] if tables else {}
        return {name: np.concatenate([table[name] for table in tables]) for name in names}


def segment(
    image: Any, model: ModelLike = "nuclei", options: Options | None = None, **settings: Any
) -> Segmentation:
    """Segment an image.

    Parameters
    ----------
    image : array-like of shape (T)(Z)YX(C), or a list of such (multiscale)
        numpy, dask or zarr array of integers, floats or booleans; read tile by tile.
    model : str, path or Model
        A bundled model's name, a checkpoint file, or what `load_model` returned.
    options : Options, optional
        Settings.
    **settings
        Fields of `Options`, instead of `options`.

    Returns
    -------
    Segmentation

    Raises
    ------
    ImageError, CheckpointError, OptionError, GeometryError, MemoryLimitError
        One sentence that says what to do next.

    Examples
    --------
    >>> from napari_unet import segment
    >>> from napari_unet.sample import sample_nuclei
    >>> image, spacing = sample_nuclei()
    >>> result = segment(image, "nuclei")
    >>> result.labels.shape == image.shape
    True
    """
    return walk(segment_steps(image, model, options or Options(**settings)))


def segment_steps(
    image: Any,
    model: ModelLike = "nuclei",
    options: Options | None = None,
    *,
    should_stop: ShouldStop = None,
    preview: bool = False,
    focus: tuple[slice, ...] | None = None,
) -> Generator[Progress, None, Segmentation]:
    """Segment an image step by step.

    Parameters
    ----------
    image, model, options
        As for `segment`.
    should_stop : callable, optional
        Asked inside tiles and between pieces of the post-processing.
    preview : bool
        Whether `Progress.preview` is filled.
    focus : tuple of slice, optional
        Part of the image to begin with, over its axes without the channels: the tiles there come
        first, and then ever farther ones. Nothing else changes. With `preview`, where a tile takes
        long, a small one in the middle is shown before it, with ``done`` still at 0.

    Yields
    ------
    Progress

    Returns
    -------
    Segmentation

    Raises
    ------
    Cancelled
        If `should_stop` said yes and ``options.keep_finished`` is off, or nothing was finished.
    """
    started = begun = time.perf_counter()
    loaded = load_again(model)
    job = plan_job(image, loaded, options or Options())
    wanted = classes(job.options.threshold) if job.only_classes else probabilities
    idle = idle_memory(job.options.memory, objects=not job.only_classes)
    network = Prepared(loaded.network, job.runtime, wanted, idle=idle)
    # Pages of zeros cost nothing until a frame is written.
    shape = job.region_shape
    kept = np.zeros((job.n_classes, *shape), np.float32) if job.keeps_probabilities else None
    result = _Result(job, np.zeros(shape, np.int32), kept)
    total = len(job.plan) * len(job.frames)
    aim = Focus(job, focus)

    def progress(stage: str, frame: tuple[int, ...] = (), **more: Any) -> Progress:
        now, done = time.perf_counter(), result.done
        more["remarks"] = (*job.remarks, *network.remarks)
        more["left"] = (now - begun) / done * (total - done) if done else job.expected
        return Progress(stage, done, total, result.pixels, now - started, frame, **more)

    complete = True
    fitted: dict[tuple[int, ...], Intensity] = {}
    with network:
        for index in aim.frames():
            of = job.axes.fit_index(index)
            if of not in fitted:
                fitted[of] = fit_frame(job, of)
            frame = Frame(job.data, job.axes, index, fitted[of], job.grid)
            yield progress("network", index)
            assembly = result.assembly(index)
            try:
                glance = aim.glance() if preview and not result.done else None
                for plan in (glance, aim.plan) if glance else (aim.plan,):
                    if not result.done:  # what comes before the first tile comes once
                        begun = time.perf_counter()
                    tiles = run_tiles(network, frame.read, plan, job.runtime, should_stop)
                    for tile, found in tiles:
                        shown = _preview(job, found, tile.write, result) if preview else None
                        window = job.grid.to_image(tile.write, job.window)
                        if plan is not glance:  # which is for the eye only
                            assembly.add(tile.write, found)
                            result.done += 1
                            result.pixels += int(np.prod(window.shape))
                        yield progress("network", index, window=window, preview=shown)
            except Cancelled:
                if not (job.options.keep_finished and result.done):
                    raise
                complete = False
                network.forget()
            yield progress("objects", index)
            # What was finished is worth the second it takes to make objects of it.
            result.tables[index] = assembly.finish(should_stop if complete else None)
            if not complete:
                break
    seconds = time.perf_counter() - started
    objects = result.number_objects()
    report = job.report(seconds, result.done, len(objects.get("index", ())), complete, network)
    return Segmentation(result.labels, result.probabilities, objects, report)


def fit_frame(job: Job, index: tuple[int, ...]) -> Intensity:
    """Statistics of a time point."""
    try:
        return fit_intensity(
            Lead(job.data, index, job.axes),
            job.model.card.normalisation,
            channel_last=job.axes.has_channels,
        )
    except (OSError, KeyError, RuntimeError) as error:
        raise ImageError(
            f"The image could not be read ({error}); check that its file is still there."
        ) from error


def _preview(job: Job, found: NDArray[Any], window: Window, result: _Result) -> NDArray[np.int32]:
    """Quick labels of one tile, on the image's grid."""
    if job.options.output == "instances":
        inside = job.foreground(found) > job.threshold
        labels = ndimage.label(inside, output=np.int32)[0]
        # Ids of the tiles before stay below those of this one.
        labels[labels > 0] += result.last_id
        result.last_id = max(result.last_id, int(labels.max(initial=0)))
    else:
        labels = classes_of(job, found).astype(np.int32)
    image_window = job.grid.to_image(window, job.window)
    return job.grid.labels_to_image(labels, window.start, image_window)
