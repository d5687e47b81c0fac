"""Weights, loss, deformation and schedule against a plain statement of each formula."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from skimage.segmentation import find_boundaries

from napari_unet.config import UNetConfig
from napari_unet.errors import ImageError, OptionError
from napari_unet.training.augment import (
    NO_AUGMENTATION,
    Augmentation,
    bend,
    places,
    sample,
    shade,
)
from napari_unet.training.loss import valid_part, weighted_cross_entropy
from napari_unet.training.schedule import Optimisation, build_optimiser
from napari_unet.training.targets import UNKNOWN, Targets, instance_classes, known_pixels
from napari_unet.training.tiles import Cutter, class_counts, make_sample, prefetch, tile_shapes
from napari_unet.training.weights import Weighting, class_balance, weight_map

SHAPES = pytest.mark.parametrize("shape", [(48, 57), (9, 21, 24)])


def blobs(shape: tuple[int, ...], seed: int = 0, level: float = 0.55) -> np.ndarray:
    """Objects of irregular outline, some of them touching."""
    random = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(random.random(shape), 2.0)
    field = (field - field.min()) / np.ptp(field)
    seeds = ndimage.label(field > level + 0.15)[0]
    index = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    return np.where(field > level, seeds[tuple(index)], 0).astype(np.int32)


def distances(labels: np.ndarray) -> list[np.ndarray]:
    """Distance of every pixel to each object, nearest first."""
    values = [v for v in np.unique(labels) if v > 0]
    each = [ndimage.distance_transform_edt(labels != value) for value in values]
    return list(np.sort(np.stack(each), axis=0))


@SHAPES
def test_the_weight_map_is_equation_2(shape):
    labels = blobs(shape)
    first, second = distances(labels)[:2]
    extra = Weighting("paper").extra(labels, Targets())
    wanted = 10 * np.exp(-((first + second) ** 2) / (2 * 5**2))
    background = labels == 0
    assert_allclose(extra[background], wanted[background], atol=1e-4)
    assert extra[background].max() > 1

    classes = Targets().classes(labels)
    counts = np.bincount(classes.ravel(), minlength=3)
    base = Weighting("paper").base(counts)
    assert_allclose(base * counts * 3, counts.sum(), rtol=1e-5)
    weights = weight_map(classes, base, extra)
    assert_allclose(weights, base[classes] + np.where(background, wanted, 0), atol=1e-4)


@SHAPES
def test_the_later_weight_map_is_that_of_the_authors_plugin(shape):
    labels = blobs(shape)
    first, second = distances(labels)[:2]
    weighting, targets = Weighting("later"), Targets()
    classes = targets.classes(labels)
    base = weighting.base(np.bincount(classes.ravel(), minlength=3))
    found = weight_map(classes, base, weighting.extra(labels, targets))
    wanted = (
        0.1
        + 0.9 * np.exp(-(first**2) / (2 * 10**2))
        + 50 * np.exp(-((first + second) ** 2) / (2 * 6**2))
    )
    assert_allclose(found, np.where(labels == 0, wanted, 1), atol=1e-4)


def test_classes_keep_their_own_distances():
    labels = np.zeros((30, 40), np.int32)
    labels[5:9, 5:9] = 1
    labels[5:9, 12:16] = 1
    labels[20:24, 8:12] = 2
    targets = Targets("classes", 3)
    ones = np.stack(distances(ndimage.label(labels == 1)[0])[:2]).sum(axis=0)
    # There is one object of class 2 only, so it has no second nearest.
    wanted = 10 * np.exp(-(ones**2) / 50)
    found = Weighting("paper").extra(targets.index(labels, None), targets)
    assert_allclose(found[labels == 0], wanted[labels == 0], atol=1e-4)


def test_a_class_that_is_nowhere_gets_no_weight():
    assert_array_equal(class_balance(np.array([30, 0, 10])), np.float32([40 / 60, 0, 2]))


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_loss_is_the_weighted_mean_of_minus_log_p(n_classes, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (2, n_classes, 5, 6))
    classes = random.integers(-1, max(n_classes, 2), (2, 5, 6))
    weights = random.random((2, 5, 6))
    both = np.concatenate([np.zeros_like(logits), logits], axis=1) if n_classes == 1 else logits
    p = np.exp(both) / np.exp(both).sum(axis=1, keepdims=True)
    right = np.take_along_axis(p, np.maximum(classes, 0)[:, None], axis=1)[:, 0]
    w = np.where(classes >= 0, weights, 0)
    found = weighted_cross_entropy(*map(torch.from_numpy, (logits, classes, weights)))
    assert_allclose(float(found), (w * -np.log(right)).sum() / w.sum(), rtol=1e-5)


def test_unknown_pixels_pull_at_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    classes = torch.full((1, 4, 4), UNKNOWN)
    classes[0, 1, 2] = 2
    weighted_cross_entropy(logits, classes, torch.ones(1, 4, 4)).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(dim=1)[0] > 0
    assert moved[1, 2]
    assert moved.sum() == 1
    nothing = weighted_cross_entropy(logits, torch.full((1, 4, 4), UNKNOWN), torch.ones(1, 4, 4))
    assert float(nothing.detach()) == 0


def test_outputs_that_padding_spoilt_are_cut_off():
    logits = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert torch.equal(valid_part(logits, (1, 2)), logits[:, :, 1:5, 2:4])
    assert torch.equal(valid_part(logits, (0, 0)), logits)


@SHAPES
def test_contours_are_rims_of_a_width_that_grows_with_the_object(shape):
    labels = blobs(shape)
    rim = find_boundaries(labels, connectivity=1, mode="inner")
    inside = ndimage.distance_transform_edt(~rim)
    area = np.bincount(labels.ravel())
    width = np.clip(0.08 * np.sqrt(area), 1.0, 2.5).astype(np.float32)[labels]
    wanted = np.where(labels == 0, 0, np.where(inside + 1 <= width, 2, 1))
    assert_array_equal(instance_classes(labels), wanted)
    assert {0, 1, 2} == set(np.unique(wanted))

    others = np.where(labels == 0, np.iinfo(np.int32).max, labels)
    near = (ndimage.maximum_filter(labels, 5) > labels) | (
        ndimage.minimum_filter(others, 5) < labels
    )
    assert_array_equal(
        instance_classes(labels, touching=2), np.where((labels > 0) & near, 2, wanted)
    )


def test_sparse_labels_leave_the_rest_unknown_and_reviewed_regions_are_background():
    labels = np.zeros((12, 12), np.int32)
    labels[2:7, 2:7] = 7
    reviewed = np.zeros(labels.shape, bool)
    reviewed[:, :9] = True
    targets = Targets(n_classes=2)

    def classes(known):
        return targets.classes(targets.index(labels, known))

    everywhere = classes(known_pixels(labels, sparse=False, reviewed=None))
    assert_array_equal(everywhere, labels > 0)
    alone = classes(known_pixels(labels, sparse=True, reviewed=None))
    assert_array_equal(alone, np.where(labels > 0, 1, UNKNOWN))
    partly = classes(known_pixels(labels, sparse=True, reviewed=reviewed))
    assert_array_equal(partly, np.where(labels > 0, 1, np.where(reviewed, 0, UNKNOWN)))
    with pytest.raises(ImageError, match="reviewed region has shape"):
        known_pixels(labels, sparse=True, reviewed=reviewed[1:])


def test_class_labels_have_names_and_no_others():
    targets = Targets("classes", 3, values=(1, 5, 9))
    labels = np.array([[1, 5, 9, 1]])
    assert_array_equal(targets.index(labels, None), [[0, 1, 2, 0]])
    with pytest.raises(ImageError, match="the number 2, which is none"):
        targets.index(np.array([[1, 2]]), None)
    # Scribbles: 0 is nobody's.
    found = targets.index(np.array([[0, 5]]), np.array([[False, True]]))
    assert_array_equal(found, [[UNKNOWN, 1]])
    with pytest.raises(OptionError, match="3 classes need 3"):
        Targets("classes", 3, values=(0, 1))
    with pytest.raises(OptionError, match="not as 4 classes"):
        Targets(n_classes=4)


@pytest.mark.parametrize("shape", [(20, 31), (7, 12, 15)])
def test_the_deformation_is_a_cubic_spline_over_the_coarse_grid(shape):
    ndim = len(shape)
    coarse = np.random.default_rng(1).normal(0, 10, (ndim, *[4] * ndim)).astype(np.float32)
    axes = [np.linspace(0, 3, extent) for extent in shape]
    at = np.meshgrid(*axes, indexing="ij")
    wanted = [ndimage.map_coordinates(one, at, order=3, mode="mirror") for one in coarse]
    assert_allclose(bend(coarse, shape), wanted, atol=2e-4)


def test_displacements_have_the_papers_spread():
    random, elastic = np.random.default_rng(0), Augmentation(rotate=False, mirror=False, scale=0)
    corner = [places((5, 5), elastic, random)[:, 0, 0] for _ in range(2000)]
    assert_allclose(np.mean(corner, axis=0), [-2, -2], atol=1)
    assert_allclose(np.std(corner, axis=0), [10, 10], rtol=0.06)


@given(st.integers(0, 2**32 - 1))
def test_without_elastic_part_shapes_are_kept(seed):
    random = np.random.default_rng(seed)
    where = places((8, 9), Augmentation(elastic=0, scale=0.5), random)
    rows, columns = np.diff(where, axis=1), np.diff(where, axis=2)
    lengths = np.sqrt((rows**2).sum(axis=0)), np.sqrt((columns**2).sum(axis=0))
    size = lengths[0][0, 0]
    assert math.exp(-0.5) - 1e-4 <= size <= math.exp(0.5) + 1e-4
    assert_allclose(lengths[0], size, rtol=1e-4)
    assert_allclose(lengths[1], size, rtol=1e-4)
    assert_allclose((rows[:, 0, 0] * columns[:, 0, 0]).sum(), 0, atol=1e-3)


def test_volumes_turn_in_their_planes():
    where = places((3, 4, 4), Augmentation(elastic=0), np.random.default_rng(3))
    assert_allclose(where[0] - where[0, :, :1, :1], 0, atol=1e-5)


@pytest.mark.parametrize("shape", [(17, 23), (5, 11, 13), (1, 9)])
def test_one_interpolation_reads_what_scipy_reads(shape):
    random = np.random.default_rng(2)
    image = random.random((2, *shape), np.float32)
    where = random.uniform(-30, 60, (len(shape), 400)).reshape(len(shape), *[20] * 2)
    if len(shape) == 3:
        where = where.reshape(3, 4, 10, 10)
    where = where.astype(np.float32)
    wanted = [ndimage.map_coordinates(one, where, order=1, mode="mirror") for one in image]
    assert_allclose(sample(image, where), wanted, atol=1e-4)
    labels = random.integers(0, 1 << 30, shape).astype(np.int32)
    away = np.abs(where - np.floor(where) - 0.5).min(axis=0) > 1e-3
    nearest = ndimage.map_coordinates(labels, where, order=0, mode="mirror")
    assert_array_equal(sample(labels, where, nearest=True)[away], nearest[away])


def test_shading_changes_grey_levels_only_as_asked():
    image = np.random.default_rng(0).random((3, 20, 20), np.float32)
    random = np.random.default_rng(1)
    assert_array_equal(shade(image, NO_AUGMENTATION, random), image)
    found = [shade(image, Augmentation(), random) for _ in range(20)]
    assert all(one.dtype == np.float32 and np.isfinite(one).all() for one in found)
    assert len({one.tobytes() for one in found}) == 20


@pytest.mark.parametrize("steps", [1, 3, 7, 200])
def test_one_cycle_is_two_half_cosines(steps):
    settings = Optimisation(rate=0.02, warm=0.25)
    weight = torch.nn.Parameter(torch.ones(1))
    optimiser, schedule = build_optimiser([weight], settings, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        weight.grad = torch.ones(1)
        optimiser.step()
        schedule.step()

    def cosine(start, end, part):
        return end + (start - end) / 2 * (1 + math.cos(math.pi * part))

    top = max(0.25 * (steps + 1), 2) - 1
    low, high, last = 0.02 / 25, 0.02, 0.02 / 25 / 1e4
    for step, rate in enumerate(rates):
        wanted = (
            cosine(low, high, step / top)
            if step <= top
            else cosine(high, last, (step - top) / (steps - top))
        )
        assert_allclose(rate, wanted, rtol=1e-6)


def test_sgd_has_the_papers_momentum():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser, schedule = build_optimiser([weight], Optimisation("sgd", rate=0.01, decay=0), 50)
    plain, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(50):
        gradient = np.array([0.3, math.sin(step)])
        weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimiser.step()
        schedule.step()
        velocity = 0.99 * velocity + gradient
        plain -= 0.01 * velocity
    assert_allclose(weight.detach(), plain, rtol=1e-5)


CONFIGS = (
    UNetConfig(widths=(3, 4, 5), n_classes=3),
    UNetConfig(widths=(3, 4), up="linear"),
    UNetConfig(widths=(2, 3), ndim=3, pools=((1, 2, 2),), kernels=((1, 3, 3), (3, 3, 3))),
    UNetConfig(widths=(3,), padding="same"),
)


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "linear", "volume", "same"])
def test_tiles_fit_the_network_and_see_mirrored_context(config):
    shape = (9, 30, 33)[-config.ndim :]
    random = np.random.default_rng(0)
    image = random.random((1, *shape), np.float32)
    labels = blobs(shape)
    targets = Targets(n_classes=config.n_classes)
    one = make_sample("a", image, labels, None, targets, Weighting("paper"))
    base = np.arange(1, 4, dtype=np.float32)[: config.n_classes]
    geometry = config.geometry
    cutter = Cutter((one,), geometry, 12, 2, targets, base, NO_AUGMENTATION, seed=5)
    read, kept = tile_shapes(geometry, 12)
    batch = cutter(3)
    assert batch.images.shape == (2, 1, *read)
    assert batch.classes.shape == batch.weights.shape == (2, *kept)
    assert min(kept) >= 12

    # Without augmentation, a tile is a window of the mirrored image and of its weights.
    halo = geometry.halo
    wide = [max(read) + 60] * config.ndim
    pad = [(n, n) for n in wide]
    mirrored = np.pad(image[0], pad, mode="reflect")
    weights = weight_map(targets.classes(labels), base, one.extra)
    around = np.pad(weights, pad, mode="reflect")
    tile = batch.images[0, 0].numpy()
    offset = np.array([n // 2 for n in read])
    hits = 0
    for place in np.ndindex(*shape):
        start = np.array(place) - offset + wide
        window = tuple(slice(a, a + n) for a, n in zip(start, read, strict=True))
        if np.allclose(mirrored[window], tile, atol=1e-4):
            hits += 1
            inner = tuple(
                slice(a + h, a + h + k) for a, h, k in zip(start, halo, kept, strict=True)
            )
            assert_allclose(batch.weights[0], around[inner], atol=1e-3)
    assert hits == 1


def test_batches_do_not_depend_on_who_makes_them():
    labels = blobs((40, 40))
    image = np.random.default_rng(0).random((1, 40, 40), np.float32)
    targets = Targets()
    one = make_sample("a", image, labels, None, targets, Weighting("paper"))
    base = Weighting("paper").base(class_counts([one], targets))
    geometry = UNetConfig(widths=(3, 4), n_classes=3).geometry
    cutter = Cutter((one,), geometry, 16, 2, targets, base, Augmentation(), seed=1)
    runs = [list(islice(prefetch(cutter, 4, workers=n), 6)) for n in (0, 1, 3)]
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.classes, b.classes)
            assert torch.equal(a.weights, b.weights)
    assert not torch.equal(runs[0][0].images, runs[0][1].images)


def test_sparse_labels_are_found_wherever_they_are():
    labels = np.full((300, 300), UNKNOWN, np.int32)
    labels[250:252, 17] = 3
    targets = Targets(n_classes=2)
    image = np.zeros((1, 300, 300), np.float32)
    one = make_sample("a", image, np.maximum(labels, 0), labels > 0, targets, Weighting("paper"))
    geometry = UNetConfig(widths=(2, 3)).geometry
    base = np.ones(2, np.float32)
    cutter = Cutter((one,), geometry, 8, 4, targets, base, Augmentation(elastic=1), seed=1)
    for step in range(3):
        assert (cutter(step).weights.flatten(1).sum(dim=1) > 0).all()


def test_replay_gets_its_share():
    targets = Targets(n_classes=2)
    labels = blobs((30, 30))
    ones = [
        make_sample(
            "a",
            np.full((1, 30, 30), v, np.float32),
            labels,
            None,
            targets,
            Weighting("paper"),
            replay=r,
        )
        for v, r in ((0, False), (1, True))
    ]
    geometry = UNetConfig(widths=(2, 3)).geometry
    base = np.ones(2, np.float32)
    cutter = Cutter(tuple(ones), geometry, 8, 4, targets, base, NO_AUGMENTATION, replay=0.25)
    old = np.mean([cutter(step).images.mean(dim=(1, 2, 3)).numpy() for step in range(60)])
    assert_allclose(old, 0.25, atol=0.1)
