"""What a file leaves open, and the answers to try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import prod

from napari_unet.config import UNetConfig
from napari_unet.importers import CHOICES
from napari_unet.importers.roles import habitual_roles

__all__ = ["Answers", "Question", "Roles", "combinations_of", "macs", "questions_of", "roles_of"]

Answers = tuple[tuple[str, str], ...]

# From what spoils most to what spoils least: a search that cannot try all decides in this order.
_ORDER = (
    "order", "norm-order", "up", "normalisation", "shift", "up-activation", "slope", "padding",
)  # fmt: skip
_SLOPES = ("0", "0.01", "0.1", "0.2")
_SHIFTS = ("0", "-0.5")
# Only what is scaled to 0 and 1 is ever moved to -0.5 and 0.5.
_SHIFTED = ("percentile", "min-max", "dtype-range")
# All sets of classes are tried up to here; of more, only those that fit best.
_MOST_FREE_CLASSES = 4
# What else takes time, in multiplications: to write a value, and to start and score a network.
_WRITE = 200
_OVERHEAD = 2e9


@dataclass(frozen=True)
class Question:
    """One thing that the file does not say.

    Parameters
    ----------
    answers : tuple of Answers
        What to try, the family's habit first.
    """

    answers: tuple[Answers, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """What it is about; scaling and shift are one question."""
        return tuple(key for key, _ in self.answers[0])


@dataclass(frozen=True)
class Roles:
    """Which sets of classes can be the objects.

    Parameters
    ----------
    unions : tuple of frozenset of int
        Foreground and contour together; empty where there are too many to list.
    classes : int
        Of the output; two for a single logit.
    foreground, contour : str, optional
        Where they are known; None where they are open.
    """

    unions: tuple[frozenset[int], ...]
    classes: int
    foreground: str | None
    contour: str | None

    def answers(self, union: Iterable[int], contour: int | None = None) -> dict[str, str]:
        """Answer the questions of the classes for a set of them.

        Parameters
        ----------
        union : iterable of int
            The classes of the objects.
        contour : int, optional
            The one that keeps them apart, where it is known.
        """
        habit = habitual_roles(self.classes)
        apart = _numbers(self.contour or "none")
        if self.contour is None:
            if contour is not None:
                apart = {contour}
            elif self.foreground is not None:
                apart = set(union) - _numbers(self.foreground)
            elif _numbers(habit["foreground"]) | _numbers(habit["contour"]) == set(union):
                apart = _numbers(habit["contour"])
        told = {"foreground": _text(set(union) - apart), "contour": _text(apart)}
        # Of two classes none can be left for a contour.
        asked = told if self.classes > 2 else {"foreground": told["foreground"]}
        return {key: value for key, value in asked.items() if getattr(self, key) is None}


def _numbers(text: str) -> set[int]:
    return set() if text == "none" else {int(part) for part in text.split("+")}


def _text(numbers: Iterable[int]) -> str:
    return "+".join(map(str, sorted(numbers))) or "none"


def questions_of(assumed: Mapping[str, str], fixed: Mapping[str, str]) -> tuple[Question, ...]:
    """List what a network's weights leave open, apart from the classes.

    Parameters
    ----------
    assumed : mapping of str
        Open questions with the family's habits.
    fixed : mapping of str
        What is known of the same.
    """
    found: list[Question] = []
    for key in _ORDER:
        if key not in assumed or (key == "shift" and "normalisation" in assumed):
            continue
        habit = assumed[key]
        if key == "normalisation":
            found.append(_scaling(assumed, fixed))
        else:
            values = {"slope": _SLOPES, "shift": _SHIFTS}.get(key) or CHOICES[key]
            answers = dict.fromkeys((habit, *(v for v in values if float_or(v) != float_or(habit))))
            found.append(Question(tuple(((key, value),) for value in answers)))
    return tuple(question for question in found if len(question.answers) > 1)


def float_or(text: str) -> float | str:
    """Read a number where there is one: 0.1 and 0.10000000000000001 are the same slope."""
    try:
        return float(text)
    except ValueError:
        return text


def _scaling(assumed: Mapping[str, str], fixed: Mapping[str, str]) -> Question:
    """Scalings and shifts as one question."""
    kinds = dict.fromkeys((assumed["normalisation"], *CHOICES["normalisation"]))
    if "shift" not in assumed:
        return Question(tuple((("normalisation", kind),) for kind in kinds))
    habit = (("normalisation", assumed["normalisation"]), ("shift", assumed["shift"]))
    others = (
        (("normalisation", kind), ("shift", shift))
        for shift in _SHIFTS
        for kind in kinds
        if shift == "0" or kind in _SHIFTED
    )
    return Question(tuple(dict.fromkeys((habit, *others))))


def roles_of(n_classes: int, assumed: Mapping[str, str], known: Mapping[str, str]) -> Roles:
    """List the sets of classes that can be the objects.

    Parameters
    ----------
    n_classes : int
        Outputs of the network.
    assumed, known : mapping of str
        Whether foreground and contour are open, and what they are where they are not.
    """
    count = max(n_classes, 2)
    foreground, contour = (
        None if key in assumed else known[key] for key in ("foreground", "contour")
    )
    if count > _MOST_FREE_CLASSES and foreground is None:
        return Roles((), count, foreground, contour)
    inside = _numbers(foreground or "none")
    apart = _numbers(contour or "none")
    sizes = range(1, count)
    sets = [frozenset(chosen) for size in sizes for chosen in combinations(range(count), size)]
    if foreground is not None:
        # At most one more, the contour.
        sets = [s for s in sets if inside <= s and len(s - inside) <= (contour is None)]
        sets = [frozenset(inside | apart)] if contour is not None else sets
    elif contour is not None:
        sets = [s for s in sets if apart < s]
    return Roles(tuple(sets), count, foreground, contour)


def combinations_of(questions: Sequence[Question]) -> Iterator[tuple[int, ...]]:
    """Yield every combination as the number of each question's answer; the habits come first."""
    return product(*(range(len(question.answers)) for question in questions))


def macs(config: UNetConfig, shapes: Iterable[Sequence[int]]) -> float:
    """Estimate the multiplications of a network on windows, halo included.

    The same on every machine, so that the same combinations are tried everywhere.
    """
    inputs, each, share = (config.in_channels, *config.widths), 0.0, 1.0
    for level, width in enumerate(config.widths):
        kernel = prod(config.kernels[level])
        each += share * (kernel * (inputs[level] + width) * width + 2 * width * _WRITE)
        if level < config.depth:
            up = config.up_widths[level]
            each += share * (config.widths[level + 1] * up + kernel * (2 * width + up) * width)
            each += share * (2 * width + up) * _WRITE
            share /= prod(config.pools[level])
    halo = config.geometry.halo
    read = sum(prod(n + 2 * h for n, h in zip(s, halo, strict=True)) for s in shapes)
    return each * read + _OVERHEAD
