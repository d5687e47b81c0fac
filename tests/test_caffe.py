"""Freiburg's and Caffe's files: the same logits as OpenCV computes, and their sidecars."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from caffe_networks import (
    Array,
    Caffe,
    caffemodel,
    interpreted,
    prototxt,
    random_weights,
    write_h5,
    write_modeldef,
)

from napari_unet.checkpoint import Model, load_model
from napari_unet.errors import CheckpointError
from napari_unet.importers.caffe_text import layers_of
from napari_unet.importers.prototxt import parse_prototxt
from napari_unet.intensity import Normalisation

CONFIGURATIONS = {
    "as the plug-in makes them": Caffe(),
    "phseg_v5": Caffe((2, 4, 4, 6, 8), (4, 4, 4, 6), slope=0.0),
    "no dropout, two channels": Caffe((4, 3), channels=2, classes=3, dropout=False),
    "skip first, plain up-convolution": Caffe(up_first=False, up_relu=False, slope=0.02),
    "wide up-convolution": Caffe((3, 4, 6), (7, 5)),
    "shift": Caffe((3, 5), shift=-0.5),
}


def size_of(model: Model) -> tuple[int, ...]:
    return model.config.geometry.size_for(tuple(2 * s for s in model.config.geometry.stride))


def opencv_logits(folder: Path, net: Caffe, content: bytes, image: Array) -> Array:
    import cv2

    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("this OpenCV reads no Caffe networks")
    (folder / "judge.prototxt").write_text(prototxt(net, image.shape[2:]))
    (folder / "judge.caffemodel").write_bytes(content)
    judge = cv2.dnn.readNetFromCaffe(
        str(folder / "judge.prototxt"), str(folder / "judge.caffemodel")
    )
    judge.setInput(image)
    return np.asarray(judge.forward("score"))


def logits(model: Model, image: Array) -> Array:
    with torch.inference_mode():
        return model.network(torch.from_numpy(image)).numpy()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_those_of_opencv(name: str, tmp_path: Path) -> None:
    net = CONFIGURATIONS[name]
    weights = random_weights(net)
    content = caffemodel(net, weights)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    model = load_model(path)
    assert model.origin is not None
    shape = (1, net.channels, *size_of(model))
    image = np.random.default_rng(1).random(shape, np.float32)
    judged = opencv_logits(tmp_path, net, content, image)
    np.testing.assert_allclose(logits(model, image + np.float32(net.shift)), judged, atol=1e-4)
    assert model.config.up_widths == net.ups
    assert model.origin.read["order"] == ("up-skip" if net.up_first else "skip-up")
    assert float(model.origin.read["slope"]) == pytest.approx(net.slope)
    assert model.card.normalisation.shift == net.shift

    # The same weights in HDF5, and everything else from the definition beside them.
    h5 = write_h5(tmp_path / "net.caffemodel.h5", net, weights)
    write_modeldef(tmp_path / "net.modeldef.h5", net)
    again = load_model(h5)
    assert again.config == model.config
    assert np.array_equal(logits(again, image), logits(model, image))
    assert again.origin is not None
    assert not {"padding", "order", "slope", "up-activation", "shift"} & set(again.origin.assumed)


COARSE = Caffe(
    (2, 3, 4), dims=3, crops=False, shift=-0.5, classes=3,
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), pools=((1, 2, 2), (2, 2, 2)),
)  # fmt: skip


@pytest.mark.parametrize(
    "net",
    [
        COARSE,
        Caffe((2, 3), dims=3, crops=False, slope=0.0),
        Caffe((3, 4, 5), (6, 2), crops=False),
        Caffe((4,), classes=3, score="conv_d0c-score"),
        Caffe((2, 3), kernels=((1, 3), (3, 3)), pools=((1, 2),), crops=False),
    ],
    ids=["coarse planes", "volume", "no crop layers", "one level", "one axis"],
)
def test_logits_are_those_of_the_layers_one_by_one(net: Caffe, tmp_path: Path) -> None:
    weights = random_weights(net)
    path = write_h5(tmp_path / "net.caffemodel.h5", net, weights, compression="gzip")
    bare = load_model(path)
    shape = (1, net.channels, *size_of(bare))
    image = np.random.default_rng(1).random(shape, np.float32)
    judged = interpreted(net, weights, image)
    write_modeldef(tmp_path / "net.modeldef.h5", net)
    model = load_model(path)
    shifted = image + np.float32(net.shift)
    np.testing.assert_allclose(logits(model, shifted), judged, atol=1e-4)
    if net.slope == 0.1:  # the habit
        assert np.array_equal(logits(bare, shifted), logits(model, shifted))
    binary = tmp_path / "net.caffemodel"
    binary.write_bytes(caffemodel(net, weights))
    assert np.array_equal(logits(load_model(binary), shifted), logits(model, shifted))


@pytest.mark.parametrize("style", ["packed", "unpacked", "double", "legacy"])
@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_every_form_of_a_caffemodel_is_one_network(
    tmp_path: Path, style: str, v1: bool, graph: bool
) -> None:
    net = Caffe((3, 5), crops=False, slope=0.0)
    weights = random_weights(net)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(net, weights, style=style, v1=v1, graph=graph, splits=graph))
    model = load_model(path)
    assert model.origin is not None
    expected = {"order": "up-skip", "up-activation": "yes", "slope": "0", "padding": "valid"}
    told = model.origin.read if graph else model.origin.assumed
    assert {key: told[key] for key in expected} == expected
    state = model.network.state_dict()
    assert np.array_equal(state["down.0.0.weight"], weights["conv_d0a-b"][0])
    assert np.array_equal(state["up.0.0.bias"], weights["upconv_d1c_u0a"][1])
    assert np.array_equal(state["head.weight"], weights["conv_u0d-score"][0])


def test_a_shift_in_the_plug_ins_own_layer_is_assumed_and_told(tmp_path: Path) -> None:
    net = Caffe((3, 5), shift=-0.25)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel(net, random_weights(net), plugin=True))
    model = load_model(path)
    assert model.origin is not None
    assert model.origin.assumed["shift"] == "-0.5"
    assert model.card.normalisation == Normalisation("min-max", shift=-0.5)
    assert ["its layer shift adds to the image" in text for text in model.origin.warnings] == [True]
    assert load_model(path, assume={"shift": -0.25}).card.normalisation.shift == -0.25


def test_without_a_definition_the_habits_are_assumed(tmp_path: Path) -> None:
    net = Caffe((3, 4, 6), score="conv_u0d-score_new")
    model = load_model(write_h5(tmp_path / "a.caffemodel.h5", net, random_weights(net)))
    assert model.origin is not None
    assert model.origin.family == "Freiburg U-Net"
    habit = {
        "slope": "0.1", "up-activation": "yes", "order": "up-skip", "padding": "valid",
        "normalisation": "min-max", "shift": "-0.5",
    }  # fmt: skip
    assert {key: model.origin.assumed[key] for key in habit} == habit
    other = load_model(tmp_path / "a.caffemodel.h5", assume={"slope": 0, "shift": 0})
    assert (other.config.slope, other.card.normalisation.shift) == (0.0, 0.0)


def test_volumes_with_coarse_planes(tmp_path: Path) -> None:
    net = COARSE
    path = write_h5(tmp_path / "v.caffemodel.h5", net, random_weights(net), compression="gzip")
    write_modeldef(tmp_path / "v.modeldef.h5", net, element_size_um=[0.5, 0.25, 0.25])
    model = load_model(path)
    assert model.config.ndim == 3
    assert model.config.kernels == net.kernels
    assert model.config.pools == net.pools
    assert model.card.spacing == (0.5, 0.25, 0.25)
    assert model.card.normalisation.kind == "min-max"
    assert model.card.normalisation.shift == -0.5
    assert [info.name for info in model.card.classes] == ["Background", "Cell 1", "Cell 2"]
    assert [info.role for info in model.card.classes] == ["background", "foreground", "foreground"]
    assert model.card.name == "a net"
    assert model.card.provenance["description"] == "of nothing"


def test_missing_crops_and_odd_channels_are_told_level_by_level(tmp_path: Path) -> None:
    """The sizes of the paper's drawing; Freiburg's Caffe crops inside its concatenation."""
    net = Caffe((2, 2, 2, 2, 2), (2, 1, 1, 1), crops=False)
    path = write_h5(tmp_path / "n.caffemodel.h5", net, random_weights(net))
    write_modeldef(tmp_path / "n.modeldef.h5", net)
    told = load_model(path).card.provenance
    for words in (
        "at level 3 64 x 64 meets 56 x 56: crop 4 per side",
        "at level 2 136 x 136 meets 104 x 104: crop 16 per side",
        "at level 1 280 x 280 meets 200 x 200: crop 40 per side",
        "at level 0 568 x 568 meets 392 x 392: crop 88 per side",
    ):
        assert words in told["crops"]
    assert told["up-convolutions"].endswith("to level 0 it gives 2 channels for 2, not 1")
    write_modeldef(tmp_path / "n.modeldef.h5", dataclasses.replace(net, crops=True))
    assert "crops" not in load_model(path).card.provenance


def test_elsewhere_missing_crops_are_an_error(tmp_path: Path) -> None:
    net = Caffe((2, 2, 2, 2, 2), crops=False)
    content = caffemodel(net, random_weights(net))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content.replace(b"conv_", b"mine_"))
    with pytest.raises(CheckpointError, match=r"level 3: .* crop 4 per side.*level 0: .* crop 88"):
        load_model(path)
    cropped = dataclasses.replace(net, crops=True)
    content = caffemodel(cropped, random_weights(net))
    path.write_bytes(content.replace(b"conv_", b"mine_"))
    assert load_model(path).config.concat == "up-skip"


def test_neighbours_are_found(tmp_path: Path) -> None:
    net = Caffe((3, 5), slope=0.25)
    weights = random_weights(net)
    definition = write_modeldef(tmp_path / "net.modeldef.h5", net)
    with pytest.raises(CheckpointError, match=r"put the model's \.caffemodel\.h5 file beside it"):
        load_model(definition)
    path = write_h5(tmp_path / "snapshot_iter_100.caffemodel.h5", net, weights)
    for either in (path, definition):  # the only one of its kind is taken
        assert load_model(either).config.slope == 0.25
    write_modeldef(tmp_path / "other.modeldef.h5", net)
    model = load_model(path)  # of two strangers none
    assert model.origin is not None
    assert "slope" in model.origin.assumed
    write_modeldef(tmp_path / "snapshot_iter_100.modeldef.h5", dataclasses.replace(net, slope=0.5))
    assert load_model(path).config.slope == 0.5  # of the same name, before all others


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"padding": "zero"}, "zeros beyond the edge"),
        ({"normalization_type": np.int32(3)}, "divided by their largest value"),
        ({"classNames": ["one"]}, "names 1 classes"),
    ],
)
def test_what_differs_is_warned_of(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    net = Caffe((3, 5))
    path = write_h5(tmp_path / "n.caffemodel.h5", net, random_weights(net))
    write_modeldef(tmp_path / "n.modeldef.h5", net, **fields)
    model = load_model(path)
    assert model.origin is not None
    assert words in " ".join(model.origin.warnings)


@pytest.mark.parametrize(("number", "kind"), [(0, "none"), (1, "min-max"), (2, "mean-std")])
def test_normalisation_is_read(tmp_path: Path, number: int, kind: str) -> None:
    net = Caffe((3, 5))
    path = write_h5(tmp_path / "n.caffemodel.h5", net, random_weights(net))
    write_modeldef(
        tmp_path / "n.modeldef.h5", net, normalization_type=number, without=["model_prototxt"],
        element_size_um=0.3, downsampleFactor=2, padInput=12, padOutput=-4,
    )  # fmt: skip
    model = load_model(path)
    assert model.origin is not None
    assert model.card.normalisation.kind == kind == model.origin.read["normalisation"]
    assert model.origin.assumed["shift"] == "-0.5"  # only the definition's layers say it
    assert model.card.spacing == (0.3, 0.3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_output: 5": "num_output: 6"}, "of two networks"),
        ({"type: 'Deconvolution'": "type: 'Convolution'"}, "not concatenate an up-convolution"),
        ({"pad: 0": "pad: 2"}, "padded by 2 x 2"),
        ({"negative_slope: 0.1 } }\nlayer { bottom: 'd0b'": "negative_slope: 0.2 } }\nlayer { "
          "bottom: 'd0b'"}, "one and the same ReLU"),
        ({"top: 'd1c' name: 'relu_d1c' type: 'ReLU'": "top: 'd1c' name: 'x' type: 'Tanh'"},
         "x is a layer of type tanh"),
        ({"offset: 4": "offset: 3"},
         "level 0: the crop is off the centre: crop 4 per side, not 3 and 5"),
        ({"kernel_size: 3": "kernel_size: 1e999"}, "no number"),
        ({"negative_slope: 0.1": "negative_slope: nan"}, "no number"),
        ({"pool: MAX": "pool: AVE"}, "no plain maximum"),
        ({"layer { bottom: 'd1a' ": "layer { bottom: 'd1a' top: 'd1a' name: 'y' type: 'ReLU' }\n"
          "layer { bottom: 'd1a' "}, "y is a layer of type relu"),
        ({"layer { bottom: 'data' ": "layer { bottom: 'data' top: 'data' name: 'x' type: 'ReLU' }\n"
          "layer { bottom: 'data' "}, "x is a layer of type relu"),
        ({"layer { bottom: 'd1a' ": "layer { bottom: 'd1a' top: 'd1a' name: 'x' type: 'Power' }\n"
          "layer { bottom: 'd1a' "}, "x scales maps inside"),
        ({"name: 'conv_d1a-b'": "name: 'conv_d9a-b'"}, "weights of conv_d9a-b are missing"),
        ({"bottom: 'd0cc'": "bottom: 'd1c'"}, "skip connection of level 0"),
        ({"layer {": "layer ["}, "damaged"),
        ({"type: 'Concat' }": "type: 'Concat'"}, "cut short|damaged"),
    ],
)  # fmt: skip
def test_a_definition_that_contradicts(tmp_path: Path, changes: dict[str, str], words: str) -> None:
    net = Caffe((3, 5))
    path = write_h5(tmp_path / "n.caffemodel.h5", net, random_weights(net))
    text = prototxt(dataclasses.replace(net, changes=changes), training=True)
    write_modeldef(tmp_path / "n.modeldef.h5", net, **{"/model_prototxt": text})
    with pytest.raises(CheckpointError, match=words):
        load_model(path)


@pytest.mark.parametrize("name", ["downsampleFactor", "padInput", "padOutput"])
def test_sizes_that_contradict(tmp_path: Path, name: str) -> None:
    net = Caffe((3, 5))
    path = write_h5(tmp_path / "n.caffemodel.h5", net, random_weights(net))
    write_modeldef(tmp_path / "n.modeldef.h5", net, **{name: np.array([7, 7], np.int32)})
    with pytest.raises(CheckpointError, match="definition and weights are of two networks"):
        load_model(path)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    net = Caffe((3, 5))
    path = write_h5(tmp_path / "n.caffemodel.h5", net, random_weights(net))
    with h5py.File(path, "a") as file:
        file["data/bn/0"] = file["data/bn/1"] = file["data/bn/2"] = np.ones(3, np.float32)
    with pytest.raises(CheckpointError, match="neither the weight nor the bias"):
        load_model(path)
    with h5py.File(path, "w") as file:
        file["images/0"] = np.ones(3)
    with pytest.raises(CheckpointError, match="neither Keras's nor Caffe's"):
        load_model(path)


def test_prototxt_grammar() -> None:
    text = """
    # a comment
    name: "a \\" b" input_dim: [1, 2] ; flag: true,
    layer < name: 'x' blobs_lr: 1 blobs_lr: 2e-1 > layer { type: RELU }
    layer: { }
    """
    assert parse_prototxt(text) == {
        "name": ['a \\" b'],
        "input_dim": ["1", "2"],
        "flag": ["true"],
        "layer": [{"name": ["x"], "blobs_lr": ["1", "2e-1"]}, {"type": ["RELU"]}, {}],
    }
    assert parse_prototxt("") == {}
    assert layers_of("layers { type: INNER_PRODUCT }")[0].kind == "innerproduct"


@pytest.mark.parametrize(
    "text", ["a {", "a }", "}", "a: b }", "a: 'b", "'b'", "a: { 'b' }", "a: [1", "a {" * 30, "\0"]
)
def test_prototxt_that_is_none(text: str) -> None:
    with pytest.raises(CheckpointError):
        parse_prototxt(text)


@pytest.mark.timeout(60)
def test_comments_are_blanks_however_long_they_are() -> None:
    plain = "layer { name: 'a#b' kernel_size: 3 }"
    signs = "#" * 60
    for comment in (signs, f"{signs}\n", f"{signs}\n \t{signs} x {{ '\n\n", f"{signs}\r\n"):
        assert parse_prototxt(f"{plain} {comment}") == parse_prototxt(plain)
    with pytest.raises(CheckpointError, match="damaged at '@'"):
        parse_prototxt(f"{plain} {signs}\n@")
    with pytest.raises(CheckpointError, match="far longer"):
        parse_prototxt("#\n" * (1 << 20))
