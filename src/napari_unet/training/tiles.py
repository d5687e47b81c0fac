"""Training tiles: large valid inputs, cut anywhere, with mirrored context as in segmenting."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from napari_unet.geometry import Geometry
from napari_unet.training.augment import Augmentation, places, sample, shade
from napari_unet.training.targets import MARGIN, UNKNOWN, Targets
from napari_unet.training.weights import Weighting, weight_map

__all__ = ["Batch", "Cutter", "Sample", "class_counts", "make_sample", "prefetch", "tile_shapes"]

_TRIES = 8


@dataclass(frozen=True, eq=False)
class Sample:
    """One labelled image, normalised as a whole.

    Parameters
    ----------
    name : str
        For messages and reports.
    image : ndarray of float32, of shape (C, [Z,] Y, X)
        Normalised pixels, on the network's grid.
    labels : ndarray of int32, of shape ([Z,] Y, X)
        `Targets.index`.
    extra : ndarray of float32, of the shape of `labels`
        `Weighting.extra`.
    replay : bool
        Whether it belongs to what an older model was trained on.
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    extra: NDArray[np.float32]
    replay: bool = False


@dataclass(frozen=True)
class Batch:
    """Tiles of one step.

    Parameters
    ----------
    images : Tensor of float32, of shape (B, C, [Z,] Y, X)
        Input of the network.
    classes : Tensor of int64, of shape (B, [Z',] Y', X')
        Of its valid outputs.
    weights : Tensor of float32, of the shape of `classes`
        Of the loss.
    """

    images: Tensor
    classes: Tensor
    weights: Tensor

    def pin_memory(self) -> Batch:
        """Return the same in page-locked memory, from where a GPU fetches while it computes."""
        return Batch(self.images.pin_memory(), self.classes.pin_memory(), self.weights.pin_memory())


def make_sample(
    name: str,
    image: NDArray[np.float32],
    labels: NDArray[Any],
    known: NDArray[np.bool_] | None,
    targets: Targets,
    weighting: Weighting,
    *,
    replay: bool = False,
) -> Sample:
    """Prepare an image: classes and distances once, whatever is cut out of it later.

    Raises
    ------
    ImageError
        If a label is none of the classes.
    """
    index = targets.index(labels, known)
    return Sample(name, image, index, weighting.extra(index, targets), replay)


