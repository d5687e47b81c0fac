"""The controls of the Segment page: they show and emit, and decide nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import pairwise, zip_longest
from typing import Any, cast

from magicgui.widgets import CheckBox, FloatSpinBox, ProgressBar, PushButton, RadioButtons
from qtpy.QtWidgets import QDoubleSpinBox, QLabel, QSizePolicy, QVBoxLayout, QWidget

from napari_unet._napari.opening import Opened
from napari_unet._napari.questions import Questions
from napari_unet._napari.region import REGIONS
from napari_unet._napari.request import Choices, Notice
from napari_unet._napari.settings import Saved
from napari_unet._napari.widgets import (
    combo_box,
    folding_button,
    form_in,
    mark,
    side_by_side,
    text_line,
    whole_number,
)
from napari_unet.options import DEVICES, PRECISIONS

__all__ = ["Controls"]

# Values of the number boxes that stand for "the model's own".
_MODEL_THRESHOLD, _MODEL_SIZE = 0.0, -1
_USUAL = Saved()


class Controls(QWidget):
    """Everything that a person chooses, the button, and the two lines that answer.

    Parameters
    ----------
    parent : QWidget, optional
        Of this widget.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._opening = False
        self._make_choosers()
        self._make_advanced()
        self._make_answers()
        self._arrange()
        self._chain_tabs()

    def _make_choosers(self) -> None:
        self.image = combo_box(
            [],
            "The image to segment. Follows the selected image layer until you choose one here. "
            "Default: the selected layer.",
        )
        self.brief = QLabel()
        self.brief.setSizePolicy(QSizePolicy.Policy.Maximum, QSizePolicy.Policy.Preferred)
        self.level = combo_box(
            [],
            "Resolution level of the multiscale image; the result has its pixels. "
            "Default: 0, the finest.",
        )
        self.model = combo_box(
            [],
            "The network. Those used last come first; a checkpoint file can also be dropped on "
            "this dock or on the window. Default: nuclei.",
        )
        self.open = PushButton(
            text="Open…",
            tooltip="Choose a checkpoint file of your own: .safetensors, PyTorch, Keras, Caffe, "
            "Freiburg or a bioimage.io package.",
        )
        self.passport = text_line()
        self.remark = text_line()
        self.warnings = text_line()
        self.questions = Questions()
        self.notices = [text_line() for _ in range(3)]
        self.output = RadioButtons(
            choices=["instances", "classes"],
            orientation="horizontal",
            tooltip="instances: every object has a number of its own. classes: one number per "
            "class. Default: instances.",
        )
        # The group box of the radio buttons: the form has the title, and needs no frame.
        cast("QWidget", self.output.native).setStyleSheet(
            "QGroupBox { border: none; margin: 0; padding: 0; }"
        )
        cast("Any", self.output.native).layout().setContentsMargins(0, 2, 0, 2)
        self.probabilities = CheckBox(
            text="keep probabilities",
            tooltip="Also add the probability (0 to 1) of each class as a hidden Image layer. "
            "Default: off.",
        )
        self.region = combo_box(
            list(REGIONS),
            "whole image: every plane and time point. current slice: the one on screen. visible "
            "region: what the camera shows of it. Default: whole image.",
        )

    def _make_means(self) -> None:
        self.device = combo_box(
            list(DEVICES),
            "Where the network runs. auto: the first GPU that PyTorch can use, else the CPU. "
            "Default: auto.",
        )
        self.precision = combo_box(
            list(PRECISIONS),
            "Numbers the network computes with. auto: half precision (bfloat16, float16) where it "
            "is faster here, else float32. tf32: float32 whose products are rounded, on NVIDIA "
            "GPUs. Default: auto.",
        )
        libraries = [("OpenVINO", "openvino"), ("ncnn", "ncnn")]
        self.engine = combo_box(
            [("automatic", "auto"), ("PyTorch", "torch")]
            + [(name, module) for name, module in libraries if find_spec(module)],
            "Who computes. automatic: on the CPU whoever is done first, PyTorch or, where they are "
            "installed, OpenVINO or ncnn; on a GPU PyTorch. Default: automatic.",
        )
        self.memory = FloatSpinBox(
            value=0,
            min=0,
            max=4096,
            step=0.5,
            tooltip="The most that a run may take, in GiB, of the GPU's memory or of RAM: tiles "
            "are chosen to fit. Less is slower; the result is the same. Default: automatic, a "
            "safe share of what is free.",
        )
        self.tile_size = whole_number(
            0,
            16384,
            64,
            "Largest input of the network per side, in pixels. Larger is faster and takes "
            "more memory; the result is the same. Default: automatic, what fits.",
        )
        for box in (self.memory, self.tile_size):
            cast("QDoubleSpinBox", box.native).setSpecialValueText("automatic")

    def _make_advanced(self) -> None:
        self._make_means()
        self.threshold = FloatSpinBox(
            value=_MODEL_THRESHOLD,
            min=_MODEL_THRESHOLD,
            max=0.99,
            step=0.05,
            tooltip="Probability (0 to 1) above which a pixel belongs to an object. Lower finds "
            "more. Default: the model's.",
        )
        self.min_size = whole_number(
            _MODEL_SIZE,
            1_000_000,
            5,
            "Objects of fewer pixels are dropped. 0 keeps all. Default: the model's.",
        )
        self.fill_holes = CheckBox(
            text="fill holes",
            tooltip="Close the holes inside objects (instances only). Default: on.",
        )
        self.rescale = CheckBox(
            text="match pixel size",
            tooltip="Bring an image whose pixel size (µm) is known to that of the training "
            "images; the result has the pixels of the image. Default: on.",
        )
        self.keep_tiles = CheckBox(
            text="keep tiles on cancel",
            tooltip="After Cancel, make a result of the tiles that were finished. Default: off.",
        )

    def _make_answers(self) -> None:
        self.button = PushButton(text="Segment")
        self.bar = ProgressBar(min=0, max=1, value=0)
        native = cast("Any", self.bar.native)
        native.setTextVisible(False)
        native.setMaximumHeight(8)
        native.setToolTip("Finished tiles.")
        self.bar_text = text_line()
        self.answer = text_line(selectable=True)

    def _arrange(self) -> None:
        self.form = QWidget()
        form = form_in(self.form)
        form.addRow("Image", side_by_side(self.image.native, self.brief))
        self.level_title = QLabel("Level")
        form.addRow(self.level_title, self.level.native)
        form.addRow("Model", side_by_side(self.model.native, self.open.native))
        lines = QWidget()
        column = QVBoxLayout(lines)
        column.setContentsMargins(0, 0, 0, 4)
        column.setSpacing(3)
        for line in (self.passport, self.remark, self.warnings, self.questions, *self.notices):
            column.addWidget(line)
        form.addRow(lines)
        form.addRow("Result", self.output.native)
        form.addRow(self.probabilities.native)
        form.addRow("Region", self.region.native)

        self.advanced = QWidget()
        deep = form_in(self.advanced)
        titles = {
            "Device": self.device,
            "Precision": self.precision,
            "Engine": self.engine,
            "Memory (GiB)": self.memory,
            "Tile size (px)": self.tile_size,
            "Threshold": self.threshold,
            "Min. size (px)": self.min_size,
        }
        ticks = (self.fill_holes, self.rescale, self.keep_tiles)
        for title, box in titles.items():
            deep.addRow(title, box.native)
        for tick in ticks:
            deep.addRow(tick.native)
        self._deep: list[QWidget] = [box.native for box in (*titles.values(), *ticks)]
        self.more = folding_button(
            self.advanced,
            lambda open_: "▾ Advanced" if open_ else "▸ Advanced",
            "Device, precision, memory, tiles, threshold and sizes.",
        )
        form.addRow(self.more)
        form.addRow(self.advanced)

        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.setSpacing(6)
        for widget in (
            self.form,
            self.button.native,
            self.bar.native,
            self.bar_text,
            self.answer,
        ):
            layout.addWidget(widget)
        layout.addStretch()

    def _chain_tabs(self) -> None:
        """Tab goes from top to bottom."""
        chain: list[QWidget] = [
            *(box.native for box in (self.image, self.level, self.model, self.open)),
            *self.questions.chain(),
            *cast("QWidget", self.output.native).findChildren(QWidget),
            *(box.native for box in (self.probabilities, self.region)),
            self.more,
            *self._deep,
            self.button.native,
        ]
        for before, after in pairwise(chain):
            QWidget.setTabOrder(before, after)

    def choices(self) -> Choices:
        """State of the controls."""
        threshold, min_size = self.threshold.value, self.min_size.value
        return Choices(
            output="classes" if self.output.value == "classes" else "instances",
            keep_probabilities=bool(self.probabilities.value),
            region=str(self.region.value),
            device=str(self.device.value),
            precision=str(self.precision.value),
            engine=str(self.engine.value),
            memory=float(self.memory.value),
            tile_size=int(self.tile_size.value),
            threshold=None if threshold == _MODEL_THRESHOLD else float(threshold),
            min_size=None if min_size == _MODEL_SIZE else int(min_size),
            fill_holes=bool(self.fill_holes.value),
            rescale=bool(self.rescale.value),
            keep_tiles=bool(self.keep_tiles.value),
        )

    def show_saved(self, saved: Saved) -> None:
        """Set the controls that survive a restart."""
        for name, box in self._kept().items():
            value = getattr(saved, name)
            # A library may have been uninstalled since.
            gone = box is self.engine and value not in self.engine.choices
            box.value = "auto" if gone else value

    def show_unusual(self, saved: Saved) -> None:
        """Unfold what decides how the next run goes, if it is not as usual."""
        deep = [name for name, box in self._kept().items() if box.native in self._deep]
        self.more.setChecked(any(getattr(saved, name) != getattr(_USUAL, name) for name in deep))

    def show_defaults(self, settings: Mapping[str, float]) -> None:
        """Return to the model's own threshold and size, and say what they are."""
        threshold, min_size = settings.get("threshold", 0.5), int(settings.get("min_size", 0))
        self.threshold.value, self.min_size.value = _MODEL_THRESHOLD, _MODEL_SIZE
        cast("QDoubleSpinBox", self.threshold.native).setSpecialValueText(f"{threshold:g} (model)")
        cast("QDoubleSpinBox", self.min_size.native).setSpecialValueText(f"{min_size} (model)")

    def _kept(self) -> dict[str, Any]:
        """Give the widgets that survive a restart, by their names in `Saved`."""
        return {
            "output": self.output,
            "keep_probabilities": self.probabilities,
            "device": self.device,
            "precision": self.precision,
            "engine": self.engine,
            "memory": self.memory,
            "tile_size": self.tile_size,
            "fill_holes": self.fill_holes,
            "rescale": self.rescale,
            "keep_tiles": self.keep_tiles,
        }

    def saved_boxes(self) -> tuple[Any, ...]:
        """Widgets whose change is stored, or changes what is said about the image."""
        return (*self._kept().values(), self.region)

    def saved(self, model: str) -> Saved:
        """State of the controls that survives a restart."""
        chosen = self.choices()
        return Saved(model, **{name: getattr(chosen, name) for name in self._kept()})

    def show_model(self, opened: Opened | None, tip: str, changed: str) -> None:
        """Say what the model is, what differs from its own program, and what is assumed of it."""
        self._opening = False
        line = "No model yet: open a checkpoint." if opened is None else opened.card.describe()
        origin = None if opened is None else opened.origin
        if origin is not None:
            line = f"{line}; {origin.format}, {origin.family}"
        self.passport.setText(line)
        self.passport.setToolTip(tip)
        warnings = () if origin is None else origin.warnings
        for text, words in ((self.remark, changed), (self.warnings, " ".join(warnings))):
            text.setText(words)
            text.setVisible(bool(words))
            mark(text, warning=True)
        self.questions.show_opened(opened)

    def show_opening(self, name: str) -> None:
        """Say that a model is being opened."""
        self._opening = True
        self.passport.setText(f"Opening {name}…")
        self.passport.setToolTip("Escape stops waiting for it.")
        for widget in (self.remark, self.warnings, self.questions, *self.notices):
            widget.hide()

    def show_brief(self, text: str) -> None:
        """Say what the image is, in short."""
        self.brief.setText(text)
        tip = "Shape of the image in pixels, and the type of a pixel"
        self.brief.setToolTip(f"{tip}: {text}." if text else f"{tip}.")

    def show_level(self, visible: bool) -> None:
        """Show the choice of a level, which multiscale images have."""
        self.level_title.setVisible(visible)
        cast("QWidget", self.level.native).setVisible(visible)

    def show_notices(self, notices: Iterable[Notice]) -> None:
        """Say how image and model fit."""
        # While another model is being opened, nobody knows how it fits.
        shown = [] if self._opening else list(notices)
        for line, notice in zip_longest(self.notices, shown[: len(self.notices)]):
            line.setVisible(notice is not None)
            if notice is not None:
                line.setText(notice.text)
                mark(line, warning=notice.kind != "note")

    def show_answer(self, text: str, *, failed: bool = False, tip: str = "") -> None:
        """Say what happened, or what went wrong; more of it in a tooltip."""
        self.answer.setText(text)
        self.answer.setToolTip(tip)
        self.answer.setVisible(bool(text))
        mark(self.answer, warning=failed)

    def show_running(self, running: bool) -> None:
        """Turn the button into Cancel and back, and disable what cannot change meanwhile."""
        self.form.setEnabled(not running)
        self.button.enabled = True
        self.button.text = "Cancel" if running else "Segment"
        self.button.tooltip = "Stop (Escape)." if running else "Run the model on the image (Enter)."
        self.bar.native.setVisible(running)
        self.bar_text.setVisible(running)

    def show_cancelling(self) -> None:
        """Offer to drop what is still being made of the finished tiles."""
        self.button.text = "Drop finished tiles"
        self.button.tooltip = "Do not keep the tiles that were finished (Escape)."

    def show_progress(self, done: int, total: int, text: str) -> None:
        """Move the bar; with ``total = 0`` it only shows that something is going on."""
        native = cast("Any", self.bar.native)
        native.setRange(0, total)
        native.setValue(done)
        self.bar_text.setText(text)
