"""The Train page: it listens to the viewer and its controls, and hands orders to its session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog

from napari_unet._napari.choosing import ModelChooser
from napari_unet._napari.loading import unreadable
from napari_unet._napari.runner import Failure, Stopped
from napari_unet._napari.settings import SavedTraining, Settings
from napari_unet._napari.train_controls import NOTHING, VOLUMES, TrainControls, models_folder
from napari_unet._napari.train_news import Done, TrainUpdate
from napari_unet._napari.train_order import Order, TrainChoices, forget, interrupted, recall
from napari_unet._napari.train_pairs import collect
from napari_unet._napari.train_picking import PairPicker
from napari_unet._napari.train_results import verdict
from napari_unet._napari.train_saved import file_name
from napari_unet._napari.train_session import TrainSession
from napari_unet.checkpoint import save_model
from napari_unet.errors import ValidUNetError
from napari_unet.paths import user_path

if TYPE_CHECKING:
    import napari.viewer

__all__ = ["TrainPage"]

_SEGMENTING = (
    "A segmentation is running: wait for its end, or cancel it on the Segment page, then click "
    "Train."
)
_OPENING = "The model is still being opened; click Train once it is there."
_NO_MODEL = "There is no model: open one on the Segment page, or start from nothing."
_NOT_BEGUN = "Stopped before the first step: nothing was learned, and the model is as it was."


class TrainPage(QObject):
    """What the dock knows of its second page.

    Parameters
    ----------
    viewer : napari.viewer.Viewer
        Whose layers are learned from.
    settings : Settings
        Remember minutes, held-out part and folder.
    models : ModelChooser
        The model of the Segment page.
    busy : callable
        Whether the Segment page is at work.
    began : callable
        Called with True when a training begins, and with False when it has ended.
    use : callable
        Called with the path of a new model that a person wants to use.
    parent : QObject
        Of this object.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        settings: Settings,
        models: ModelChooser,
        busy: Callable[[], bool],
        began: Callable[[bool], None],
        use: Callable[[Path], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._settings = settings
        self._models, self._busy, self._began, self._use = models, busy, began, use
        self.failed = False
        self.done: Done | None = None
        self._named = False
        self.controls = TrainControls()
        self.session = TrainSession(viewer, self._show, self._on_ended, self)
        self.on_preferences()
        self.picker = PairPicker(
            viewer, self.controls, self._ndim, self._suggest_name, self.say, self.fail, self
        )
        self._connect()
        self.controls.show_answer("")
        self.controls.show_running(False, curves=False)
        self.on_model()
        self._look_for_interrupted()

    def _connect(self) -> None:
        controls = self.controls
        controls.start.changed.connect(self._on_start)
        controls.button.clicked.connect(self.train)
        controls.pause.clicked.connect(self.pause)
        controls.stop.clicked.connect(self.stop)
        controls.resume.clicked.connect(self.resume)
        controls.discard.clicked.connect(self.discard)
        controls.name.textEdited.connect(self._on_named)
        controls.folder.editingFinished.connect(self._on_folder)
        controls.minutes.changed.connect(self._on_choice)
        controls.held_out.changed.connect(self._on_choice)
        controls.choose_folder.clicked.connect(self._choose_folder)
        controls.results.use.clicked.connect(self.use)
        controls.results.report.clicked.connect(self.report)

    @property
    def running(self) -> bool:
        """Whether a training has begun and not ended."""
        return self.session.running

    # --- what a person chooses -----------------------------------------------------------------

    def on_model(self) -> None:
        """Another model is chosen on the Segment page, or begins to be opened."""
        opened = self._models.opened
        name = "the model" if opened is None else opened.card.name
        controls = self.controls
        value = controls.start.value or "model"
        controls.offer(
            controls.start,
            [(name, "model"), ("nothing (2-D)", NOTHING), ("nothing (3-D)", VOLUMES)],
            value,
        )
        self._on_start()

    def _on_start(self, *_: object) -> None:
        self.controls.show_kind(self.controls.anew)
        self._suggest_name()

    def _ndim(self) -> int:
        """Spatial axes of the network."""
        opened = self._models.opened
        if self.controls.anew or opened is None:
            return self._choices().ndim
        return int(opened.card.config.ndim)

    def _choices(self) -> TrainChoices:
        return self.controls.choices()

    def _on_named(self, text: str) -> None:
        self._named = bool(text.strip())

    def on_preferences(self) -> None:
        """Show what was saved."""
        saved, controls = self._settings.training, self.controls
        controls.minutes.value = saved.minutes
        controls.held_out.value = saved.held_out
        controls.folder.setText(saved.folder or str(models_folder()))

    def _on_choice(self, *_: object) -> None:
        folder = self.controls.folder.text().strip()
        usual = folder in ("", str(models_folder()))
        minutes, held_out = float(self.controls.minutes.value), float(self.controls.held_out.value)
        self._settings.save(SavedTraining(minutes, held_out, "" if usual else folder))

    def _choose_folder(self) -> None:
        name = QFileDialog.getExistingDirectory(
            self.controls, "Where new models go", self.controls.folder.text()
        )
        if name:
            self.controls.folder.setText(name)
            self._on_folder()

    def _on_folder(self) -> None:
        self._on_choice()
        self._look_for_interrupted()

    def _folder(self) -> Path:
        return user_path(self.controls.folder.text().strip() or ".")

    def _suggest_name(self, *_: object) -> None:
        """Name the new model after the old one and the image, unless a person has named it."""
        if self._named:
            return
        image, opened = self.controls.image.value, self._models.opened
        new = self.controls.anew or opened is None
        parts = ["unet" if new or opened is None else opened.card.name]
        if image is not None:
            parts.append(image.name)
        stem = file_name("-".join(parts)).removesuffix(".tif")
        number, name = 1, stem
        while any(path.exists() for path in self._paths(name)):
            number, name = number + 1, f"{stem}-{number + 1}"
        self.controls.name.setText(name)

    def _paths(self, name: str) -> tuple[Path, Path]:
        """The model of a name, and the state of its training."""
        folder = self._folder()
        return folder / f"{name}.safetensors", folder / f"{name}.training"

    # --- running -------------------------------------------------------------------------------

    def train(self) -> None:
        """Train on what is chosen; a failure is said on the page."""
        if self.running:
            return
        if self._busy() or self._models.busy:
            self.say(_OPENING if self._models.busy else _SEGMENTING)
            return
        new = self.controls.anew
        opened = self._models.opened
        if opened is None and not new:
            self.fail(_NO_MODEL)
            return
        try:
            order = self._order(None if new or opened is None else opened.source)
        except ValidUNetError as error:
            self.fail(str(error))
            return
        except MemoryError:
            self.fail("There is no memory for copies of the images; train on fewer of them.")
            return
        except (OSError, RuntimeError) as error:
            self.fail(unreadable(error))
            return
        if order is not None:
            self._start(order)

    def _order(self, start: Any) -> Order | None:
        """Copy what is chosen; None if that is not enough, which is said."""
        name = file_name(self.controls.name.text())
        out, state = self._paths(name)
        if out.exists() or state.exists():
            what = "is there already" if out.exists() else "was interrupted in its training"
            self.fail(f"{name} {what}: give the new model another name under Advanced.")
            return None
        chosen = self.picker.chosen()
        if isinstance(chosen, str):
            self.fail(chosen)
            return None
        layers, files = chosen
        ndim = self._ndim()
        collected = tuple(part for one in layers for part in collect(one, ndim))
        choices = self._choices()
        if self.controls.anew and self.controls.kind.value == "classes":
            choices = self.picker.with_classes(choices, collected)
        return Order(start, collected, tuple(files), choices, out)

    def _start(self, order: Order) -> None:
        self.say("")
        self.done = None
        self.controls.results.hide()
        self.controls.plot.clear()
        self.controls.show_paused(False)
        self.controls.stop.setEnabled(True)
        self.controls.pause.setEnabled(True)
        self.controls.show_running(True, curves=True)
        self.controls.reveal(self.controls.running_buttons)
        self._began(True)
        self.session.start(order)

    def pause(self) -> None:
        """Hold the training up, or let it go on."""
        self.session.pause()
        self.controls.show_paused(self.session.paused)
        if self.session.paused:
            self.controls.words.setText("pausing after this step")

    def stop(self) -> None:
        """End it, and keep the best network."""
        if self.running:
            self.session.stop()
            self.controls.stop.setEnabled(False)
            self.controls.pause.setEnabled(False)
            self.controls.show_progress(0, 0, "stopping; keeping the best network so far")

    def resume(self) -> None:
        """Go on with the training that was interrupted last."""
        found = interrupted(self._folder())
        if self.running or not found:
            return
        if self._busy():
            self.say(_SEGMENTING.replace("Train.", "Resume."))
            return
        try:
            order = recall(found[0].out)
        except ValidUNetError as error:
            self.fail(str(error))
            return
        self._start(order)

    def discard(self) -> None:
        """Forget the training that was interrupted last."""
        found = interrupted(self._folder())
        if found and not self.running:
            forget(found[0].out)
            self._look_for_interrupted()

    def _look_for_interrupted(self) -> None:
        found = interrupted(self._folder())
        words = ""
        if found:
            words = f"The training of {found[0].out.stem} was interrupted: it can go on."
        self.controls.show_notice(words, resume=bool(found))
        self._suggest_name()

    def _show(self, update: TrainUpdate) -> None:
        controls = self.controls
        controls.plot.add(update.loss, update.scores, update.measure, update.total)
        if not self.session.stopping:
            controls.show_progress(update.step, update.total, update.words)
        if update.notes:
            self.say(" ".join(update.notes))

    def _on_ended(self, outcome: Done | Stopped | Failure) -> None:
        done = outcome if isinstance(outcome, Done) else None
        self.done = done
        self.controls.show_running(False, curves=bool(self.controls.plot.loss))
        self._named = False
        self._look_for_interrupted()
        self._began(False)
        if done is not None:
            curves = done.trained.curves
            if done.trained.after is not None:
                main = done.trained.after.main
                scores = [(step, found[main]) for step, found in curves.scores]
                self.controls.plot.show_all(curves.loss, scores)
            self.controls.results.show_done(done)
            self.say(verdict(done))
        elif isinstance(outcome, Failure):
            self.fail(outcome.message)
        else:
            self.say(_NOT_BEGUN)
        self.controls.reveal(self.controls.answer if done is None else self.controls.results)

    # --- afterwards ----------------------------------------------------------------------------

    def use(self) -> None:
        """Choose the new model for the Segment page; it is written first if it is not yet."""
        done = self.done
        if done is None or self.running:
            return
        if self._busy():
            self.say(_SEGMENTING.replace("Train.", "Use the new model."))
            return
        out = done.order.out
        try:
            if not done.saved:
                out.parent.mkdir(parents=True, exist_ok=True)
                save_model(out, done.trained.network, done.card)
        except (ValidUNetError, OSError) as error:
            self.fail(str(error))
            return
        forget(out)
        self._look_for_interrupted()
        self._use(out)

    def report(self) -> None:
        """Write the report beside the model, and open it."""
        done = self.done
        if done is None:
            return
        from napari_unet.training.report import write_report

        path = done.order.out.with_suffix(".html")
        notes = (*done.plan.notes, verdict(done))
        try:
            write_report(path, done.card, done.trained, done.plan.held, notes)
        except ValidUNetError as error:
            self.fail(str(error))
            return
        self.say(f"{verdict(done)} Report: {path}")
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(path)))

    def say(self, words: str) -> None:
        """Say something that is no failure."""
        self.failed = False
        self.controls.show_answer(words)

    def fail(self, sentence: str) -> None:
        """Say what is wrong on the page and in a notification."""
        from napari.utils.notifications import show_error

        self.failed = True
        self.controls.show_answer(sentence, failed=True)
        show_error(sentence)

    def close(self) -> None:
        """End the training and hear nothing any more; its state stays on the disk."""
        self.session.close()
        self.picker.close()
