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
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.devices import half_precision, is_out_of_memory, learn_limit
from napari_unet.errors import Cancelled, MemoryLimitError
from napari_unet.footprint import footprint
from napari_unet.model import UNet
from napari_unet.predictors import Pending, Predictor, PredictorError, ShouldStop
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.openvino_predictor import OpenVinoPredictor
from napari_unet.predictors.torch_predictor import TorchPredictor
from napari_unet.tiling import Tile, TilePlan, Window

__all__ = ["Prepared", "Runtime", "prepare", "run_tiles"]

Network = Callable[[Tensor], Tensor]
Read = Callable[[Window], NDArray[np.float32]]
_Job = tuple[Tile, Tile]  # a tile of the plan, and the piece of it that is computed


@dataclass(frozen=True)
class Runtime:
    """Where and how a network computes.

    Parameters
    ----------
    device : torch.device
        The processor or a GPU.
    dtype : torch.dtype
        float32, or a half precision.
    engine : {"torch", "openvino"}
        Who computes.
    batch : int
        Tiles per call.
    """

    device: torch.device
    dtype: torch.dtype
    engine: str = "torch"
    batch: int = 1

    @property
    def half(self) -> bool:
        """Whether numbers are of two bytes."""
        return self.dtype != torch.float32

    @property
    def precision(self) -> str:
        """Name of the data type."""
        return str(self.dtype).removeprefix("torch.")


class Prepared:
    """A network made ready to run, and what is done when it cannot go on as planned.

    Parameters
    ----------
    network : UNet or callable
        Left as it is; a `UNet` is rewritten for inference.
    runtime : Runtime
        As planned.

    Attributes
    ----------
    runtime : Runtime
        As it runs by now.
    remarks : list of str
        What had to be changed, in words.

    Raises
    ------
    MemoryLimitError
        If the weights do not fit on the device.
    """

    def __init__(self, network: UNet | Network, runtime: Runtime) -> None:
        self._network = network
        self.runtime = runtime
        self.remarks: list[str] = []
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor:
        """Who computes; built when it is first needed, and anew after a change."""
        if self._predictor is None:
            self._predictor = self._build()
        return self._predictor

    def _build(self) -> Predictor:
        runtime, network = self.runtime, self._network
        if not isinstance(network, UNet):
            return TorchPredictor(network, runtime.device, runtime.dtype)
        if runtime.engine == "openvino":
            try:
                return OpenVinoPredictor(LeanUNet(network), half=runtime.half)
            except PredictorError as error:
                self.give_up_openvino(error)
                runtime = self.runtime
        layout = torch.channels_last if network.config.ndim == 2 else torch.channels_last_3d
        try:
            lean = LeanUNet(network).to(
                device=runtime.device,
                dtype=runtime.dtype,
                memory_format=layout,  # type: ignore[call-overload]
            )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise MemoryLimitError(
                    f"The model does not fit into the memory of {_named(runtime.device)}; choose "
                    "the CPU."
                ) from error
            raise
        return TorchPredictor(lean, runtime.device, runtime.dtype)

    def rest(self) -> None:
        """Give back memory that is only of use to the next tile, if it is much."""
        if self._predictor is not None:
            self._predictor.rest()

    def give_up_openvino(self, error: PredictorError) -> None:
        """Go on with torch, which can run everything."""
        self._change(replace(self.runtime, engine="torch"), f"{error}; PyTorch runs instead.")

    def step_down(self, plan: TilePlan, step: tuple[int, ...]) -> tuple[int, ...]:
        """Change the plan after memory ran out: smaller tiles, then half precision, then the CPU.

        Parameters
        ----------
        plan : TilePlan
            As it was before anything ran out.
        step : tuple of int
            What the tiles wrote that did not fit.

        Returns
        -------
        tuple of int
            What the tiles write from now on.

        Raises
        ------
        MemoryLimitError
            If nothing smaller is left.
        """
        runtime, size = self.runtime, _by(plan.divided(plan.region, step).tile_shape)
        failed = f"Memory ran out on {_named(runtime.device)} with tiles of {size} px"
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = _halved(step, plan.stride)
        if smaller is not None:
            shape = plan.divided(plan.region, smaller).tile_shape
            self._learn(shape)
            self._change(runtime, f"{failed}; it went on with {_by(shape)} px.")
            return smaller
        if runtime.device.type == "cpu":
            raise MemoryLimitError(f"{failed}, the smallest there are; close other programs.")
        if not runtime.half:
            half = replace(runtime, dtype=half_precision(runtime.device))
            self._change(half, f"{failed}; it went on in {half.precision}.")
            return step
        cpu = Runtime(torch.device("cpu"), torch.float32)
        self._change(cpu, f"{failed}; the rest was computed on the CPU.")
        return plan.step

    def _learn(self, shape: tuple[int, ...]) -> None:
        """Remember for later plans what can be had."""
        if isinstance(self._network, UNet):
            runtime = self.runtime
            cost = footprint(
                self._network.config, shape, predictor=runtime.engine, half=runtime.half
            )
            learn_limit(runtime.device, cost.peak * runtime.batch)

    def _change(self, runtime: Runtime, remark: str) -> None:
        if runtime != self.runtime:
            self._predictor = None
        self.runtime = replace(runtime, batch=1)
        self.remarks.append(remark)


