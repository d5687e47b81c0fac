"""What is made of logits on their device is what the rest of the program makes of probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import random_model
from scipy import special
from torch import Tensor

from napari_unet.answers import classes, is_no_number, logits, probabilities
from napari_unet.config import UNetConfig
from napari_unet.engine import run_tiles
from napari_unet.errors import ImageError
from napari_unet.instances import classes_from
from napari_unet.prepared import Prepared, Runtime
from napari_unet.segmentation import segment
from napari_unet.tiling import plan_tiles

CPU = torch.device("cpu")


def random_logits(n_classes: int, seed: int, spread: float = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(2, n_classes, 5, 7, generator=generator)


@given(st.integers(1, 6), st.integers(0, 99), st.sampled_from([None, 0.0, 0.3, 0.5, 0.9]))
def test_classes_are_those_of_the_probabilities(
    n_classes: int, seed: int, threshold: float | None
) -> None:
    found = random_logits(n_classes, seed)
    chosen = classes(threshold)(found).numpy()
    assert chosen.dtype == np.uint8
    for one, given_probabilities in zip(chosen, probabilities(found).numpy(), strict=True):
        np.testing.assert_array_equal(one[0], classes_from(given_probabilities, threshold))


@given(st.integers(1, 5), st.integers(0, 99))
def test_probabilities_against_scipy(n_classes: int, seed: int) -> None:
    found = random_logits(n_classes, seed)
    if n_classes == 1:
        want = np.concatenate([special.expit(-found.numpy()), special.expit(found.numpy())], 1)
    else:
        want = special.softmax(found.numpy(), axis=1)
    np.testing.assert_allclose(probabilities(found.bfloat16().float()).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(probabilities(found), want, rtol=1e-4, atol=1e-6)
    assert logits(found.bfloat16()).dtype == torch.float32


def test_the_first_of_equals_wins_and_many_classes_have_room() -> None:
    assert not classes()(torch.zeros(1, 3, 2, 2)).any()
    many = torch.zeros(1, 300, 1, 2)
    many[0, 299, 0, 0] = 1
    chosen = classes()(many)
    assert chosen.dtype == torch.int32
    assert chosen.flatten().tolist() == [299, 0]


@pytest.mark.parametrize("n_classes", [1, 3, 300])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_what_is_no_number_is_no_class(n_classes: int, threshold: float | None) -> None:
    found = torch.zeros(1, n_classes, 1, 3)
    found[0, -1, 0, 1] = float("nan")
    chosen = classes(threshold)(found).numpy()
    np.testing.assert_array_equal(is_no_number(chosen)[0, 0, 0], [False, True, False])


def test_a_model_that_gives_no_numbers_is_an_error() -> None:
    model = random_model(widths=(4, 4))
    with torch.no_grad():
        model.network.head.bias.fill_(float("nan"))  # type: ignore[operator, union-attr]
    for output in ("classes", "instances", "probabilities"):
        with pytest.raises(ImageError, match="NaN"):
            segment(np.ones((30, 30), np.float32), model, output=output)


@pytest.mark.parametrize("answer", [logits, probabilities, classes(), classes(0.5)])
def test_float16_gives_way_where_numbers_are_too_large(answer: object) -> None:
    """Half way through, and of the tiles before none is computed again."""
    config = UNetConfig(widths=(1, 1), n_classes=2)
    loss = config.geometry.halo[0]
    calls = []

    def network(pixels: Tensor) -> Tensor:
        calls.append(pixels.dtype)
        inside = pixels[:, :, loss:-loss, loss:-loss]
        # Beyond 65504 of float16 the difference is of infinities.
        large = 60 * inside * inside
        return torch.cat([large - large, inside], 1)

    image = np.ones((16, 60), np.float32)
    image[:, 40:] = 1000
    plan = plan_tiles(image.shape, config.geometry, (32, 24))
    ready = Prepared(network, Runtime(CPU, torch.float16), answer)  # type: ignore[arg-type]
    from napari_unet.tiling import read_mirrored

    tiles = list(run_tiles(ready, lambda w: read_mirrored(image, w)[None], plan, ready.runtime))
    assert [tile for tile, _ in tiles] == list(plan)
    assert not any(np.isnan(part).any() or (part == 255).any() for _, part in tiles)
    assert ready.remarks == [
        "Numbers beyond float16 came up in the network; it went on in float32."
    ]
    narrow = calls.count(torch.float16)
    assert 1 < narrow < len(plan)
    # One was computed twice.
    assert len(calls) == len(plan) + 1
