"""One normalisation for the whole image, fitted before the first tile is cut.

A normalisation fitted per tile would change the grey level from tile to tile and with it the
result at the seams; so statistics come from all pixels once, and every tile is mapped alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, pairwise, product
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import OptionError

__all__ = ["Intensity", "Normalisation", "fit_intensity"]

Kind = Literal["percentile", "min-max", "mean-std", "dtype-range", "none"]

_SLAB = 1 << 22  # pixels looked at in one go while statistics are gathered
_READ = 1 << 25  # most pixels read in one go, where whole chunks are
_SAMPLE = 1 << 24  # most pixels whose percentiles are computed exactly
_AT_ONCE = 1 << 16  # pixels normalised in one go, within a core's cache
_COUNTED = 1 << 19  # pixels counted in one go, likewise
_COUNTERS = 6  # more cores than this are not kept busy


@dataclass(frozen=True)
class Normalisation:
    """How pixels are scaled before the network sees them; part of the checkpoint.

    Parameters
    ----------
    kind : {"percentile", "min-max", "mean-std", "dtype-range", "none"}
        What is mapped to what: the two percentiles or the extremes to 0 and 1, the mean and
        standard deviation to 0 and 1, the largest integer of the pixels' type to 1 (8-bit images
        divided by 255; floats as they are), or nothing at all.
    low, high : float
        Percentiles (0 to 100) for ``kind="percentile"``.
    shift : float
        Added after scaling (Freiburg's networks expect [-0.5, 0.5]).

    Raises
    ------
    OptionError
        If a value is outside its range.
    """

    kind: Kind = "percentile"
    low: float = 1.0
    high: float = 99.8
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise OptionError(
                f"normalisation must be one of {', '.join(get_args(Kind))}, not {self.kind!r}."
            )
        for name in ("low", "high", "shift"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise OptionError(f"normalisation {name} must be a number, not {value!r}.")
        if not 0 <= self.low < self.high <= 100:
            raise OptionError(
                f"percentiles must satisfy 0 <= low < high <= 100, not {self.low}, {self.high}."
            )
        if not np.isfinite(self.shift):
            raise OptionError("normalisation shift must be finite.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalisation:
        """Read `to_dict`'s form.

        Raises
        ------
        OptionError
            If a field is unknown or out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise OptionError(f"unknown normalisation settings: {', '.join(unknown)}.")
        return cls(**values)


@dataclass(frozen=True)
class Intensity:
    """A fitted normalisation: ``(pixel - offset) * scale + shift``, channel by channel.

    Parameters
    ----------
    offset, scale : tuple of float, one for each channel
        In grey levels, and per grey level.
    floor, ceiling : tuple of float, one for each channel
        What stands in for minus and plus infinity, in grey levels; NaN becomes `floor`.
    shift : float
        Added after scaling.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    floor: tuple[float, ...]
    ceiling: tuple[float, ...]
    shift: float = 0.0

    def apply(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise pixels.

        Parameters
        ----------
        pixels : ndarray of shape (C, ...)
            Grey levels of any real dtype.

        Returns
        -------
        ndarray of float32, of the same shape
        """
        out = np.empty(pixels.shape, np.float32)
        rows = max(1, _AT_ONCE // max(prod(pixels.shape[2:]), 1))
        for channel, plane in enumerate(pixels):
            # In pieces that stay in the cache from one pass to the next.
            for first in range(0, len(plane), rows):
                piece = slice(first, first + rows)
                self._map(plane[piece], channel, out[channel, piece])
        return out

    def _map(self, pixels: NDArray[Any], channel: int, out: NDArray[np.float32]) -> None:
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            pixels = np.nan_to_num(
                pixels,
                nan=self.floor[channel],
                neginf=self.floor[channel],
                posinf=self.ceiling[channel],
            )
        # Offset before scale in float64 where float32 would lose low bits of large integers.
        wide = np.float64 if pixels.dtype.itemsize > 2 else np.float32
        level = out if wide is np.float32 else np.empty(pixels.shape, wide)
        level[...] = pixels
        level -= wide(self.offset[channel])
        level *= wide(self.scale[channel])
        if self.shift:
            level += wide(self.shift)
        if level is not out:
            out[...] = level


def fit_intensity(
    image: Any, normalisation: Normalisation, *, channel_last: bool = False
) -> Intensity:
    """Fit a normalisation to a whole image, slab by slab.

    Parameters
    ----------
    image : array-like of shape ([...,] Y, X) or ([...,] Y, X, C)
        numpy, dask or zarr array of a real dtype; never loaded as a whole. Pixels that are not
        finite are left out.
    normalisation : Normalisation
        What to fit.
    channel_last : bool
        Whether the last axis is channels; each is fitted by itself.

    Returns
    -------
    Intensity
        A constant image gets scale 1: there is nothing to stretch.

    Notes
    -----
    Where both percentiles are one grey level, as on an even background with few bright pixels,
    the largest pixel is mapped to 1 instead; and where that is their level too, the smallest to 0.

    Percentiles of 8- and 16-bit integers come from a histogram and are exact. Of other dtypes
    they are exact up to 16.8 million pixels per channel; beyond, every n-th pixel is used, however
    the image is stored. Memory is that of a slab of some rows (whole chunks of a chunked image, up
    to a limit) and of that sample.
    """
    n_channels = int(image.shape[-1]) if channel_last else 1
    if normalisation.kind in ("none", "dtype-range"):
        dtype = np.dtype(image.dtype)
        ranged = normalisation.kind == "dtype-range" and dtype.kind in "ui"
        scales = (1.0 / np.iinfo(dtype).max if ranged else 1.0,) * n_channels
        ones, zeros = (1.0,) * n_channels, (0.0,) * n_channels
        return Intensity(zeros, scales, zeros, ones, normalisation.shift)
    statistics = [_Statistics(np.dtype(image.dtype)) for _ in range(n_channels)]
    per_channel = int(np.prod(image.shape)) // n_channels
    every = -(-per_channel // _SAMPLE) if normalisation.kind == "percentile" else 0
    if statistics[0].histogram is not None:
        _count_all(image, statistics, channel_last)
    else:
        extents = tuple(map(int, image.shape[:-1] if channel_last else image.shape))
        for channel, corner, part in _pieces(image, channel_last):
            chosen = _every_nth(part, corner, extents, every) if every else None
            statistics[channel].add(part, chosen)
    rows = [statistic.summary(normalisation) for statistic in statistics]
    offset, scale, floor, ceiling = (tuple(column) for column in zip(*rows, strict=True))
    return Intensity(offset, scale, floor, ceiling, normalisation.shift)


class _Statistics:
    """Running statistics of one channel."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        small = dtype.kind in "bui" and dtype.itemsize <= 2
        self.histogram = np.zeros(1 << (8 * dtype.itemsize), np.int64) if small else None
        self.sample: list[NDArray[Any]] = []
        self.count = 0
        self.low, self.high, self.mean, self.squares = np.inf, -np.inf, 0.0, 0.0

    def add(self, part: NDArray[Any], chosen: NDArray[Any] | None) -> None:
        """Take in a part of the image: for percentiles some of its pixels, and the extremes."""
        if chosen is not None:
            self.sample.append(chosen[np.isfinite(chosen)])
        whole = np.isfinite(part.min()) and np.isfinite(part.max())
        finite = part if whole else part[np.isfinite(part)]
        if not finite.size:
            return
        self.low = min(self.low, float(finite.min()))
        self.high = max(self.high, float(finite.max()))
        if chosen is not None:
            return
        finite = finite.astype(np.float64)
        # Chan, Golub and LeVeque (1983): sums of squares about a running mean keep their digits.
        mean, count = float(finite.mean()), finite.size
        shift, total = mean - self.mean, self.count + count
        self.squares += float(np.square(finite - mean).sum())
        self.squares += shift * shift * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def take(self, counts: NDArray[np.int64]) -> None:
        """Take in a histogram of small integers."""
        assert self.histogram is not None
        self.histogram += counts

    def summary(self, normalisation: Normalisation) -> tuple[float, float, float, float]:
        """Offset, scale, floor and ceiling."""
        if self.histogram is not None:
            lowest = 0 if self.dtype.kind in "bu" else int(np.iinfo(self.dtype).min)
            levels = np.flatnonzero(self.histogram)
            counts, values = self.histogram[levels], (levels + lowest).astype(np.float64)
        else:
            joined = np.concatenate(self.sample) if self.sample else np.zeros(0)
            values, counts = np.sort(joined), None
        if not values.size and not self.count:
            return 0.0, 1.0, 0.0, 1.0
        low, high = self._range(normalisation, values, counts)
        spread = high - low
        scale = 1.0 / spread if np.isfinite(spread) and spread > 0 else 1.0
        if normalisation.kind == "mean-std":
            return low, scale, low, high
        return low, scale, low, high if high > low else low + 1.0

    def _range(
        self,
        normalisation: Normalisation,
        values: NDArray[Any],
        counts: NDArray[np.int64] | None,
    ) -> tuple[float, float]:
        """The two grey levels that are mapped to 0 and 1."""
        lowest, highest = self.low, self.high  # of all pixels: a sample may have missed them
        if counts is not None:
            lowest, highest = float(values[0]), float(values[-1])
        if normalisation.kind == "percentile":
            wanted = (normalisation.low, normalisation.high)
            low, high = (_percentile(values, counts, q) for q in wanted)
            if high > low:
                return low, high
            return (low if low < highest else lowest), highest
        if normalisation.kind == "min-max":
            return lowest, highest
        if counts is not None:
            mean = float(np.average(values, weights=counts))
            variance = float(np.average(np.square(values - mean), weights=counts))
        else:
            mean, variance = self.mean, self.squares / self.count
        return mean, mean + float(np.sqrt(variance))


def _count_all(image: Any, statistics: list[_Statistics], channel_last: bool) -> None:
    """Fill the histograms of small integers, on several cores: what takes long on a large image."""
    # torch counts without Python's lock, and in a fifth of numpy's time.
    import torch

    def count(slab: NDArray[Any]) -> NDArray[np.int64]:
        total = torch.zeros(1 << (8 * slab.dtype.itemsize), dtype=torch.int64)
        flat = slab.reshape(-1)
        for at in range(0, flat.size, _COUNTED):
            found = torch.bincount(torch.from_numpy(_levels(flat[at : at + _COUNTED])))
            total[: len(found)] += found
        counts: NDArray[np.int64] = total.numpy()
        return counts

    threads = min(torch.get_num_threads(), _COUNTERS)
    waiting: deque[tuple[_Statistics, Future[NDArray[np.int64]]]] = deque()
    with ThreadPoolExecutor(threads, "histogram") as pool:
        for channel, _, part in _pieces(image, channel_last):
            waiting.append((statistics[channel], pool.submit(count, part)))
            while len(waiting) > threads * len(statistics):
                done, counts = waiting.popleft()
                done.take(counts.result())
        for done, counts in waiting:
            done.take(counts.result())


def _levels(pixels: NDArray[Any]) -> NDArray[Any]:
    """Small integers from 0 on, of the narrowest type that torch counts: an array of its own."""
    if pixels.dtype.kind in "bu":
        if pixels.dtype.itemsize == 1:
            return pixels.astype(np.uint8)
        return pixels.astype(np.int16 if pixels.max() < 1 << 15 else np.int32)
    levels = pixels.astype(np.int32)
    levels -= np.iinfo(pixels.dtype).min
    return levels


def _percentile(values: NDArray[Any], counts: NDArray[np.int64] | None, q: float) -> float:
    """Linear-interpolation percentile of sorted values with counts, as `numpy.percentile`."""
    count = values.size if counts is None else int(counts.sum())
    position = q / 100 * (count - 1)
    ranks = np.array([np.floor(position), np.ceil(position)], np.int64)
    if counts is not None:
        ranks = np.searchsorted(np.cumsum(counts), ranks, side="right")
    low, high = values[ranks].astype(np.float64)
    return float(low + (high - low) * (position - np.floor(position)))


def _every_nth(
    part: NDArray[Any], corner: Sequence[int], extents: Sequence[int], every: int
) -> NDArray[Any]:
    """Of the pixels of an image, counted in C order from 0, every n-th that is in a part."""
    if every == 1:
        return part.reshape(-1)
    before: NDArray[Any] = np.zeros((), np.int64)  # how many pixels come before each row
    for start, size, extent in zip(corner[:-1], part.shape[:-1], extents[:-1], strict=True):
        before = before[..., None] * extent + np.arange(start, start + size)
    first = -(before.reshape(-1) * extents[-1] + corner[-1]) % every
    rows = zip(part.reshape(-1, part.shape[-1]), first.tolist(), strict=True)
    return np.concatenate([row[start::every] for row, start in rows])


def _pieces(image: Any, channel_last: bool) -> Iterator[tuple[int, tuple[int, ...], NDArray[Any]]]:
    """Yield the image in pieces of bounded size: channel, first index on every axis, pixels.

    Whole chunks are read, as far as that is bounded: each is decoded once.
    """
    shape, chunks = tuple(map(int, image.shape)), getattr(image, "chunks", None)
    ones = (1,) * len(shape)
    if not isinstance(chunks, tuple) or len(chunks) != len(shape):
        chunks = ones
    for box in _boxes(shape, chunks):
        block = np.asarray(image[box])
        for part in _boxes(block.shape, ones):
            first = tuple(b.start + p.start for b, p in zip(box, part, strict=True))
            if channel_last:
                for channel in range(part[-1].start, part[-1].stop):
                    yield box[-1].start + channel, first[:-1], block[..., channel][part[:-1]]
            else:
                yield 0, first, block[part]


def _boxes(shape: Sequence[int], chunks: Sequence[Any]) -> Iterator[tuple[slice, ...]]:
    """Cut an array in C order, between its chunks where they are not too large."""
    # zarr tells the extent of its chunks along an axis, dask that of every chunk.
    ends = [
        list(accumulate(c)) if isinstance(c, tuple) else [*range(int(c), n, int(c)), n]
        for n, c in zip(shape, chunks, strict=True)
    ]
    extents = [max(1, *(b - a for a, b in pairwise([0, *each]))) for each in ends]
    for axis in range(len(shape)):
        extents[axis] = min(extents[axis], max(1, _READ // prod(extents[axis + 1 :])))
    # Several small chunks at once: the last axes first, so that what is read lies together.
    for axis in reversed(range(len(shape))):
        extents[axis] *= max(1, _SLAB // prod(extents))
        if extents[axis] < shape[axis]:
            break
        extents[axis] = max(1, shape[axis])
    yield from product(*(_cuts(*each) for each in zip(ends, extents, strict=True)))


def _cuts(ends: list[int], most: int) -> list[slice]:
    """Cut one axis into parts of at most so many pixels, where chunks end if they can."""
    cuts, start = [], 0
    while start < ends[-1]:
        last = bisect_right(ends, start + most) - 1
        stop = ends[last] if last >= 0 and ends[last] > start else start + most
        cuts.append(slice(start, stop))
        start = stop
    return cuts
