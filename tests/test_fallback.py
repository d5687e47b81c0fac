"""Memory that runs out: the plan changes, the result does not, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_model, random_network
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_unet import devices, prepared
from napari_unet.config import UNetConfig
from napari_unet.devices import memory_budget
from napari_unet.engine import run_tiles
from napari_unet.errors import Cancelled, MemoryLimitError
from napari_unet.options import Options
from napari_unet.predictors import PredictorError
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.torch_predictor import TorchPredictor
from napari_unet.prepared import Prepared, Runtime
from napari_unet.segmentation import segment, segment_steps
from napari_unet.sizing import tile_bytes
from napari_unet.tiling import TilePlan, Window, plan_tiles, read_mirrored

CPU = Runtime(torch.device("cpu"), torch.float32)
CONFIG = UNetConfig(widths=(1, 1))
LOSS = CONFIG.geometry.halo[0]
ERRORS: list[Callable[[], Exception]] = [
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    lambda: RuntimeError("MPS backend out of memory"),
]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    devices._learned.clear()
    yield
    devices._learned.clear()


def crop_plus_one(pixels: Tensor) -> Tensor:
    """Stands in for a network."""
    return pixels[(..., *[slice(LOSS, -LOSS)] * (pixels.ndim - 2))] + 1


def assemble(
    network: Any, image: NDArray[Any], plan: TilePlan, runtime: Runtime = CPU, **more: Any
) -> NDArray[np.float32]:
    """Add up what is yielded: a pixel that comes twice shows."""
    out = np.zeros((1, *image.shape), np.float32)

    def read(window: Window) -> NDArray[np.float32]:
        return read_mirrored(image, window)[None].astype(np.float32)

    tiles = []
    for tile, logits in run_tiles(network, read, plan, runtime, **more):
        out[(slice(None), *tile.write.slices)] += logits
        tiles.append(tile)
    assert tiles == list(plan)
    return out[0]


@settings(max_examples=100)
@given(st.data())
def test_memory_that_runs_out_changes_nothing(data: st.DataObject) -> None:
    """At any tile, any number of times, from any size: the result, and each finished tile once."""
    shape = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    size = data.draw(st.tuples(st.integers(18, 60), st.integers(18, 60)))
    batch = data.draw(st.integers(1, 3))
    plan = plan_tiles(shape, CONFIG.geometry, size)
    image = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    fails = data.draw(st.lists(st.booleans(), max_size=12))
    error = data.draw(st.sampled_from(ERRORS))
    written = np.zeros(shape, int)
    smallest = CONFIG.geometry.size_for(CONFIG.geometry.stride)

    def network(pixels: Tensor) -> Tensor:
        if fails and fails.pop() and tuple(pixels.shape[2:]) != smallest:
            raise error()
        return crop_plus_one(pixels)

    ready = Prepared(network, Runtime(CPU.device, CPU.dtype, batch=batch))
    written = assemble(ready, image, plan)
    np.testing.assert_array_equal(written, image + 1)
    assert all(remark.endswith(".") for remark in ready.remarks)


def test_finished_tiles_are_computed_once() -> None:
    """Every tile but the one that failed is computed exactly once."""
    image = np.arange(96.0 * 96).reshape(96, 96)
    plan = plan_tiles(image.shape, CONFIG.geometry, 48)
    most, computed = 48 * 48, []

    def network(pixels: Tensor) -> Tensor:
        nonlocal most
        if len(computed) == 4:
            most = min(most, 48 * 32)
        if pixels[0, 0].numel() > most:
            raise MemoryError
        out = crop_plus_one(pixels)
        computed.append(out[0, 0].numpy().copy())
        return out

    ready = Prepared(network, CPU)
    assert np.array_equal(assemble(ready, image, plan), image + 1)
    # Values name pixels: none of the image's own is computed by two calls, but at overlaps of the
    # pooling grid and beyond the image's edge, which this network and plan do not have.
    inside = np.concatenate([part.ravel() for part in computed])
    values, counts = np.unique(inside, return_counts=True)
    rows, columns = np.divmod((values - 1).astype(int), 96)
    away = (rows < 96 - LOSS - 8) & (columns < 96 - LOSS - 8) & (rows > LOSS) & (columns > LOSS)
    assert (counts[away] == 1).all()
    assert ready.remarks == [
        "Memory ran out on the CPU with tiles of 48 x 48 px; it went on with 32 x 48 px."
    ]


@pytest.mark.parametrize("error", ERRORS)
def test_a_device_without_memory_says_what_to_do(error: Callable[[], Exception]) -> None:
    def network(_: Tensor) -> Tensor:
        raise error()

    plan = plan_tiles((40, 40), CONFIG.geometry, 24)
    with pytest.raises(MemoryLimitError, match=r"the smallest there are; close other programs"):
        assemble(network, np.zeros((40, 40)), plan)


class Gpu(Prepared):
    """A GPU that runs out of memory, stood in for by the processor."""

    def __init__(self, network: Any, fails: Callable[[Runtime, Tensor], bool]) -> None:
        super().__init__(network, Runtime(torch.device("meta"), torch.float32))
        self._fails = fails

    def _build(self) -> Any:
        def network(pixels: Tensor) -> Tensor:
            if self._fails(self.runtime, pixels):
                raise torch.OutOfMemoryError("CUDA out of memory")
            assert callable(self._network)
            return self._network(pixels)

        return TorchPredictor(network, CPU.device, CPU.dtype)


@pytest.mark.parametrize("reach", ["bfloat16", "cpu"])
def test_a_gpu_goes_on_in_half_precision_and_then_on_the_cpu(reach: str) -> None:
    image = np.arange(60.0 * 50).reshape(60, 50)
    plan = plan_tiles(image.shape, CONFIG.geometry, 40)
    ran: list[tuple[str, str, tuple[int, ...]]] = []

    def fails(runtime: Runtime, pixels: Tensor) -> bool:
        ran.append((runtime.device.type, runtime.precision, tuple(pixels.shape[2:])))
        if len(ran) == 1:
            return False
        return runtime.precision != reach if reach == "bfloat16" else runtime.device.type != reach

    ready = Gpu(crop_plus_one, fails)
    assert np.array_equal(assemble(ready, image, plan), image + 1)
    assert ran[0][2] == (40, 40)
    smallest = CONFIG.geometry.size_for(CONFIG.geometry.stride)
    assert ("meta", "float32", smallest) in ran
    assert (ready.runtime.device.type, ready.runtime.precision) == (
        ("meta", "bfloat16") if reach == "bfloat16" else ("cpu", "float32")
    )
    if reach == "cpu":
        # There is room again for tiles as planned.
        assert ("cpu", "float32", (40, 40)) in ran
        assert ready.remarks[-1] == (
            f"Memory ran out on the GPU with tiles of {smallest[0]} x {smallest[1]} px; "
            "the rest was computed on the CPU."
        )


@pytest.mark.parametrize(("ndim", "overflows"), [(2, True), (2, False), (3, False)])
def test_float16_is_tried_once_and_only_where_it_can_be(
    ndim: int, overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers beyond float16, and no room in float32: that would go to and fro for ever."""
    monkeypatch.setattr(prepared, "empty_cache", lambda _: None)
    config = UNetConfig(widths=(1, 1), ndim=ndim)
    loss, grid = config.geometry.halo[0], config.geometry.stride
    shape = (30, 26, 22)[:ndim]
    image = np.arange(float(np.prod(shape))).reshape(shape)
    plan = plan_tiles(shape, config.geometry, config.geometry.size_for([2 * g for g in grid]))
    ran: list[str] = []

    def network(pixels: Tensor) -> Tensor:
        ran.append(f"{ready.runtime.device.type} {ready.runtime.precision}")
        assert len(ran) < 500
        out = pixels[(..., *[slice(loss, -loss)] * ndim)] + 1
        return out * torch.nan if overflows and ready.runtime.half else out

    ready = Gpu(network, lambda runtime, _: runtime.device.type != "cpu" and not runtime.half)
    ready.runtime = Runtime(torch.device("mps"), torch.float32)
    assert np.array_equal(assemble(ready, image, plan), image + 1)
    if ndim == 2 and not overflows:
        assert ran[-1] == "mps float16"
    else:
        assert ran[-1] == "cpu float32"
        assert ran.count("mps float16") == (ndim == 2)


