"""Caffe's binary ``.caffemodel``: weights in a protobuf, with the definition of the network."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import CheckpointError
from napari_unet.importers.caffe_graph import read_graph
from napari_unet.importers.caffe_text import kind_of
from napari_unet.importers.caffe_walk import CaffeLayer
from napari_unet.importers.freiburg import FAMILY
from napari_unet.importers.layouts import Family, find_layout
from napari_unet.importers.reading import Reading
from napari_unet.importers.wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    Wire,
    floats,
    integers,
)
from napari_unet.intensity import Normalisation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_caffemodel"]

# The networks of 2015, before the plug-in: plain ReLUs, no shift.
_FAMILY = replace(
    FAMILY, name="Freiburg U-Net of 2015", slope="0", normalisation=Normalisation("min-max")
)

_Reader = Callable[[Wire, Field], list[Any]]
_Fields = Mapping[int, tuple[str, _Reader]]

_CONVOLUTION: _Fields = {
    1: ("num_output", integers), 3: ("pad", integers), 9: ("pad", integers), 10: ("pad", integers),
    4: ("kernel", integers), 11: ("kernel", integers), 12: ("kernel", integers),
    5: ("group", integers), 18: ("dilation", integers),
    6: ("stride", integers), 13: ("stride", integers), 14: ("stride", integers),
}  # fmt: skip
_POOLING: _Fields = {
    1: ("pool", integers), 4: ("pad", integers), 9: ("pad", integers), 10: ("pad", integers),
    2: ("kernel", integers), 5: ("kernel", integers), 6: ("kernel", integers),
    3: ("stride", integers), 7: ("stride", integers), 8: ("stride", integers),
}  # fmt: skip
_RELU: _Fields = {1: ("slope", floats)}
_POWER: _Fields = {1: ("power", floats), 2: ("scale", floats), 3: ("shift", floats)}
_CROP: _Fields = {2: ("offset", integers)}


@dataclass(frozen=True)
class _Version:
    """Numbers of a layer's fields in one version of the format."""

    name: int
    kind: int
    bottom: int
    top: int
    blobs: int
    include: int
    exclude: int
    settings: Mapping[int, _Fields]


_NOW = _Version(
    name=1, kind=2, bottom=3, top=4, blobs=7, include=8, exclude=9,
    settings={106: _CONVOLUTION, 121: _POOLING, 123: _RELU, 122: _POWER, 144: _CROP},
)  # fmt: skip
_FIRST = _Version(
    name=4, kind=5, bottom=2, top=3, blobs=6, include=32, exclude=33,
    settings={10: _CONVOLUTION, 19: _POOLING, 30: _RELU, 21: _POWER},
)  # fmt: skip
_LAYERS = {100: _NOW, 2: _FIRST}
# Types were numbers in the first version.
_KINDS = {
    3: "concat", 4: "convolution", 5: "data", 6: "dropout", 9: "hdf5data", 17: "pooling",
    18: "relu", 19: "sigmoid", 20: "softmax", 21: "softmaxloss", 22: "split", 26: "power",
    39: "deconvolution",
}  # fmt: skip
_WEIGHED = ("convolution", "deconvolution", "")
_MOST_LAYERS = 5_000
_LARGEST = 1 << 31
_TEST = 1  # the phase


@dataclass
class _Layer:
    name: str = ""
    kind: str = ""
    bottoms: list[str] = field(default_factory=list)
    tops: list[str] = field(default_factory=list)
    settings: dict[str, tuple[float, ...]] = field(default_factory=dict)
    blobs: list[NDArray[Any]] = field(default_factory=list)
    phases: dict[str, list[int]] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether it is there when the network is used, not only when it is trained."""
        included, excluded = (self.phases.get(name, []) for name in ("include", "exclude"))
        return (not included or _TEST in included) and _TEST not in excluded


def read_caffemodel(path: Path) -> Reading:
    """Read weights, and the definition that Caffe stores with them.

    Parameters
    ----------
    path : Path
        A ``NetParameter`` message of either version.

    Returns
    -------
    Reading
        Its tensors are views of the mapped file where they can be.

    Raises
    ------
    CheckpointError
        If it is damaged or hostile, or no U-Net that can be run.
    """
    try:
        with path.open("rb") as file:
            # A private copy of each page that is written to, which none is.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _reading(memoryview(content))
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error


def _reading(content: memoryview) -> Reading:
    wire = Wire(content)
    layers: list[_Layer] = []
    name = ""
    for number, form, start, stop in wire.fields(0, len(content)):
        if number == 1 and form == BYTES:
            name = wire.text(start, stop)[:200]
        elif number in _LAYERS and form == BYTES:
            layers.append(_layer(wire, start, stop, _LAYERS[number]))
            if len(layers) > _MOST_LAYERS:
                raise CheckpointError("it has far more layers than a U-Net.")
    tensors = _tensors(layers)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    # Tools that prune a file leave names and weights alone.
    whole = any(layer.bottoms for layer in layers if layer.blobs)
    if not whole:
        layout = find_layout(shapes)
        return Reading(
            "Caffe .caffemodel",
            tensors,
            layout=replace(layout, family=_FAMILY) if layout else None,
            name=name,
        )
    running = [layer for layer in layers if layer.runs]
    family, warnings = _with_shift([n.name for n in running if n.kind == "valuetransformation"])
    graph = read_graph(
        (CaffeLayer(n.name, n.kind, tuple(n.bottoms), tuple(n.tops), n.settings) for n in running),
        shapes,
        family,
        # Other people's Caffe does not crop while it concatenates.
        concat_crops=find_layout(shapes) is not None,
    )
    return Reading(
        "Caffe .caffemodel",
        tensors,
        layout=graph.layout,
        facts={k: v for k, v in graph.facts.items() if not (warnings and k == "shift")},
        name=name,
        notes=graph.notes,
        warnings=warnings,
    )


def _with_shift(shifting: Sequence[str]) -> tuple[Family, tuple[str, ...]]:
    """Take the plug-in's own shift where a layer adds to the image what is not read."""
    if not shifting:
        return _FAMILY, ()
    habit = FAMILY.normalisation
    told = (
        f"What its layer {shifting[0][:60]} adds to the image is not read from this format; where "
        f"no shift is given, {habit.shift:g}, the plug-in's own, is taken."
    )
    return replace(_FAMILY, normalisation=habit), (told,)


