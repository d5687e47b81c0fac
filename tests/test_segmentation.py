"""The facade: any image in, labels on its own grid out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from networks import random_model
from numpy.typing import NDArray
from scipy import ndimage

import napari_unet
from napari_unet import focus, intensity, maps, runs, segmentation
from napari_unet.assembly import Assembly
from napari_unet.checkpoint import Card, ClassInfo, Model
from napari_unet.engine import run_tiles
from napari_unet.errors import (
    Cancelled,
    GeometryError,
    ImageError,
    MemoryLimitError,
    OptionError,
)
from napari_unet.options import Options
from napari_unet.plan import plan_job
from napari_unet.segmentation import Progress, segment, segment_steps
from napari_unet.tiling import Window
from napari_unet.verification import verify

MODEL = random_model()
RGB = random_model(in_channels=3)
VOLUME = random_model(ndim=3, widths=(3, 4))


def image_of(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    """Blobs with some texture."""
    random = np.random.default_rng(seed).random(shape)
    return np.asarray(1000 * ndimage.gaussian_filter(random, 1.5), np.uint16)


def test_labels_have_the_images_shape_and_ids_in_raster_order() -> None:
    result = segment(image_of(70, 90), MODEL)
    assert result.labels.shape == (70, 90)
    assert result.labels.dtype == np.int32
    ids, first = np.unique(result.labels[result.labels > 0], return_index=True)
    np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))
    assert (np.diff(first) > 0).all()
    np.testing.assert_array_equal(result.objects["index"], ids)
    np.testing.assert_array_equal(result.objects["area"], np.bincount(result.labels.ravel())[1:])
    assert result.report.objects == len(ids)
    assert result.probabilities is None
    json.dumps(result.report.to_dict())


def test_tile_size_changes_nothing() -> None:
    image = image_of(130, 100)
    whole = segment(image, MODEL, tile_size=400)
    for size in (60, 84, None):
        tiled = segment(image, MODEL, tile_size=size)
        np.testing.assert_array_equal(tiled.labels, whole.labels)
    assert whole.report.tiles == 1


@pytest.mark.parametrize("model", [MODEL, RGB], ids=["grey", "rgb"])
def test_lazy_equals_eager(model: Model) -> None:
    shape = (60, 70, 3)[: 2 + (model is RGB)]
    image = image_of(*shape)
    eager = segment(image, model).labels
    stored = zarr.array(image, chunks=(16,) * len(shape))
    for lazy in (da.from_array(image, chunks=32), stored):
        np.testing.assert_array_equal(segment(lazy, model).labels, eager)


def test_lazy_arrays_are_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the statistics nor the tiles ask for more than a piece at once."""
    monkeypatch.setattr(intensity, "_SLAB", 3000)
    image = image_of(110, 120)
    reads: list[int] = []

    class Watched:
        dtype, shape, ndim = image.dtype, image.shape, 2

        def __getitem__(self, key: Any) -> Any:
            reads.append(image[key].size)
            return image[key]

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return image

    segment(Watched(), MODEL, tile_size=60)
    assert max(reads) <= 60 * 60


def test_time_points_and_planes_are_segmented_one_by_one() -> None:
    stack = image_of(2, 3, 50, 40)
    result = segment(stack, MODEL, axes="TZYX")
    assert result.labels.shape == stack.shape
    for t in range(2):
        alone = segment(stack[t], MODEL, axes="ZYX").labels
        assert ((alone > 0) == (result.labels[t] > 0)).all()
    ids = np.unique(result.labels)
    np.testing.assert_array_equal(ids, np.arange(len(ids)))
    frames = result.objects["frame"]
    assert (np.diff(frames) >= 0).all()
    assert set(np.unique(frames)) <= set(range(6))
    bare = segment(stack[0], MODEL).labels[1] > 0
    assert (bare == (segment(stack[0, 1], MODEL).labels > 0)).all()


def test_volumes() -> None:
    volume = image_of(12, 40, 30)
    result = segment(volume, VOLUME, keep_probabilities=True)
    assert result.labels.shape == volume.shape
    assert result.probabilities is not None
    assert result.probabilities.shape == (3, *volume.shape)
    film = segment(np.stack([volume, volume]), VOLUME, keep_probabilities=True)
    assert film.probabilities is not None
    np.testing.assert_allclose(film.probabilities[:, 1], result.probabilities, atol=1e-6)
    flat = segment(volume[:1], VOLUME, axes="ZYX")
    assert flat.labels.shape == (1, 40, 30)