def test_a_model_too_large_for_the_gpu_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(widths=(4, 4), n_classes=1)
    image = np.random.default_rng(0).random((60, 50))
    plan = plan_tiles(image.shape, model.config.geometry, 40)
    wanted = assemble(Prepared(model.network, CPU), image, plan)
    ready = Prepared(model.network, Runtime(torch.device("meta"), torch.bfloat16))

    def moved(network: nn.Module, device: torch.device, **more: Any) -> nn.Module:
        if device.type == "meta" or full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nn.Module.to(network, device=device, **more)

    full = False
    monkeypatch.setattr(LeanUNet, "to", moved)
    assert np.array_equal(assemble(ready, image, plan), wanted)
    assert ready.remarks == [
        "The model does not fit into the memory of the GPU; the rest was computed on the CPU."
    ]
    full = True
    with pytest.raises(MemoryLimitError, match="into the memory of the CPU; close other programs"):
        assemble(Prepared(model.network, CPU), image, plan)


def test_on_the_cpu_tiles_are_as_large_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A system may promise a GPU's tile more memory than it has, and then ends the program."""
    model = random_model(widths=(8, 8))
    plan = plan_tiles((2000, 2000), model.config.geometry, 1000)
    smallest = plan.divided(plan.region, plan.stride)
    steps = []
    for free in (8 << 30, 100 << 20, 40 << 20, 1):
        monkeypatch.setattr(devices, "free_memory", lambda _, free=free: free)
        ready = Prepared(model.network, Runtime(torch.device("meta"), torch.bfloat16))
        step = ready.step_down(plan, plan.stride)
        assert ready.runtime == CPU
        shape = plan.divided(plan.region, step).tile_shape
        fits = tile_bytes(model.config, shape, "torch", half=False) <= memory_budget(CPU.device)
        assert fits or shape == smallest.tile_shape
        steps.append(step)
    assert steps[0] == plan.step
    assert steps == sorted(set(steps), reverse=True)


