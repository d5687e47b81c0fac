from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from napari_unet.errors import ImageError, OutputError
from napari_unet.files import (
    ImageFile,
    LazyArray,
    check_output,
    ome_zarr,
    read_image,
    read_labels,
    write_labels,
    write_probabilities,
    writing,
)
from napari_unet.files.image_file import spacing_of, to_micrometre

RANDOM = np.random.default_rng(0)


def pixels(*shape, dtype=np.uint16):
    top = 255 if np.dtype(dtype).itemsize == 1 else 4000
    return RANDOM.integers(0, top, shape).astype(dtype)


def canonical(array, axes):
    """What `read_image` promises, from an array and its axes."""
    keep = [i for i, n in enumerate(array.shape) if n > 1 or axes[i] in "YX"]
    array = array.reshape([array.shape[i] for i in keep])
    axes = "".join(axes[i] for i in keep)
    order = sorted(range(len(axes)), key=lambda i: "TZYXC".index(axes[i]))
    return array.transpose(order), "".join(axes[i] for i in order)


# --- Reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((6, 7), "YX"),
        ((3, 6, 7), "ZYX"),
        ((3, 6, 7), "TYX"),
        ((2, 6, 7), "CYX"),
        ((4, 2, 6, 7), "ZCYX"),
        ((5, 4, 2, 6, 7), "TZCYX"),
        ((1, 4, 1, 6, 7), "TZCYX"),
        ((1, 1), "YX"),
        ((4, 1, 7), "ZYX"),
    ],
)
@pytest.mark.parametrize("kind", ["imagej", "ome"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_axes(tmp_path, shape, axes, kind, compression):
    array = pixels(*shape)
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    tifffile.imwrite(
        path,
        array,
        **{kind: True},
        compression=compression,
        photometric="minisblack",
        metadata={"axes": axes},
    )
    image = read_image(path)
    want, want_axes = canonical(array, axes)
    assert (image.axes, image.kind, image.spacing) == (want_axes, kind, None)
    np.testing.assert_array_equal(image.data, want)
    assert isinstance(image.data, np.ndarray)
    lazy = read_image(path, lazy_above=0)
    assert lazy.axes == want_axes
    assert lazy.data.shape == want.shape
    assert lazy.data.dtype == want.dtype
    np.testing.assert_array_equal(lazy.data, want)
    if min(shape[-2:]) > 1:
        assert isinstance(lazy.data, LazyArray)
        inner = (..., slice(1, 5), slice(2, 6))[-lazy.data.ndim :]
        np.testing.assert_array_equal(lazy.data[inner], want[inner])


def test_unnamed_pages_stay_open(tmp_path):
    path, array = tmp_path / "pages.tif", pixels(5, 8, 9)
    with tifffile.TiffWriter(path) as writer:
        for page in array:
            writer.write(page, metadata=None, contiguous=False)
    image = read_image(path)
    assert image.axes is None
    np.testing.assert_array_equal(image.data, array)
    assert read_image(path, axes="zyx").axes == "ZYX"
    moved = read_image(path, axes="CYX")
    assert moved.axes == "YXC"
    np.testing.assert_array_equal(moved.data, np.moveaxis(array, 0, -1))


def test_rgb_tiff_and_its_alpha(tmp_path):
    array = pixels(8, 9, 4, dtype=np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    image = read_image(path)
    assert image.axes == "YXC"
    np.testing.assert_array_equal(image.data, array[..., :3])
    np.testing.assert_array_equal(read_image(path, axes="YXC").data, array)


def test_pyramid(tmp_path):
    path, full = tmp_path / "a.ome.tif", pixels(64, 96)
    with tifffile.TiffWriter(path) as writer:
        metadata = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
        writer.write(full, subifds=1, tile=(16, 16), metadata=metadata)
        writer.write(full[::2, ::2], subfiletype=1, tile=(16, 16))
    for lazy_above in (0, 1 << 28):
        image = read_image(path, level=1, lazy_above=lazy_above)
        np.testing.assert_array_equal(image.data, full[::2, ::2])
        assert image.spacing == (1.0, 0.5)
    assert read_image(path).spacing == (0.5, 0.25)
    with pytest.raises(ImageError, match=r"2 resolution level.*no level 2; choose another"):
        read_image(path, level=2)


def test_several_images_are_mentioned(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels(8, 9), metadata=None)
        writer.write(pixels(5, 5), metadata=None)
    image = read_image(path)
    assert image.data.shape == (8, 9)
    assert image.remarks == ("holds 2 images; the first was read",)


def test_more_axes_than_there_are_names_for(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, pixels(2, 3, 4, 8, 9), metadata={"axes": "RTZYX"})
    with pytest.raises(ImageError, match=r"a.ome.tif has 5 axes .* save one position or channel"):
        read_image(path)
    tifffile.imwrite(path, pixels(3, 4, 8, 9), metadata={"axes": "RTYX"})
    assert read_image(path).axes == "TZYX"


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("L", (5, 6), np.uint8),
        ("I;16", (5, 6), np.uint16),
        ("RGB", (5, 6, 3), np.uint8),
        ("1", (5, 6), bool),
    ],
)
def test_png(tmp_path, mode, shape, dtype):
    array = pixels(*shape) > 2000 if dtype is bool else pixels(*shape, dtype=dtype)
    Image.fromarray(array).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.data.dtype == dtype
    assert image.axes == "YXC"[: len(shape)]
    np.testing.assert_array_equal(image.data, array)


def test_png_without_opacity_or_palette(tmp_path):
    array = pixels(5, 6, 4, dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png").data, array[..., :3])
    Image.fromarray(array[..., :2].copy(), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png").data, array[..., 0])
    colours = Image.fromarray(array[..., :3].copy()).quantize(8)
    colours.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").data, colours.convert("RGB"))


def test_jpeg_with_any_suffix(tmp_path):
    Image.fromarray(pixels(16, 16, dtype=np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.bmp")
    assert read_image(tmp_path / "a.bmp").axes == "YX"


def test_npy(tmp_path):
    array = pixels(3, 5, 6)
    np.save(tmp_path / "a.npy", array)
    for lazy_above in (0, 1 << 28):
        image = read_image(tmp_path / "a.npy", lazy_above=lazy_above)
        assert image.axes is None
        np.testing.assert_array_equal(image.data, array)
        image = read_image(tmp_path / "a.npy", axes="CYX", lazy_above=lazy_above)
        assert image.axes == "YXC"
        np.testing.assert_array_equal(image.data, np.moveaxis(array, 0, -1))


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ("YXQ", "give each letter of T, Z, Y, X, C at most once, Y and X among them"),
        ("YYX", "at most once"),
        ("ZYC", "Y and X among them"),
        ("YX", "name 2 axes, but a.npy has 3"),
    ],
)
def test_wrong_axes(tmp_path, axes, words):
    np.save(tmp_path / "a.npy", pixels(3, 5, 6))
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "a.npy", axes=axes)


# --- Spacing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "micrometres"),
    [
        (0.5, "µm", 0.5),
        (0.5, "\\u00B5m", 0.5),
        (0.5, "μm", 0.5),
        (0.5, "micron", 0.5),
        (0.5, "microns", 0.5),
        (0.5, "micrometre", 0.5),
        ("500", "nm", 0.5),
        (5e-4, "mm", 0.5),
        (5e-5, "cm", 0.5),
        (0.5e-6, "meter", 0.5),
        (1, "inch", 25400),
        (1, "pixel", None),
        (1, "", None),
        (1, None, None),
        (0, "µm", None),
        (-1, "µm", None),
        (float("nan"), "µm", None),
        ("wide", "µm", None),
        (None, "µm", None),
    ],
)
def test_units(value, unit, micrometres):
    assert to_micrometre(value, unit) == pytest.approx(micrometres)


def test_spacing_is_what_is_known():
    assert spacing_of({"Y": 1.0, "X": 2.0, "Z": 3.0}, "ZYX") == (3.0, 1.0, 2.0)
    assert spacing_of({"Y": 1.0, "X": 2.0, "Z": None}, "TZYXC") == (1.0, 2.0)
    assert spacing_of({"Y": 1.0, "X": 2.0, "Z": 3.0}, "TYX") == (1.0, 2.0)
    assert spacing_of({"X": 2.0}, "YX") == (2.0, 2.0)
    assert spacing_of({"Z": 2.0}, "ZYX") is None


@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um"}}, (0.25, 0.5)),
        ({"imagej": True, "resolution": (2, 4), "metadata": {"unit": "pixel"}}, None),
        ({"imagej": True, "resolution": (72, 72), "metadata": {"unit": "inch"}}, None),
        ({"imagej": True, "resolution": (2, 4)}, None),
        ({"resolution": (1e4, 2e4), "resolutionunit": "CENTIMETER"}, (0.5, 1.0)),
        ({"resolution": (25400, 25400), "resolutionunit": "INCH"}, (1.0, 1.0)),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (28.35, 28.35), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (1, 1), "resolutionunit": "NONE"}, None),
        (
            {"ome": True, "metadata": {"PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm"}},
            (0.65, 0.65),
        ),
        ({"ome": True, "metadata": {"PhysicalSizeX": 2, "PhysicalSizeXUnit": "pixel"}}, None),
    ],
)
def test_spacing_of_tiffs(tmp_path, options, spacing):
    tifffile.imwrite(tmp_path / "a.tif", pixels(8, 9), **options)
    found = read_image(tmp_path / "a.tif").spacing
    assert found == (None if spacing is None else pytest.approx(spacing))


