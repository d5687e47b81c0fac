"""What a training did, on one page: curves, the worst images side by side, a table of all."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.atomic import replacing_file
from napari_unet.card import Card
from napari_unet.errors import OptionError
from napari_unet.training.loop import Progress, Trained
from napari_unet.training.validation import Held, Validation

__all__ = ["EventLog", "write_report"]

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
figure { display: inline-block; margin: .3rem } figcaption { color: #555; font-size: 13px }
img { max-width: 19rem; image-rendering: pixelated; display: block }
svg { max-width: 30rem; width: 100% }
"""
_TITLES = {
    "f1_50": "F1@0.5",
    "mean_ap": "mean AP",
    "iou": "IoU",
    "mean_iou": "mean IoU",
    "pixel_error": "pixel error",
    "objects": "objects",
    "truth_objects": "truth",
}
_MOST_PIXELS = 512
_MOST_SHOWN = 4


def write_report(
    path: Path, card: Card, trained: Trained, held: Sequence[Held], notes: Sequence[str] = ()
) -> None:
    """Write an HTML page that needs no other file.

    Parameters
    ----------
    path : Path
        To write.
    card : Card
        Of the new model.
    trained : Trained
        What the training gave.
    held : sequence of Held
        The held-out images.
    notes : sequence of str
        Sentences for the top of the page.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    parts = [f"<h1>{html.escape(card.name)}</h1>", f"<p>{html.escape(card.describe())}</p>"]
    parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    minutes = trained.seconds / 60
    parts.append(
        f"<p>{trained.steps} steps in {minutes:.1f} minutes; the network that is kept is that of "
        f"step {trained.best_step}; {trained.busy:.1%} of the time was spent in the network.</p>"
    )
    parts.append(_curve("Loss", trained.curves.loss))
    if trained.after is not None:
        main = trained.after.main
        points = [(step, scores[main]) for step, scores in trained.curves.scores]
        parts.append(_curve(f"{_TITLES[main]} of the held-out images", points))
        parts += [_before_and_after(trained), _worst(trained.after, held), _table(trained.after)]
    else:
        parts.append("<p>Nothing was held out: how good the model is, is not known.</p>")
    page = (
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{html.escape(card.name)}</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    with replacing_file(path) as file:
        file.write(page.encode())


def _curve(title: str, points: Sequence[tuple[int, float]]) -> str:
    """A line over the steps, as SVG."""
    if not points:
        return ""
    width, height, left, low = 480, 200, 52, 24
    steps, values = np.array(points, float).T
    top, bottom = max(values.max(), 1e-9), min(values.min(), 0.0)
    x = left + (width - left - 10) * steps / max(steps.max(), 1)
    y = height - low - (height - low - 12) * (values - bottom) / max(top - bottom, 1e-9)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    dots = "".join(
        f"<circle cx={a:.1f} cy={b:.1f} r=2 fill=#1f6fb4 />"
        for a, b in zip(x, y, strict=True)
        if len(points) <= 50
    )
    floor = height - low
    return (
        f"<h2>{html.escape(title)}</h2><svg viewBox='0 0 {width} {height}' font-size=12>"
        f"<path d='M{left} 12V{floor}H{width - 10}' stroke=#999 fill=none />"
        f"<polyline points='{line}' stroke=#1f6fb4 stroke-width=1.6 fill=none />{dots}"
        f"<text x={left - 5} y=18 text-anchor=end>{top:.3g}</text>"
        f"<text x={left - 5} y={floor} text-anchor=end>{bottom:.3g}</text>"
        f"<text x={width - 10} y={height - 8} text-anchor=end>step {int(steps.max())}</text></svg>"
    )


def _before_and_after(trained: Trained) -> str:
    """Means of the old and the new model."""
    assert trained.after is not None
    rows = [("after", trained.after)]
    if trained.before is not None:
        rows.insert(0, ("before", trained.before))
    return "<h2>Held-out images</h2>" + _rows([(name, v.mean) for name, v in rows])


def _table(validation: Validation) -> str:
    """One line for each image."""
    rows = sorted(validation.rows, key=lambda row: float(row[validation.main]))
    return "<h2>Image by image</h2>" + _rows([(str(row["name"]), row) for row in rows])


def _rows(rows: Sequence[tuple[str, Any]]) -> str:
    keys = [key for key in rows[0][1] if key in _TITLES or key.startswith("iou_")]
    head = "".join(f"<th>{_TITLES.get(key, key.replace('iou_', 'IoU of class '))}" for key in keys)
    lines = [
        f"<tr><td>{html.escape(name)}"
        + "".join(
            f"<td>{scores[k]:.0f}" if "objects" in k else f"<td>{scores[k]:.3f}" for k in keys
        )
        for name, scores in rows
    ]
    return f"<table><tr><th>{head}{''.join(lines)}</table>"


def _worst(validation: Validation, held: Sequence[Held]) -> str:
    """Image, truth and result of the worst images."""
    by_name = {one.name: one for one in held}
    rows = sorted(validation.rows, key=lambda row: float(row[validation.main]))
    parts = ["<h2>The worst</h2>"]
    shown = [row for row in rows if row["name"] in validation.labels][:_MOST_SHOWN]
    for row in shown:
        one = by_name[row["name"]]
        found = validation.labels[row["name"]]
        pictures = (
            ("image", _grey(_plane(one.image, one.axes))),
            ("truth", _colours(_plane(one.labels, one.axes.rstrip("C")))),
            ("found", _colours(_plane(found, one.axes.rstrip("C")))),
        )
        score = f"{_TITLES[validation.main]} {row[validation.main]:.3f}"
        parts.append(f"<p>{html.escape(one.name)}: {score}</p>")
        parts += [
            f"<figure><img src='{_png(pixels)}' alt='{name}'><figcaption>{name}</figcaption>"
            "</figure>"
            for name, pixels in pictures
        ]
    return "".join(parts) if shown else ""


def _plane(array: NDArray[Any], axes: str) -> NDArray[Any]:
    """The middle plane of a volume, thinned out to what a page can show."""
    if axes.startswith("Z"):
        array = array[len(array) // 2]
    every = -(-max(array.shape[:2]) // _MOST_PIXELS)
    return array[::every, ::every]


def _grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels stretched to what a screen shows; of several channels the first three."""
    if image.ndim == 3:
        image = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
    image = image.astype(np.float32)
    low, high = np.percentile(image, (1, 99.8))
    scaled = (image - low) / max(float(high - low), 1e-9)
    grey: NDArray[np.uint8] = (255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    return grey


def _colours(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """A colour for each number, the same on every picture."""
    random = np.random.default_rng(7)
    table = random.integers(70, 256, (257, 3)).astype(np.uint8)
    table[0] = 0
    number = labels.astype(np.int64)
    coloured: NDArray[np.uint8] = table[np.where(number > 0, (number - 1) % 256 + 1, 0)]
    return coloured


def _png(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class EventLog:
    """Writes TensorBoard event files; needs the extra ``tensorboard``.

    Parameters
    ----------
    folder : Path
        Where they go.

    Raises
    ------
    OptionError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise OptionError(
                "TensorBoard is not installed; run: pip install napari-valid-unet[tensorboard]"
            ) from error
        self._writer: Any = SummaryWriter(str(folder))

    def add(self, progress: Progress) -> None:
        """Write what a step gave."""
        self._writer.add_scalar("loss", progress.loss, progress.step)
        self._writer.add_scalar("rate", progress.rate, progress.step)
        if progress.validation is not None:
            for name, value in progress.validation.mean.items():
                self._writer.add_scalar(f"held out/{name}", value, progress.step)

    def close(self) -> None:
        """Bring all of it to the disk."""
        self._writer.close()
