"""Keras U-Nets restated with Keras itself, on its torch backend, as independent judges."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ["KERAS_BACKEND"] = "torch"  # read when Keras is first imported


@dataclass(frozen=True)
class Design:
    """What a U-Net is made of; the defaults are karolzak/keras-unet's `vanilla_unet`, tiny."""

    ndim: int = 2
    channels: int = 1
    classes: int = 2
    widths: tuple[int, ...] = (3, 4, 6)
    size: tuple[int | None, ...] | None = None
    padding: str = "valid"
    norm: str = "none"  # before | after the activation
    epsilon: float = 1e-3
    norm_kind: str = "BatchNormalization"
    activation: str = "argument"  # | layer | relu | leaky | operation | function | a layer's class
    slope: float = 0.0
    pooling: str = "MaxPooling"
    up: str = "transposed"  # | nearest | bilinear | bare | early
    up_activation: bool = False
    up_norm: bool = False
    crop: str = "cropping"  # | slicing | stop | ellipsis | centre | twice | none
    order: str = "up-skip"
    head: str = "softmax"  # | sigmoid | linear | layer | operation
    channels_first: bool = False
    dropout: float = 0.5
    bias: bool = True
    affine: bool = True
    rescaling: tuple[float, float] | None = None
    pools: tuple[int, ...] | None = None
    nested: str = ""  # functional | sequential


