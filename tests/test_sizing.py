"""The planner: the least time within the bytes that it may take."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_model

from napari_unet import devices, sizing, speed
from napari_unet.config import UNetConfig
from napari_unet.devices import free_memory, memory_budget
from napari_unet.errors import OptionError
from napari_unet.footprint import footprint
from napari_unet.options import Options
from napari_unet.plan import plan_job
from napari_unet.predictors.openvino_predictor import have_openvino
from napari_unet.sizing import choose_tile, tile_bytes
from napari_unet.speed import choose_engine

CPU = torch.device("cpu")
CONFIGS = [
    UNetConfig(),
    UNetConfig(widths=(16, 32, 64, 128), n_classes=3),
    UNetConfig(widths=(8, 16), up="linear"),
    UNetConfig(widths=(4,)),
    UNetConfig(widths=(16, 32, 64), ndim=3, pools=((1, 2, 2), (2, 2, 2))),
]


@settings(max_examples=60)
@given(st.data())
def test_the_tile_is_admissible_fits_and_is_worth_its_memory(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(CONFIGS))
    extents = st.integers(1, 5000) if config.ndim == 2 else st.integers(1, 200)
    extent = data.draw(st.tuples(*[extents] * config.ndim))
    budget = data.draw(st.integers(20, 34).map(lambda power: 1 << power))
    engine, half = (
        data.draw(st.sampled_from(["torch", "openvino", "ncnn"])),
        data.draw(st.booleans()),
    )
    found = choose_tile(config, extent, budget, engine=engine, half=half)
    config.geometry.output(found.shape)
    assert min(config.geometry.step(found.shape)) >= 1
    assert found.peak == tile_bytes(config, found.shape, engine, half)
    assert found.fits == (found.peak <= budget)
    smallest = config.geometry.size_for(config.geometry.stride)
    assert found.fits or found.shape == smallest
    # Nothing is read beyond what the image needs.
    needed = config.geometry.size_for(
        [e + s for e, s in zip(extent, config.geometry.stride, strict=True)]
    )
    assert all(have <= most for have, most in zip(found.shape, needed, strict=True))
    # More memory never costs time, but for what is about the same.
    more = choose_tile(config, extent, 4 * budget, engine=engine, half=half)
    assert more.flops <= 1.05 * found.flops + 1e9


def test_tiles_need_not_be_square() -> None:
    config = UNetConfig()
    tight = choose_tile(config, (2048, 2048), 2 << 30, engine="openvino", speed=2e11)
    square = choose_tile(config, (2048, 2048), 1 << 40, engine="openvino", speed=2e11)
    assert tight.shape[0] != tight.shape[1]
    assert tight.flops <= 1.06 * square.flops
    strip = choose_tile(config, (300, 6000), 2 << 30)
    assert strip.shape[0] < strip.shape[1]


def test_the_papers_network_in_two_gibibytes_costs_about_what_one_pass_does() -> None:
    config = UNetConfig()
    whole = choose_tile(config, (2048, 2048), 1 << 40)
    for half in (False, True):
        found = choose_tile(config, (2048, 2048), 2 << 30, engine="openvino", half=half)
        assert found.flops <= 1.1 * whole.flops


def test_a_budget_is_kept_by_the_plan_and_one_too_small_is_told() -> None:
    model = random_model(widths=(8, 16))
    image = np.zeros((3000, 3000), np.uint8)
    large = plan_job(image, model, Options(memory=1 << 30, engine="torch"))
    small = plan_job(image, model, Options(memory=150 << 20, engine="torch"))
    assert prod(small.plan.tile_shape) < prod(large.plan.tile_shape)
    assert small.remarks == large.remarks == ()
    none = plan_job(image, model, Options(memory=1000, engine="torch"))
    assert "more than there is for it" in none.remarks[0]
    with pytest.raises(OptionError, match="memory must be a whole number"):
        Options(memory=0)


def test_a_budget_of_its_own_is_a_share_of_what_is_free() -> None:
    assert 0 < memory_budget(CPU) <= free_memory(CPU)
    devices._learned.clear()


def test_the_next_image_gets_the_same_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for free in (int(22.3e9), int(22.3e9) + (20 << 20), int(21.9e9), int(16e9)):
        monkeypatch.setattr(devices, "free_memory", lambda _, free=free: free)
        found.append(memory_budget(CPU))
        assert free / 2 * 0.88 < found[-1] <= free / 2
    assert found[0] == found[1] == found[2] > found[3]
    # What a person asks for is what they get.
    assert memory_budget(CPU, 1_234_567_891) == 1_234_567_891


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No measurement yet, and none that lasts."""
    monkeypatch.setattr(speed, "_cache_file", lambda: tmp_path / "cache" / "speed.json")
    speed.operations_per_second.cache_clear()
    yield tmp_path / "cache" / "speed.json"
    speed.operations_per_second.cache_clear()


