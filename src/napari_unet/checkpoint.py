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
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from safetensors import SafetensorError, safe_open

from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.intensity import Normalisation

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

Role = Literal["background", "foreground", "contour", "other"]

_KEY = "valid-unet"
_FORMAT = 1
_MOST_JSON = 1 << 20
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
class ClassInfo:
    """One class of the network's output.

    Parameters
    ----------
    name : str
        For people.
    color : str
        ``#rrggbb``.
    role : {"background", "foreground", "contour", "other"}
        What it means for instances: foreground and contour together are the objects, contour
        alone keeps them apart.
    """

    name: str
    color: str
    role: Role = "other"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 200:
            raise OptionError(f"a class needs a name of 1 to 200 letters, not {self.name!r}.")
        digits = self.color[1:] if isinstance(self.color, str) else ""
        if (
            len(digits) != 6
            or not self.color.startswith("#")
            or set(digits.lower()) - set("0123456789abcdef")
        ):
            raise OptionError(f"a colour is written #rrggbb, not {self.color!r}.")
        if self.role not in get_args(Role):
            raise OptionError(f"a role is one of {', '.join(get_args(Role))}, not {self.role!r}.")


_DEFAULT_CLASSES = (
    ClassInfo("background", "#000000", "background"),
    ClassInfo("foreground", "#4daf4a", "foreground"),
    ClassInfo("contour", "#e6ab02", "contour"),
)
_MORE_COLORS = ("#377eb8", "#e41a1c", "#984ea3", "#ff7f00", "#a65628", "#f781bf", "#999999")


def default_classes(n_classes: int) -> tuple[ClassInfo, ...]:
    """Background, foreground and contour; plain numbers where there are more classes than that."""
    count = max(n_classes, 2)
    if count <= len(_DEFAULT_CLASSES):
        return _DEFAULT_CLASSES[:count]
    others = (
        ClassInfo(f"class {index}", _MORE_COLORS[(index - 1) % len(_MORE_COLORS)], "foreground")
        for index in range(1, count)
    )
    return (_DEFAULT_CLASSES[0], *others)


@dataclass(frozen=True)
class Card:
    """What a checkpoint is, apart from its weights.

    Parameters
    ----------
    name : str
        Short; result layers carry it.
    config : UNetConfig
        The network.
    normalisation : Normalisation
        How images are scaled for it.
    classes : tuple of ClassInfo
        One for each output; for a single output (a sigmoid) background and foreground.
    spacing : tuple of float, optional
        Micrometres per pixel of the training images, [Z,] Y, X.
    settings : mapping
        Defaults that belong to the model: ``threshold``, ``min_size`` (pixels).
    provenance : mapping of str
        Data, licence, recipe, figures: free text by heading.
    """

    name: str
    config: UNetConfig
    normalisation: Normalisation = field(default_factory=Normalisation)
    classes: tuple[ClassInfo, ...] = ()
    spacing: tuple[float, ...] | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 200:
            raise OptionError(f"a model needs a name of 1 to 200 letters, not {self.name!r}.")
        put = object.__setattr__
        put(self, "classes", tuple(self.classes) or default_classes(self.config.n_classes))
        if len(self.classes) != max(self.config.n_classes, 2):
            raise OptionError(
                f"{len(self.classes)} classes are named, the network has {self.config.n_classes}."
            )
        if self.spacing is not None:
            put(self, "spacing", tuple(float(value) for value in self.spacing))
            if len(self.spacing) != self.config.ndim or not all(
                0 < value < 1e6 for value in self.spacing
            ):
                raise OptionError(
                    f"spacing is one length above 0 per spatial axis, not {self.spacing}."
                )
        if unknown := sorted(set(self.settings) - {"threshold", "min_size"}):
            raise OptionError(f"unknown model settings: {', '.join(unknown)}.")
        for key, value in self.settings.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                raise OptionError(f"model setting {key} must be a number >= 0, not {value!r}.")
        if not all(isinstance(text, str) for text in self.provenance.values()):
            raise OptionError("provenance holds texts only.")

    def describe(self) -> str:
        """Tell what the model is in one line."""
        config = self.config
        names = [info.name for info in self.classes]
        listed = " + ".join(names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"])
        parts = [
            f"{config.ndim}-D",
            f"{config.in_channels} channel{'s' * (config.in_channels > 1)}",
            listed,
            "any pixel size" if self.spacing is None else f"{_by(self.spacing)} µm/px",
            f"{_count(config.n_parameters)} parameters",
        ]
        return ", ".join(parts)

    def to_json(self) -> str:
        """Return the document that is stored in the file."""
        document = {
            "format": _FORMAT,
            "name": self.name,
            "config": self.config.to_dict(),
            "normalisation": self.normalisation.to_dict(),
            "classes": [asdict(info) for info in self.classes],
            "spacing_um": None if self.spacing is None else list(self.spacing),
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
        }
        return json.dumps(document, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read `to_json`'s document; every value is checked.

        Raises
        ------
        CheckpointError
            If anything in it is missing, unknown or out of range.
        """
        if len(text) > _MOST_JSON:
            raise CheckpointError("The checkpoint's description is longer than 1 MiB.")
        try:
            document = json.loads(text)
            if document["format"] != _FORMAT:
                raise CheckpointError(
                    f"The checkpoint has format {document['format']!r}, this version reads "
                    f"{_FORMAT}; update napari-valid-unet."
                )
            spacing = document["spacing_um"]
            return cls(
                name=document["name"],
                config=UNetConfig.from_dict(document["config"]),
                normalisation=Normalisation.from_dict(document["normalisation"]),
                classes=tuple(ClassInfo(**info) for info in document["classes"]),
                spacing=None if spacing is None else tuple(spacing),
                settings=dict(document["settings"]),
                provenance=dict(document["provenance"]),
            )
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"The checkpoint's description is not valid: {error}") from error


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
        If the file cannot be written, or card and network differ.
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
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written ({error.strerror}); choose another folder."
        ) from error
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


def _by(spacing: tuple[float, ...]) -> str:
    """0.65, or 2 x 0.65 x 0.65 where the axes differ."""
    same = len(set(spacing)) == 1
    return f"{spacing[0]:.3g}" if same else " x ".join(f"{value:.3g}" for value in spacing)


def _count(number: int) -> str:
    """0.48 M, 31 M, 5,400."""
    return f"{number / 1e6:.2g} M" if number >= 100_000 else f"{number:,}"
