"""``valid-unet segment``: images in, label files out."""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_unet._version import __version__
from napari_unet.cli.common import (
    Bar,
    Commands,
    Parents,
    add_assume,
    add_json,
    add_run_arguments,
    load_checkpoint,
    load_segmentation,
    open_image,
    print_json,
    spacing_for,
)
from napari_unet.durations import duration
from napari_unet.errors import OptionError, ValidUNetError
from napari_unet.paths import is_there, matching, user_path
from napari_unet.steps import walk

if TYPE_CHECKING:
    from napari_unet.checkpoint import Model
    from napari_unet.files import ImageFile
    from napari_unet.segmentation import Segmentation

_DESCRIPTION = """\
Segment images and write label files that Fiji, QuPath and napari open. TIFF (ImageJ, OME,
pyramids), PNG, JPEG, NPY and zarr are read; spacing, unit and axes are kept.

OUT is a file for one image, and says by its ending what is written: .tif (ImageJ's dialect; OME
if the image is OME), .ome.tif, .npy, .png or .zarr. OUT is a folder for several images, or if it
is one already or ends in a slash; cells.tif then becomes OUT/cells_labels.tif.
"""
_EPILOG = """\
An existing file is replaced, but only once the new one is complete. Of several images, one that
cannot be segmented is reported and the others go on; the exit status is 4 then.

--json prints one object for one image, and a list of them for several, with the keys input,
output, shape, model, tile_size, tiles, halo, device, precision, engine, seconds,
megapixels_per_second, objects and more; an image that failed has input and error instead.
"""
_NAMES = {"instances": "labels", "classes": "classes", "probabilities": "probabilities"}


