"""Which axis is what, and what is said when an image does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from napari_unet.axes import resolve_axes
from napari_unet.errors import ImageError


@pytest.mark.parametrize(
    ("shape", "axes", "ndim", "channels", "expected", "frames"),
    [
        ((5, 6), None, 2, 1, "YX", 1),
        ((4, 5, 6), None, 2, 1, "TYX", 4),
        ((2, 4, 5, 6), None, 2, 1, "TZYX", 8),
        ((5, 6, 3), None, 2, 3, "YXC", 1),
        ((4, 5, 6, 3), None, 2, 3, "TYXC", 4),
        ((2, 4, 5, 6, 3), None, 2, 3, "TZYXC", 8),
        ((4, 5, 6), None, 3, 1, "ZYX", 1),
        ((2, 4, 5, 6), None, 3, 1, "TZYX", 2),
        ((2, 4, 5, 6, 2), None, 3, 2, "TZYXC", 2),
        ((3, 5, 3), None, 2, 1, "TYX", 3),
        ((4, 5, 6), "zyx", 2, 1, "ZYX", 4),
        ((5, 6, 1), "YXC", 2, 1, "YXC", 1),
        ((50, 60, 3), "ZYX", 2, 1, "ZYX", 50),
    ],
)
def test_axes(
    shape: tuple[int, ...],
    axes: str | None,
    ndim: int,
    channels: int,
    expected: str,
    frames: int,
) -> None:
    found = resolve_axes(shape, np.uint8, axes, ndim, channels)
    assert found.axes == expected
    whole = tuple(slice(0, n) for n in found.labels_shape)
    assert len(list(found.frames(whole))) == frames
    assert len(found.spatial_shape) == ndim


def test_planes_of_a_volume_share_their_statistics_and_time_points_do_not() -> None:
    volume = resolve_axes((2, 4, 5, 6), np.uint8, "TZYX", 2, 1)
    assert {volume.fit_index(i) for i in volume.frames((slice(None),) * 4)} == {(0,), (1,)}
    stack = resolve_axes((4, 5, 6), np.uint8, None, 2, 1)
    assert stack.fit_index((3,)) == (3,)


@pytest.mark.parametrize(
    ("shape", "dtype", "axes", "ndim", "channels", "words"),
    [
        ((5, 6), np.complex64, None, 2, 1, "complex64 cannot be segmented"),
        ((5, 6), np.dtype("U3"), None, 2, 1, "cannot be segmented"),
        ((0, 6), np.uint8, None, 2, 1, "has no pixels"),
        ((), np.uint8, None, 2, 1, "has no pixels"),
        ((5,), np.uint8, None, 2, 1, "too few axes"),
        ((5, 6), np.uint8, None, 3, 1, "too few axes"),
        ((5, 6), np.uint8, None, 2, 3, "too few axes"),
        ((50, 60, 3), np.uint8, None, 2, 1, "has 3 channels, the model takes 1"),
        ((50, 60, 4), np.uint8, None, 2, 3, "has 4 channels, the model takes 3"),
        ((5, 6), np.uint8, "YX", 2, 3, "has 1 channel, the model takes 3"),
        ((2, 2, 2, 5, 6), np.uint8, None, 2, 1, "more than"),
        ((2, 2, 5, 6, 7), np.uint8, None, 3, 1, "more than"),
        ((5, 6), np.uint8, "XY", 2, 1, "do not name"),
        ((5, 6), np.uint8, "YXC", 2, 1, "do not name"),
        ((5, 6, 7), np.uint8, "TYX", 3, 1, "needs a volume"),
        ((5, 6), np.uint8, "YY", 2, 1, "do not name"),
    ],
)
def test_images_that_do_not_fit(
    shape: tuple[int, ...],
    dtype: type,
    axes: str | None,
    ndim: int,
    channels: int,
    words: str,
) -> None:
    with pytest.raises(ImageError, match=words):
        resolve_axes(shape, dtype, axes, ndim, channels)