def test_the_limit_is_remembered() -> None:
    model = random_model(widths=(4, 4))
    plan = plan_tiles((100, 100), model.config.geometry, 60)
    ready = Prepared(model.network, CPU)
    assert memory_budget(CPU.device, 1 << 40) == 1 << 40
    ready.step_down(plan, plan.step)
    once = memory_budget(CPU.device, 1 << 40)
    assert once < 1 << 40
    ready.step_down(plan, plan.step)
    assert memory_budget(CPU.device, 1 << 40) == once
    assert memory_budget(CPU.device, 1000) == 1000


def test_a_predictor_that_fails_gives_way_to_torch() -> None:
    model = random_model(widths=(4, 4), n_classes=1)
    image = np.random.default_rng(0).normal(size=(60, 50))
    plan = plan_tiles(image.shape, model.config.geometry, 40)
    wanted = assemble(Prepared(model.network, CPU), image, plan)
    ready = Prepared(model.network, Runtime(CPU.device, CPU.dtype, "openvino"))

    class Broken:
        name, ahead = "openvino", 0

        def prepare(self, tiles: int, shape: tuple[int, ...]) -> None:
            pass

        def start(self, pixels: NDArray[np.float32]) -> Any:
            raise PredictorError("OpenVINO cannot run this network (an operation is missing)")

    ready._predictor = Broken()
    assert np.array_equal(assemble(ready, image, plan), wanted)
    assert ready.runtime.engine == "torch"
    assert ready.remarks == [
        "OpenVINO cannot run this network (an operation is missing); PyTorch runs instead."
    ]


