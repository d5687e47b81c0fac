"""The documentation inside a package: what the description has no field for."""

from __future__ import annotations

from collections.abc import Sequence

from napari_unet.card import Card
from napari_unet.export.sizes import AxisSizes, axis_sizes
from napari_unet.intensity import Normalisation

__all__ = ["readme"]


def readme(card: Card, *, tileable: bool, authors: Sequence[str], license: str | None) -> str:
    """Write ``README.md``.

    Parameters
    ----------
    card : Card
        What the model is.
    tileable : bool
        Whether the package holds the variant of the same size.
    authors : sequence of str
        Names.
    license : str, optional
        SPDX identifier.
    """
    parts = [
        f"# {card.name}\n\n{card.describe()}.",
        f"## Input\n\n{_scaling(card)}",
        f"## Output\n\n{_classes(card)}",
        f"## Sizes\n\n{_sizes(card, tileable=tileable)}",
        f"## Where it comes from\n\n{_provenance(card, authors, license)}",
        "## Validation\n\n`test_output.npy` is what the network computes for `test_input.npy`, on "
        f"a processor in float32. {card.provenance.get('figures', '')}".rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def _scaling(card: Card) -> str:
    normalisation = card.normalisation
    sentences = [_of_kind(normalisation)]
    if normalisation.shift:
        sentences.append(f"Then {normalisation.shift:g} is added.")
    if normalisation.kind not in ("none", "dtype-range"):
        sentences.append(
            "The statistics are those of the whole image, each channel by itself, not of a tile."
        )
    if card.spacing is not None:
        by = " x ".join(f"{length:g}" for length in card.spacing)
        sentences.append(
            f"It was trained on pixels of {by} µm ({', '.join('ZYX'[-len(card.spacing) :])}): "
            "rescale images of other pixels first; no step of the description does so."
        )
    return " ".join(sentences)


def _of_kind(normalisation: Normalisation) -> str:
    if normalisation.kind == "percentile":
        return (
            f"The percentiles {normalisation.low:g} and {normalisation.high:g} of the image are "
            "mapped to 0 and 1; nothing is clipped."
        )
    return {
        "min-max": "The darkest pixel of the image is mapped to 0, the brightest to 1.",
        "mean-std": "The mean of the image is mapped to 0, its standard deviation to 1.",
        "dtype-range": "Grey levels of 8 bits are divided by 255; bring others to 0 to 255 first.",
        "none": "Grey levels are taken as they are.",
    }[normalisation.kind]


def _classes(card: Card) -> str:
    if card.config.n_classes == 1:
        how = "One logit per pixel; a sigmoid makes it the probability of the second class."
    else:
        how = "One logit per class and pixel; a softmax over the channels makes them probabilities."
    rows = [
        f"| {number} | {info.name} | {info.role} | {info.color} |"
        for number, info in enumerate(card.classes)
    ]
    table = "\n".join(["| class | name | role | colour |", "|---|---|---|---|", *rows])
    parts = [
        how,
        table,
        "Foreground and contour together are the objects; contour keeps them apart. Finding the "
        "objects is not part of the description.",
    ]
    if card.settings:
        listed = ", ".join(f"{name} {value:g}" for name, value in card.settings.items())
        parts.append(f"Defaults for it: {listed}.")
    return "\n\n".join(parts)


def _sizes(card: Card, *, tileable: bool) -> str:
    sizes = axis_sizes(card.config, tileable=tileable)
    rows = [
        f"| {name} | {size.smallest} + n x {size.step} | {_relation(size)} | {size.halo} |"
        for name, size in zip("zyx"[-len(sizes) :], sizes, strict=True)
    ]
    heading = "| axis | input, px | output | halo, px |\n|---|---|---|---|"
    table = "\n".join([heading, *rows])
    if card.config.padding == "same":
        text = (
            "Its convolutions are padded with zeros. Outputs within the halo of a tile's edge have "
            "seen them, and differ from those of the whole image."
        )
    elif tileable:
        text = (
            "The network's convolutions are not padded: this variant mirrors its input at the "
            "edges and gives an output of the same size. Outputs within the halo of a tile's edge "
            "have seen mirrored pixels; cut them off, and start tiles at multiples of the step, "
            "and the rest is what the network computes on the whole image."
        )
    else:
        text = (
            "The network's convolutions are not padded: the output is smaller than the input, and "
            "belongs to its centre. Nothing at the edge is guessed, so there is no halo. Programs "
            "that tile without looking at the offset need the tileable variant of this model."
        )
        if any(trim for trim in card.config.geometry.trim):
            trims = ", ".join(map(str, card.config.geometry.trim))
            text += (
                f" Up-sampling is linear: the outermost {trims} outputs of a tile differ from "
                "those of the whole image."
            )
    return f"{table}\n\n{text}"


def _relation(size: AxisSizes) -> str:
    return f"input - {-size.offset}" if size.offset else "as the input"


def _provenance(card: Card, authors: Sequence[str], license: str | None) -> str:
    rows = [f"- authors: {', '.join(authors)}"] if authors else []
    rows += [f"- SPDX licence: {license}"] if license else []
    rows += [f"- {key}: {text}" for key, text in card.provenance.items()]
    rows.append(
        "- packaged by napari-valid-unet; its own description of the model is under `config`"
    )
    return "\n".join(rows)
