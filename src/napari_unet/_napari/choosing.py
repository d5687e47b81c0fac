"""Which model: the last one used, until a person chooses or opens another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qtpy.QtCore import QObject

from napari_unet._napari.controls import Controls
from napari_unet._napari.models import offer, passport
from napari_unet._napari.opening import Opened, Opening, changed_words
from napari_unet._napari.recent import Recent
from napari_unet._napari.settings import Settings
from napari_unet.checkpoint import bundled_models

__all__ = ["ModelChooser"]


class ModelChooser(QObject):
    """Keeps the list of models, the passport and the questions in step with what is open.

    Parameters
    ----------
    controls : Controls
        Show it.
    settings : Settings
        Remember it.
    on_change : callable
        Called when another model is there, or begins to be opened.
    fail : callable
        Called with a sentence where one cannot be opened; the one before stays.
    parent : QObject
        Of this object.

    Attributes
    ----------
    opened : Opened, optional
        The chosen model.
    """

    def __init__(
        self,
        controls: Controls,
        settings: Settings,
        on_change: Callable[[], None],
        fail: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._controls, self._settings = controls, settings
        self._on_change, self._fail = on_change, fail
        self.opened: Opened | None = None
        # What a person says by now; the file may still be being read with it.
        self._said: tuple[dict[str, str], frozenset[str]] = ({}, frozenset())
        self._used = self._keep = False
        self._opening = Opening(
            settings.recent, self._on_opened, self._on_hashed, self._on_failed, self
        )
        controls.model.changed.connect(self._on_picked)
        controls.questions.answered.connect(self._on_answer)
        controls.questions.forgotten.connect(self._on_forgotten)

    @property
    def busy(self) -> bool:
        """Whether a model is being opened."""
        return self._opening.busy

    def open_last(self) -> None:
        """Open the model that was used last, or the one of the settings."""
        self._controls.show_model(None, "", "")
        last = next((entry.model for entry in self._settings.recent.entries), None)
        self._offer(last or self._settings.saved.model)
        self._on_picked()

    def open(self, name: str) -> None:
        """Open a file or a bundled model, and choose it."""
        self._opening.open(name)
        if self.busy:
            self._controls.show_opening(Path(name).name)
        self._tell()

    def say(
        self,
        given: dict[str, str],
        doubtful: frozenset[str] = frozenset(),
        *,
        keep: bool = False,
    ) -> None:
        """Read the file again with all that a person says about it.

        Parameters
        ----------
        given : dict
            Answers to questions that the file leaves open.
        doubtful : frozenset of str
            Which of them are not sure any more.
        keep : bool
            Whether it is remembered at once, and not only when the model is used.
        """
        if self.opened is not None:
            self._said, self._keep = (given, doubtful), keep
            self._controls.show_answer("")
            self._opening.open(self.opened.key, given, doubtful)
            self._tell()

    @property
    def known(self) -> dict[str, str]:
        """What a person is sure of."""
        given, doubtful = self._said
        return {key: value for key, value in given.items() if key not in doubtful}

    def give_up(self) -> None:
        """Stop waiting; the model that there was is still there."""
        self._opening.abandon()
        self._return()

    def close(self) -> None:
        """Hear nothing of what is still being opened."""
        self._opening.abandon()

    def remember(self) -> None:
        """Put the model first in the list of recent ones, as it is now: it is being used."""
        opened, recent = self.opened, self._settings.recent
        if opened is not None:
            self._used = True
            last = recent.of(opened.key)
            # Until the hash is known the file counts as the one it was.
            sha256 = opened.sha256 or (last.sha256 if last is not None else "")
            recent.put(Recent(opened.key, sha256, opened.given))

    def _offer(self, select: str) -> None:
        """List the models; `select` is chosen if it is there, else the first."""
        recent = [entry.model for entry in self._settings.recent.entries]
        if Path(select).exists():
            recent = [select, *(key for key in recent if key != select)]
        entries = offer(recent)
        box = self._controls.model
        with box.changed.blocked():
            box.choices = [(entry.label, entry.key) for entry in entries]
            if select in [entry.key for entry in entries]:
                box.value = select

    def _on_picked(self, *_: object) -> None:
        if (key := self._controls.model.value) is not None:
            self.open(str(key))

    def _on_opened(self, opened: Opened) -> None:
        other = self.opened is None or self.opened.key != opened.key
        self.opened, self._used = opened, False
        self._said = (opened.given, opened.doubtful)
        self._offer(opened.key)
        if other:
            self._controls.show_defaults(opened.card.settings)
        if self._keep:
            self.remember()
        self._keep = False
        self._show()

    def _on_hashed(self, opened: Opened) -> None:
        """Notice a native file that has changed; by now it may have been used."""
        self.opened = opened
        self._show()
        if self._used:
            self.remember()

    def _on_failed(self, sentence: str) -> None:
        self._return()
        self._fail(sentence)

    def _return(self) -> None:
        """Show the model that there was; the first time, one that is always there."""
        self._keep = False
        bundled = next(iter(bundled_models()), None)
        if self.opened is not None:
            self._said = (self.opened.given, self.opened.doubtful)
            self._offer(self.opened.key)
            self._show()
        elif bundled is not None:
            self._opening.open(bundled)

    def _show(self) -> None:
        if self.opened is not None:
            changed = changed_words(self.opened, self._settings.recent.of(self.opened.key))
            self._controls.show_model(self.opened, passport(self.opened.card), changed)
        self._tell()

    def _tell(self) -> None:
        self._controls.button.enabled = not self.busy
        self._on_change()

    def _on_answer(self, question: str, answer: str) -> None:
        given, doubtful = self._said
        self.say({**given, question: answer}, doubtful - {question})

    def _on_forgotten(self, question: str) -> None:
        given, doubtful = self._said
        others = {key: value for key, value in given.items() if key != question}
        self.say(others, doubtful - {question})