@dataclass(frozen=True)
class _Task:
    """One image and where its result goes."""

    source: Path
    target: Path
    probabilities: Path | None  # beside the labels, if asked for


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "segment",
        parents=parents,
        help="segment images into label files",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file or zarr folder")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="label file, or folder")
    parser.add_argument(
        "--model",
        default="nuclei",
        metavar="M",
        help="a bundled model's name, or a checkpoint of any format that `convert` reads "
        "(default: nuclei)",
    )
    add_assume(parser)
    parser.add_argument(
        "--output",
        default="instances",
        choices=tuple(_NAMES),
        help="objects with numbers, one class per pixel, or the probability of each class "
        "(default: instances)",
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability above which a pixel belongs to an object (default: the model's, or 0.5)",
    )
    parser.add_argument(
        "--min-size",
        type=int,
        metavar="N",
        help="drop objects of fewer pixels (default: the model's, or 0)",
    )
    parser.add_argument(
        "--method",
        default="auto",
        choices=("auto", "watershed", "components"),
        help="how touching objects are told apart (default: auto, by watershed where the model "
        "knows contours)",
    )
    parser.add_argument(
        "--no-fill-holes",
        dest="fill_holes",
        action="store_false",
        help="leave holes inside objects open",
    )
    parser.add_argument(
        "--keep-probabilities",
        action="store_true",
        help="write the probabilities too, beside the labels as ..._probabilities.tif",
    )
    add_json(parser, "what was done as JSON, and nothing else")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment one image after the other."""
    tasks = _tasks(arguments)
    _check(tasks, arguments)
    load_segmentation()
    model = load_checkpoint(arguments)
    reports: list[dict[str, Any]] = []
    for task in tasks:
        try:
            reports.append(_segment(task, model, arguments))
        except OptionError:
            raise  # wrong for every image
        except ValidUNetError as error:
            if len(tasks) == 1:
                raise
            if getattr(arguments, "debug", False):
                traceback.print_exception(error)
            print(f"valid-unet: {task.source}: {error}", file=sys.stderr)
            reports.append({"input": str(task.source), "error": str(error)})
    if arguments.json:
        print_json(reports if len(tasks) > 1 else reports[0])
    return 4 if any("error" in report for report in reports) else 0


def _tasks(arguments: argparse.Namespace) -> list[_Task]:
    """Decide where each result goes."""
    from napari_unet.files import LABEL_SUFFIXES

    sources = [path for text in arguments.images for path in _expand(text)]
    out = user_path(arguments.out)
    ends_in_slash = arguments.out.endswith(("/", "\\"))
    is_folder = is_there(out) and out.is_dir() and out.suffix != ".zarr"
    into_folder = len(sources) > 1 or ends_in_slash or is_folder
    names_a_file = out.name.lower().endswith(LABEL_SUFFIXES) and not (ends_in_slash or is_folder)
    if len(sources) > 1 and names_a_file:
        raise OptionError(
            f"{out} is one file, for {len(sources)} images; give a folder: {out.stem}/"
        )
    tasks = []
    for source in sources:
        stem = source.name
        for suffix in (".ome.tif", ".ome.tiff", ".ome.zarr", source.suffix):
            stem = stem.removesuffix(suffix) or stem
        kind = ".ome.tif" if ".ome.tif" in source.name.lower() else ".tif"
        target = out / f"{stem}_{_NAMES[arguments.output]}{kind}" if into_folder else out
        beside = None
        if arguments.keep_probabilities and arguments.output != "probabilities":
            ending = kind if into_folder else _ending(out)
            name = stem if into_folder else out.name.removesuffix(ending)
            # A PNG cannot hold them.
            ending = ".tif" if ending.lower() == ".png" else ending
            beside = target.with_name(f"{name}_probabilities{ending}")
        tasks.append(_Task(source, target, beside))
    return tasks


def _expand(text: str) -> list[Path]:
    """Find the files of a pattern."""
    path = user_path(text)
    found = None if is_there(path) else matching(text)
    if found == []:
        raise OptionError(f"No file matches {text}; check the path.")
    return found or [path]


def _ending(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if ".ome." in path.name.lower() else path.suffix


def _check(tasks: list[_Task], arguments: argparse.Namespace) -> None:
    """See that everything can be read and written before minutes go into the first image."""
    from napari_unet.files import check_output

    taken: dict[Path, Path] = {}
    sources = {task.source.resolve(): task.source for task in tasks}
    for task in tasks:
        if task.target in taken:
            raise OptionError(
                f"{taken[task.target]} and {task.source} would both be written to {task.target}; "
                "segment them one by one, or rename one."
            )
        taken[task.target] = task.source
        for path in (task.target, task.probabilities):
            if path is not None:
                probabilities = path is not task.target or arguments.output == "probabilities"
                whole = path.resolve()
                lost = (s for full, s in sources.items() if whole in (full, *full.parents))
                source = next(lost, task.source)
                check_output(path, source, probabilities=probabilities)


def _check_axes(task: _Task, image: ImageFile, model: Model) -> None:
    """See that the file can hold labels of so many axes."""
    from napari_unet.axes import resolve_axes
    from napari_unet.files import check_output

    shape, kind, config = image.data.shape, image.data.dtype, model.config
    axes = resolve_axes(shape, kind, image.axes, config.ndim, config.in_channels)
    check_output(task.target, ndim=len(axes.labels_shape))


def _segment(task: _Task, model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Segment one image, write its result, and tell what was done."""
    segmentation = load_segmentation()
    bar = Bar(task.source.name, quiet=arguments.json)
    try:
        bar.say(f"{task.source.name}  reading")
        image = open_image(task.source, arguments, model.config)
        _check_axes(task, image, model)
        spacing = spacing_for(arguments.spacing, image.spacing, model.config.ndim)
        options = segmentation.Options(
            output=arguments.output,
            axes=image.axes,
            spacing=spacing,
            tile_size=arguments.tile_size,
            memory=arguments.memory,
            device=arguments.device,
            precision=arguments.precision,
            engine=arguments.engine,
            threshold=arguments.threshold,
            min_size=arguments.min_size,
            fill_holes=arguments.fill_holes,
            method=arguments.method,
            rescale=arguments.rescale,
            keep_probabilities=arguments.keep_probabilities,
        )
        result = walk(segmentation.segment_steps(image.data, model, options), bar.update)
        bar.say(f"{task.source.name}  writing {task.target.name}")
        _write(task, image, result, model, spacing)
    finally:
        bar.clear()
    report = {"input": str(task.source), "output": str(task.target), **result.report.to_dict()}
    report["settings"]["level"] = arguments.level  # chosen while reading
    if task.probabilities is not None:
        report["probabilities"] = str(task.probabilities)
    report["remarks"] = [*image.remarks, *result.report.remarks]
    if not arguments.json:
        _tell(task, image, result, arguments.output)
    return report


def _write(
    task: _Task,
    image: ImageFile,
    result: Segmentation,
    model: Model,
    spacing: tuple[float, ...] | None,
) -> None:
    """Write labels, probabilities or both."""
    from napari_unet.files import write_labels, write_probabilities

    report = result.report
    axes = str(report.settings["axes"]).rstrip("C")
    known = spacing or image.spacing
    if known and image.spacing and len(image.spacing) > len(known):
        # The planes' distance, which a 2-D network has no use for.
        known = (*image.spacing[: -len(known)], *known)
    note = (
        f"napari-valid-unet {__version__}, model {report.model} "
        f"(SHA-256 {report.model_sha256[:16]}), {report.settings['output']}, "
        f"threshold {report.settings['threshold']:g}, min_size {report.settings['min_size']}"
    )
    names = [info.name for info in model.card.classes]
    as_probabilities = report.settings["output"] == "probabilities"
    if not as_probabilities:
        write_labels(task.target, result.labels, image, axes=axes, spacing=known, note=note)
    path = task.target if as_probabilities else task.probabilities
    if path is not None and result.probabilities is not None:
        write_probabilities(
            path, result.probabilities, image, axes=axes, spacing=known, classes=names, note=note
        )


def _tell(task: _Task, image: ImageFile, result: Segmentation, output: str) -> None:
    """Say in one line what came out."""
    report = result.report
    count = report.objects
    what = f"{count} object{'s' * (count != 1)}" if output == "instances" else output
    files = " and ".join(str(path) for path in (task.target, task.probabilities) if path)
    print(
        f"{task.source} -> {files}: {what} in {duration(report.seconds, tenths=True)} "
        f"({report.tiles} tile{'s' * (report.tiles != 1)}, {report.device}, {report.engine}, "
        f"{report.precision}, "
        f"{report.megapixels_per_second:.2g} MPx/s)"
    )
    for remark in (*image.remarks, *(remark.rstrip(".") for remark in report.remarks)):
        print(f"  note: {remark}")
    width = report.shape[str(report.settings["axes"]).index("X")]
    if report.network_shape[-1] != width:
        ratio = report.network_shape[-1] / width
        print(f"  note: the model saw the image at {ratio:.0%} of its size, its training's spacing")
