"""Plans: each pixel written once, on the pooling grid, from pixels that are there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.config import UNetConfig
from napari_unet.errors import GeometryError, ImageError
from napari_unet.resample import mirror_index
from napari_unet.tiling import Tile, TilePlan, Window, plan_tiles, read_mirrored

GEOMETRIES = [
    UNetConfig(widths=(1, 1, 1)).geometry,
    UNetConfig(widths=(1, 1, 1), up="linear").geometry,
    UNetConfig(widths=(1,) * 5).geometry,
    UNetConfig(widths=(1, 1), pools=((3, 2),), kernels=((5, 3), (1, 3))).geometry,
    UNetConfig(widths=(1,)).geometry,
]


@given(st.data())
def test_each_pixel_is_written_once_on_the_grid(data: st.DataObject) -> None:
    geometry = data.draw(st.sampled_from(GEOMETRIES))
    shape = data.draw(st.tuples(st.integers(1, 300), st.integers(1, 300)))
    smallest = max(geometry.size_for(geometry.stride))
    size = data.draw(st.integers(smallest, smallest + 200))
    low = tuple(data.draw(st.integers(0, extent - 1)) for extent in shape)
    high = tuple(data.draw(st.integers(a + 1, b)) for a, b in zip(low, shape, strict=True))
    region = data.draw(st.sampled_from((None, Window(low, high))))
    plan = plan_tiles(shape, geometry, size, region, exact=data.draw(st.booleans()))

    count = np.zeros(shape, int)
    for tile in plan:
        count[tile.write.slices] += 1
        assert tile.read.shape == plan.tile_shape
        geometry.output(plan.tile_shape)  # raises if it is not admissible
        check_tile(plan, tile, geometry.stride)
    wanted = np.zeros(shape, int)
    wanted[plan.region.slices] = 1
    np.testing.assert_array_equal(count, wanted)
    assert len(plan) == len(list(plan))
    assert all(tile <= size for tile in plan.tile_shape)


@given(st.data())
def test_outward_are_the_same_tiles_the_nearest_first(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 200), st.integers(1, 200)))
    plan = plan_tiles(shape, GEOMETRIES[0], 60)
    low = tuple(data.draw(st.integers(-30, n + 30)) for n in shape)
    high = tuple(data.draw(st.integers(a, a + 80)) for a in low)
    tiles = list(plan.outward(Window(low, high)))
    assert len(tiles) == len(plan)
    assert set(tiles) == set(plan)
    gaps = [
        max(
            max(a - d, c - b, 0)
            for a, b, c, d in zip(low, high, tile.write.start, tile.write.stop, strict=True)
        )
        for tile in tiles
    ]
    assert gaps == sorted(gaps)


def check_tile(plan: TilePlan, tile: Tile, stride: tuple[int, ...]) -> None:
    """Phase of the poolings, and enough context around everything that is written."""
    for axis, halo in enumerate(plan.halo):
        assert (tile.read.start[axis] + halo) % stride[axis] == 0
        assert tile.write.start[axis] - tile.read.start[axis] >= halo
        assert tile.read.stop[axis] - tile.write.stop[axis] >= halo
        keep = plan.keep(tile)[axis]
        assert keep.start >= plan.trim[axis]
        assert keep.stop <= plan.tile_shape[axis] - 2 * plan.loss[axis] - plan.trim[axis]


def test_the_papers_tiles() -> None:
    plan = plan_tiles((1000, 512), UNetConfig().geometry, 572)
    assert plan.step == (384, 384)
    assert plan.counts == (3, 2)
    first = next(iter(plan))
    assert first == Tile(Window((-92, -92), (480, 480)), Window((0, 0), (384, 384)))


def test_even_tiles_are_not_larger_and_not_more() -> None:
    geometry = UNetConfig().geometry
    exact = plan_tiles((1000, 1000), geometry, 572)
    even = plan_tiles((1000, 1000), geometry, 572, exact=False)
    assert even.tile_shape == (524, 524)
    assert len(even) == len(exact)


def test_a_tile_too_small_names_the_smallest() -> None:
    with pytest.raises(GeometryError, match="smallest is 204 px"):
        plan_tiles((100, 100), UNetConfig().geometry, 188)


@pytest.mark.parametrize(
    ("shape", "region"), [((0, 5), None), ((9, 9), Window((3, 3), (3, 5))), ((9, 9, 9), None)]
)
def test_empty_images_and_wrong_axes(shape: tuple[int, ...], region: Window | None) -> None:
    with pytest.raises(ImageError):
        plan_tiles(shape, UNetConfig().geometry, 572, region)


class Lazy:
    """An array that notes what is read of it."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values, self.shape, self.read = values, values.shape, 0

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        part = self.values[key]
        self.read = max(self.read, part.size)
        return part


@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.booleans(), st.data())
def test_reading_a_window_is_looking_each_pixel_up_in_the_mirror(
    shape: tuple[int, int], channels: bool, data: st.DataObject
) -> None:
    image = np.random.default_rng(0).random((*shape, 2) if channels else shape)
    start = tuple(data.draw(st.integers(-40, 29)) for _ in shape)
    stop = tuple(data.draw(st.integers(a + 1, a + 70)) for a in start)
    windows = zip(start, stop, shape, strict=True)
    expected = image[np.ix_(*(mirror_index(np.arange(a, b), n) for a, b, n in windows))]
    lazy = Lazy(image)
    np.testing.assert_array_equal(read_mirrored(lazy, Window(start, stop)), expected)
    assert lazy.read <= expected.size or lazy.read <= image.size
