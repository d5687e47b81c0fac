"""Normalisation: against NumPy, whatever the array is and however it is stored."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_unet import intensity
from napari_unet.errors import OptionError
from napari_unet.intensity import Normalisation, fit_intensity

DTYPES = [
    np.bool_,
    np.uint8,
    np.int8,
    np.uint16,
    np.int16,
    np.int32,
    np.uint64,
    np.float16,
    np.float64,
]


def expected(image: np.ndarray[Any, Any], normalisation: Normalisation) -> np.ndarray[Any, Any]:
    wide = image.astype(np.float64)
    if normalisation.kind == "percentile":
        low, high = np.percentile(wide, (normalisation.low, normalisation.high))
        if high <= low:
            low, high = low if low < wide.max() else wide.min(), wide.max()
    elif normalisation.kind == "min-max":
        low, high = wide.min(), wide.max()
    else:
        low, high = wide.mean(), wide.mean() + wide.std()
    return (wide - low) / (high - low if high > low else 1) + normalisation.shift


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "normalisation",
    [
        Normalisation(),
        Normalisation("percentile", 0, 100),
        Normalisation("min-max", shift=-0.5),
        Normalisation("mean-std"),
    ],
)
def test_numpy_is_the_oracle(dtype: Any, normalisation: Normalisation) -> None:
    random = np.random.default_rng(0)
    image = (random.gamma(2, 20, (40, 31)) % 120).astype(dtype)
    found = fit_intensity(image, normalisation).apply(image[None])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected(image, normalisation), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top", [120, (1 << 15) - 1, 1 << 15, (1 << 16) - 1])
@pytest.mark.parametrize("shift", [0, 1 << 15])
def test_sixteen_bits_are_counted_to_the_last_level(top: int, shift: int) -> None:
    """Of an image that grows brighter from piece to piece, with and without a sign."""
    levels = np.arange(1100 * 1000).reshape(1100, 1000) // 11_000
    levels[-1] = top
    dtype = np.int16 if shift else np.uint16
    image = (levels - shift).astype(dtype)
    for normalisation in (Normalisation("min-max"), Normalisation("percentile", 50, 99.95)):
        found = fit_intensity(image, normalisation).apply(image[None])[0]
        np.testing.assert_allclose(found, expected(image, normalisation), rtol=1e-4, atol=1e-4)


def test_large_integers_keep_their_low_bits() -> None:
    image = (2**31 - 100 + np.arange(100)).reshape(10, 10).astype(np.int64)
    found = fit_intensity(image, Normalisation("min-max")).apply(image[None])[0]
    np.testing.assert_allclose(found, np.arange(100).reshape(10, 10) / 99, atol=1e-6)


@pytest.mark.parametrize("kind", ["percentile", "min-max", "mean-std"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_lazy_is_eager_and_slabs_do_not_matter(
    kind: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = (np.random.default_rng(0).random((5, 37, 23, 2)) * 1000).astype(dtype)
    eager = fit_intensity(image, Normalisation(kind), channel_last=True)
    monkeypatch.setattr(intensity, "_SLAB", 100)
    stored = zarr.array(image, chunks=(2, 10, 10, 1))
    for lazy in (image, da.from_array(image, chunks=(2, 20, 7, 1)), stored):
        found = fit_intensity(lazy, Normalisation(kind), channel_last=True)
        np.testing.assert_allclose(found.offset, eager.offset, rtol=1e-9)
        np.testing.assert_allclose(found.scale, eager.scale, rtol=1e-9)


def test_a_huge_float_image_is_sampled_alike_in_any_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).normal(size=(211, 97))
    monkeypatch.setattr(intensity, "_SAMPLE", 1000)
    once = fit_intensity(image, Normalisation())
    monkeypatch.setattr(intensity, "_SLAB", 500)
    assert fit_intensity(image, Normalisation()) == once
    every = image.ravel()[:: -(-image.size // 1000)]
    np.testing.assert_allclose(once.offset[0], np.percentile(every, 1))


class Stored:
    """An array in chunks, which counts how often each is decoded."""

    def __init__(self, pixels: np.ndarray[Any, Any], chunks: tuple[int, ...]) -> None:
        self.pixels, self.chunks = pixels, chunks
        self.shape, self.ndim, self.dtype = pixels.shape, pixels.ndim, pixels.dtype
        self.decoded = np.zeros([-(-n // c) for n, c in zip(self.shape, chunks, strict=True)], int)
        self.read: list[int] = []

    def __getitem__(self, key: Any) -> np.ndarray[Any, Any]:
        at = np.indices(self.shape, sparse=True)
        parts = key if isinstance(key, tuple) else (key,)
        parts += (slice(None),) * (self.ndim - len(parts))
        touched = [
            np.unique(index.ravel()[part] // chunk)
            for index, part, chunk in zip(at, parts, self.chunks, strict=True)
        ]
        self.decoded[np.ix_(*touched)] += 1
        self.read.append(self.pixels[key].size)
        return self.pixels[key]


CHUNKS = st.tuples(*(st.integers(1, extent) for extent in (7, 9, 11, 3)))


@settings(max_examples=15)  # dask takes its time
@given(
    CHUNKS, st.integers(200, 3000), st.integers(1, 3000), st.sampled_from([np.uint8, np.float32])
)
def test_chunks_do_not_matter_and_are_decoded_once(
    chunks: tuple[int, ...], slab: int, sample: int, dtype: Any
) -> None:
    """Exactly the same numbers, though of a large image every n-th pixel is looked at."""
    image = (np.random.default_rng(0).random((7, 9, 11, 3)) * 250).astype(dtype)
    irregular = da.from_array(image, chunks=chunks)[1:, :, 2:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intensity, "_SAMPLE", sample)
        for channel_last in (False, True):
            right = fit_intensity(image, Normalisation(), channel_last=channel_last)
            every = -(-image.size // (3 if channel_last else 1) // sample)
            if not channel_last and dtype is np.float32:
                want = np.percentile(image.ravel()[::every].astype(np.float64), 1)
                np.testing.assert_allclose(right.offset[0], want, rtol=1e-9)
            patch.setattr(intensity, "_SLAB", slab)
            stored = Stored(image, chunks)
            assert fit_intensity(stored, Normalisation(), channel_last=channel_last) == right
            assert (stored.decoded == 1).all()
            lazy = fit_intensity(irregular, Normalisation(), channel_last=channel_last)
            part = image[1:, :, 2:]
            assert lazy == fit_intensity(part, Normalisation(), channel_last=channel_last)
            patch.setattr(intensity, "_SLAB", 1 << 22)


@pytest.mark.parametrize("kind", ["percentile", "min-max", "mean-std"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_cubes_of_wide_planes_are_decoded_once(kind: Any, dtype: Any) -> None:
    """Of which only a part of a plane fits into what is read in one go."""
    image = np.broadcast_to(np.arange(720, dtype=np.float32).astype(dtype), (65, 760, 720))
    stored = Stored(image, (64, 64, 64))
    found = fit_intensity(stored, Normalisation(kind))
    assert (stored.decoded == 1).all()
    np.testing.assert_allclose(found.offset, fit_intensity(image, Normalisation(kind)).offset)


def test_chunks_beyond_what_is_read_at_once_are_read_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intensity, "_SLAB", 100)
    monkeypatch.setattr(intensity, "_READ", 400)
    image = np.random.default_rng(0).random((6, 30, 40))
    right = fit_intensity(image, Normalisation())
    for chunks, most in (((6, 30, 40), 400), ((2, 10, 20), 400), ((2, 10, 10), 200)):
        stored = Stored(image, chunks)
        assert fit_intensity(stored, Normalisation()) == right
        assert max(stored.read) <= most
        assert sum(stored.read) == image.size


BACKGROUNDS = {
    "few bright pixels": (10, {40: 3, 200: 1}),
    "few dark pixels": (200, {40: 3, 10: 1}),
    "both": (100, {20: 2, 200: 2}),
    "none": (7, {}),
    "levels that differ": (10, {200: 30}),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("sample", [1 << 24, 500])
def test_an_even_background_does_not_hide_what_is_on_it(
    name: str, dtype: Any, sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the sample, every n-th pixel, has missed all of it."""
    monkeypatch.setattr(intensity, "_SAMPLE", sample)
    ground, others = BACKGROUNDS[name]
    image = np.full((50, 60), ground, dtype)
    values = [value for value, count in others.items() for _ in range(count)]
    image.flat[7 + 36 * np.arange(len(values))] = values
    want = expected(image, Normalisation())
    for stored in (image, Stored(image, (7, 11)), da.from_array(image, chunks=(13, 8))):
        found = fit_intensity(stored, Normalisation())
        np.testing.assert_allclose(found.apply(image[None])[0], want, rtol=1e-5, atol=1e-6)
        assert found.floor == found.offset
        assert found.ceiling[0] == (image.max() if others else ground + 1)
    if np.dtype(dtype).kind == "f":
        image[0, 1:4] = np.nan, np.inf, -np.inf
        assert fit_intensity(image, Normalisation()) == found


