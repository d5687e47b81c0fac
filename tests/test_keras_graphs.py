"""Keras graphs that are edited after they were saved: older forms, and what cannot be run."""

from __future__ import annotations

import copy
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from keras_networks import Design, build, write

from napari_unet.checkpoint import Model, load_model
from napari_unet.errors import CheckpointError

Config = dict[str, Any]
DESIGN = Design(norm="after", size=(60, 60))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(build(DESIGN), tmp_path_factory.mktemp("keras"))


@pytest.fixture
def edited(saved: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Write the model again with an edited description, and edited weights."""

    def write_again(
        change: Callable[[Config], Any], weights: Callable[[h5py.File], Any] | None = None
    ) -> Path:
        path = tmp_path / "net.keras"
        with zipfile.ZipFile(saved[".keras"]) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(members["config.json"])
        config = change(config) or config
        members["config.json"] = json.dumps(config).encode()
        if weights is not None:
            (tmp_path / "w.h5").write_bytes(members["model.weights.h5"])
            with h5py.File(tmp_path / "w.h5", "r+") as file:
                weights(file)
            members["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return write_again


def layer(config: Config, name: str) -> Config:
    return next(x for x in config["config"]["layers"] if x["name"] == name)


def given(name: str) -> Config:
    """A tensor as Keras 3 writes it."""
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [], "dtype": "float32", "keras_history": [name, 0, 0]},
    }


def insert(config: Config, after: str, name: str, kind: str, **settings: Any) -> Config:
    """Put a layer behind another, for all that take it."""
    text = json.dumps(config["config"]).replace(f'"{after}", 0, 0', f'"{name}", 0, 0')
    config["config"] = json.loads(text)
    new = {
        "class_name": kind,
        "name": name,
        "config": {"name": name, **settings},
        "inbound_nodes": [{"args": [given(after)], "kwargs": {}}],
    }
    config["config"]["layers"].append(new)
    return new


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


def keras_2(config: Config) -> Config:
    """The same description as Keras 2 wrote it."""

    def tensors(value: Any) -> list[Any]:
        if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            return [[*value["config"]["keras_history"], {}]]
        return [t for item in value for t in tensors(item)] if isinstance(value, list) else []

    model = config["config"]
    for entry in model["layers"]:
        for key in ("module", "registered_name", "build_config"):
            entry.pop(key, None)
        entry["inbound_nodes"] = [tensors(node["args"]) for node in entry["inbound_nodes"]]
        settings = entry["config"]
        if "batch_shape" in settings:
            settings["batch_input_shape"] = settings.pop("batch_shape")
        if entry["class_name"] == "BatchNormalization":
            settings["axis"] = [3]
    for key in ("input_layers", "output_layers"):
        model[key] = [model[key]]
    return {"class_name": "Functional", "config": model, "keras_version": "2.9.0"}


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


# ----------------------------------------------------------------- what cannot be run


def replaced(name: str, kind: str, **settings: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        entry = layer(config, name)
        entry["class_name"], entry["config"] = kind, {**entry["config"], **settings}

    return change


def inserted(after: str, kind: str, **settings: Any) -> Callable[[Config], None]:
    return lambda config: insert(config, after, "extra", kind, **settings) and None


def nested(depth: int) -> Callable[[Config], Config]:
    def change(config: Config) -> Config:
        for number in range(depth):
            wrapped = {**copy.deepcopy(config), "name": f"m{number}", "inbound_nodes": []}
            config = {"class_name": "Sequential", "config": {"name": "s", "layers": [wrapped]}}
        return config

    return change


def circle(config: Config) -> None:
    layer(config, "conv2d")["inbound_nodes"] = [{"args": [given("conv2d")], "kwargs": {}}]


def twice(config: Config) -> None:
    config["config"]["layers"].append(layer(config, "conv2d"))


def no_layers(config: Config) -> None:
    config["config"]["layers"] = []


REFUSED: dict[str, tuple[Callable[[Config], Any], str]] = {
    "lambda": (replaced("cropping2d", "Lambda"), "cropping2d is a Lambda, a piece of code"),
    "function": (
        replaced("cropping2d", "TFOpLambda", function="image.resize"),
        "a piece of code, which is never run",
    ),
    "custom layer": (replaced("cropping2d", "Custom>Crop"), r"cropping2d \(Custom>Crop\)"),
    "2 x 2 behind up-sampling": (
        lambda c: insert(c, "batch_normalization_5", "bigger", "UpSampling2D", size=[2, 2])
        and replaced("conv2d_transpose", "Conv2D", kernel_size=[2, 2], strides=[1, 1])(c),
        "conv2d_transpose is a convolution of 2 x 2 behind the up-sampling bigger; only",
    ),
    "strided": (replaced("conv2d", "Conv2D", strides=[2, 2]), "conv2d has a strides of"),
    "dilated": (replaced("conv2d", "Conv2D", dilation_rate=[2, 2]), "dilation_rate"),
    "grouped": (replaced("conv2d_1", "Conv2D", groups=3), "groups of 3"),
    "causal": (replaced("conv2d_1", "Conv2D", padding="causal"), "padding of causal"),
    "mixed padding": (
        replaced("conv2d_1", "Conv2D", padding="same"), "do not fit|only some of its conv"
    ),
    "elu": (replaced("conv2d_1", "Conv2D", activation="elu"), "activation elu"),
    "no activation": (replaced("conv2d_1", "Conv2D", activation="linear"), "no activation behind"),
    "relu on logits": (replaced("conv2d_10", "Conv2D", activation="relu"), "ends in a ReLU"),
    "capped ReLU": (inserted("conv2d_2", "ReLU", max_value=6.0), r"extra \(ReLU\) has no place"),
    "two slopes": (
        replaced("conv2d_1", "Conv2D", activation="leaky_relu"), r"different slopes below zero \(0,"
    ),
    "overlapping pools": (replaced("max_pooling2d", "MaxPooling2D", strides=[1, 1]), "overlapping"),
    "average": (replaced("max_pooling2d", "AveragePooling2D"), r"max_pooling2d \(AveragePooling2D"),
    "pool of 3": (
        replaced("max_pooling2d", "MaxPooling2D", pool_size=[3, 3], strides=[3, 3]),
        "pooling divides by 3 x 3, its up-sampling",
    ),
    "wide up-convolution": (
        replaced("conv2d_transpose", "Conv2DTranspose", kernel_size=[3, 3]),
        "kernel of 3 x 3 at strides of 2 x 2",
    ),
    "output padding": (
        replaced("conv2d_transpose", "Conv2DTranspose", output_padding=[1, 1]), "output_padding"
    ),
    "group norm": (
        replaced("batch_normalization", "GroupNormalization"), r"\(GroupNormalization\) has no"
    ),
    "norm along rows": (
        replaced("batch_normalization", "BatchNormalization", axis=1), "not that of the channels"
    ),
    "concatenated rows": (replaced("concatenate", "Concatenate", axis=1), "along axis 1"),
    "added": (replaced("concatenate", "Add"), r"concatenate \(Add\)"),
    "padded input": (inserted("input_layer", "ZeroPadding2D", padding=92), r"\(ZeroPadding2D\)"),
    "normalisation layer": (inserted("input_layer", "Normalization"), r"\(Normalization\)"),
    "rescaled by nothing": (inserted("input_layer", "Rescaling", scale=0), r"extra \(Rescaling\)"),
    "cut at the end": (inserted("conv2d_10", "Cropping2D", cropping=2), "no convolution of one"),
    "two norms": (inserted("batch_normalization", "BatchNormalization"), "several norms"),
    "norm behind all": (inserted("conv2d_10", "BatchNormalization"), "what follows its last"),
    "norm behind a pooling": (inserted("max_pooling2d", "BatchNormalization"), "norms or activa"),
    "skip from elsewhere": (
        lambda c: layer(c, "cropping2d_1")["inbound_nodes"][0].update(args=[given("conv2d")]),
        "concatenated nowhere, or elsewhere",
    ),
    "one concatenation too few": (
        lambda c: layer(c, "conv2d_8").update(
            inbound_nodes=[{"args": [given("conv2d_transpose_1")], "kwargs": {}}]
        ),
        r"conv2d_transpose_1 \(Conv2DTranspose\) has no place",
    ),
    "two outputs": (
        lambda c: c["config"].update(output_layers=[["conv2d_10", 0, 0], ["conv2d", 0, 0]]),
        "1 inputs and 2 outputs",
    ),
    "other filters": (replaced("conv2d_3", "Conv2D", filters=9), "not those that the model's desc"),
    "other kernel": (replaced("conv2d_3", "Conv2D", kernel_size=[5, 5]), "not those that the"),
    "huge kernel": (replaced("conv2d_3", "Conv2D", kernel_size=[10**30, 3]), "kernel_size of"),
    "text as kernel": (replaced("conv2d_3", "Conv2D", kernel_size="3"), "kernel_size of 3"),
    "no kernel": (
        lambda c: layer(c, "conv2d_3")["config"].pop("kernel_size") and None, "kernel_size"
    ),
    "epsilon": (replaced("batch_normalization", "BatchNormalization", epsilon=-1), "epsilon"),
    "small input": (
        replaced("input_layer", "InputLayer", batch_shape=[None, 20, 20, 1]), "smallest that works"
    ),
    "class of its own": (
        lambda c: {"class_name": "MyUNet", "module": "m", "config": {"depth": 3}}, "'MyUNet', whose"
    ),
    "circle": (circle, "damaged|circle"),
    "longer circle": (
        lambda c: layer(c, "conv2d")["inbound_nodes"][0].update(args=[given("max_pooling2d")]),
        "circle|poolings|elsewhere",
    ),
    "named twice": (twice, "names a layer twice"),
    "no layers": (no_layers, "damaged|lists no layers"),
    "unknown input": (
        lambda c: layer(c, "conv2d")["inbound_nodes"][0].update(args=[given("nobody")]), "damaged"
    ),
    "no output": (lambda c: c["config"].pop("output_layers") and None, "damaged"),
    "a list": (lambda c: [c], "damaged"),
    "nodes that are numbers": (
        lambda c: layer(c, "conv2d").update(inbound_nodes=[3]), "damaged"
    ),
    "settings that are a list": (lambda c: layer(c, "conv2d").update(config=[]), "damaged|twice"),
    "nested deep": (nested(40), "nests far deeper"),
    "arguments nested deep": (
        lambda c: layer(c, "conv2d").update(
            inbound_nodes=[{"args": json.loads("[" * 200 + "]" * 200), "kwargs": {}}]
        ),
        "nests far deeper",
    ),
    "many layers": (
        lambda c: c["config"].update(layers=[{"name": str(n)} for n in range(20_000)]),
        "far more layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_named(edited: Callable[..., Path], name: str) -> None:
    change, words = REFUSED[name]
    path = edited(change)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(path)
    assert time.process_time() - start < 2
    assert str(caught.value).startswith("net.keras: ")
    assert str(caught.value).count("net.keras") == 1


def kernel(file: h5py.File, value: Any) -> None:
    group = file["layers/conv2d_1/vars"]
    del group["0"]
    if value is not None:
        group["0"] = value


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda f: kernel(f, None), "no kernel for its layer conv2d_1"),
        (lambda f: kernel(f, np.full((3, 3, 3, 3), np.nan, np.float32)), "no numbers"),
        (lambda f: kernel(f, np.ones((3, 3, 3, 3), np.int32)), "not made of plain numbers"),
        (lambda f: kernel(f, np.ones((3, 3, 5, 3), np.float32)), "needs|has|takes|damaged"),
        (lambda f: kernel(f, np.ones((3, 3, 9), np.float32)), "not those that the model"),
        (lambda f: f["layers/batch_normalization/vars/3"].write_direct(-np.ones(3, "f4")), "below"),
        (lambda f: f.__delitem__("layers"), "no kernel for its layer conv2d"),
    ],
)
def test_weights_that_are_missing_or_wrong(
    edited: Callable[..., Path], weights: Callable[[h5py.File], Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_model(edited(lambda config: None, weights))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"config.json": b"[" * 100_000}, "damaged"),
        ({"config.json": b'{"a":' * 50_000 + b"1" + b"}" * 50_000}, "damaged|deeper|no layers"),
        ({"config.json": b" " * (17 << 20)}, "config.json, more than the"),
        ({"config.json": b"\xff\xfe"}, "damaged"),
        ({"config.json": b"null"}, "damaged"),
        ({"config.json": b"{}"}, "a model of its own class"),
        ({"config.json": b'{"config": {"layers": ' + b"9" * 5000 + b"}}"}, "damaged"),
        ({"model.weights.h5": b"no"}, "net.keras|model.weights.h5"),
        ({"../model.weights.h5": b"no"}, "unpacked elsewhere"),
        ({"metadata.json": b"{"}, "damaged"),
        ({"zeros": bytes(80 << 20)}, "far more than weights compress"),
    ],
)
def test_hostile_archives(
    saved: dict[str, Path], tmp_path: Path, members: dict[str, bytes], words: str
) -> None:
    path = tmp_path / "net.keras"
    with zipfile.ZipFile(saved[".keras"]) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in {**content, **members}.items():
            archive.writestr(name, text)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=words):
        load_model(path)
    assert time.process_time() - start < 2


def test_hdf5_models_are_refused_in_one_sentence(saved: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "net.h5"
    for attribute, value, words in (
        ("model_config", "{", "description is damaged"),
        ("backend", "theano", "mirrors kernels"),
        ("model_config", json.dumps({"class_name": "Lambda", "config": {}}), "its own class"),
    ):
        path.write_bytes(saved[".h5"].read_bytes())
        with h5py.File(path, "r+") as file:
            file.attrs[attribute] = value
        with pytest.raises(CheckpointError, match=words) as caught:
            load_model(path)
        assert str(caught.value).count("net.h5") == 1


def test_weights_alone_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "w.weights.h5"
    for arrays, words in (
        ({"dense": [np.ones((3, 4))]}, "no convolution of 2 or 3"),
        ({"conv2d": [np.ones((3, 3, 1, 4))]}, "do not make one"),
        ({"batch_normalization": [np.ones(3)] * 3}, "can mean several things"),
        ({"conv2d": []}, "neither a model nor weights"),
        ({"conv2d": [np.ones((3, 3, 1, 4), np.int8)]}, "plain numbers"),
    ):
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                group = file.create_group(f"layers/{name}/vars")
                for number, value in enumerate(values):
                    group[str(number)] = value
        with pytest.raises(CheckpointError, match=words):
            load_model(path)
