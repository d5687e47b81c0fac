"""Everything about a segmentation that is decided before the first tile runs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._version import __version__
from napari_unet.axes import ImageAxes, resolve_axes
from napari_unet.checkpoint import Model
from napari_unet.config import UNetConfig
from napari_unet.devices import memory_budget, resolve_device
from napari_unet.errors import ImageError, OptionError
from napari_unet.footprint import footprint
from napari_unet.options import Options
from napari_unet.prepared import Prepared, Runtime
from napari_unet.report import Report
from napari_unet.resample import Grid
from napari_unet.sizing import choose_tile, tile_bytes
from napari_unet.speed import choose_engine
from napari_unet.tiling import TilePlan, Window, plan_tiles

__all__ = ["Job", "plan_job"]

# Small tiles are put together into calls of about this many pixels, so that a GPU has enough to do.
_GPU_PIXELS = 1 << 18
# Larger tiles save a GPU little arithmetic, but reading the first and writing the last, which
# nothing runs beside, takes longer. No map may have more elements than cuDNN counts in 32 bits.
_GPU_TILE, _GPU_ELEMENTS = 1 << 23, (1 << 31) - 1

# The same for the next image of the same size.
_choose_tile = lru_cache(maxsize=64)(choose_tile)


@dataclass(frozen=True)
class Job:
    """A segmentation that is ready to run.

    Parameters
    ----------
    data : array-like
        The image at the level asked for, (T)(Z)YX(C).
    axes : ImageAxes
        Of `data`.
    model : Model
        What runs.
    options : Options
        As given.
    region : tuple of slice
        Part of the image, with whole numbers, over its axes without channels.
    frames : tuple of tuple of int
        Leading index of each frame, in the order in which they run.
    window : Window
        The region on the spatial axes, in image pixels.
    grid : Grid
        The image's pixels and the network's.
    plan : TilePlan
        Tiles of every frame, on the network's grid.
    runtime : Runtime
        Device, precision, and who computes.
    remarks : tuple of str
        What a person should know of the plan, in words.
    expected : float
        Seconds that the network will take, going by what was measured; 0 where nothing was, as on
        a GPU or for a job that is over at once.
    """

    data: Any
    axes: ImageAxes
    model: Model
    options: Options
    region: tuple[slice, ...]
    frames: tuple[tuple[int, ...], ...]
    window: Window
    grid: Grid
    plan: TilePlan
    runtime: Runtime
    remarks: tuple[str, ...] = ()
    expected: float = 0.0

    @property
    def n_classes(self) -> int:
        """Classes with a probability (a single logit makes two)."""
        return len(self.model.card.classes)

    @property
    def region_shape(self) -> tuple[int, ...]:
        """Shape of the labels."""
        return tuple(s.stop - s.start for s in self.region)

    @property
    def lead_shape(self) -> tuple[int, ...]:
        """Extent of the image's leading axes."""
        return self.axes.shape[: self.axes.lead]

    @property
    def keeps_probabilities(self) -> bool:
        """Whether probabilities are returned."""
        return self.options.keep_probabilities or self.options.output == "probabilities"

    @property
    def only_classes(self) -> bool:
        """Whether nothing but each pixel's class is wanted of the network."""
        return self.options.output == "classes" and not self.keeps_probabilities

    @property
    def threshold(self) -> float:
        """Probability above which a pixel belongs to an object."""
        if self.options.threshold is not None:
            return self.options.threshold
        return float(self.model.card.settings.get("threshold", 0.5))

    @property
    def min_size(self) -> int:
        """Smallest object, in image pixels."""
        if self.options.min_size is not None:
            return self.options.min_size
        return int(self.model.card.settings.get("min_size", 0))

    @property
    def waist(self) -> float:
        """Depth at which objects are cut, in image pixels; 0 for never."""
        if self.options.waist is not None:
            return self.options.waist
        return float(self.model.card.settings.get("waist", 0))

    @cached_property
    def splits(self) -> bool:
        """Whether touching objects are split by watershed."""
        has_contour = any(info.role == "contour" for info in self.model.card.classes)
        return has_contour and self.options.method != "components"

    def foreground(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum the probabilities (K, ...) of the classes that objects are made of."""
        return self._sum(probabilities, "foreground")

    def contour(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sum the probabilities (K, ...) of the classes that keep objects apart."""
        return self._sum(probabilities, "contour")

    def _sum(self, probabilities: NDArray[np.float32], role: str) -> NDArray[np.float32]:
        chosen = [
            part
            for part, info in zip(probabilities, self.model.card.classes, strict=True)
            if info.role == role
        ]
        out: NDArray[np.float32] = np.zeros(probabilities.shape[1:], np.float32)
        for part in chosen:
            out += part
        # Sums of a softmax may round to just above 1.
        return np.minimum(out, np.float32(1), out=out)

    def whole_plan(self) -> TilePlan:
        """Plan the same region as one single tile."""
        geometry, region = self.model.config.geometry, self.plan.region
        # Up to a stride more on either side, for the grid; a plan takes off what is not needed.
        extents = zip(region.shape, geometry.stride, strict=True)
        size = geometry.size_for([extent + 2 * stride for extent, stride in extents])
        return plan_tiles(self.grid.network, geometry, size, region)

    def report(
        self, seconds: float, tiles: int, objects: int, complete: bool, ran: Prepared | None = None
    ) -> Report:
        """Tell what was done, and how it `ran` where that is not as planned."""
        runtime = self.runtime if ran is None else ran.runtime
        pixels = len(self.frames) * int(np.prod(self.window.shape))
        share = tiles / (len(self.plan) * len(self.frames))
        settings = {
            name: value
            for name, value in asdict(self.options).items()
            if name not in ("region", "device", "precision", "engine", "tile_size")
        }
        settings.update(
            threshold=self.threshold,
            min_size=self.min_size,
            waist=self.waist,
            axes=self.axes.axes,
        )
        return Report(
            shape=self.axes.shape,
            region=tuple((s.start, s.stop) for s in self.region),
            model=self.model.card.name,
            model_sha256=self.model.sha256,
            version=__version__,
            tile_size=self.plan.tile_shape,
            tiles=tiles,
            halo=self.plan.halo,
            network_shape=self.grid.network,
            device=str(runtime.device),
            precision=runtime.precision,
            engine=runtime.engine,
            seconds=seconds,
            megapixels_per_second=pixels * share / 1e6 / max(seconds, 1e-9),
            objects=objects,
            complete=complete,
            remarks=(*self.remarks, *(ran.remarks if ran is not None else ())),
            settings=settings,
        )


def plan_job(image: Any, model: Model, options: Options) -> Job:
    """Decide everything about a segmentation.

    Parameters
    ----------
    image : array-like of shape (T)(Z)YX(C), or a sequence of such (multiscale)
        What to segment.
    model : Model
        With what.
    options : Options
        How.

    Raises
    ------
    ImageError, OptionError, GeometryError
        If they do not fit together; the message says what to change.
    """
    data = _at_level(image, options.level)
    card, config = model.card, model.config
    axes = resolve_axes(data.shape, data.dtype, options.axes, config.ndim, config.in_channels)
    if options.spacing is not None and len(options.spacing) != config.ndim:
        raise OptionError(
            f"spacing needs {config.ndim} lengths ({'ZYX'[-config.ndim :]}) for this model, not "
            f"{len(options.spacing)}."
        )
    if options.method == "watershed" and not any(c.role == "contour" for c in card.classes):
        raise OptionError(
            f"The model {card.name} has no contour class to split objects by; choose the method "
            "'components'."
        )
    region = _region(options.region, axes.labels_shape)
    spatial = region[axes.lead :]
    window = Window(tuple(s.start for s in spatial), tuple(s.stop for s in spatial))
    spacing = options.spacing if options.rescale else None
    grid = Grid.fit(axes.spatial_shape, spacing, card.spacing)
    frames = tuple(axes.frames(region))
    wanted = grid.to_network(window)
    decided = _tiles(config, grid, wanted, options, len(frames))
    return Job(data, axes, model, options, region, frames, window, grid, *decided)


def _tiles(
    config: UNetConfig, grid: Grid, region: Window, options: Options, frames: int
) -> tuple[TilePlan, Runtime, tuple[str, ...], float]:
    """Decide where the network runs, in which precision, in which tiles, and for how long."""
    device, geometry = resolve_device(options.device), config.geometry
    origin = (a // s * s for a, s in zip(region.start, geometry.stride, strict=True))
    extent = tuple(b - a for a, b in zip(origin, region.stop, strict=True))
    budget = memory_budget(device, options.memory)
    if device.type == "cpu":
        budget -= min(_held_beside(config, extent), budget // 2)

    def operations(engine: str, half: bool) -> float:
        tile = _choose_tile(config, extent, budget, engine=engine, half=half)
        return float(frames * tile.flops)

    way = choose_engine(config, operations, device, options.engine, options.precision)
    runtime = Runtime(device, way.dtype, way.engine, tf32=options.precision == "tf32")
    remarks: tuple[str, ...] = ()
    if options.tile_size is not None:
        plan = plan_tiles(grid.network, geometry, options.tile_size, region)
    else:
        most = min(_GPU_TILE, _GPU_ELEMENTS // max((config.widths[0], *config.up_widths[:1])))
        found = _choose_tile(
            config,
            extent,
            budget,
            engine=runtime.predictor,
            half=runtime.half,
            speed=way.speed,
            most=None if device.type == "cpu" else most,
        )
        if not found.fits:
            remarks = (
                f"The smallest tile needs {found.peak / (1 << 20):.0f} MiB, more than there is for "
                f"it ({budget / (1 << 20):.0f} MiB).",
            )
        plan = plan_tiles(grid.network, geometry, found.shape, region, exact=False)
    if device.type != "cpu":
        most = budget // max(
            tile_bytes(config, plan.tile_shape, runtime.predictor, runtime.half), 1
        )
        wanted = _GPU_PIXELS // prod(plan.tile_shape)
        runtime = replace(runtime, batch=max(1, min(most, wanted, len(plan))))
    tile = footprint(config, plan.tile_shape, predictor=runtime.predictor, half=runtime.half)
    expected = frames * len(plan) * tile.flops / way.speed if way.measured else 0.0
    return plan, runtime, remarks, expected


def _held_beside(config: UNetConfig, extent: tuple[int, ...]) -> int:
    """Bytes that are held beside a tile: the frame's probabilities and labels, as far as in RAM."""
    pixels = prod(extent)
    return min(4 * max(config.n_classes, 2) * pixels, 256 << 20) + min(8 * pixels, 128 << 20)


def _at_level(image: Any, level: int) -> Any:
    """One array of a multiscale image; a single array is its own level 0."""
    levels: Sequence[Any] = [image] if hasattr(image, "dtype") else image
    if not isinstance(image, np.ndarray) and isinstance(image, (list, tuple)):
        levels = image if image and hasattr(image[0], "shape") else [np.asarray(image)]
    elif not hasattr(image, "dtype") and not hasattr(image, "__getitem__"):
        raise ImageError(f"{type(image).__name__} is not an image; give an array.")
    if not level < len(levels):
        raise OptionError(f"The image has {len(levels)} levels; there is no level {level}.")
    return levels[level]


def _region(region: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Whole numbers for a region, inside the image."""
    if region is None:
        return tuple(slice(0, extent) for extent in shape)
    if len(region) != len(shape):
        raise OptionError(f"A region of this image needs {len(shape)} slices, not {len(region)}.")
    found = []
    for part, extent in zip(region, shape, strict=True):
        if part.step not in (None, 1):
            raise OptionError("A region cannot skip pixels: leave the step of its slices out.")
        start, stop, _ = part.indices(extent)
        if stop <= start:
            raise ImageError("The region holds no pixels of the image; move the view over it.")
        found.append(slice(operator.index(start), operator.index(stop)))
    return tuple(found)
