"""Opening checkpoints: native ones at once, others in a worker, for they need torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject

from napari_unet._napari.loading import in_one_line, link_torch, no_torch, uncollected
from napari_unet._napari.recent import Recent, RecentList
from napari_unet.checkpoint import (
    Card,
    Model,
    bundled_models,
    file_sha256,
    find_checkpoint,
    is_native,
    load_model,
    read_card,
)
from napari_unet.errors import ValidUNetError
from napari_unet.importers import DESCRIPTIONS, Origin

__all__ = ["Opened", "Opening", "changed_words", "import_model"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint that can be run.

    Parameters
    ----------
    key : str
        Name of a bundled model, or the absolute path.
    path : Path
        The file, or the folder of a package.
    card : Card
        What it is.
    stamp : tuple of int
        Time and size of the file when it was opened.
    model : Model, optional
        An imported network, in memory; a native one is loaded by the run.
    sha256 : str
        Of the file; empty until it is known.
    doubtful : frozenset of str
        Answers that a person gave for what was in the file before it changed.
    """

    key: str
    path: Path
    card: Card
    stamp: tuple[int, int]
    model: Model | None = None
    sha256: str = ""
    doubtful: frozenset[str] = frozenset()

    @property
    def origin(self) -> Origin | None:
        """How an imported network came to be known."""
        return None if self.model is None else self.model.origin

    @property
    def given(self) -> dict[str, str]:
        """What a person said that the file does not."""
        return {} if self.origin is None else dict(self.origin.given)

    @property
    def source(self) -> Path | Model:
        """What a run takes."""
        return self.path if self.model is None else self.model

    @property
    def is_stale(self) -> bool:
        """Whether the file is another one by now."""
        return self.path.exists() and _stamp(self.path) != self.stamp


