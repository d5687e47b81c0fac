"""What the description of a bioimage.io package says: axes, sizes, steps, classes, arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from napari_unet.card import ClassInfo, Role, default_classes
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.intensity import Normalisation

__all__ = ["Axes", "arguments_facts", "classes_of", "normalisation_of", "notes_of", "tensor_axes"]

_MICROMETRES = {
    "picometer": 1e-6,
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
_BACKGROUND = re.compile(r"back ?ground|\bbg\b", re.IGNORECASE)
_CONTOUR = re.compile(r"bound|border|contour|edge|membrane|outline", re.IGNORECASE)
_MOST_NOTE = 4000
_PADDING = ("padding", {"same": "same", "valid": "valid"})
# By family and argument: the question, and what the values that are run answer, if anything.
_ARGUMENTS: dict[str, dict[str, tuple[str, Mapping[Any, str | None]]]] = {
    "jvanvugt/pytorch-unet": {
        "padding": ("padding", {True: "same", False: "valid"}),
        "up_mode": ("up", {"upconv": None, "upsample": "linear"}),
    },
    "johschmidt42 2D-3D U-Net": {
        "conv_mode": _PADDING,
        "up_mode": (
            "up",
            {
                "transposed": None,
                "nearest": "nearest",
                "linear": "linear",
                "bilinear": "linear",
                "trilinear": "linear",
            },
        ),
        "activation": ("slope", {"relu": "0", "leaky": "0.1"}),
        # Norms of single images have no weights that would tell.
        "normalization": ("norm", {"batch": None}),
    },
    "napari-valid-unet": {
        "padding": _PADDING,
        "concat": ("order", {"skip-up": "skip-up", "up-skip": "up-skip"}),
        "norm_order": ("norm-order", {"norm-act": "norm-act", "act-norm": "act-norm"}),
        "norm": ("norm", {"none": None, "batch": None}),
        "up": ("up", {"upconv": None, "nearest": "nearest", "linear": "linear"}),
        "up_activation": ("up-activation", {True: "yes", False: "no"}),
    },
}


@dataclass(frozen=True)
class Axes:
    """Axes of a network's input and output.

    Parameters
    ----------
    order : str
        Of the input, such as ``bcyx``.
    difference : tuple of int, optional
        Output minus input along the spatial axes, where it is said.
    spacing : tuple of float, optional
        Micrometres per pixel.
    channels : tuple of str
        Names of the output's, where it has names.
    """

    order: str
    difference: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    channels: tuple[str, ...]


def tensor_axes(inputs: Any, outputs: Any) -> Axes:
    """Read the axes of one input and one output, of format 0.4 or 0.5.

    Raises
    ------
    CheckpointError
        If there are more, or they are not those of a U-Net.
    """
    for tensors, what in ((inputs, "inputs"), (outputs, "outputs")):
        if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
            raise CheckpointError(f"describes {what} other than one image; it is no plain U-Net.")
    given, made = inputs[0], outputs[0]
    axes = given.get("axes")
    found = _of_letters(given, made) if isinstance(axes, str) else _of_list(given, made)
    space = "".join(letter for letter in found.order if letter in "zyx")
    if sorted(found.order) != sorted(f"bc{space}") or space not in ("yx", "zyx"):
        raise CheckpointError(
            f"describes an input of axes {found.order!r}; only batch, channel, [z,] y, x are run."
        )
    return found


def _of_letters(given: Mapping[str, Any], made: Mapping[str, Any]) -> Axes:
    """Format 0.4: one letter for each axis."""
    order = given["axes"][:8]
    before, after = given.get("shape"), made.get("shape")
    difference: list[int | None] = []
    for number, letter in enumerate(order):
        if letter not in "zyx":
            continue
        if isinstance(after, dict):
            scale, offset = (_at(after.get(key), number) for key in ("scale", "offset"))
            known = scale == 1 and isinstance(offset, (int, float))
            difference.append(int(2 * offset) if known else None)
        else:
            difference.append(_minus(_at(after, number), _at(before, number)))
    same = made.get("axes") == given["axes"]
    return Axes(order, _all_known(difference) if same else None, None, ())


def _of_list(given: Mapping[str, Any], made: Mapping[str, Any]) -> Axes:
    """Format 0.5: a mapping for each axis."""
    ins, outs = (_mappings(tensor.get("axes")) for tensor in (given, made))
    order = "".join(_letter(axis) for axis in ins)
    by_letter = {_letter(axis): axis for axis in outs}
    difference: list[int | None] = []
    spacing: list[float] = []
    for axis in ins:
        letter = _letter(axis)
        if letter not in "zyx":
            continue
        after = by_letter.get(letter, {})
        size, ratio = (
            after.get("size"),
            _number(after.get("scale", 1)) == _number(axis.get("scale", 1)),
        )
        if isinstance(size, dict):
            offset = size.get("offset", 0)
            own = size.get("axis_id") == axis.get("id") and size.get("tensor_id") == given.get("id")
            difference.append(offset if own and ratio and type(offset) is int else None)
        else:
            difference.append(_minus(size, axis.get("size")))
        scale, unit = _number(axis.get("scale", 1)), _MICROMETRES.get(str(axis.get("unit")))
        if unit is not None and scale is not None and 0 < scale * unit < 1e6:
            spacing.append(scale * unit)
    channels = by_letter.get("c", {}).get("channel_names")
    names = tuple(map(str, channels)) if isinstance(channels, list) else ()
    complete = len(spacing) == len(difference)
    return Axes(order, _all_known(difference), tuple(spacing) if complete else None, names)


def _mappings(axes: Any) -> list[dict[str, Any]]:
    if not isinstance(axes, list) or len(axes) > 8 or not all(isinstance(a, dict) for a in axes):
        raise CheckpointError("describes axes in a form that is not known.")
    return axes


def _letter(axis: Mapping[str, Any]) -> str:
    """One letter for an axis; a question mark for one that a U-Net does not have."""
    kind, name = axis.get("type"), str(axis.get("id", "x"))
    letters = {"batch": "b", "channel": "c"}
    if kind == "space":
        return name if name in ("z", "y", "x") else "?"
    return letters.get(str(kind), "?")


def _at(values: Any, number: int) -> Any:
    return values[number] if isinstance(values, list) and number < len(values) else None


def _minus(after: Any, before: Any) -> int | None:
    return after - before if type(after) is int and type(before) is int else None


def _all_known(values: Sequence[int | None]) -> tuple[int, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None


def _number(value: Any) -> float | None:
    """A finite number; YAML 1.1 takes 1e-3 for a text."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def normalisation_of(steps: Any, channels: int) -> tuple[Normalisation | None, tuple[str, ...]]:
    """Express preprocessing steps as a normalisation.

    Parameters
    ----------
    steps : list of mapping
        Of format 0.4 (``name``) or 0.5 (``id``).
    channels : int
        Of the input.

    Returns
    -------
    normalisation : Normalisation or None
        None if it cannot be expressed.
    warnings : tuple of str
        What is not the same.
    """
    kind: dict[str, Any] = {"kind": "none"}
    shift, gain, warnings = 0.0, 1.0, []
    for step in steps if isinstance(steps, list) else ():
        name = str(step.get("id", step.get("name"))) if isinstance(step, dict) else "?"
        kwargs = step.get("kwargs") if isinstance(step, dict) else None
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        linear = _linear(name, kwargs)
        if name == "ensure_dtype":
            continue
        if linear is not None and linear[0] > 0:
            gain, shift = gain * linear[0], shift * linear[0] + linear[1]
        elif name in ("scale_range", "zero_mean_unit_variance") and kwargs.get("mode") != "fixed":
            # What was scaled linearly before makes no difference to these.
            kind, shift, gain = _statistics(name, kwargs), 0.0, 1.0
            warnings += _range_of_statistics(kwargs, channels)
        else:
            warnings.append(f"Its preprocessing step {name[:60]} is not done here.")
    if kind["kind"] == "none" and math.isclose(gain * 255, 1, rel_tol=1e-6):
        kind, gain = {"kind": "dtype-range"}, 1.0
    if gain != 1:
        warnings.append("Its preprocessing scales by a fixed factor, which is not done here.")
        return None, tuple(warnings)
    try:
        return Normalisation.from_dict({**kind, "shift": shift}), tuple(warnings)
    except OptionError as error:
        raise CheckpointError(f"describes a preprocessing that is none: {error}") from error


