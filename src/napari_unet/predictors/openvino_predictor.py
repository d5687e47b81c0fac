"""OpenVINO: the same network as a graph of fixed size, faster on processors than PyTorch.

The graph is written from the weights, not traced: that takes milliseconds, and compiling it a few
tens of milliseconds for a small network and a quarter of a second for the paper's. The package is
optional (``pip install "napari-valid-unet[openvino]"``).
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import replace
from functools import cache
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_unet.answers import Answer, logits
from napari_unet.errors import Cancelled
from napari_unet.footprint import Footprint, footprint
from napari_unet.levels import levels, merges
from napari_unet.predictors import Pending, PredictorError, ShouldStop
from napari_unet.predictors.lean import LeanUNet, merged

__all__ = ["OpenVinoPredictor", "have_openvino"]

_POLL_MS = 20  # how often a running tile asks whether to stop
_LAST_LAYER = 10.0  # s for which the next tile waits at most; what it saves is only memory
# What nobody waits for but the next tile: layers that still run of tiles that were given up, and
# memory on its way back.
_ending: list[Thread] = []


def have_openvino() -> bool:
    """Whether the package is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


@cache
def _core() -> Any:
    """OpenVINO itself, once for as long as the program runs.

    Each gives the thread that makes it a stack for signals, and takes it away when it ends with its
    last network, in whichever thread that is. The next signal would then end the program.
    """
    import openvino

    return openvino.Core()


