"""Keras files: the logits are Keras's own, whatever the graph is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from keras_networks import Design, build, logits, write

from napari_unet.checkpoint import Model, load_model, save_model
from napari_unet.errors import CheckpointError
from napari_unet.intensity import fit_intensity

DESIGNS: dict[str, Design] = {
    "karolzak": Design(),
    "karolzak at its own size": Design(size=(60, 76), head="sigmoid", classes=1),
    "depth 0": Design(widths=(3,)),
    "depth 1": Design(widths=(3, 5), classes=3),
    "depth 4": Design(widths=(2, 3, 2, 4, 3)),
    "rgb, skip first": Design(channels=3, order="skip-up"),
    "sliced": Design(crop="slicing"),
    "sliced to a size": Design(crop="stop", size=(60, 60)),
    "sliced behind an ellipsis": Design(crop="ellipsis"),
    "centre crop": Design(crop="centre", size=(60, 44)),
    "cropped in two steps": Design(crop="twice", widths=(3, 4)),
    "batch norm before": Design(norm="before", activation="layer"),
    "batch norm before, operations": Design(norm="before", activation="operation", slope=0.1),
    "batch norm after": Design(norm="after"),
    "batch norm after, leaky": Design(norm="after", activation="leaky", slope=0.3),
    "batch norm, large epsilon": Design(norm="after", epsilon=0.1),
    "batch norm, tiny epsilon": Design(norm="after", epsilon=1e-7),
    "batch norm alone": Design(norm="before", activation="relu", affine=False, bias=False),
    "leaky argument": Design(activation="argument", slope=0.2),
    "leaky function": Design(activation="function", slope=0.05),
    "sloped ReLU": Design(activation="relu", slope=0.25),
    "ReLU behind the up-convolution": Design(up_activation=True),
    "all of it": Design(
        norm="before", activation="leaky", slope=0.1, up_activation=True, up_norm=True
    ),
    "norm behind the up-convolution": Design(norm="after", up_norm=True, up_activation=True),
    "nearest": Design(up="nearest"),
    "bilinear": Design(up="bilinear"),
    "bilinear, active": Design(up="bilinear", up_activation=True, norm="after", up_norm=True),
    "point, then nearest": Design(up="early"),
    "interpolated without a convolution": Design(up="bare"),
    "linear": Design(head="linear"),
    "softmax layer": Design(head="layer"),
    "sigmoids": Design(head="sigmoid", classes=3),
    "3-D": Design(ndim=3, widths=(2, 3)),
    "3-D, all of it": Design(
        ndim=3, widths=(2, 3), norm="before", activation="relu", crop="slicing", pools=(1, 2, 2),
        order="skip-up", channels=2,
    ),
    "3-D, interpolated": Design(ndim=3, widths=(2, 3), up="nearest"),
    "padded": Design(padding="same", widths=(2, 3)),
    "padded, batch norm": Design(padding="same", widths=(2, 3), norm="before", activation="layer"),
    "channels first": Design(channels_first=True, crop="slicing", order="skip-up", channels=2),
    "channels first, batch norm": Design(channels_first=True, norm="after", up="bilinear"),
    "a model in a model": Design(nested="functional", norm="after"),
    "a model in a sequence": Design(nested="sequential"),
}  # fmt: skip


def image_for(model: Model) -> np.ndarray:
    size = model.config.geometry.size_for(tuple(2 * s for s in model.config.geometry.stride))
    return np.random.default_rng(1).random((1, model.config.in_channels, *size), np.float32)


def assert_same_logits(model: Model, judge: Any, design: Design) -> None:
    image = image_for(model)
    if design.size:
        image = np.random.default_rng(1).random((1, design.channels, *design.size), np.float32)
    with torch.inference_mode():
        ours = model.network(torch.from_numpy(image)).numpy()
    theirs = logits(judge, image, channels_first=design.channels_first)
    assert ours.shape == theirs.shape
    halo = model.config.geometry.halo if model.config.padding == "same" else (0,) * design.ndim
    inside = (..., *(slice(h, -h or None) for h in halo))
    assert ours[inside].size
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", DESIGNS)
def test_logits_are_kerass_own_and_survive_conversion(name: str, tmp_path: Path) -> None:
    design = DESIGNS[name]
    judge = build(design)
    files = write(judge, tmp_path)
    models = [load_model(files[".keras"]), load_model(files[".h5"])]
    for model in models:
        assert model.origin is not None
        assert model.origin.family == "Keras functional model"
        # All that the graph says is read; only what no graph says is assumed.
        assert set(model.origin.assumed) == {"normalisation", "shift", "foreground", "contour"}
        assert model.origin.read["padding"] == design.padding
        assert_same_logits(model, judge, design)
    before, after = (model.network.state_dict() for model in models)
    assert all(torch.equal(before[key], after[key]) for key in before | after)

    native = save_model(tmp_path / "n.safetensors", models[0].network, models[0].card)
    again = load_model(native)
    assert again.card == models[0].card
    assert again.origin is None
    after = again.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before | after)


# What weights alone do not say, for designs that differ from what is assumed of them.
ALONE: dict[str, dict[str, object]] = {
    "karolzak": {},
    "depth 0": {},
    "depth 4": {},
    "rgb, skip first": {"order": "skip-up"},
    "batch norm before": {},
    "batch norm after": {"norm-order": "act-norm"},
    "all of it": {"slope": 0.1, "up-activation": True},
    "norm behind the up-convolution": {"norm-order": "act-norm", "up-activation": True},
    "nearest": {},
    "bilinear": {"up": "linear"},
    "3-D": {},
    "padded": {"padding": "same"},
    "a model in a model": {"norm-order": "act-norm"},
}


@pytest.mark.parametrize("name", ALONE)
def test_weights_alone_are_matched_by_their_order(name: str, tmp_path: Path) -> None:
    design, assume = DESIGNS[name], ALONE[name]
    judge = build(design)
    model = load_model(write(judge, tmp_path)[".weights.h5"], assume=assume)
    assert model.origin is not None
    assert model.origin.format == "Keras weights"
    assert set(model.origin.given) == set(assume)
    if design.norm != "none":
        assert "epsilon" in model.origin.warnings[0]
    if model.config.depth and design.padding == "valid":
        assert model.origin.read["padding"] == "valid"  # it has layers that crop
    assert_same_logits(model, judge, design)


def legacy_weights(source: Path, target: Path) -> Path:
    """Weights alone as Keras 2 saved them: the groups of a model's file, at the root."""
    with h5py.File(source) as model, h5py.File(target, "w") as file:
        weights = model["model_weights"]
        for key in weights:
            weights.copy(key, file)
        for key, value in weights.attrs.items():
            file.attrs[key] = value
    return target


