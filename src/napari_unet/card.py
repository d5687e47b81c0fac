"""What a checkpoint says about itself: network, normalisation, classes, spacing, provenance.

The card is one JSON document; every value of it is checked before anything is built from it. It
needs no torch, so that a dock can say what a file is before it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.intensity import Normalisation

__all__ = ["Card", "ClassInfo", "default_classes"]

Role = Literal["background", "foreground", "contour", "other"]

_FORMAT = 1
_MOST_JSON = 1 << 20


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
        Defaults that belong to the model: ``threshold``, ``min_size`` and ``waist`` (pixels).
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
        if unknown := sorted(set(self.settings) - {"threshold", "min_size", "waist"}):
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
            "no rescaling" if self.spacing is None else f"{_by(self.spacing)} µm/px",
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


def _by(spacing: tuple[float, ...]) -> str:
    """0.65, or 2 x 0.65 x 0.65 where the axes differ."""
    same = len(set(spacing)) == 1
    return f"{spacing[0]:.3g}" if same else " x ".join(f"{value:.3g}" for value in spacing)


def _count(number: int) -> str:
    """0.48 M, 31 M, 5,400."""
    return f"{number / 1e6:.2g} M" if number >= 100_000 else f"{number:,}"
