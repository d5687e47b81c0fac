"""A network made ready to run, and what is done where it cannot go on as planned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from napari_unet.answers import Answer, logits
from napari_unet.devices import (
    computes_half,
    empty_cache,
    half_precision,
    is_out_of_memory,
    learn_limit,
    memory_budget,
    memory_layout,
)
from napari_unet.errors import MemoryLimitError
from napari_unet.footprint import footprint
from napari_unet.model import UNet
from napari_unet.predictors import Predictor, PredictorError, kept
from napari_unet.predictors.fused import FusedUNet
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.libraries import library_predictor
from napari_unet.predictors.torch_predictor import TorchPredictor
from napari_unet.sizing import halved, shrunk
from napari_unet.tiling import TilePlan

__all__ = ["Network", "Prepared", "Runtime"]

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Runtime:
    """Where and how a network computes.

    Parameters
    ----------
    device : torch.device
        The processor or a GPU.
    dtype : torch.dtype
        float32, or a half precision.
    engine : {"torch", "openvino", "ncnn"}
        Who computes.
    batch : int
        Tiles per call.
    tf32 : bool
        Whether a GPU may round the products of float32 numbers.
    """

    device: torch.device
    dtype: torch.dtype
    engine: str = "torch"
    batch: int = 1
    tf32: bool = False

    @property
    def half(self) -> bool:
        """Whether numbers are of two bytes."""
        return self.dtype != torch.float32

    @property
    def predictor(self) -> str:
        """Who runs the network, as `footprint` knows it."""
        return "cuda" if self.device.type == "cuda" else self.engine

    @property
    def precision(self) -> str:
        """Name of the data type, or ``tf32``."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")