def prepare(network: UNet, runtime: Runtime) -> Prepared:
    """Make a network ready; what it needs is built when the first tile runs.

    Parameters
    ----------
    network : UNet
        Left as it is.
    runtime : Runtime
        Where and how it will run.
    """
    return Prepared(network, runtime)


def run_tiles(
    network: Prepared | Network,
    read: Read,
    plan: TilePlan,
    runtime: Runtime,
    should_stop: ShouldStop = None,
) -> Iterator[tuple[Tile, NDArray[np.float32]]]:
    """Compute the logits of each tile.

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
        Its ``write`` window says where the logits belong.
    logits : ndarray of float32, of shape (K,) + ``tile.write.shape``

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
                for (whole, piece), logits in pieces:
                    left.popleft()
                    if piece is whole:
                        yield whole, logits
                        continue
                    if partial is None or partial.tile is not whole:
                        partial = _Partial(whole, len(logits))
                    if partial.add(piece, logits):
                        yield whole, partial.logits
        except PredictorError as error:
            ready.give_up_openvino(error)
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

    def __init__(self, tile: Tile, classes: int) -> None:
        self.tile = tile
        self.logits = np.empty((classes, *tile.write.shape), np.float32)
        self._missing = int(np.prod(tile.write.shape))

    def add(self, piece: Tile, logits: NDArray[np.float32]) -> bool:
        """Put a piece in its place; whether that was the last."""
        self.logits[(slice(None), *piece.write.within(self.tile.write.start).slices)] = logits
        self._missing -= int(np.prod(piece.write.shape))
        return self._missing == 0


def _stream(
    ready: Prepared, jobs: Sequence[_Job], read: Read, plan: TilePlan, should_stop: ShouldStop
) -> Generator[tuple[_Job, NDArray[np.float32]], None, None]:
    """Compute pieces in order, reading ahead; close it and nothing goes on."""

    def load(group: list[_Job]) -> NDArray[np.float32]:
        return np.stack([np.ascontiguousarray(read(piece.read)) for _, piece in group])

    groups = _batches(jobs, ready.runtime.batch)
    running: deque[tuple[list[_Job], Pending]] = deque()
    predictor = ready.predictor

    def finish() -> Iterator[tuple[_Job, NDArray[np.float32]]]:
        group, pending = running.popleft()
        for job, logits in zip(group, pending.result(should_stop), strict=True):
            yield job, logits[(slice(None), *plan.keep(job[1]))]

    with ThreadPoolExecutor(1, "read-tile") as pool:
        coming: Future[NDArray[np.float32]] = pool.submit(load, groups[0])
        try:
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


def _halved(step: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...] | None:
    """Half of the largest axis, on the pooling grid; None where there is nothing smaller."""
    divisible = [axis for axis, (s, grid) in enumerate(zip(step, stride, strict=True)) if s > grid]
    if not divisible:
        return None
    largest = max(divisible, key=lambda axis: step[axis])
    blocks = step[largest] // stride[largest]
    half = -(-blocks // 2) * stride[largest]
    return tuple(half if axis == largest else s for axis, s in enumerate(step))


def _named(device: torch.device) -> str:
    """A device in words."""
    return "the CPU" if device.type == "cpu" else "the GPU"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
