"""What an imported checkpoint's network is known from: read, inferred, assumed or given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from napari_unet.config import Concat, NormOrder, Padding
from napari_unet.errors import OptionError
from napari_unet.intensity import Kind

__all__ = ["CHOICES", "Origin", "check_assumptions"]

# What weights cannot say: one of these words, or a number (slope, shift), or numbers of classes.
CHOICES: dict[str, tuple[str, ...]] = {
    "padding": get_args(Padding),
    "order": get_args(Concat),
    "norm-order": get_args(NormOrder),
    "up": ("nearest", "linear"),
    "up-activation": ("yes", "no"),
    "slope": (),
    "normalisation": get_args(Kind),
    "shift": (),
    "foreground": (),
    "contour": (),
}


@dataclass(frozen=True)
class Origin:
    """How each fact about an imported network came to be known.

    Parameters
    ----------
    format : str
        Of the file.
    family : str
        Whose code the names belong to.
    read : mapping of str
        What the shapes of the weights say.
    inferred : mapping of str
        What follows from the names.
    assumed : mapping of str
        What the file does not say and the family's habit filled in: worth a check.
    given : mapping of str
        What the person said instead.
    ignored : tuple of str
        Weights that the network does not use.
    warnings : tuple of str
        Sentences about results that differ from those of the program that wrote the file.
    """

    format: str
    family: str
    read: Mapping[str, str] = field(default_factory=dict)
    inferred: Mapping[str, str] = field(default_factory=dict)
    assumed: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        lists = {"ignored": list(self.ignored), "warnings": list(self.warnings)}
        return {**asdict(self), **lists}

    def provenance(self) -> dict[str, str]:
        """Return the same as texts by heading, as a card holds them."""
        texts = {"imported from": f"{self.format}, {self.family}"}
        for heading in ("read", "inferred", "assumed", "given"):
            if facts := getattr(self, heading):
                texts[heading] = ", ".join(f"{key} {value}" for key, value in facts.items())
        if self.ignored:
            shown = ", ".join(self.ignored[:4])
            more = len(self.ignored) - 4
            texts["not used"] = shown + (f" and {more} more" if more > 0 else "")
        if self.warnings:
            texts["warnings"] = " ".join(self.warnings)
        return texts


def check_assumptions(assume: Mapping[str, object]) -> dict[str, str]:
    """Bring assumptions into one form: words with dashes, numbers as text.

    Parameters
    ----------
    assume : mapping
        As ``{"order": "skip-up"}``; `CHOICES` names the keys. ``up_activation=True`` is read, too.

    Raises
    ------
    OptionError
        If a key or a value is none of the choices; the message lists them.
    """
    found: dict[str, str] = {}
    for name, value in assume.items():
        key = str(name).replace("_", "-")
        if key not in CHOICES:
            raise OptionError(f"{name!r} cannot be assumed; choose among {', '.join(CHOICES)}.")
        words = {True: "yes", False: "no"}
        text = words[value] if isinstance(value, bool) else str(value)
        if CHOICES[key] and text not in CHOICES[key]:
            raise OptionError(f"{key} must be one of {', '.join(CHOICES[key])}, not {text!r}.")
        if key in ("foreground", "contour"):
            text = _class_numbers(key, text)
        elif not CHOICES[key]:
            text = _number(key, text)
        found[key] = text
    return found


def _class_numbers(key: str, text: str) -> str:
    """Read ``1`` or ``1+2``; a contour can be ``none``."""
    if key == "contour" and text == "none":
        return text
    parts = text.split("+")
    if not all(part.isdecimal() and len(part) <= 5 for part in parts):
        raise OptionError(f"{key} must be numbers of classes, such as 1 or 1+2, not {text!r}.")
    return "+".join(str(number) for number in sorted({int(part) for part in parts}))


def _number(key: str, text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (key == "slope" and not 0 <= number < 1):
        what = "from 0 up to 1" if key == "slope" else "of grey levels"
        raise OptionError(f"{key} must be a number {what}, not {text!r}.")
    return repr(int(number) if number.is_integer() else number)
