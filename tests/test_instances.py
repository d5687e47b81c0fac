from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.measure import label, regionprops_table
from skimage.segmentation import watershed

from napari_unet import flooding, runs, waists
from napari_unet.errors import Cancelled, ImageError, OptionError
from napari_unet.evaluate import evaluate
from napari_unet.instances import classes_from, label_instances
from napari_unet.scores import normalised_entropy, object_scores
from napari_unet.tidying import fill_object_holes

HUGE = {2: 1 << 20, 3: 1 << 20}


@st.composite
def fields(draw, *, ties=None, dims=(2, 3)):
    """Foreground and contour probabilities of blobs; with few levels many values are equal."""
    ndim = draw(st.sampled_from(dims))
    side = st.integers(1, 40 if ndim == 2 else 12)
    shape = tuple(draw(st.lists(side, min_size=ndim, max_size=ndim)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    smooth = draw(st.sampled_from([0, 0.7, 1.5]))
    fg, contour = (ndimage.gaussian_filter(rng.random(shape), smooth) for _ in range(2))
    fg, contour = (stats.rankdata(x, "ordinal").reshape(shape) / x.size for x in (fg, contour))
    contour *= draw(st.sampled_from([0.5, 0.8, 1])) * (1 - fg)
    if ties if ties is not None else draw(st.booleans()):
        levels = draw(st.integers(1, 6))
        fg, contour = np.round(fg * levels) / levels, np.round(contour * levels) / levels
    return fg.astype(np.float32), contour.astype(np.float32)


def discs(n=256, seed=0):
    """Touching discs and the probabilities of a network that saw them."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n + 24, n + 24), np.int32)
    y, x = np.indices((25, 25)) - 12
    for i in range(1, n * n // 700):
        top, left = rng.integers(0, n, 2)
        box = truth[top : top + 25, left : left + 25]
        box[(y**2 + x**2 < rng.uniform(6, 12) ** 2) & (box == 0)] = i
    truth = truth[12:-12, 12:-12]
    ring = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        for step in (-1, 1):
            ring |= np.roll(truth, step, axis) != truth
    ring &= truth > 0
    classes = [truth == 0, (truth > 0) & ~ring, ring]
    scores = np.array([ndimage.gaussian_filter(c.astype(float), 0.8) for c in classes])
    p = np.exp(4 * scores + rng.normal(0, 0.2, scores.shape))
    return truth, (p / p.sum(axis=0)).astype(np.float32)


def plain(fg, contour, threshold, connectivity, relief=None):
    """What `label_instances` says it does, over the whole image at once."""
    footprint = ndimage.generate_binary_structure(fg.ndim, connectivity)
    seeds, n = ndimage.label((fg > threshold) & (fg > contour), footprint)
    mask = (fg + contour > threshold) | (seeds > 0)
    relief = -fg.astype(np.float64) if relief is None else relief
    objects = watershed(relief, seeds, connectivity=connectivity, mask=mask)
    alone, _ = ndimage.label(mask & (objects == 0), footprint)
    return by_first_pixel(np.where(alone, alone + n, objects))


def by_first_pixel(labels):
    ids = {0: 0}
    for value in labels.ravel().tolist():
        ids.setdefault(value, len(ids))
    return np.vectorize(ids.get, otypes=[np.int32])(labels)


def inside(shape):
    """All but the image's edge; the plane of a volume of one plane is not all edge."""
    lone_plane = len(shape) == 3 and shape[0] == 1
    return (slice(None) if lone_plane else slice(1, -1), *[slice(1, -1)] * (len(shape) - 1))


def raw(*arrays, **options):
    return label_instances(*arrays, fill_holes=False, **options)


# Objects, against scipy and scikit-image


@given(fields(), st.floats(0, 0.99), st.data())
def test_components(field, threshold, data):
    fg, _ = field
    connectivity = data.draw(st.integers(1, fg.ndim))
    mask = fg > threshold
    got = raw(fg, threshold=threshold, connectivity=connectivity)
    footprint = ndimage.generate_binary_structure(fg.ndim, connectivity)
    assert got.dtype == np.int32
    assert np.array_equal(got, ndimage.label(mask, footprint)[0])
    assert np.array_equal(got, by_first_pixel(label(mask, connectivity=connectivity)))


@given(fields(ties=False), st.sampled_from([0.2, 0.5, 0.7]), st.data())
def test_watershed_where_no_values_are_equal(field, threshold, data):
    connectivity = data.draw(st.integers(1, field[0].ndim))
    got = raw(*field, threshold=threshold, connectivity=connectivity)
    assert np.array_equal(got, plain(*field, threshold, connectivity))


@given(fields(ties=True), st.sampled_from([0.2, 0.5, 0.7]), st.data())
def test_watershed_where_values_are_equal(field, threshold, data):
    connectivity = data.draw(st.integers(1, field[0].ndim))
    fg, contour = field
    relief = -fg.astype(np.float64)
    seed = (fg > threshold) & (fg > contour)
    relief[seed] *= 1 + np.arange(seed.sum(), 0, -1) * 2.0**-52
    assert (relief.astype(np.float32) == -fg).all()
    got = raw(*field, threshold=threshold, connectivity=connectivity)
    assert np.array_equal(got, plain(fg, contour, threshold, connectivity, relief))


@given(fields(), st.sampled_from([1, 2, 5]), st.sampled_from([5, 64]), st.data())
def test_pieces_of_any_size_give_one_result(field, cell, band, data):
    options = {"threshold": 0.4, "connectivity": data.draw(st.integers(1, field[0].ndim))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flooding, "CELL", HUGE)
        whole = label_instances(*field, **options)
        patch.setattr(flooding, "CELL", {2: cell, 3: cell})
        patch.setattr(runs, "BAND", band)
        pieces = label_instances(*field, **options, should_stop=lambda: False)
    assert np.array_equal(whole, pieces)


def test_pieces_of_a_large_image_give_one_result(monkeypatch):
    _, (_, fg, contour) = discs(1024)
    pieces = label_instances(fg, contour)
    monkeypatch.setattr(flooding, "CELL", HUGE)
    assert np.array_equal(label_instances(fg, contour), pieces)
    assert np.array_equal(raw(fg, contour), plain(fg, contour, 0.5, 1))


def test_discs_that_touch_are_told_apart():
    truth, (_, fg, contour) = discs()
    scores = evaluate(label_instances(fg, contour, min_size=12), truth)
    assert scores["f1_50"] > 0.95
    assert evaluate(label_instances(fg + contour), truth)["f1_50"] < 0.6


# Laws


@given(fields(), st.integers(0, 30), st.booleans(), st.data())
def test_laws_of_labels(field, min_size, fill_holes, data):
    connectivity = data.draw(st.integers(1, field[0].ndim))
    arrays = field if data.draw(st.booleans()) else field[:1]
    got = label_instances(
        *arrays, min_size=min_size, fill_holes=fill_holes, connectivity=connectivity
    )
    assert np.array_equal(got, by_first_pixel(got))  # 1..n, in raster order
    sizes = np.bincount(got.ravel())[1:]
    assert (sizes >= min_size).all()
    footprint = ndimage.generate_binary_structure(got.ndim, connectivity)
    for i in range(1, got.max() + 1):
        assert ndimage.label(got == i, footprint)[1] == 1
    if fill_holes:
        assert np.array_equal(fill_object_holes(got), got)
    again = [np.asfortranarray(array, np.float64) for array in arrays]
    options = {"min_size": min_size, "fill_holes": fill_holes, "connectivity": connectivity}
    assert np.array_equal(label_instances(*again, **options), got)


@given(fields(), st.data())
def test_moving_the_image_moves_the_objects(field, data):
    by = [data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))) for _ in field[0].shape]
    moved = [np.pad(array, by) for array in field]
    inner = tuple(slice(a, a + n) for (a, _), n in zip(by, field[0].shape, strict=True))
    if field[0].ndim == 3 and field[0].shape[0] == 1:
        return  # one plane alone has its holes closed in the plane, among others it has not
    got = label_instances(*moved, min_size=3)
    assert np.array_equal(got[inner], label_instances(*field, min_size=3))
    assert np.count_nonzero(got) == np.count_nonzero(got[inner])


