"""The dock widget: it listens to the viewer and the controls, and hands requests to the session."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QKeySequence, QShortcut
from qtpy.QtWidgets import QFileDialog, QScrollArea, QTabWidget, QVBoxLayout, QWidget

from napari_unet._napari.choosing import ModelChooser
from napari_unet._napari.controls import Controls
from napari_unet._napari.dropping import WindowDrops, local_files
from napari_unet._napari.images import ImageChooser
from napari_unet._napari.layers import ImageInfo, Placement, describe, network_spacing, read
from napari_unet._napari.models import FILTER
from napari_unet._napari.opening import Opened
from napari_unet._napari.probing import Probing, ToProbe, labels_of_shape
from napari_unet._napari.region import look
from napari_unet._napari.request import Notice, Request, check, match, resolve
from napari_unet._napari.session import Session
from napari_unet._napari.settings import Settings
from napari_unet._napari.train_page import TrainPage
from napari_unet._napari.widgets import as_button, pressed_by_enter, warnings_in
from napari_unet.checkpoint import Card, find_checkpoint
from napari_unet.errors import ImageError, ValidUNetError

if TYPE_CHECKING:
    from pathlib import Path

    import napari.viewer
    from napari.layers import Image, Labels

    from napari_unet.probe import Probe

__all__ = ["UNetDock"]

_LEAST_WIDTH = 270  # px, of the page in a dock of 280
_NO_IMAGE = "There is no image: open one, or drag a file into the window, then click Segment."
_NO_MODEL = "There is no model: click Open… and choose a checkpoint file."
_OPENING = "The model is still being opened; click Segment once it is there."
_TRAINING = "A training is running: wait for its end, or stop it on the Train page; then try again."


class UNetDock(QWidget):
    """One dock for the whole loop: segment, train, segment better.

    Parameters
    ----------
    napari_viewer : napari.viewer.Viewer
        The viewer it belongs to.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.settings = Settings()
        self.failed = self._stale = False
        self._docked = False
        self._drops = WindowDrops(self.open_model, self)
        self.controls = Controls()
        self.session = Session(self.viewer, self.controls.show_progress, self._on_ended, self)
        self.probing = Probing(self.controls.show_progress, self._on_probed, self)
        self.models = ModelChooser(self.controls, self.settings, self._on_model, self.fail, self)
        self.images = ImageChooser(self.viewer, self.controls.image, self._on_image)
        self.training = TrainPage(
            self.viewer,
            self.settings,
            self.models,
            self._segmenting,
            self._on_training,
            self._use,
            self,
        )
        self._arrange()
        self._on_theme()
        saved = self.settings.saved
        self.controls.show_saved(saved)
        self.controls.show_unusual(saved)
        # Only now: what is shown is stored already.
        self._connect()
        self.controls.show_running(False)
        self.controls.show_answer("")
        self.models.open_last()
        self.images.refresh()

    @property
    def card(self) -> Card | None:
        """What the chosen model is."""
        return None if self.models.opened is None else self.models.opened.card

    def _arrange(self) -> None:
        # A page for each step of the loop; correcting comes between the two.
        self.pages = QTabWidget()
        self.pages.setDocumentMode(True)
        self.pages.addTab(_scrolled(self.controls), "Segment")
        self.pages.addTab(_scrolled(self.training.controls), "Train")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.pages)
        self.setMinimumWidth(_LEAST_WIDTH)
        self.setAcceptDrops(True)

    def _connect(self) -> None:
        controls, button = self.controls, as_button(self.controls.button)
        button.clicked.connect(self._on_button)
        pressed_by_enter(button)
        self._escape = QShortcut(QKeySequence(Qt.Key.Key_Escape), self)
        self._escape.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        self._escape.activated.connect(self.cancel)
        self._escape.setEnabled(False)
        as_button(controls.open).clicked.connect(self._on_open)
        controls.questions.probe.clicked.connect(self.probe)
        controls.level.changed.connect(self._show_fit)
        for box in controls.saved_boxes():
            box.changed.connect(self._on_choice)
        self.settings.connect(self._on_preferences)
        self.viewer.events.theme.connect(self._on_theme)

    @property
    def running(self) -> bool:
        """Whether a segmentation, a probe or a training is on."""
        return self._segmenting() or self.training.running

    def _segmenting(self) -> bool:
        return self.session.running or self.probing.running

    # --- what a person chooses -----------------------------------------------------------------

    def _on_open(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, "Open a checkpoint", "", FILTER)
        if name:
            self.open_model(name)

    def open_model(self, path: str) -> None:
        """Open a checkpoint and choose it, or say why not; what is no native one takes a while."""
        if self.running:
            self.controls.show_answer("Wait for the end of the run, or cancel it; then open again.")
        else:
            self.say("")
            self.models.open(path)

    def _on_model(self) -> None:
        self._escape.setEnabled(self.models.busy or self.running)
        self._on_choice()
        self.training.on_model()

    def _use(self, path: Path) -> None:
        """Choose a model that was trained here."""
        self.open_model(str(path))
        self.models.remember()
        self.pages.setCurrentIndex(0)

    def _on_training(self, begun: bool) -> None:
        self._escape.setEnabled(begun)
        self._catch_up()

    def _on_image(self) -> None:
        layer, box = self.images.layer, self.controls.level
        levels = () if layer is None else describe(layer).levels
        with box.changed.blocked():
            box.choices = [
                (f"{n}: {'x'.join(map(str, shape))}", n) for n, shape in enumerate(levels)
            ]
        self.controls.show_level(len(levels) > 1)
        self._show_fit()

    def _on_choice(self, *_: object) -> None:
        opened = self.models.opened
        key = self.settings.saved.model if opened is None else opened.key
        self.settings.save(self.controls.saved(key))
        self._show_fit()

    def _on_preferences(self, *_: object) -> None:
        """Show what the Preferences or another window have stored; not during a run."""
        self._stale = self.running
        if not self._stale:
            self.controls.show_saved(self.settings.saved)
            self.training.on_preferences()

    def _rest(self) -> None:
        """Nothing runs any more on this page."""
        self._escape.setEnabled(False)
        self.controls.show_running(False)
        self._catch_up()

    def _catch_up(self) -> None:
        """Show what was stored during a run, or the next choice would overwrite it."""
        if self._stale:
            self._on_preferences()

    def _on_theme(self, *_: object) -> None:
        from napari.utils.theme import get_theme

        for page in (self.controls, self.training.controls):
            page.setStyleSheet(warnings_in(get_theme(self.viewer.theme).warning.as_hex()))

    def _show_fit(self, *_: object) -> None:
        """Say in short what the image is, and how the model fits it."""
        layer = self.images.layer
        info = None if layer is None else describe(layer, self._level())
        self.controls.show_brief("" if info is None else info.brief())
        notices: tuple[Notice, ...] = ()
        if info is not None and self.card is not None:
            notices = check(info, self.card, self.controls.choices())
        self.controls.show_notices(notices)
        self._offer_labels(info)

    def _offer_labels(self, info: ImageInfo | None) -> None:
        """Offer what a model can be probed with."""
        layers: list[Labels] = []
        if info is not None and self.card is not None:
            with contextlib.suppress(ImageError):
                layers = labels_of_shape(self.viewer, match(info, self.card).labels_shape)
        self.controls.questions.show_labels([(layer.name, layer) for layer in layers])

    def _level(self) -> int:
        return int(self.controls.level.value or 0)

    # --- running -------------------------------------------------------------------------------

    def _on_button(self) -> None:
        if self._segmenting():
            self.cancel()
        else:
            self.segment()

    def segment(self) -> None:
        """Segment what is chosen; a failure is said in the dock."""
        if self._segmenting():
            return
        if self.training.running:
            self.say(_TRAINING)
            return
        layer, opened = self.images.layer, self.models.opened
        if self.models.busy:
            self.controls.show_answer(_OPENING)
            return
        if layer is None or opened is None:
            self.fail(_NO_IMAGE if layer is None else _NO_MODEL)
            return
        if opened.is_stale:
            self.open_model(opened.key)
            self.controls.show_answer(
                f"{opened.path.name} has changed since it was opened, and was read again: look at "
                "what it is now, then click Segment."
            )
            return
        self.say("")
        try:
            request = self._resolve(layer, opened)
            self.models.remember()
            self.controls.show_running(True)
            self._escape.setEnabled(True)
            self.session.start(request, layer)
        except ValidUNetError as error:
            self._on_ended(str(error), True)

    def probe(self) -> None:
        """Find out on the chosen image and labels what the model's file does not say."""
        layer, opened = self.images.layer, self.models.opened
        labels = self.controls.questions.labels.value
        if self.training.running:
            self.say(_TRAINING)
            return
        if self.running or self.models.busy or layer is None or opened is None or labels is None:
            return
        info, config = describe(layer, self._level()), opened.card.config
        self.say("")
        try:
            source = read(layer, info, config.ndim, config.in_channels)
        except ValidUNetError as error:
            self.fail(str(error))
            return
        self.controls.show_running(True)
        self._escape.setEnabled(True)
        spacing = network_spacing(info, source.kept, config.ndim)
        self.probing.start(
            ToProbe(opened.path, source.array, labels.data, source.axes, spacing, self.models.known)
        )

    def _on_probed(self, outcome: Probe | str | None) -> None:
        self._rest()
        if isinstance(outcome, str):
            self.fail(outcome)
        elif outcome is None:
            self.say("Cancelled; the answers are as they were.")
        else:
            if outcome.best is not None:
                self.models.say(outcome.best, keep=True)
            self.say(outcome.sentence)

    def cancel(self) -> None:
        """Stop the run; a second time, drop what was finished too."""
        if self.models.busy:
            self.models.give_up()
        elif self.training.running:
            self.training.stop()
        elif self.probing.running:
            self.probing.cancel()
        elif self.session.cancel():
            self.controls.show_cancelling()

    def say(self, words: str) -> None:
        """Say something that is no failure."""
        self.failed = False
        self.controls.show_answer(words)

    def fail(self, sentence: str) -> None:
        """Say what is wrong in the dock and in a notification."""
        from napari.utils.notifications import show_error

        self.failed = True
        self.controls.show_answer(sentence, failed=True)
        show_error(sentence)

    def _resolve(self, layer: Image, opened: Opened) -> Request:
        level, card = self._level(), opened.card
        info = describe(layer, level)
        find_checkpoint(opened.key)
        return resolve(
            self.controls.choices(),
            info,
            read(layer, info, card.config.ndim, card.config.in_channels),
            Placement.of(layer, level),
            look(self.viewer, layer, level),
            opened.source,
            card,
        )

    def _on_ended(self, words: str, failed: bool, tip: str = "") -> None:
        self._rest()
        if failed:
            self.fail(words)
        else:
            self.controls.show_answer(words, tip=tip)

    # --- what Qt tells --------------------------------------------------------------------------

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:
        """Accept files."""
        data = None if event is None else event.mimeData()
        if event is not None and data is not None and data.hasUrls():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent | None) -> None:
        """Open a checkpoint that was dropped."""
        if event is not None and (files := local_files(event)):
            event.acceptProposedAction()
            self.open_model(files[0])

    def changeEvent(self, event: QEvent | None) -> None:
        """Stop when the dock is closed: napari takes this widget out of it then."""
        super().changeEvent(event)
        if event is None or event.type() != QEvent.Type.ParentChange:
            return
        if self.parent() is not None:
            self._docked = True
            self._drops.listen(self)
        elif self._docked:
            self._docked = False
            self._let_go()

    def _let_go(self) -> None:
        self._drops.stop()
        self.models.close()
        self.probing.close()
        self.training.close()
        self.session.close()
        self.images.disconnect()
        self.settings.disconnect(self._on_preferences)
        self.viewer.events.theme.disconnect(self._on_theme)
        self.deleteLater()


def _scrolled(page: QWidget) -> QScrollArea:
    """A page that is as wide as the dock and may be longer."""
    scroll = QScrollArea()
    scroll.setWidget(page)
    scroll.setWidgetResizable(True)
    scroll.setFrameShape(QScrollArea.Shape.NoFrame)
    scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    return scroll