def test_multiscale_images_at_the_level_asked_for() -> None:
    image = image_of(80, 90)
    levels = [image, image[::2, ::2]]
    np.testing.assert_array_equal(segment(levels, MODEL).labels, segment(image, MODEL).labels)
    coarse = segment(levels, MODEL, level=1)
    np.testing.assert_array_equal(coarse.labels, segment(levels[1], MODEL).labels)
    with pytest.raises(OptionError, match="2 levels"):
        segment(levels, MODEL, level=2)


def test_a_region_is_a_part_of_the_whole() -> None:
    image = image_of(3, 90, 110)
    region = (slice(1, 3), slice(13, 77), slice(40, 101))
    whole = segment(image, MODEL, keep_probabilities=True)
    part = segment(image, MODEL, region=region, keep_probabilities=True)
    assert whole.probabilities is not None
    assert part.probabilities is not None
    expected = whole.probabilities[(slice(None), *region)]
    np.testing.assert_allclose(part.probabilities, expected, atol=1e-5)
    assert part.labels.shape == (2, 64, 61)
    assert part.report.region == ((1, 3), (13, 77), (40, 101))


def test_probabilities_are_a_softmax_and_classes_their_maximum() -> None:
    result = segment(image_of(50, 60), MODEL, output="probabilities")
    assert result.probabilities is not None
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(result.labels, result.probabilities.argmax(0))
    classes = segment(image_of(50, 60), MODEL, output="classes")
    np.testing.assert_array_equal(classes.labels, result.labels)
    assert classes.objects == {}


def test_one_logit_is_a_sigmoid() -> None:
    result = segment(image_of(40, 40), random_model(n_classes=1), output="probabilities")
    assert result.probabilities is not None
    assert result.probabilities.shape == (2, 40, 40)
    np.testing.assert_array_equal(result.labels, result.probabilities[1] > 0.5)


def test_components_without_a_contour_class_are_scipys() -> None:
    model = random_model(n_classes=2)
    result = segment(image_of(80, 80), model, keep_probabilities=True, fill_holes=False)
    assert result.probabilities is not None
    expected, count = ndimage.label(result.probabilities[1] > 0.5)
    np.testing.assert_array_equal(result.labels, expected)
    assert count == result.report.objects
    with pytest.raises(OptionError, match="no contour class"):
        segment(image_of(8, 8), model, method="watershed")


def test_minimum_size_and_threshold_come_from_the_model_unless_given() -> None:
    card = Card("choosy", MODEL.config, settings={"min_size": 40, "threshold": 0.6})
    choosy = Model(card, MODEL.network)
    image = image_of(90, 90)
    result = segment(image, choosy)
    np.testing.assert_array_equal(
        result.labels, segment(image, MODEL, min_size=40, threshold=0.6).labels
    )
    assert result.report.settings["min_size"] == 40
    assert segment(image, choosy, min_size=0, threshold=0.5).report.settings["min_size"] == 0


def test_rescaling_brings_labels_back_onto_the_images_grid() -> None:
    card = Card("half", MODEL.config, spacing=(1.0, 1.0))
    model = Model(card, MODEL.network)
    image = image_of(60, 70)
    fine = np.kron(image, np.ones((2, 2), np.uint16))
    at_half = segment(fine, model, spacing=(0.5, 0.5), keep_probabilities=True)
    assert at_half.labels.shape == fine.shape
    assert at_half.probabilities is not None
    assert at_half.probabilities.shape == (3, *fine.shape)
    assert at_half.report.network_shape == (60, 70)
    np.testing.assert_array_equal(at_half.objects["area"], np.bincount(at_half.labels.ravel())[1:])
    for untouched in (
        segment(fine, model, spacing=(0.5, 0.5), rescale=False),
        segment(fine, model),
        segment(fine, MODEL, spacing=(0.5, 0.5)),
    ):
        assert untouched.report.network_shape == fine.shape
    region = (slice(20, 81), slice(11, 90))
    part = segment(fine, model, spacing=(0.5, 0.5), region=region, output="classes")
    whole = segment(fine, model, spacing=(0.5, 0.5), output="classes")
    np.testing.assert_array_equal(part.labels, whole.labels[region])