def test_a_measurement_is_made_once_and_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bool]] = []

    def measured(engine: str, half: bool, *_: Any) -> tuple[float, bool]:
        calls.append((engine, half))
        return 1e11, not half

    monkeypatch.setattr(speed, "_measured", measured)
    for half in (False, True):
        speed.operations_per_second.cache_clear()
        assert speed.operations_per_second("torch", half=half) == 1e11
        speed.operations_per_second.cache_clear()
        assert speed.operations_per_second("torch", half=half) == 1e11
    # One that no second run agreed with is not kept beyond the process.
    assert calls == [("torch", False), ("torch", True), ("torch", True)]
    assert list(json.loads(fresh.read_text()).values()) == [{"torch, float32, narrow": 1e11}]
    fresh.write_text("damaged")
    speed.operations_per_second.cache_clear()
    assert speed.operations_per_second("torch") == 1e11


def test_the_probe_measures_something_in_well_under_a_second(fresh: Path) -> None:
    for probe in speed._PROBES.values():
        found, _ = speed._measured("torch", False, *probe)
        assert 1e7 < found < 1e14


@pytest.mark.parametrize(
    ("speeds", "flops", "wanted"),
    [
        ({"torch": (1e11, 0), "openvino": (2e11, 0)}, 1e12, ("openvino", torch.float32)),
        ({"torch": (2e11, 0), "openvino": (1e11, 0)}, 3e10, ("torch", torch.float32)),
        # Loading another library takes longer than such a job.
        ({"torch": (1e11, 9e11), "openvino": (2e11, 0)}, 3e9, ("torch", torch.float32)),
        ({"torch": (1e11, 2e11), "openvino": (1e11, 4e11)}, 1e13, ("openvino", torch.bfloat16)),
        # Precision is not given up for a few per cent.
        ({"torch": (1e11, 1.1e11), "openvino": (0, 0)}, 1e13, ("torch", torch.float32)),
        ({"torch": (1e11, 0), "openvino": (2e11, 0), "ncnn": (3e11, 0)}, 1e13, "ncnn"),
        ({"openvino": (2e11, 4e11), "ncnn": (3e11, 0)}, 1e13, ("openvino", torch.bfloat16)),
        ({"openvino": (2e11, 4e11), "ncnn": (3.9e11, 0)}, 1e13, "ncnn"),
    ],
)
def test_automatic_takes_what_is_done_first(
    monkeypatch: pytest.MonkeyPatch, speeds: Any, flops: float, wanted: Any
) -> None:
    def measured(engine: str, *, half: bool = False, wide: bool) -> float:
        assert not wide
        return float(speeds.get(engine, (0, 0))[half])

    monkeypatch.setattr(speed, "operations_per_second", measured)
    monkeypatch.setattr(speed, "is_known", lambda *_: True)
    monkeypatch.setattr(speed, "have_openvino", lambda: True)
    monkeypatch.setattr(speed, "have_ncnn", lambda: True)
    config = UNetConfig(widths=(4, 8))
    way = choose_engine(config, lambda *_: flops, CPU, "auto", "auto")
    assert (way.engine, way.dtype) == (
        (wanted, torch.float32) if isinstance(wanted, str) else wanted
    )
    exact = choose_engine(config, lambda *_: flops, CPU, "auto", "float32")
    assert exact.dtype == torch.float32
    forced = choose_engine(config, lambda *_: flops, CPU, "torch", "bfloat16")
    assert (forced.engine, forced.dtype) == ("torch", torch.bfloat16)


def test_a_short_job_waits_for_no_measurement(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measured(engine: str, half: bool, *_: Any) -> tuple[float, bool]:
        calls.append(engine)
        return {"torch": 1e11, "openvino": 1e11}[engine] * (3 if half else 1), True

    def chosen(flops: float) -> tuple[str, torch.dtype]:
        way = choose_engine(UNetConfig(widths=(4, 8)), lambda *_: flops, CPU, "auto", "auto")
        return way.engine, way.dtype

    monkeypatch.setattr(speed, "_measured", measured)
    monkeypatch.setattr(speed, "have_ncnn", lambda: False)
    for have, taken in ((True, "openvino"), (False, "torch")):
        monkeypatch.setattr(speed, "have_openvino", lambda have=have: have)
        assert chosen(5e10) == (taken, torch.float32)
    assert not calls
    monkeypatch.setattr(speed, "have_openvino", lambda: True)
    assert chosen(5e11)[1] == torch.bfloat16
    assert sorted(calls) == ["openvino", "openvino", "torch", "torch"]
    # What is known by now holds for short ones, too.
    assert chosen(5e10)[1] == torch.bfloat16
    assert len(calls) == 4


def test_tiles_that_are_not_looked_at_are_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> list[Any]:
        return [
            choose_tile(config, extent, budget, engine=engine, speed=5e11)
            for config in (UNetConfig(widths=(8, 16, 32, 64)), UNetConfig())
            for extent in ((300, 300), (96, 3000), (2048, 2048))
            for budget in (64 << 20, 512 << 20, 1 << 40)
            for engine in ("torch", "openvino", "ncnn")
        ]

    found = chosen()
    monkeypatch.setattr(sizing, "_TOO_MUCH", float("inf"))
    assert found == chosen()
    # Of a tile and its mirror image, the one with more rows.
    square = [choose_tile(UNetConfig(), (n, n), 1 << 30, engine="openvino") for n in (1024, 2048)]
    assert all(one.shape[0] > one.shape[1] for one in square)


def test_who_needs_less_memory_may_be_done_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "operations_per_second", lambda *_, **__: 1e11)
    monkeypatch.setattr(speed, "_engines", lambda _: ["ncnn", "openvino"])
    work = {"ncnn": 3e13, "openvino": 2e13}
    way = choose_engine(UNetConfig(), lambda engine, _: work[engine], CPU, "auto", "float32")
    assert way.engine == "openvino"