def _linear(name: str, kwargs: Mapping[str, Any]) -> tuple[float, float] | None:
    """Gain and offset of a fixed step, one for all channels; None for any other."""

    def single(key: str, default: float) -> float | None:
        value = kwargs.get(key, default)
        return _number(value[0] if isinstance(value, list) and len(value) == 1 else value)

    if name == "scale_linear":
        gain, offset = single("gain", 1.0), single("offset", 0.0)
        return None if gain is None or offset is None else (gain, offset)
    fixed = name == "zero_mean_unit_variance" and kwargs.get("mode") == "fixed"
    if fixed or name == "fixed_zero_mean_unit_variance":
        mean, std = single("mean", math.nan), single("std", math.nan)
        return None if mean is None or not std else (1 / std, -mean / std)
    return None


def _statistics(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if name == "zero_mean_unit_variance":
        return {"kind": "mean-std"}
    low, high = (
        _number(kwargs.get(key, default))
        for key, default in (("min_percentile", 0.0), ("max_percentile", 100.0))
    )
    if (low, high) == (0, 100):
        return {"kind": "min-max"}
    return {"kind": "percentile", "low": low, "high": high}


def _range_of_statistics(kwargs: Mapping[str, Any], channels: int) -> list[str]:
    """Say where statistics are taken over more than one channel of one image."""
    axes, found = kwargs.get("axes"), []
    over = [str(axis)[:1] for axis in axes] if isinstance(axes, (list, str)) else ["b", "c"]
    if kwargs.get("mode") == "per_dataset" or "b" in over:
        found.append("Its intensities are scaled by a whole data set's statistics, here by each "
                     "image's own.")  # fmt: skip
    if "c" in over and channels > 1:
        found.append("Its channels are scaled together, here each by itself.")
    return found


def classes_of(names: Sequence[str], n_classes: int) -> tuple[ClassInfo, ...]:
    """Classes whose names tell which is background, which an object; else none.

    Parameters
    ----------
    names : sequence of str
        Of the output's channels.
    n_classes : int
        Channels that the network has.
    """
    telling = [name[:200] for name in names if not re.fullmatch(r"(channel|class)?_?\d*", name)]
    if len(telling) != len(names) or len(names) != n_classes:
        return ()
    if n_classes == 1:
        telling = ["background", *telling]
    roles: list[Role] = [
        "background" if _BACKGROUND.search(name) else "contour" if _CONTOUR.search(name)
        else "foreground"
        for name in telling
    ]  # fmt: skip
    if roles.count("background") != 1 or "foreground" not in roles or roles[0] != "background":
        return ()
    colors = [info.color for info in default_classes(len(roles))]
    return tuple(
        ClassInfo(name, color, role)
        for name, color, role in zip(telling, colors, roles, strict=True)
    )


def arguments_facts(family: str, callable_: str, kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Answers to open questions in the arguments of a known class.

    Parameters
    ----------
    family : str
        Whose names the weights have.
    callable_ : str
        Name of the class.
    kwargs : mapping
        Its arguments.

    Raises
    ------
    CheckpointError
        If they ask for what is not run.
    """
    facts: dict[str, str] = {}
    if family == "napari-valid-unet" and callable_ not in ("UNet", "SameSizeUNet"):
        return facts
    for name, (key, words) in _ARGUMENTS.get(family, {}).items():
        value = kwargs.get(name)
        if value is None:
            continue
        if not isinstance(value, (str, int)) or value not in words:
            raise CheckpointError(
                f"asks for a network whose {name} is {str(value)[:40]!r}, which is not run; give "
                f"one with {' or '.join(map(str, words))}."
            )
        if (answer := words[value]) is not None:
            facts[key] = answer
    if family == "napari-valid-unet" and kwargs.get("slope") is not None:
        slope = _number(kwargs["slope"])
        if slope is None or not 0 <= slope < 1:
            raise CheckpointError(
                f"asks for a network whose slope is {str(kwargs['slope'])[:40]!r}, which is not "
                "run; give one with a slope from 0 up to 1."
            )
        facts["slope"] = f"{slope:.17g}"
    return facts


def notes_of(document: Mapping[str, Any]) -> dict[str, str]:
    """Authors, licence, citations and description, as texts."""

    def listed(key: str, field: str) -> str:
        entries = document.get(key)
        entries = entries if isinstance(entries, list) else []
        texts = (str(entry.get(field, "")) for entry in entries if isinstance(entry, dict))
        return "; ".join(text for text in texts if text)

    found = {
        "description": document.get("description"),
        "authors": listed("authors", "name"),
        "licence": document.get("license"),
        "cite": listed("cite", "text"),
    }
    return {key: text[:_MOST_NOTE] for key, text in found.items() if isinstance(text, str) and text}
