"""What a training in the dock is told, kept beside its state so that it can be resumed."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from napari_unet._napari.train_pairs import Collected
from napari_unet._napari.train_saved import TABLE, find_saved, save_pairs
from napari_unet.atomic import replacing_file
from napari_unet.checkpoint import Model
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.training.pairs import Pair, PairFiles

__all__ = [
    "HOW",
    "Interrupted",
    "Order",
    "TrainChoices",
    "forget",
    "interrupted",
    "keep",
    "owned",
    "recall",
]

HOW = "training.json"
_BUSY = "{} is being trained in another window; wait for its end, or stop it there."


@dataclass(frozen=True)
class TrainChoices:
    """State of the controls.

    Parameters
    ----------
    minutes : float
        To spend.
    held_out : float
        Part of the images that is held out.
    sparse : bool
        Whether label 0 means that nobody has looked there.
    classes : str
        For a network from nothing: what `parse_classes` reads; empty for objects.
    ndim : int
        Spatial axes of a network from nothing.
    replay : str
        Folder or table of the older model's training; empty for none.
    rate : float
        Highest learning rate; 0 leaves it to the recipe.
    seed : int
        Of all random numbers.
    device, precision : str
        As the core takes them.
    steps : int
        Instead of `minutes`, where it is not 0.
    """

    minutes: float = 10.0
    held_out: float = 0.15
    sparse: bool = False
    classes: str = ""
    ndim: int = 2
    replay: str = ""
    rate: float = 0.0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    steps: int = 0


@dataclass(frozen=True, eq=False)
class Order:
    """One training, complete: nothing of it changes when the viewer does.

    Parameters
    ----------
    start : Path or Model, optional
        Where it starts; None is a network from nothing.
    collected : tuple of Collected
        Copies of layers.
    saved : tuple of PairFiles
        Pairs that are read from files.
    choices : TrainChoices
        How.
    out : Path
        The new model.
    resume : bool
        Go on from the state beside `out`.
    assume : mapping of str
        What a person said about the file of `start`.
    """

    start: Path | Model | None
    collected: tuple[Collected, ...]
    saved: tuple[PairFiles, ...]
    choices: TrainChoices
    out: Path
    resume: bool = False
    assume: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """Where the training stands."""
        return _state(self.out)


@dataclass(frozen=True)
class Interrupted:
    """A training that can be resumed.

    Parameters
    ----------
    out : Path
        The model that it was to make.
    start : str
        Name of the model that it started from; empty for a network from nothing.
    choices : TrainChoices
        How.
    """

    out: Path
    start: str
    choices: TrainChoices


def keep(order: Order, start: Model | None, pairs: list[Pair]) -> None:
    """Write what a resumed run needs: the pairs as they are now, and the choices.

    Raises
    ------
    OptionError
        If another window trains it.
    OutputError
        If it cannot be written.
    """
    if _is_owned(order.out):
        raise OptionError(_BUSY.format(order.out.stem))
    folder = _folder(order.out)
    shutil.rmtree(folder, ignore_errors=True)
    save_pairs(folder, pairs)
    model = None if start is None or start.path is None else str(start.path)
    given = {} if start is None or start.origin is None else dict(start.origin.given)
    document = {
        "start": model,
        "name": "" if start is None else start.card.name,
        "assume": given,
        "choices": asdict(order.choices),
    }
    with replacing_file(folder / HOW) as file:
        file.write(json.dumps(document, indent=1).encode())


def forget(out: Path) -> None:
    """Remove a state and what was kept beside it."""
    with contextlib.suppress(OSError):
        _state(out).unlink(missing_ok=True)
    shutil.rmtree(_folder(out), ignore_errors=True)


@contextlib.contextmanager
def owned(out: Path) -> Iterator[None]:
    """Keep other windows from resuming or discarding a training while it runs.

    The lock ends with the process, however that ends.

    Raises
    ------
    OptionError
        If another window has it.
    """
    lock = _lock(out)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise OptionError(_BUSY.format(out.stem)) from error
    try:
        yield
    finally:
        lock.release()


def _is_owned(out: Path) -> bool:
    try:
        with _lock(out).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # where nobody can write, nobody trains
        return False


def _lock(out: Path) -> BaseFileLock:
    # A worker may be ended from another thread.
    return FileLock(_folder(out) / "running.lock", thread_local=False)


def interrupted(folder: Path) -> list[Interrupted]:
    """Trainings in a folder that can be resumed, the latest first; none that runs."""
    try:
        states = [path for path in folder.glob("*.training") if path.is_file()]
        states.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []
    found = []
    for state in states:
        out = state.with_suffix(".safetensors")
        try:
            document = _document(out)
            if _is_owned(out):
                continue
            found.append(Interrupted(out, document["name"], TrainChoices(**document["choices"])))
        except (CheckpointError, KeyError, TypeError):
            # The command line's; or nothing that could be resumed here.
            continue
    return found


def recall(out: Path) -> Order:
    """Make the order again whose training was interrupted.

    Raises
    ------
    CheckpointError, ImageError
        If what was kept is damaged.
    """
    document = _document(out)
    try:
        start = document["start"]
        return Order(
            None if start is None else Path(start),
            (),
            tuple(find_saved(_folder(out) / TABLE)),
            TrainChoices(**document["choices"]),
            out,
            resume=True,
            assume=dict(document["assume"]),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(_damaged(out)) from error


def _document(out: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((_folder(out) / HOW).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(_damaged(out)) from error
    return document


def _damaged(out: Path) -> str:
    return f"What {_folder(out)} says about its training is damaged; discard it to begin again."


def _state(out: Path) -> Path:
    # As `training.state.state_path`, which is not there without torch.
    return out.with_name(f"{out.name.removesuffix('.safetensors')}.training")


def _folder(out: Path) -> Path:
    return out.with_name(f"{_state(out).name}-pairs")
