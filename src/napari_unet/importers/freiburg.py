"""Freiburg's ``.caffemodel.h5``, with the ``.modeldef.h5`` beside it that says what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_unet.card import ClassInfo, default_classes
from napari_unet.errors import CheckpointError
from napari_unet.geometry import Geometry
from napari_unet.importers.caffe_graph import read_graph
from napari_unet.importers.caffe_text import layers_of
from napari_unet.importers.hdf5 import Hdf5, read_hdf5
from napari_unet.importers.layouts import FAMILIES, Layout, find_layout
from napari_unet.importers.reading import Reading
from napari_unet.intensity import Kind

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "reading_from"]

FAMILY = next(family for family in FAMILIES if family.name == "Freiburg U-Net")

_WEIGHTS, _DEFINITION = ".caffemodel.h5", ".modeldef.h5"
_NORMALISATIONS: dict[int, Kind] = {0: "none", 1: "min-max", 2: "mean-std", 3: "min-max"}


@dataclass
class _Said:
    """What a definition says, gathered field by field."""

    facts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    layout: Layout | None = None
    classes: tuple[ClassInfo, ...] = ()
    spacing: tuple[float, ...] | None = None
    name: str = ""


def reading_from(hdf5: Hdf5, path: Path) -> Reading:
    """Understand weights, with the definition that lies beside them if there is one.

    Parameters
    ----------
    hdf5 : Hdf5
        What is in the file: weights, or a definition, whose weights are then looked for.
    path : Path
        Of the file; of its neighbours only one that belongs to it is opened.

    Raises
    ------
    CheckpointError
        If the weights are missing, no U-Net that can be run, or contradict the definition.
    """
    definition = None
    if "/data" in hdf5.groups:
        beside = _beside(path, _WEIGHTS, _DEFINITION)
        definition = read_hdf5(beside) if beside else None
    else:
        beside = _beside(path, _DEFINITION, _WEIGHTS)
        if beside is None:
            raise CheckpointError(
                "it is a model's definition without weights; put the model's .caffemodel.h5 file "
                "beside it."
            )
        hdf5, definition = read_hdf5(beside), hdf5
    tensors = _tensors(hdf5)
    if definition is None:
        return Reading("Freiburg .caffemodel.h5", tensors, ordered=False)
    try:
        said = _definition(definition, tensors)
    except CheckpointError as error:
        where = beside.name if beside and beside.name.endswith(_DEFINITION) else path.name
        raise CheckpointError(f"{where}: {error}") from error
    return Reading(
        "Freiburg .caffemodel.h5 and .modeldef.h5",
        tensors,
        ordered=False,
        layout=said.layout,
        facts=said.facts,
        name=said.name,
        classes=said.classes,
        spacing=said.spacing,
        notes=said.notes,
        warnings=tuple(said.warnings),
    )


def _beside(path: Path, own: str, other: str) -> Path | None:
    """Find the other half of a model: the same name, else the only one of its kind here."""
    stem = path.name.removesuffix(own)
    if (path.parent / f"{stem}{other}").is_file():
        return path.parent / f"{stem}{other}"
    found = [neighbour for neighbour in path.parent.glob(f"*{other}") if neighbour.is_file()]
    return found[0] if len(found) == 1 else None


def _tensors(hdf5: Hdf5) -> dict[str, Tensor]:
    """Weights and biases by the names of their layers."""
    import torch

    tensors: dict[str, Tensor] = {}
    for key, values in hdf5.datasets.items():
        parts = key.split("/")
        if parts[1] != "data":
            continue
        if len(parts) != 4 or parts[3] not in ("0", "1"):
            raise CheckpointError(
                f"it holds {key}, which is neither the weight nor the bias of a convolution; "
                "such a network is not run."
            )
        if values.dtype.kind != "f":
            raise CheckpointError(f"{key} is not made of plain numbers; get the file again.")
        kind = "bias" if parts[3] == "1" else "weight"
        flat = values.reshape(-1) if kind == "bias" else values
        tensors[f"{parts[2]}.{kind}"] = torch.from_numpy(flat)
    if not tensors:
        raise CheckpointError("it holds no weights; give the .caffemodel.h5 file of a network.")
    return tensors


def _definition(hdf5: Hdf5, tensors: Mapping[str, Tensor]) -> _Said:
    """Read all that a ``.modeldef.h5`` says."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    said = _Said()
    known = find_layout(shapes)
    if text := _text(hdf5, "/model_prototxt"):
        graph = read_graph(layers_of(text), shapes, FAMILY)
        # The shift is of the image, after its normalisation; without a layer there is none.
        said.facts = {"shift": "0", **graph.facts}
        said.notes.update(graph.notes)
        said.layout = graph.layout
    layout = said.layout or known
    kind = _numbers(hdf5, "normalization_type")
    if kind:
        if kind[0] not in _NORMALISATIONS:
            raise CheckpointError(f"Its normalisation, type {kind[0]:g}, is unknown.")
        said.facts["normalisation"] = _NORMALISATIONS[int(kind[0])]
        if kind[0] == 3:
            said.warnings.append(
                "Its images are divided by their largest value, which is run as min-max: results "
                "differ where the smallest value is not 0."
            )
    if _text(hdf5, "/unet_param/padding") == "zero":
        said.warnings.append(
            "It was trained with zeros beyond the edge of the image; mirrored pixels stand in for "
            "them, so results differ at the edge."
        )
    if layout is not None:
        if said.facts.get("padding") != "same":
            _sizes(hdf5, layout)
        _classes(hdf5, said, layout.head.shape[0])
        said.spacing = _spacing(hdf5, len(layout.head.shape) - 2)
    said.name = _text(hdf5, "/unet_param/name")[:200]
    if description := _text(hdf5, "/unet_param/description"):
        said.notes["description"] = description[:4000]
    return said