@pytest.mark.parametrize("name", ALONE)
def test_weights_that_keras_2_saved_alone(name: str, tmp_path: Path) -> None:
    design, assume = DESIGNS[name], dict(ALONE[name])
    judge = build(design)
    path = legacy_weights(write(judge, tmp_path)[".h5"], tmp_path / "old.h5")
    if design.norm != "none" and not design.nested:
        # The order of its layers tells where the norms stand.
        assume.pop("norm-order", None)
    if design.padding == "same":
        assert assume.pop("padding") == "same"  # none of its layers crops
    model = load_model(path, assume=assume)
    assert model.origin is not None
    assert model.config.padding == design.padding
    assert_same_logits(model, judge, design)


def test_leaky_layers_of_weights_alone_take_kerass_slope_and_say_so(tmp_path: Path) -> None:
    files = write(judge := build(design := Design(activation="LeakyReLU")), tmp_path)
    for path in (files[".weights.h5"], legacy_weights(files[".h5"], tmp_path / "old.h5")):
        model = load_model(path)
        assert model.origin is not None
        assert model.origin.assumed["slope"] == "0.3"
        assert ["the slope of leaky_re_lu" in text for text in model.origin.warnings] == [True]
        assert_same_logits(model, judge, design)
        assert load_model(path, assume={"slope": 0.1}).config.slope == 0.1


@pytest.mark.parametrize(
    ("settings", "layer"),
    [
        ({"activation": "ELU"}, "elu"),
        ({"activation": "PReLU"}, "p_re_lu"),
        ({"pooling": "AveragePooling"}, "average_pooling2d"),
        ({"norm": "before", "norm_kind": "LayerNormalization"}, "layer_normalization"),
        ({"norm": "after", "norm_kind": "GroupNormalization"}, "group_normalization"),
    ],
)
def test_weights_alone_of_other_layers_are_refused(
    settings: dict[str, Any], layer: str, tmp_path: Path
) -> None:
    files = write(build(Design(widths=(3, 4), **settings)), tmp_path)
    for path in (files[".weights.h5"], legacy_weights(files[".h5"], tmp_path / "old.h5")):
        with pytest.raises(CheckpointError, match=f"its layer {layer} "):
            load_model(path)


