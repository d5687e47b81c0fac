"""Where a training stands, in one file that is there completely or not at all.

Weights, optimiser and the best weights so far are tensors of a ``.safetensors`` file; step,
schedule, curves and what decides the training are one JSON document in its metadata. Nothing of it
is a pickle. Random numbers need no room: those of a step follow from the seed and the step alone.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from napari_unet.atomic import replacing_file
from napari_unet.errors import CheckpointError
from napari_unet.safetensors_file import read_whole

__all__ = [
    "load_state",
    "pack_optimiser",
    "remove_leftovers",
    "save_state",
    "state_path",
    "unpack_optimiser",
]

_KEY = "valid-unet-training"
_FORMAT = 1


def state_path(out: Path) -> Path:
    """Where the state of a training that makes `out` is kept."""
    return out.with_name(f"{out.name.removesuffix('.safetensors')}.training")


def save_state(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write a state; an older one stays until the new one is complete.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    flat = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    text = json.dumps({"format": _FORMAT, **document})
    content = save(flat, metadata={_KEY: text})
    with replacing_file(path) as file:
        file.write(content)


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed had begun to write beside a state."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote.

    Raises
    ------
    CheckpointError
        If there is no such file, or it is no state.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no {path} to resume from; begin again, without resuming.")
    try:
        # As a whole: a training may put the next state in its place at any moment.
        stored = read_whole(path)
        document = dict(json.loads(stored.metadata[_KEY]))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no state of a training; delete it to begin again."
        ) from error
    if document.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is of another version; delete it to begin again.")
    return stored.tensors, document


def pack_optimiser(
    optimiser: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors of an optimiser by ``parameter.name``, and its settings as JSON types."""
    state = optimiser.state_dict()
    tensors = {
        f"{index}.{name}": value
        for index, values in state["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }
    return tensors, state["param_groups"]


def unpack_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put `pack_optimiser`'s parts back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": groups})
