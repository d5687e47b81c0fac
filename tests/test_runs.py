from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from napari_unet import runs as module
from napari_unet.errors import Cancelled
from napari_unet.runs import bands, compact, components, runs_of, touching

shapes = st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple)
seeds = st.integers(0, 2**32 - 1)


@given(shapes, seeds, st.sampled_from([4, 10, 1 << 22]))
def test_runs_cover_each_pixel_once(shape, seed, band):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 3, (2, *shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BAND", band)
        runs = runs_of(first, second)
        assert np.array_equal(runs.paint(runs.values(first)), first)
        assert np.array_equal(runs.paint(runs.values(second)), second)
        parts = [np.arange(shape[0])[rows] for rows in bands(shape)]
    assert np.array_equal(np.concatenate(parts), np.arange(shape[0]))
    # Maximal: a run begins a line, or differs from the run before it.
    a, b = runs.values(first), runs.values(second)
    for i in range(1, runs.starts.size):
        assert runs.starts[i] % shape[-1] == 0 or a[i] != a[i - 1] or b[i] != b[i - 1]


@given(shapes, seeds, st.data())
def test_touching_runs_are_those_with_neighbouring_pixels(shape, seed, data):
    connectivity = data.draw(st.integers(1, len(shape)))
    image = np.random.default_rng(seed).integers(0, 3, shape)
    runs = runs_of(image)
    chosen = np.flatnonzero(runs.values(image))
    later, earlier = touching(runs, chosen, connectivity)
    pairs = list(zip(later.tolist(), earlier.tolist(), strict=True))

    run = runs.paint(np.arange(runs.starts.size))
    expected = set()
    for pixel in np.ndindex(shape):
        for step in product((-1, 0, 1), repeat=len(shape)):
            other = tuple(np.add(pixel, step))
            if not 0 < np.abs(step).sum() <= connectivity:
                continue
            if all(0 <= i < n for i, n in zip(other, shape, strict=True)):
                i, j = int(run[pixel]), int(run[other])
                if i > j and image[pixel] and image[other]:
                    expected.add((i, j))
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected


@given(st.integers(1, 40), st.integers(0, 60), seeds)
def test_components_against_scipy(n, edges, seed):
    a, b = np.random.default_rng(seed).integers(0, n, (2, edges))
    root = components(n, a, b)
    graph = coo_array((np.ones(edges), (a, b)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    for i in range(n):
        assert root[i] == np.flatnonzero(label == label[i])[0]


def test_components_of_a_long_chain():
    order = np.random.default_rng(0).permutation(5000)
    assert not components(5000, order[1:], order[:-1]).any()


def test_components_can_be_stopped():
    with pytest.raises(Cancelled):
        components(2, np.array([0]), np.array([1]), lambda: True)


@given(st.lists(st.sampled_from([0, 1, 7, 2**40]), min_size=1))
def test_compact_keeps_who_is_who(values):
    labels, rank = compact(np.array(values))
    assert labels.tolist() == sorted({value for value in values if value})
    assert [0, *labels.tolist()] == sorted({0, *values})
    assert np.array_equal(np.array([0, *labels])[rank], values)


@pytest.mark.parametrize(
    ("shape", "edge"),
    [
        ((3, 3), [[1, 1, 1], [1, 0, 1], [1, 1, 1]]),
        ((1, 3, 3), [[[1, 1, 1], [1, 0, 1], [1, 1, 1]]]),
        ((2, 1, 1), [[[1]], [[1]]]),
        ((1, 2), [[1, 1]]),
    ],
)
def test_edge_of_the_image(shape, edge):
    runs = runs_of(np.arange(np.prod(shape)).reshape(shape))
    assert np.array_equal(runs.paint(runs.at_edge()), edge)
