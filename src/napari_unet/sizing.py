"""Which tile: the shape that computes an image in the least time, within so many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod
from operator import itemgetter

from napari_unet.config import UNetConfig
from napari_unet.footprint import footprint
from napari_unet.geometry import AxisGeometry
from napari_unet.levels import Shape

__all__ = ["Sizing", "choose_tile", "halved", "shrunk", "tile_bytes"]

# Of tiles that cost about the same the smallest is taken: results and a stop come sooner.
_ABOUT_THE_SAME = 1.02
# ncnn lays out the whole of a map anew for each convolution: in tiles of more pixels each of them
# takes longer, up to twice as long.
_MOST = {"ncnn": 1 << 20}
# Tiles that read so many times the fewest pixels are no faster: a pixel of a small tile costs less,
# as layers lose more of it, but not by that much.
_TOO_MUCH = 2.5
# Of a call, whatever the tile.
_CALL_SECONDS = 0.002
_PARTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class Sizing:
    """A choice.

    Parameters
    ----------
    shape : tuple of int
        Admissible input of the network.
    flops : int
        Operations of all tiles together.
    peak : int
        Bytes that one takes.
    fits : bool
        Whether that is within the budget; if not, it is the smallest tile there is.
    """

    shape: tuple[int, ...]
    flops: int
    peak: int
    fits: bool


def choose_tile(
    config: UNetConfig,
    extent: Sequence[int],
    budget: int,
    *,
    engine: str = "torch",
    half: bool = False,
    speed: float = 1e11,
    most: int | None = None,
) -> Sizing:
    """Choose the tile of least time for an image.

    Parameters
    ----------
    config : UNetConfig
        Of the network.
    extent : sequence of int
        What is to be written along each axis, in pixels, from a multiple of the stride.
    budget : int
        Bytes that the network may take, with everything that a tile needs.
    engine : {"torch", "openvino", "ncnn", "cuda"}
        Who computes: `footprint`.
    half : bool
        Whether numbers are of two bytes.
    speed : float
        Operations per second.
    most : int, optional
        Pixels that a tile may read, whatever the budget.
    """
    found: list[tuple[float, int, Sizing, int]] = []
    most = most or _MOST.get(engine)
    for read, calls, shape in _tilings(config, tuple(extent)):
        if found and read > _TOO_MUCH * found[0][3]:
            break
        if most is not None and prod(shape) > most:
            continue
        if config.widths[0] * prod(shape) * (2 if half else 4) > budget:
            continue  # not even one map would fit
        peak = tile_bytes(config, shape, engine, half)
        if peak > budget:
            continue
        cost = footprint(config, shape, predictor=engine, half=half)
        each = cost.flops / speed + _CALL_SECONDS
        sizing = Sizing(shape, calls * cost.flops, peak, fits=True)
        found.append((calls * each, cost.flops, sizing, read))
    if found:
        least = min(seconds for seconds, *_ in found)
        near = (one for one in found if one[0] <= _ABOUT_THE_SAME * least)
        return min(near, key=lambda one: one[1])[2]
    return _smallest(config, extent, budget, engine, half)


@lru_cache(maxsize=16)  # the same for each engine and precision, and for the next image
def _tilings(config: UNetConfig, extent: Shape) -> tuple[tuple[int, int, Shape], ...]:
    """Pixels that all tiles read, how many tiles there are, and the shape of one."""
    found = []
    for steps in product(*map(_steps, config.geometry.axes, extent)):
        shape = config.geometry.size_for(steps)
        calls = _calls(extent, steps)
        found.append((calls * prod(shape), calls, shape))
    # Of two that read as much, the one with more rows stays the first.
    return tuple(sorted(found, key=itemgetter(0)))


def _calls(extent: Sequence[int], steps: Sequence[int]) -> int:
    """Tiles that write so much each, for all of an image."""
    return prod(ceil(e / s) for e, s in zip(extent, steps, strict=True))


def _smallest(
    config: UNetConfig, extent: Sequence[int], budget: int, engine: str, half: bool
) -> Sizing:
    """Halve the tile, at whatever cost in time, until it fits."""
    geometry = config.geometry
    least = (min(_steps(*pair)) for pair in zip(geometry.axes, extent, strict=True))
    step = shrunk(config, tuple(least), budget, engine, half)
    shape = geometry.size_for(step)
    peak = tile_bytes(config, shape, engine, half)
    cost = footprint(config, shape, predictor=engine, half=half)
    return Sizing(shape, _calls(extent, step) * cost.flops, peak, fits=peak <= budget)


def shrunk(config: UNetConfig, step: Shape, budget: int, engine: str, half: bool) -> Shape:
    """Halve what tiles write until one fits, or there is nothing smaller."""
    geometry = config.geometry
    while tile_bytes(config, geometry.size_for(step), engine, half) > budget:
        smaller = halved(step, geometry.stride)
        if smaller is None:
            break
        step = smaller
    return step


def halved(step: Shape, stride: Shape) -> Shape | None:
    """Half of the largest axis, on the pooling grid; None where there is nothing smaller."""
    divisible = [axis for axis, (s, grid) in enumerate(zip(step, stride, strict=True)) if s > grid]
    if not divisible:
        return None
    largest = max(divisible, key=lambda axis: step[axis])
    blocks = step[largest] // stride[largest]
    half = -(-blocks // 2) * stride[largest]
    return tuple(half if axis == largest else s for axis, s in enumerate(step))


def tile_bytes(config: UNetConfig, shape: tuple[int, ...], engine: str, half: bool) -> int:
    """Bytes that a tile takes in all: in the network, and as probabilities after it."""
    written = prod(config.geometry.step(shape))
    # A GPU's memory holds none of what comes after.
    after = 0 if engine == "cuda" else 12 * max(config.n_classes, 2) * written
    return footprint(config, shape, predictor=engine, half=half).peak + after


def _steps(axis: AxisGeometry, extent: int) -> list[int]:
    """What a tile may write along an axis: even shares of the image, none much below the halo."""
    found: list[int] = []
    for parts in _PARTS:
        step = ceil(ceil(extent / parts) / axis.stride) * axis.stride
        if found and step < max(axis.halo, axis.stride):
            break
        if step not in found:
            found.append(step)
    return found