def test_channels_are_fitted_one_by_one() -> None:
    image = np.stack([np.arange(100.0), 50 * np.arange(100.0)], -1).reshape(10, 10, 2)
    found = fit_intensity(image, Normalisation("min-max"), channel_last=True)
    first, second = found.apply(np.moveaxis(image, -1, 0))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_pixels_that_are_no_numbers_are_left_out_and_become_background() -> None:
    image = np.arange(100.0).reshape(10, 10)
    image[0, :3] = np.nan, -np.inf, np.inf
    fitted = fit_intensity(image, Normalisation("min-max"))
    assert fitted.offset == (3.0,)
    found = fitted.apply(image[None])[0]
    assert found[0, 0] == found[0, 1] == 0
    assert found[0, 2] == 1
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", ["percentile", "min-max", "mean-std", "none"])
@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_a_constant_image_is_finite(kind: Any, value: float) -> None:
    image = np.full((4, 4), value, np.float32)
    found = fit_intensity(image, Normalisation(kind)).apply(image[None])
    assert np.isfinite(found).all()
    assert np.unique(found).size == 1


# Squares of larger numbers are no longer floats.
numbers = st.floats(-1e100, 1e100) | st.sampled_from([np.nan, np.inf, -np.inf])


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2), elements=numbers),
    st.sampled_from(["percentile", "min-max", "mean-std"]),
)
def test_any_floats_give_numbers(image: np.ndarray[Any, Any], kind: Any) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        found = fit_intensity(image, Normalisation(kind)).apply(image[None])
    assert np.isfinite(found).all()


def test_no_normalisation_passes_the_pixels_on() -> None:
    image = np.arange(9, dtype=np.uint8).reshape(3, 3)
    found = fit_intensity(image, Normalisation("none")).apply(image[None])
    np.testing.assert_array_equal(found[0], image)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "z-score"},
        {"low": 50, "high": 50},
        {"low": -1},
        {"high": "99"},
        {"shift": float("inf")},
        {"gamma": 1},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Normalisation.from_dict(settings)
