"""What a probe tells: while it runs, and in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Candidate", "Probe", "ProbeProgress"]


@dataclass(frozen=True)
class ProbeProgress:
    """How far a probe is.

    Parameters
    ----------
    fraction : float
        From 0 to 1; it never falls.
    text : str
        What is going on, for people.
    seconds : float
        Since the start.
    """

    fraction: float
    text: str
    seconds: float


@dataclass(frozen=True)
class Candidate:
    """One combination of answers.

    Parameters
    ----------
    assume : mapping of str to str
        An answer to every question that the file leaves open, as `load_model` takes them.
    score : float
        1 where every pixel is sure and right, 0 where it is no better than a constant, below 0
        where it is worse: 1 - mean squared error of the foreground's probability / that of the
        part of the pixels that is foreground (Brier skill score).
    low, high : float
        Ends of its 99 % confidence interval.
    """

    assume: Mapping[str, str]
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """What was found out.

    Parameters
    ----------
    candidates : tuple of Candidate
        Those that were run on all the pixels looked at, the best first.
    best : dict of str to str, optional
        For `load_model(path, assume=best)`: what the person gave, and the answers that clearly
        won. Questions that make no clear difference are left out, which leaves them at the habit
        of the family. None if nothing won.
    sentence : str
        For people: what was found and how sure it is, or why nothing was chosen.
    open_questions : mapping of str to tuple of str
        Questions without a clear answer, with the answers that do equally well, the best first.
    """

    candidates: tuple[Candidate, ...]
    best: dict[str, str] | None
    sentence: str
    open_questions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
