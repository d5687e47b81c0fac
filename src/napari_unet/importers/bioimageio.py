"""bioimage.io packages: what they describe, and the weights in them. Their code is never run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_unet.card import Card
from napari_unet.errors import CheckpointError
from napari_unet.importers.detective import examine
from napari_unet.importers.formats import is_safetensors
from napari_unet.importers.layouts import find_layout
from napari_unet.importers.package_facts import (
    Axes,
    arguments_facts,
    classes_of,
    normalisation_of,
    notes_of,
    tensor_axes,
)
from napari_unet.importers.package_files import PackageFiles
from napari_unet.importers.plain_yaml import MOST_BYTES, read_yaml
from napari_unet.importers.reading import Reading
from napari_unet.importers.weights import unwrap

__all__ = ["read_package"]

_FORMATS = ("pytorch_state_dict", "keras_v3", "keras_hdf5")


def read_package(path: Path) -> Reading:
    """Read a package of format 0.4 or 0.5 whose weights are a state dict, or a Keras model.

    Parameters
    ----------
    path : Path
        A zip archive, or the folder of an unpacked one.

    Raises
    ------
    CheckpointError
        If it is damaged or hostile, or has no such weights.
    """
    try:
        return _reading(path)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(
            text if text.startswith(path.name) else f"{path.name}: {text}"
        ) from error


def _reading(path: Path) -> Reading:
    files = PackageFiles(path)
    document = read_yaml(files.read_description(MOST_BYTES))
    version = str(document.get("format_version"))
    if document.get("type", "model") != "model" or not version.startswith(("0.4.", "0.5.")):
        raise CheckpointError(
            f"is a package of format {version[:20]}, type {str(document.get('type'))[:20]}; "
            "models of format 0.4 and 0.5 are read."
        )
    kind, entry = _weights(document.get("weights"))
    with files.opened(entry.get("source"), entry.get("sha256")) as weights:
        reading = _read_weights(kind, weights)
        if os.name == "nt" and files.archive is not None:
            # Windows removes no file that tensors are still mapped from.
            copies = {key: tensor.clone() for key, tensor in reading.tensors.items()}
            reading = replace(reading, tensors=copies)
    if entry.get("sha256") is None:
        told = "The package gives no checksum of its weights; damage would not be noticed."
        reading = replace(reading, warnings=(*reading.warnings, told))
    reading = replace(reading, kind=f"bioimage.io {version} package, {reading.kind}")
    config = document.get("config")
    own = config.get("valid-unet") if isinstance(config, dict) else None
    if isinstance(own, dict) and kind == "pytorch_state_dict":
        return replace(reading, card=_own_card(own.get("card"), reading))
    return _described(document, kind, entry, reading)


def _weights(weights: Any) -> tuple[str, Mapping[str, Any]]:
    """Choose the weights that can be read."""
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError("describes no weights.")
    for kind in _FORMATS:
        if isinstance(entry := weights.get(kind), dict):
            return kind, entry
    raise CheckpointError(
        f"holds its weights as {', '.join(str(key)[:30] for key in list(weights)[:5])} only; a "
        "PyTorch state dict or a Keras model is what can be read."
    )


def _read_weights(kind: str, path: Path) -> Reading:
    """Read weights as a file of their own, but never another package."""
    if kind == "keras_v3":
        from napari_unet.importers.keras_files import read_keras

        return read_keras(path)
    if kind == "keras_hdf5":
        from napari_unet.importers.hdf5_kinds import read_hdf5_checkpoint

        return read_hdf5_checkpoint(path)
    if is_safetensors(path):
        from napari_unet.importers.tensors import read_safetensors

        return read_safetensors(path)
    from napari_unet.importers.pickles import read_pickle

    return read_pickle(path)


def _own_card(document: Any, reading: Reading) -> Card:
    """Read the card that our own exports carry, and hold it against the weights."""
    import torch

    from napari_unet.model import UNet

    try:
        text = json.dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"describes itself wrongly: {error}") from error
    card = Card.from_json(text)
    held = sum(
        tensor.numel()
        for key, tensor in reading.tensors.items()
        if not key.rpartition(".")[2].startswith(("running_", "num_batches"))
    )
    differs = held != card.config.n_parameters
    if not differs:
        with torch.device("meta"):
            expected = UNet(card.config).state_dict()
        shapes = {key: tensor.shape for key, tensor in reading.tensors.items()}
        differs = shapes != {key: tensor.shape for key, tensor in expected.items()}
    if differs:
        raise CheckpointError("does not hold the network it describes; get it again.")
    return card


def _described(
    document: Mapping[str, Any], kind: str, entry: Mapping[str, Any], reading: Reading
) -> Reading:
    """Add what the description of a foreign package says."""
    inputs: Any = document.get("inputs")
    outputs: Any = document.get("outputs")
    axes = tensor_axes(inputs, outputs)
    if kind == "pytorch_state_dict":
        if not axes.order.startswith("bc"):
            raise CheckpointError(f"describes an input of axes {axes.order!r}, unlike its weights.")
        tensors, _ = unwrap(reading.tensors)
        reading = _with_padding(entry, replace(reading, facts=_facts(entry, tensors)), axes)
    config = _config(reading)
    if config.ndim != len(axes.order) - 2:
        raise CheckpointError(
            f"describes {len(axes.order) - 2} dimensions, its weights have {config.ndim}."
        )
    normalisation, told = normalisation_of(inputs[0].get("preprocessing"), config.in_channels)
    notes = notes_of(document)
    classes = classes_of(axes.channels, config.n_classes)
    if axes.channels and not classes:
        notes["channels"] = ", ".join(axes.channels)[:1000]
    after = outputs[0].get("postprocessing")
    for step in after if isinstance(after, list) else ():
        name = step.get("id", step.get("name")) if isinstance(step, dict) else None
        if name == "sigmoid" and config.n_classes > 1:
            told += ("Its classes are a sigmoid each, here a softmax is taken over them.",)
    name = document.get("name")
    return replace(
        reading,
        name=name if isinstance(name, str) and name else reading.name,
        normalisation=reading.normalisation or normalisation,
        classes=reading.classes or classes,
        spacing=reading.spacing or axes.spacing,
        notes={**reading.notes, **notes},
        warnings=(*reading.warnings, *told),
    )


def _config(reading: Reading) -> Any:
    """The network as its weights and facts make it, before anything else is known."""
    tensors = reading.tensors if reading.layout is not None else unwrap(reading.tensors)[0]
    valid = {"padding": "valid", **reading.facts}
    return examine(replace(reading, tensors=tensors, facts=valid)).config


def _facts(entry: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    """What the arguments of the network's class say, where its family is known by the weights."""
    layout = find_layout({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    architecture = entry.get("architecture")
    inner = architecture if isinstance(architecture, dict) else entry
    kwargs, callable_ = inner.get("kwargs"), inner.get("callable", architecture)
    if layout is None or not isinstance(kwargs, dict):
        return {}
    return arguments_facts(layout.family.name, str(callable_).rpartition(":")[2], kwargs)


def _with_padding(entry: Mapping[str, Any], reading: Reading, axes: Axes) -> Reading:
    """Hold sizes against the network: they tell valid convolutions from padded ones."""
    architecture = entry.get("architecture")
    wrapped = isinstance(architecture, dict) and architecture.get("callable") == "SameSizeUNet"
    if axes.difference is None or wrapped:
        return reading
    plain = {key: text for key, text in reading.facts.items() if key != "padding"}
    loss = tuple(-axis.loss for axis in _config(replace(reading, facts=plain)).geometry.axes)
    if len(loss) != len(axes.difference):
        return reading  # another number of dimensions, which is said later
    if axes.difference == loss:
        found = "valid"
    elif not any(axes.difference):
        found = "same"
    else:
        lost = " x ".join(str(-lost) for lost in axes.difference)
        raise CheckpointError(
            f"describes an output {lost} px smaller than its input, where a U-Net of these weights "
            f"loses {' x '.join(str(-n) for n in loss)} or none; it is another network."
        )
    if reading.facts.get("padding", found) != found:
        told = (
            f"Its sizes are those of {found} convolutions, the arguments of its class say "
            f"{reading.facts['padding']}: set padding yourself."
        )
        return replace(reading, facts=plain, warnings=(*reading.warnings, told))
    return replace(reading, facts={**plain, "padding": found})
