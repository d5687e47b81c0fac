"""The main job: image + model + options -> labels.

First everything is decided (`plan_job`, a frozen value), then it runs (`segment_steps`, a
generator that yields after each tile); `segment` is both in one call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from napari_unet import instances
from napari_unet.checkpoint import Model, load_model
from napari_unet.engine import prepare, run_tiles
from napari_unet.errors import Cancelled, ImageError
from napari_unet.frames import Frame
from napari_unet.intensity import Intensity, fit_intensity
from napari_unet.options import Options
from napari_unet.plan import Job, plan_job
from napari_unet.report import Report
from napari_unet.resample import resize_linear
from napari_unet.tidying import relabel_raster
from napari_unet.tiling import Window

__all__ = [
    "Options",
    "Progress",
    "Segmentation",
    "segment",
    "segment_steps",
]

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
    """

    stage: str
    done: int
    total: int
    pixels: int
    seconds: float
    frame: tuple[int, ...] = ()
    window: Window | None = None
    preview: NDArray[np.int32] | None = None


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
    objects: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    last_id: int = 0
    pixels: int = 0
    done: int = 0


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
    steps = segment_steps(image, model, options or Options(**settings))
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: Segmentation = stop.value
            return result


def segment_steps(
    image: Any,
    model: ModelLike = "nuclei",
    options: Options | None = None,
    *,
    should_stop: ShouldStop = None,
    preview: bool = False,
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
    started = time.perf_counter()
    loaded = load_model(model)
    job = plan_job(image, loaded, options or Options())
    network = prepare(loaded.network, job.runtime)
    # Pages of zeros cost nothing until a frame is written.
    shape = job.region_shape
    kept = np.zeros((job.n_classes, *shape), np.float32) if job.keeps_probabilities else None
    result = _Result(job, np.zeros(shape, np.int32), kept)
    total = len(job.plan) * len(job.frames)

    def progress(stage: str, frame: tuple[int, ...] = (), **more: Any) -> Progress:
        seconds = time.perf_counter() - started
        return Progress(stage, result.done, total, result.pixels, seconds, frame, **more)

    complete = True
    fitted: dict[tuple[int, ...], Intensity] = {}
    for index in job.frames:
        of = job.axes.fit_index(index)
        if of not in fitted:
            fitted = {of: fit_frame(job, of)}
        frame = Frame(job.data, job.axes, index, fitted[of], job.grid)
        yield progress("network", index)
        canvas = np.zeros((job.n_classes, *job.plan.region.shape), np.float32)
        try:
            for window, found in _run_frame(job, network, frame, canvas, should_stop):
                shown = _preview(job, found, window, result) if preview else None
                result.done += 1
                image_window = job.grid.to_image(window, job.window)
                result.pixels += int(np.prod(image_window.shape))
                yield progress("network", index, window=image_window, preview=shown)
        except Cancelled:
            if not (job.options.keep_finished and result.done):
                raise
            complete = False
        yield progress("objects", index)
        # What was finished is worth the second it takes to make objects of it.
        _finish_frame(result, index, canvas, should_stop if complete else None)
        if not complete:
            break
    seconds = time.perf_counter() - started
    objects = _join(result.objects)
    report = job.report(seconds, result.done, len(objects.get("index", ())), complete)
    return Segmentation(result.labels, result.probabilities, objects, report)


def fit_frame(job: Job, index: tuple[int, ...]) -> Intensity:
    """Statistics of a time point."""
    try:
        volume = job.data[index] if index else job.data
        return fit_intensity(
            volume, job.model.card.normalisation, channel_last=job.axes.has_channels
        )
    except (OSError, KeyError, RuntimeError) as error:
        raise ImageError(
            f"The image could not be read ({error}); check that its file is still there."
        ) from error


def _run_frame(
    job: Job,
    network: torch.nn.Module,
    frame: Frame,
    canvas: NDArray[np.float32],
    should_stop: ShouldStop,
) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Write the probabilities of each tile into `canvas`, (K,) + the plan's region."""
    for tile, logits in run_tiles(network, frame.read, job.plan, job.runtime, should_stop):
        found = probabilities_of(logits)
        canvas[(slice(None), *tile.write.within(job.plan.region.start).slices)] = found
        yield tile.write, found


def probabilities_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the classes (K, ...); a single output is a sigmoid and gives two classes."""
    given = torch.from_numpy(logits)
    if len(logits) == 1:
        one = torch.sigmoid(given)
        return torch.cat([1 - one, one]).numpy()
    return torch.softmax(given, dim=0).numpy()


def _preview(
    job: Job, found: NDArray[np.float32], window: Window, result: _Result
) -> NDArray[np.int32]:
    """Quick labels of one tile, on the image's grid."""
    if job.options.output == "instances":
        inside = job.foreground(found) > job.threshold
        labels = ndimage.label(inside, output=np.int32)[0]
        # Ids of the tiles before stay below those of this one.
        labels[labels > 0] += result.last_id
        result.last_id = max(result.last_id, int(labels.max(initial=0)))
    else:
        labels = instances.classes_from(found, job.options.threshold).astype(np.int32)
    image_window = job.grid.to_image(window, job.window)
    return job.grid.labels_to_image(labels, window.start, image_window)


def _finish_frame(
    result: _Result, index: tuple[int, ...], canvas: NDArray[np.float32], should_stop: ShouldStop
) -> None:
    """Turn a frame's probabilities into labels, on the image's grid."""
    job = result.job
    place = tuple(i - s.start for i, s in zip(index, job.region, strict=False))
    origin = job.plan.region.start
    if result.probabilities is not None:
        back = canvas if job.grid.same else resize_linear(canvas, origin, job.grid, job.window)
        result.probabilities[(slice(None), *place)] = back
    if job.options.output != "instances":
        classes = instances.classes_from(canvas, job.options.threshold).astype(np.int32)
        result.labels[place] = job.grid.labels_to_image(classes, origin, job.window)
        return
    foreground, contour = job.foreground(canvas), job.contour(canvas)
    labels = instances.label_instances(
        foreground if job.splits else foreground + contour,
        contour if job.splits else None,
        threshold=job.threshold,
        min_size=round(job.min_size * job.grid.volume_ratio),
        fill_holes=job.options.fill_holes,
        waist=job.waist * job.grid.volume_ratio ** (1 / len(job.grid.image)),
        should_stop=should_stop,
    )
    inside, doubt = foreground + contour, instances.normalised_entropy(canvas)
    if not job.grid.same:
        labels, inside, doubt = (
            job.grid.labels_to_image(part, origin, job.window) for part in (labels, inside, doubt)
        )
        # An object of less than a pixel may be gone on the coarser grid.
        labels = relabel_raster(labels)
    scores = instances.object_scores(labels, np.clip(inside, 0, 1), doubt)
    before = sum(len(table["index"]) for table in result.objects)
    labels[labels > 0] += before
    scores["index"] = scores["index"] + before
    if job.axes.lead:
        scores["frame"] = np.full(len(scores["index"]), np.ravel_multi_index(index, job.lead_shape))
    result.labels[place] = labels
    result.objects.append(scores)


def _join(tables: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """One table of all frames' objects."""
    if not tables:
        return {}
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