@pytest.mark.parametrize("spacing", [0.3, 1.0, 4.0])
def test_what_is_read_at_once_is_bounded_on_the_finer_grid(
    spacing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that sees four times as many rows and columns sees 16 times the pixels."""
    monkeypatch.setattr(runs, "BAND", 2000)
    model = Model(Card("one", MODEL.config, spacing=(1.0, 1.0)), MODEL.network)
    job = plan_job(np.zeros((90, 40)), model, Options(spacing=(spacing,) * 2))
    labels = np.zeros(job.region_shape, np.int32)
    slabs = list(Assembly(job, labels, None, 0)._slabs(None))
    sizes = [np.prod(job.grid.centres(window).shape) for _, window in slabs]
    assert max(sizes) <= 2000
    assert [row for rows, _ in slabs for row in range(90)[rows]] == list(range(90))
    assert len(slabs) == {0.3: 2, 1.0: 2, 4.0: 30}[spacing]


@pytest.mark.parametrize("output", ["instances", "classes", "probabilities"])
@pytest.mark.parametrize("spacing", [None, (0.5, 0.5), (1.7, 1.7)], ids=["same", "half", "finer"])
def test_little_memory_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, output: Any, spacing: Any
) -> None:
    """Probabilities in a file and slabs of some rows change nothing."""
    model = Model(Card("one", MODEL.config, spacing=(1.0, 1.0)), MODEL.network)
    image = image_of(2, 61, 53)
    settings: dict[str, Any] = {
        "output": output,
        "spacing": spacing,
        "tile_size": 84,
        "waist": 0.5,
        "min_size": 4,
        "region": (slice(0, 2), slice(3, 60), slice(0, 50)),
    }
    whole = segment(image, model, **settings)
    kept = segment(image, model, keep_probabilities=True, **settings)
    monkeypatch.setattr(runs, "BAND", 400)
    monkeypatch.setattr(segmentation, "_IN_MEMORY", 0)
    slabs = segment(image, model, **settings)
    kept_slabs = segment(image, model, keep_probabilities=True, **settings)
    for other in (kept, slabs, kept_slabs):
        np.testing.assert_array_equal(whole.labels, other.labels)
        for name, column in whole.objects.items():
            np.testing.assert_allclose(other.objects[name], column, rtol=1e-9, err_msg=name)
    assert kept.probabilities is not None
    assert kept_slabs.probabilities is not None
    np.testing.assert_allclose(kept_slabs.probabilities, kept.probabilities, rtol=1e-6)


@given(st.data())
def test_maps_in_a_file_are_as_in_memory(data: Any) -> None:
    ndim = data.draw(st.integers(2, 3))
    shape = tuple(data.draw(st.integers(1, 30 if ndim == 2 else 9)) for _ in range(ndim))
    classes = data.draw(st.integers(1, 4))
    memory = maps.ArrayMaps(np.zeros((classes, *shape), np.float32))
    file = maps.FileMaps(classes)
    random = np.random.default_rng(0)

    def window() -> Window:
        pairs = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
        return Window(*map(tuple, zip(*pairs, strict=True)))

    for corner in np.ndindex(*(-(-n // 7) for n in shape)):
        if data.draw(st.booleans()):  # some tiles are missing
            start = tuple(7 * i for i in corner)
            stop = tuple(min(a + 7, n) for a, n in zip(start, shape, strict=True))
            tile = Window(start, stop)
            values = random.random((classes, *tile.shape), np.float32)
            memory.write(tile, values)
            file.write(tile, values)
        wanted = window()
        np.testing.assert_array_equal(file.read(wanted), memory.read(wanted))


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no device that is always full")
    store = maps.FileMaps(2)
    with full.open("wb", buffering=0) as file:
        monkeypatch.setattr(store, "_file", file)
        with pytest.raises(MemoryLimitError, match="make room there"):
            store.write(Window((0, 0), (5, 5)), np.ones((2, 5, 5), np.float32))


def test_progress_tells_every_tile_and_previews_cover_the_image() -> None:
    image = image_of(2, 100, 90)
    for output in ("instances", "classes"):
        shown = np.full(image.shape, -1)
        steps = segment_steps(image, MODEL, Options(output=output, tile_size=60), preview=True)
        events = list(steps)
        for event in events:
            if event.window is not None:
                assert event.preview is not None
                assert event.preview.shape == event.window.shape
                shown[(*event.frame, *event.window.slices)] = event.preview
        assert shown.min() >= 0
        tiles = [event for event in events if event.window is not None]
        assert [event.done for event in tiles] == list(range(1, tiles[0].total + 1))
        assert tiles[-1].pixels == image.size
        assert events[0].done == 0
        if output == "classes":
            np.testing.assert_array_equal(shown, segment(image, MODEL, output="classes").labels)


@pytest.mark.parametrize("output", ["instances", "classes"])
def test_what_is_looked_at_comes_first_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, output: Any
) -> None:
    monkeypatch.setattr(focus, "_LONG", 0)
    monkeypatch.setattr(focus, "_SHARE", 1)
    monkeypatch.setattr(focus, "_GLANCE", {2: 20})
    image = image_of(3, 110, 120)
    options = Options(output=output, tile_size=100)
    whole = segment(image, MODEL, options)
    seen = (slice(1, 2), slice(70, 100), slice(65, 95))
    steps = segment_steps(image, MODEL, options, preview=True, focus=seen)
    events: list[Progress] = []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            result = stop.value
            break
    np.testing.assert_array_equal(result.labels, whole.labels)
    for name, column in whole.objects.items():
        np.testing.assert_array_equal(result.objects[name], column)
    glance, *tiles = [event for event in events if event.window is not None]
    assert glance.done == 0
    assert glance.frame == (1,)
    assert glance.window is not None
    assert glance.window.shape == (20, 20)
    for axis, part in enumerate(seen[1:]):
        middle = (part.start + part.stop) / 2
        assert glance.window.start[axis] <= middle <= glance.window.stop[axis]
    assert [event.done for event in tiles] == list(range(1, tiles[0].total + 1))
    assert tiles[0].frame == (1,)
    assert tiles[0].window is not None
    for axis, part in enumerate(seen[1:]):
        assert tiles[0].window.start[axis] < part.stop
        assert part.start < tiles[0].window.stop[axis]
    assert {event.frame for event in tiles} == {(0,), (1,), (2,)}


def test_the_time_left_goes_by_the_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus, "_LONG", 0)
    monkeypatch.setattr(focus, "_SHARE", 1)
    clock = 0.0

    def later(network: Any, read: Any, plan: Any, *rest: Any) -> Any:
        nonlocal clock
        for tile in run_tiles(network, read, plan, *rest):
            clock += 3 if len(plan) > 1 else 50  # a glance, with all that is loaded for it
            yield tile

    monkeypatch.setattr(segmentation, "run_tiles", later)
    monkeypatch.setattr(segmentation, "time", SimpleNamespace(perf_counter=lambda: clock))
    image = image_of(2, 400, 120)
    seen = (slice(0, 1), slice(0, 20), slice(0, 20))
    steps = segment_steps(image, MODEL, Options(tile_size=100), preview=True, focus=seen)
    events = [event for event in steps if event.stage == "network"]
    total = events[0].total
    assert [event.left for event in events if event.window and event.done] == [
        3.0 * (total - n) for n in range(1, total + 1)
    ]
    assert events[-1].seconds == 50 + 3 * total
    assert all(event.left == 0 for event in events if not event.done)  # nobody measured it


def test_cancel_leaves_nothing_and_can_keep_what_was_finished() -> None:
    image = image_of(200, 60)
    stop = False

    def run(keep: bool) -> Any:
        nonlocal stop
        stop = False
        options = Options(tile_size=60, keep_finished=keep, output="classes")
        steps = segment_steps(image, MODEL, options, should_stop=lambda: stop)
        try:
            while True:
                stop = next(steps).done >= 3
        except StopIteration as end:
            return end.value

    with pytest.raises(Cancelled):
        run(keep=False)
    partial = run(keep=True)
    assert not partial.report.complete
    assert partial.report.tiles == 3
    whole = segment(image, MODEL, output="classes").labels
    rows = 3 * 20  # a tile of 60 px writes 20
    np.testing.assert_array_equal(partial.labels[:20], whole[:20])
    assert not partial.labels[rows:].any()


def test_closing_the_generator_stops_the_work() -> None:
    steps = segment_steps(image_of(200, 200), MODEL, Options(tile_size=60))
    next(steps)
    next(steps)
    steps.close()
    with pytest.raises(StopIteration):
        next(steps)


def test_out_of_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("napari_unet.devices._learned", {})
    monkeypatch.setattr("napari_unet.predictors.torch_predictor.TorchPredictor.start", full)
    with pytest.raises(MemoryLimitError, match="the smallest there are; close other programs"):
        segment(image_of(50, 50), MODEL, engine="torch")


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 5), (2, 1, 1)])
@pytest.mark.parametrize("value", [0, 5, np.nan, np.inf])
def test_tiny_constant_and_infinite_images_are_segmented(
    shape: tuple[int, ...], value: float
) -> None:
    result = segment(np.full(shape, value, np.float32), MODEL)
    assert result.labels.shape == shape


def test_some_pixels_that_are_no_numbers_stay_local() -> None:
    image = image_of(120, 120).astype(np.float32)
    broken = image.copy()
    broken[5, 5], broken[6, 6] = np.nan, np.inf
    good = segment(image, MODEL, output="classes").labels
    found = segment(broken, MODEL, output="classes").labels
    reach = MODEL.config.geometry.axes[0].field_of_view
    differ = np.argwhere(good != found)
    # The statistics move by a hair; away from the pixels hardly anything may change.
    assert (differ.max(1) > 6 + reach).sum() < 20


@pytest.mark.parametrize(
    ("image", "settings", "error", "words"),
    [
        (np.zeros((0, 5)), {}, ImageError, "has no pixels"),
        (np.zeros((5, 5), complex), {}, ImageError, "complex128 cannot be segmented"),
        (np.zeros((2, 2, 2, 5, 5)), {}, ImageError, "more than"),
        (np.zeros((50, 60, 3)), {}, ImageError, "3 channels, the model takes 1"),
        (np.zeros(7), {}, ImageError, "too few axes"),
        (object(), {}, ImageError, "is not an image"),
        (np.zeros((9, 9)), {"tile_size": 10}, GeometryError, "the smallest is"),
        (np.zeros((9, 9)), {"tile_size": 0}, OptionError, "tile_size must be"),
        (np.zeros((9, 9)), {"spacing": (1,)}, OptionError, "needs 2 lengths"),
        (np.zeros((9, 9)), {"spacing": (1, -1)}, OptionError, "lengths above 0"),
        (np.zeros((9, 9)), {"threshold": 1.5}, OptionError, "threshold must be"),
        (np.zeros((9, 9)), {"output": "masks"}, OptionError, "output must be one of"),
        (np.zeros((9, 9)), {"min_size": -1}, OptionError, "min_size must be"),
        (np.zeros((9, 9)), {"device": "abacus"}, OptionError, "no device"),
        (np.zeros((9, 9)), {"precision": "int4"}, OptionError, "precision must be"),
        (np.zeros((9, 9)), {"region": (slice(0, 5),)}, OptionError, "needs 2 slices"),
        (np.zeros((9, 9)), {"region": (slice(5, 5),) * 2}, ImageError, "no pixels"),
        (np.zeros((9, 9)), {"region": (slice(0, 9, 2),) * 2}, OptionError, "cannot skip"),
    ],
)
def test_bad_input_is_one_sentence(
    image: Any, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        segment(image, MODEL, **settings)


def test_an_image_deleted_halfway_is_one_sentence(tmp_path: Path) -> None:
    image = image_of(100, 100)

    class Vanishing:
        dtype, shape, ndim = image.dtype, image.shape, 2
        left = 3

        def __getitem__(self, key: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise FileNotFoundError(2, "No such file or directory")
            return image[key]

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return image

    with pytest.raises(ImageError, match="check that its file is still there"):
        segment(Vanishing(), MODEL, tile_size=60)


def test_lists_and_booleans_are_images_too() -> None:
    assert segment([[0, 1], [2, 3]], MODEL).labels.shape == (2, 2)
    assert segment(np.eye(30, dtype=bool), MODEL).labels.shape == (30, 30)


def test_verify_compares_every_pixel() -> None:
    found = verify(image_of(64, 50), MODEL, tile_size=60)
    assert found.pixels == 64 * 50
    assert found.tiles > 1


def test_several_foreground_classes_make_objects_together() -> None:
    classes = (
        ClassInfo("background", "#000000", "background"),
        ClassInfo("axon", "#ff0000", "foreground"),
        ClassInfo("myelin", "#00ff00", "foreground"),
    )
    model = Model(Card("fibres", MODEL.config, classes=classes), MODEL.network)
    result = segment(image_of(60, 60), model, keep_probabilities=True, fill_holes=False)
    assert result.probabilities is not None
    expected, _ = ndimage.label(result.probabilities[1:].sum(0) > 0.5)
    np.testing.assert_array_equal(result.labels > 0, expected > 0)


def test_the_public_names() -> None:
    assert napari_unet.segment is segmentation.segment
    assert set(napari_unet.__all__) <= set(dir(napari_unet))
    with pytest.raises(AttributeError, match="no attribute 'segmnt'"):
        napari_unet.segmnt  # noqa: B018
