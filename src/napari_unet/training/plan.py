"""From what a person gives to what a training needs, decided before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

from napari_unet._version import __version__
from napari_unet.card import Card, ClassInfo, Role, default_classes
from napari_unet.checkpoint import Model
from napari_unet.config import UNetConfig
from napari_unet.errors import OptionError
from napari_unet.intensity import Normalisation
from napari_unet.training.dataset import (
    check_pairs,
    common_spacing,
    hold_out,
    labelled,
    to_held,
    to_samples,
)
from napari_unet.training.loop import Trained
from napari_unet.training.pairs import Pair
from napari_unet.training.recipe import Recipe
from napari_unet.training.targets import Targets
from napari_unet.training.tiles import Sample
from napari_unet.training.transfer import Transfer, new_model, transfer
from napari_unet.training.validation import Held

__all__ = ["DEFAULT_CONFIG", "TrainingPlan", "finished_card", "parse_classes", "plan_training"]

DEFAULT_CONFIG = UNetConfig(n_classes=3, widths=(16, 32, 64, 128), norm="batch")
"""A network that learns in minutes on a few CPU cores."""

_NAMED = 5  # images that a card names


@dataclass(frozen=True)
class TrainingPlan:
    """All that `train_steps` takes, and what a person should know about it.

    Parameters
    ----------
    model : Model
        Where the training starts.
    before : Model, optional
        To compare with.
    samples, held : list
        To learn from, and to choose by.
    recipe : Recipe
        How.
    notes : tuple of str
        What was kept of an older model, what was held out.
    data : str
        What it is trained on, for the card.
    """

    model: Model
    before: Model | None
    samples: list[Sample]
    held: list[Held]
    recipe: Recipe
    notes: tuple[str, ...]
    data: str


def parse_classes(text: str) -> tuple[tuple[ClassInfo, ...], tuple[int, ...]]:
    """Read ``background,myelin=1,axon=2:foreground``: names, labels and roles.

    A label left out is the place in the list; the first class is the background, others are
    foreground unless they say otherwise.

    Raises
    ------
    OptionError
        If it is not of that form.
    """
    parts = [part.strip() for part in text.split(",")]
    colours = [info.color for info in default_classes(max(len(parts), 4))]
    infos, values = [], []
    for number, part in enumerate(parts):
        name, _, role = part.partition(":")
        name, _, value = name.partition("=")
        role = role or ("foreground" if number else "background")
        if role not in get_args(Role) or (value and not value.isdecimal()) or not name:
            raise OptionError(
                f"{part!r} is no class: write NAME, NAME=LABEL or NAME=LABEL:ROLE, where a role is "
                f"one of {', '.join(get_args(Role))}."
            )
        infos.append(ClassInfo(name, colours[number], cast(Role, role)))
        values.append(int(value) if value else number)
    if len(infos) < 2 or len(set(values)) < len(values):
        raise OptionError("At least two classes with different labels are needed.")
    return tuple(infos), tuple(values)


def plan_training(
    pairs: Sequence[Pair],
    recipe: Recipe,
    *,
    name: str,
    start: Model | None = None,
    config: UNetConfig | None = None,
    normalisation: Normalisation = Normalisation(),  # noqa: B008 - it is frozen
    classes: tuple[tuple[ClassInfo, ...], tuple[int, ...]] | None = None,
    sparse: bool = False,
    val: float | Sequence[Pair] = 0.15,
    replay: Sequence[Pair] = (),
    dropout: float | None = None,
) -> TrainingPlan:
    """Decide what is trained on what.

    Parameters
    ----------
    pairs, recipe, name
        Labelled images; how to train (what labels mean follows from the classes); of the model.
    start, config, normalisation
        Model to fine-tune; or network (channels and classes follow from the images) and
        normalisation of a new one.
    classes : pair of tuples, optional
        What `parse_classes` gave, if labels are classes and not objects.
    sparse, dropout
        Whether label 0 means that nobody has looked there; the network's, if not its own.
    val : float, or sequence of Pair
        Part to hold out, or images that are held out.
    replay : sequence of Pair
        Images that the older model was trained on, to keep what it knows.

    Raises `ImageError` or `OptionError` if things do not go together.
    """
    channels = pairs[0].channels if pairs else 1
    check_pairs(pairs, channels)
    train_on, held_out = _divided(pairs, val, recipe.seed, sparse)
    check_pairs([*pairs, *replay, *held_out], channels)
    # Of nothing to find, every network finds as much as any other.
    told = any(labelled(pair, sparse=sparse).any() for pair in held_out)
    infos, targets = _classes(start, classes, config)
    if start is None:
        shape = replace(config or DEFAULT_CONFIG, in_channels=channels, n_classes=targets.n_classes)
        shape = shape if dropout is None else replace(shape, dropout=dropout)
        card = Card(name, shape, normalisation, infos, common_spacing(pairs))
        model, before, notes = new_model(card, recipe.seed), None, []
    else:
        moved = transfer(
            start, in_channels=channels, classes=infos, dropout=dropout, seed=recipe.seed
        )
        model = replace(moved.model, card=replace(moved.model.card, name=name))
        before, notes = start if moved.comparable else None, _moved_notes(start, moved)
        targets = replace(targets, n_classes=model.config.n_classes)
    recipe = _with_targets(recipe, targets)
    samples = to_samples(train_on, model.card, recipe, sparse=sparse)
    samples += to_samples(replay, model.card, recipe, sparse=False, replay=True)
    held = to_held(held_out, sparse=sparse) if told else []
    notes.append(_held_note(held_out, told))
    data = _data(train_on, held_out, replay)
    return TrainingPlan(model, before, samples, held, recipe, tuple(notes), data)


def _divided(
    pairs: Sequence[Pair], val: float | Sequence[Pair], seed: int, sparse: bool
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    if isinstance(val, Sequence):
        return pairs, val
    return hold_out(pairs, val, seed, sparse=sparse)


def _moved_notes(start: Model, moved: Transfer) -> list[str]:
    notes = [f"Kept of {start.card.name}: {', '.join(moved.kept)}."]
    return notes + [f"New: {', '.join(moved.new)}."] * bool(moved.new)


def _with_targets(recipe: Recipe, targets: Targets) -> Recipe:
    """Let the recipe say how wide contours are, and the labels what they mean."""
    usual = recipe.targets
    targets = replace(targets, contour=usual.contour, touching=usual.touching)
    return replace(recipe, targets=targets)


def _held_note(held_out: Sequence[Pair], told: bool) -> str:
    if not told:
        why = "Nothing is labelled in what is held out" if held_out else "Nothing is held out"
        return f"{why}, so nothing will tell how good the model is."
    more = f" and {len(held_out) - _NAMED} more" if len(held_out) > _NAMED else ""
    return f"Held out: {', '.join(pair.name for pair in held_out[:_NAMED])}{more}."


def _classes(
    start: Model | None,
    given: tuple[tuple[ClassInfo, ...], tuple[int, ...]] | None,
    config: UNetConfig | None,
) -> tuple[tuple[ClassInfo, ...], Targets]:
    """Classes of the new model, and how labels become them."""
    if given is not None:
        infos, values = given
        return infos, Targets("classes", len(infos), values)
    if start is None:
        count = (config or DEFAULT_CONFIG).n_classes
        return default_classes(count), Targets("instances", count)
    old = start.card.classes
    roles = [info.role for info in old]
    order: list[Role] = ["background", "foreground", "contour"]
    if sorted(roles) == sorted(order[: len(roles)]) and len(roles) <= 3:
        # Objects; in the order in which they are learned.
        infos = tuple(old[roles.index(role)] for role in order[: len(roles)])
        return infos, Targets("instances", start.config.n_classes)
    return old, Targets("classes", len(old))


def _data(train_on: Sequence[Pair], held_out: Sequence[Pair], replay: Sequence[Pair]) -> str:
    """What a card says about its data."""
    names = ", ".join(pair.name for pair in train_on[:_NAMED])
    more = f" and {len(train_on) - _NAMED} more" if len(train_on) > _NAMED else ""
    pixels = sum(pair.labels.size for pair in train_on) / 1e6
    text = (
        f"{len(train_on)} labelled images of {pixels:.3g} million pixels ({names}{more}); "
        f"{len(held_out)} held out."
    )
    return text + (f" {len(replay)} images of the older model's training." if replay else "")


def finished_card(plan: TrainingPlan, trained: Trained, start: Model | None) -> Card:
    """Card of the new model: what it was trained on, how, and how good it is."""
    recipe = plan.recipe
    write = recipe.write if isinstance(recipe.write, int) else " x ".join(map(str, recipe.write))
    provenance = {} if start is None else dict(start.card.provenance)
    for key in ("figures", "recipe"):
        provenance.pop(key, None)
    if start is not None:
        known = [provenance.pop(key) for key in ("data", "licence") if key in provenance]
        sha256 = start.sha256[:16] or "never saved"
        provenance["started from"] = " ".join([f"{start.card.name} (SHA-256 {sha256}).", *known])
    provenance["data"] = plan.data
    provenance["recipe"] = (
        f"napari-valid-unet {__version__}: {trained.steps} steps of {recipe.batch} tiles of "
        f"{write} px, {recipe.optimisation.kind}, rate {recipe.optimisation.rate:g}, weights "
        f"{recipe.weighting.kind}, seed {recipe.seed}; best at step {trained.best_step}; "
        f"{trained.seconds / 60:.1f} minutes."
    )
    if trained.after is not None:
        keys = [key for key in trained.after.mean if not key.endswith(("objects", "images"))]
        provenance["figures"] = "held out: " + ", ".join(
            f"{key} {trained.after.mean[key]:.3f}" for key in keys
        )
    return replace(plan.model.card, provenance=provenance)
