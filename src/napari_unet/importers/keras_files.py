"""Files of Keras: ``.keras`` archives, ``.h5`` models, and weights alone.

Keras 3 keeps weights by their number under ``layers/<class>_<n>/vars``, counted by class in the
order of the model's layers; Keras 2, and the ``.h5`` files of Keras 3, by their names under
``<layer>/<weight>``. A model inside a model is a group inside a group.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from napari_unet.errors import CheckpointError
from napari_unet.importers.archives import Archive
from napari_unet.importers.hdf5 import Hdf5, read_hdf5
from napari_unet.importers.keras_config import MODELS, layer_name, layers_of, parse_config
from napari_unet.importers.keras_network import Weights, reading_of_model
from napari_unet.importers.keras_unnamed import reading_of_weights
from napari_unet.importers.reading import Reading

__all__ = ["read_keras", "reading_from"]

_MOST_CONFIG = 16 << 20
_MOST_WEIGHTS = 4 << 30
_MOST_NESTING = 24
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def read_keras(path: Path) -> Reading:
    """Read a ``.keras`` archive.

    Parameters
    ----------
    path : Path
        A zip file with ``config.json`` and ``model.weights.h5``.

    Raises
    ------
    CheckpointError
        If it is damaged or hostile, or its model is no U-Net that can be run.
    """
    archive = Archive(path)
    try:
        model = parse_config(archive.read("config.json", _MOST_CONFIG))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            target = Path(folder) / "model.weights.h5"
            archive.extract(target.name, target, _MOST_WEIGHTS)
            hdf5 = read_hdf5(target)
            if os.name == "nt":
                # A file cannot be removed there as long as arrays lie in it.
                copies = {name: array.copy() for name, array in hdf5.datasets.items()}
                hdf5 = replace(hdf5, datasets=copies)
        version = _version(archive)
        reading = reading_of_model(model, _numbered(model, hdf5), "Keras archive")
    except CheckpointError as error:
        text = str(error)
        if text.startswith(path.name):
            raise
        raise CheckpointError(f"{path.name}: {text}") from error
    return replace(reading, notes=version)


def reading_from(hdf5: Hdf5, path: Path) -> Reading:
    """Read what a ``.h5`` file of Keras holds: a model, or weights alone.

    Parameters
    ----------
    hdf5 : Hdf5
        The file's content.
    path : Path
        Of the file, for messages.

    Raises
    ------
    CheckpointError
        If its model is no U-Net that can be run, or it is no file of Keras.
    """
    attributes = hdf5.attributes.get("/", {})
    if attributes.get("backend") == "theano":
        raise CheckpointError(
            "it was written with Theano, which mirrors kernels; save it again with TensorFlow."
        )
    wrote = _wrote({**hdf5.attributes.get("/model_weights", {}), **attributes})
    text = attributes.get("model_config")
    if isinstance(text, str):
        weights = _by_name(hdf5, "/model_weights")
        reading = reading_of_model(parse_config(text), weights, "Keras HDF5 model")
    elif names := _texts(attributes, "layer_names"):
        named = _by_name(hdf5, "")
        # Layers without weights tell, too: they stand in the order of the model. Inside of another
        # model only those with weights are known.
        nested = any("/" in name for name in named)
        layers = named if nested else {name: named.get(name, {}) for name in names}
        reading = reading_of_weights(layers, is_ordered=not nested)
    else:
        reading = reading_of_weights(_unnamed(hdf5), is_ordered=False)
    return replace(reading, notes=wrote)


def _version(archive: Archive) -> dict[str, str]:
    """Read which Keras wrote an archive; nothing depends on it."""
    if "metadata.json" not in archive.names:
        return {}
    return _wrote(parse_config(archive.read("metadata.json", _MOST_CONFIG)))


def _wrote(attributes: Mapping[str, Any]) -> dict[str, str]:
    version = attributes.get("keras_version")
    return {"written by": f"Keras {version[:40]}"} if isinstance(version, str) else {}


def _texts(attributes: Mapping[str, Any], name: str) -> list[str]:
    """Return a list of texts, which Keras cuts into ``name0``, ``name1``, ... where it is long."""
    parts = [attributes.get(name)]
    while f"{name}{len(parts) - 1}" in attributes:
        parts.append(attributes[f"{name}{len(parts) - 1}"])
    lists = [part for part in parts if isinstance(part, list)]
    return [text for part in lists for text in part if isinstance(text, str)]


def _by_name(hdf5: Hdf5, root: str) -> dict[str, dict[str, NDArray[Any]]]:
    """Weights of Keras 2's groups by layer, behind the name of the model that it is inside of."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for layer in _texts(hdf5.attributes.get(root or "/", {}), "layer_names"):
        group = f"{root}/{layer}"
        inside: dict[str, dict[str, NDArray[Any]]] = {}
        for name in _texts(hdf5.attributes.get(group, {}), "weight_names"):
            array = hdf5.datasets.get(f"{group}/{name}")
            role = name.rpartition("/")[2].partition(":")[0]
            if array is not None:
                inside.setdefault(f"/{name}".split("/")[-2], {}).setdefault(role, array)
        if len(inside) == 1:
            # Its weights may bear another name: a model that is loaded again counts on.
            found[layer] = next(iter(inside.values()))
        else:
            found.update({f"{layer}/{name}": arrays for name, arrays in inside.items()})
    return found


