from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_unet.config import UNetConfig
from napari_unet.errors import GeometryError
from napari_unet.ledger import account

PAPER = UNetConfig()


def test_the_paper():
    ledger = account(PAPER, 572)
    assert ledger.admissible
    assert ledger.output == (388, 388)
    assert ledger.below == ledger.above == (572, 572)
    assert [row.size[0] for row in ledger.rows] == [
        *(572, 570, 568, 284, 282, 280, 140, 138, 136, 68, 66, 64, 32, 30, 28),
        *(56, 56, 56, 54, 52, 104, 104, 104, 102, 100),
        *(200, 200, 200, 198, 196, 392, 392, 392, 390, 388, 388),
    ]
    crops = [(row.level, row.cropped[0]) for row in ledger.rows if row.layer == "crop"]
    assert crops == [(3, 4), (2, 16), (1, 40), (0, 88)]


def test_the_classic_error_in_the_rows():
    ledger = account(PAPER, 572)
    at = next(i for i, row in enumerate(ledger.rows) if row.layer == "upconv")
    bottom, up, crop, concat = ledger.rows[at - 1 : at + 3]
    assert (bottom.size[0], bottom.channels) == (28, 1024)
    assert (up.size[0], up.channels) == (56, 512)
    assert (crop.cropped, crop.channels) == ((4, 4), 512)
    assert (concat.parts, concat.channels) == ((512, 512), 1024)


def test_what_runs_silently_is_misplaced():
    ledger = account(PAPER, 573)
    assert ledger.silent == (
        "the skip connection of level 0 cannot be centre-cropped from 569 x 569 to 392 x 392 px"
    )
    for size in range(1, 700):  # halves never hide it: it comes out at a crop, or nothing is left
        ledger = account(PAPER, size)
        assert bool(ledger.silent) == (not ledger.admissible)


@pytest.mark.parametrize(
    ("size", "words", "below", "above"),
    [
        (573, "from level 0 to level 1 would have to halve an odd map, 569 x 569 px", 572, 588),
        (574, "from level 1 to level 2 would have to halve an odd map, 281 x 281 px", 572, 588),
        (564, "from level 3 to level 4 would have to halve an odd map, 63 x 63 px", 556, 572),
        (172, "nothing is left at level 2: a 3 x 3 convolution meets a map of 2 x 2 px", None, 188),
        (140, "nothing is left at level 3: a 3 x 3 convolution meets a map of 2 x 2 px", None, 188),
        (4, "nothing is left at level 0", None, 188),
        (0, "no pixels", None, 188),
    ],
)
def test_what_breaks_where(size, words, below, above):
    ledger = account(PAPER, size)
    assert words in ledger.problem
    assert not ledger.admissible
    assert ledger.output is None
    assert ledger.below == (None if below is None else (below, below))
    assert ledger.above == (above, above)
    assert account(PAPER, above).admissible


configs = st.integers(2, 3).flatmap(
    lambda ndim: st.integers(0, 3).flatmap(
        lambda depth: st.builds(
            UNetConfig,
            ndim=st.just(ndim),
            widths=st.just(tuple(4 << level for level in range(depth + 1))),
            kernels=st.lists(
                st.tuples(*[st.sampled_from([1, 3, 5])] * ndim),
                min_size=depth + 1,
                max_size=depth + 1,
            ).map(tuple),
            pools=st.lists(
                st.tuples(*[st.integers(1, 3)] * ndim), min_size=depth, max_size=depth
            ).map(tuple),
            up=st.sampled_from(["upconv", "nearest", "linear"]),
            concat=st.sampled_from(["skip-up", "up-skip"]),
        )
    )
)


@given(configs, st.data())
def test_agrees_with_the_geometry(config, data):
    size = data.draw(st.tuples(*[st.integers(1, 300)] * config.ndim))
    ledger = account(config, size)
    admits = all(a.admits(n) for a, n in zip(config.geometry.axes, size, strict=True))
    assert ledger.admissible == admits
    if admits:
        assert ledger.output == config.geometry.output(size)
    else:
        with pytest.raises(GeometryError):
            config.geometry.output(size)
    assert account(config, ledger.above).admissible
    if ledger.below:
        assert account(config, ledger.below).admissible


@given(configs)
def test_json_is_plain(config):
    import json

    ledger = account(config, config.geometry.smallest)
    document = json.loads(json.dumps(ledger.to_dict()))
    assert document["output"] == list(ledger.output)
    assert len(document["rows"]) == len(ledger.rows)


def test_wrong_number_of_axes():
    with pytest.raises(GeometryError, match=r"2 spatial axes, 3 sizes were given; give one size"):
        account(PAPER, (572, 572, 572))


def test_needs_no_framework():
    code = (
        "import sys, napari_unet.ledger; "
        "sys.exit(bool({'torch', 'numpy', 'napari'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
