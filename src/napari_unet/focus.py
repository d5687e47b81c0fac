"""What comes first: frame and tiles that a person looks at, and a glance at their middle."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from napari_unet.footprint import footprint
from napari_unet.plan import Job
from napari_unet.tiling import TilePlan, Window, plan_tiles

__all__ = ["Focus"]

# Pixels along each axis that a first glance writes, for 2 and 3 axes.
_GLANCE = {2: 256, 3: 32}

# Operations of a tile that takes a processor about a second.
_LONG = 1.5e11

# A glance is computed on top: it may cost this share of the frame at most.
_SHARE = 1 / 12


class Focus:
    """The order of a job.

    Parameters
    ----------
    job : Job
        What runs.
    focus : tuple of slice, optional
        Part of the image, over its axes without channels, that comes first; it may lie outside
        the region.
    """

    def __init__(self, job: Job, focus: Sequence[slice] | None) -> None:
        self._job = job
        self._lead: tuple[slice, ...] | None = None
        self.plan: TilePlan = job.plan
        if focus is None:
            return
        shape = job.axes.labels_shape
        ranges = [part.indices(n) for part, n in zip(focus, shape, strict=True)]
        inside = [slice(start, max(stop, start)) for start, stop, _ in ranges]
        lead = job.axes.lead
        self._lead = tuple(inside[:lead])
        spatial = inside[lead:]
        seen = Window(tuple(s.start for s in spatial), tuple(s.stop for s in spatial))
        self.plan = job.plan.outward(job.grid.to_network(seen))

    def frames(self) -> list[tuple[int, ...]]:
        """Frames, those in focus first and then ever farther ones."""
        lead = self._lead
        if lead is None:
            return list(self._job.frames)

        def distance(index: tuple[int, ...]) -> int:
            ends = zip(index, lead, strict=True)
            return sum(max(part.start - i, i - part.stop + 1, 0) for i, part in ends)

        return sorted(self._job.frames, key=distance)

    def glance(self) -> TilePlan | None:
        """Plan one small tile in the middle of the focus; None where the first is soon there."""
        job, focus = self._job, self.plan.focus
        config = job.model.config
        if focus is None or job.runtime.device.type != "cpu":
            return None
        geometry = config.geometry
        wanted = _GLANCE[geometry.ndim]
        region = job.plan.region
        start, stop = [], []
        for axis, low, high, a, b in zip(
            geometry.axes, region.start, region.stop, focus.start, focus.stop, strict=True
        ):
            first = min((a + b - wanted) // 2, high - wanted) // axis.stride * axis.stride
            start.append(max(first, low))
            stop.append(min(start[-1] + wanted, high))
        small = geometry.size_for([wanted] * geometry.ndim)
        whole = len(job.plan) * prod(job.plan.tile_shape)
        soon = footprint(config, job.plan.tile_shape).flops < _LONG
        if soon or prod(small) > _SHARE * whole:
            return None
        window = Window(tuple(start), tuple(stop))
        return plan_tiles(job.grid.network, geometry, small, window, exact=False)
