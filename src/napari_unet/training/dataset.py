"""From pairs to what a training needs: held-out images first, then samples of the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.card import Card
from napari_unet.errors import ImageError, OptionError
from napari_unet.intensity import fit_intensity
from napari_unet.resample import Grid, interpolate
from napari_unet.tiling import Window
from napari_unet.training.pairs import Pair
from napari_unet.training.recipe import Recipe
from napari_unet.training.targets import known_pixels
from napari_unet.training.tiles import Sample, make_sample
from napari_unet.training.validation import Held

__all__ = ["check_pairs", "common_spacing", "hold_out", "labelled", "to_held", "to_samples"]

_SAME = 0.02  # part by which spacings may differ and still count as one


def check_pairs(pairs: Sequence[Pair], channels: int) -> None:
    """See that all images are of one kind, and that something is labelled.

    Raises
    ------
    ImageError
        If not.
    """
    if not pairs:
        raise ImageError("There is no image to learn from; give at least one with its labels.")
    for pair in pairs:
        if pair.channels != channels:
            raise ImageError(
                f"{pair.name} has {pair.channels} channel{'s' * (pair.channels != 1)}, others have "
                f"{channels}; train on images of one kind."
            )
    if not any(pair.labels.any() for pair in pairs):
        raise ImageError("No label image holds anything but 0; label some objects first.")


def hold_out(
    pairs: Sequence[Pair], fraction: float, seed: int, *, sparse: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """Choose what the training never sees, before anything is looked at.

    Where something is labelled in at least two images, it is so in one of those that are held out,
    and in one of the others. An image that is added to the rest changes little of the choice: what
    was held out before was not learned from by the model that is to be compared. Of a stack, the
    last planes are held out, as each plane resembles those beside it.

    Parameters
    ----------
    pairs : sequence of Pair
        All there are.
    fraction : float
        Part of the images, at least one of them; of a single image, or of the only one in which
        something is labelled, the end of its longest axis. 0 holds nothing out.
    seed : int
        Of the choice.
    sparse : bool
        Whether label 0 means that nobody has looked there.

    Returns
    -------
    train, held : list of Pair

    Raises
    ------
    OptionError
        If nothing would be left.
    """
    if not 0 <= fraction < 1:
        raise OptionError(f"The part to hold out is a number from 0 up to 1, not {fraction}.")
    if not fraction or not pairs:
        return list(pairs), []
    order = _order(pairs, seed)
    telling = [n for n in order if labelled(pairs[n], sparse=sparse).any()]
    if len(pairs) == 1 or len(telling) == 1:
        one = telling[0] if telling else 0
        rest, held = _cut(pairs[one], fraction, sparse)
        return [*pairs[:one], *rest, *pairs[one + 1 :]], held
    if telling:
        ends = telling[0], telling[-1]
        order = [ends[0], *(n for n in order if n not in ends), ends[1]]
    count = min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)
    chosen = set(order[:count])
    held = [pair for number, pair in enumerate(pairs) if number in chosen]
    return [pair for number, pair in enumerate(pairs) if number not in chosen], held


def labelled(pair: Pair, *, sparse: bool) -> NDArray[np.bool_]:
    """Where there is something to find, as far as anybody has looked."""
    known = known_pixels(pair.labels, sparse=sparse, reviewed=pair.reviewed)
    return pair.labels > 0 if known is None else (pair.labels > 0) & known


def _order(pairs: Sequence[Pair], seed: int) -> list[int]:
    """Numbers of the pairs, the first to be held out in front: whole stacks from their ends.

    What is in an image decides, not its place or its name: both change from one round to the next.
    """
    stacks: dict[str, list[int]] = {}
    for number, pair in enumerate(pairs):
        stacks.setdefault(pair.stack or f"/{number}", []).insert(0, number)
    chance = {name: _chance(pairs[numbers[-1]].image, seed) for name, numbers in stacks.items()}
    return [number for name in sorted(stacks, key=chance.__getitem__) for number in stacks[name]]


def _chance(image: NDArray[Any], seed: int) -> bytes:
    found = hashlib.sha256(b"%d" % seed)
    found.update(np.ascontiguousarray(image, image.dtype.newbyteorder("=")).data)
    return found.digest()


def _cut(pair: Pair, fraction: float, sparse: bool) -> tuple[list[Pair], list[Pair]]:
    """Divide one image; what is held out is no context of the rest either."""
    axis = int(np.argmax(pair.labels.shape))
    extent = pair.labels.shape[axis]
    at = extent - max(round(fraction * extent), 1)
    if at < 1:
        raise OptionError("The image is too small to hold a part of it out; hold out 0 of it.")
    others = tuple(a for a in range(pair.labels.ndim) if a != axis)
    share = labelled(pair, sparse=sparse).sum(axis=others).cumsum()
    if share[-1] and not 0.5 * fraction <= 1 - share[at - 1] / share[-1] <= 0.5:
        # Only a part of the image is labelled: it is that which is divided.
        at = int(np.searchsorted(share, (1 - fraction) * share[-1])) + 1
        at = min(max(at, 1), extent - 1)

    def part(name: str, where: slice) -> Pair:
        index = (*[slice(None)] * axis, where)
        reviewed = None if pair.reviewed is None else pair.reviewed[index]
        return replace(
            pair, name=name, image=pair.image[index], labels=pair.labels[index], reviewed=reviewed
        )

    letter = pair.axes[axis]
    return [part(f"{pair.name} ({letter} < {at})", slice(None, at))], [
        part(f"{pair.name} ({letter} >= {at})", slice(at, None))
    ]


def to_samples(
    pairs: Sequence[Pair], card: Card, recipe: Recipe, *, sparse: bool, replay: bool = False
) -> list[Sample]:
    """Normalise images as the model's card says, and index their labels.

    Raises
    ------
    ImageError
        If labels and classes do not go together.
    """
    return [_sample(pair, card, recipe, sparse, replay) for pair in pairs]


def _sample(pair: Pair, card: Card, recipe: Recipe, sparse: bool, replay: bool) -> Sample:
    colour = pair.axes.endswith("C")
    intensity = fit_intensity(pair.image, card.normalisation, channel_last=colour)
    image, labels = intensity.apply(pair.channel_first), pair.labels
    known = known_pixels(labels, sparse=sparse, reviewed=pair.reviewed)
    grid = Grid.fit(labels.shape, pair.spacing, card.spacing)
    if not grid.same:
        # The grid on which the network will see such images later.
        origin = (0,) * labels.ndim
        whole, back = Window(origin, grid.network), Grid(grid.network, grid.image)
        image = interpolate(lambda window: image[(slice(None), *window.slices)], grid, whole)
        labels = back.labels_to_image(labels, origin, whole)
        known = None if known is None else back.labels_to_image(known, origin, whole)
    try:
        return make_sample(
            pair.name, image, labels, known, recipe.targets, recipe.weighting, replay=replay
        )
    except ImageError as error:
        raise ImageError(f"{pair.name}: {error}") from error


def to_held(pairs: Sequence[Pair], *, sparse: bool) -> list[Held]:
    """Make held-out images of pairs."""
    return [
        Held(
            pair.name,
            pair.image,
            pair.axes,
            pair.labels,
            known_pixels(pair.labels, sparse=sparse, reviewed=pair.reviewed),
            pair.spacing,
        )
        for pair in pairs
    ]


def common_spacing(pairs: Sequence[Pair]) -> tuple[float, ...] | None:
    """Micrometres per pixel of all images, if they agree."""
    known: list[Any] = [pair.spacing for pair in pairs]
    if not known or any(spacing is None for spacing in known):
        return None
    table = np.array(known, float)
    if (np.ptp(table, axis=0) > _SAME * table.min(axis=0)).any():
        return None
    return tuple(float(v) for v in np.median(table, axis=0))
