"""``valid-unet train``: images and labels in, a checkpoint out."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_unet.cli.common import (
    Bar,
    Commands,
    Parents,
    load_segmentation,
    print_json,
)
from napari_unet.cli.training_options import (
    add_data,
    add_output,
    add_recipe,
    config_of,
    recipe_of,
)
from napari_unet.durations import duration
from napari_unet.errors import Cancelled, ImageError, OptionError, OutputError
from napari_unet.paths import user_path

if TYPE_CHECKING:
    from napari_unet.checkpoint import Model
    from napari_unet.training.loop import Progress, Trained
    from napari_unet.training.pairs import Pair
    from napari_unet.training.plan import TrainingPlan

_DESCRIPTION = """\
Train a network on labelled images, or go on from one that knows something already (--from).

IMAGES and LABELS are folders, patterns or files (TIFF, PNG, JPEG, NPY, zarr) whose names are equal,
apart from _labels, _mask and the like at the end; or IMAGES is a .csv with the columns image,
labels and, if there are any, reviewed (a mask of the region that was looked at), and LABELS is left
out. Labels number objects, each with its own number, unless --classes says that they number
classes.
"""
_EPILOG = """\
Images are held out before the training starts (--val); the network that does best on them is what
is written. With --from, nothing is written if the old model is at least as good: the exit status is
3 then. The state is saved every minute as NEW.training beside the output; after an interruption,
even a power cut, the same command with --resume goes on, to the same weights.

examples:
  valid-unet train images/ labels/ -o cells.safetensors --minutes 30
  valid-unet train one.tif one_labels.tif -o better.safetensors --from nuclei --minutes 10
  valid-unet train sem/ masks/ -o axons.safetensors --classes background,myelin=1:other,axon=2
