"""Which combination clearly wins, if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_unet.probe.evidence import Blocks
from napari_unet.probe.outcome import Candidate, Probe

__all__ = ["Row", "judge"]

# A score that a network which was never trained for this picture does not reach; see docs/probe.md.
FLOOR = 0.6
# Pictures differ in more than what blocks of one picture tell: contrast, how generously somebody
# drew. Differences below `MARGIN` are none; from there to `LARGE` the ranking has to agree. A wrong
# scaling may make a network more, and rightly, sure of itself: by 0.11 on the pictures of
# docs/probe.md.
MARGIN = 0.03
LARGE = 0.15
_MOST_SHOWN = 100


@dataclass(frozen=True, eq=False)
class Row:
    """One combination that was run on all patches.

    Parameters
    ----------
    assume : mapping of str to str
        Its answers, those about classes included.
    errors : ndarray of shape (2, 2, blocks)
        What `errors_of` gave.
    """

    assume: Mapping[str, str]
    errors: NDArray[np.float64]


def judge(
    rows: Sequence[Row], blocks: Blocks, habit: Mapping[str, str], given: Mapping[str, str]
) -> Probe:
    """Compare all with the best.

    Parameters
    ----------
    rows : sequence of Row
        The same keys in each.
    blocks : Blocks
        Of the patches.
    habit : mapping of str to str
        The family's answers.
    given : mapping of str to str
        What the person said; it is part of the answer.
    """
    scores = np.array([blocks.score(row.errors[0]) for row in rows])
    influences = [blocks.score_influence(row.errors[0]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-scores[i], _changes(rows[i], habit)))
    candidates = tuple(
        Candidate(
            dict(rows[i].assume),
            float(scores[i]),
            float(scores[i] - blocks.reach(influences[i])),
            float(scores[i] + blocks.reach(influences[i])),
        )
        for i in order[:_MOST_SHOWN]
    )
    top = order[0]

    equal = [i for i in order if not _clearly_worse(rows[i], rows[top], blocks)]
    values = {
        key: tuple(dict.fromkeys(rows[i].assume[key] for i in equal)) for key in rows[top].assume
    }
    opened = {key: found for key, found in values.items() if len(found) > 1}
    if not blocks.enough:
        return Probe(candidates, None, _TOO_FEW, _all_open(rows, order))
    if candidates[0].low < FLOOR:
        return Probe(candidates, None, _none_works(candidates[0]), _all_open(rows, order))
    chosen = min(equal, key=lambda i: (_changes(rows[i], habit), -scores[i]))
    decided = {key: found[0] for key, found in values.items() if len(found) == 1}
    settled = rows[chosen].assume
    moved = {key: settled[key] for key in opened if settled[key] != habit[key]}
    if moved and scores[top] - min(scores[i] for i in equal) >= MARGIN:
        return Probe(candidates, None, _undecided(candidates[0], opened), opened)
    if not decided and not moved:
        return Probe(candidates, None, _indifferent(candidates[0], opened), opened)
    best = {**given, **decided, **moved}
    clearly_behind = [i for i in order if i not in set(equal)]
    behind = float(scores[clearly_behind[0]]) if clearly_behind else None
    sentence = _found({**decided, **moved}, candidates[0], behind, opened, settled)
    return Probe(candidates, best, sentence, opened)


def _clearly_worse(row: Row, top: Row, blocks: Blocks) -> bool:
    """Whether one answer can be given up for another."""
    (best, first), (squared, wrong) = top.errors, row.errors
    ahead = blocks.score(best) - blocks.score(squared)
    moved = blocks.score_influence(best) - blocks.score_influence(squared)
    if ahead < MARGIN or ahead <= blocks.reach(moved):
        return False
    ranked = blocks.ranking(first) - blocks.ranking(wrong)
    moved = blocks.ranking_influence(first) - blocks.ranking_influence(wrong)
    return ahead >= LARGE or ranked > blocks.reach(moved)


def _changes(row: Row, habit: Mapping[str, str]) -> int:
    return sum(value != habit[key] for key, value in row.assume.items())


def _all_open(rows: Sequence[Row], order: Sequence[int]) -> dict[str, tuple[str, ...]]:
    return {
        key: tuple(dict.fromkeys(rows[i].assume[key] for i in order))
        for key in rows[order[0]].assume
    }


_TOO_FEW = (
    "Nothing is chosen: too few objects, or too little background, are annotated to tell merit "
    "from chance; annotate more of the picture."
)


def _score(candidate: Candidate) -> str:
    return f"score {candidate.score:.2f}, at least {candidate.low:.2f}"


def _none_works(top: Candidate) -> str:
    return (
        f"Nothing is chosen: no combination finds what is annotated (the best: {_score(top)}; "
        f"needed is {FLOOR}); take a picture like those the network was trained on."
    )


def _undecided(top: Candidate, opened: Mapping[str, Sequence[str]]) -> str:
    return (
        f"Nothing is chosen: {_listed(opened)} do equally well here ({_score(top)}); say which "
        "with an assumption, or annotate more."
    )


def _indifferent(top: Candidate, opened: Mapping[str, Sequence[str]]) -> str:
    return (
        f"Nothing has to be chosen: the habits do as well as any other answer here ({_score(top)}; "
        f"{_listed(opened)})."
    )


def _found(
    best: Mapping[str, str],
    top: Candidate,
    behind: float | None,
    opened: Mapping[str, Sequence[str]],
    chosen: Mapping[str, str],
) -> str:
    against = "" if behind is None else f", the next other answer has {behind:.2f}"
    answers = ", ".join(f"{key} {value}" for key, value in best.items())
    text = f"Found: {answers} ({_score(top)}{against})."
    if left := [f"{key} {chosen[key]}" for key in opened if key not in best]:
        text += f" No clear difference makes what is left as it was: {', '.join(left)}."
    return text


def _listed(opened: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{key} {' or '.join(values)}" for key, values in opened.items())