def _layer(wire: Wire, start: int, stop: int, version: _Version) -> _Layer:
    layer = _Layer()
    for item in wire.fields(start, stop):
        number, form, value, end = item
        if number == version.kind and form == BYTES:
            layer.kind = kind_of(wire.text(value, end))
        elif number == version.kind:
            layer.kind = _KINDS.get(value, "unknown")
        elif form != BYTES:
            continue
        elif number == version.name:
            layer.name = wire.text(value, end)
        elif number == version.bottom:
            layer.bottoms.append(wire.text(value, end))
        elif number == version.top:
            layer.tops.append(wire.text(value, end))
        elif number == version.blobs:
            layer.blobs.append(_blob(wire, value, end))
        elif number in (version.include, version.exclude):
            rule = layer.phases.setdefault(
                "include" if number == version.include else "exclude", []
            )
            rule += [n for f in wire.fields(value, end) if f[0] == 1 for n in integers(wire, f)]
        elif number in version.settings:
            layer.settings |= _settings(wire, value, end, version.settings[number])
    return layer


def _settings(wire: Wire, start: int, stop: int, fields: _Fields) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float]] = {}
    for item in wire.fields(start, stop):
        if item[0] in fields:
            name, reader = fields[item[0]]
            found.setdefault(name, []).extend(float(value) for value in reader(wire, item))
    return {name: tuple(values[:32]) for name, values in found.items()}


def _blob(wire: Wire, start: int, stop: int) -> NDArray[Any]:
    """Read one array: its shape in either version, its values packed or one by one."""
    shape: list[int] = []
    legacy: dict[int, int] = {}
    parts: list[NDArray[Any]] = []
    for item in wire.fields(start, stop):
        number, form, value, end = item
        if number in (5, 8):
            parts.append(_values(wire, item))
        elif number == 7 and form == BYTES:
            for inner in wire.fields(value, end):
                shape += integers(wire, inner) if inner[0] == 1 else []
        elif 1 <= number <= 4 and form == VARINT:
            legacy[number] = value
    values = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])
    if not shape and legacy:
        shape = [legacy.get(number, 1) for number in (1, 2, 3, 4)]
    fits = len(shape) <= 8 and all(1 <= extent < _LARGEST for extent in shape)
    if not fits or prod(shape) != values.size:
        raise CheckpointError(
            f"it holds {values.size} values where {' x '.join(map(str, shape[:8])) or 'none'} "
            "belong; get the file again."
        )
    return values.reshape(shape)


def _values(wire: Wire, item: Field) -> NDArray[Any]:
    """Numbers of one field: float32, or float64 of number 8."""
    number, form, start, stop = item
    kind = np.dtype("<f8" if number == 8 else "<f4")
    if form == BYTES and (stop - start) % kind.itemsize == 0:
        # Not aligned as a rule, which costs nothing that matters here.
        return np.frombuffer(wire.content, kind, (stop - start) // kind.itemsize, start)
    if form == (FIXED64 if number == 8 else FIXED32):
        record = np.dtype([("tag", "u1"), ("value", kind)])
        count = (stop - start + 1) // record.itemsize
        return np.frombuffer(wire.content, record, count, start - 1)["value"].copy()
    raise CheckpointError("it is damaged, or no .caffemodel; get the file again.")


def _tensors(layers: list[_Layer]) -> dict[str, Tensor]:
    """Weights and biases by the names of their layers."""
    import torch

    tensors: dict[str, Tensor] = {}
    for layer in layers:
        if len(layer.blobs) > 2 or (layer.blobs and layer.kind not in _WEIGHED):
            raise CheckpointError(
                f"{layer.name} is a layer of type {layer.kind} with weights; only U-Nets of plain "
                "convolutions are run."
            )
        for kind, values in zip(("weight", "bias"), layer.blobs, strict=False):
            key = f"{layer.name}.{kind}"
            if key in tensors:
                raise CheckpointError(f"it holds {key} twice; get the file again.")
            tensors[key] = torch.from_numpy(values.reshape(-1) if kind == "bias" else values)
    if not tensors:
        raise CheckpointError("it holds no weights, or is no .caffemodel; get the file again.")
    return tensors
