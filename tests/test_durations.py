"""How long something takes, in words."""

from __future__ import annotations

import pytest

from napari_unet.durations import duration


@pytest.mark.parametrize(
    ("seconds", "words", "fine"),
    [
        (0, "0 s", "0.0 s"),
        (4.26, "4 s", "4.3 s"),
        (89, "89 s", "89.0 s"),
        (90, "2 min", "2 min"),
        (147, "2 min", "2 min"),
        (89 * 60, "89 min", "89 min"),
        (90 * 60, "1.5 h", "1.5 h"),
        (36_000, "10.0 h", "10.0 h"),
    ],
)
def test_long_ones_are_told_in_larger_units(seconds: float, words: str, fine: str) -> None:
    assert duration(seconds) == words
    assert duration(seconds, tenths=True) == fine
