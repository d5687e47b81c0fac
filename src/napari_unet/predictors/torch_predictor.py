"""PyTorch: the reference, on the processor or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_unet.answers import Answer, logits
from napari_unet.devices import arithmetic, empty_cache, memory_layout
from napari_unet.errors import Cancelled
from napari_unet.footprint import KEPT, QUEUED, SMALL
from napari_unet.predictors import Pending, ShouldStop, heap

__all__ = ["TorchPredictor"]


class TorchPredictor:
    """Run a network with PyTorch.

    Parameters
    ----------
    network : callable
        (B, C, [Z,] Y, X) -> logits. A module is moved to the device and brought to the precision.
    device : torch.device
        Where it runs.
    dtype : torch.dtype
        Of weights and maps.
    tf32 : bool
        Whether a GPU may multiply float32 numbers with 10 bits of their fraction.
    answer : callable
        What is made of the logits, on the device.
    """

    name = "torch"

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
        *,
        tf32: bool = False,
        answer: Answer = logits,
    ) -> None:
        self.device, self.dtype, self.network = device, dtype, network
        self.tf32, self.answer = tf32, answer
        # One is computed, one is there already: the GPU never waits for Python to write.
        self.ahead = QUEUED if device.type == "cuda" else 0
        self._staging = _staging(device) if self.ahead else None
        self._resting = True

    def prepare(self, tiles: int, shape: tuple[int, ...]) -> None:
        """Nothing depends on the tile."""

    def start(self, pixels: NDArray[np.float32]) -> Pending:
        """Begin with tiles (B, C, [Z,] Y, X)."""
        if self._staging is not None:
            return _OnGpu(self, self._staging, pixels)
        if self.device.type == "cpu":
            heap.keep(SMALL, KEPT)
            self._resting = False
        return _OnDemand(self, pixels)

    def rest(self, most: int = 0) -> None:
        """Give a GPU's memory back unless some may stay; leave the C library as others know it.

        Training would be a tenth slower.
        """
        if not most:
            empty_cache(self.device)
        if not self._resting:  # another may compute by now
            heap.keep(*heap.USUAL)
            self._resting = True

    @property
    def held(self) -> int:
        """The weights."""
        network = self.network
        tensors = network.state_dict().values() if isinstance(network, nn.Module) else ()
        return sum(tensor.nbytes for tensor in tensors)

    @torch.inference_mode()
    def forward(self, pixels: Tensor, should_stop: ShouldStop = None) -> Tensor:
        """Tiles on the device through the network, to the answer, channels first in memory."""
        layout = memory_layout(self.device, pixels.ndim - 2)
        given = pixels.to(dtype=self.dtype).contiguous(memory_format=layout)
        del pixels
        with _interruptible(self.network, should_stop), arithmetic(self.device, tf32=self.tf32):
            return self.answer(self.network(given)).contiguous()


class _OnDemand:
    """The device waits for Python (processor, MPS): compute when the result is asked for."""

    def __init__(self, predictor: TorchPredictor, pixels: NDArray[np.float32]) -> None:
        self._predictor, self._pixels = predictor, pixels

    def result(self, should_stop: ShouldStop) -> NDArray[Any]:
        """Compute."""
        given = torch.from_numpy(self._pixels).to(self._predictor.device)
        found: NDArray[Any] = self._predictor.forward(given, should_stop).cpu().numpy()
        return found

    def drop(self) -> None:
        """Nothing has begun."""


class _Staging:
    """A stream for the way to the GPU, and one for the way back, beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self.up, self.down = torch.cuda.Stream(device), torch.cuda.Stream(device)


@cache
def _staging(device: torch.device) -> _Staging:
    """One for all networks: what is kept of a stream's memory is of no use to another stream."""
    return _Staging(device)


class _OnGpu:
    """Queued on the GPU: pixels go up, are computed and come back while Python does other work.

    Page-locked memory is what lets the copies run beside the computing.
    """

    def __init__(
        self, predictor: TorchPredictor, staging: _Staging, pixels: NDArray[np.float32]
    ) -> None:
        device = predictor.device
        compute = torch.cuda.current_stream(device)
        self._pinned = torch.from_numpy(pixels).pin_memory()
        with torch.cuda.stream(staging.up):
            given = self._pinned.to(device, non_blocking=True)
        compute.wait_stream(staging.up)
        given.record_stream(compute)
        found = predictor.forward(given)
        staging.down.wait_stream(compute)
        self._found = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        with torch.cuda.stream(staging.down):
            self._found.copy_(found, non_blocking=True)
            found.record_stream(staging.down)
            self._done = torch.cuda.Event()
            self._done.record(staging.down)

    def result(self, should_stop: ShouldStop) -> NDArray[Any]:
        """Wait for the copy back; what is queued on a GPU cannot be taken back."""
        if should_stop is not None and should_stop():
            raise Cancelled("Stopped.")
        self._done.synchronize()
        found: NDArray[Any] = self._found.numpy()
        return found

    def drop(self) -> None:
        """Wait until the GPU no longer uses the buffers."""
        self._done.synchronize()


@contextmanager
def _interruptible(network: Callable[[Tensor], Tensor], should_stop: ShouldStop) -> Iterator[None]:
    """Ask before every layer whether to go on: a tile of a large network takes many seconds."""
    if should_stop is None or not isinstance(network, nn.Module):
        if should_stop is not None and should_stop():
            raise Cancelled("Stopped.")
        yield
        return

    def check(_module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        if should_stop():
            raise Cancelled("Stopped.")

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_pre_hook(check) for leaf in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