# --- Bad files --------------------------------------------------------------------------------


def bad_files(folder):
    """Name, content, and what the message has to say."""
    tifffile.imwrite(folder / "plain.tif", pixels(64, 64))
    tifffile.imwrite(folder / "deflated.tif", pixels(64, 64), compression="zlib")
    tifffile.imwrite(folder / "stack.tif", pixels(9, 64, 64), imagej=True)
    Image.fromarray(pixels(64, 64, dtype=np.uint8)).save(folder / "a.png")
    np.save(folder / "a.npy", pixels(64, 64))
    np.save(folder / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save(folder / "nothing.npy", np.zeros((0, 5)))
    again = "get the file again"
    yield "missing.tif", None, "There is no file .*missing.tif; check the path"
    yield "empty.tif", b"", f"empty.tif is empty; {again}"
    yield "text.tif", b"these are words\n" * 9, "text.tif is no image that can be read here; TIFF"
    yield "cells.czi", b"ZISRAWFILE" * 9, "a microscope's own format; save it as TIFF"
    yield "arrays.npz", b"PK\3\4" * 9, "save the image alone with numpy.save"
    for name in ("plain.tif", "deflated.tif", "stack.tif", "a.png", "a.npy"):
        whole = (folder / name).read_bytes()
        for part in (0.1, 0.5, 0.95):
            cut = f"cut-{part}-{name}"
            yield cut, whole[: int(len(whole) * part)], f"{cut} is damaged or cut short .*{again}"
    yield "objects.npy", (folder / "objects.npy").read_bytes(), "damaged"
    yield "nothing.npy", (folder / "nothing.npy").read_bytes(), "no pixels; choose another image"


@pytest.mark.parametrize("lazy_above", [0, 1 << 28])
def test_bad_files(tmp_path, lazy_above, capfd):
    (tmp_path / "work").mkdir()
    for name, content, words in bad_files(tmp_path / "work"):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ImageError, match=words) as caught:
            np.asarray(read_image(path, lazy_above=lazy_above).data)
        assert "\n" not in str(caught.value), name
    assert capfd.readouterr() == ("", "")  # decoders keep their warnings to themselves