@given(fields(ties=False), st.data())
def test_turning_the_image_turns_the_objects(field, data):
    axes = data.draw(st.permutations(range(field[0].ndim)))
    flipped = data.draw(st.sets(st.sampled_from(axes)))
    if 1 in field[0].shape:
        return

    def turn(array):
        return np.flip(array, tuple(flipped)).transpose(axes)

    got = label_instances(*map(turn, field))
    assert np.array_equal(got, by_first_pixel(turn(label_instances(*field))))


@given(fields())
def test_one_plane_is_as_an_image(field):
    arrays = field if field[0].ndim == 2 else [array[0] for array in field]
    volume = label_instances(*(array[None] for array in arrays), min_size=2)
    assert np.array_equal(volume[0], label_instances(*arrays, min_size=2))


# Cleaning


@st.composite
def label_images(draw):
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=ndim, max_size=ndim)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.array([0, 5, 2**40, 3])[: draw(st.integers(2, 4))]
    return rng.choice(ids, shape, p=[0.3, *([0.7 / (len(ids) - 1)] * (len(ids) - 1))])


@given(label_images())
def test_holes_by_their_definition(labels):
    expected = labels.copy()
    off_edge = np.zeros(labels.shape, bool)
    off_edge[inside(labels.shape)] = True
    pieces, n = ndimage.label(labels == 0)
    for i in range(1, n + 1):
        piece = pieces == i
        owners = np.unique(labels[ndimage.binary_dilation(piece) & ~piece])
        if owners.size == 1 and off_edge[piece].all():
            expected[piece] = owners[0]
    got = fill_object_holes(labels)
    assert np.array_equal(got, expected)
    assert got.dtype == labels.dtype