def _numbered(model: Mapping[str, Any], hdf5: Hdf5) -> Weights:
    """Weights of Keras 3's groups, which are counted by class in the order of the layers."""
    arrays = {path.replace("\\", "/"): array for path, array in hdf5.datasets.items()}
    found: dict[str, dict[str, NDArray[Any]]] = {}

    def add(entry: Mapping[str, Any], group: str, prefix: str, nesting: int) -> None:
        inside = group.rpartition("/")[2]
        if nesting > _MOST_NESTING:
            raise CheckpointError("the model's description nests far deeper than a network.")
        counts: dict[str, int] = {}
        for layer in layers_of(entry):
            kind, config = layer.get("class_name"), layer.get("config")
            name = _snake(str(kind))
            number = counts.get(name, 0)
            counts[name] = number + 1
            place = f"{group}/{name}_{number}" if number else f"{group}/{name}"
            path = prefix + layer_name(layer)
            if kind in MODELS:
                add(layer, f"{place}/{inside}", f"{path}/", nesting + 1)
            elif isinstance(config, Mapping):
                roles = _roles(config)
                values = [arrays.get(f"{place}/vars/{n}") for n in range(len(roles))]
                pairs = zip(roles, values, strict=True)
                if values[0] is not None:
                    found[path] = {role: v for role, v in pairs if v is not None}

    for root in ("/layers", "/_layer_checkpoint_dependencies"):
        add(model, root, "", 0)
    return found


def _roles(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a layer's numbered weights are, by its settings."""
    if "center" in config or "scale" in config:
        scaled = ("gamma",) if config.get("scale", True) else ()
        centred = ("beta",) if config.get("center", True) else ()
        return (*scaled, *centred, "moving_mean", "moving_variance")
    return ("kernel", "bias") if config.get("use_bias", True) else ("kernel",)


def _snake(name: str) -> str:
    """Name of a class as Keras writes it in files: Conv2DTranspose is conv2d_transpose."""
    plain = re.sub(r"\W+", "", name[:200])
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", plain)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _unnamed(hdf5: Hdf5) -> dict[str, dict[str, NDArray[Any]]]:
    """Weights of Keras 3's groups where nothing says what the layers are: by rank and number."""
    arrays = {path.replace("\\", "/"): array for path, array in hdf5.datasets.items()}
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for path in (*(group.replace("\\", "/") for group in hdf5.groups), *arrays):
        inside, _, last = path.partition("/vars")
        layer = inside.removeprefix("/_layer_checkpoint_dependencies").removeprefix("/layers")
        number = last.removeprefix("/")
        if inside == path or not layer or layer.startswith("/optimizer"):
            continue
        numbered = groups.setdefault(layer.removeprefix("/"), {})
        if path in arrays and number.isdecimal() and len(number) < 4:
            numbered[number] = arrays[path]
    if not any(groups.values()):
        raise CheckpointError("it holds neither a model nor weights of Keras.")
    return {layer: _told_apart(layer, numbered) for layer, numbered in groups.items()}


def _told_apart(layer: str, numbered: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Name the numbered weights of one layer."""
    arrays = [numbered[key] for key in sorted(numbered, key=int)]
    ranks = [array.ndim for array in arrays]
    if not arrays or (ranks[0] > 1 and ranks[1:] in ([], [1])):
        return dict(zip(("kernel", "bias"), arrays, strict=False))
    if ranks == [1] * 4:
        return dict(zip(_NORM, arrays, strict=True))
    # Of a batch norm without factors these are statistics, of any other norm the factors.
    if ranks == [1] * 2 and "batch_normalization" in layer.rpartition("/")[2]:
        return dict(zip(_NORM[2:], arrays, strict=True))
    raise CheckpointError(
        f"its layer {layer} has {len(arrays)} arrays of numbers, which can mean several things; "
        "save the whole model instead of its weights alone."
    )
