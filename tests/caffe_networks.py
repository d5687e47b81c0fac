"""Freiburg's networks as files in the style of the originals, written from scratch."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Caffe:
    """What a network is, as its prototxt would say it."""

    widths: tuple[int, ...] = (3, 4, 6)
    up_widths: tuple[int, ...] = ()
    channels: int = 1
    classes: int = 2
    slope: float = 0.1
    up_relu: bool = True
    up_first: bool = True
    dropout: bool = True
    crops: bool = True  # layers of their own, as in 2015
    shift: float = 0.0
    kernels: tuple[tuple[int, ...], ...] = ()
    pools: tuple[tuple[int, ...], ...] = ()
    pad: int = 0
    dims: int = 2
    score: str = "conv_u0d-score"
    changes: dict[str, str] = field(default_factory=dict)  # of the text, for damaged ones

    @property
    def depth(self) -> int:
        return len(self.widths) - 1

    @property
    def ups(self) -> tuple[int, ...]:
        return self.up_widths or self.widths[:-1]

    def kernel(self, level: int) -> tuple[int, ...]:
        return self.kernels[level] if self.kernels else (3,) * self.dims

    def pool(self, level: int) -> tuple[int, ...]:
        return self.pools[level] if self.pools else (2,) * self.dims


def layers(net: Caffe) -> list[dict[str, Any]]:
    """The layers in the order of the originals, as plain dictionaries."""
    found: list[dict[str, Any]] = []

    def add(kind: str, name: str, bottoms: Sequence[str], top: str, **settings: Any) -> None:
        found.append(
            {"type": kind, "name": name, "bottom": list(bottoms), "top": [top], **settings}
        )

    def conv(bottom: str, top: str, name: str, inputs: int, width: int, level: int) -> None:
        kernel = net.kernel(level)
        shape = (width, inputs, *kernel)
        settings = {"num_output": width, "pad": net.pad, "kernel_size": kernel}
        add("Convolution", name, [bottom], top, convolution_param=settings, shape=shape)
        relu(top)

    def relu(top: str) -> None:
        settings = {"negative_slope": net.slope} if net.slope else {}
        add("ReLU", f"relu_{top}", [top], top, relu_param=settings)

    if net.shift:
        add("Power", "shift", ["data"], "d0a", power_param={"shift": net.shift})
    width = net.channels
    for level in range(net.depth + 1):
        a, b, c = (f"d{level}{letter}" for letter in "abc")
        first = "data" if level == 0 and not net.shift else a
        conv(first, b, f"conv_{a}-b", width, net.widths[level], level)
        width = net.widths[level]
        conv(b, c, f"conv_{b}-c", width, width, level)
        if net.dropout and level >= net.depth - 1:
            add("Dropout", f"dropout_{c}", [c], c, dropout_param={"dropout_ratio": 0.5})
        if level < net.depth:
            pool = net.pool(level)
            # Caffe itself has one size for both axes, Freiburg's one for each.
            extent = pool[0] if len(set(pool)) == 1 and net.dims == 2 else pool
            sizes = {"pool": "MAX", "kernel_size": extent, "stride": extent}
            below = f"d{level + 1}a"
            add("Pooling", f"pool_{c}-{below[1:]}", [c], below, pooling_param=sizes)
    bottom = f"d{net.depth}c"
    for level in reversed(range(net.depth)):
        a, b, c, d = (f"u{level}{letter}" for letter in "abcd")
        skip, up = net.widths[level], net.ups[level]
        settings = {"num_output": up, "kernel_size": net.pool(level), "stride": net.pool(level)}
        add(
            "Deconvolution", f"upconv_{bottom}_{a}", [bottom], a,
            convolution_param=settings, shape=(width, up, *net.pool(level)),
        )  # fmt: skip
        if net.up_relu:
            relu(a)
        from_skip = f"d{level}c"
        if net.crops:
            offsets = {"axis": 2, "offset": crop_offsets(net, level)}
            add("Crop", f"crop_d{level}c-cc", [from_skip, a], f"{from_skip}c", crop_param=offsets)
            from_skip += "c"
        pair = [a, from_skip] if net.up_first else [from_skip, a]
        add("Concat", f"concat_{from_skip}_{a}-b", pair, b)
        conv(b, c, f"conv_{b}-c", skip + up, skip, level)
        conv(c, d, f"conv_{c}-d", skip, skip, level)
        width, bottom = skip, d
    last = {"num_output": net.classes, "kernel_size": (1,) * net.dims}
    shape = (net.classes, width, *(1,) * net.dims)
    add("Convolution", net.score, [bottom], "score", convolution_param=last, shape=shape)
    return found


def crop_offsets(net: Caffe, level: int) -> tuple[int, ...]:
    """Pixels per side, counted layer by layer for an input that is large enough."""
    offsets = []
    for axis in range(net.dims):
        start = size = Fraction(0)  # differences alone matter
        for below in range(level + 1, net.depth + 1):
            size = size / net.pool(below - 1)[axis] - 2 * (net.kernel(below)[axis] - 1)
        for below in reversed(range(level, net.depth)):
            size = size * net.pool(below)[axis]
            size -= 2 * (net.kernel(below)[axis] - 1) if below > level else 0
        offsets.append(int(start - size) // 2)
    return tuple(offsets)


def with_splits(found: list[dict[str, Any]], depth: int) -> list[dict[str, Any]]:
    """As Caffe itself stores it: a layer that doubles each map that two layers take."""
    out: list[dict[str, Any]] = []
    doubled = {f"d{level}c" for level in range(depth)}
    for layer in found:
        renamed = [
            f"{b}_1" if layer["type"] in ("Crop", "Concat") and b in doubled else b
            for b in layer["bottom"]
        ]
        if layer["type"] == "Pooling":
            blob = layer["bottom"][0]
            tops = [f"{blob}_0", f"{blob}_1"]
            out.append({"type": "Split", "name": f"{blob}_split", "bottom": [blob], "top": tops})
            renamed = tops[:1]
        out.append({**layer, "bottom": renamed})
    return out


def random_weights(net: Caffe, seed: int = 0) -> dict[str, tuple[Array, Array]]:
    chance = np.random.default_rng(seed)
    weights = {}
    for layer in layers(net):
        if "shape" in layer:
            shape = layer["shape"]
            width = shape[1] if layer["type"] == "Deconvolution" else shape[0]
            fan_in = np.prod(shape) / width
            weight = chance.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)
            weights[layer["name"]] = (weight, chance.uniform(-0.3, 0.3, width).astype(np.float32))
    return weights


def prototxt(net: Caffe, size: Sequence[int] = (), *, training: bool = False) -> str:
    """The definition: for OpenCV with an input of `size`, or with layers only for training."""
    lines = ["name: 'test'  # in the style of the originals"]
    if size:
        dims = " ".join(f"dim: {n}" for n in (1, net.channels, *size))
        lines.append(f"input: 'data'\ninput_shape {{ {dims} }}")
    if training:
        lines.append(
            "layer { top: 'raw' top: 'labels' name: 'loaddata' type: 'HDF5Data' hdf5_data_param "
            "{ source: 'a.txt' batch_size: 1 } include: { phase: TRAIN } }\n"
            "layer { bottom: 'raw' top: 'data' name: 'augm' type: 'ValueAugmentation' "
            "value_augmentation_param { black_from: -0.05 } include: { phase: TRAIN } }"
        )
    for layer in layers(net):
        parts = [f"bottom: '{b}'" for b in layer["bottom"]]
        parts += [f"top: '{t}'" for t in layer["top"]]
        parts += [f"name: '{layer['name']}'", f"type: '{layer['type']}'"]
        for name, settings in layer.items():
            if name == "power_param" and training:
                # The plug-in's own layer says the same.
                parts[-1] = "type: 'ValueTransformation'"
                offset = settings["shift"]
                parts.append(f"value_transformation_param {{ offset {{ v: {offset} }} }}")
            elif name.endswith("_param"):
                inner = " ".join(
                    f"{key}: {value}"
                    for key, values in settings.items()
                    for value in (values if isinstance(values, tuple) else (values,))
                )
                parts.append(f"{name} {{ {inner} }}" if inner else "")
        lines.append(f"layer {{ {' '.join(parts)} }}")
    if training:
        lines.append(
            "layer { bottom: 'score' bottom: 'labels' top: 'loss' name: 'loss' "
            "type: 'SoftmaxWithLoss' include: { phase: TRAIN } }"
        )
    text = "\n".join(lines)
    for old, new in net.changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tagged(number: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def single(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def blob(values: Array, style: str) -> bytes:
    """One BlobProto: packed floats, floats one by one, doubles, or the shapes of old."""
    if style == "legacy":
        four = (1,) * (4 - values.ndim) + values.shape
        head = b"".join(whole(n, extent) for n, extent in enumerate(four, 1))
    else:
        head = tagged(7, tagged(1, b"".join(varint(n) for n in values.shape)))
    if style == "double":
        return head + tagged(8, values.astype("<f8").tobytes())
    if style == "unpacked":
        return head + b"".join(single(5, float(v)) for v in values.ravel())
    return head + tagged(5, values.astype("<f4").tobytes())


def _convolution(p: dict[str, Any]) -> bytes:
    out = whole(1, p["num_output"]) + (whole(3, p["pad"]) if p.get("pad") else b"")
    out += b"".join(whole(4, k) for k in p["kernel_size"])
    return out + b"".join(whole(6, s) for s in p.get("stride", ()))


def _pooling(p: dict[str, Any]) -> bytes:
    sizes = [
        p[name] if isinstance(p[name], tuple) else (p[name],) for name in ("kernel_size", "stride")
    ]
    return whole(1, 0) + b"".join(whole(n, v) for n, s in enumerate(sizes, 2) for v in s)


_PARAMETERS: dict[str, tuple[int, int, Any]] = {
    "convolution_param": (106, 10, _convolution),
    "pooling_param": (121, 19, _pooling),
    "relu_param": (
        123, 30, lambda p: single(1, p["negative_slope"]) if "negative_slope" in p else b"",
    ),
    "power_param": (122, 21, lambda p: single(3, p["shift"])),
    "own": (5000, 5000, lambda p: tagged(1, single(1, p["shift"]))),
    "dropout_param": (108, 12, lambda p: single(1, p["dropout_ratio"])),
    "crop_param": (
        144, 0, lambda p: whole(1, 2) + b"".join(whole(2, o) for o in p["offset"]),
    ),
}  # fmt: skip
_V1_TYPES = {
    "Concat": 3, "Convolution": 4, "Dropout": 6, "Pooling": 17, "ReLU": 18, "Power": 26,
    "Deconvolution": 39, "Split": 22,
}  # fmt: skip


def caffemodel(
    net: Caffe,
    weights: dict[str, tuple[Array, Array]],
    *,
    style: str = "packed",
    v1: bool = False,
    graph: bool = True,
    splits: bool = False,
    plugin: bool = False,
) -> bytes:
    """The binary file, of either version; without `graph` only names and weights.

    With `plugin` the image is shifted by the plug-in's own layer, whose field's number is made up.
    """
    parts = [tagged(1, "test")]
    for layer in with_splits(layers(net), net.depth) if splits else layers(net):
        if plugin and layer["type"] == "Power":
            layer = {**layer, "type": "ValueTransformation", "own": layer["power_param"]}
            del layer["power_param"]
        if layer["type"] == "Crop" and v1:
            raise ValueError("the first version knows no crop")
        name, kind, bottom, top, blobs = (4, 5, 2, 3, 6) if v1 else (1, 2, 3, 4, 7)
        body = tagged(name, layer["name"])
        if graph:
            body += whole(kind, _V1_TYPES[layer["type"]]) if v1 else tagged(kind, layer["type"])
            body += b"".join(tagged(bottom, b) for b in layer["bottom"])
            body += b"".join(tagged(top, t) for t in layer["top"])
            for key, (now, first, encode) in _PARAMETERS.items():
                if key in layer:
                    body += tagged(first if v1 else now, encode(layer[key]))
        for values in weights.get(layer["name"], ()):
            body += tagged(blobs, blob(values, style))
        if graph or layer["name"] in weights:
            parts.append(tagged(2 if v1 else 100, body))
    return b"".join(parts)


def write_h5(
    path: Path, net: Caffe, weights: dict[str, tuple[Array, Array]], **options: Any
) -> Path:
    """A ``.caffemodel.h5`` as Caffe writes its snapshots."""
    with h5py.File(path, "w") as file:
        for layer in layers(net):
            group = file.require_group(f"data/{layer['name']}")
            for number, values in enumerate(weights.get(layer["name"], ())):
                group.create_dataset(str(number), data=values, **options)
    return path


def write_modeldef(path: Path, net: Caffe, *, without: Iterable[str] = (), **changes: Any) -> Path:
    """A ``.modeldef.h5`` as the plug-in writes it; scalars where all axes are alike."""
    step = [int(np.prod([net.pool(n)[a] for n in range(net.depth)])) for a in range(net.dims)]
    sizes = [(_loss(net, axis, 0), _loss(net, axis, 1)) for axis in range(net.dims)]
    fields: dict[str, Any] = {
        "name": "a net", "description": "of nothing", "padding": "mirror",
        "normalization_type": np.int32(1), "element_size_um": np.full(net.dims, 0.5),
        "downsampleFactor": np.array(step, np.int32),
        "padInput": np.array([a for a, _ in sizes], np.int32),
        "padOutput": np.array([b for _, b in sizes], np.int32),
        "classNames": ["Background", *(f"Cell {n}" for n in range(1, net.classes))],
        "input_blob_name": "data", "input_dataset_name": "data",
    }  # fmt: skip
    with h5py.File(path, "w") as file:
        for name, value in {**fields, **changes}.items():
            if name not in without and not name.startswith("/"):
                fixed = np.bytes_(value.encode()) if isinstance(value, str) else value
                file[f"unet_param/{name}"] = fixed
        file["unet_param/pixelwise_loss_weights/borderWeightFactor"] = 50.0
        file["solver_prototxt"] = np.bytes_(b"net: 'a'")
        if "model_prototxt" not in without:
            text = changes.get("/model_prototxt", prototxt(net, training=True))
            file["model_prototxt"] = np.bytes_(text.encode())
        # Java's writer leaves the names of its types in the file.
        file["__DATA_TYPES__/Enum_Boolean"] = h5py.enum_dtype({"FALSE": 0, "TRUE": 1}, "i1")
    return path


def _loss(net: Caffe, axis: int, out: int) -> int:
    """`padInput` or `padOutput` along an axis, layer by layer from the bottleneck's middle."""
    size = 0  # of the map that the bottleneck makes, so that a step of it is one more
    if out:
        for level in reversed(range(net.depth)):
            size = size * net.pool(level)[axis] - 2 * (net.kernel(level)[axis] - 1)
        return size
    size += 2 * (net.kernel(net.depth)[axis] - 1)
    for level in reversed(range(net.depth)):
        size = size * net.pool(level)[axis] + 2 * (net.kernel(level)[axis] - 1)
    return size


