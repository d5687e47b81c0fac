"""Rescaling: against scikit-image, and the same whatever window is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import resize

from napari_unet.resample import Grid, interpolate, mirror_index, resize_linear
from napari_unet.tiling import Window

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def resized(image: NDArray[np.float32], grid: Grid, window: Window) -> NDArray[np.float32]:
    return interpolate(lambda part: image[(slice(None), *part.slices)], grid, window)


@given(shapes, st.integers(1, 3), st.integers(1, 3))
def test_enlarging_is_linear_interpolation(shape: tuple[int, int], y: int, x: int) -> None:
    image = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    grid = Grid(shape, (shape[0] * y, shape[1] * x))
    found = resized(image, grid, Window((0, 0), grid.network))
    expected = resize(image[0], grid.network, order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


@given(st.integers(1, 20), st.integers(0, 60), st.integers(0, 60))
def test_mirroring_is_numpys_reflection(extent: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(extent), (before, after), mode="reflect" if extent > 1 else "edge")
    found = mirror_index(np.arange(-before, extent + after), extent)
    np.testing.assert_array_equal(found, expected)


@given(shapes, shapes, st.data())
def test_a_window_is_a_part_of_the_whole(
    shape: tuple[int, int], network: tuple[int, int], data: st.DataObject
) -> None:
    """Also beyond the image, where the resized pixels are mirrored."""
    image = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    grid = Grid(shape, network)
    whole = resized(image, grid, Window((0, 0), network))
    start = tuple(data.draw(st.integers(-20, n - 1)) for n in network)
    stop = tuple(data.draw(st.integers(a + 1, a + 60)) for a in start)
    padded = whole
    for axis, extent in enumerate(network, start=1):
        pad = [(0, 0)] * 3
        pad[axis] = (20, 60)
        padded = np.pad(padded, pad, mode="reflect" if extent > 1 else "edge")
    expected = padded[
        (slice(None), *(slice(a + 20, b + 20) for a, b in zip(start, stop, strict=True)))
    ]
    np.testing.assert_allclose(resized(image, grid, Window(start, stop)), expected, atol=1e-5)


@given(shapes, shapes)
def test_a_constant_stays_and_the_mean_too_when_halved(
    shape: tuple[int, int], network: tuple[int, int]
) -> None:
    flat = np.full((1, *shape), 3.5, np.float32)
    found = resized(flat, Grid(shape, network), Window((0, 0), network))
    np.testing.assert_allclose(found, 3.5, rtol=1e-6)


def test_shrinking_does_not_alias() -> None:
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (1, 64, 32))
    grid = Grid((64, 64), (16, 16))
    found = resized(stripes, grid, Window((0, 0), (16, 16)))
    np.testing.assert_allclose(found[0, 2:-2, 2:-2], 0.5, atol=0.05)


@given(shapes, shapes, st.data())
def test_labels_come_back_by_the_nearest_pixel(
    shape: tuple[int, int], network: tuple[int, int], data: st.DataObject
) -> None:
    grid = Grid(shape, network)
    labels = np.arange(np.prod(network)).reshape(network)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    window = Window(start, stop)
    inner = grid.to_network(window)
    found = grid.labels_to_image(labels[inner.slices], inner.start, window)
    index = [
        [int((i + 0.5) * m / n) for i in range(a, b)]
        for a, b, n, m in zip(start, stop, shape, network, strict=True)
    ]
    np.testing.assert_array_equal(found, labels[np.ix_(*index)])


@given(shapes, shapes, st.integers(1, 30))
def test_windows_of_the_network_share_out_the_image(
    shape: tuple[int, int], network: tuple[int, int], step: int
) -> None:
    grid, region = Grid(shape, network), Window((0, 0), shape)
    count = np.zeros(shape, int)
    for y in range(0, network[0], step):
        for x in range(0, network[1], step):
            stop = (min(y + step, network[0]), min(x + step, network[1]))
            count[grid.to_image(Window((y, x), stop), region).slices] += 1
    assert (count == 1).all()


def test_probabilities_come_back_linearly() -> None:
    values = np.random.default_rng(0).random((2, 10, 14)).astype(np.float32)
    grid = Grid((20, 28), (10, 14))
    found = resize_linear(values, (0, 0), grid, Window((0, 0), (20, 28)))
    for one, source in zip(found, values, strict=True):
        expected = resize(source, (20, 28), order=1, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(one, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("spacing", "wanted", "network"),
    [
        (None, (0.5, 0.5), (100, 200)),
        ((0.5, 0.5), None, (100, 200)),
        ((0.25, 0.25), (0.5, 0.5), (50, 100)),
        ((0.505, 0.495), (0.5, 0.5), (100, 200)),
        ((1.0, 0.5), (0.5, 0.5), (200, 200)),
        ((1e-4, 1e-4), (0.5, 0.5), (1, 1)),
    ],
)
def test_the_grid_that_fits_a_spacing(
    spacing: tuple[float, ...] | None,
    wanted: tuple[float, ...] | None,
    network: tuple[int, ...],
) -> None:
    grid = Grid.fit((100, 200), spacing, wanted)
    assert grid.network == network
    assert grid.same == (network == (100, 200))
