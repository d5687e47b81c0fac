"""ncnn: convolutions by Winograd's algorithm, with a quarter of the multiplications, in float32.

Output tiles of 4 x 4 are computed from 6 x 6 transformed numbers: 36 products instead of 144
(Lavin & Gray 2016, arXiv:1509.09308). It pays where a map has many channels: the wider the network,
the more. The package is optional (``pip install "napari-valid-unet[ncnn]"``).
"""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet.answers import Answer, logits
from napari_unet.config import UNetConfig
from napari_unet.errors import Cancelled
from napari_unet.footprint import footprint
from napari_unet.predictors import Pending, PredictorError, ShouldStop, heap
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.ncnn_graph import NcnnGraph, write_graph

__all__ = ["NcnnPredictor", "have_ncnn", "suits_ncnn"]

_OUT_OF_MEMORY = -100
# As it is: a map, in the library's own layout.
_RAW = 1


def have_ncnn() -> bool:
    """Whether the package is installed; it is not imported."""
    return importlib.util.find_spec("ncnn") is not None


def suits_ncnn(config: UNetConfig) -> bool:
    """Whether it can run a network, and has an algorithm for it that others lack."""
    return config.ndim == 2 and set(config.kernels) == {(3, 3)}


class NcnnPredictor:
    """Run a 2-D network with ncnn on the processor, in float32.

    Parameters
    ----------
    network : LeanUNet
        float32, on the processor.
    answer : callable
        What is made of the logits.

    Raises
    ------
    PredictorError
        If ncnn cannot be imported, or not read the network.
    """

    name = "ncnn"
    ahead = 0

    def __init__(self, network: LeanUNet, *, answer: Answer = logits) -> None:
        try:
            import ncnn
        except (ImportError, OSError) as error:
            raise PredictorError(f"ncnn cannot be loaded ({error})") from error
        if network.config.ndim != 2:
            raise PredictorError("ncnn runs 2-D networks only")
        self._ncnn: Any = ncnn
        self.answer = answer
        self._config = network.config
        graph = write_graph(network)
        self._steps = graph.steps
        # Memory of a map goes to a later one of nearly its size: to have it anew takes as long as
        # to compute the map. The net knows them only by address, so they are kept here.
        self._pools = ncnn.PoolAllocator(), ncnn.PoolAllocator()
        self._net = self._load(graph)
        self._shape = self._config.geometry.size_for(self._config.geometry.stride)
        self.held = footprint(self._config, self._shape, predictor=self.name).weights

    def prepare(self, tiles: int, shape: tuple[int, ...]) -> None:
        """Give back the memory of maps of another shape: it is of no use to these."""
        if shape != self._shape:
            self._give_back()
            self._shape = shape

    def start(self, pixels: NDArray[np.float32]) -> Pending:
        """Begin with tiles (B, C, Y, X)."""
        self.prepare(len(pixels), pixels.shape[2:])
        return _OnDemand(self, np.ascontiguousarray(pixels))

    def rest(self, most: int = 0) -> None:
        """Give back the memory of maps where it is more; what is laid out stays."""
        cost = footprint(self._config, self._shape, predictor=self.name)
        self.held = cost.peak if cost.peak <= most else cost.weights
        if cost.peak > most:
            self._give_back()

    def _give_back(self) -> None:
        for pool in self._pools:
            pool.clear()
        heap.trim()

    def _load(self, graph: NcnnGraph) -> Any:
        net = self._ncnn.Net()
        option = net.opt
        option.num_threads = torch.get_num_threads()
        # float32 means float32.
        option.use_fp16_packed = option.use_fp16_storage = option.use_fp16_arithmetic = False
        option.use_bf16_storage = False
        option.blob_allocator, option.workspace_allocator = self._pools
        if net.load_param_mem(graph.text) or net.load_model(_reader(self._ncnn, graph)):
            raise PredictorError("ncnn cannot read this network")
        return net

    def forward(self, image: NDArray[np.float32], should_stop: ShouldStop) -> NDArray[np.float32]:
        """Logits (K, Y', X') of one tile (C, Y, X), which has to be contiguous.

        Raises
        ------
        Cancelled
            If `should_stop` said yes, asked before each layer.
        MemoryError
            If memory ran out.
        PredictorError
            If ncnn cannot run a layer.
        """
        extractor = self._net.create_extractor()
        found = None
        try:
            # A copy: each channel of the library's own maps begins where its instructions want it.
            extractor.input("image", self._ncnn.Mat(image).clone())
            for step in self._steps:
                if should_stop is not None and should_stop():
                    raise Cancelled("Stopped.")
                # The map stays with the extractor, until the last layer that reads it.
                _check(extractor.extract(step, _RAW)[0])
            code, found = extractor.extract(self._steps[-1])
            _check(code)
            return np.array(found)
        finally:
            # No map may outlive the pools, as it would in the traceback of an error.
            found = None
            extractor.clear()


class _OnDemand:
    """Tiles that are computed when their result is asked for."""

    def __init__(self, predictor: NcnnPredictor, pixels: NDArray[np.float32]) -> None:
        self._predictor, self._pixels = predictor, pixels

    def result(self, should_stop: ShouldStop) -> NDArray[Any]:
        """Compute, one tile after the other."""
        tiles = [self._predictor.forward(tile, should_stop) for tile in self._pixels]
        found = torch.from_numpy(np.stack(tiles) if len(tiles) > 1 else tiles[0][None])
        answer: NDArray[Any] = self._predictor.answer(found).numpy()
        return answer

    def drop(self) -> None:
        """Nothing has begun."""


def _check(code: int) -> None:
    if code == _OUT_OF_MEMORY:
        raise MemoryError("ncnn could not have the memory for a map.")
    if code:
        raise PredictorError(f"ncnn cannot run this network (code {code})")


def _reader(ncnn: Any, graph: NcnnGraph) -> Any:
    """Hand the weights over from memory, without a file."""
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    left = [memoryview(array).cast("B") for array in reversed(graph.weights)]

    class Reader(ncnn.DataReader):  # type: ignore[misc]
        """Gives what is left, piece by piece."""

        def read(self, buffer: object, size: int) -> int:
            """Copy the next `size` bytes; fewer only where there are no more."""
            to, missing = address(buffer, None), size
            while missing and left:
                part = left.pop()
                now, rest = part[:missing], part[missing:]
                ctypes.memmove(to, now.tobytes(), len(now))
                to, missing = to + len(now), missing - len(now)
                if rest:
                    left.append(rest)
            return size - missing

    return Reader()
