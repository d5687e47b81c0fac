"""The worker of a training: it walks through the steps in a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._napari.layers import Placement
from napari_unet._napari.loading import in_one_line, link_torch, no_torch, uncollected
from napari_unet._napari.runner import Failure, Stopped, Walk, Wish
from napari_unet._napari.train_news import MEASURES, Done, Shown, TrainUpdate
from napari_unet._napari.train_order import Order, forget, keep, owned
from napari_unet._napari.train_saved import as_saved
from napari_unet.checkpoint import Card, Model, load_model, save_model
from napari_unet.durations import duration
from napari_unet.errors import Cancelled, ImageError, MemoryLimitError, OutputError, ValidUNetError
from napari_unet.paths import user_path

if TYPE_CHECKING:
    from napari_unet.training.loop import Progress, Trained
    from napari_unet.training.pairs import Pair
    from napari_unet.training.plan import TrainingPlan

__all__ = ["Learning", "teach"]

_INTERVAL = 0.2  # s between two looks of the window
_WAITING = 0.05  # s between two looks whether a pause is over
logger = logging.getLogger(__name__)


class Learning(Walk):
    """A training on its way; it can be held up between two steps.

    Parameters
    ----------
    order : Order
        What to do.
    on_update, on_end : callable
        As of `Walk`, for `TrainUpdate`, and `Done`, `Stopped` or `Failure`.
    """

    def __init__(
        self,
        order: Order,
        on_update: Callable[[TrainUpdate], None],
        on_end: Callable[[Done | Stopped | Failure], None],
    ) -> None:
        self._go = threading.Event()
        self._go.set()
        super().__init__(partial(teach, order, self._go), on_update, on_end)

    @property
    def paused(self) -> bool:
        """Whether no step is begun."""
        return not self._go.is_set()

    def pause(self) -> None:
        """Begin no other step."""
        self._go.clear()

    def go_on(self) -> None:
        """End the pause."""
        self._go.set()


class _LeftError(Exception):
    """Nobody is there any more."""


Wishes = Callable[[], Wish]


def teach(
    order: Order, go: threading.Event, wish: Wishes
) -> Generator[TrainUpdate, None, Done | Stopped | Failure]:
    """Train in a worker's thread; every failure that has a sentence comes back as an outcome.

    Parameters
    ----------
    order : Order
        What to do.
    go : threading.Event
        While it is not set, no step is begun.
    wish : callable
        Asked often. At `Wish.STOP` the run ends with the best network so far; at `Wish.DROP` it
        leaves its state and ends.

    Yields
    ------
    TrainUpdate
        A few times a second, and at every look at the held-out images.
    """
    try:
        link_torch()
        with uncollected():
            import torch  # noqa: F401 (what follows imports it too late for `uncollected`)

            import napari_unet.training.plan
            import napari_unet.training.recipe  # noqa: F401
    except (ImportError, OSError) as error:
        return Failure(no_torch(error))
    try:
        return (yield from _teach(order, go, wish))
    except (Cancelled, _LeftError):
        return Stopped()
    except MemoryLimitError as error:
        logger.warning("The training stopped.", exc_info=True)
        if not error.device:
            return Failure(str(error))
        # The page has no size of tiles, which a step's own advice is about.
        elsewhere = "" if error.device == "cpu" else "choose the CPU under Advanced, or "
        return Failure(f"Out of memory on {error.device}; {elsewhere}close other programs.")
    except ValidUNetError as error:
        return Failure(str(error))
    except MemoryError:
        return Failure("Out of memory; train on fewer or smaller images, or close other programs.")
    except (OSError, RuntimeError) as error:
        logger.warning("The training stopped.", exc_info=True)
        return Failure(
            f"The training failed ({in_one_line(error)}); try float32 on the CPU under Advanced."
        )
    finally:
        if not order.state.exists():
            # Nothing was learned that could be resumed.
            forget(order.out)


def _teach(
    order: Order, go: threading.Event, wish: Wishes
) -> Generator[TrainUpdate, None, Done | Stopped]:
    from napari_unet.atomic import check_folder

    yield TrainUpdate("opening the model and the images")
    check_folder(order.out)
    start = order.start
    if isinstance(start, Path):
        start = load_model(start, assume=order.assume)
    pairs, places = _pairs(order, start)
    if not order.resume:
        # What is learned from now is what a resumed run will find.
        pairs = [as_saved(pair) for pair in pairs]
    plan = _plan(order, start, pairs)
    if not order.resume:
        keep(order, start, pairs)
    with owned(order.out):
        done = yield from _carry_out(order, plan, start, _shown(plan, pairs, places), go, wish)
    if done.trained.complete and not done.problem:
        forget(order.out)
    return done


def _carry_out(
    order: Order,
    plan: TrainingPlan,
    start: Model | None,
    shown: Shown | None,
    go: threading.Event,
    wish: Wishes,
) -> Generator[TrainUpdate, None, Done]:
    from napari_unet.training.plan import finished_card

    about = "looking at the held-out part, and timing the first steps"
    card = plan.model.card if plan.recipe.targets.kind == "classes" else None
    first = _so_far(order, plan)
    yield replace(first, words=about, shown=shown, notes=plan.notes, card=card)
    trained = yield from _walk(order, plan, go, wish)
    card = finished_card(plan, trained, start)
    saved, problem = _save(order, trained, card)
    old, new = _found(plan, trained, shown)
    return Done(order, plan, trained, card, saved, problem, shown, old, new)


def _pairs(order: Order, start: Model | None) -> tuple[list[Pair], dict[str, Placement]]:
    """All pairs under names of their own, and where those of layers lie."""
    from napari_unet.training.pairs import load_pair

    ndim = order.choices.ndim if start is None else start.config.ndim
    read = (load_pair(files, ndim, grey=not order.resume) for files in order.saved)
    found: list[tuple[Pair, Placement | None]]
    found = [(one.pair, one.placement) for one in order.collected]
    found += [(pair, None) for planes in read for pair in planes]
    pairs: list[Pair] = []
    places: dict[str, Placement] = {}
    for pair, place in found:
        taken, number, name = {one.name for one in pairs}, 1, pair.name
        while name in taken:
            number, name = number + 1, f"{pair.name} ({number + 1})"
        pairs.append(replace(pair, name=name))
        if place is not None:
            places[name] = place
    return pairs, places


def _plan(order: Order, start: Model | None, pairs: list[Pair]) -> TrainingPlan:
    """Decide everything."""
    from napari_unet._napari.train_saved import find_saved
    from napari_unet.training.pairs import load_pair
    from napari_unet.training.plan import DEFAULT_CONFIG, parse_classes, plan_training

    choices = order.choices
    ndim = choices.ndim if start is None else start.config.ndim
    files = find_saved(user_path(choices.replay)) if choices.replay else []
    if start is None and files:
        raise ImageError(
            "A replay set belongs to an older model; clear it under Advanced, or start from one."
        )
    config = None
    if start is None and ndim == 3:
        config = replace(DEFAULT_CONFIG, ndim=3, kernels=(), pools=(), up_widths=())
    return plan_training(
        pairs,
        _recipe(order, start, ndim),
        name=order.out.stem,
        start=start,
        config=config,
        classes=parse_classes(choices.classes) if start is None and choices.classes else None,
        sparse=choices.sparse,
        val=choices.held_out,
        replay=[pair for one in files for pair in load_pair(one, ndim)],
    )


def _recipe(order: Order, start: Model | None, ndim: int) -> Any:
    from napari_unet.training.recipe import Recipe, fine_tuning_recipe

    choices = order.choices
    changes: dict[str, Any] = {
        "seed": choices.seed,
        "device": choices.device,
        "precision": choices.precision,
        **({"steps": choices.steps} if choices.steps else {"minutes": choices.minutes}),
    }
    if ndim == 3:
        changes["write"] = 64
    recipe = Recipe(**changes) if start is None else fine_tuning_recipe(**changes)
    if choices.rate:
        recipe = replace(recipe, optimisation=replace(recipe.optimisation, rate=choices.rate))
    return recipe


def _shown(plan: TrainingPlan, pairs: list[Pair], places: dict[str, Placement]) -> Shown | None:
    """Choose the first held-out image, and find where it lies."""
    if not plan.held:
        return None
    one = plan.held[0]
    name, place, origin = one.name, places.get(one.name), (0,) * one.labels.ndim
    if one.name not in {pair.name for pair in pairs} and len(pairs) == 1:
        # The end of the only image.
        name, place = pairs[0].name, places.get(pairs[0].name)
        extents = zip(pairs[0].labels.shape, one.labels.shape, strict=True)
        origin = tuple(whole - part for whole, part in extents)
    if place is not None:
        place = place.starting_at((*[0] * (len(place.scale) - len(origin)), *origin))
    return Shown(one.name, name, one.image, one.axes, one.labels, place)


def _so_far(order: Order, plan: TrainingPlan) -> TrainUpdate:
    """Curves of the run that is resumed."""
    if not order.resume:
        return TrainUpdate("")
    from napari_unet.training.state import load_state

    curves: Mapping[str, Any] = load_state(order.state)[1].get("curves", {})
    measure = "mean_iou" if plan.recipe.targets.kind == "classes" else "mean_ap"
    return TrainUpdate(
        "",
        loss=tuple((int(step), float(loss)) for step, loss in curves.get("loss", ())),
        scores=tuple((int(s), float(scores[measure])) for s, scores in curves.get("scores", ())),
        measure=MEASURES[measure],
    )


def _walk(
    order: Order, plan: TrainingPlan, go: threading.Event, wish: Wishes
) -> Generator[TrainUpdate, None, Trained]:
    """Pass steps on as updates."""
    from napari_unet.training.loop import train_steps

    def should_stop() -> bool:
        if wish() is Wish.DROP:
            raise _LeftError
        return wish() is Wish.STOP

    steps = train_steps(
        plan.model,
        plan.samples,
        plan.held,
        plan.recipe,
        before=plan.before,
        state=order.state,
        resume=order.resume,
        should_stop=should_stop,
    )
    last, seen = None, -_INTERVAL
    try:
        while True:
            yield from _hold(go, wish, last)
            if wish() is Wish.DROP:
                raise _LeftError
            try:
                last = next(steps)
            except StopIteration as end:
                trained: Trained = end.value
                return trained
            now = time.monotonic()
            if now - seen >= _INTERVAL or last.validation is not None:
                seen = now
                yield _update(last, plan)
    finally:
        # Between two steps, this writes the state.
        steps.close()


def _hold(
    go: threading.Event, wish: Wishes, last: Progress | None
) -> Generator[TrainUpdate, None, None]:
    """Wait for the end of a pause, or of all."""
    if last is None or go.is_set():
        return
    yield TrainUpdate(f"paused after step {last.step} of {last.total}", last.step, last.total)
    while not go.wait(_WAITING) and wish() is Wish.GO_ON:
        pass


def _update(progress: Progress, plan: TrainingPlan) -> TrainUpdate:
    step, found = progress.step, progress.validation
    words = [f"step {step:,} of {progress.total:,}", f"loss {progress.loss:.3g}"]
    measure = MEASURES["mean_iou" if plan.recipe.targets.kind == "classes" else "mean_ap"]
    if progress.best is not None:
        words.append(f"best {measure} {progress.best:.3f}")
    if math.isfinite(progress.left):
        words.append(f"{duration(max(progress.left, 0))} left")
    return TrainUpdate(
        ", ".join(words),
        step,
        progress.total,
        loss=((step, progress.loss),) if math.isfinite(progress.loss) else (),
        scores=() if found is None else ((step, found.score),),
        measure=measure,
        labels=None if found is None else found.labels.get(plan.held[0].name),
    )


def _save(order: Order, trained: Trained, card: Card) -> tuple[bool, str]:
    """Write the new model unless the old one is better; say why not where it cannot be."""
    if trained.worse:
        return False, ""
    try:
        save_model(order.out, trained.network, card)
    except OutputError as error:
        return False, str(error)
    return True, ""


def _found(
    plan: TrainingPlan, trained: Trained, shown: Shown | None
) -> tuple[NDArray[np.int32] | None, NDArray[np.int32] | None]:
    """What the old and the new model find on the held-out image."""
    if shown is None:
        return None, None
    from napari_unet.training.validation import validate

    found: list[NDArray[np.int32] | None] = []
    models = (plan.before, replace(plan.model, network=trained.network))
    for model, looked in zip(models, (trained.before, trained.after), strict=True):
        labels = None if looked is None else looked.labels.get(shown.key)
        if labels is None and model is not None:
            # A resumed run has the figures of its first part, but not the pictures.
            recipe = plan.recipe
            one = validate(model, plan.held[:1], recipe.targets, device=recipe.device)
            labels = one.labels[shown.key]
        found.append(labels)
    return found[0], found[1]
