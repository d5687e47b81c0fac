"""Small bioimage.io packages, written by hand from the specification: material for tests."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

FORMATS = ("0.4.10", "0.5.3")


def weights_of(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def description(
    version: str,
    weights: bytes,
    *,
    ndim: int = 2,
    loss: int | tuple[int, ...] = 40,
    classes: int = 2,
    channels: int = 1,
    kwargs: Mapping[str, Any] | None = None,
    source: str = "weights.pt",
) -> dict[str, Any]:
    """The content of an ``rdf.yaml`` of a U-Net whose output is `loss` pixels smaller."""
    losses = (loss,) * ndim if isinstance(loss, int) else loss
    common: dict[str, Any] = {
        "format_version": version,
        "type": "model",
        "name": "cells in phase contrast",
        "description": "Tells cells from what is around them.",
        "authors": [{"name": "A. Author"}, {"name": "B. Author"}],
        "license": "CC-BY-4.0",
        "cite": [{"text": "Somebody et al. 2020", "doi": "10.1000/xyz"}],
        "documentation": "README.md",
        "timestamp": "2024-05-01T12:00:00.000000",
        "tags": ["unet"],
    }
    entry: dict[str, Any] = {
        "source": source,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "pytorch_version": "2.1.0",
    }
    space = "zyx"[-ndim:]
    if version.startswith("0.4"):
        axes = f"bc{space}"
        lengths = [1, channels, *(lost + 32 for lost in losses)]
        scaling = {"mode": "per_sample", "axes": space, "min_percentile": 1}
        return common | {
            "inputs": [
                {
                    "name": "raw",
                    "axes": axes,
                    "data_type": "float32",
                    "shape": {"min": lengths, "step": [0, 0, *[16] * ndim]},
                    "preprocessing": [
                        {"name": "scale_range", "kwargs": {**scaling, "max_percentile": 99.5}}
                    ],
                }
            ],
            "outputs": [
                {
                    "name": "probability",
                    "axes": axes,
                    "data_type": "float32",
                    "shape": {
                        "reference_tensor": "raw",
                        "scale": [1, 0, *[1] * ndim],
                        "offset": [0, classes / 2, *(-lost / 2 for lost in losses)],
                    },
                }
            ],
            "weights": {
                "pytorch_state_dict": {
                    **entry,
                    "architecture": "network.py:UNet",
                    "architecture_sha256": "0" * 64,
                    "kwargs": dict(kwargs or {}),
                }
            },
        }
    lengths = [
        {"type": "space", "id": letter, "unit": "nanometer", "scale": 500} for letter in space
    ]
    names = ["background", "cell", "border"][:classes]
    return common | {
        "inputs": [
            {
                "id": "raw",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": [f"channel{n}" for n in range(channels)]},
                    *(
                        {**axis, "size": {"min": lost + 32, "step": 16}}
                        for axis, lost in zip(lengths, losses, strict=True)
                    ),
                ],
                "preprocessing": [
                    {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
                    {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", *space]}},
                    {"id": "scale_linear", "kwargs": {"gain": 1.0, "offset": 0.25}},
                ],
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "axes": [
                    {"type": "batch"},
                    {"type": "channel", "channel_names": names},
                    *(
                        {
                            **axis,
                            "size": {"tensor_id": "raw", "axis_id": axis["id"], "offset": -lost},
                        }
                        for axis, lost in zip(lengths, losses, strict=True)
                    ),
                ],
            }
        ],
        "weights": {
            "pytorch_state_dict": {
                **entry,
                "architecture": {
                    "source": "network.py",
                    "sha256": "0" * 64,
                    "callable": "UNet",
                    "kwargs": dict(kwargs or {}),
                },
            }
        },
    }


def write_package(
    target: Path, document: Mapping[str, Any] | bytes, files: Mapping[str, bytes]
) -> Path:
    """Write a package: a zip file if `target` ends in ``.zip``, else a folder."""
    text = document if isinstance(document, bytes) else yaml.safe_dump(dict(document)).encode()
    files = {"rdf.yaml": text, "network.py": b"raise SystemExit('code ran')\n", **files}
    if target.suffix != ".zip":
        target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
        return target
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def write_small_packages(folder: Path, state: Mapping[str, Tensor], loss: int) -> list[Path]:
    """Write one network as packages of both formats, each as a zip file and as a folder.

    Parameters
    ----------
    folder : Path
        Where to.
    state : mapping of str to Tensor
        Of a network of two dimensions, one channel and two classes.
    loss : int
        Pixels between its input and output.
    """
    weights = weights_of(state)
    found = []
    for version in FORMATS:
        document = description(version, weights, loss=loss)
        for suffix in (".zip", ""):
            target = folder / f"package-{version.replace('.', '-')}{suffix}"
            found.append(write_package(target, document, {"weights.pt": weights}))
    return found
