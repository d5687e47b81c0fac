"""Checkpoints: the native file, and the one door through which every kind of file opens.

A native checkpoint is one ``.safetensors`` file that says all there is to know about a network.
The weights are the file's tensors. Network, normalisation, classes, spacing and provenance are one
JSON document under the key ``valid-unet`` of the file's ``__metadata__``::

    {"format": 1, "name": ..., "config": {...}, "normalisation": {...},
     "classes": [{"name": ..., "color": "#rrggbb", "role": ...}, ...],
     "spacing_um": [y, x] or null, "settings": {...}, "provenance": {...}}

Nothing of a file is ever executed; the card is read without torch. What other programs wrote goes
through `napari_unet.importers`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from napari_unet.atomic import replacing_file
from napari_unet.card import Card, ClassInfo
from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.importers import DESCRIPTIONS, Origin, import_checkpoint, is_safetensors
from napari_unet.paths import user_path
from napari_unet.safetensors_file import read_whole

if TYPE_CHECKING:
    from napari_unet.model import UNet

__all__ = [
    "Card",
    "ClassInfo",
    "Model",
    "bundled_models",
    "file_sha256",
    "find_checkpoint",
    "is_native",
    "load_again",
    "load_model",
    "read_card",
    "save_model",
]

_KEY = "valid-unet"
_MOST_FILES = 1000


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
    origin : Origin, optional
        How an imported network came to be known; None where the file itself says it.
    """

    card: Card
    network: UNet
    path: Path | None = None
    sha256: str = ""
    origin: Origin | None = None

    @property
    def config(self) -> UNetConfig:
        """Of the network."""
        return self.card.config


def bundled_models() -> dict[str, Path]:
    """Checkpoints that come with the package, by name; the one to try first is the first."""
    folder = Path(str(importlib.resources.files("napari_unet"))) / "models"
    found = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    return dict(sorted(found.items(), key=lambda item: item[0] != "nuclei"))


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
    path = user_path(name)
    if not path.is_file() and not any((path / name).is_file() for name in DESCRIPTIONS):
        raise CheckpointError(
            f"There is no checkpoint {str(name)!r}; give the path of a checkpoint file or one "
            f"of the bundled models: {', '.join(bundled) or 'none'}."
        )
    return path


def read_card(name: str | os.PathLike[str], *, assume: Mapping[str, object] | None = None) -> Card:
    """Read what a checkpoint is; of a native one without its weights and without torch.

    Parameters
    ----------
    name : str or path
        A bundled model's name, or a file.
    assume : mapping, optional
        What an imported file does not say; see `load_model`.

    Raises
    ------
    CheckpointError
        If the file is missing, no checkpoint, damaged or contradicts itself.
    """
    path = find_checkpoint(name)
    text = _description(path)
    return import_checkpoint(path, assume).card if text is None else _checked_card(path, text)


def is_native(path: Path) -> bool:
    """Whether a file says which network its weights belong to.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    return _description(path) is not None


def _description(path: Path) -> str | None:
    """Return the card's text, or None in a file of another program."""
    try:
        if not is_safetensors(path):
            return None
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_not_a_checkpoint(path)) from error
    return metadata.get(_KEY)


def _checked_card(path: Path, text: str) -> Card:
    """Read a card and hold it against the sizes of the file's tensors."""
    card = Card.from_json(text)
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(_not_a_checkpoint(path)) from error
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


def load_model(
    name: str | os.PathLike[str] | Model, *, assume: Mapping[str, object] | None = None
) -> Model:
    """Load a checkpoint: a native one, or one of the formats that `napari_unet.importers` reads.

    Parameters
    ----------
    name : str, path or Model
        A bundled model's name, a file, or a model, which is returned as it is.
    assume : mapping, optional
        What an imported file does not say, such as ``{"order": "skip-up"}``; the choices are
        `napari_unet.importers.CHOICES`.

    Returns
    -------
    Model
        Its `origin` tells what was read, inferred and assumed.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, hostile, contradicts itself, or is of a network that is
        not known or cannot be run.
    OptionError
        If an assumption is none of the choices, or contradicts the file.
    """
    if isinstance(name, Model):
        if assume:
            raise OptionError("A model in memory says all about its network; assume nothing.")
        return name
    path = find_checkpoint(name)
    text = _description(path)
    if text is not None:
        if assume:
            raise OptionError(f"{path.name} says all about its network; assume nothing.")
        _checked_card(path, text)  # before anything is read that its network has no use for
        return _native(path)
    found = import_checkpoint(path, assume)
    network = _without_weights(found.card.config)
    network.load_state_dict(found.weights, assign=True)
    return Model(found.card, network, path, file_sha256(path), found.origin)


def load_again(name: str | os.PathLike[str] | Model) -> Model:
    """Load a checkpoint, or return what was loaded of the same file last, if it is native.

    A second run finds only the very same network ready (`predictors.kept`). Whoever calls this
    leaves it as it is.

    Raises
    ------
    CheckpointError
        As `load_model` does.
    """
    if isinstance(name, Model):
        return name
    path = find_checkpoint(name)
    if not is_native(path):  # which may be more than one file
        return load_model(path)
    found = path.stat()
    return _loaded(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=1)
def _loaded(path: Path, _version: tuple[int, ...]) -> Model:
    return load_model(path)


def file_sha256(path: Path) -> str:
    """Hash of a file in hexadecimal, read piece by piece; of a folder, of all its files.

    Raises
    ------
    CheckpointError
        If a folder holds far more than a package does.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = sorted(islice((p for p in path.rglob("*") if p.is_file()), _MOST_FILES + 1))
    if len(parts) > _MOST_FILES:
        raise CheckpointError(f"{path.name} is a folder of too many files to be one package.")
    lines = (f"{part.relative_to(path).as_posix()} {file_sha256(part)}\n" for part in parts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _native(path: Path) -> Model:
    """Load a native file; the names and shapes of its tensors are those of its network."""
    try:
        stored = read_whole(path)
        text = stored.metadata[_KEY]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(_not_a_checkpoint(path)) from error
    card, weights = Card.from_json(text), stored.tensors
    network = _without_weights(card.config)
    expected = network.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys()) or sorted(
        key for key, tensor in weights.items() if tensor.shape != expected[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"{path.name} does not hold the network it describes (first difference: {wrong[0]}); "
            "the file is damaged."
        )
    wide = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in weights.items()
    }
    network.load_state_dict(wide, assign=True)
    return Model(card, network, path, stored.sha256)


def _without_weights(config: UNetConfig) -> UNet:
    """Build a network that takes no memory yet, for inference."""
    import torch

    from napari_unet.model import UNet

    with torch.device("meta"):
        return UNet(config).eval()


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
    """Say what is wrong with a file that begins like safetensors."""
    try:
        path.open("rb").close()
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror}); check the file."
    return f"{path.name} is not a readable .safetensors checkpoint, or is cut short; get it again."
