"""Run the combinations that matter and let the annotation decide.

Where all combinations are affordable, all are run on all patches. Else a beam search on a small
patch answers one question after the other, the most harmful first, and keeps the best; those that
are left, and all that differ from the winner in one answer, are run on the large patches.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.axes import resolve_axes
from napari_unet.checkpoint import find_checkpoint, is_native
from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.importers import open_reading
from napari_unet.importers.detective import Finding, examine
from napari_unet.importers.origin import check_assumptions
from napari_unet.probe.evidence import Blocks, contrast
from napari_unet.probe.outcome import Probe, ProbeProgress
from napari_unet.probe.patches import (
    Patch,
    are_instances,
    check_labels,
    choose_patches,
    object_size,
)
from napari_unet.probe.questions import Question, combinations_of, macs, questions_of, roles_of
from napari_unet.probe.runner import Errors, Runner
from napari_unet.probe.verdict import Row, judge
from napari_unet.resample import Grid
from napari_unet.steps import walk

__all__ = ["probe", "probe_steps"]

ShouldStop = Callable[[], bool] | None
Combination = tuple[int, ...]

# Multiplications for the search and for the check: about 20 s each on two cores.
_BUDGET = 4e12
# Patches to look at, the first that is affordable: largest extent in pixels, and how many.
_PATCHES = {2: ((512, 4), (512, 2), (384, 1), (256, 1)), 3: ((96, 4), (96, 2), (64, 1), (48, 1))}
_SMALL = {2: 128, 3: 32}
_LEAST = {2: 160, 3: 48}
_SURVIVORS = 6
_ROUNDS = 3
# A contour is by so much more probable at the rims of objects than in their cores.
_CONTOUR = 0.1


def probe_steps(
    path: str | os.PathLike[str],
    image: Any,
    labels: Any,
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    assume: Mapping[str, object] | None = None,
    should_stop: ShouldStop = None,
) -> Generator[ProbeProgress, None, Probe]:
    """Find out step by step what a checkpoint's file does not say.

    Every combination of answers to the open questions is another network; it is run on a part of
    the picture and scored against the annotation (see `Candidate.score`). The best wins where it
    is clearly better than all that answer differently, and finds the objects at all; else nothing
    is chosen. PyTorch is imported when the first step is asked for, not before.

    Parameters
    ----------
    path : str or path
        A checkpoint of other software.
    image : array-like of shape (T)(Z)YX(C)
        A picture such as the network was trained on.
    labels : array-like of integers, of the image's shape without channels
        What is in it: 0 is background, above 0 are objects (ids, or classes), below 0 is unknown
        and left out.
    axes : str, optional
        One letter per axis of the image, in the order of ``TZYXC``; guessed if left out.
    spacing : sequence of float, optional
        Micrometres per pixel along the network's spatial axes.
    assume : mapping, optional
        What the person knows already; it is kept.
    should_stop : callable, optional
        Asked before every layer of the network.

    Yields
    ------
    ProbeProgress

    Returns
    -------
    Probe

    Raises
    ------
    CheckpointError, ImageError, OptionError
        If the file, the picture or an assumption does not work.
    Cancelled
        If `should_stop` said yes.
    """
    started = time.perf_counter()
    yield ProbeProgress(0.0, "reading the checkpoint", 0.0)
    file = find_checkpoint(path)
    if is_native(file):
        raise OptionError(f"{file.name} says all about its network; there is nothing to probe.")
    reading, _ = open_reading(file)
    given = check_assumptions(assume or {})
    try:
        finding = examine(reading, given)
    except CheckpointError as error:
        raise CheckpointError(f"{file.name}: {error}") from error
    assumed = finding.origin.assumed
    if not assumed:
        raise OptionError(f"{file.name} says all about its network; there is nothing to probe.")
    data = image if hasattr(image, "shape") and hasattr(image, "dtype") else np.asarray(image)
    config = finding.config
    named = resolve_axes(data.shape, data.dtype, axes, config.ndim, config.in_channels)
    if spacing is not None and len(spacing) != config.ndim:
        raise OptionError(f"spacing needs {config.ndim} lengths for this network.")
    annotated = check_labels(labels, named)
    known = {**finding.origin.read, **finding.origin.inferred, **given}
    search = _Search(
        runner=Runner(
            reading,
            data,
            named,
            Grid.fit(named.spatial_shape, spacing, reading.spacing),
            roles_of(config.n_classes, assumed, known),
            should_stop,
        ),
        questions=questions_of(assumed, known),
        given=given,
        finding=finding,
        labels=annotated,
        started=started,
    )
    return (yield from search.steps())


def probe(
    path: str | os.PathLike[str],
    image: Any,
    labels: Any,
    *,
    axes: str | None = None,
    spacing: Sequence[float] | None = None,
    assume: Mapping[str, object] | None = None,
    should_stop: ShouldStop = None,
) -> Probe:
    """Find out what a checkpoint's file does not say; `probe_steps` in one call."""
    return walk(
        probe_steps(
            path, image, labels, axes=axes, spacing=spacing, assume=assume, should_stop=should_stop
        )
    )