class OpenVinoPredictor:
    """Run a network with OpenVINO on the processor.

    Parameters
    ----------
    network : LeanUNet
        float32, on the processor.
    half : bool
        Compute in bfloat16 instead of float32.
    answer : callable
        What is made of the logits.

    Raises
    ------
    PredictorError
        If OpenVINO cannot be imported.
    """

    name = "openvino"
    ahead = 0

    def __init__(self, network: LeanUNet, *, half: bool = False, answer: Answer = logits) -> None:
        try:
            import openvino
        except (ImportError, OSError) as error:
            raise PredictorError(f"OpenVINO cannot be loaded ({error})") from error
        self._openvino: Any = openvino
        self._network, self._half, self.answer = network, half, answer
        self._shape: tuple[int, ...] | None = None
        self._request: Any = None
        self._releasing: Thread | None = None
        self.held = 0

    def prepare(self, tiles: int, shape: tuple[int, ...]) -> None:
        """Compile for so many tiles of one shape.

        Raises
        ------
        PredictorError, MemoryError
            As `start` does.
        """
        wanted = (tiles, self._network.config.in_channels, *shape)
        if self._releasing is not None:  # whoever else waits for it, too
            self._releasing.join()
            self._releasing = None
        with suppress(IndexError):  # one tile's memory at a time
            while True:
                _ending.pop().join(_LAST_LAYER)
        if wanted != self._shape:
            try:
                self._compile(wanted)
            except RuntimeError as error:
                raise _explained(error) from error

    def start(self, pixels: NDArray[np.float32]) -> Pending:
        """Begin with tiles (B, C, [Z,] Y, X); a new shape is compiled first.

        Raises
        ------
        PredictorError
            If OpenVINO cannot compile or run the network.
        MemoryError
            If it says that memory ran out.
        """
        self.prepare(len(pixels), pixels.shape[2:])
        try:
            given = np.ascontiguousarray(pixels)
            self._request.set_input_tensor(self._openvino.Tensor(given, shared_memory=True))
            self._request.start_async()
        except RuntimeError as error:
            raise _explained(error) from error
        return _Running(self._request, given, self.answer)

    def rest(self, most: int = 0) -> None:
        """Let go of the maps' memory where it is more; the compiled network stays."""
        if self._shape is None:
            return
        cost = self._cost()
        self.held = cost.peak if cost.peak <= most else cost.weights
        if cost.peak > most:
            # The system takes a tenth of a second for a GiB of it.
            release = self._request.get_compiled_model().release_memory
            self._releasing = Thread(target=release, name="free-tile")
            self._releasing.start()
            _ending.append(self._releasing)

    def _cost(self) -> Footprint:
        """Of the shape that is compiled."""
        assert self._shape is not None
        config, (tiles, _, *shape) = self._network.config, self._shape
        one = footprint(config, tuple(shape), predictor=self.name, half=self._half)
        return replace(one, peak=tiles * one.peak)

    def _compile(self, shape: tuple[int, ...]) -> None:
        """Compile for one shape; what was compiled for another is let go of first."""
        self._shape = self._request = None
        graph = _Graph(self._openvino, self._network).build(shape)
        compiled = _core().compile_model(
            graph,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if self._half else "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                # The caller's thread is not ours to bind to a core.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._request = compiled.create_infer_request()
        self._shape = shape


class _Running:
    """A tile on its way."""

    def __init__(self, request: Any, given: NDArray[np.float32], answer: Answer = logits) -> None:
        self._request, self._given, self._answer = request, given, answer

    def result(self, should_stop: ShouldStop) -> NDArray[Any]:
        """Wait, asking now and then whether to stop."""
        try:
            self._wait(should_stop)
            buffer = torch.from_numpy(self._request.get_output_tensor().data)
        except RuntimeError as error:
            raise _explained(error) from error
        found = self._answer(buffer)
        # The request's own buffer is written again by the next tile.
        own: NDArray[Any] = (found.clone() if found is buffer else found).numpy()
        return own

    def _wait(self, should_stop: ShouldStop) -> None:
        """Give the tile up whatever ends the waiting: the program cannot end before the tile."""
        there = False
        try:
            while not (there := self._request.wait_for(_POLL_MS)):
                if should_stop is not None and should_stop():
                    raise Cancelled("Stopped.")
        finally:
            if not there:
                self.drop()

    def drop(self) -> None:
        """Stop after the layer that runs: up to a second, for which nobody waits but the next."""
        self._request.cancel()
        thread = Thread(target=self._end, name="end-tile")
        thread.start()
        _ending.append(thread)

    def _end(self) -> None:
        """Keep the request and its pixels until they are used no more."""
        with suppress(RuntimeError):  # it says that it was cancelled
            self._request.wait()


def _explained(error: RuntimeError) -> Exception:
    """Memory that ran out, or a graph that cannot run."""
    words = str(error)
    if "bad_alloc" in words or "memory" in words.lower():
        return MemoryError(words.splitlines()[0])
    return PredictorError(f"OpenVINO cannot run this network ({words.strip().splitlines()[-1]})")


class _Graph:
    """Writes a network down in OpenVINO's operations."""

    def __init__(self, openvino: Any, network: LeanUNet) -> None:
        from openvino import opset13

        self.openvino, self.network, self.op = openvino, network, opset13
        self.ndim = network.config.ndim

    def build(self, shape: tuple[int, ...]) -> Any:
        """Graph for inputs (B, C, [Z,] Y, X)."""
        net, config, op = self.network, self.network.config, self.op
        sizes = levels(config, shape[2:])
        image = op.parameter(shape, np.float32, name="image")
        features, kept = image, []
        for level in range(config.depth + 1):
            features = self.layers(features, net.down[level])
            if level == config.depth:
                break
            at = sizes[level]
            stop = [c + r for c, r in zip(at.crop, at.risen, strict=True)]
            axes = list(range(2, 2 + self.ndim))
            skip = op.slice(features, *map(self.integers, (at.crop, stop, [1] * self.ndim, axes)))
            kept.append(self.conv(skip, net.from_skip[level]))
            pool, zero = list(config.pools[level]), [0] * self.ndim
            pooled = op.max_pool(features, pool, [1] * self.ndim, zero, zero, pool)
            features = pooled.output(0)
        for level in reversed(range(config.depth)):
            added = op.add(kept.pop(), self.below(features, level))
            features = self.layers(added, net.rest[level])
        logits = self.conv(features, net.head)
        return self.openvino.Model([op.result(logits)], [image], "unet")

    def below(self, features: Any, level: int) -> Any:
        """Up to a level, and its first convolution."""
        up, conv = self.network.up[level], self.network.from_below[level]
        if not merges(self.network.config, level):
            return self.conv(self.layers(features, up), conv)
        (rise,) = up
        weight, bias = merged(rise, conv)
        one, zero = [1] * self.ndim, [0] * self.ndim
        found = self.op.convolution(features, self.weights(weight), one, zero, zero, one)
        if bias is not None:
            found = self.op.add(found, self.channels(bias))
        return self.op.depth_to_space(found, "blocks_first", rise.stride[0])

    def layers(self, features: Any, modules: Any) -> Any:
        """One module after the other."""
        for module in modules:
            features = getattr(self, f"_{type(module).__name__.rstrip('23d').lower()}")(
                module, features
            )
        return features

    def conv(self, features: Any, module: Any) -> Any:
        """Convolution, padded with zeros as much as the module says."""
        one, pads = [1] * self.ndim, list(module.padding)
        found = self.op.convolution(features, self.weights(module.weight), one, pads, pads, one)
        return self._biased(found, module)

    def _conv(self, module: Any, features: Any) -> Any:
        return self.conv(features, module)

    def _convtranspose(self, module: Any, features: Any) -> Any:
        one, zero = [1] * self.ndim, [0] * self.ndim
        found = self.op.convolution_backprop_data(
            features, self.weights(module.weight), list(module.stride), None, zero, zero, one
        )
        return self._biased(found, module)

    def _relu(self, _module: Any, features: Any) -> Any:
        return self.op.relu(features)

    def _leakyrelu(self, module: Any, features: Any) -> Any:
        return self.op.prelu(features, self.numbers([module.negative_slope]))

    def _batchnorm(self, module: Any, features: Any) -> Any:
        # One that follows its activation: it stays, as a scale and a shift.
        scale = module.weight / torch.sqrt(module.running_var + module.eps)
        shift = module.bias - module.running_mean * scale
        return self.op.add(self.op.multiply(features, self.channels(scale)), self.channels(shift))

    def _upsample(self, module: Any, features: Any) -> Any:
        linear = module.mode != "nearest"
        size = [int(s * f) for s, f in zip(features.shape[2:], module.scale_factor, strict=True)]
        return self.op.interpolate(
            features,
            self.integers(size),
            "linear_onnx" if linear else "nearest",
            "sizes",
            coordinate_transformation_mode="half_pixel" if linear else "asymmetric",
            nearest_mode="floor",
            axes=self.integers(range(2, 2 + self.ndim)),
        )

    def _biased(self, found: Any, module: Any) -> Any:
        return found if module.bias is None else self.op.add(found, self.channels(module.bias))

    def channels(self, values: torch.Tensor) -> Any:
        """One number for each channel."""
        return self.weights(values.reshape(1, -1, *[1] * self.ndim))

    def weights(self, values: torch.Tensor) -> Any:
        """A constant that shares the tensor's memory where it can."""
        array = values.detach().contiguous().numpy()
        return self.openvino.op.Constant(array, shared_memory=True)

    def integers(self, values: Any) -> Any:
        """A constant of whole numbers."""
        return self.op.constant(np.array(list(values), np.int64))

    def numbers(self, values: Any) -> Any:
        """A constant of numbers."""
        return self.op.constant(np.array(values, np.float32))