class Prepared:
    """A network made ready to run, and what is done when it cannot go on as planned.

    As a context (``with Prepared(...) as network``) it begins with what an earlier one left for
    it, and leaves what it has for a later one unless it ends with an exception.

    Parameters
    ----------
    network : UNet or callable
        Left as it is; a `UNet` is rewritten for inference.
    runtime : Runtime
        As planned.
    answer : callable
        What is made of the logits, on the device: `answers`.
    idle : int
        Bytes that may stay taken while no tile is computed, and after the last.

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

    def __init__(
        self,
        network: UNet | Network,
        runtime: Runtime,
        answer: Answer = logits,
        *,
        idle: int = 0,
    ) -> None:
        self._network, self._answer, self._idle = network, answer, idle
        self.runtime = runtime
        self.remarks: list[str] = []
        self._predictor: Predictor | None = None
        self._key: kept.Key | None = None
        self._overflows = False  # as float16
        self._too_large = False  # for the device

    def __enter__(self) -> Self:
        if isinstance(self._network, UNet):
            self._key = kept.key_of(self._network, replace(self.runtime, batch=1))
            self._predictor = kept.take(self._key)
            if self._predictor is not None:
                self._predictor.answer = self._answer
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        # After a change, it is no longer what its key says.
        if failed is None and self._key is not None and self._predictor is not None:
            kept.keep(self._key, self._predictor, self._idle)
            self._predictor = self._key = None
        else:
            self.forget()

    def forget(self) -> None:
        """Let go of what is ready, such as after an interruption."""
        self._predictor = self._key = None
        empty_cache(self.runtime.device)

    @property
    def predictor(self) -> Predictor:
        """Who computes; built when it is first needed, and anew after a change."""
        if self._predictor is None:
            self._predictor = self._build()
        return self._predictor

    def _build(self) -> Predictor:
        runtime, network, answer = self.runtime, self._network, self._answer
        if not isinstance(network, UNet):
            return TorchPredictor(network, runtime.device, runtime.dtype, answer=answer)
        if runtime.engine != "torch":
            try:
                lean = LeanUNet(network)
                return library_predictor(runtime.engine, lean, half=runtime.half, answer=answer)
            except PredictorError as error:
                self.give_up_library(error)
                runtime = self.runtime
        layout = memory_layout(runtime.device, network.config.ndim)
        # AMD's GPUs are CUDA's to torch as well, but have no cuDNN.
        fuses = runtime.device.type == "cuda" and not torch.version.hip
        rewritten = FusedUNet if fuses else LeanUNet
        try:
            lean = rewritten(network).to(
                device=runtime.device,
                dtype=runtime.dtype,
                memory_format=layout,  # type: ignore[call-overload]
            )
        except RuntimeError as error:
            self._too_large = is_out_of_memory(error)
            raise
        return TorchPredictor(lean, runtime.device, runtime.dtype, tf32=runtime.tf32, answer=answer)

    def rest(self) -> None:
        """Give back memory that is only of use to the next tile, if it is much."""
        if self._predictor is not None:
            self._predictor.rest(self._idle)

    def give_up_library(self, error: PredictorError) -> None:
        """Go on with torch, which can run everything."""
        self._change(replace(self.runtime, engine="torch"), f"{error}; PyTorch runs instead.")

    def widen(self) -> None:
        """Go on in float32, after numbers were beyond what float16 holds."""
        self._overflows = True
        wide = replace(self.runtime, dtype=torch.float32)
        remark = "Numbers beyond float16 came up in the network; it went on in float32."
        self._change(wide, remark)

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
        if self._too_large:
            self._too_large = False
            return self._on_cpu(
                plan, f"The model does not fit into the memory of {_named(runtime.device)}"
            )
        failed = f"Memory ran out on {_named(runtime.device)} with tiles of {size} px"
        kept.clear()
        empty_cache(runtime.device)  # also where the network stays as it is
        smaller = halved(step, plan.stride)
        if smaller is not None:
            shape = plan.divided(plan.region, smaller).tile_shape
            self._learn(shape)
            self._change(runtime, f"{failed}; it went on with {_by(shape)} px.")
            return smaller
        half = replace(runtime, dtype=half_precision(runtime.device), tf32=False)
        gpu = runtime.device.type != "cpu"
        if gpu and not runtime.half and self._has_range(half, len(step)):
            self._change(half, f"{failed}; it went on in {half.precision}.")
            return step
        return self._on_cpu(plan, failed if gpu else f"{failed}, the smallest there are")

    def _on_cpu(self, plan: TilePlan, failed: str) -> tuple[int, ...]:
        """Go on there; from there, there is nowhere to go."""
        if self.runtime.device.type == "cpu":
            raise MemoryLimitError(f"{failed}; close other programs.")
        cpu = Runtime(torch.device("cpu"), torch.float32)
        self._change(cpu, f"{failed}; the rest was computed on the CPU.")
        return self._fitting(plan)

    def _has_range(self, half: Runtime, ndim: int) -> bool:
        """Whether the network can be computed in half precision."""
        overflows = self._overflows and half.dtype == torch.float16
        return computes_half(half.device, ndim) and not overflows

    def _fitting(self, plan: TilePlan) -> tuple[int, ...]:
        """What tiles may write where the network runs now: as planned, or what there is room for.

        A system that promises more memory than it has ends a program that takes it.
        """
        runtime = self.runtime
        if not isinstance(self._network, UNet):
            return plan.step
        budget = memory_budget(runtime.device)
        return shrunk(self._network.config, plan.step, budget, runtime.predictor, runtime.half)

    def _learn(self, shape: tuple[int, ...]) -> None:
        """Remember for later plans what can be had."""
        if isinstance(self._network, UNet):
            runtime = self.runtime
            cost = footprint(
                self._network.config, shape, predictor=runtime.predictor, half=runtime.half
            )
            learn_limit(runtime.device, cost.peak * runtime.batch)

    def _change(self, runtime: Runtime, remark: str) -> None:
        if runtime != self.runtime:
            self.forget()
        self.runtime = replace(runtime, batch=1)
        self.remarks.append(remark)


def _named(device: torch.device) -> str:
    """A device in words."""
    return "the CPU" if device.type == "cpu" else "the GPU"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