@dataclass
class _Search:
    """One probe while it runs."""

    runner: Runner
    questions: tuple[Question, ...]
    given: Mapping[str, str]
    finding: Finding
    labels: NDArray[Any]
    started: float
    fraction: float = 0.02
    impossible: set[Combination] = field(default_factory=set)

    def steps(self) -> Generator[ProbeProgress, None, Probe]:
        """Choose what to run, run it, compare."""
        every = list(combinations_of(self.questions))
        single = sum(len(question.answers) - 1 for question in self.questions) + 1
        patches, all_of_them = self._plan(len(every), single + _SURVIVORS)
        scored: dict[Combination, Errors] = {}
        if all_of_them:
            yield from self._run(every, patches, scored, "comparing all combinations", 0.97)
        else:
            small = self._patches(_SMALL[self.config.ndim], 1)
            tried: dict[Combination, Errors] = {}
            yield from self._beam(small, tried)
            last = self._ranked(tried, Blocks.of(small))
            yield from self._check(last, patches, scored)
        return self._verdict(patches, scored)

    @property
    def config(self) -> UNetConfig:
        """Of the family's habits; others differ in what does not change its size."""
        return self.finding.config

    def _plan(self, every: int, few: int) -> tuple[tuple[Patch, ...], bool]:
        """Choose patches, and say whether all combinations can be run on them."""
        patches: tuple[Patch, ...] = ()
        for extent, most in _PATCHES[self.config.ndim]:
            patches = self._patches(extent, most)
            cost = macs(self.config, [patch.window.shape for patch in patches])
            if every * cost <= _BUDGET:
                return patches, True
            if few * cost <= _BUDGET:
                break
        return patches, False

    def _patches(self, largest: int, most: int) -> tuple[Patch, ...]:
        """Windows of about six blocks, each a quarter wider than an object."""
        runner, ndim = self.runner, self.config.ndim
        frames = list(np.ndindex(runner.axes.labels_shape[: runner.axes.lead]))
        fullest = max(frames, key=lambda i: np.count_nonzero(self.labels[i] > 0))
        size = object_size(self.labels[fullest])
        ratio = [m / n for n, m in zip(runner.grid.image, runner.grid.network, strict=True)]
        block = [max(8, ceil(1.25 * size * r)) for r in ratio]
        least = min(_LEAST[ndim], largest)
        return choose_patches(
            self.labels,
            runner.axes,
            runner.grid,
            self.config.geometry.stride,
            extent=[min(max(6 * b, least), largest) for b in block],
            most=most,
            block=block,
        )

    def _assume(self, combination: Combination) -> dict[str, str]:
        pairs = zip(self.questions, combination, strict=True)
        return {key: value for q, number in pairs for key, value in q.answers[number]}

    def _run(
        self,
        wanted: Iterable[Combination],
        patches: Sequence[Patch],
        scored: dict[Combination, Errors],
        text: str,
        until: float,
    ) -> Generator[ProbeProgress, None, None]:
        """Score combinations; those that share a network follow each other."""
        new = dict.fromkeys(c for c in wanted if c not in scored and c not in self.impossible)
        scaling = [n for n, q in enumerate(self.questions) if "normalisation" in q.keys]
        # The answers about scaling come last in the sort: they leave the network as it is.
        queue = sorted(new, key=lambda c: ([a for n, a in enumerate(c) if n not in scaling], c))
        start = self.fraction
        for done, combination in enumerate(queue):
            assume = {**self.given, **self._assume(combination)}
            try:
                scored[combination] = self.runner.errors(assume, patches)
            except (CheckpointError, OptionError):
                # Two answers may exclude each other; the habits alone have been seen to work.
                if not any(combination):
                    raise
                self.impossible.add(combination)
            self.fraction = start + (until - start) * (done + 1) / len(queue)
            yield ProbeProgress(self.fraction, text, time.perf_counter() - self.started)

    def _ranked(self, scored: Mapping[Combination, Errors], blocks: Blocks) -> list[Combination]:
        """Sort combinations by the score of their best set of classes."""
        best = {c: max(blocks.score(e[0]) for e in errors.values()) for c, errors in scored.items()}
        return sorted(best, key=lambda c: (-best[c], c))

    def _beam(
        self, patches: Sequence[Patch], tried: dict[Combination, Errors]
    ) -> Generator[ProbeProgress, None, None]:
        """Answer question by question, keeping as many combinations as are affordable."""
        lengths = [len(question.answers) for question in self.questions]
        cost = macs(self.config, [patch.window.shape for patch in patches])
        width = 2
        while _beam_runs(lengths, 2 * width) * cost <= _BUDGET and width < prod(lengths):
            width *= 2
        blocks, beam = Blocks.of(patches), [(0,) * len(lengths)]
        for number, length in enumerate(lengths):
            wider = [(*c[:number], k, *c[number + 1 :]) for c in beam for k in range(length)]
            until = 0.02 + 0.48 * (number + 1) / len(lengths)
            about = " and ".join(self.questions[number].keys)
            yield from self._run(wider, patches, tried, f"trying {about}", until)
            kept = {c: tried[c] for c in wider if c in tried}
            beam = self._ranked(kept, blocks)[:width]

    def _check(
        self,
        ranked: Sequence[Combination],
        patches: Sequence[Patch],
        scored: dict[Combination, Errors],
    ) -> Generator[ProbeProgress, None, None]:
        """Run the best, and every combination one answer away from the winner, on all patches."""
        blocks = Blocks.of(patches)
        yield from self._run(ranked[:_SURVIVORS], patches, scored, "comparing the best", 0.65)
        for number in range(_ROUNDS):
            winner = self._ranked(scored, blocks)[0]
            near = [
                (*winner[:n], k, *winner[n + 1 :])
                for n, question in enumerate(self.questions)
                for k in range(len(question.answers))
            ]
            if all(c in scored or c in self.impossible for c in near):
                break
            until = 0.97 - 0.3 / 4 ** (number + 1)
            yield from self._run(near, patches, scored, "checking each answer", until)

    def _verdict(self, patches: Sequence[Patch], scored: Mapping[Combination, Errors]) -> Probe:
        """Say what clearly wins."""
        blocks, roles = Blocks.of(patches), self.runner.roles
        winner = self._ranked(scored, blocks)[0]
        union = max(scored[winner], key=lambda u: blocks.score(scored[winner][u][0]))
        contour = self._contour(winner, union, patches)
        rows = [
            Row({**self._assume(c), **roles.answers(u, contour if u == union else None)}, errors)
            for c in sorted(scored)
            for u, errors in scored[c].items()
        ]
        return judge(rows, blocks, self.finding.origin.assumed, self.given)

    def _contour(
        self, winner: Combination, union: frozenset[int], patches: Sequence[Patch]
    ) -> int | None:
        """Which of the two classes of objects keeps them apart, where that can be seen."""
        roles = self.runner.roles
        open_ = roles.contour is None and roles.foreground is None
        if not open_ or roles.classes != 3 or len(union) != 2 or not are_instances(self.labels):
            return None
        maps = self.runner.probabilities({**self.given, **self._assume(winner)}, patches)
        clear = [
            number
            for number in sorted(union)
            if contrast(patches, [found[number] for found in maps]) > _CONTOUR
        ]
        return clear[0] if len(clear) == 1 else None


def _beam_runs(lengths: Sequence[int], width: int) -> int:
    """Combinations that a beam search runs."""
    runs, beam = 1, 1
    for length in lengths:
        runs += beam * (length - 1)
        beam = min(width, beam * length)
    return runs