def _sizes(hdf5: Hdf5, layout: Layout) -> None:
    """Hold the sizes that a definition gives against the network's geometry."""
    factor, pad_in, pad_out = (
        _numbers(hdf5, name) for name in ("downsampleFactor", "padInput", "padOutput")
    )
    axes = Geometry.of(
        [block[0].shape[2:] for block in layout.down], [unit.shape[2:] for unit in layout.up]
    ).axes
    for number, axis in enumerate(axes):
        own = [v[number if len(v) > 1 else 0] if v else None for v in (factor, pad_in, pad_out)]
        if any(v and len(v) not in (1, len(axes)) for v in (factor, pad_in, pad_out)):
            raise CheckpointError("Its sizes are of another number of axes than its weights.")
        step, before, after = own
        need = (axis.stride, axis.loss, axis.smallest % axis.stride)
        have = (
            step if step is not None else need[0],
            before - after if before is not None and after is not None else need[1],
            before % axis.stride if before is not None and math.isfinite(before) else need[2],
        )
        if have != need:
            raise CheckpointError(
                f"It says that along axis {number} sizes go in steps of {have[0]:g} and lose "
                f"{have[1]:g} px (first size {have[2]:g} beyond a step), but its weights make "
                f"{need[0]}, {need[1]} and {need[2]}; definition and weights are of two networks."
            )


def _classes(hdf5: Hdf5, said: _Said, count: int) -> None:
    values = hdf5.datasets.get("/unet_param/classNames")
    if values is None or values.dtype.kind != "O":
        return
    names = [str(name).strip()[:200] for name in values.ravel().tolist()]
    if len(names) != count or not all(names) or count < 2:
        said.warnings.append(
            f"It names {len(names)} classes where its weights give {count}; the names are left out."
        )
        return
    said.classes = tuple(
        replace(info, name=name, role="foreground" if number else "background")
        for number, (name, info) in enumerate(zip(names, default_classes(count), strict=True))
    )


def _spacing(hdf5: Hdf5, axes: int) -> tuple[float, ...] | None:
    """Micrometres per pixel, [Z,] Y, X; one number is for all axes."""
    values = _numbers(hdf5, "element_size_um")
    values = values * axes if len(values) == 1 else values
    good = len(values) == axes and all(math.isfinite(v) and v > 0 for v in values)
    return values if good else None


def _text(hdf5: Hdf5, path: str) -> str:
    values = hdf5.datasets.get(path)
    return str(values.ravel()[0]) if values is not None and _holds(values, "O") else ""


def _numbers(hdf5: Hdf5, name: str) -> tuple[float, ...]:
    values = hdf5.datasets.get(f"/unet_param/{name}")
    if values is None or not _holds(values, "biuf") or values.size > 3:
        return ()
    return tuple(float(value) for value in values.ravel().tolist())


def _holds(values: Any, kinds: str) -> bool:
    return values.size > 0 and values.dtype.kind in kinds