def test_bad_folders(tmp_path):
    with pytest.raises(ImageError, match="is a folder but no zarr image; give an image file"):
        read_image(tmp_path)


def test_compression_that_needs_another_package(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels(64, 64))

    def missing(*_args, **_options):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", missing)
    with pytest.raises(ImageError, match="run: pip install imagecodecs"):
        read_image(tmp_path / "a.tif")


def test_an_image_that_is_too_large_for_memory(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", pixels(64, 64), compression="zlib")

    def full(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", full)
    with pytest.raises(ImageError, match="does not fit into memory; save it uncompressed"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("change", ["remove", "rewrite"])
def test_an_image_that_changes_while_it_is_read(tmp_path, change):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(64, 64))
    data = read_image(path, lazy_above=0).data
    np.asarray(data[:4])
    path.unlink()
    if change == "rewrite":
        tifffile.imwrite(path, pixels(32, 64))
    with pytest.raises(ImageError, match="was changed or removed while it was being read; put it"):
        np.asarray(data[4:8])


@given(st.data())
def test_lazy_arrays_index_like_arrays(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "lazy.npy"
    array = np.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    if not path.exists():
        np.save(path, array)
    lazy = read_image(path, lazy_above=0).data
    for _ in range(data.draw(st.integers(0, 3))):
        key = []
        for extent in array.shape[: data.draw(st.integers(0, array.ndim))]:
            whole = st.integers(-extent, extent - 1) if extent else st.just(slice(None))
            part = st.slices(extent).filter(lambda s: (s.step or 1) > 0)
            key.append(data.draw(whole | part | part))
        if data.draw(st.booleans()) and len(key) < array.ndim:
            key.append(...)
        array, lazy = array[tuple(key)], lazy[tuple(key)]
        order = data.draw(st.permutations(range(array.ndim)))
        array, lazy = array.transpose(order), lazy.transpose(order)
        assert (lazy.shape, lazy.ndim, lazy.size) == (array.shape, array.ndim, array.size)
    np.testing.assert_array_equal(np.asarray(lazy), array)
    assert np.asarray(lazy, dtype=float).dtype == float


def test_lazy_arrays_refuse_other_indices(tmp_path):
    np.save(tmp_path / "a.npy", pixels(3, 4))
    lazy = read_image(tmp_path / "a.npy", lazy_above=0).data
    assert len(lazy) == 3
    with pytest.raises(IndexError):
        lazy[3]
    with pytest.raises(IndexError):
        lazy[0, 0, 0]
    with pytest.raises(TypeError):
        lazy[[0, 1]]


# --- Labels -----------------------------------------------------------------------------------


def test_read_labels(tmp_path):
    labels = pixels(8, 9)
    tifffile.imwrite(tmp_path / "float.tif", labels.astype(np.float32))
    np.testing.assert_array_equal(read_labels(tmp_path / "float.tif"), labels)
    Image.fromarray(labels > 2000).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.png"), labels > 2000)
    for name, array, words in (
        ("rgb.png", pixels(8, 9, 3, dtype=np.uint8), "3 channels, a label image has one number"),
        ("half.npy", np.full((2, 2), 0.5), "no label image: its pixels are float64"),
        ("minus.npy", np.full((2, 2), -1), "no label image: its pixels are int64"),
    ):
        if name.endswith("npy"):
            np.save(tmp_path / name, array)
        else:
            Image.fromarray(array).save(tmp_path / name)
        with pytest.raises(ImageError, match=words):
            read_labels(tmp_path / name)


@pytest.mark.parametrize("lead", [(), (3,), (4,), (6,), (2, 3), (2, 4), (2, 5), (5, 2)])
def test_labels_that_napari_saved_are_read(tmp_path, lead):
    from napari_builtins.io import napari_write_labels

    # tifffile takes three or four planes for the colours of one, and names no axis.
    labels = pixels(*lead, 30, 40).astype(np.int32)
    path = napari_write_labels(str(tmp_path / "corrected.tif"), labels, {})
    np.testing.assert_array_equal(read_labels(path), labels)


def test_labels_that_are_numbers_of_colours_are_read(tmp_path):
    labels = pixels(8, 9, dtype=np.uint8) % 4
    picture = Image.fromarray(labels).convert("P")
    picture.putdata(labels.ravel().tolist())
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    picture.save(tmp_path / "voc.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "voc.png"), labels)
    assert read_image(tmp_path / "voc.png").axes == "YXC"  # an image has its colours


@pytest.mark.parametrize("compression", [None, "group4"])
def test_a_mask_of_single_bits_is_no_negative(tmp_path, compression):
    if compression:
        pytest.importorskip("imagecodecs")
    mask = pixels(20, 30) > 3000
    Image.fromarray(mask).save(tmp_path / "mask.tif", compression=compression)
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.tif"), mask)
    grey = pixels(20, 30)
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.tif").data, grey)


def test_opacity_is_dropped(tmp_path):
    grey = pixels(20, 30)
    tifffile.imwrite(
        tmp_path / "grey.tif",
        np.stack([grey, np.full_like(grey, 65535)], -1),
        photometric="minisblack",
        extrasamples=["unassalpha"],
        planarconfig="contig",
    )
    image = read_image(tmp_path / "grey.tif")
    assert image.axes == "YX"
    np.testing.assert_array_equal(image.data, grey)


def test_a_file_that_is_missing_of_a_set_is_told(tmp_path):
    unit = "urn:uuid:00000000-0000-0000-0000-00000000000"
    planes = "".join(
        f'<TiffData FirstT="{t}" IFD="0" PlaneCount="1"><UUID FileName="t{t}.ome.tif">{unit}{t}'
        "</UUID></TiffData>"
        for t in range(3)
    )
    for t in range(3):
        xml = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{unit}{t}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
            'Type="uint16" SizeX="20" SizeY="20" SizeZ="1" SizeC="1" SizeT="3">'
            f"{planes}</Pixels></Image></OME>"
        )
        tifffile.imwrite(tmp_path / f"t{t}.ome.tif", pixels(20, 20), description=xml, metadata=None)
    assert read_image(tmp_path / "t0.ome.tif").data.shape == (3, 20, 20)
    (tmp_path / "t2.ome.tif").unlink()
    with pytest.raises(ImageError, match=r"t2\.ome\.tif cannot be read; put it beside the others"):
        read_image(tmp_path / "t0.ome.tif")


AXES = ["YX", "ZYX", "TYX", "TZYX"]


@st.composite
def label_images(draw):
    axes = draw(st.sampled_from(AXES))
    shape = [draw(st.integers(2 if a in "TZ" else 1, 5)) for a in axes]
    top = draw(st.sampled_from([1, 255, 65_535, 65_536, 1 << 30]))
    labels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, top + 1, shape)
    labels.flat[-1] = top
    sizes = st.floats(1e-3, 1e3).map(lambda n: float(f"{n:.4g}"))
    count = 2 + ("Z" in axes and draw(st.booleans()))
    spacing = draw(st.none() | st.tuples(*[sizes] * count))
    interval = draw(st.none() | st.sampled_from([0.5, 30.0])) if "T" in axes else None
    kind = draw(st.sampled_from(["imagej", "ome", "tiff", "npy", "zarr"]))
    metadata = {} if interval is None else {"interval": interval}
    image = ImageFile(Path("cells.x"), labels, axes, spacing, kind, metadata)
    return labels.astype(np.int32), image


@given(label_images(), st.sampled_from([".tif", ".ome.tif", ".npy", ".zarr"]))
def test_what_is_written_is_read(tmp_path_factory, case, suffix):
    labels, image = case
    path = tmp_path_factory.mktemp("labels") / f"out{suffix}"
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    write_labels(path, labels, image, note="made by hand")
    again = read_image(path)
    np.testing.assert_array_equal(again.data, labels)
    np.testing.assert_array_equal(read_labels(path), labels)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if suffix == ".npy":
        assert again.data.dtype == np.int32
        return
    assert again.axes == image.axes or 1 in labels.shape[-2:]
    assert again.data.dtype == (np.uint16 if labels.max() < 65_536 else np.int32)
    if image.spacing is None:
        assert again.spacing is None
    else:
        assert again.spacing == pytest.approx(image.spacing, rel=1e-6)
    if suffix == ".zarr":
        return
    thin = labels.ndim > 2 and labels.shape[-1] == 1
    ome = suffix == ".ome.tif" or image.kind == "ome" or labels.max() > 65_535 or thin
    assert again.kind == ("ome" if ome else "imagej")
    assert again.metadata.get("interval") == image.metadata.get("interval")


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_metadata_is_kept(tmp_path, kind):
    labels = pixels(3, 8, 9)
    source = tmp_path / "cells.tif"
    metadata = {
        "imagej": {"unit": "nm", "spacing": 900.0, "Info": "stained", "xorigin": 4.0},
        "ome": {
            "PhysicalSizeX": 500.0,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeZ": 0.9,
            "Name": "dish 3",
            "AcquisitionDate": "2024-05-06T07:08:09",
            "Plane": {"PositionX": [12.5] * 3, "PositionXUnit": ["µm"] * 3},
        },
    }[kind]
    resolution = {"resolution": (1 / 500, 1 / 500)} if kind == "imagej" else {}
    tifffile.imwrite(
        source, labels, **{kind: True}, metadata={"axes": "ZYX", **metadata}, **resolution
    )
    image = read_image(source)
    assert image.spacing == pytest.approx((0.9, 0.5, 0.5))
    write_labels(tmp_path / "out.tif", labels, image, note="by a model")
    again = read_image(tmp_path / "out.tif")
    assert again.kind == kind
    assert again.spacing == pytest.approx((0.9, 0.5, 0.5))
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages.first.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert not file.pages.first.is_tiled
        if kind == "imagej":
            assert file.imagej_metadata["Info"] == "by a model\nstained"
            assert file.imagej_metadata["xorigin"] == 4.0
        else:
            assert "by a model" in file.ome_metadata
    if kind == "ome":
        assert again.metadata["name"] == "dish 3"
        assert again.metadata["AcquisitionDate"] == "2024-05-06T07:08:09"
        assert again.metadata["PositionX"] == "12.5"


def test_bigtiff_where_it_needs_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr("napari_unet.files.writing._CLASSIC_TIFF", 100)
    labels = pixels(3, 8, 9)
    write_labels(tmp_path / "a.tif", labels, axes="ZYX", spacing=(2.0, 1.0, 1.0))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
    again = read_image(tmp_path / "a.tif")
    assert (again.axes, again.spacing) == ("ZYX", (2.0, 1.0, 1.0))
    np.testing.assert_array_equal(again.data, labels)


def test_png_labels(tmp_path):
    labels = pixels(8, 9)
    write_labels(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels)
    with pytest.raises(ImageError, match=r"one plane, not \(2, 8, 9\); choose .tif"):
        write_labels(tmp_path / "b.png", pixels(2, 8, 9))
    with pytest.raises(ImageError, match=r"at most 65,535 objects; choose .tif"):
        write_labels(tmp_path / "b.png", np.full((2, 2), 65_536))
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy", ".zarr"])
def test_probabilities(tmp_path, axes, suffix):
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    shape = tuple(range(2, 2 + len(axes)))
    values = RANDOM.random((3, *shape)).astype(np.float32)
    path = tmp_path / f"p{suffix}"
    names = ["background", "nucleus", "contour"]
    write_probabilities(path, values, axes=axes, spacing=(0.5, 0.5), classes=names)
    again = read_image(path)
    assert again.data.dtype == np.float32
    if suffix == ".npy":
        np.testing.assert_array_equal(again.data, values)
        return
    assert again.axes == axes + "C"
    assert again.spacing == (0.5, 0.5)
    np.testing.assert_array_equal(again.data, np.moveaxis(values, 0, -1))
    if suffix == ".zarr":
        return
    with tifffile.TiffFile(path) as file:
        if suffix == ".ome.tif":
            assert all(f'Name="{name}"' in file.ome_metadata for name in names)
        else:
            assert file.imagej_metadata["Labels"][:3] == names
    with pytest.raises(ImageError, match="a PNG cannot hold probabilities"):
        write_probabilities(tmp_path / "p.png", values, axes=axes)


@pytest.mark.parametrize("name", ["labels", "labels.jpg", ".tif", "a.tif.txt"])
def test_endings(tmp_path, name):
    for attempt in (
        lambda: check_output(tmp_path / name),
        lambda: write_labels(tmp_path / name, pixels(2, 2)),
    ):
        with pytest.raises(ImageError, match=r"no ending that says what to write; end the name in"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_check_output(tmp_path):
    check_output(tmp_path / "new" / "folder" / "a.tif")
    assert not list((tmp_path / "new" / "folder").iterdir())
    source = tmp_path / "cells.tif"
    source.write_bytes(b"")
    with pytest.raises(ImageError, match="is the image itself; choose another name"):
        check_output(source, source)
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(ImageError, match="is a folder; choose another name"):
        check_output(tmp_path / "folder.tif")
    with pytest.raises(ImageError, match="PNG cannot hold probabilities"):
        check_output(tmp_path / "a.png", probabilities=True)
    (tmp_path / "image.zarr" / "0").mkdir(parents=True)
    with pytest.raises(ImageError, match="holds the image itself"):
        check_output(tmp_path / "image.zarr", tmp_path / "image.zarr" / "0")
    with pytest.raises(ImageError, match="a PNG holds one plane; choose"):
        check_output(tmp_path / "a.png", ndim=3)
    with pytest.raises(OutputError, match=r"cells.tif is not a folder; choose another place"):
        check_output(source / "a.tif")


# --- Nothing half-written ---------------------------------------------------------------------


def fail_with(code):
    def fail(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return fail


FAILURES = [
    (errno.ENOSPC, "The disk is full: .*a.* was not written; free some space or choose another"),
    (errno.EACCES, r"cannot be written \(Permission denied\); choose another folder"),
    (errno.EROFS, r"cannot be written \(Read-only file system\); choose another folder"),
]


@pytest.mark.parametrize("suffix", [".tif", ".ome.tif", ".npy", ".png"])
@pytest.mark.parametrize(("code", "words"), FAILURES)
@pytest.mark.parametrize("where", ["fsync", "replace", "write"])
@pytest.mark.parametrize("exists", [True, False])
def test_failures_leave_what_was(tmp_path, monkeypatch, suffix, code, words, where, exists):
    path = tmp_path / f"a{suffix}"
    if exists:
        path.write_bytes(b"precious")
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", fail_with(code))
    elif where == "replace":
        monkeypatch.setattr(Path, "replace", fail_with(code))
    else:
        monkeypatch.setattr(tifffile, "imwrite", fail_with(code))
        monkeypatch.setattr(np, "save", fail_with(code))
        monkeypatch.setattr(Image.Image, "save", fail_with(code))
    with pytest.raises(OutputError, match=words):
        write_labels(path, pixels(8, 9))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [path.name] * exists
    if exists:
        assert path.read_bytes() == b"precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("suffix", [".tif", ".npy", ".png"])
def test_a_disk_that_really_is_full(tmp_path, monkeypatch, suffix):
    real = Path.open

    def open_full(self, mode="r", *args, **options):
        if "x" in mode:
            real(self, mode).close()
            return real(Path("/dev/full"), "r+b", buffering=1 << 12)
        return real(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OutputError, match=r"disk is full|cannot be written"):
        write_labels(tmp_path / f"a{suffix}", pixels(400, 400))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [True, False])
def test_an_interrupt_leaves_what_was(tmp_path, monkeypatch, exists):
    path = tmp_path / "a.tif"
    if exists:
        path.write_bytes(b"precious")

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tifffile, "imwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_labels(path, pixels(8, 9))
    assert [p.name for p in tmp_path.iterdir()] == [path.name] * exists


def test_a_file_keeps_the_usual_rights(tmp_path):
    if sys.platform == "win32":
        pytest.skip("no permission bits on Windows")
    (tmp_path / "plain").touch()
    write_labels(tmp_path / "a.tif", pixels(8, 9))
    assert (tmp_path / "a.tif").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="no permission bits on Windows")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_file_that_is_replaced_keeps_its_rights(tmp_path, monkeypatch, mode):
    path, seen, save = tmp_path / "a.tif", [], tifffile.imwrite
    path.touch()
    path.chmod(mode)

    def look(*args, **options):
        seen.extend(p.stat().st_mode & 0o777 for p in tmp_path.iterdir())
        return save(*args, **options)

    monkeypatch.setattr(tifffile, "imwrite", look)
    write_labels(path, pixels(8, 9))
    assert set(seen) == {mode}  # from the first byte on
    assert path.stat().st_mode & 0o777 == mode
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
@pytest.mark.parametrize("exists", [True, False])
def test_what_a_link_leads_to_is_replaced(tmp_path, name, exists):
    real, link = tmp_path / "disk" / name, tmp_path / "link" / name
    for path in (real, link):
        path.parent.mkdir()
    old, new = pixels(8, 9), pixels(7, 5)
    if exists:
        write_labels(real, old)
    link.symlink_to(Path("..", "disk", name))
    check_output(link)
    write_labels(link, new)
    assert link.is_symlink()
    np.testing.assert_array_equal(read_labels(real), new)
    for path in (real, link):
        assert [p.name for p in path.parent.iterdir()] == [name]


# --- zarr -------------------------------------------------------------------------------------


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr")


def write_multiscale(zarr, path, array, axes, *, version, unit="micrometer"):
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    scales = []
    for level in range(2):
        name = f"s{level}"
        group.create_array(name, data=array[..., :: 2**level, :: 2**level], chunks=(1, 4, 4)[-2:])
        scale = [0.5 * 2**level if a in "YX" else 2.0 for a in axes]
        scales.append(
            {"path": name, "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    kinds = {"T": "time", "C": "channel"}
    names = [{"name": a.lower(), "type": kinds.get(a, "space")} for a in axes]
    for axis in names:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    multiscales = [{"version": version, "axes": names, "datasets": scales}]
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": multiscales}
    else:
        group.attrs["multiscales"] = multiscales


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, zarr, version):
    array = pixels(8, 10)
    write_multiscale(zarr, tmp_path / "a.zarr", array, "YX", version=version)
    image = read_image(tmp_path / "a.zarr")
    assert (image.axes, image.spacing, image.kind) == ("YX", (0.5, 0.5), "zarr")
    np.testing.assert_array_equal(image.data, array)
    image = read_image(tmp_path / "a.zarr", level=1)
    assert image.spacing == (1.0, 1.0)
    np.testing.assert_array_equal(image.data, array[::2, ::2])
    with pytest.raises(ImageError, match=r"2 resolution level.*no level 5; choose another"):
        read_image(tmp_path / "a.zarr", level=5)
    alone = read_image(tmp_path / "a.zarr" / "s1")
    assert alone.axes is None
    np.testing.assert_array_equal(alone.data, array[::2, ::2])


def test_ome_zarr_without_a_unit_has_no_spacing(tmp_path, zarr):
    write_multiscale(zarr, tmp_path / "a.zarr", pixels(8, 10), "YX", version="0.4", unit=None)
    assert read_image(tmp_path / "a.zarr").spacing is None


@pytest.mark.parametrize("axes", ["TCZYX", "CYX", "ZCYX"])
def test_ome_zarr_axes(tmp_path, zarr, axes):
    labels = pixels(*range(2, 2 + len(axes)))
    from napari_unet.files.ome_zarr import save_zarr

    save_zarr(tmp_path / "a.zarr", labels, axes, (0.5, 0.25), name="a", labels=False)
    image = read_image(tmp_path / "a.zarr")
    want, want_axes = canonical(labels, axes)
    assert (image.axes, image.spacing) == (want_axes, (0.5, 0.25))
    np.testing.assert_array_equal(image.data, want)
    np.testing.assert_array_equal(image.data[1], want[1])


def test_zarr_without_an_image(tmp_path, zarr):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("raw", data=pixels(4, 4))
    with pytest.raises(
        ImageError, match=r"without an OME-Zarr image; give one of its arrays, .*raw"
    ):
        read_image(tmp_path / "a.zarr")


def test_zarr_that_is_deleted_halfway(tmp_path, zarr):
    write_labels(tmp_path / "a.zarr", pixels(8, 9), axes="YX")
    data = read_image(tmp_path / "a.zarr").data
    np.asarray(data[:2])
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(ImageError, match="was changed or removed while it was being read"):
        np.asarray(data[2:])


@pytest.mark.parametrize("exists", [True, False])
def test_zarr_failures_leave_what_was(tmp_path, zarr, monkeypatch, exists):
    path, old = tmp_path / "a.zarr", pixels(8, 9)
    if exists:
        write_labels(path, old, axes="YX")
    for target, name in ((os, "fsync"), (Path, "rename"), (np, "nothing")):
        with monkeypatch.context() as patch:
            if name == "nothing":
                patch.setattr("napari_unet.files.writing.save_zarr", fail_with(errno.ENOSPC))
            else:
                patch.setattr(target, name, fail_with(errno.ENOSPC))
            with pytest.raises(OutputError, match="The disk is full"):
                write_labels(path, pixels(8, 9), axes="YX")
        assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"] * exists
        if exists:
            np.testing.assert_array_equal(read_image(path).data, old)
    write_labels(path, old + 1, axes="YX")
    np.testing.assert_array_equal(read_image(path).data, old + 1)


def test_zarr_is_an_extra(tmp_path, zarr, monkeypatch):
    write_labels(tmp_path / "a.zarr", pixels(8, 9), axes="YX")
    monkeypatch.setitem(sys.modules, "zarr", None)
    for attempt in (
        lambda: read_image(tmp_path / "a.zarr"),
        lambda: write_labels(tmp_path / "b.zarr", pixels(8, 9)),
    ):
        with pytest.raises(ImageError, match=r'run: pip install "napari-valid-unet\[zarr\]"'):
            attempt()
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.zarr"])
@pytest.mark.parametrize("shape", [(301, 70), (3, 45, 60)])
@pytest.mark.parametrize("top", [300, 70_000])
def test_large_labels_are_written_piece_by_piece(tmp_path, monkeypatch, name, shape, top):
    monkeypatch.setattr(writing, "_COPIED", 0)
    monkeypatch.setattr(writing, "_STRIP", 1000)
    monkeypatch.setattr(ome_zarr, "_CHUNK", 32)
    labels = np.random.default_rng(0).integers(0, top + 1, shape, np.int32)
    labels.flat[0] = top
    write_labels(tmp_path / name, labels, spacing=(0.5, 0.5))
    read = read_image(tmp_path / name)
    assert read.data.dtype == (np.uint16 if top < 65_536 else np.int32)
    np.testing.assert_array_equal(np.asarray(read.data), labels)
    assert read.spacing is not None
    assert read.spacing[-2:] == pytest.approx((0.5, 0.5))


def test_a_mapped_file_is_not_kept_open(tmp_path):
    """Its pages would count as memory of this process; and it could not be removed on Windows."""
    array = pixels(40, 50)
    np.save(tmp_path / "a.npy", array)
    tifffile.imwrite(tmp_path / "a.tif", array)
    for name in ("a.npy", "a.tif"):
        lazy = read_image(tmp_path / name, lazy_above=0).data
        part = np.asarray(lazy[3:9, ::2])
        np.testing.assert_array_equal(part, array[3:9, ::2])
        behind: object = part
        while behind is not None:
            assert not isinstance(behind, np.memmap)
            behind = getattr(behind, "base", None)


def test_large_tiffs_without_zarr_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    array = pixels(32, 48)
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(16, 16), compression="zlib")
    image = read_image(tmp_path / "a.tif", lazy_above=0)
    assert isinstance(image.data, np.ndarray)
    np.testing.assert_array_equal(image.data, array)


def test_a_cut_stack_is_noticed_where_tifffile_was_told_to_be_quiet(tmp_path):
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 4096, (4, 64, 64), np.uint16))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    logger = logging.getLogger("tifffile")
    logger.setLevel(logging.CRITICAL)
    try:
        with pytest.raises(ImageError, match="damaged or cut short"):
            np.asarray(read_image(path).data)
        assert logger.level == logging.CRITICAL
    finally:
        logger.setLevel(logging.NOTSET)
