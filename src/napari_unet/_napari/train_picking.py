"""Which pairs: the layers that are chosen now, and the list of those that were added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from qtpy.QtCore import QObject
from qtpy.QtWidgets import QFileDialog

from napari_unet._napari.images import ImageChooser
from napari_unet._napari.layers import describe
from napari_unet._napari.loading import in_one_line, unreadable
from napari_unet._napari.train_controls import EVERYTHING, VIEW, TrainControls
from napari_unet._napari.train_order import TrainChoices
from napari_unet._napari.train_pairs import (
    Collected,
    LayerPair,
    SavedPair,
    collect,
    count_objects,
    find_fit,
    fitting_labels,
)
from napari_unet._napari.train_region import inside_view
from napari_unet._napari.train_saved import find_saved, look_at, save_pairs
from napari_unet.errors import ImageError, ValidUNetError
from napari_unet.training.pairs import PairFiles, load_pair

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Labels

__all__ = ["PairPicker"]

_NO_IMAGE = (
    "There is no image to learn from: open one, label some of its objects in a Labels layer, then "
    "click Train."
)
_MOST_CLASSES = 32


class PairPicker(QObject):
    """Keeps the lists of images, labels and pairs in step with the viewer.

    Parameters
    ----------
    viewer : ViewerModel
        Whose layers are offered.
    controls : TrainControls
        Show them.
    ndim : callable
        Spatial axes of the network.
    changed : callable
        Called when another image is chosen.
    say, fail : callable
        Called with words, and with a sentence about what is wrong.
    parent : QObject
        Of this object.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        controls: TrainControls,
        ndim: Callable[[], int],
        changed: Callable[[], None],
        say: Callable[[str], None],
        fail: Callable[[str], None],
        parent: QObject,
    ) -> None:
        super().__init__(parent)
        self._viewer, self._controls, self._ndim = viewer, controls, ndim
        self._changed, self._say, self._fail = changed, say, fail
        self.pairs: list[LayerPair | SavedPair] = []
        self._picked = False
        self._turn = 0
        self._images = ImageChooser(viewer, controls.image, self.refresh)
        events = viewer.layers.events
        self._events = (events.inserted, events.removed, events.reordered, events.renamed)
        for event in self._events:
            event.connect(self.refresh)
        cast("Any", controls.labels.native).activated.connect(self._pick)
        controls.add.clicked.connect(self.add)
        controls.remove.clicked.connect(self.remove)
        controls.save.clicked.connect(self._on_save)
        controls.add_table.triggered.connect(self._on_table)
        controls.add_folder.triggered.connect(self._on_saved_folder)
        self._images.refresh()
        self._list()

    @property
    def image(self) -> Image | None:
        """The chosen image."""
        return self._images.layer

    def refresh(self, *_: object) -> None:
        """Offer the labels that lie on the image, and the shapes that are there."""
        from napari.layers import Shapes

        controls, image = self._controls, self.image
        controls.brief.setText("" if image is None else describe(image).brief())
        fitting = [] if image is None else fitting_labels(self._viewer, image)
        chosen = controls.labels.value
        if chosen not in fitting:
            self._picked = False
        if not self._picked:
            chosen = fitting[0] if fitting else None
        controls.offer(controls.labels, [(layer.name, layer) for layer in fitting], chosen)
        shapes = [layer for layer in reversed(self._viewer.layers) if isinstance(layer, Shapes)]
        choices: list[tuple[str, Any]] = [(EVERYTHING, EVERYTHING), (VIEW, VIEW)]
        choices += [(f"inside {layer.name}", layer) for layer in shapes]
        old = controls.reviewed.value
        value = old if old in (EVERYTHING, VIEW) or old in shapes else EVERYTHING
        controls.offer(controls.reviewed, choices, value)
        self._changed()

    def _pick(self, *_: object) -> None:
        self._picked = self._controls.labels.value is not None

    # --- pairs ---------------------------------------------------------------------------------

    def chosen(self) -> tuple[list[LayerPair], list[PairFiles]] | str:
        """Pairs to learn from: those on the list, or else what is chosen; or what is missing."""
        if not self.pairs:
            pair = self._current()
            return pair if isinstance(pair, str) else ([pair], [])
        layers = [pair for pair in self.pairs if isinstance(pair, LayerPair)]
        return layers, [pair.files for pair in self.pairs if isinstance(pair, SavedPair)]

    def _current(self) -> LayerPair | str:
        """The image and labels that are chosen, or a sentence about what is missing."""
        from napari.layers import Labels

        image, labels = self.image, cast("Labels | None", self._controls.labels.value)
        if image is None:
            return _NO_IMAGE
        if labels is None:
            if any(isinstance(layer, Labels) for layer in self._viewer.layers):
                return (
                    f"No Labels layer has the pixels of {image.name}: choose the image that was "
                    "labelled, or add a Labels layer while this one is selected."
                )
            return (
                f"There are no labels for {image.name}: add a Labels layer, or segment the image "
                "and correct the result, then click Train."
            )
        return LayerPair(image, labels, self._reviewed(image, labels))

    def _reviewed(self, image: Image, labels: Labels) -> Any:
        value = self._controls.reviewed.value
        if value != VIEW:
            return None if value == EVERYTHING else value
        shape = labels.data.shape
        fit = find_fit(image, shape)
        if fit is None:
            return None
        level = fit.info.level
        return inside_view(self._viewer, image, level, fit.kept, shape, self._ndim())

    def add(self) -> None:
        """Put the chosen image and labels on the list."""
        try:
            pair = self._current()
        except ImageError as error:
            pair = str(error)
        if isinstance(pair, str):
            self._fail(pair)
            return
        for number, old in enumerate(self.pairs):
            if isinstance(old, LayerPair) and (old.image, old.labels) == (pair.image, pair.labels):
                self.pairs[number] = pair
                break
        else:
            self.pairs.append(pair)
        self._say("")
        self._list()

    def remove(self) -> None:
        """Take the selected pairs off the list."""
        gone = {index.row() for index in self._controls.pairs.selectedIndexes()}
        self.pairs = [pair for number, pair in enumerate(self.pairs) if number not in gone]
        self._list()

    def _list(self) -> None:
        self._controls.show_pairs([_line(pair) for pair in self.pairs])

    def with_classes(self, choices: TrainChoices, pairs: tuple[Collected, ...]) -> TrainChoices:
        """Name the classes of a network from nothing after the numbers that labels have.

        Raises
        ------
        ImageError
            If there are none, or so many that they must be objects.
        """
        numbers = {int(n) for one in pairs for n in np.unique(one.pair.labels)} - {0}
        if not 0 < len(numbers) <= _MOST_CLASSES:
            raise ImageError(
                f"The labels have {len(numbers)} different numbers; classes are 1 to "
                f"{_MOST_CLASSES}. Say that labels are objects, or correct them."
            )
        names = ["background", *(f"class {n}={n}" for n in sorted(numbers))]
        return replace(choices, classes=",".join(names))

    # --- files ---------------------------------------------------------------------------------

    def _on_save(self) -> None:
        name = QFileDialog.getExistingDirectory(self._controls, "Save pairs in a folder")
        if name:
            self.save(Path(name))

    def save(self, folder: Path) -> None:
        """Write the pairs, or what is chosen, into a folder."""
        try:
            chosen = self.chosen()
            if isinstance(chosen, str):
                self._fail(chosen)
                return
            layers, files = chosen
            ndim = self._ndim()
            pairs = [part.pair for one in layers for part in collect(one, ndim)]
            pairs += [pair for one in files for pair in load_pair(one, ndim)]
            table = save_pairs(folder, pairs)
        except ValidUNetError as error:
            self._fail(str(error))
            return
        except (OSError, RuntimeError) as error:
            self._fail(unreadable(error))
            return
        self._say(f"{len(pairs)} pair{'s' * (len(pairs) != 1)} saved; {table} names them.")

    def _on_table(self) -> None:
        name, _ = QFileDialog.getOpenFileName(
            self._controls, "Add saved pairs", "", "Tables of pairs (*.csv)"
        )
        if name:
            self.add_files(Path(name))

    def _on_saved_folder(self) -> None:
        name = QFileDialog.getExistingDirectory(self._controls, "Add saved pairs of a folder")
        if name:
            self.add_files(Path(name))

    def add_files(self, place: Path) -> None:
        """Put saved pairs on the list; they are looked at in a thread."""
        from napari.qt.threading import create_worker

        self._turn += 1
        turn = self._turn
        self._say(f"Reading {place.name}…")

        def returned(found: list[SavedPair] | str) -> None:
            if turn != self._turn:
                return
            if isinstance(found, str):
                self._fail(found)
                return
            there = {pair.files for pair in self.pairs if isinstance(pair, SavedPair)}
            self.pairs += [pair for pair in found if pair.files not in there]
            self._say("")
            self._list()

        worker = create_worker(_read, place, _ignore_errors=True)
        worker.returned.connect(returned)
        worker.errored.connect(lambda error: returned(_unreadable(place, error)))
        worker.start()

    def close(self) -> None:
        """Hear nothing of the viewer any more."""
        self._turn += 1
        self._images.disconnect()
        for event in self._events:
            event.disconnect(self.refresh)


def _read(place: Path) -> list[SavedPair] | str:
    try:
        return look_at(find_saved(place))
    except ValidUNetError as error:
        return str(error)
    except (OSError, MemoryError) as error:
        return _unreadable(place, error)


def _unreadable(place: Path, error: BaseException) -> str:
    return f"{place.name} cannot be read ({in_one_line(error)}); check its files."


def _line(pair: LayerPair | SavedPair) -> str:
    """Name, size and objects of a pair."""
    if isinstance(pair, SavedPair):
        name, shape, objects = pair.files.image.name, pair.shape, pair.objects
        part = pair.files.reviewed is not None
    else:
        name, shape = f"{pair.image.name} + {pair.labels.name}", pair.labels.data.shape
        objects, part = count_objects(pair.labels.data), pair.reviewed is not None
    size = "x".join(map(str, shape))
    line = f"{name}: {size}, {objects:,} object{'s' * (objects != 1)}"
    return f"{line}, reviewed part" if part else line
