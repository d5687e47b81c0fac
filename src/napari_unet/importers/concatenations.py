"""Whether the maps that a graph concatenates fit: sizes, centres and channels, level by level.

A level of a valid U-Net loses pixels: what its decoder gets back from below is smaller than what
its encoder made, by an amount that does not depend on the input,

    margin[l] = pool[l] * (down[l + 1] + margin[l + 1] + merge[l + 1]),

where `down` and `merge` are what the convolutions of a block take off. Half of it has to be
cropped per side. A graph that crops otherwise, or whose convolutions expect other channels than
are concatenated for them, is told so here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from napari_unet.errors import CheckpointError

__all__ = ["Cut", "Level", "check_concatenations", "smallest_input"]

# Axis, extent of the encoder's map, extent of the decoder's -> where the crop starts and stops.
Cut = Callable[[int, int, int], tuple[int, int]]

_MOST_BOTTOM = 1 << 12


@dataclass(frozen=True)
class Level:
    """One level of a graph: pixels per spatial axis, and channels.

    Parameters
    ----------
    down, merge : tuple of int
        What the convolutions of the encoder's and the decoder's block take off the size: kernel
        minus one each, nothing where they are padded. `merge` is empty at the deepest level.
    pool : tuple of int
        Factor to the next level; empty at the deepest.
    width : int
        Channels of the encoder's map.
    up : int
        Channels of the up-sampled map.
    takes : int
        Channels that the convolution behind the concatenation takes.
    cut : callable, optional
        How the graph crops the encoder's map; None where it does not.
    """

    down: tuple[int, ...]
    width: int
    pool: tuple[int, ...] = ()
    merge: tuple[int, ...] = ()
    up: int = 0
    takes: int = 0
    cut: Cut | None = None


@dataclass(frozen=True)
class _Walk:
    """Sizes along one axis at one input size; lists begin at level 0."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    rounded: bool
    output: int

    @property
    def fits(self) -> bool:
        return not self.rounded and min(*self.encoder, *self.decoder, self.output) > 0


def check_concatenations(levels: Sequence[Level], size: Sequence[int | None]) -> tuple[str, ...]:
    """See that the maps of every concatenation fit each other.

    Parameters
    ----------
    levels : sequence of Level
        The input's first.
    size : sequence of int or None
        Input extent along each spatial axis, where the file declares one; the smallest that works
        stands in.

    Returns
    -------
    tuple of str
        Warnings about the declared size.

    Raises
    ------
    CheckpointError
        If maps do not fit: the message says for each level what meets what, and what to crop.
    """
    axes = range(len(levels[0].down))
    sizes = [size[axis] or smallest_input(levels, axis) for axis in axes]
    walks = [_walk(levels, axis, sizes[axis]) for axis in axes]
    if any(min(*walk.encoder, *walk.decoder, walk.output) < 1 for walk in walks):
        smallest = [smallest_input(levels, axis) for axis in axes]
        raise CheckpointError(
            f"Its input of {_by(sizes)} px is too small for its poolings and convolutions; the "
            f"smallest that works is {_by(smallest)} px."
        )
    problems = [
        problem
        for level in reversed(range(len(levels) - 1))
        for problem in (*_sizes_at(levels, level, walks), *_channels_at(levels, level))
    ]
    if problems:
        raise CheckpointError(
            f"The maps that are concatenated do not fit (input {_by(sizes)} px): "
            f"{'; '.join(problems)}.{_ledger_of(levels, sizes)}"
        )
    if all(walk.fits for walk in walks):
        return ()
    nearest = [_nearest(levels, axis, sizes[axis]) for axis in axes]
    return (
        f"Its own input of {_by(sizes)} px makes the poolings drop odd rows; it is run at sizes "
        f"that do not, such as {_by(nearest)} px.",
    )


def smallest_input(levels: Sequence[Level], axis: int) -> int:
    """Return the smallest extent that passes every pooling without a remainder.

    Raises
    ------
    CheckpointError
        If none of a reasonable size does.
    """
    for bottom in range(1, _MOST_BOTTOM):
        size = bottom + levels[-1].down[axis]
        for level in reversed(levels[:-1]):
            size = size * level.pool[axis] + level.down[axis]
        if _walk(levels, axis, size).fits:
            return size
    raise CheckpointError("Its convolutions leave nothing of an input of any size.")


