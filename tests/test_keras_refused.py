"""Keras files that cannot be run, are damaged or hostile: one sentence that names the layer."""

from __future__ import annotations

import copy
import functools
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from keras_edits import Config, given, insert, layer, written_again
from keras_networks import Design, build, write

from napari_unet.checkpoint import load_model
from napari_unet.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    design = Design(norm="after", size=(60, 60))
    return write(build(design), tmp_path_factory.mktemp("keras"))


@pytest.fixture
def edited(saved: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Write the model again, edited."""
    return functools.partial(written_again, saved[".keras"], tmp_path)


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
    "rows first": (
        replaced("max_pooling2d", "MaxPooling2D", data_format="channels_first"),
        "disagree about which axis",
    ),
    "norm of each image": (
        lambda c: layer(c, "batch_normalization")["inbound_nodes"][0].update(
            kwargs={"training": True}
        ),
        "statistics of the image",
    ),
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
    "nested as deep as can be": (nested(24), "no kernel for its layer m23/"),
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