@given(label_images())
def test_holes_of_a_lone_object_against_scipy(labels):
    one = labels == 5
    if labels.ndim == 3 and len(labels) == 1:
        one = one[0]
    assert np.array_equal(fill_object_holes(one), ndimage.binary_fill_holes(one))


def test_an_object_inside_another_keeps_its_surroundings():
    labels = np.ones((7, 7), int)
    labels[1:6, 1:6] = 0
    labels[3, 3] = 2
    assert np.array_equal(fill_object_holes(labels), labels)
    assert (label_instances(labels > 0, min_size=2) == 1).all()  # a speck goes, its hole closes


# Classes and scores


@st.composite
def probability_stacks(draw):
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=ndim, max_size=ndim)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = rng.integers(0, 4, (draw(st.integers(2, 5)), *shape)) + 1e-9
    return (weights / weights.sum(axis=0)).astype(np.float32)


@given(probability_stacks(), st.floats(0, 0.875, width=32))
def test_classes(p, threshold):
    assert np.array_equal(classes_from(p), p.argmax(axis=0))
    best = p[1:].argmax(axis=0) + 1
    expected = np.where(p[1:].max(axis=0) > np.float32(threshold), best, 0)
    assert np.array_equal(classes_from(p, threshold), expected)
    assert classes_from(p).dtype == np.uint8


def test_many_classes():
    p = np.zeros((300, 2, 2), np.float32)
    p[299] = 1
    assert (classes_from(p) == 299).all()


@given(probability_stacks())
def test_doubt(p):
    expected = stats.entropy(p.astype(np.float64), axis=0) / np.log(len(p))
    got = normalised_entropy(p)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_doubt_of_the_sure_and_of_the_clueless():
    p = np.array([[[1, 0.25]], [[0, 0.25]], [[0, 0.25]], [[0, 0.25]]])
    np.testing.assert_allclose(normalised_entropy(p), [[0, 1]], atol=1e-6)


@given(probability_stacks(), st.data())
def test_scores_against_regionprops(p, data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    labels = np.random.default_rng(seed).choice([0, 2, 9, 70000], p.shape[1:])
    foreground = 1 - p[0]
    got = object_scores(labels, foreground, p)
    want = regionprops_table(
        labels,
        np.stack([foreground, normalised_entropy(p)], axis=-1),
        properties=("label", "area", "mean_intensity"),
    )
    assert np.array_equal(got["index"], want["label"])
    assert np.array_equal(got["area"], want["area"])
    np.testing.assert_allclose(got["foreground_probability"], want["mean_intensity-0"], atol=1e-6)
    np.testing.assert_allclose(got["doubt"], want["mean_intensity-1"], atol=1e-6)
    inner = labels[inside(labels.shape)]
    for i, edge in zip(got["index"], got["touches_edge"], strict=True):
        assert edge == ((labels == i).sum() > (inner == i).sum())


def test_scores_take_a_map_of_doubt():
    labels = np.array([[1, 1, 0, 3]])
    got = object_scores(labels, labels > 0, np.array([[0.5, 1, 0, 0.25]]))
    assert got["doubt"].tolist() == [0.75, 0.25]


def test_scores_of_nothing():
    for shape in ((3, 3), (0, 3)):
        got = object_scores(np.zeros(shape, int), np.zeros(shape), np.zeros(shape))
        assert [column.size for column in got.values()] == [0] * 5
        assert [column.dtype.kind for column in got.values()] == ["i", "i", "f", "f", "b"]


# Images at the limits


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 4, 4), (4, 0, 4)])
def test_no_pixels(shape):
    empty = np.zeros(shape, np.float32)
    got = label_instances(empty, empty)
    assert got.shape == shape
    assert got.dtype == np.int32
    assert fill_object_holes(empty.astype(int)).shape == shape
    assert classes_from(np.stack([empty, empty])).shape == shape
    assert normalised_entropy(np.stack([empty, empty])).shape == shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1), (1, 9), (6, 7), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.bool_, np.uint8])