"""
_NOT_BETTER = 3


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "train",
        parents=parents,
        help="train or fine-tune a network on labelled images",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGES", help="folder, pattern, file, or .csv of pairs")
    parser.add_argument("labels", metavar="LABELS", nargs="?", help="folder, pattern or file")
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="NEW.safetensors")
    add_data(parser)
    add_recipe(parser)
    add_output(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    from napari_unet.atomic import check_folder
    from napari_unet.training.state import state_path

    out = user_path(arguments.out)
    if out.suffix != ".safetensors":
        raise OptionError(f"A checkpoint is a .safetensors file; write {out.name}.safetensors.")
    check_folder(out)
    report = _report(arguments, out)
    if report.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"A report is an .html file; write --report {report.name}.html.")
    check_folder(report)
    state = state_path(out)
    if state.exists() and not arguments.resume:
        raise OptionError(
            f"{state} is of a training that was interrupted; add --resume to go on, or delete it "
            "to begin again."
        )
    load_segmentation()
    start = _start(arguments)
    plan = _plan(arguments, start)
    if not arguments.json:
        for note in plan.notes:
            print(note)
    trained = _train(arguments, plan, state)
    return _finish(arguments, plan, trained, start, out, state)


def _start(arguments: argparse.Namespace) -> Model | None:
    """Load the model to go on from."""
    if arguments.start is None:
        if arguments.replay or arguments.assume:
            raise OptionError("--replay and --assume are about an older model; name it by --from.")
        return None
    if arguments.widths or arguments.no_contour or arguments.ndim:
        raise OptionError(
            "--widths, --ndim and --no-contour are about a new network; leave them out, or --from."
        )
    from napari_unet.checkpoint import load_model

    return load_model(arguments.start, assume=dict(arguments.assume))


def _plan(arguments: argparse.Namespace, start: Model | None) -> TrainingPlan:
    """Read images and decide everything."""
    from napari_unet.training.plan import parse_classes, plan_training

    ndim = start.config.ndim if start is not None else arguments.ndim or 2
    pairs = _pairs(arguments.images, arguments.labels, ndim, arguments.axes)
    try:
        val: Any = float(arguments.val)
    except ValueError:
        val = _pairs(*_inside(arguments.val), ndim, arguments.axes)
    replay = _pairs(*_inside(arguments.replay), ndim, arguments.axes) if arguments.replay else []
    return plan_training(
        pairs,
        recipe_of(arguments, start),
        name=arguments.name or arguments.out.stem,
        start=start,
        config=None if start is not None else config_of(arguments),
        classes=parse_classes(arguments.classes) if arguments.classes else None,
        sparse=arguments.sparse,
        val=val,
        replay=replay,
        dropout=arguments.dropout,
    )


def _pairs(images: str, labels: str | None, ndim: int, axes: str | None) -> list[Pair]:
    from napari_unet.training.pairs import find_pairs, load_pair

    return [p for files in find_pairs(images, labels) for p in load_pair(files, ndim, axes=axes)]


def _inside(text: str) -> tuple[str, str | None]:
    """Images and labels of a folder of both, or a table."""
    if text.lower().endswith(".csv"):
        return text, None
    folder = user_path(text)
    for name in ("labels", "masks"):
        if (folder / "images").is_dir() and (folder / name).is_dir():
            return str(folder / "images"), str(folder / name)
    raise ImageError(f"{text} is neither a .csv nor a folder with images/ and labels/ inside.")


def _train(arguments: argparse.Namespace, plan: TrainingPlan, state: Path) -> Trained:
    """Walk through the steps and show where they are."""
    from napari_unet.training.loop import train_steps
    from napari_unet.training.report import EventLog

    log = EventLog(arguments.tensorboard) if arguments.tensorboard else None
    bar = Bar(arguments.out.name, quiet=arguments.json)
    with _interruptible() as stopped:
        steps = train_steps(
            plan.model,
            plan.samples,
            plan.held,
            plan.recipe,
            before=plan.before,
            state=state,
            resume=arguments.resume,
            save_every=arguments.save_every,
            should_stop=stopped.is_set,
        )
        try:
            while True:
                progress = next(steps)
                _show(bar, progress, quiet=arguments.json)
                if log is not None:
                    log.add(progress)
        except StopIteration as stop:
            trained: Trained = stop.value
        finally:
            bar.clear()
            if log is not None:
                log.close()
    if stopped.is_set() and not trained.complete:
        print(
            f"valid-unet: stopped at step {trained.steps}; the same command with --resume goes on.",
            file=sys.stderr,
        )
        raise Cancelled("Stopped.")
    return trained


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C end the training after the step that runs; a second one ends it at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(_number: int, _frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _show(bar: Bar, progress: Progress, *, quiet: bool) -> None:
    """Say how far it is: on a terminal a bar, else a line after each look."""
    filled = 24 * progress.step // max(progress.total, 1)
    parts = [f"step {progress.step} of {progress.total}", f"loss {progress.loss:.4f}"]
    if progress.best is not None:
        parts.append(f"best {progress.best:.3f}")
    parts.append(f"{duration(progress.left)} left")
    bar.say(f"[{'#' * filled}{'-' * (24 - filled)}]  {', '.join(parts)}")
    if progress.validation is not None and not bar.active and not quiet:
        main = progress.validation.main
        print(f"{', '.join(parts)}, {main} {progress.validation.score:.4f}", flush=True)


def _finish(
    arguments: argparse.Namespace,
    plan: TrainingPlan,
    trained: Trained,
    start: Model | None,
    out: Path,
    state: Path,
) -> int:
    """Write the model unless the old one is better, and the report."""
    from napari_unet.checkpoint import save_model
    from napari_unet.training.plan import finished_card
    from napari_unet.training.report import write_report

    card = finished_card(plan, trained, start)
    report = _report(arguments, out)
    if trained.worse:
        verdict = (
            f"The old model stays: on the held-out images it is at least as good, so {out.name} "
            "was not written."
        )
    else:
        save_model(out, trained.network, card)
        verdict = f"{out} was written."
    state.unlink(missing_ok=True)
    try:
        write_report(report, card, trained, plan.held, (*plan.notes, verdict))
    except OutputError as error:
        # The model is what counts, and it is there.
        print(f"valid-unet: {error}", file=sys.stderr)
    if arguments.json:
        print_json(_document(trained, out, report, plan))
    else:
        print(_summary(trained))
        print(f"{verdict} Report: {report}")
    return _NOT_BETTER if trained.worse else 0


def _report(arguments: argparse.Namespace, out: Path) -> Path:
    """Where the report goes."""
    return user_path(arguments.report) if arguments.report else out.with_suffix(".html")


def _summary(trained: Trained) -> str:
    """Scores before and after, in one line each."""
    lines = [f"{trained.steps} steps in {trained.seconds / 60:.1f} minutes."]
    for name, validation in (("before", trained.before), ("after", trained.after)):
        if validation is not None:
            scores = ", ".join(f"{key} {value:.4g}" for key, value in validation.mean.items())
            lines.append(f"{name}: {scores}")
    return "\n".join(lines)


def _document(trained: Trained, out: Path, report: Path, plan: TrainingPlan) -> dict[str, Any]:
    """Everything that came out, as JSON types."""
    return {
        "output": None if trained.worse else str(out),
        "report": str(report),
        "kept_old": trained.worse,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "seconds": trained.seconds,
        "busy": trained.busy,
        "notes": list(plan.notes),
        "before": None if trained.before is None else dict(trained.before.mean),
        "after": None if trained.after is None else dict(trained.after.mean),
        "images": [] if trained.after is None else list(trained.after.rows),
        "loss": [list(point) for point in trained.curves.loss],
    }
