"""The engine: exact seams, one tile at a time, nothing left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_model
from numpy.typing import NDArray
from torch import Tensor

from napari_unet.checkpoint import Model
from napari_unet.config import UNetConfig
from napari_unet.devices import is_out_of_memory
from napari_unet.engine import run_tiles
from napari_unet.errors import Cancelled
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.ncnn_predictor import have_ncnn
from napari_unet.predictors.openvino_predictor import have_openvino
from napari_unet.prepared import Prepared, Runtime
from napari_unet.tiling import plan_tiles, read_mirrored
from napari_unet.verification import verify

CPU = Runtime(torch.device("cpu"), torch.float32)
TOLERANCE = 1e-4
ENGINES = ["torch", *["openvino"] * have_openvino(), *["ncnn"] * have_ncnn()]

MODELS = {
    "plain": random_model(),
    "batch norm": random_model(norm="batch", slope=0.1, up_activation=True),
    "norm last": random_model(norm="batch", norm_order="act-norm", concat="up-skip"),
    "nearest": random_model(up="nearest"),
    "linear": random_model(up="linear"),
    "deep": random_model(widths=(2, 3, 3, 4, 4)),
    "thirds": random_model(pools=((3, 2), (2, 3)), kernels=((5, 3), (3, 1), (3, 3))),
    "one class": random_model(n_classes=1, widths=(4, 8)),
    "volume": random_model(ndim=3, widths=(3, 4)),
    "coarse planes": random_model(
        ndim=3,
        widths=(3, 4, 4),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        pools=((1, 2, 2), (2, 2, 2)),
    ),
}


def check_exact(model: Model, image: NDArray[Any], tile_size: int | None, **more: Any) -> None:
    found = verify(image, model, tile_size=tile_size, **more)
    assert found.pixels == image.size
    assert found.max_abs_logit_difference <= TOLERANCE
    # Rounding can decide between two classes that are all but equal; nothing else may change.
    assert found.changed_labels <= found.pixels * 1e-3


@settings(max_examples=60)
@given(st.data())
def test_tiled_equals_whole(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(MODELS)))
    model = MODELS[name]
    ndim = model.config.ndim
    most = 120 if ndim == 2 else 24
    shape = data.draw(st.tuples(*[st.integers(1, most)] * ndim))
    smallest = max(model.config.geometry.size_for(model.config.geometry.stride))
    tile_size = data.draw(st.integers(smallest, smallest + (80 if ndim == 2 else 8)))
    image = np.random.default_rng(0).normal(size=shape)
    # ncnn is for planes.
    engine = data.draw(st.sampled_from([one for one in ENGINES if ndim == 2 or one != "ncnn"]))
    check_exact(model, image, tile_size, axes="ZYX"[-ndim:], engine=engine)


@settings(max_examples=20)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.floats(0.3, 2.0), st.floats(0.3, 2.0)),
)
def test_tiled_equals_whole_when_rescaled(
    shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    plain = MODELS["plain"]
    card = type(plain.card)("scaled", plain.config, spacing=(1.0, 1.0))
    image = np.random.default_rng(0).normal(size=shape)
    found = verify(image, Model(card, plain.network), tile_size=60, spacing=spacing)
    assert found.max_abs_logit_difference <= TOLERANCE


@pytest.mark.parametrize("tile_size", [None, 572, 1084])
def test_tiled_equals_whole_on_a_large_image(tile_size: int | None) -> None:
    image = np.random.default_rng(0).normal(size=(2000, 3000)).astype(np.float32)
    check_exact(random_model(widths=(4, 8, 8, 8)), image, tile_size)


@pytest.mark.parametrize("engine", ENGINES)
def test_tiled_equals_whole_where_there_are_many_channels(engine: str) -> None:
    """Wide enough for algorithms that share arithmetic between pixels, on either side of a seam."""
    image = np.random.default_rng(0).normal(size=(333, 421)).astype(np.float32)
    model = random_model(widths=(24, 64, 64), norm="batch")
    check_exact(model, image, 150, engine=engine, precision="float32")


def test_tiles_off_the_grid_would_change_the_result() -> None:
    """What makes the law above worth having: native steps shift the pooling phase."""
    model = random_model(widths=(4, 4, 4, 4, 4))
    image = np.random.default_rng(0).normal(size=(1, 1, 572 + 388, 572)).astype(np.float32)
    network = LeanUNet(model.network)
    with torch.inference_mode():
        whole, native = network(torch.from_numpy(image[:, :, : 572 + 384])), {}
        for step in (384, 388):
            tile = network(torch.from_numpy(image[:, :, step : step + 572]))
            same = min(whole.shape[2] - step, tile.shape[2])
            native[step] = (tile[:, :, :same] - whole[:, :, step : step + same]).abs().max()
    assert native[384] <= TOLERANCE
    assert native[388] > 100 * TOLERANCE


def engine(network: Any, image: NDArray[Any], config: UNetConfig, **more: Any) -> Any:
    plan = plan_tiles(image.shape, config.geometry, config.geometry.size_for((8, 8)))
    return run_tiles(
        network, lambda w: read_mirrored(image, w)[None].astype(np.float32), plan, CPU, **more
    )


def test_a_network_that_adds_one_gives_the_image_plus_one() -> None:
    """Any callable will do: here a crop that stands in for the network."""
    config = UNetConfig(widths=(1, 1))
    image = np.arange(30.0 * 41).reshape(30, 41)
    loss = config.geometry.halo[0]

    def network(pixels: Tensor) -> Tensor:
        return pixels[:, :, loss:-loss, loss:-loss] + 1

    out = np.zeros(image.shape)
    for tile, logits in engine(network, image, config):
        out[tile.write.slices] += logits[0]
    np.testing.assert_array_equal(out, image + 1)


def test_nothing_is_held_between_tiles() -> None:
    model = MODELS["plain"]
    tiles = engine(model.network, np.zeros((40, 40)), model.config, should_stop=lambda: False)
    next(tiles)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert not any(m._forward_pre_hooks for m in model.network.modules())
    tiles.close()


def test_stopping_is_noticed_inside_a_tile() -> None:
    model, asked = MODELS["deep"], iter(range(100))
    with pytest.raises(Cancelled):
        next(
            engine(
                model.network, np.zeros((4, 4)), model.config, should_stop=lambda: next(asked) > 5
            )
        )
    assert next(asked) == 7
    assert not any(m._forward_pre_hooks for m in model.network.modules())


def test_other_errors_of_the_network_are_not_hidden() -> None:
    def network(_: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="do not match"):
        next(engine(network, np.zeros((40, 40)), UNetConfig(widths=(1, 1))))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_bfloat16_is_close_and_float32_repeats_to_the_bit() -> None:
    model = random_model(widths=(8, 16))
    image = np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32)
    plan = plan_tiles(image.shape, model.config.geometry, 60)

    def logits(dtype: torch.dtype) -> NDArray[np.float32]:
        runtime = Runtime(torch.device("cpu"), dtype)
        network = Prepared(model.network, runtime)
        parts = run_tiles(network, lambda w: read_mirrored(image, w)[None], plan, runtime)
        return np.concatenate([part.ravel() for _, part in parts])

    once, twice, half = logits(torch.float32), logits(torch.float32), logits(torch.bfloat16)
    np.testing.assert_array_equal(once, twice)
    assert 0 < np.abs(half - once).max() < 0.1 * np.abs(once).max()
