"""The native checkpoint: one ``.safetensors`` file that says all there is to know about a network.

The weights are the file's tensors. Network, normalisation, classes, spacing and provenance are one
JSON document under the key ``valid-unet`` of the file's ``__metadata__``::

    {"format": 1, "name": ..., "config": {...}, "normalisation": {...},
     "classes": [{"name": ..., "color": "#rrggbb", "role": ...}, ...],
     "spacing_um": [y, x] or null, "settings": {...}, "provenance": {...}}

Nothing of a file is ever executed; the card is read without torch.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from napari_unet.atomic import replacing_file
from napari_unet.card import Card, ClassInfo
from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError

if TYPE_CHECKING:
    from napari_unet.model import UNet

__all__ = [
    "Card",
    "ClassInfo",
    "Model",
    "bundled_models",
    "find_checkpoint",
    "load_model",
    "read_card",
    "save_model",
]

_KEY = "valid-unet"
# What files that are no safetensors begin with, to say what was picked by mistake.
_SIGNATURES = (
    (b"PK\x03\x04", "a zip archive (PyTorch or Keras write such files)"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras and Caffe write such files)"),
    (b"\x80", "a Python pickle, which could run code and is not opened"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x89PNG", "a PNG image"),
)


@dataclass(frozen=True)
class Model:
    """A checkpoint in memory.

    Parameters
    ----------
    card : Card
        What it is.
    network : UNet
        (B, C, [Z,] Y, X) -> logits; in evaluation mode, float32, on the CPU.
    path : Path, optional
        Where it came from.
    sha256 : str
        Of the file, in hexadecimal; empty for a network that was never saved.
    """

    card: Card
    network: UNet
    path: Path | None = None
    sha256: str = ""

    @property
    def config(self) -> UNetConfig:
        """Of the network."""
        return self.card.config


def bundled_models() -> dict[str, Path]:
    """Checkpoints that come with the package, by name."""
    folder = Path(str(importlib.resources.files("napari_unet"))) / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find_checkpoint(name: str | os.PathLike[str]) -> Path:
    """Return the file of a bundled model's name, or of a path.

    Raises
    ------
    CheckpointError
        If there is neither.
    """
    bundled = bundled_models()
    if str(name) in bundled:
        return bundled[str(name)]
    path = Path(name).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {str(name)!r}; give the path of a .safetensors file or one "
            f"of the bundled models: {', '.join(bundled) or 'none'}."
        )
    return path


def read_card(name: str | os.PathLike[str]) -> Card:
    """Read what a checkpoint is, without its weights and without torch.

    Parameters
    ----------
    name : str or path
        A bundled model's name, or a file.

    Raises
    ------
    CheckpointError
        If the file is missing, no checkpoint of this package, damaged or contradicts itself.
    """
    path = find_checkpoint(name)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_not_a_checkpoint(path)) from error
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path.name} holds tensors but does not say which network they belong to; give a "
            "checkpoint written by napari-valid-unet."
        )
    card = Card.from_json(metadata[_KEY])
    trained = sum(
        prod(shape)
        for key, shape in shapes.items()
        if not key.rsplit(".", 1)[-1].startswith(("running_", "num_batches"))
    )
    # Before anything is built: a description cannot ask for more than the file holds.
    if trained != card.config.n_parameters:
        raise CheckpointError(
            f"{path.name} describes a network of {card.config.n_parameters} parameters but holds "
            f"{trained}; the file is damaged."
        )
    return card


def load_model(name: str | os.PathLike[str] | Model) -> Model:
    """Load a checkpoint.

    Parameters
    ----------
    name : str, path or Model
        A bundled model's name, a file, or a model, which is returned as it is.

    Returns
    -------
    Model

    Raises
    ------
    CheckpointError
        If the file is missing, no checkpoint of this package, damaged or contradicts itself.
    """
    if isinstance(name, Model):
        return name
    import torch
    from safetensors.torch import load_file

    from napari_unet.model import UNet

    path = find_checkpoint(name)
    card = read_card(path)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_not_a_checkpoint(path)) from error
    with torch.device("meta"):
        network = UNet(card.config)
    expected = network.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys()) or sorted(
        key for key, tensor in weights.items() if tensor.shape != expected[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"{path.name} does not hold the network it describes (first difference: {wrong[0]}); "
            "the file is damaged."
        )
    floats = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in weights.items()
    }
    network.load_state_dict(floats, assign=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Model(card, network.eval(), path, digest)


def save_model(
    path: str | os.PathLike[str], network: UNet, card: Card, *, half: bool = False
) -> Path:
    """Write a checkpoint; an existing file is replaced only once the new one is complete.

    Parameters
    ----------
    path : str or path
        Ends in ``.safetensors``.
    network : UNet
        Whose weights are stored.
    card : Card
        What it is; its configuration has to be the network's.
    half : bool
        Store float16 instead of float32: half the size, about three decimal digits.

    Raises
    ------
    CheckpointError
        If card and network differ.
    OutputError
        If the file cannot be written.
    """
    import torch
    from safetensors.torch import save

    target = Path(path)
    if card.config != network.config:
        raise CheckpointError("Card and network have different configurations; pass the same.")
    weights = {
        key: (tensor.to(torch.float16) if half and tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for key, tensor in network.state_dict().items()
    }
    content = save(weights, metadata={_KEY: card.to_json()})
    with replacing_file(target) as file:
        file.write(content)
    return target


def _not_a_checkpoint(path: Path) -> str:
    """Say what a file is that is not a readable checkpoint."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror}); check the file."
    for signature, what in _SIGNATURES:
        if start.startswith(signature):
            return f"{path.name} is {what}; give a .safetensors checkpoint."
    if not start:
        return f"{path.name} is empty; give a .safetensors checkpoint."
    return f"{path.name} is not a readable .safetensors checkpoint, or is cut short; get it again."
