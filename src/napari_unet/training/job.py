"""What the steps of a training share, on its way to the disk and back."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from napari_unet.checkpoint import Model
from napari_unet.errors import CheckpointError, OptionError, ValidUNetError
from napari_unet.training.recipe import Recipe
from napari_unet.training.run import Run
from napari_unet.training.state import load_state, remove_leftovers, save_state
from napari_unet.training.tiles import Sample
from napari_unet.training.validation import Held, Validation

__all__ = ["Curves", "Job", "TrainingError", "fingerprint_of", "resume_job", "save_job"]

_NUMBERS = ("step", "total", "every", "best_step", "stale", "pending", "smooth")


class TrainingError(ValidUNetError):
    """A training cannot go on."""


@dataclass
class Curves:
    """What is plotted.

    Parameters
    ----------
    loss : list of (step, loss)
        Means since the point before.
    scores : list of (step, dict)
        On the held-out images.
    """

    loss: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)


@dataclass
class Job:
    """What the steps share."""

    model: Model
    samples: Sequence[Sample]
    held: Sequence[Held]
    recipe: Recipe
    state: Path | None
    should_stop: Callable[[], bool] | None
    save_every: float
    curves: Curves = field(default_factory=Curves)
    step: int = 0
    total: int = 0
    every: int = 0
    spent: float = 0.0
    best: dict[str, Tensor] | None = None
    best_step: int = 0
    after: Validation | None = None
    before: Validation | None = None
    stale: int = 0
    waited: float = 0.0
    worked: float = 0.0
    pending: list[float] = field(default_factory=list)
    smooth: float | None = None
    first: int = 0
    walking: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def busy(self) -> float:
        """Part of the time spent in the network."""
        return self.worked / max(self.worked + self.waited, 1e-9)

    @property
    def seconds(self) -> float:
        """Spent, in all runs together."""
        return self.spent + time.perf_counter() - self.started


def fingerprint_of(
    samples: Sequence[Sample], held: Sequence[Held], recipe: Recipe
) -> dict[str, Any]:
    """What decides the weights that come out, as JSON types."""
    return {"recipe": recipe.decisive(), "data": _digest(samples, held)}


def _digest(samples: Sequence[Sample], held: Sequence[Held]) -> str:
    """Tell one data set from another."""
    total = 0
    for array in (part for one in samples for part in (one.image, one.labels)):
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    for array in (part for one in held for part in (one.image, one.labels)):
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{len(samples)} + {len(held)} images, {total:08x}"


def save_job(job: Job, run: Run, fingerprint: dict[str, Any]) -> None:
    """Write the state, if a file was given."""
    if job.state is None:
        return
    tensors = run.tensors()
    if job.best is not None:
        tensors |= {f"best.{key}": tensor for key, tensor in job.best.items()}
    validations = {"after": job.after, "before": job.before}
    document = {
        **fingerprint,
        **run.numbers(),
        "job": {name: getattr(job, name) for name in _NUMBERS} | {"spent": job.seconds},
        "curves": {"loss": job.curves.loss, "scores": job.curves.scores},
        "scores": {
            name: None if v is None else {"rows": v.rows, "mean": dict(v.mean)}
            for name, v in validations.items()
        },
    }
    save_state(job.state, tensors, document)


def resume_job(job: Job, fingerprint: dict[str, Any]) -> Run:
    """Put a saved state back."""
    if job.state is None:
        raise OptionError("To resume a training, say where its state is.")
    tensors, document = load_state(job.state)
    remove_leftovers(job.state)
    try:
        if different := _difference(document, fingerprint):
            raise OptionError(
                f"{job.state.name} is of a training with other settings ({different}); give the "
                "same again, or delete it to begin anew."
            )
        for name in (*_NUMBERS, "spent"):
            setattr(job, name, document["job"][name])
        job.curves = Curves(
            [(int(step), float(loss)) for step, loss in document["curves"]["loss"]],
            [(int(step), dict(scores)) for step, scores in document["curves"]["scores"]],
        )
        found = {
            name: None if v is None else Validation(tuple(v["rows"]), v["mean"])
            for name, v in document["scores"].items()
        }
        job.after, job.before = found["after"], found["before"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{job.state} is damaged; delete it to begin again.") from error
    best = {k.removeprefix("best."): t for k, t in tensors.items() if k.startswith("best.")}
    job.best = best or None
    run = Run(job.model.network, job.recipe, job.total)
    run.restore(tensors, document)
    return run


def _difference(document: dict[str, Any], fingerprint: dict[str, Any]) -> str:
    """Name the first thing in which two trainings differ; empty if there is none."""
    if document["data"] != fingerprint["data"]:
        return f"its images: {document['data']}"
    old, new = document["recipe"], fingerprint["recipe"]
    names = [name for name in new if old.get(name) != new[name]]
    return f"{names[0]}: {old.get(names[0])}" if names else ""