def test_constant_images(shape, dtype):
    none, all_ = np.zeros(shape, dtype), np.ones(shape, dtype)
    assert not label_instances(none, none).any()
    assert (label_instances(all_) == 1).all()
    assert (label_instances(all_, none) == 1).all()
    assert (label_instances(none, all_) == 1).all()  # a rim without a seed


def test_equal_seeds_share_a_flat_rim():
    fg = np.array([[1, 0.25, 0.25, 0.25, 0.25, 1]])
    contour = np.array([[0, 0.75, 0.75, 0.75, 0.75, 0]])
    assert label_instances(fg, contour).tolist() == [[1, 1, 1, 2, 2, 2]]


def test_a_softmax_in_half_precision_may_be_a_little_off():
    assert label_instances(np.full((2, 2), 1.0005), np.full((2, 2), -0.0005)).all()


@pytest.mark.parametrize(
    ("foreground", "contour", "message"),
    [
        (np.full((2, 2), np.nan), None, "foreground has NaN"),
        (np.zeros((2, 2)), np.array([[0, np.nan], [0, 0]]), "contour has NaN"),
        (np.full((2, 2), np.inf), None, "foreground goes from inf to inf"),
        (np.full((2, 2), 1e300), None, "between 0 and 1"),
        (np.full((2, 2), 1.01), None, "between 0 and 1"),
        (np.full((2, 2), -0.01), None, "between 0 and 1"),
        (np.array([[-3.0, 2.0]]), None, "from -3 to 2; give probabilities between 0 and 1"),
        (np.full((2, 2), 255, np.uint8), None, "between 0 and 1"),
        (np.zeros((2, 2), complex), None, "type complex128"),
        (np.array([["a", "b"]]), None, "real numbers"),
        (np.zeros(4), None, "2 or 3 spatial axes"),
        (np.float32(1), None, "2 or 3 spatial axes"),
        (np.zeros((1, 1, 2, 2)), None, "2 or 3 spatial axes"),
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(3, 2\) but foreground has \(2, 3\)"),
    ],
)
def test_what_are_no_probabilities(foreground, contour, message):
    with pytest.raises(ImageError, match=message):
        label_instances(foreground, contour)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"min_size": -1}, "min_size is -1"),
        ({"connectivity": 0}, "give 1 to 2"),
        ({"connectivity": 3}, "give 1 to 2"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        label_instances(np.zeros((2, 2)), **options)


@pytest.mark.parametrize("function", [classes_from, normalised_entropy])
@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 2), (0, 2, 2), (2, 1, 1, 2, 2)])
def test_what_is_no_stack_of_classes(function, shape):
    with pytest.raises(ImageError, match="at least 2 classes"):
        function(np.zeros(shape))


def test_classes_of_bad_values():
    with pytest.raises(ImageError, match="NaN"):
        classes_from(np.full((2, 3, 3), np.nan))
    with pytest.raises(OptionError, match="threshold"):
        classes_from(np.zeros((2, 3, 3)), 1.5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2)), "type float64"),
        (np.full((2, 2), -1), "negative"),
        (np.zeros(3, int), "2 or 3 spatial axes"),
    ],
)
def test_what_is_no_label_image(labels, message):
    zeros = np.zeros(labels.shape)
    for call in (
        lambda: fill_object_holes(labels),
        lambda: object_scores(labels, zeros, zeros),
    ):
        with pytest.raises(ImageError, match=message):
            call()


