"""Layers of a Caffe network from its prototxt, the definition as text."""

from __future__ import annotations

import math

from napari_unet.errors import CheckpointError
from napari_unet.importers.caffe_walk import CaffeLayer
from napari_unet.importers.prototxt import Message, parse_prototxt

__all__ = ["kind_of", "layers_of"]

# Our names of settings -> the fields that give them.
_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "convolution_param": {
        "kernel": ("kernel_size", "kernel_h", "kernel_w"),
        "stride": ("stride", "stride_h", "stride_w"),
        "pad": ("pad", "pad_h", "pad_w"),
        "group": ("group",),
        "dilation": ("dilation",),
        "num_output": ("num_output",),
    },
    "pooling_param": {
        "kernel": ("kernel_size", "kernel_h", "kernel_w"),
        "stride": ("stride", "stride_h", "stride_w"),
        "pad": ("pad", "pad_h", "pad_w"),
        "pool": ("pool",),
    },
    "relu_param": {"slope": ("negative_slope",)},
    "crop_param": {"offset": ("offset",)},
    "power_param": {"shift": ("shift",), "scale": ("scale",), "power": ("power",)},
    "value_transformation_param": {"shift": ("offset",), "scale": ("scale",)},
}
_LARGEST = 1e9
_WORDS = {"true": 1.0, "false": 0.0, "MAX": 0.0, "AVE": 1.0, "STOCHASTIC": 2.0}


def kind_of(name: str) -> str:
    """Bring the type of a layer into one form: ``InnerProduct`` and ``INNER_PRODUCT`` are one."""
    return name.replace("_", "").lower()


def layers_of(text: str) -> list[CaffeLayer]:
    """Read the layers that run when a network is used, not only when it is trained.

    Parameters
    ----------
    text : str
        A prototxt.

    Raises
    ------
    CheckpointError
        If it is damaged or far too large.
    """
    root = parse_prototxt(text)
    found = [*root.get("layer", ()), *root.get("layers", ())]
    return [_layer(item) for item in found if isinstance(item, dict) and _runs(item)]


def _runs(layer: Message) -> bool:
    def phases(name: str) -> list[str]:
        rules = [rule for rule in layer.get(name, ()) if isinstance(rule, dict)]
        return [word for rule in rules for word in _words(rule, "phase")]

    included = phases("include")
    return (not included or "TEST" in included) and "TEST" not in phases("exclude")


def _layer(item: Message) -> CaffeLayer:
    settings: dict[str, tuple[float, ...]] = {}
    for parameter, fields in _FIELDS.items():
        for message in item.get(parameter, ()):
            if isinstance(message, dict):
                settings |= {
                    ours: values
                    for ours, theirs in fields.items()
                    if (values := tuple(v for name in theirs for v in _values(message, name)))
                }
    return CaffeLayer(
        name=(_words(item, "name") or [""])[0],
        kind=kind_of((_words(item, "type") or [""])[0]),
        bottoms=tuple(_words(item, "bottom")),
        tops=tuple(_words(item, "top")),
        settings=settings,
    )


def _words(message: Message, name: str) -> list[str]:
    return [value for value in message.get(name, ()) if isinstance(value, str)]


def _values(message: Message, name: str) -> list[float]:
    """Return a field's numbers; Freiburg's own layers wrap them: ``offset { v: -0.5 }``."""
    found: list[float] = []
    for value in message.get(name, ()):
        for word in _words(value, "v") if isinstance(value, dict) else [value]:
            try:
                number = _WORDS[word] if word in _WORDS else float(word[:40])
            except ValueError:
                number = math.nan
            if not abs(number) < _LARGEST:
                raise CheckpointError(
                    f"The network's definition gives {name} as {word[:20]!r}, which is no number."
                )
            found.append(number)
    return found
