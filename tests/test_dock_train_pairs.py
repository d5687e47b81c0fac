"""Pairs of the Train page: what is copied of layers, what was reviewed, and pairs on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from napari.layers import Image, Labels, Shapes

from napari_unet._napari.train_layers import coloured_alike
from napari_unet._napari.train_pairs import LayerPair, collect, count_objects, find_fit
from napari_unet._napari.train_region import inside_shapes
from napari_unet._napari.train_saved import find_saved, look_at, save_pairs
from napari_unet.errors import ImageError, OutputError
from napari_unet.training.pairs import Pair, load_pair


def even_odd(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Whether points lie inside a polygon: a ray to the right crosses its sides an odd time."""
    inside = np.zeros(len(points), bool)
    for (y0, x0), (y1, x1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crosses = (points[:, 0] < y0) != (points[:, 0] < y1)
        at = x0 + (points[:, 0] - y0) / (y1 - y0) * (x1 - x0)
        inside ^= crosses & (points[:, 1] < at)
    return inside


def transforms(random: np.random.Generator) -> dict[str, Any]:
    return {
        "scale": random.uniform(0.3, 2, 2),
        "rotate": float(random.uniform(-60, 60)),
        "translate": random.uniform(-9, 9, 2),
        "shear": [float(random.uniform(-0.3, 0.3))],
    }


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_shapes_are_rasterised_where_they_lie_in_the_world(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = Image(np.zeros((31, 43)), **transforms(random))
    # Somewhere on the image, in the coordinates of another turned and scaled layer.
    shapes = Shapes(ndim=2, **transforms(random))
    centre = random.uniform((8, 8), (22, 34))
    box = np.array([(-5, -7), (-5, 7), (5, 7), (5, -7)]) * random.uniform(0.5, 1.2)
    on_image = centre + box
    drawn = np.array([shapes.world_to_data(image.data_to_world(point)) for point in on_image])
    shapes.add(drawn, shape_type="polygon")
    shapes.add(drawn + 100, shape_type="path")
    fit = find_fit(image, (31, 43))
    assert fit is not None
    mask = inside_shapes(shapes, image, 0, fit.kept, (31, 43))
    # The other way round: each pixel is taken to the shapes.
    pixels = np.indices((31, 43)).reshape(2, -1).T
    there = np.array([shapes.world_to_data(image.data_to_world(point)) for point in pixels])
    np.testing.assert_array_equal(mask.ravel(), even_odd(there, drawn))


def test_an_ellipse_is_round_and_goes_for_all_planes() -> None:
    image = Image(np.zeros((3, 60, 80)))
    box = np.array([(10.3, 20.6), (10.3, 60.6), (40.3, 60.6), (40.3, 20.6)])
    shapes = Shapes([box], shape_type="ellipse")
    fit = find_fit(image, (3, 60, 80))
    assert fit is not None
    mask = inside_shapes(shapes, image, 0, fit.kept, (3, 60, 80))
    y, x = np.indices((60, 80))
    inside = ((y - 25.3) / 15) ** 2 + ((x - 40.6) / 20) ** 2 < 1
    assert (mask[1] != inside).sum() <= 4
    np.testing.assert_array_equal(mask[0], mask[2])


def test_a_shape_in_a_plane_is_of_that_plane() -> None:
    image = Image(np.zeros((3, 20, 20)), scale=(2, 1, 1))
    corners = np.array([(4, 2.5, 3.5), (4, 2.5, 9.5), (4, 7.5, 9.5), (4, 7.5, 3.5)])
    shapes = Shapes([corners], shape_type="rectangle")
    mask = inside_shapes(shapes, image, 0, (0, 1, 2), (3, 20, 20))
    assert mask.sum() == mask[2].sum() == 5 * 6


def test_shapes_that_enclose_nothing_are_told() -> None:
    image = Image(np.zeros((20, 20)), name="cells")
    shapes = Shapes([np.array([(1, 1), (9, 9)])], shape_type="line", name="drawn")
    with pytest.raises(ImageError, match="lies inside a closed shape of drawn"):
        inside_shapes(shapes, image, 0, (0, 1), (20, 20))


def test_layers_are_copied_with_their_spacing_and_place() -> None:
    place = {"scale": (2, 0.5, 0.25), "units": ("s", "um", "um"), "translate": (0, 7, 9)}
    image = Image(np.arange(3 * 12 * 16).reshape(3, 12, 16), name="film", **place)
    truth = np.zeros((3, 12, 16), np.int64)
    truth[1, 2:5, 3:6] = 7
    labels = Labels(truth, **place)
    # Planes without a label have not been looked at.
    (found,) = collect(LayerPair(image, labels), 2)
    image.data[1] = labels.data[1] = 0
    pair = found.pair
    assert (pair.name, pair.axes, pair.spacing) == ("film[1]", "YX", (0.5, 0.25))
    np.testing.assert_array_equal(pair.image, np.arange(192, 384).reshape(12, 16))
    assert count_objects(pair.labels) == 1
    np.testing.assert_allclose(found.placement.translate, image.data_to_world((1, 0, 0)))


@pytest.mark.parametrize(
    ("shape", "more", "axes", "channels"),
    [
        ((12, 16, 3), {"rgb": True}, "YXC", 3),
        ((12, 16, 4), {"rgb": True}, "YXC", 3),
        ((5, 12, 16), {}, "YXC", 5),
        ((12, 16, 5), {}, "YXC", 5),
        ((5, 12, 16), {"axis_labels": ("c", "y", "x")}, "YXC", 5),
    ],
)
def test_channels_come_last(
    shape: tuple[int, ...], more: dict[str, Any], axes: str, channels: int
) -> None:
    data = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    labels = Labels(np.eye(12, 16, dtype=int))
    (found,) = collect(LayerPair(Image(data, **more), labels), 2)
    assert (found.pair.axes, found.pair.channels) == (axes, channels)
    last = data if shape[0] == 12 else np.moveaxis(data, 0, -1)
    np.testing.assert_array_equal(found.pair.image, last[..., :channels])


def test_labels_of_a_coarser_level_find_it() -> None:
    pyramid = [np.ones((40, 60)), np.full((20, 30), 2.0)]
    image = Image(pyramid, multiscale=True, scale=(0.5, 0.5))
    labels = Labels(np.eye(20, 30, dtype=int), scale=(1, 1))
    (found,) = collect(LayerPair(image, labels), 2)
    assert found.pair.image.max() == 2
    np.testing.assert_allclose(found.placement.scale, (1, 1))


@pytest.mark.parametrize(
    ("image", "labels", "ndim", "part"),
    [
        (np.zeros((9, 9)), np.ones((9, 8), int), 2, "labels has 9 x 8; choose labels"),
        # Not an image of eleven channels.
        (np.zeros((11, 9, 9)), np.ones((9, 9), int), 2, "labels has 9 x 9; choose labels"),
        (np.zeros((9, 9)), np.ones((9, 9), int), 3, "cells is flat"),
        (np.zeros((2, 9, 9)), np.zeros((2, 9, 9), int), 2, "holds nothing but 0"),
        (np.zeros((9, 9)), -np.ones((9, 9), int), 2, "negative numbers"),
    ],
)
def test_what_does_not_go_together_is_told(
    image: np.ndarray, labels: np.ndarray, ndim: int, part: str
) -> None:
    pair = LayerPair(Image(image, name="cells"), Labels(labels, name="labels"))
    with pytest.raises(ImageError, match=part):
        collect(pair, ndim)


DTYPES = ("uint8", "uint16", "int16", "uint32", "float32", "float64")


@settings(max_examples=40)
@given(
    dtype=st.sampled_from(DTYPES),
    axes=st.sampled_from(("YX", "YXC", "ZYX", "ZYXC")),
    reviewed=st.booleans(),
    spacing=st.booleans(),
    top=st.sampled_from((1, 300, 70_000)),
    data=st.data(),
)
def test_saved_pairs_load_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    axes: str,
    reviewed: bool,
    spacing: bool,
    top: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("saved")
    extents = {"Z": 2, "Y": 5, "X": 7, "C": 3}
    shape = tuple(extents[letter] for letter in axes)
    image = data.draw(hnp.arrays(dtype, shape, elements={"min_value": 0, "max_value": 100}))
    image[..., -1] = image[..., -1] + 1  # no grey picture
    flat = shape[: len(axes.rstrip("C"))]
    labels = data.draw(hnp.arrays(np.int32, flat, elements=st.integers(0, top)))
    mask = data.draw(hnp.arrays(bool, flat)) if reviewed else None
    lengths = (1 / 3, 0.1, 0.7)[-len(flat) :] if spacing else None
    pair = Pair("a name / with: signs", image, axes, labels, mask, lengths)
    table = save_pairs(folder, [pair])
    # A second time, they stand beside the first.
    assert save_pairs(folder, [pair]) == table
    for place in (table, folder):
        files = find_saved(place)
        assert len({one.image for one in files}) == 2
        for one in files:
            (back,) = load_pair(one, len(flat))
            assert (back.axes, back.spacing) == (axes, lengths)
            assert back.image.dtype == dtype
            np.testing.assert_array_equal(back.image, image)
            np.testing.assert_array_equal(back.labels, labels)
            assert (back.reviewed is None) == (mask is None)
            if mask is not None:
                np.testing.assert_array_equal(back.reviewed, mask)
    (seen, _) = look_at(find_saved(folder))
    assert (seen.shape, seen.objects) == (flat, len(np.unique(labels[labels > 0])))
    assert not list(folder.glob(".*"))


def test_a_folder_of_images_and_labels_is_found_too(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.ones((4, 4), np.uint8))
    assert [one.image.name for one in find_saved(tmp_path)] == ["a.npy"]
    with pytest.raises(ImageError, match="neither"):
        find_saved(tmp_path / "images")
    with pytest.raises(ImageError, match="no folder and no table"):
        find_saved(tmp_path / "images" / "a.npy")


def test_a_full_disk_leaves_the_table_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair("a", np.ones((4, 4)), "YX", np.ones((4, 4), int))
    table = save_pairs(tmp_path, [pair])
    before = table.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tifffile.imwrite", full)
    with pytest.raises(OutputError, match="disk is full"):
        save_pairs(tmp_path, [pair])
    assert table.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


@given(
    labels=hnp.arrays(np.int32, (6, 7), elements=st.integers(0, 4)),
    truth=hnp.arrays(np.int32, (6, 7), elements=st.integers(0, 9)),
)
def test_colours_follow_the_labels_and_nothing_else_changes(
    labels: np.ndarray, truth: np.ndarray
) -> None:
    found = coloured_alike(labels, truth)
    names = [n for n in np.unique(labels) if n]
    new = []
    for name in names:
        (value,) = np.unique(found[labels == name])
        new.append(value)
        alike = [
            t
            for t in np.unique(truth[truth > 0])
            if 2 * ((labels == name) & (truth == t)).sum() > ((labels == name) | (truth == t)).sum()
        ]
        assert [value] == alike if alike else value > truth.max()
    assert len(set(new)) == len(names)
    np.testing.assert_array_equal(found == 0, labels == 0)
