"""Run a network over a plan of tiles; memory that runs out changes the plan and ends nothing.

The engine is a generator: what it yields is finished, and closing it stops the work. The next
tile is read while one is computed, and where the device works on its own (CUDA) the next one is
on its way before the last has come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet.answers import is_no_number
from napari_unet.devices import is_out_of_memory
from napari_unet.errors import Cancelled, MemoryLimitError
from napari_unet.predictors import Pending, PredictorError, ShouldStop
from napari_unet.prepared import Network, Prepared, Runtime
from napari_unet.tiling import Tile, TilePlan, Window

__all__ = ["run_tiles"]

Read = Callable[[Window], NDArray[np.float32]]
_Job = tuple[Tile, Tile]  # a tile of the plan, and the piece of it that is computed


def run_tiles(
    network: Prepared | Network,
    read: Read,
    plan: TilePlan,
    runtime: Runtime,
    should_stop: ShouldStop = None,
) -> Iterator[tuple[Tile, NDArray[Any]]]:
    """Compute what each tile is to give: logits, or what `Prepared` makes of them.

    Where memory runs out, what is left is computed in smaller tiles, in half precision or on the
    CPU (`Prepared.step_down`); no finished pixel is computed again, and the tiles that are yielded
    stay those of the plan.

    Parameters
    ----------
    network : Prepared or callable
        (B, C, [Z,] Y, X) -> logits, valid: smaller by ``2 * plan.loss``.
    read : callable
        Gives the normalised pixels (C, [Z,] Y, X) of a window, mirrored beyond the image. It is
        called from another thread, never twice at once.
    plan : TilePlan
        What to compute.
    runtime : Runtime
        Where and in which precision, for a callable; that of a `Prepared` counts.
    should_stop : callable, optional
        Asked many times during each tile; once it says yes the tile is given up.

    Yields
    ------
    tile : Tile
        Its ``write`` window says where the answer belongs.
    answer : ndarray of shape (K,) + ``tile.write.shape``
        float32 logits, unless the network was prepared for something else.

    Raises
    ------
    Cancelled
        If `should_stop` said yes.
    MemoryLimitError
        If not even the smallest tile fits into memory.
    """
    ready = network if isinstance(network, Prepared) else Prepared(network, runtime)
    step = plan.step
    left = deque((tile, tile) for tile in plan)
    partial: _Partial | None = None
    while left:
        try:
            with closing(_stream(ready, list(left), read, plan, should_stop)) as pieces:
                for (whole, piece), answer in pieces:
                    if ready.runtime.dtype == torch.float16 and not _is_number(answer):
                        ready.widen()
                        break
                    left.popleft()
                    if piece is whole:
                        yield whole, answer
                        continue
                    if partial is None or partial.tile is not whole:
                        partial = _Partial(whole, answer)
                    if partial.add(piece, answer):
                        yield whole, partial.answer
        except PredictorError as error:
            ready.give_up_library(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            try:
                step = ready.step_down(plan, step)
            except MemoryLimitError as limit:
                raise limit from error
            left = deque(_divided(left, plan, step, partial))
    ready.rest()


def _divided(
    left: Iterable[_Job], plan: TilePlan, step: tuple[int, ...], partial: _Partial | None
) -> Iterator[_Job]:
    """Cut what is left anew; of a tile that has begun, only its missing pieces."""
    for whole, jobs in groupby(left, key=lambda job: job[0]):
        begun = partial is not None and partial.tile is whole
        for window in [piece.write for _, piece in jobs] if begun else [whole.write]:
            for piece in plan.divided(window, step):
                yield whole, piece


class _Partial:
    """A tile that is computed in pieces."""

    def __init__(self, tile: Tile, like: NDArray[Any]) -> None:
        self.tile = tile
        self.answer = np.empty((len(like), *tile.write.shape), like.dtype)
        self._missing = int(np.prod(tile.write.shape))

    def add(self, piece: Tile, answer: NDArray[Any]) -> bool:
        """Put a piece in its place; whether that was the last."""
        self.answer[(slice(None), *piece.write.within(self.tile.write.start).slices)] = answer
        self._missing -= int(np.prod(piece.write.shape))
        return self._missing == 0


def _stream(
    ready: Prepared, jobs: Sequence[_Job], read: Read, plan: TilePlan, should_stop: ShouldStop
) -> Generator[tuple[_Job, NDArray[Any]], None, None]:
    """Compute pieces in order, reading ahead; close it and nothing goes on."""

    def load(group: list[_Job]) -> NDArray[np.float32]:
        pixels = [np.ascontiguousarray(read(piece.read)) for _, piece in group]
        return np.stack(pixels) if len(pixels) > 1 else pixels[0][None]

    groups = _batches(jobs, ready.runtime.batch)
    running: deque[tuple[list[_Job], Pending]] = deque()
    predictor = ready.predictor

    def finish() -> Iterator[tuple[_Job, NDArray[Any]]]:
        group, pending = running.popleft()
        for job, answer in zip(group, pending.result(should_stop), strict=True):
            yield job, answer[(slice(None), *plan.keep(job[1]))]

    with ThreadPoolExecutor(1, "read-tile") as pool:
        coming: Future[NDArray[np.float32]] = pool.submit(load, groups[0])
        try:
            predictor.prepare(len(groups[0]), groups[0][0][1].read.shape)
            for place, group in enumerate(groups):
                pixels = coming.result()
                if place + 1 < len(groups):
                    coming = pool.submit(load, groups[place + 1])
                running.append((group, predictor.start(pixels)))
                del pixels
                if len(running) > predictor.ahead:
                    yield from finish()
            while running:
                yield from finish()
        finally:
            coming.cancel()
            for _, pending in running:
                # Whatever it says now, the reason to end is another.
                with suppress(RuntimeError, Cancelled):
                    pending.drop()


def _batches(jobs: Sequence[_Job], size: int) -> list[list[_Job]]:
    """Neighbours of one shape, `size` at a time."""
    made = []
    for _, alike in groupby(jobs, key=lambda job: job[1].read.shape):
        rest = list(alike)
        made += [rest[at : at + size] for at in range(0, len(rest), size)]
    return made


def _is_number(answer: NDArray[Any]) -> bool:
    """Whether no pixel's answer is that of NaN logits."""
    if answer.dtype.kind == "f":
        return bool(np.isfinite(answer).all())
    return not is_no_number(answer).any()