class _Builder:
    def __init__(self, design: Design) -> None:
        from keras import layers

        self.design, self.layers = design, layers
        self.format = "channels_first" if design.channels_first else "channels_last"
        self.axis = 1 if design.channels_first else -1
        self.pools = design.pools or (2,) * design.ndim

    def kind(self, name: str) -> Any:
        return getattr(self.layers, f"{name}{self.design.ndim}D")

    def block(self, x: Any, width: int) -> Any:
        d = self.design
        for _ in range(2):
            conv = self.kind("Conv")(
                width, 3, padding=d.padding, data_format=self.format, use_bias=d.bias,
                activation=self.inside(),
            )  # fmt: skip
            x = self.behind(conv(x), norm=d.norm != "none", activation=True)
        return x

    def inside(self) -> Any:
        """An activation as the convolution's own argument."""
        d = self.design
        if d.activation == "function":
            return self.layers.LeakyReLU(negative_slope=d.slope)
        if d.activation != "argument" or d.norm == "before":
            return None
        return "leaky_relu" if d.slope else "relu"

    def behind(self, x: Any, *, norm: bool, activation: bool, inside: bool = True) -> Any:
        d = self.design
        if norm and d.norm == "before":
            x = self.normed(x)
        if activation and not (inside and self.inside()):
            x = self.activated(x)
        if norm and d.norm == "after":
            x = self.normed(x)
        return x

    def normed(self, x: Any) -> Any:
        affine = self.design.affine
        if self.design.norm_kind == "GroupNormalization":
            return self.layers.GroupNormalization(1)(x)
        if self.design.norm_kind != "BatchNormalization":
            return getattr(self.layers, self.design.norm_kind)()(x)
        return self.layers.BatchNormalization(
            axis=self.axis, epsilon=self.design.epsilon, scale=affine, center=affine
        )(x)

    def activated(self, x: Any) -> Any:
        import keras

        d = self.design
        if d.activation == "operation":
            return keras.ops.leaky_relu(x, d.slope) if d.slope else keras.ops.relu(x)
        if d.activation == "relu":
            return self.layers.ReLU(negative_slope=d.slope)(x)
        if d.activation == "leaky":
            return self.layers.LeakyReLU(negative_slope=d.slope)(x)
        if d.activation == "PReLU":
            return self.layers.PReLU(shared_axes=[*range(1, d.ndim + 1)])(x)
        if d.activation in ("ELU", "LeakyReLU"):
            return getattr(self.layers, d.activation)()(x)
        return self.layers.Activation("leaky_relu" if d.slope else "relu")(x)

    def raised(self, x: Any, width: int) -> Any:
        d = self.design
        if d.up == "transposed":
            transposed = getattr(self.layers, f"Conv{d.ndim}DTranspose")
            x = transposed(width, self.pools, strides=self.pools, data_format=self.format)(x)
        else:
            settings = {"data_format": self.format}
            if d.ndim == 2:
                settings["interpolation"] = "bilinear" if d.up == "bilinear" else "nearest"
            sampling = self.kind("UpSampling")(self.pools, **settings)
            point = self.kind("Conv")(width, 1, data_format=self.format)
            if d.up == "bare":
                x = sampling(x)
            else:
                x = sampling(point(x)) if d.up == "early" else point(sampling(x))
        return self.behind(x, norm=d.up_norm, activation=d.up_activation, inside=False)

    def cropped(self, x: Any, like: Any, sides: list[int]) -> Any:
        d = self.design
        if d.crop == "none" or not any(sides):
            return x
        if d.crop == "cropping":
            return self.kind("Cropping")(tuple(sides), data_format=self.format)(x)
        if d.crop == "twice":
            once = self.kind("Cropping")(((1, 0),) * d.ndim, data_format=self.format)(x)
            rest = tuple((side - 1, side) for side in sides)
            return self.kind("Cropping")(rest, data_format=self.format)(once)
        spatial = slice(2, None) if d.channels_first else slice(1, -1)
        if d.crop == "centre":
            return self.layers.CenterCrop(*like.shape[spatial])(x)
        if d.crop == "ellipsis":
            return x[(..., *(slice(side, -side) for side in sides), slice(None))]
        middle = [slice(side, -side) for side in sides]
        if d.crop == "stop":
            extents = zip(sides, like.shape[spatial], strict=True)
            middle = [slice(side, side + extent) for side, extent in extents]
        whole = [slice(None)]
        return x[tuple(whole * 2 + middle if d.channels_first else whole + middle + whole)]

    def network(self, x: Any) -> Any:
        d = self.design
        if d.rescaling:
            x = self.layers.Rescaling(*d.rescaling)(x)
        skips = []
        for width in d.widths[:-1]:
            x = self.block(x, width)
            skips.append(x)
            x = self.kind(d.pooling)(self.pools, data_format=self.format)(x)
        x = self.layers.Dropout(d.dropout)(x)
        x = self.block(x, d.widths[-1])
        lost = [4] * d.ndim  # of the bottleneck
        for width, skip in zip(d.widths[-2::-1], skips[::-1], strict=True):
            x = self.raised(x, width)
            margins = [n * pool for n, pool in zip(lost, self.pools, strict=True)]
            sides = [n // 2 if d.padding == "valid" else 0 for n in margins]
            skip = self.cropped(skip, x, sides)
            pair = [x, skip] if d.order == "up-skip" else [skip, x]
            x = self.block(self.layers.Concatenate(axis=self.axis)(pair), width)
            lost = [n + 8 for n in margins]
        final = d.head if d.head in ("softmax", "sigmoid", "linear") else None
        x = self.kind("Conv")(d.classes, 1, data_format=self.format, activation=final)(x)
        if d.head == "layer":
            x = self.layers.Softmax(axis=self.axis)(x)
        return x


def build(design: Design, seed: int = 0) -> Any:
    """A Keras model with random weights, biases and batch-norm statistics."""
    import keras

    keras.utils.clear_session(free_memory=False)  # automatic names count from the start
    keras.utils.set_random_seed(seed)
    size = design.size or (None,) * design.ndim
    shape = (design.channels, *size) if design.channels_first else (*size, design.channels)
    builder = _Builder(design)
    inputs = keras.Input(shape)
    outputs = builder.network(inputs)
    model = keras.Model(inputs, outputs, name="tiny_unet")
    if design.nested == "functional":
        outer = keras.Input(shape)
        model = keras.Model(outer, model(outer), name="outer")
    elif design.nested == "sequential":
        model = keras.Sequential([keras.Input(shape), model], name="outer")
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        name = weight.path.rpartition("/")[2]
        extent = tuple(weight.shape)
        if name == "kernel":
            fan = np.prod(extent) / extent[-1]
            values = generator.normal(0, (2 / fan) ** 0.5, extent)
        elif name in ("gamma", "moving_variance"):
            values = generator.uniform(0.5, 1.5, extent)
        else:
            values = generator.uniform(-0.3, 0.3, extent)
        weight.assign(values.astype(np.float32))
    return model


def write(model: Any, folder: Path) -> dict[str, Path]:
    """The model in Keras's three kinds of files."""
    import warnings

    found = {kind: folder / f"net{kind}" for kind in (".keras", ".h5", ".weights.h5")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(found[".keras"])
        model.save(found[".h5"])
        model.save_weights(found[".weights.h5"])
    return found


def logits(model: Any, image: np.ndarray, *, channels_first: bool = False) -> np.ndarray:
    """What the last convolution gives before its activation, for and in (B, C, [Z,] Y, X)."""
    import torch

    if not channels_first:
        image = np.moveaxis(image, 1, -1)
    with torch.no_grad():
        out = without_end(model)(np.ascontiguousarray(image), training=False)
    out = out.detach().cpu().numpy()
    return out if channels_first else np.moveaxis(out, -1, 1)


def without_end(model: Any) -> Any:
    """The same layers without a softmax or sigmoid at the end."""
    import keras

    inner = model
    while type(inner.layers[-1]).__name__ in ("Functional", "Sequential"):
        inner = inner.layers[-1]
    last = inner.layers[-1]
    if type(last).__name__ == "Softmax":
        return keras.Model(inner.input, last.input)
    last.activation = keras.activations.linear
    return inner
