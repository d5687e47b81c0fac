"""Whether tiles leave a trace: tiled inference against one pass over the whole image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.checkpoint import Model, load_model
from napari_unet.engine import run_tiles
from napari_unet.frames import Frame
from napari_unet.options import Options
from napari_unet.plan import plan_job
from napari_unet.prepared import Prepared, Runtime
from napari_unet.segmentation import fit_frame
from napari_unet.tiling import TilePlan

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """How far tiled and whole-image logits differ.

    Parameters
    ----------
    max_abs_logit_difference : float
        Largest difference of a logit.
    changed_labels : int
        Pixels whose most probable class differs.
    pixels : int
        Pixels compared.
    tile_size : tuple of int
        Of the tiled pass.
    tiles : int
        Of the tiled pass.
    """

    max_abs_logit_difference: float
    changed_labels: int
    pixels: int
    tile_size: tuple[int, ...]
    tiles: int


def verify(
    image: Any, model: str | os.PathLike[str] | Model = "nuclei", **settings: Any
) -> Verification:
    """Compare tiled inference with one pass over the whole (first) frame.

    Parameters
    ----------
    image, model
        As for `segment`.
    **settings
        Fields of `Options`; ``tile_size`` is that of the tiled pass. The precision is float32
        unless another one is asked for, which tells less about tiles.

    Returns
    -------
    Verification
    """
    loaded = load_model(model)
    if settings.get("precision", "auto") == "auto":
        settings["precision"] = "float32"
    job = plan_job(image, loaded, Options(**settings))
    network = Prepared(loaded.network, job.runtime)
    index = job.frames[0]
    frame = Frame(job.data, job.axes, index, fit_frame(job, job.axes.fit_index(index)), job.grid)
    tiled, whole = (
        _logits(network, frame, plan, job.runtime) for plan in (job.plan, job.whole_plan())
    )
    return Verification(
        float(np.abs(tiled - whole).max()),
        int(np.count_nonzero(tiled.argmax(0) != whole.argmax(0))),
        tiled[0].size,
        job.plan.tile_shape,
        len(job.plan),
    )


def _logits(
    network: Prepared, frame: Frame, plan: TilePlan, runtime: Runtime
) -> NDArray[np.float32]:
    """Logits (K, [Z,] Y, X) of a plan's region."""
    parts = run_tiles(network, frame.read, plan, runtime)
    tile, first = next(parts)
    out = np.empty((len(first), *plan.region.shape), np.float32)
    out[(slice(None), *tile.write.within(plan.region.start).slices)] = first
    for tile, logits in parts:
        out[(slice(None), *tile.write.within(plan.region.start).slices)] = logits
    return out