def _nearest(levels: Sequence[Level], axis: int, size: int) -> int:
    """Largest extent up to `size` that works, or the smallest of all."""
    smallest = smallest_input(levels, axis)
    stride = prod(level.pool[axis] for level in levels[:-1])
    return max(smallest, size - (size - smallest) % stride)


def _walk(levels: Sequence[Level], axis: int, size: int) -> _Walk:
    """Follow an extent down and up; the decoder's map is what remains after a crop."""
    encoder: list[int] = []
    rounded = False
    for level in levels:
        size -= level.down[axis]
        encoder.append(size)
        if level.pool:
            rounded |= size % level.pool[axis] > 0
            size //= level.pool[axis]
    decoder = [0] * (len(levels) - 1)
    for number in reversed(range(len(levels) - 1)):
        size *= levels[number].pool[axis]
        decoder[number] = size
        size -= levels[number].merge[axis]
    return _Walk(tuple(encoder), tuple(decoder), rounded, size)


def _margin(levels: Sequence[Level], number: int, axis: int) -> int:
    """Pixels between the maps of a level, wherever poolings have no remainder."""
    below = levels[number + 1]
    inside = below.down[axis]
    if below.pool:
        inside += _margin(levels, number + 1, axis) + below.merge[axis]
    return levels[number].pool[axis] * inside


def _sizes_at(levels: Sequence[Level], number: int, walks: Sequence[_Walk]) -> list[str]:
    """What is wrong with the sizes at one concatenation."""
    cut = levels[number].cut
    have = [walk.encoder[number] for walk in walks]
    want = [walk.decoder[number] for walk in walks]
    margins = [_margin(levels, number, axis) for axis in range(len(walks))]
    spans = [
        cut(axis, have[axis], want[axis]) if cut else (0, have[axis]) for axis in range(len(walks))
    ]
    arrived = [max(0, stop - start) for start, stop in spans]
    meets = f"level {number}: {_by(arrived)} meets {_by(want)}"
    if any(margin % 2 for margin in margins):
        return [f"{meets}: no crop is exact between maps that differ by {_by(margins)} px"]
    sides = [margin // 2 for margin in margins]
    ends = [(start, h - stop) for (start, stop), h in zip(spans, have, strict=True)]
    taken = ", ".join(f"{start} and {end}" for start, end in dict.fromkeys(ends))
    if arrived == want:
        if [start for start, _ in spans] == sides:
            return []
        return [f"level {number}: the crop is off the centre: {_crop(sides)}, not {taken}"]
    if [h - m for h, m in zip(have, margins, strict=True)] != want:
        return [f"{meets}: an odd map was pooled, take another input size"]
    if cut is None or arrived == have:
        return [f"{meets}: {_crop(sides)}"]
    return [f"{meets}: {_crop(sides)}, not {taken}"]


def _channels_at(levels: Sequence[Level], number: int) -> list[str]:
    """What is wrong with the channels at one concatenation."""
    level = levels[number]
    if level.takes == level.width + level.up:
        return []
    said = (
        f"level {number}: {level.width} channels of the encoder and {level.up} of the "
        f"up-convolution meet a convolution that takes {level.takes}"
    )
    wanted = level.takes - level.width
    if wanted < 1:
        return [said]
    verb = "halve the channels to" if level.up == 2 * wanted else "give"
    return [f"{said}: the up-convolution has to {verb} {wanted}"]


def _ledger_of(levels: Sequence[Level], sizes: Sequence[int]) -> str:
    """Name the command that lists every layer, where it knows this network."""
    base, depth = levels[0].width, len(levels) - 1
    usual = len(sizes) == 2 and sizes[0] == sizes[1] and depth <= 11
    for number, level in enumerate(levels):
        usual = usual and level.width == base << number and {*level.down, *level.merge} == {4}
        usual = usual and {*level.pool} <= {2}
    if not usual:
        return ""
    options = "" if depth == 4 else f" --depth {depth}"
    options += "" if base == 64 else f" --base-features {base}"
    return f" `valid-unet shapes {sizes[0]}{options}` lists every layer of the network that fits."


def _crop(sides: Sequence[int]) -> str:
    if not any(sides):
        return "crop nothing"
    return f"crop {', '.join(map(str, sides if len(set(sides)) > 1 else sides[:1]))} per side"


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