@pytest.mark.parametrize("settings", [{"activation": "PReLU"}, {"norm_kind": "LayerNormalization"}])
def test_arrays_of_no_known_kind_are_refused_whatever_their_layer_is_called(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    judge = build(Design(widths=(3, 4), norm="before", **settings))
    for number, layer in enumerate(judge.layers):
        layer.name = f"own_{number}"
    path = legacy_weights(write(judge, tmp_path)[".h5"], tmp_path / "old.h5")
    with pytest.raises(CheckpointError, match=r"neither a convolution's nor a batch norm's"):
        load_model(path)


def test_layers_whose_names_say_nothing_are_told(tmp_path: Path) -> None:
    judge = build(Design(widths=(3, 4)))
    next(layer for layer in judge.layers if "pooling" in layer.name).name = "shrink"
    path = legacy_weights(write(judge, tmp_path)[".h5"], tmp_path / "old.h5")
    model = load_model(path)
    assert model.origin is not None
    assert ["what these layers do: shrink;" in text for text in model.origin.warnings] == [True]


def test_a_model_says_what_it_is(tmp_path: Path) -> None:
    judge = build(Design(crop="slicing"))
    model = load_model(write(judge, tmp_path)[".keras"])
    assert model.card.name == "tiny_unet"
    assert model.card.provenance["written by"].startswith("Keras 3")
    assert model.origin is not None
    assert model.origin.read["order"] == "up-skip"


@pytest.mark.parametrize(
    ("scale", "offset", "kind", "shift"),
    [
        (1 / 255, 0.0, "dtype-range", 0.0),
        (1 / 127.5, -1.0, "dtype-range", -0.5),
        (0.01, 0.25, "none", 25.0),
        (1.0, 0.0, "none", 0.0),
    ],
)
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_rescaling_is_normalisation(
    tmp_path: Path, scale: float, offset: float, kind: str, shift: float, padding: str
) -> None:
    design = Design(widths=(3, 4), rescaling=(scale, offset), padding=padding)
    judge = build(design)
    model = load_model(write(judge, tmp_path)[".keras"])
    assert model.origin is not None
    assert model.origin.read["normalisation"] == kind
    assert model.card.normalisation.shift == pytest.approx(shift)
    image = np.random.default_rng(2).integers(0, 256, image_for(model).shape, np.uint8)
    ready = fit_intensity(image[0, 0], model.card.normalisation).apply(image[0])
    with torch.inference_mode():
        ours = model.network(torch.from_numpy(ready)[None]).numpy()
    np.testing.assert_allclose(ours, logits(judge, image.astype(np.float32)), atol=1e-3, rtol=1e-4)


def test_a_size_that_drops_rows_is_run_at_others(tmp_path: Path) -> None:
    """Keras pools odd maps; what it crops first is the same, the last rows are lost."""
    judge = build(Design(size=(61, 63), crop="stop"))
    model = load_model(write(judge, tmp_path)[".keras"])
    assert model.origin is not None
    assert "61 x 63 px makes the poolings drop odd rows" in model.origin.warnings[0]
    assert "60 x 60 px" in model.origin.warnings[0]
    image = np.random.default_rng(0).random((1, 1, 61, 63), np.float32)
    with torch.inference_mode():
        ours = model.network(torch.from_numpy(image[..., :60, :60].copy())).numpy()
    np.testing.assert_allclose(ours, logits(judge, image)[..., :20, :20], atol=1e-4, rtol=1e-4)


def test_outputs_that_are_no_softmax_are_told(tmp_path: Path) -> None:
    for head, classes, words in (("sigmoid", 3, "are sigmoids"), ("softmax", 1, "always 1")):
        judge = build(Design(widths=(2,), head=head, classes=classes))
        model = load_model(write(judge, tmp_path)[".h5"])
        assert model.origin is not None
        assert words in model.origin.warnings[0]
