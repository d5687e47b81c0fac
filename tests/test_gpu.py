"""What needs an NVIDIA GPU: the same laws there, and memory that runs out in earnest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import random_model
from numpy.typing import NDArray
from training_support import small_recipe, small_training

from napari_unet import devices
from napari_unet.answers import classes, probabilities
from napari_unet.engine import run_tiles
from napari_unet.errors import Cancelled
from napari_unet.instances import classes_from
from napari_unet.options import Options
from napari_unet.predictors import kept
from napari_unet.predictors.fused import FusedUNet
from napari_unet.predictors.lean import LeanUNet
from napari_unet.prepared import Prepared, Runtime
from napari_unet.sample import sample_nuclei
from napari_unet.segmentation import segment, segment_steps
from napari_unet.sizing import tile_bytes
from napari_unet.tiling import TilePlan, plan_tiles, read_mirrored
from napari_unet.training.loop import train
from napari_unet.training.schedule import Optimisation
from napari_unet.training.targets import Targets
from napari_unet.verification import verify

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

GPU = torch.device("cuda")
WIDTHS = (16, 32, 64)
MODELS = {
    "plain": random_model(widths=WIDTHS),
    "batch norm": random_model(widths=WIDTHS, norm="batch", concat="up-skip"),
    "colours": random_model(widths=WIDTHS, in_channels=3, n_classes=1),
    "linear": random_model(widths=WIDTHS, up="linear", norm="batch", up_norm=True),
    "leaky": random_model(widths=WIDTHS, slope=0.1, norm="batch", norm_order="act-norm"),
    "activated": random_model(widths=WIDTHS, up_activation=True, kernels=((5, 3), (3, 3), (3, 1))),
    "padded": random_model(widths=WIDTHS, padding="same"),
    "volume": random_model(ndim=3, widths=(8, 16), pools=((1, 2, 2),)),
}
PRECISIONS = {
    "float32": Runtime(GPU, torch.float32),
    "tf32": Runtime(GPU, torch.float32, tf32=True),
    "bfloat16": Runtime(GPU, torch.bfloat16),
    "float16": Runtime(GPU, torch.float16),
}
# Largest difference from float32 on the processor, in standard deviations of the logits.
CLOSE = {"float32": 1e-4, "tf32": 0.03, "bfloat16": 0.2, "float16": 0.03}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    devices._learned.clear()
    yield
    devices._learned.clear()


def whole(ready: Prepared, image: NDArray[np.float32], plan: TilePlan) -> NDArray[Any]:
    """All tiles, put together."""
    out: NDArray[Any] | None = None
    for tile, part in run_tiles(ready, lambda w: read_of(image, w), plan, ready.runtime):
        if out is None:
            out = np.zeros((len(part), *plan.region.shape), part.dtype)
        out[(slice(None), *tile.write.slices)] += part
    assert out is not None
    return out


def read_of(image: NDArray[np.float32], window: Any) -> NDArray[np.float32]:
    return np.stack([read_mirrored(channel, window) for channel in image])


def image_for(model: Any) -> NDArray[np.float32]:
    shape = (5, 61, 83) if model.config.ndim == 3 else (150, 203)
    random = np.random.default_rng(0)
    return random.normal(size=(model.config.in_channels, *shape)).astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_network_of_the_processor(name: str, precision: str) -> None:
    """Tiled, in whatever precision, on either rewriting of the network."""
    model = MODELS[name]
    image = image_for(model)
    geometry = model.config.geometry
    plan = plan_tiles(image.shape[1:], geometry, geometry.size_for([32] * geometry.ndim))
    assert len(plan) > 3
    want = whole(Prepared(model.network, Runtime(torch.device("cpu"), torch.float32)), image, plan)
    ready = Prepared(model.network, PRECISIONS[precision])
    found = whole(ready, image, plan)
    assert isinstance(ready.predictor.network, FusedUNet)  # type: ignore[attr-defined]
    assert not ready.remarks
    assert np.abs(found - want).max() / want.std() < CLOSE[precision]
    # Seams: one tile gives the same, but for how sums are ordered.
    once = whole(ready, image, plan_tiles(image.shape[1:], geometry, 1 << 12))
    assert np.abs(found - once).max() / want.std() < CLOSE[precision]


@pytest.mark.parametrize("batch", [2, 3])
def test_tiles_of_one_call_do_not_meet(batch: int) -> None:
    model = MODELS["plain"]
    image = image_for(model)
    plan = plan_tiles(
        image.shape[1:], model.config.geometry, model.config.geometry.size_for((32, 48))
    )
    one, more = (
        whole(Prepared(model.network, Runtime(GPU, torch.float32, batch=n)), image, plan)
        for n in (1, batch)
    )
    assert np.abs(one - more).max() < 1e-4


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_classes_made_there_are_those_made_here(threshold: float | None) -> None:
    model = MODELS["batch norm"]
    image = image_for(model)
    plan = plan_tiles(image.shape[1:], model.config.geometry, 1 << 12)
    made = [
        whole(Prepared(model.network, PRECISIONS["float32"], answer), image, plan)
        for answer in (classes(threshold), probabilities)
    ]
    np.testing.assert_array_equal(made[0][0], classes_from(made[1], threshold))


def test_rewritten_it_takes_no_more_memory_than_planned() -> None:
    """Pixels, maps, weights and answers, with what torch keeps beside them."""
    model = random_model(widths=(32, 64, 128, 256))
    side = model.config.geometry.axes[0].below(1500)
    assert side is not None
    plan = plan_tiles((4 * side, side), model.config.geometry, side)
    for precision in ("bfloat16", "tf32"):
        runtime = PRECISIONS[precision]
        ready = Prepared(model.network, runtime, probabilities)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        for _ in run_tiles(ready, lambda w: np.zeros((1, *w.shape), np.float32), plan, runtime):
            pass
        peak = torch.cuda.max_memory_reserved() - before
        planned = tile_bytes(model.config, (side, side), "cuda", runtime.half)
        assert 0.85 < peak / planned < 1.15


def test_memory_that_runs_out_there() -> None:
    """torch is given 700 MiB, and the plan believes in 16 GiB."""
    image = np.tile(sample_nuclei()[0], (8, 8))[:3000, :3000]
    wanted = Options(device="cuda", precision="bfloat16", memory=16 << 30)
    want = segment(image, "nuclei", wanted)
    torch.cuda.empty_cache()
    whole_card = torch.cuda.get_device_properties(GPU).total_memory
    held = torch.cuda.memory_reserved() + (300 << 20)
    torch.cuda.set_per_process_memory_fraction(held / whole_card)
    try:
        found = segment(image, "nuclei", wanted)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("Memory ran out on the GPU" in remark for remark in found.report.remarks)
    assert np.count_nonzero(found.labels != want.labels) <= 1e-5 * image.size


def test_a_stop_leaves_nothing_behind() -> None:
    image = np.tile(sample_nuclei()[0], (4, 4))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    steps = segment_steps(image, "nuclei", Options(device="cuda", tile_size=332))
    next(steps)
    next(steps)
    steps.close()
    asked = iter(range(10_000))
    with pytest.raises(Cancelled):
        for _ in segment_steps(
            image, "nuclei", Options(device="cuda"), should_stop=lambda: next(asked) > 2
        ):
            pass
    del steps
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + (8 << 20)


def test_seams_of_the_bundled_model() -> None:
    image = np.tile(sample_nuclei()[0], (2, 2))
    for size in (332, 572):
        found = verify(image, "nuclei", device="cuda", tile_size=size)
        assert found.max_abs_logit_difference < 1e-4
        assert found.changed_labels == 0


def test_both_rewritings_are_one_network() -> None:
    model = random_model(widths=WIDTHS, norm="batch")
    given = torch.rand(1, 1, 92, 92, device=GPU)
    with torch.inference_mode(), devices.arithmetic(torch.device("cuda"), tf32=False):
        lean, fused = (made(model.network).to(GPU)(given) for made in (LeanUNet, FusedUNet))
    torch.testing.assert_close(fused, lean, rtol=1e-4, atol=1e-4)


def test_the_next_image_finds_the_room_that_the_last_one_had() -> None:
    """And after a while without one, other programs do."""
    kept.clear()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    image = np.tile(sample_nuclei()[0], (8, 8))[:3000, :3000]
    first, second = (segment(image, "nuclei", Options(device="cuda")).report for _ in range(2))
    assert second.tile_size == first.tile_size
    kept._rest()
    assert torch.cuda.memory_reserved() - before < 64 << 20


def test_what_others_told_torch_stays() -> None:
    cudnn: Any = torch.backends.cudnn

    def told() -> tuple[Any, ...]:
        return cudnn.conv.fp32_precision, cudnn.benchmark, torch.cuda.get_rng_state().tolist()

    before = told()
    segment(sample_nuclei()[0], "nuclei", Options(device="cuda", precision="float32"))
    train(**small_training(small_recipe(device="cuda"), dropout=0.5))
    assert told() == before


@pytest.mark.parametrize("precision", ["float32", "auto", "float16"])
def test_it_learns_there(precision: str) -> None:
    recipe = small_recipe(
        device="cuda", precision=precision, steps=60, every=60, targets=Targets(n_classes=2),
        optimisation=Optimisation(rate=0.03), average=0.8,
    )  # fmt: skip
    result = train(**small_training(recipe, widths=(8, 16)))
    losses = [loss for _, loss in result.curves.loss]
    assert np.mean(losses[-10:]) < losses[0] / 2


def test_numbers_beyond_float16_are_met_there() -> None:
    """In the fused network's own kernels, too."""
    model = random_model(widths=WIDTHS)
    with torch.no_grad():
        for parameter in model.network.down.parameters():
            parameter *= 30
    image = image_for(model)
    plan = plan_tiles(image.shape[1:], model.config.geometry, 92)
    ready = Prepared(model.network, PRECISIONS["float16"], probabilities)
    found = whole(ready, image, plan)
    assert ready.runtime.dtype == torch.float32
    assert np.isfinite(found).all()
