"""Saved Keras models, edited: what Keras itself would never write, or wrote once."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

Config = dict[str, Any]


def written_again(
    source: Path,
    folder: Path,
    change: Callable[[Config], Any],
    weights: Callable[[h5py.File], Any] | None = None,
) -> Path:
    """Write a ``.keras`` archive again with an edited description, and edited weights."""
    path = folder / "net.keras"
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    config = change(config) or config
    members["config.json"] = json.dumps(config).encode()
    if weights is not None:
        (folder / "w.h5").write_bytes(members["model.weights.h5"])
        with h5py.File(folder / "w.h5", "r+") as file:
            weights(file)
        members["model.weights.h5"] = (folder / "w.h5").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


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
