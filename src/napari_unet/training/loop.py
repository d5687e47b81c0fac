"""The training itself: a generator that learns a step at a time and loses nothing.

It yields after each step, so that whoever walks through it shows progress, pauses by not asking
for the next step, and stops by `should_stop` or by closing it. Every minute, and whenever it ends,
its state is on disk; a run that goes on from there makes the same weights as one that was never
disturbed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from napari_unet.checkpoint import Model
from napari_unet.errors import Cancelled
from napari_unet.model import UNet
from napari_unet.steps import walk
from napari_unet.training.job import (
    Curves,
    Job,
    TrainingError,
    fingerprint_of,
    resume_job,
    save_job,
)
from napari_unet.training.recipe import Recipe
from napari_unet.training.run import Run
from napari_unet.training.tiles import Batch, Cutter, Sample, class_counts, prefetch
from napari_unet.training.validation import Held, Validation, is_better, validate

__all__ = ["Curves", "Progress", "Trained", "TrainingError", "train", "train_steps"]

_LOOKS = 20
_TIMED = 3
_LEAST_STEPS = 10
_LEAST_GAP = 25
_LATE = 1.2

ShouldStop = Callable[[], bool] | None


@dataclass(frozen=True)
class Progress:
    """How far a training has come; one after each step.

    Parameters
    ----------
    step, total : int
        Steps done, and in all.
    loss : float
        Running mean.
    rate : float
        Learning rate.
    seconds, left : float
        Since this run began, and until it ends.
    busy : float
        Part of the time spent in the network rather than waiting for tiles.
    validation : Validation, optional
        Where the held-out images have just been looked at.
    best : float, optional
        Highest score so far.
    """

    step: int
    total: int
    loss: float
    rate: float
    seconds: float
    left: float
    busy: float
    validation: Validation | None = None
    best: float | None = None


@dataclass(frozen=True)
class Trained:
    """What came out.

    Parameters
    ----------
    network : UNet
        The best one, by the held-out images; without them, the last.
    best_step : int
        Step after which it was.
    after, before : Validation, optional
        Of it, and of the model that it started from.
    curves : Curves
        Loss and scores over the steps.
    steps : int
        Done in all.
    seconds : float
        Spent, in all runs together.
    busy : float
        As of `Progress`.
    complete : bool
        False where it was stopped.
    """

    network: UNet
    best_step: int
    after: Validation | None
    before: Validation | None
    curves: Curves
    steps: int
    seconds: float
    busy: float
    complete: bool

    @property
    def worse(self) -> bool:
        """Whether the model that it started from is at least as good on the held-out images."""
        if self.before is None or self.after is None:
            return False
        return not is_better(self.after, self.before)


def train(
    model: Model, samples: Sequence[Sample], held: Sequence[Held], recipe: Recipe, **more: Any
) -> Trained:
    """Train in one call; parameters as for `train_steps`."""
    return walk(train_steps(model, samples, held, recipe, **more))


def train_steps(
    model: Model,
    samples: Sequence[Sample],
    held: Sequence[Held],
    recipe: Recipe,
    *,
    before: Model | None = None,
    state: Path | None = None,
    resume: bool = False,
    save_every: float = 60.0,
    should_stop: ShouldStop = None,
) -> Generator[Progress, None, Trained]:
    """Train step by step.

    Parameters
    ----------
    model : Model
        Where it starts, and the card under which held-out images are segmented.
    samples : sequence of Sample
        To learn from.
    held : sequence of Held
        To choose by; may be empty.
    recipe : Recipe
        How.
    before : Model, optional
        To compare with on `held`: the model that a person has so far.
    state : Path, optional
        File that is kept up to date, every minute and at the end.
    save_every : float
        Seconds that a crash may cost.
    resume : bool
        Go on from `state`.
    should_stop : callable, optional
        Asked after each step and while held-out images are looked at. What was found so far is
        returned.

    Yields
    ------
    Progress

    Returns
    -------
    Trained

    Raises
    ------
    TrainingError
        If there is nothing to learn from, or the loss is no number any more.
    CheckpointError, OptionError
        If there is no state to resume, or it is of another training.
    OutputError
        If the state cannot be written.
    """
    job = Job(model, samples, held, recipe, state, should_stop, save_every)
    cutter = _cutter(job)
    fingerprint = fingerprint_of(samples, held, recipe)
    run = resume_job(job, fingerprint) if resume else _begin(job, cutter, before, fingerprint)
    yield from _walk(job, run, cutter, fingerprint)
    return _result(job, run)


def _cutter(job: Job) -> Cutter:
    """What makes the tiles."""
    recipe = job.recipe
    base = recipe.weighting.base(_checked_counts(job.samples, recipe))
    return Cutter(
        tuple(job.samples), job.model.config.geometry, recipe.write, recipe.batch, recipe.targets,
        base, recipe.augmentation, recipe.seed, recipe.replay,
    )  # fmt: skip


def _begin(job: Job, cutter: Cutter, before: Model | None, fingerprint: dict[str, Any]) -> Run:
    """Look at the older model, lay the steps out, and see that the state can be written."""
    if before is not None and job.held:
        job.before = _look(job, before)
    _lay_out(job, cutter)
    run = Run(job.model.network, job.recipe, job.total)
    # At once: a folder that cannot be written to must not cost a minute.
    save_job(job, run, fingerprint)
    return run


def _walk(
    job: Job, run: Run, cutter: Cutter, fingerprint: dict[str, Any]
) -> Generator[Progress, None, None]:
    """All steps that are left."""
    batches = _prefetched(cutter, job.step + 1, run)
    saved = job.walking = time.perf_counter()
    job.first = job.step
    try:
        while not _over(job):
            _one_step(job, run, batches)
            validation = None
            if job.held and (job.step % job.every == 0 or job.step == job.total):
                try:
                    validation = _validated(job, run)
                except Cancelled:
                    # As if this step had not been: the look belongs to it.
                    break
            if _over(job) or time.perf_counter() - saved >= job.save_every:
                save_job(job, run, fingerprint)
                saved = time.perf_counter()
            handed = time.perf_counter()
            yield _progress(job, run, validation)
            # A pause counts neither as spent nor into the pace.
            away = time.perf_counter() - handed
            job.started, job.walking = job.started + away, job.walking + away
            if job.should_stop is not None and job.should_stop():
                save_job(job, run, fingerprint)
                break
    except GeneratorExit:
        save_job(job, run, fingerprint)
        raise
    finally:
        batches.close()  # type: ignore[attr-defined]


def _prefetched(cutter: Cutter, first: int, run: Run) -> Iterator[Batch]:
    return prefetch(cutter, first, workers=run.recipe.workers, pin=run.device.type == "cuda")


def _one_step(job: Job, run: Run, batches: Any) -> None:
    """Learn from the next batch."""
    asked = time.perf_counter()
    batch: Batch = next(batches)
    began = time.perf_counter()
    loss = run.step(batch, job.step + 1)
    if not isfinite(loss):
        kept = f"; the state of the last minute is in {job.state.name}" if job.state else ""
        raise TrainingError(
            f"The loss is no number any more at step {job.step + 1}{kept}. Begin again with a "
            "lower learning rate, or look for images with broken pixels."
        )
    job.waited += began - asked
    job.worked += time.perf_counter() - began
    job.step += 1
    job.pending.append(loss)
    job.smooth = loss if job.smooth is None else 0.95 * job.smooth + 0.05 * loss
    if job.step % max(job.total // 200, 1) == 0 or job.step == job.total:
        job.curves.loss.append((job.step, float(np.mean(job.pending))))
        job.pending = []


def _validated(job: Job, run: Run) -> Validation:
    """Look at the held-out images, and keep the network if it is the best so far."""
    validation = _look(job, replace(job.model, network=run.averaged.eval()))
    job.curves.scores.append((job.step, dict(validation.mean)))
    if is_better(validation, job.after):
        job.after, job.best_step, job.stale = validation, job.step, 0
        state = run.averaged.state_dict()
        job.best = {key: tensor.detach().cpu().clone() for key, tensor in state.items()}
    else:
        job.stale += 1
    return validation


def _look(job: Job, model: Model) -> Validation:
    if not model.network.training:
        network = copy.deepcopy(model.network).cpu()
        model = replace(model, network=network)
    recipe = job.recipe
    return validate(
        model, job.held, recipe.targets, device=recipe.device, should_stop=job.should_stop
    )


def _over(job: Job) -> bool:
    """Whether all steps are done, or more of them would not help, or take too long."""
    recipe = job.recipe
    stale = bool(recipe.patience) and job.stale >= recipe.patience
    # The machine may have become slower since the steps were laid out.
    late = recipe.minutes is not None and job.seconds > 60 * recipe.minutes * _LATE and job.step > 0
    return job.step >= job.total or stale or late


def _progress(job: Job, run: Run, validation: Validation | None) -> Progress:
    done = time.perf_counter() - job.started
    each = (time.perf_counter() - job.walking) / (job.step - job.first)
    left = each * (job.total - job.step)
    best = None if job.after is None else job.after.score
    smooth = float("nan") if job.smooth is None else job.smooth
    return Progress(
        job.step, job.total, smooth, run.rate, done, left, job.busy, validation, best
    )  # fmt: skip


def _result(job: Job, run: Run) -> Trained:
    """The best network, and how it came about."""
    complete = _over(job)
    if job.held and job.after is None:
        # Stopped before the first look.
        stop, job.should_stop = job.should_stop, None
        _validated(job, run)
        job.should_stop = stop
    network = copy.deepcopy(run.averaged).cpu()
    if job.best is not None:
        network.load_state_dict(job.best)
    step = job.best_step if job.best is not None else job.step
    return Trained(
        network.eval(), step, job.after, job.before, job.curves, job.step, job.seconds, job.busy,
        complete,
    )  # fmt: skip


def _lay_out(job: Job, cutter: Cutter) -> None:
    """Decide the number of steps, and how often the held-out images are looked at."""
    recipe = job.recipe
    if recipe.steps is not None:
        job.total = recipe.steps
        job.every = recipe.every or max(job.total // _LOOKS, min(_LEAST_GAP, job.total))
        return
    assert recipe.minutes is not None
    trial = Run(job.model.network, recipe, 1 + _TIMED)
    batches = _prefetched(cutter, 1, trial)
    trial.step(next(batches), 1)
    began = time.perf_counter()
    for number in range(_TIMED):
        trial.step(next(batches), 2 + number)
    each = (time.perf_counter() - began) / _TIMED
    batches.close()  # type: ignore[attr-defined]
    look = 0.0
    if job.held:
        began = time.perf_counter()
        _look(job, replace(job.model, network=trial.averaged.eval()))
        look = time.perf_counter() - began
    budget = 60 * recipe.minutes - (time.perf_counter() - job.started)
    # Looking takes a fifth of the time at most.
    looks = int(np.clip(0.2 * budget / max(look, 1e-6), 2, _LOOKS)) if job.held else _LOOKS
    job.total = max(int((budget - looks * look * bool(job.held)) / each), _LEAST_STEPS)
    job.every = recipe.every or max(1, -(-job.total // looks))


def _checked_counts(samples: Sequence[Sample], recipe: Recipe) -> Any:
    """Pixels of each class; every class has to be there."""
    if not samples:
        raise TrainingError("There is no image to learn from; give at least one with labels.")
    counts = class_counts(samples, recipe.targets)
    if not counts.sum():
        raise TrainingError("Nothing is labelled in any image; label some objects first.")
    if np.count_nonzero(counts) < 2:
        only = "background" if counts[0] else f"class {int(np.argmax(counts))}"
        raise TrainingError(
            f"All labelled pixels are {only}; a network needs at least two classes to tell apart, "
            "so label some of the others."
        )
    return counts