def tile_shapes(
    geometry: Geometry, write: int | Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input of the network, and the outputs that count, for tiles of at least `write` pixels."""
    sizes = (write,) * geometry.ndim if isinstance(write, int) else tuple(write)
    read = geometry.size_for(sizes)
    kept = tuple(r - 2 * h for r, h in zip(read, geometry.halo, strict=True))
    return read, kept


@dataclass(frozen=True, eq=False)
class Cutter:
    """Cuts batches of tiles; the same for the same step, whoever asks and when.

    Parameters
    ----------
    samples : tuple of Sample
        To cut from.
    geometry : Geometry
        Of the network.
    write : int or tuple of int
        Output pixels of a tile.
    batch : int
        Tiles of a step.
    targets, base, augmentation
        What tiles are made of; `base` is `Weighting.base`.
    seed : int
        Of all random numbers.
    replay : float
        Part of the tiles that comes from replay images, if there are any.
    """

    samples: tuple[Sample, ...]
    geometry: Geometry
    write: int | tuple[int, ...]
    batch: int
    targets: Targets
    base: NDArray[np.float32]
    augmentation: Augmentation
    seed: int = 0
    replay: float = 0.5

    def __call__(self, step: int) -> Batch:
        """Tiles of a step."""
        random = np.random.default_rng((self.seed, step))
        pools = [[s for s in self.samples if s.replay is r] for r in (False, True)]
        tiles = []
        for _ in range(self.batch):
            again = bool(pools[1]) and (not pools[0] or random.random() < self.replay)
            pool = pools[again]
            # Large images hold more, but one of them shall not be all there is.
            share = np.sqrt([one.labels.size for one in pool])
            one = pool[random.choice(len(pool), p=share / share.sum())]
            tiles.append(self.cut(one, random))
        images, classes, weights = (np.stack(part) for part in zip(*tiles, strict=True))
        return Batch(torch.from_numpy(images), torch.from_numpy(classes), torch.from_numpy(weights))

    def cut(
        self, one: Sample, random: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """One tile: the input, and classes and weights of the outputs that count."""
        read, kept = tile_shapes(self.geometry, self.write)
        where = places(read, self.augmentation, random)
        centre = _centre(one.labels, random).reshape(-1, *[1] * len(read))
        where = where + centre.astype(np.float32)
        image = shade(np.asarray(sample(one.image, where)), self.augmentation, random)
        margins = [min(MARGIN, halo) for halo in self.geometry.halo]
        around = tuple(
            slice(h - m, n - h + m)
            for h, m, n in zip(self.geometry.halo, margins, read, strict=True)
        )
        core = tuple(slice(m, m + k) for m, k in zip(margins, kept, strict=True))
        near = where[(slice(None), *around)]
        classes = self.targets.classes(sample(one.labels, near, nearest=True).astype(np.int32))
        extra = sample(one.extra[None], near[(slice(None), *core)])[0]
        classes = np.ascontiguousarray(classes[core])
        return image, classes, weight_map(classes, self.base, np.asarray(extra, np.float32))


def _centre(labels: NDArray[np.int32], random: np.random.Generator) -> NDArray[np.float64]:
    """A place whose label is known, half of the time on an object if a few tries find one."""
    objects = random.random() < 0.5
    place = np.zeros(labels.ndim)
    for attempt in range(4 * _TRIES):
        place = np.array([random.integers(extent) for extent in labels.shape])
        value = labels[tuple(place)]
        if value > 0 or (value != UNKNOWN and (not objects or attempt >= _TRIES)):
            return place
    # Little is labelled: look for it.
    known = np.flatnonzero(labels.ravel() != UNKNOWN)
    if len(known):
        chosen = known[random.integers(len(known))]
        place = np.array(np.unravel_index(chosen, labels.shape))
    return place


def class_counts(samples: Sequence[Sample], targets: Targets) -> NDArray[np.int64]:
    """Labelled pixels of each class in all images."""
    n_classes = max(targets.n_classes, 2)
    total = np.zeros(n_classes, np.int64)
    for one in samples:
        classes = targets.classes(one.labels)
        total += np.bincount(classes[classes >= 0], minlength=n_classes)
    return total


def prefetch(
    cutter: Cutter, first: int, *, workers: int, ahead: int = 4, pin: bool = False
) -> Iterator[Batch]:
    """Yield the batches of steps `first`, ``first + 1`` ... made in the background.

    Parameters
    ----------
    cutter : Cutter
        Makes them; the result does not depend on the number of workers.
    first : int
        Step of the first batch.
    workers : int
        With 0 each batch is made when it is asked for, with 1 by a thread. More are processes, as
        threads of Python would wait for one another.
    ahead : int
        Batches kept ready, per worker.
    pin : bool
        Put them into page-locked memory.
    """
    if workers == 0:
        for step in count(first):
            yield cutter(step)
    workers = min(workers, os.cpu_count() or 1)
    if workers > 1:
        loader: DataLoader[Batch] = DataLoader(
            _Steps(cutter), None, sampler=count(first), num_workers=workers,
            prefetch_factor=ahead, pin_memory=pin, collate_fn=_as_it_is,
        )  # fmt: skip
        yield from loader
    with ThreadPoolExecutor(1, thread_name_prefix="training-tiles") as pool:
        waiting: list[Future[Batch]] = []
        try:
            for step in count(first):
                while len(waiting) < ahead:
                    waiting.append(pool.submit(cutter, step + len(waiting)))
                batch = waiting.pop(0).result()
                yield batch.pin_memory() if pin else batch
        finally:
            for future in waiting:
                future.cancel()


class _Steps(Dataset[Batch]):
    """The batches of all steps, for torch's loader."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter

    def __getitem__(self, step: int) -> Batch:
        return self._cutter(step)


def _as_it_is(batch: Any) -> Any:
    return batch