class Opening(QObject):
    """Opens one checkpoint at a time; the last one asked for is the one that comes.

    Parameters
    ----------
    recent : RecentList
        What was said about files before.
    opened : callable
        Called with the checkpoint; at once where it is a native one.
    hashed : callable
        Called with the checkpoint again, once its hash is known.
    failed : callable
        Called with a sentence instead.
    parent : QObject
        Of this object.
    """

    def __init__(
        self,
        recent: RecentList,
        opened: Callable[[Opened], None],
        hashed: Callable[[Opened], None],
        failed: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._recent = recent
        self._opened, self._hashed, self._failed = opened, hashed, failed
        # What the answer of a worker has to carry to be heard.
        self._turn = 0
        self.busy = False

    def open(
        self,
        name: str,
        assume: Mapping[str, str] | None = None,
        doubtful: Iterable[str] = (),
    ) -> None:
        """Open a file, a package or a bundled model.

        Parameters
        ----------
        name : str
            Of a bundled model, or a path.
        assume : mapping, optional
            What a person says that the file does not; without it, what was said the last time.
        doubtful : iterable of str
            Keys of `assume` that were said of another content.
        """
        self.abandon()
        try:
            path = find_checkpoint(_package_of(name))
            native, stamp = is_native(path), _stamp(path)
            card = read_card(path) if native else None
        except ValidUNetError as error:
            self._failed(str(error))
            return
        except OSError as error:
            self._failed(f"{name} cannot be read ({in_one_line(error)}); check the file.")
            return
        bundled = name in bundled_models()
        key = name if bundled else str(path.resolve())
        if card is None:
            self.busy = True
            said = None if assume is None else (dict(assume), frozenset(doubtful))
            self._start(self._opened, _try_import, key, path, stamp, self._recent, said)
            return
        opened = Opened(key, path, card, stamp)
        self._opened(opened)
        if not bundled:
            self._start(self._hashed, _try_hash, opened)

    def abandon(self) -> None:
        """Hear nothing of what is being opened."""
        self._turn += 1
        self.busy = False

    def _start(self, done: Callable[[Opened], None], work: Callable[..., Any], *args: Any) -> None:
        from napari.qt.threading import create_worker

        turn = self._turn

        def returned(outcome: Opened | str) -> None:
            if turn == self._turn:
                self.busy = False
                if isinstance(outcome, str):
                    self._failed(outcome)
                else:
                    done(outcome)

        def errored(error: Exception) -> None:
            from napari.utils.notifications import notification_manager

            notification_manager.receive_error(type(error), error, error.__traceback__)
            returned(f"Something went wrong that should not ({in_one_line(error)}).")

        worker = create_worker(work, *args, _ignore_errors=True)
        worker.returned.connect(returned)
        worker.errored.connect(errored)
        worker.start()


def import_model(
    key: str,
    path: Path,
    recent: RecentList,
    said: tuple[Mapping[str, str], frozenset[str]] | None,
) -> tuple[Model, frozenset[str]]:
    """Load a file of another program with what a person says or said about it.

    Parameters
    ----------
    key : str
        Under which it was used.
    path : Path
        The file.
    recent : RecentList
        What was said about files before.
    said : (mapping, frozenset), optional
        What is said now, and which of it was said of another content.

    Returns
    -------
    model : Model
    doubtful : frozenset of str
        What was said before, of a file of this name with another content.
    """
    if said is not None:
        return load_model(path, assume=said[0]), said[1]
    last = recent.of(key) or Recent(key)
    model = _with_answers(path, last.assume)
    if last.sha256 == model.sha256:
        return model, frozenset()
    # The same content may have been used under another name.
    twin = recent.same_file(model.sha256)
    if twin is not None:
        if model.origin is not None and dict(twin.assume) != dict(model.origin.given):
            model = _with_answers(path, twin.assume)
        return model, frozenset()
    return model, frozenset(model.origin.given if model.origin is not None else ())


def changed_words(opened: Opened, last: Recent | None) -> str:
    """Say that a file is not the one that was used before, if it is not."""
    if last is None or not (last.sha256 and opened.sha256) or last.sha256 == opened.sha256:
        return ""
    words = (
        f"{opened.path.name} has changed since you last used it (was {last.sha256[:4]}…, now "
        f"{opened.sha256[:4]}…)."
    )
    if opened.doubtful:
        words += " Your answers for the earlier file are filled in below: check them."
    return words


def _try_import(
    key: str,
    path: Path,
    stamp: tuple[int, int],
    recent: RecentList,
    said: tuple[Mapping[str, str], frozenset[str]] | None,
) -> Opened | str:
    """Open a file of another program, or say in one sentence why not."""
    try:
        link_torch()
        with uncollected():
            import torch  # noqa: F401 (what follows would import it with the collector at work)

            import napari_unet.model  # noqa: F401
    except (ImportError, OSError) as error:
        return no_torch(error)
    try:
        model, doubtful = import_model(key, path, recent, said)
    except ValidUNetError as error:
        return str(error)
    except (MemoryError, OSError, RuntimeError) as error:
        logger.warning("%s was not opened.", path, exc_info=True)
        return f"{path.name} cannot be opened ({in_one_line(error)}); check the file."
    return Opened(key, path, model.card, stamp, model, model.sha256, doubtful)


def _try_hash(opened: Opened) -> Opened:
    try:
        return replace(opened, sha256=file_sha256(opened.path))
    except (ValidUNetError, OSError):
        # A run says what is wrong with the file; the hash is only for the list of recent ones.
        return opened


def _with_answers(path: Path, assume: Mapping[str, str]) -> Model:
    """Load with remembered answers, as far as the file still has these questions."""
    if assume:
        try:
            return load_model(path, assume=assume)
        except ValidUNetError:
            logger.info("%s no longer takes what was said about it.", path, exc_info=True)
    return load_model(path)


def _package_of(name: str) -> str:
    path = Path(name)
    return str(path.parent) if path.name in DESCRIPTIONS else name


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
