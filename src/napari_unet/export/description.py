"""The description of a model, as version 0.5 of the bioimage.io specification has it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from napari_unet._version import __version__
from napari_unet.card import Card
from napari_unet.errors import OptionError
from napari_unet.export.sizes import axis_sizes, network_arguments
from napari_unet.intensity import Normalisation

__all__ = [
    "FORMAT_VERSION",
    "describe",
    "exact_scale",
    "find_dois",
    "find_license",
    "preprocessing_steps",
]

# The first that has all that is used here; readers of every 0.5 version understand it.
FORMAT_VERSION = "0.5.4"
_PAPER = {
    "text": "Ronneberger, Fischer and Brox: U-Net: Convolutional Networks for Biomedical Image "
    "Segmentation. MICCAI 2015.",
    "doi": "10.1007/978-3-319-24574-4_28",
}
# How licences are written, and what SPDX calls them.
_LICENSES = (
    (r"\bCC0\b", "CC0-1.0"),
    (r"\bCC[ -]BY[ -]4\.0\b", "CC-BY-4.0"),
    (r"\bCC[ -]BY[ -]SA[ -]4\.0\b", "CC-BY-SA-4.0"),
    (r"\bCC[ -]BY[ -]NC[ -]4\.0\b", "CC-BY-NC-4.0"),
    (r"\bMIT\b", "MIT"),
    (r"\bApache[ -](License[ -])?2\.0\b", "Apache-2.0"),
    (r"\bBSD[ -]3", "BSD-3-Clause"),
    (r"\bBSD[ -]2", "BSD-2-Clause"),
)
_DOI = re.compile(r"\b10\.\d{4,9}/[^\s,;\"'<>]+")


def find_license(provenance: Mapping[str, str]) -> str | None:
    """Return the SPDX identifier of the one licence that a card names, or None."""
    text = " ".join(value for key, value in provenance.items() if key.lower().startswith("licen"))
    found = {name for pattern, name in _LICENSES if re.search(pattern, text)}
    return found.pop() if len(found) == 1 else None


def find_dois(provenance: Mapping[str, str]) -> dict[str, str]:
    """Return each DOI that a card names, with the text around it."""
    found: dict[str, str] = {}
    for text in provenance.values():
        for match in _DOI.findall(text):
            found.setdefault(match.rstrip(".)]"), text)
    return found


def preprocessing_steps(normalisation: Normalisation, axes: Sequence[str]) -> list[dict[str, Any]]:
    """Express a normalisation in the specification's steps, each channel by itself.

    Parameters
    ----------
    normalisation : Normalisation
        Of the model.
    axes : sequence of str
        Spatial axes; statistics are taken over them.

    Raises
    ------
    OptionError
        If the specification has no such percentiles.
    """
    steps: list[dict[str, Any]] = []
    if normalisation.kind in ("percentile", "min-max"):
        whole = normalisation.kind == "min-max"
        low, high = (0.0, 100.0) if whole else (normalisation.low, normalisation.high)
        if high <= 1:
            raise OptionError(
                f"The specification takes no upper percentile of {high:g}; it has to be above 1."
            )
        limits = {"min_percentile": float(low), "max_percentile": float(high)}
        steps.append({"id": "scale_range", "kwargs": {"axes": list(axes), **limits}})
    elif normalisation.kind == "mean-std":
        steps.append({"id": "zero_mean_unit_variance", "kwargs": {"axes": list(axes)}})
    elif normalisation.kind == "dtype-range":
        # A step cannot ask for the image's type; 8 bits are what such networks are trained on.
        steps.append({"id": "scale_linear", "kwargs": {"gain": 1 / 255, "offset": 0.0}})
    if normalisation.shift:
        kwargs = {"gain": 1.0, "offset": float(normalisation.shift)}
        steps.append({"id": "scale_linear", "kwargs": kwargs})
    return steps


def describe(
    card: Card,
    *,
    tileable: bool,
    authors: Sequence[str],
    license: str | None,
    sums: Mapping[str, str],
    torch_version: str,
) -> dict[str, Any]:
    """Return the content of ``rdf.yaml``.

    Parameters
    ----------
    card : Card
        What the model is.
    tileable : bool
        Describe the variant of the same size.
    authors : sequence of str
        Names.
    license : str, optional
        SPDX identifier.
    sums : mapping of str to str
        SHA-256 of the other files of the package, by name.
    torch_version : str
        Of the PyTorch that wrote the weights.
    """
    callable_, arguments = network_arguments(card.config, tileable=tileable)
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": _name(card.name),
        "description": _description(card)[:500],
        "authors": [{"name": re.sub(r"[/\\]", " ", name)} for name in authors],
        "cite": [
            _PAPER,
            *({"text": text, "doi": doi} for doi, text in find_dois(card.provenance).items()),
        ],
        "tags": _tags(card),
        "documentation": {"source": "README.md", "sha256": sums["README.md"]},
        "covers": [{"source": "cover.png", "sha256": sums["cover.png"]}],
        "inputs": [_input(card, tileable=tileable, sha256=sums["test_input.npy"])],
        "outputs": [_output(card, tileable=tileable, sha256=sums["test_output.npy"])],
        "weights": {
            "pytorch_state_dict": {
                "source": "weights.pt",
                "sha256": sums["weights.pt"],
                "architecture": {
                    "source": "unet.py",
                    "sha256": sums["unet.py"],
                    "callable": callable_,
                    "kwargs": arguments,
                },
                "pytorch_version": torch_version.partition("+")[0],
            }
        },
        "config": {"valid-unet": {"version": __version__, "card": json.loads(card.to_json())}},
    }
    return document | ({"license": license} if license else {})


def _name(name: str) -> str:
    """Letters that the specification allows, five at least."""
    plain = " ".join(re.sub(r"[^A-Za-z0-9_+\- ()]+", " ", name).split())[:50].strip()
    return plain if len(plain) >= 5 else f"{plain} U-Net".strip()


def _description(card: Card) -> str:
    kind = "Valid-convolution" if card.config.padding == "valid" else "Padded"
    return f"{kind} U-Net that gives a logit for each class: {card.describe()}."


def _tags(card: Card) -> list[str]:
    dimensions = f"{card.config.ndim}d"
    kind = "instance" if any(info.role == "contour" for info in card.classes) else "semantic"
    return [
        "unet",
        f"unet{dimensions}",
        dimensions,
        "pytorch",
        "segmentation",
        f"{kind}-segmentation",
    ]


def _space(card: Card) -> list[dict[str, Any]]:
    """The spatial axes, with the size of pixels where the card says it."""
    axes = [{"type": "space", "id": name} for name in "zyx"[-card.config.ndim :]]
    if card.spacing is None:
        return axes
    return [
        axis | {"unit": "micrometer", "scale": exact_scale(length)}
        for axis, length in zip(axes, card.spacing, strict=True)
    ]


def exact_scale(length: float) -> float:
    """Round to the digits of a float32.

    Readers compute a size as ``size * scale / scale``, which has to be the same whole number: with
    all the digits of 0.4, 24 pixels become 24.000000000000004.
    """
    return float(np.float32(length))


def _input(card: Card, *, tileable: bool, sha256: str) -> dict[str, Any]:
    sizes = axis_sizes(card.config, tileable=tileable)
    space = [
        axis | {"size": {"min": size.smallest, "step": size.step}}
        for axis, size in zip(_space(card), sizes, strict=True)
    ]
    names = [f"channel{number}" for number in range(card.config.in_channels)]
    return {
        "id": "image",
        "description": "Grey levels of the image as they are",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": names}, *space],
        "data": {"type": "float32"},
        "preprocessing": preprocessing_steps(card.normalisation, [axis["id"] for axis in space]),
        "test_tensor": {"source": "test_input.npy", "sha256": sha256},
    }


def _output(card: Card, *, tileable: bool, sha256: str) -> dict[str, Any]:
    space: list[dict[str, Any]] = []
    for axis, size in zip(_space(card), axis_sizes(card.config, tileable=tileable), strict=True):
        reference = {"tensor_id": "image", "axis_id": axis["id"], "offset": size.offset}
        halo = {"halo": size.halo} if size.halo else {}
        space.append({**axis, "size": reference, **halo})
    # One output is a sigmoid's, for the class that is not background.
    classes = card.classes[-card.config.n_classes :]
    names = [_identifier(info.name) for info in classes]
    if len(set(names)) < len(names):
        names = [f"class_{number}" for number in range(len(names))]
    return {
        "id": "logits",
        "description": "Logits of the classes; a softmax (a sigmoid for one) makes probabilities",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": names}, *space],
        "data": {"type": "float32"},
        "test_tensor": {"source": "test_output.npy", "sha256": sha256},
    }


def _identifier(name: str) -> str:
    """A name that programs take for a channel."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
    return plain if re.match(r"[a-z]", plain) else f"class_{plain}".strip("_")
