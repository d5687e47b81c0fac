"""Keras graphs: where concatenated maps do not fit, and the forms of other versions."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from keras_edits import Config, insert, keras_2, layer, written_again
from keras_networks import Design, build, write

from napari_unet.checkpoint import Model, load_model
from napari_unet.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    design = Design(norm="after", size=(60, 60))
    return write(build(design), tmp_path_factory.mktemp("keras"))


@pytest.fixture
def edited(saved: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Write the model again, edited."""
    return functools.partial(written_again, saved[".keras"], tmp_path)


def same_weights(one: Model, other: Model) -> bool:
    before, after = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(before[key], after[key]) for key in before | after)


# ------------------------------------------------------------------ the seed question


def without_crops(config: Config) -> None:
    """Concatenate the encoder's maps as they are."""
    for number, end in (("", "batch_normalization_3"), ("_1", "batch_normalization_1")):
        crop = layer(config, f"cropping2d{number}")
        crop["class_name"], crop["config"] = "Identity", {"name": crop["name"]}
        assert crop["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] == end


def test_a_graph_without_crops_is_told_where(edited: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(edited(without_crops))
    text = str(caught.value)
    assert "(input 60 x 60 px)" in text
    assert "level 1: 24 x 24 meets 16 x 16: crop 4 per side" in text
    assert "level 0: 56 x 56 meets 24 x 24: crop 16 per side" in text
    assert text.index("level 1") < text.index("level 0")


def test_the_papers_own_numbers(tmp_path: Path) -> None:
    """572 x 572 at depth 4, as the question is asked: 64 x 64 meets 56 x 56."""
    design = Design(widths=(1, 2, 4, 8, 16), size=(572, 572), crop="cropping")
    path = write(build(design), tmp_path)[".h5"]
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for entry in config["config"]["layers"]:
            if entry["class_name"] == "Cropping2D":
                entry["class_name"] = "Identity"
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    text = str(caught.value)
    for line in (
        "level 3: 64 x 64 meets 56 x 56: crop 4 per side",
        "level 2: 136 x 136 meets 104 x 104: crop 16 per side",
        "level 1: 280 x 280 meets 200 x 200: crop 40 per side",
        "level 0: 568 x 568 meets 392 x 392: crop 88 per side",
    ):
        assert line in text
    assert "`valid-unet shapes 572 --base-features 1` lists every layer" in text


def test_without_a_declared_size_the_smallest_stands_in(edited: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        without_crops(config)
        layer(config, "input_layer")["config"]["batch_shape"] = [None, None, None, 1]

    with pytest.raises(CheckpointError, match=r"input 44 x 44 px\): level 1: 16 x 16 meets 8 x 8"):
        load_model(edited(change))


@pytest.mark.parametrize(
    ("cropping", "words"),
    [
        ([[4, 4], [3, 5]], "level 1: the crop is off the centre: crop 4 per side, not 4 and 4, 3 "),
        ([[3, 3], [3, 3]], "level 1: 18 x 18 meets 16 x 16: crop 4 per side, not 3 and 3"),
        ([[4, 5], [4, 5]], "level 1: 15 x 15 meets 16 x 16: crop 4 per side, not 4 and 5"),
        ([[40, 4], [4, 4]], "level 1: 0 x 16 meets 16 x 16"),
        (-4, "cropping of -4"),
        ([4], r"cropping of \[4\]"),
    ],
)
def test_crops_of_a_wrong_amount(edited: Callable[..., Path], cropping: Any, words: str) -> None:
    def change(config: Config) -> None:
        layer(config, "cropping2d")["config"]["cropping"] = cropping

    with pytest.raises(CheckpointError, match=words):
        load_model(edited(change))


def test_an_up_convolution_that_does_not_halve(edited: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        layer(config, "conv2d_transpose")["config"]["filters"] = 8

    def weights(file: h5py.File) -> None:
        group = file["layers/conv2d_transpose/vars"]
        del group["0"], group["1"]
        group["0"], group["1"] = np.ones((2, 2, 8, 6), np.float32), np.ones(8, np.float32)

    with pytest.raises(CheckpointError, match="4 channels of the encoder and 8 of the up-") as e:
        load_model(edited(change, weights))
    assert "takes 8: the up-convolution has to halve the channels to 4" in str(e.value)


# --------------------------------------------------------------------- other forms


def test_keras_2_says_the_same(edited: Callable[..., Path], saved: dict[str, Path]) -> None:
    judge = load_model(saved[".keras"])
    for kind in ("Functional", "Model"):
        model = load_model(
            edited(lambda config, kind=kind: {**keras_2(config), "class_name": kind})
        )
        assert model.config == judge.config
        assert same_weights(model, judge)


def test_slices_of_tensorflow(edited: Callable[..., Path], saved: dict[str, Path]) -> None:
    """In Keras 2 a slice is a layer that is called with the slices."""
    whole: Config = {"start": None, "stop": None, "step": None}

    def change(config: Config) -> Config:
        old = keras_2(config)
        for name, side in (("cropping2d", 4), ("cropping2d_1", 16)):
            entry = layer(old, name)
            part = {"start": side, "stop": -side, "step": None}
            entry["class_name"] = "SlicingOpLambda"
            entry["config"] = {"name": name, "function": "__operators__.getitem"}
            source = entry["inbound_nodes"][0][0]
            slices = {"class_name": "__tuple__", "items": [whole, part, part, whole]}
            source[3] = {"slice_spec": slices if side == 4 else slices["items"]}
            entry["inbound_nodes"] = [source]
        return old

    model, judge = load_model(edited(change)), load_model(saved[".keras"])
    assert model.config == judge.config
    assert same_weights(model, judge)


def test_functions_of_tensorflow(edited: Callable[..., Path]) -> None:
    def change(config: Config) -> Config:
        for entry in config["config"]["layers"]:
            if entry["class_name"] == "Conv2D" and entry["name"] != "conv2d_10":
                entry["config"]["activation"] = "linear"
        for number in range(10):
            name = f"conv2d_{number}" if number else "conv2d"
            insert(
                config, name, f"tf.nn.leaky_relu_{number}", "TFOpLambda", function="nn.leaky_relu"
            )
            layer(config, f"tf.nn.leaky_relu_{number}")["inbound_nodes"][0]["kwargs"]["alpha"] = 0.1
        return config

    assert load_model(edited(change)).config.slope == 0.1


def test_slopes_by_their_older_name(edited: Callable[..., Path]) -> None:
    def change(config: Config) -> None:
        for entry in config["config"]["layers"]:
            if entry["class_name"] == "Conv2D" and entry["name"] != "conv2d_10":
                inner = {"class_name": "LeakyReLU", "config": {"alpha": 0.10000000149011612}}
                entry["config"]["activation"] = inner

    assert load_model(edited(change)).config.slope == 0.1


def test_layers_in_older_groups(edited: Callable[..., Path], saved: dict[str, Path]) -> None:
    """Keras 2.12 wrote archives, too, on Windows with its own separators."""

    def weights(file: h5py.File) -> None:
        file.move("layers", "_layer_checkpoint_dependencies")

    model = load_model(edited(keras_2, weights))
    assert same_weights(model, load_model(saved[".keras"]))


def test_attributes_as_keras_2_wrote_them(saved: dict[str, Path], tmp_path: Path) -> None:
    """Bytes instead of text, and long lists cut into numbered ones."""
    path = tmp_path / "net.h5"
    path.write_bytes(saved[".h5"].read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = np.bytes_(file.attrs["model_config"])
        file.attrs["keras_version"] = np.bytes_("2.2.4-tf")
        weights = file["model_weights"]
        names = [str(name).encode() for name in weights.attrs["layer_names"].astype(str)]
        del weights.attrs["layer_names"]
        weights.attrs["layer_names0"] = np.array(names[:9])
        weights.attrs["layer_names1"] = np.array(names[9:])
    model = load_model(path)
    assert same_weights(model, load_model(saved[".h5"]))
    assert model.card.provenance["written by"] == "Keras 2.2.4-tf"