class Stream:
    """A device that works on its own, and tells in which order things happen."""

    name, ahead = "torch", 1

    def __init__(self, log: list[str]) -> None:
        self.log, self.count = log, 0

    def prepare(self, tiles: int, shape: tuple[int, ...]) -> None:
        pass

    def start(self, pixels: NDArray[np.float32]) -> Any:
        self.count += 1
        self.log.append(f"start {self.count}")
        return Queued(self, self.count, crop_plus_one(torch.from_numpy(pixels)).numpy())

    def rest(self, most: int = 0) -> None:
        pass


class Queued:
    def __init__(self, stream: Stream, count: int, logits: NDArray[np.float32]) -> None:
        self.stream, self.count, self.logits = stream, count, logits

    def result(self, should_stop: Callable[[], bool] | None) -> NDArray[np.float32]:
        self.stream.log.append(f"wait {self.count}")
        if should_stop is not None and should_stop():
            raise Cancelled("Stopped.")
        return self.logits

    def drop(self) -> None:
        self.stream.log.append(f"drop {self.count}")


@contextmanager
def streaming() -> Iterator[tuple[Any, list[str], TilePlan, NDArray[Any]]]:
    image = np.arange(24.0 * 96).reshape(24, 96)
    plan = plan_tiles(image.shape, CONFIG.geometry, 40)
    log: list[str] = []
    ready = Prepared(crop_plus_one, CPU)
    ready._predictor = Stream(log)
    yield ready, log, plan, image


def test_the_next_tile_is_on_its_way_while_one_is_written() -> None:
    with streaming() as (ready, log, plan, image):
        assert np.array_equal(assemble(ready, image, plan), image + 1)
        count = len(plan)
    assert count > 2
    wanted = ["start 1"]
    for tile in range(2, count + 1):
        wanted += [f"start {tile}", f"wait {tile - 1}"]
    assert log == [*wanted, f"wait {count}"]


def test_what_is_on_its_way_is_dropped_when_it_is_stopped() -> None:
    with streaming() as (ready, log, plan, image):

        def read(window: Window) -> NDArray[np.float32]:
            return read_mirrored(image, window)[None].astype(np.float32)

        tiles = run_tiles(ready, read, plan, CPU)
        next(tiles)
        tiles.close()  # type: ignore[attr-defined]
        assert log == ["start 1", "start 2", "wait 1", "drop 2"]
        with pytest.raises(Cancelled):
            list(run_tiles(ready, read, plan, CPU, lambda: True))
        assert log[4:] == ["start 3", "start 4", "wait 3", "drop 4"]


def test_the_prepared_network_leaves_the_models_own() -> None:
    network = random_network(UNetConfig(widths=(2, 3), norm="batch", n_classes=1))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    runtime = Runtime(CPU.device, torch.bfloat16)
    plan = plan_tiles((20, 20), network.config.geometry, 40)
    assemble(Prepared(network, runtime), np.ones((20, 20)), plan)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_person_is_told_while_it_runs_and_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole segmentation on a machine that has less memory than it said."""
    model = random_model(widths=(4, 4))
    image = np.random.default_rng(0).normal(size=(120, 130))
    options = Options(engine="torch", precision="float32")
    wanted = segment(image, model, options)
    assert wanted.report.remarks == ()
    forward = TorchPredictor.forward

    def scarce(self: TorchPredictor, pixels: Tensor, should_stop: Any = None) -> Tensor:
        if pixels[0, 0].numel() > 100 * 100:
            raise MemoryError
        return forward(self, pixels, should_stop)

    monkeypatch.setattr(TorchPredictor, "forward", scarce)
    steps, told = segment_steps(image, model, options), []
    while True:
        try:
            told.append(next(steps).remarks)
        except StopIteration as stop:
            found = stop.value
            break
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.report.tiles == wanted.report.tiles
    assert told[0] == ()
    assert told[-1] == found.report.remarks
    assert all("Memory ran out on the CPU with tiles of" in remark for remark in told[-1])
    assert told[-1]