def interpreted(net: Caffe, weights: dict[str, tuple[Array, Array]], image: Array) -> Array:
    """Run the layers one after the other, blob by blob, as Freiburg's Caffe does."""
    import torch
    from torch.nn import functional

    conv = (functional.conv2d, functional.conv3d)[net.dims - 2]
    upconv = (functional.conv_transpose2d, functional.conv_transpose3d)[net.dims - 2]
    pool = (functional.max_pool2d, functional.max_pool3d)[net.dims - 2]
    blobs = {"data": torch.from_numpy(image)}
    for layer in layers(net):
        inputs = [blobs[name] for name in layer["bottom"]]
        own = [torch.from_numpy(values) for values in weights.get(layer["name"], ())]
        match layer["type"]:
            case "Convolution":
                made = conv(inputs[0], *own)
            case "Deconvolution":
                made = upconv(inputs[0], *own, stride=layer["convolution_param"]["stride"])
            case "ReLU":
                made = functional.leaky_relu(inputs[0], net.slope)
            case "Pooling":
                made = pool(inputs[0], layer["pooling_param"]["kernel_size"])
            case "Power":
                made = inputs[0] + net.shift
            case "Crop":
                made = _centre(*inputs)
            case "Concat":
                small = min(inputs, key=lambda blob: blob.shape[-1])
                made = torch.cat([_centre(blob, small) for blob in inputs], 1)
            case _:
                made = inputs[0]
        blobs[layer["top"][0]] = made
    return np.asarray(blobs["score"])


def _centre(blob: Any, like: Any) -> Any:
    for axis in range(2, blob.ndim):
        extra = blob.shape[axis] - like.shape[axis]
        blob = blob.narrow(axis, extra // 2, like.shape[axis])
    return blob