def test_scores_of_other_shapes():
    labels = np.zeros((2, 3), int)
    with pytest.raises(ImageError, match="foreground has shape"):
        object_scores(labels, np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(ImageError, match="doubt has shape"):
        object_scores(labels, np.zeros((2, 3)), np.zeros((4, 3, 2)))
    with pytest.raises(OptionError, match="min_size"):
        label_instances(np.zeros((2, 3)), min_size=-2)


# Stopping


def test_it_can_be_stopped_wherever_it_asks(monkeypatch):
    monkeypatch.setattr(flooding, "_PATIENCE", 60)  # ask as often on a slow machine
    _, (_, fg, contour) = discs(512)
    asked = 0

    def count():
        nonlocal asked
        asked += 1
        return False

    label_instances(fg, contour, should_stop=count)
    total = asked
    assert total > 10
    for last in {1, 2, total // 2, total - 1, total}:
        answers = iter([False] * (last - 1) + [True])
        with pytest.raises(Cancelled, match="run it again"):
            label_instances(fg, contour, should_stop=answers.__next__)


def test_a_long_flood_is_left_alone_when_stopped(monkeypatch):
    begun, end = threading.Event(), threading.Event()

    def endless(*_):
        begun.set()
        assert end.wait(30)

    monkeypatch.setattr(flooding, "_flood", endless)
    _, (_, fg, contour) = discs()
    start = time.perf_counter()
    try:
        with pytest.raises(Cancelled):
            label_instances(fg, contour, should_stop=begun.is_set)
        assert time.perf_counter() - start < 5
    finally:
        end.set()
    for thread in threading.enumerate():
        if thread.name.startswith("flood"):
            thread.join()


def test_an_error_in_a_flood_is_not_lost(monkeypatch):
    def broken(*_):
        raise MemoryError

    monkeypatch.setattr(flooding, "_flood", broken)
    _, (_, fg, contour) = discs()
    with pytest.raises(MemoryError):
        label_instances(fg, contour, should_stop=lambda: False)


def test_other_threads_run_beside_it():
    _, (_, fg, contour) = discs(1024)
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    label_instances(fg, contour)
    stop = time.perf_counter()
    done.set()
    thread.join()
    # Some 3 ms on an idle machine; with the lock held throughout there would be one tick or two.
    assert sum(start < moment < stop for moment in ticks) > 5


def eight(distance: float, radius: float = 12) -> np.ndarray:
    """Two discs that overlap, and their probability."""
    y, x = np.mgrid[:60, :80].astype(np.float32)
    discs = [(y - 30) ** 2 + (x - at) ** 2 < radius**2 for at in (40 - distance, 40 + distance)]
    return (discs[0] | discs[1]).astype(np.float32) * 0.9


@pytest.mark.parametrize(("distance", "count"), [(0, 1), (3, 1), (9, 2), (11, 2)])
def test_waists_cut_what_is_two_and_not_what_is_one(distance: float, count: int) -> None:
    p = eight(distance)
    whole = label_instances(p, np.zeros_like(p))
    found = label_instances(p, np.zeros_like(p), waist=1.0)
    assert whole.max() == 1
    assert found.max() == count
    assert np.array_equal(found > 0, whole > 0)


def test_the_two_halves_are_mirror_images() -> None:
    found = label_instances(eight(10), np.zeros((60, 80), np.float32), waist=1.0)
    sizes = np.bincount(found.ravel())[1:]
    # The cut itself goes to one side.
    assert abs(int(sizes[0]) - int(sizes[1])) <= 2 * 20


def test_a_deeper_waist_is_needed_the_larger_the_number() -> None:
    p = eight(8)
    counts = [label_instances(p, np.zeros_like(p), waist=w).max() for w in (0.5, 1, 2, 4, 8)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 2
    assert counts[-1] == 1


def test_waists_work_on_volumes_and_can_be_stopped() -> None:
    z, y, x = np.mgrid[:20, :30, :50]
    balls = [(z - 10) ** 2 + (y - 15) ** 2 + (x - at) ** 2 < 80 for at in (18, 32)]
    p = (balls[0] | balls[1]).astype(np.float32)
    assert label_instances(p, np.zeros_like(p)).max() == 1
    assert label_instances(p, np.zeros_like(p), waist=1.0).max() == 2
    with pytest.raises(Cancelled):
        label_instances(p, np.zeros_like(p), waist=1.0, should_stop=lambda: True)
    with pytest.raises(OptionError, match="waist is -1"):
        label_instances(p, waist=-1)


@st.composite
def ways_to_cut(draw):
    """Sizes of slabs, of cells, and options."""
    band = draw(st.sampled_from([1, 5, 64, 500]))
    cell = draw(st.sampled_from([1, 5, 40]))
    options = {
        "threshold": draw(st.sampled_from([0.2, 0.4, 0.6])),
        "min_size": draw(st.sampled_from([0, 3, 20])),
        "waist": draw(st.sampled_from([0, 0.3, 1])),
        "fill_holes": draw(st.booleans()),
    }
    return band, cell, options


@given(fields(), ways_to_cut(), st.data())
def test_slab_by_slab_is_as_the_whole(field, cuts, data):
    band, cell, options = cuts
    options["connectivity"] = data.draw(st.integers(1, field[0].ndim))
    whole = label_instances(*field, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "BAND", band)
        patch.setattr(flooding, "CELL", {2: cell, 3: cell})
        slabs = label_instances(*field, **options)
        assert np.array_equal(fill_object_holes(slabs), fill_object_holes(whole))
    assert np.array_equal(slabs, whole)


@given(fields(dims=(2,)), st.sampled_from([7, 1 << 22]))
def test_rims_too_large_to_see_at_once(field, band):
    """Flooded plot by plot: the same pixels, and seeds as they were; nothing is left over."""
    whole = raw(*field, threshold=0.3)
    seeds, count = ndimage.label((field[0] > 0.3) & (field[0] > field[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flooding, "LARGE", 1)
        patch.setattr(flooding, "PLOT", {2: 8})
        patch.setattr(flooding, "AROUND", {2: 64})
        patch.setattr(runs, "BAND", band)
        seen = raw(*field, threshold=0.3)
        patch.setattr(flooding, "AROUND", {2: 2})
        plots = raw(*field, threshold=0.3)
    # All of the image is in view from every plot: nothing may differ.
    assert np.array_equal(seen, whole)
    assert np.array_equal(plots > 0, whole > 0)
    if count:
        of_seed = ndimage.maximum(plots, seeds, range(1, count + 1))
        assert np.array_equal(plots[seeds > 0], np.asarray(of_seed)[seeds[seeds > 0] - 1])


def test_most_seeds_are_seen_to_have_no_waist_at_a_glance(monkeypatch):
    """The quick look never says no where the slow one would cut."""
    _, (background, _, _) = discs(512)
    p = 1 - background
    quick = label_instances(p, waist=1)
    monkeypatch.setattr(waists, "_one_lobe", lambda *_: False)
    monkeypatch.setattr(waists, "_may_narrow", lambda *_: True)
    slow = label_instances(p, waist=1)
    assert np.array_equal(quick, slow)
    assert slow.max() > label_instances(p).max()


def fibres(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of diagonal fibres, with a contour between the two of a pair."""
    across = np.add(*np.indices((side, side))) % 28
    p = np.where(across < 23, np.float32(0.9), np.float32(0))
    between = (across >= 10) & (across < 13)
    p[between] = 0.1
    return p, np.where(between, np.float32(0.8), np.float32(0))


def test_threads_cost_what_their_pixels_cost(monkeypatch):
    """Their boxes are as large as the image, and there are as many as it has rows."""
    looked_at = dict[str, int]()

    def counted(name, function):
        def count(array, *args, **more):
            looked_at[name] = looked_at.get(name, 0) + array.size
            return function(array, *args, **more)

        return count

    transform = counted("waists", ndimage.distance_transform_edt)
    monkeypatch.setattr(waists.ndimage, "distance_transform_edt", transform)
    monkeypatch.setattr(flooding, "watershed", counted("floods", flooding.watershed))
    cost = {}
    for side in (600, 1200):
        looked_at.clear()
        assert label_instances(*fibres(side), waist=2).max() > side / 14
        cost[side] = dict(looked_at)
    for name in ("waists", "floods"):
        assert cost[1200][name] < 5 * cost[600][name]  # 8 where it is the boxes


def test_threads_are_flooded_as_others_are(monkeypatch):
    together = label_instances(*fibres(600))
    monkeypatch.setattr(runs, "_THREAD", 0)
    assert np.array_equal(label_instances(*fibres(600)), together)


def test_what_is_not_looked_at_for_waists_is_left_as_it_is(monkeypatch):
    p = eight(11)
    none = np.zeros_like(p)
    assert label_instances(p, none, waist=1).max() == 2
    monkeypatch.setattr(waists, "LARGEST", 500)
    assert np.array_equal(label_instances(p, none, waist=1), label_instances(p, none))
