"""Sizes: the formulas against the network itself, and the figures of the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import random_network

from napari_unet.config import UNetConfig
from napari_unet.errors import GeometryError
from napari_unet.geometry import AxisGeometry, Geometry
from napari_unet.model import UNet

PAPER = UNetConfig().geometry.axes[0]

axes = st.integers(0, 3).flatmap(
    lambda depth: st.builds(
        AxisGeometry,
        kernels=st.tuples(*[st.sampled_from((1, 3, 5))] * (depth + 1)),
        pools=st.tuples(*[st.sampled_from((1, 2, 3))] * depth),
        linear_up=st.booleans(),
    )
)


def test_the_papers_figures() -> None:
    assert (PAPER.stride, PAPER.loss, PAPER.halo) == (16, 184, 92)
    assert PAPER.output(572) == 388
    assert PAPER.step(572) == 384


@pytest.mark.parametrize(
    ("depth", "size", "left"), [(1, 18, 2), (2, 44, 4), (3, 92, 4), (4, 188, 4)]
)
def test_smallest_sizes(depth: int, size: int, left: int) -> None:
    axis = AxisGeometry((3,) * (depth + 1), (2,) * depth)
    assert axis.smallest == size
    assert axis.output(size) == left


@given(axes, st.integers(1, 400))
def test_admissible_is_what_every_pooling_and_crop_passes(axis: AxisGeometry, size: int) -> None:
    assert axis.admits(size) == (walk(axis, size) is not None)
    if axis.admits(size):
        assert axis.output(size) == walk(axis, size)


def walk(axis: AxisGeometry, size: int) -> int | None:
    """Go through the network pixel by pixel, as a person with a pencil would."""
    skips = []
    for kernel, pool in zip(axis.kernels, axis.pools, strict=False):
        size -= 2 * (kernel - 1)
        skips.append(size)
        if size < 1 or size % pool:
            return None
        size //= pool
    size -= 2 * (axis.kernels[-1] - 1)
    for kernel, pool in zip(reversed(axis.kernels[:-1]), reversed(axis.pools), strict=True):
        size *= pool
        if size < 1 or size > skips[-1] or (skips.pop() - size) % 2:
            return None
        size -= 2 * (kernel - 1)
    # A linear up-sampling spoils the outermost pixels; something has to be left of the rest.
    return size if size - 2 * axis.trim >= 1 else None


@given(axes, st.integers(1, 400))
def test_nearest_sizes_are_the_nearest(axis: AxisGeometry, size: int) -> None:
    admissible = [n for n in range(1, 1500) if axis.admits(n)]
    assert axis.below(size) == max((n for n in admissible if n <= size), default=None)
    assert axis.above(size) == min(n for n in admissible if n >= size)


@given(axes, st.integers(1, 300))
def test_size_for_a_step_is_large_enough_and_not_larger(axis: AxisGeometry, steps: int) -> None:
    step = steps * axis.stride
    size = axis.size_for(step)
    assert axis.step(size) >= step
    if smaller := axis.below(size - 1):
        assert axis.step(smaller) < step


def test_an_inadmissible_size_names_the_nearest_that_work() -> None:
    with pytest.raises(GeometryError, match=r"Y = 573 \(the nearest that work are 572 and 588\)"):
        UNetConfig().geometry.output((573, 572))
    with pytest.raises(GeometryError, match=r"X = 100 \(the smallest that works is 188\)"):
        UNetConfig().geometry.output((572, 100))
    with pytest.raises(GeometryError, match="nearest that work are 572 and 588"):
        PAPER.output(573)
    with pytest.raises(GeometryError, match="2 spatial axes, the input has 3"):
        UNetConfig().geometry.output((188, 188, 188))


def test_the_network_refuses_what_would_run_half_a_pixel_off() -> None:
    network = UNet(UNetConfig(widths=(2, 2, 2)))
    assert network(torch.zeros(1, 1, 44, 48)).shape == (1, 2, 4, 8)
    with pytest.raises(GeometryError, match="44 and 48"):
        network(torch.zeros(1, 1, 45, 44))


def test_field_of_view_is_what_a_pixel_sees() -> None:
    """Follow the gradient of one output pixel after the other back to the image."""
    # A slope keeps every path alive, and depth 2 has two pooling phases to try.
    network = random_network(UNetConfig(widths=(4, 4, 4), n_classes=1, slope=0.5)).double()
    axis = network.config.geometry.axes[0]
    size = axis.size_for(2 * axis.stride)
    seen = set()
    for place in range(axis.stride):
        image = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
        network(image)[0, 0, place, place].backward()
        assert image.grad is not None
        rows = image.grad.abs().sum((0, 1, 3)).nonzero().ravel()
        seen.add(int(rows.max() - rows.min()) + 1)
    assert axis.loss < max(seen) <= axis.field_of_view


def test_anisotropic_axes_are_independent() -> None:
    geometry = Geometry.of(((1, 3, 3), (3, 3, 3)), ((1, 2, 2),))
    assert geometry.stride == (1, 2, 2)
    assert geometry.halo == (2, 8, 8)
    assert geometry.output((5, 18, 20)) == (1, 2, 4)