def test_how_long_a_job_takes_is_told_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "operations_per_second", lambda *_, **__: 1e9)
    model = random_model(in_channels=1, widths=(16, 32, 64))
    image = np.broadcast_to(np.float32(0), (3, 1500, 1400))
    options = Options(engine="torch", precision="float32", memory=1 << 28, axes="TYX")
    job = plan_job(image, model, options)
    assert len(job.plan) > 1
    by_hand = plan_job(image, model, replace(options, tile_size=540))
    for one in (job, by_hand):
        each = [footprint(model.config, tile.read.shape).flops for tile in one.plan]
        assert one.expected == pytest.approx(3 * sum(each) / 1e9)
    assert len(by_hand.plan) > len(job.plan)
    part = plan_job(image, model, replace(options, region=np.s_[:1, :1500, :1400]))
    assert part.expected == pytest.approx(job.expected / 3)
    # What is over before it could be measured, or cannot be computed, is not guessed.
    assert plan_job(image[:, :64, :64], model, options).expected == 0
    monkeypatch.setattr(speed, "operations_per_second", lambda *_, **__: 0.0)
    assert plan_job(image, model, options).expected == 0


def test_more_memory_gives_ncnn_no_tile_that_is_slower() -> None:
    found = choose_tile(UNetConfig(), (8192, 8192), 1 << 40, engine="ncnn", speed=1e12)
    assert 5e5 < prod(found.shape) <= 1 << 20


def test_ncnn_is_for_planes_and_kernels_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "have_ncnn", lambda: True)
    assert "ncnn" in speed._engines(UNetConfig())
    assert "ncnn" not in speed._engines(UNetConfig(ndim=3, widths=(4, 8)))
    assert "ncnn" not in speed._engines(UNetConfig(widths=(4, 8), kernels=((5, 5), (3, 3))))
    with pytest.raises(OptionError, match="2-D models only"):
        choose_engine(UNetConfig(ndim=3), lambda *_: 1e9, CPU, "ncnn", "auto")
    with pytest.raises(OptionError, match="computes in float32"):
        choose_engine(UNetConfig(), lambda *_: 1e9, CPU, "ncnn", "bfloat16")
    found = choose_engine(UNetConfig(), lambda *_: 1e9, CPU, "ncnn", "auto")
    assert (found.engine, found.dtype) == ("ncnn", torch.float32)


def test_an_engine_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"openvino": ("OpenVINO", lambda: False), "ncnn": ("ncnn", lambda: False)}
    monkeypatch.setattr(speed, "_LIBRARIES", gone)
    for engine, (name, _) in gone.items():
        with pytest.raises(OptionError, match=f"pip install {engine}"):
            choose_engine(UNetConfig(), lambda *_: 1e9, CPU, engine, "auto")
        with pytest.raises(OptionError, match=f"{name} runs on the processor"):
            choose_engine(UNetConfig(), lambda *_: 1e9, torch.device("meta"), engine, "float32")
    monkeypatch.setattr(speed, "have_openvino", lambda: False)
    monkeypatch.setattr(speed, "have_ncnn", lambda: False)
    assert choose_engine(UNetConfig(), lambda *_: 1e9, CPU, "auto", "auto").engine == "torch"
    with pytest.raises(OptionError, match="engine must be one of"):
        Options(engine="tensorrt")


@pytest.mark.skipif(not have_openvino(), reason="OpenVINO is not installed")
def test_where_openvino_cannot_be_loaded_torch_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from napari_unet.predictors.torch_predictor import TorchPredictor
    from napari_unet.prepared import Prepared, Runtime

    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    ready = Prepared(random_model().network, Runtime(CPU, torch.float32, "openvino"))
    assert isinstance(ready.predictor, TorchPredictor)
    assert ready.runtime.engine == "torch"
    assert ready.remarks[0].endswith("PyTorch runs instead.")
