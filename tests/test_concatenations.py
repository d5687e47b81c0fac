"""What a graph is told about its concatenations agrees with the ledger of a network that fits."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError
from napari_unet.importers.concatenations import Cut, Level, check_concatenations, smallest_input
from napari_unet.ledger import account


@st.composite
def configs(draw: st.DrawFn, shallowest: int = 1) -> UNetConfig:
    depth = draw(st.integers(shallowest, 4))
    ndim = draw(st.sampled_from([2, 3]))
    axes = st.tuples(*[st.sampled_from([1, 3, 5])] * ndim)
    return UNetConfig(
        widths=tuple(draw(st.integers(1, 6)) for _ in range(depth + 1)),
        ndim=ndim,
        kernels=tuple(draw(axes) for _ in range(depth + 1)),
        pools=tuple(draw(st.tuples(*[st.sampled_from([1, 2, 4])] * ndim)) for _ in range(depth)),
    )


def centred(sides: tuple[int, ...]) -> Cut:
    return lambda axis, have, want: (sides[axis], have - sides[axis])


def levels_of(config: UNetConfig, *, cropped: bool = True) -> list[Level]:
    """The graph of a network, cropped as its ledger says or not at all."""
    size = tuple(axis.smallest for axis in config.geometry.axes)
    crops = {row.level: row.cropped for row in account(config, size).rows if row.layer == "crop"}
    found = []
    for number, width in enumerate(config.widths):
        lost = tuple(2 * (k - 1) for k in config.kernels[number])
        if number == config.depth:
            found.append(Level(lost, width))
            continue
        up = config.up_widths[number]
        cut = centred(crops[number]) if cropped else None
        found.append(Level(lost, width, config.pools[number], lost, up, width + up, cut))
    return found


@given(configs(shallowest=0), st.integers(0, 3))
def test_a_network_that_fits_is_let_through(config: UNetConfig, more: int) -> None:
    levels = levels_of(config)
    smallest = [smallest_input(levels, axis) for axis in range(config.ndim)]
    assert smallest == [axis.smallest for axis in config.geometry.axes]
    sizes = [n + more * s for n, s in zip(smallest, config.geometry.stride, strict=True)]
    for size in (sizes, (None,) * config.ndim):
        assert check_concatenations(levels, size) == ()


@given(configs())
def test_without_crops_every_level_is_told_what_the_ledger_says(config: UNetConfig) -> None:
    levels = levels_of(config, cropped=False)
    size = tuple(axis.smallest for axis in config.geometry.axes)
    rows = [row for row in account(config, size).rows if row.layer == "crop"]
    wrong = [row for row in rows if any(row.cropped)]
    if not wrong:
        assert check_concatenations(levels, size) == ()
        return
    with pytest.raises(CheckpointError) as caught:
        check_concatenations(levels, size)
    text = str(caught.value)
    assert text.count("meets") == len(wrong)
    for row in wrong:
        have = [n + 2 * c for n, c in zip(row.size, row.cropped, strict=True)]
        sides = row.cropped if len(set(row.cropped)) > 1 else row.cropped[:1]
        meets = " x ".join(map(str, have)) + " meets " + " x ".join(map(str, row.size))
        crop = f"crop {', '.join(map(str, sides))} per side"
        assert f"level {row.level}: {meets}: {crop}" in text


@given(configs(), st.data())
def test_a_crop_that_is_off_is_noticed(config: UNetConfig, data: st.DataObject) -> None:
    levels = levels_of(config)
    number = data.draw(st.integers(0, config.depth - 1))
    axis = data.draw(st.integers(0, config.ndim - 1))
    start, stop = (data.draw(st.integers(-3, 3)) for _ in range(2))
    right = levels[number].cut
    assert right is not None

    def cut(at: int, have: int, want: int) -> tuple[int, int]:
        first, last = right(at, have, want)
        return (first + start, last + stop) if at == axis else (first, last)

    levels[number] = replace(levels[number], cut=cut)
    size = (None,) * config.ndim
    if start == stop == 0:
        assert check_concatenations(levels, size) == ()
        return
    words = "off the centre" if start == stop else "meets"
    with pytest.raises(CheckpointError, match=rf"level {number}: .*{words}"):
        check_concatenations(levels, size)


@given(configs(), st.integers(1, 400))
def test_any_size_is_let_through_or_told(config: UNetConfig, size: int) -> None:
    """Whether a centre crop of any size fits is what the ledger says of rounded poolings."""
    levels = levels_of(config)
    try:
        warnings = check_concatenations(levels, (size,) * config.ndim)
    except CheckpointError as error:
        assert not account(config, size).admissible
        assert "too small" in str(error) or "odd map" in str(error)  # noqa: PT017 (either is right)
        return
    assert account(config, size).admissible == (not warnings)


def test_channels_that_do_not_add_up() -> None:
    levels = levels_of(UNetConfig(widths=(64, 128, 256)))
    levels[1] = replace(levels[1], up=256, takes=256)
    with pytest.raises(CheckpointError) as caught:
        check_concatenations(levels, (None, None))
    assert (
        "level 1: 128 channels of the encoder and 256 of the up-convolution meet a convolution "
        "that takes 256: the up-convolution has to halve the channels to 128." in str(caught.value)
    )
    assert "`valid-unet shapes 44 --depth 2`" in str(caught.value)
    levels[1] = replace(levels[1], up=100, takes=100)
    with pytest.raises(CheckpointError, match=r"convolution that takes 100\."):
        check_concatenations(levels, (None, None))


def test_padded_networks_need_no_crop() -> None:
    levels = [
        Level((0, 0), 4, (2, 2), (0, 0), 4, 8),
        Level((0, 0), 8, (2, 2), (0, 0), 8, 16),
        Level((0, 0), 16),
    ]
    assert smallest_input(levels, 0) == prod((2, 2))
    assert check_concatenations(levels, (64, None)) == ()
    with pytest.raises(CheckpointError, match="level 1: 33 x 2 meets 32 x 2: an odd map was pool"):
        check_concatenations(levels, (66, None))
