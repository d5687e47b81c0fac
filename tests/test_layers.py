"""Laws of the way from a layer to an array and back: a result lies where its image lies."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image, Labels

from napari_unet._napari.layers import Placement, axes_of, describe, network_spacing, read
from napari_unet._napari.region import SLICE, VISIBLE, WHOLE, View, look, resolve_region
from napari_unet._napari.request import Choices, check, kept_axes, match, resolve
from napari_unet.checkpoint import Card
from napari_unet.config import UNetConfig
from napari_unet.errors import ImageError

RANDOM = np.random.default_rng(0)


def card(ndim: int = 2, channels: int = 1, spacing: tuple[float, ...] | None = None) -> Card:
    return Card("tiny", UNetConfig(in_channels=channels, ndim=ndim, widths=(2,)), spacing=spacing)


def view(*shape: int, displayed: tuple[int, ...] | None = None) -> View:
    ndim = len(shape)
    shown = displayed or tuple(range(ndim - 2, ndim))
    return View(shown, (0,) * ndim, tuple((0, extent) for extent in shape))


def request(layer: Image, model: Card, choices: Choices | None = None, seen: View | None = None):
    info = describe(layer)
    source = read(layer, info, model.config.ndim, model.config.in_channels)
    return resolve(
        choices or Choices(),
        info,
        source,
        Placement.of(layer),
        seen or view(*describe(layer).shape[: layer.ndim]),
        None,
        model,
    )


PLACED = {
    "plain": {},
    "scale": {"scale": (0.5, 0.25), "translate": (3, -7)},
    "units": {"scale": (0.3, 0.3), "units": ("um", "um"), "axis_labels": ("y", "x")},
    "rotated": {"rotate": 33, "scale": (2, 3)},
    "sheared": {"shear": [0.4], "translate": (1, 2)},
    "affine": {"affine": [[1, 0.2, 5], [-0.1, 2, 1], [0, 0, 1]], "scale": (1, 0.5)},
    "all": {
        "affine": [[1, 0.2, 5], [-0.1, 2, 1], [0, 0, 1]],
        "shear": [0.4],
        "rotate": 12,
        "scale": (2, 3),
        "translate": (-1, 4),
        "units": ("nm", "nm"),
    },
}


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("origin", [(0, 0), (5, 3)])
def test_a_result_lies_where_its_image_lies(name: str, origin: tuple[int, int]) -> None:
    image = Image(np.zeros((20, 30)), **PLACED[name])
    placed = Placement.of(image).starting_at(origin)
    labels = Labels(np.zeros((4, 5), np.int32), **placed.arguments())
    for corner in itertools.product((0, 3), (0, 4)):
        there = np.add(corner, origin)
        np.testing.assert_allclose(labels.data_to_world(corner), image.data_to_world(there))
    assert labels.units == image.units
    assert labels.axis_labels == image.axis_labels


def test_the_channel_axis_is_left_out_of_the_result() -> None:
    image = Image(
        np.zeros((3, 20, 30)),
        axis_labels=("c", "y", "x"),
        scale=(9, 0.5, 0.25),
        translate=(1, 2, 3),
        units=("pixel", "um", "um"),
    )
    made = request(image, card(channels=3))
    assert made.options.axes == "YXC"
    assert made.array.shape == (20, 30, 3)
    assert made.shape == (20, 30)
    labels = Labels(np.zeros(made.shape, np.int32), **made.placement.arguments())
    np.testing.assert_allclose(labels.data_to_world((1, 1)), image.data_to_world((0, 1, 1))[1:])
    assert [str(unit) for unit in labels.units] == ["micrometer"] * 2
    assert labels.axis_labels == ("y", "x")


def test_a_level_of_a_multiscale_image_lies_under_it() -> None:
    levels = [np.zeros((64, 96)), np.zeros((32, 48)), np.zeros((16, 24))]
    image = Image(levels, multiscale=True, scale=(0.5, 0.5), units=("um", "um"), rotate=20)
    info = describe(image, 2)
    assert info.shape == (16, 24)
    assert info.levels == ((64, 96), (32, 48), (16, 24))
    assert info.spacing == (2.0, 2.0)
    labels = Labels(np.zeros((16, 24), np.int32), **Placement.of(image, 2).arguments())
    np.testing.assert_allclose(labels.data_to_world((3, 5)), image.data_to_world((12, 20)))


@pytest.mark.parametrize(
    ("shape", "arguments", "model", "axes", "kept"),
    [
        ((20, 30), {}, card(), "YX", (0, 1)),
        ((20, 30, 3), {"rgb": True}, card(channels=3), "YXC", (0, 1)),
        ((20, 30, 4), {"rgb": True}, card(channels=3), "YXC", (0, 1)),
        ((5, 20, 30, 3), {"rgb": True}, card(channels=3), "TYXC", (0, 1, 2)),
        ((20, 30, 3), {"rgb": False}, card(channels=3), "YXC", (0, 1)),
        ((3, 20, 30), {}, card(channels=3), "YXC", (1, 2)),
        ((5, 3, 20, 30), {}, card(channels=3), "TYXC", (0, 2, 3)),
        ((5, 20, 30), {}, card(), "TYX", (0, 1, 2)),
        ((5, 20, 30), {"axis_labels": ("z", "y", "x")}, card(), "ZYX", (0, 1, 2)),
        ((5, 20, 30), {}, card(3), "ZYX", (0, 1, 2)),
        ((2, 5, 20, 30), {"axis_labels": ("Time", "Z", "Y", "X")}, card(3), "TZYX", (0, 1, 2, 3)),
        ((2, 5, 20, 30), {}, card(), "TZYX", (0, 1, 2, 3)),
    ],
)
def test_axes(shape, arguments, model, axes, kept) -> None:
    image = Image(np.zeros(shape, np.uint8), **arguments)
    info = describe(image)
    found = match(info, model)
    assert found.axes == axes
    assert kept_axes(info, model) == kept
    source = read(image, info, model.config.ndim, model.config.in_channels)
    assert source.array.shape == found.shape
    assert source.kept == kept


def test_lazy_arrays_stay_lazy() -> None:
    da = pytest.importorskip("dask.array")
    touched = []

    def block(block_info=None):
        touched.append(1)
        return np.zeros((3, 8, 8), np.uint8)

    lazy = da.map_blocks(block, chunks=((3,), (8, 8), (8, 8)), dtype=np.uint8, meta=np.zeros(0))
    image = Image(lazy, axis_labels=("c", "y", "x"), contrast_limits=(0, 1))
    touched.clear()
    source = read(image, describe(image), 2, 3)
    assert source.array.shape == (16, 16, 3)
    assert not touched


def test_zarr_with_channels_first_is_not_read() -> None:
    zarr = pytest.importorskip("zarr")
    pytest.importorskip("dask")
    stored = zarr.create_array({}, shape=(3, 16, 16), chunks=(1, 8, 8), dtype="uint8")
    stored[...] = np.arange(3 * 256, dtype=np.uint8).reshape(3, 16, 16)
    image = Image(stored, axis_labels=("c", "y", "x"), contrast_limits=(0, 1))
    source = read(image, describe(image), 2, 3)
    assert not isinstance(source.array, np.ndarray)
    np.testing.assert_array_equal(source.array[:], np.moveaxis(stored[...], 0, -1))


@pytest.mark.parametrize(
    ("units", "scale", "expected"),
    [
        (("um", "um"), (0.5, 0.5), (0.5, 0.5)),
        (("nm", "nm"), (650, 650), (0.65, 0.65)),
        (("mm", "mm"), (0.001, -0.002), (1.0, 2.0)),
        (("pixel", "pixel"), (0.5, 0.5), None),
        (("s", "s"), (0.5, 0.5), None),
        (None, (0.5, 0.5), None),
    ],
)
def test_spacing_is_known_where_the_unit_is_a_length(units, scale, expected) -> None:
    image = Image(np.zeros((8, 8)), scale=scale, units=units)
    info = describe(image)
    found = network_spacing(info, (0, 1), 2)
    assert found == (None if expected is None else pytest.approx(expected))


def test_spacing_of_the_spatial_axes_alone_counts() -> None:
    image = Image(np.zeros((5, 8, 8)), scale=(60, 0.5, 0.5), units=("s", "um", "um"))
    info = describe(image)
    assert network_spacing(info, (0, 1, 2), 2) == (0.5, 0.5)
    assert network_spacing(info, (0, 1, 2), 3) is None


def test_brief() -> None:
    assert describe(Image(np.zeros((1024, 1360), np.uint16))).brief() == "1024x1360 u16"
    assert describe(Image(np.zeros((9, 8, 7), np.float32))).brief() == "9x8x7 f32"
    assert describe(Image(np.zeros((9, 8), bool))).brief() == "9x8 bool"


def test_region_of_a_stack() -> None:
    seen = View(displayed=(1, 2), index=(3, 0, 0), corners=((0, 1), (4, 10), (0, 99)))
    arguments = {"kept": (0, 1, 2), "shape": (5, 20, 30), "ndim": 2}
    assert resolve_region(WHOLE, seen, **arguments) is None
    assert resolve_region(SLICE, seen, **arguments) == (slice(3, 4), slice(0, 20), slice(0, 30))
    assert resolve_region(VISIBLE, seen, **arguments) == (slice(3, 4), slice(4, 10), slice(0, 30))


def test_region_of_a_volume_for_a_3d_network_is_never_one_plane() -> None:
    seen = View(displayed=(1, 2), index=(3, 0, 0), corners=((0, 1), (4, 10), (2, 9)))
    found = resolve_region(VISIBLE, seen, (0, 1, 2), (5, 20, 30), 3)
    assert found == (slice(0, 5), slice(4, 10), slice(2, 9))


def test_region_in_a_turned_view_takes_whole_planes() -> None:
    seen = View(displayed=(0, 2), index=(3, 7, 0), corners=((1, 4), (0, 1), (2, 9)))
    found = resolve_region(VISIBLE, seen, (0, 1, 2), (5, 20, 30), 2)
    assert found == (slice(1, 4), slice(0, 20), slice(2, 9))


def test_region_outside_the_image() -> None:
    seen = View(displayed=(1, 2), index=(9, 0, 0), corners=((0, 1), (0, 1), (0, 30)))
    with pytest.raises(ImageError, match="move the sliders"):
        resolve_region(SLICE, seen, (0, 1, 2), (5, 20, 30), 2)
    with pytest.raises(ImageError, match="press Home"):
        resolve_region(VISIBLE, seen, (1, 2), (20, 30), 2)


def test_a_slice_keeps_its_place_in_the_stack() -> None:
    """One plane thick, not two-dimensional: it is drawn on its own plane alone."""
    image = Image(np.zeros((5, 20, 30)), scale=(2, 1, 1), translate=(10, 0, 0))
    seen = View((1, 2), (3, 0, 0), ((0, 1), (4, 10), (2, 30)))
    made = request(image, card(), Choices(region=VISIBLE), seen)
    assert made.shape == (1, 6, 28)
    assert made.origin == (3, 4, 2)
    labels = Labels(np.zeros(made.shape, np.int32), **made.placement.arguments())
    np.testing.assert_allclose(labels.data_to_world((0, 0, 0)), image.data_to_world((3, 4, 2)))
    assert labels.extent.world[0][0] == labels.extent.world[1][0] == 16


MICROMETRES = ("um", "um")


@pytest.mark.parametrize(
    ("scale", "units", "choices", "text"),
    [
        ((0.325, 0.325), MICROMETRES, Choices(), "0.325 µm/px: runs at half size"),
        ((0.13, 0.13), MICROMETRES, Choices(), "0.13 µm/px: runs at 20\u00a0% of its size"),
        ((1.3, 0.65), MICROMETRES, Choices(), "runs at 200\u00a0% x 100\u00a0% of its size"),
        ((0.325, 0.325), MICROMETRES, Choices(rescale=False), "runs without rescaling"),
    ],
)
def test_warnings_about_spacing(scale, units, choices, text) -> None:
    info = describe(Image(np.zeros((8, 8)), scale=scale, units=units))
    (notice,) = check(info, card(spacing=(0.65, 0.65)), choices)
    assert notice.kind == "warning"
    assert text in notice.text


def test_spacing_that_fits_or_is_unknown_is_no_warning() -> None:
    model = card(spacing=(0.65, 0.65))
    fits = describe(Image(np.zeros((8, 8)), scale=(0.65, 0.65), units=MICROMETRES))
    assert check(fits, model, Choices()) == ()
    (notice,) = check(describe(Image(np.zeros((8, 8)))), model, Choices())
    assert notice.kind == "note"
    assert notice.text == "pixel size unknown: runs as if it were 0.65 µm/px"


@pytest.mark.parametrize(
    ("data", "arguments", "model", "part"),
    [
        (np.zeros((8, 8, 3)), {"rgb": True}, card(), "3 channels, the model takes 1"),
        (np.zeros((8, 8)), {}, card(channels=3), "too few axes"),
        (np.zeros((8, 8)), {}, card(3), "too few axes"),
        (np.zeros((2, 2, 2, 8, 8)), {}, card(), "more than (T)(Z)YX(C)"),
        (np.zeros((8, 8)), {"axis_labels": ("x", "y")}, card(), "TZYXC"),
    ],
)
def test_notices_about_images_that_do_not_fit(data, arguments, model, part) -> None:
    notices = check(describe(Image(data, **arguments)), model, Choices())
    assert [notice.kind for notice in notices] == ["stop"]
    assert part in notices[0].text
    with pytest.raises(ImageError):
        request(Image(data, **arguments), model, seen=view(*data.shape))


def test_notice_about_pixels_that_are_no_numbers() -> None:
    info = replace(describe(Image(np.zeros((8, 8)))), dtype="complex64")
    assert "magnitude" in check(info, card(), Choices())[0].text


def test_notice_about_planes() -> None:
    info = describe(Image(np.zeros((5, 8, 8)), axis_labels=("z", "y", "x")))
    assert [n.text for n in check(info, card(), Choices())] == [
        "2-D model: 5 planes, each by itself; objects are not linked"
    ]
    assert check(info, card(), Choices(region=SLICE)) == ()
    assert check(info, card(3), Choices()) == ()


def test_axes_of_keeps_the_order_of_an_image_without_channels() -> None:
    info = describe(Image(np.zeros((5, 8, 9))))
    assert axes_of(info, 2, 1) == (None, (0, 1, 2))


def test_look(make_napari_viewer) -> None:
    viewer = make_napari_viewer()
    layer = viewer.add_image(np.zeros((5, 20, 30)), scale=(2, 1, 1), units=("um", "um", "um"))
    viewer.add_points(np.zeros((1, 4)))
    viewer.dims.set_point(1, 6)
    seen = look(viewer, layer)
    assert seen.displayed == (1, 2)
    assert seen.index[0] == 3
    viewer.dims.ndisplay = 3
    assert look(viewer, layer).displayed == (0, 1, 2)
    viewer.dims.ndisplay = 2
    viewer.dims.order = (0, 2, 1, 3)
    assert look(viewer, layer).displayed == (0, 2)
