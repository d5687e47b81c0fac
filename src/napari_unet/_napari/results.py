"""From a segmentation to what napari needs to make layers of it; no layer is touched here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet._napari.request import Request
from napari_unet.checkpoint import ClassInfo, Model
from napari_unet.durations import duration
from napari_unet.runs import bands

if TYPE_CHECKING:
    from napari_unet.segmentation import Segmentation

__all__ = ["METADATA_KEY", "LayerData", "class_look", "in_words", "layers_of"]

METADATA_KEY = "napari-valid-unet"

# Data, keyword arguments and type of a layer: napari's LayerDataTuple.
LayerData = tuple[NDArray[Any], dict[str, Any], str]


def layers_of(request: Request, segmentation: Segmentation) -> tuple[LayerData, ...]:
    """Layers of a result: the probabilities, if kept, and the labels on top of them."""
    report = {**segmentation.report.to_dict(), "image": request.image}
    if isinstance(request.model, Model) and request.model.origin is not None:
        report["origin"] = request.model.origin.to_dict()
    labels = _labels(request, segmentation.labels, report)
    if request.options.output == "classes":
        labels[1].update(class_look(request.card.classes))
    else:
        labels[1]["features"] = dict(segmentation.objects)
    maps: tuple[LayerData, ...] = ()
    if request.options.keep_probabilities and segmentation.probabilities is not None:
        pairs = zip(request.card.classes, segmentation.probabilities, strict=True)
        maps = tuple(_probability(request, info, values, report) for info, values in pairs)
    return (*maps, labels)


def class_look(classes: tuple[ClassInfo, ...]) -> dict[str, Any]:
    """Names and colours of classes, as arguments of a Labels layer; class 0 is transparent."""
    colors: dict[int | None, str] = {
        index: info.color for index, info in enumerate(classes) if index
    }
    # What a person paints with another number has to be seen.
    colors |= {0: "transparent", None: "white"}
    names = [info.name for info in classes]
    return {"colormap": colors, "features": {"index": list(range(len(names))), "class": names}}


def in_words(request: Request, segmentation: Segmentation) -> str:
    """Say what happened: ``214 objects in 5.1 s on the CPU (float32)``, and the last remark."""
    remark = segmentation.report.remarks[-1:]
    return ". ".join((_what_was_found(request, segmentation), *remark))


def _what_was_found(request: Request, segmentation: Segmentation) -> str:
    report = segmentation.report
    place = "the CPU" if report.device.startswith("cpu") else f"the GPU ({report.device})"
    tail = f"in {duration(report.seconds, tenths=True)} on {place} ({report.precision})"
    if not report.complete:
        tail = f"in the {report.tiles} finished tile{'s' * (report.tiles != 1)}, kept on cancel"
    maps = ""
    if request.options.keep_probabilities:
        maps = f"; probabilities are in {len(request.card.classes)} hidden layers"
    if request.options.output == "classes":
        return f"{_shares(request, segmentation.labels)} {tail}{maps}"
    if report.objects == 0:
        hint = "try a lower threshold under Advanced, or another model"
        return f"No objects found {tail}; {hint}{maps}"
    return f"{report.objects:,} object{'s' * (report.objects != 1)} {tail}{maps}"


def _shares(request: Request, labels: NDArray[np.int32]) -> str:
    classes = request.card.classes
    # numpy counts a copy of eight bytes a pixel.
    counts = np.zeros(len(classes), np.int64)
    for rows in bands(labels.shape):
        counts += np.bincount(labels[rows].ravel(), minlength=len(classes))
    shares = (
        f"{info.name} {100 * counts[index] / labels.size:.0f} %"
        for index, info in enumerate(classes)
        if index
    )
    return ", ".join(shares)


def _labels(request: Request, labels: NDArray[np.int32], report: dict[str, Any]) -> LayerData:
    arguments = {
        "name": request.name,
        "metadata": {METADATA_KEY: report},
        **request.placement.arguments(),
    }
    # int32 in memory, writable: every tool of napari works on nothing else.
    return np.require(labels, np.int32, ["C", "W"]), arguments, "labels"


def _probability(
    request: Request, info: ClassInfo, values: NDArray[np.float32], report: dict[str, Any]
) -> LayerData:
    arguments = {
        "name": f"{request.name} {info.name}",
        "metadata": {METADATA_KEY: report},
        "contrast_limits": (0.0, 1.0),
        "blending": "additive",
        # One at a time is what a person looks at; and hidden layers cost nothing to add.
        "visible": False,
        **request.placement.arguments(),
    }
    return values, arguments, "image"
