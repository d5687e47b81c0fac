"""``valid-unet demo``: napari with a sample and the dock; without a display, the same in files."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from napari_unet.cli.common import Bar, Commands, Parents, load_segmentation
from napari_unet.durations import duration
from napari_unet.steps import walk

_FOLDER = Path("valid-unet-demo")
_DESCRIPTION = """\
Open napari with a sample image of cell nuclei and the U-Net dock beside it, ready to click
Segment. Without a display, or without napari, it segments the sample into ./valid-unet-demo/
instead: image.tif, labels.tif and overlay.png.
"""


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "demo",
        parents=parents,
        help="open napari with a sample and the dock",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--screenshot",
        type=Path,
        metavar="PNG",
        help="segment the sample, save a picture of the window, and quit",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Open the window, or say why not and write files."""
    reason = why_no_window()
    if reason is None:
        from napari_unet._napari import demo

        return demo.run(arguments.screenshot)
    print(f"{reason} The sample is segmented into files instead.", file=sys.stderr)
    return _to_files()


def why_no_window() -> str | None:
    """Say what keeps napari from opening a window; None if nothing does.

    Qt ends the whole process where it finds no display, so this is asked first.
    """
    if importlib.util.find_spec("napari") is None:
        return 'napari is not installed: run pip install "napari-valid-unet[all]".'
    bindings = ("PyQt6", "PySide6", "PyQt5", "PySide2")
    if not any(importlib.util.find_spec(name) for name in bindings):
        return "napari has no Qt to draw with: run pip install PyQt6."
    if os.environ.get("QT_QPA_PLATFORM", "").split(":")[0] in {"offscreen", "minimal", "vnc"}:
        return "QT_QPA_PLATFORM asks for no window."
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not has_display:
        return "There is no display (neither DISPLAY nor WAYLAND_DISPLAY is set)."
    return None


def _to_files() -> int:
    """Segment the sample; write image, labels and a picture of both."""
    import numpy as np
    from skimage.segmentation import find_boundaries

    from napari_unet.files import check_output, write_image, write_labels, write_picture
    from napari_unet.sample import sample_nuclei

    check_output(_FOLDER / "labels.tif")
    image, spacing = sample_nuclei()
    segmentation = load_segmentation()
    bar = Bar("sample")
    steps = segmentation.segment_steps(image, "nuclei", segmentation.Options(spacing=spacing))
    try:
        result = walk(steps, bar.update)
    finally:
        bar.clear()
    write_image(_FOLDER / "image.tif", image, axes="YX", spacing=spacing)
    write_labels(_FOLDER / "labels.tif", result.labels, axes="YX", spacing=spacing)
    low, high = np.percentile(image, (1, 99.8))
    grey = np.clip((image - low) / (high - low), 0, 1) ** 0.7 * 255
    overlay = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    overlay[find_boundaries(result.labels, mode="inner")] = (255, 200, 0)
    write_picture(_FOLDER / "overlay.png", overlay)
    took = duration(result.report.seconds, tenths=True)
    print(
        f"{result.report.objects} nuclei in {took}; look at {_FOLDER / 'overlay.png'}, or open "
        "image.tif and labels.tif beside it in Fiji or napari."
    )
    return 0
