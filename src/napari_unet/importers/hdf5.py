"""HDF5 files, read in a process of their own.

HDF5's library was not made for files of strangers: some crash it, hang it or let it allocate
terabytes. A child process reads the file under limits of time and memory and tells what is in it;
what it tells is checked here like a file. Values that lie in the file as they are, as those of all
weights do, are mapped from there and never copied.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import CheckpointError

__all__ = ["Hdf5", "read_hdf5"]

_CHILD = Path(__file__).with_name("hdf5_child.py")
_MOST_ANSWER = 64 << 20
_MEMORY = 700 << 20  # beyond the file's length
_BUDGET = 256 << 20  # of values that are packed, likewise
_SECONDS = 2  # far more than a sound file takes; what loops is ended before it annoys
_RATE = 50 << 20  # bytes per second that any disk can read
_START = 30  # seconds that a cold Python may take before it opens the file


@dataclass(frozen=True)
class Hdf5:
    """All of one file.

    Parameters
    ----------
    attributes : mapping of str to mapping
        By the absolute path of their object, ``"/"`` for the file's own: str, int, float, list of
        str, or small arrays. Attributes of other kinds are left out.
    datasets : mapping of str to ndarray
        By absolute path, in the order of the file: numbers of any kind in the byte order of this
        machine, or an object array of str for texts.
    groups : tuple of str
        Absolute paths, ``"/"`` first.
    """

    attributes: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, NDArray[Any]]
    groups: tuple[str, ...]


def read_hdf5(path: Path) -> Hdf5:
    """Read a whole file.

    Parameters
    ----------
    path : Path
        An HDF5 file; never written to.

    Returns
    -------
    Hdf5
        Its arrays can be written to, which changes copies of theirs only.

    Raises
    ------
    CheckpointError
        If it is damaged or hostile, points to other files or to itself, or claims more than it
        holds.
    OSError
        If it cannot be opened.
    """
    length = path.stat().st_size
    seconds = _SECONDS + length // _RATE
    limits = (seconds, length + _MEMORY, length + _BUDGET)
    command = [sys.executable, "-I", "-S", str(_CHILD), str(path.resolve()), *map(str, limits)]
    with tempfile.TemporaryFile() as answer:
        try:
            child = subprocess.run(
                [*command, *_folders()],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                timeout=_START + seconds,
                check=False,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except (subprocess.TimeoutExpired, PermissionError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{path.name} could not be read: no second Python answers, which HDF5 files are "
                "read in; try again or install the package into a Python of its own."
            ) from error
        answer.seek(0)
        try:
            return _checked(_told(answer, child.returncode), path, length, answer)
        except CheckpointError as error:
            raise CheckpointError(f"{path.name} {error}; get the file again.") from error


def _folders() -> list[str]:
    """Where h5py and NumPy are: the child looks nowhere else."""
    folders: list[str] = []
    for name in ("h5py", "numpy"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise CheckpointError(
                f"HDF5 files need the package {name}; install it with: pip install {name}"
            )
        folders.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(folders))


def _environment() -> dict[str, str]:
    """Without plug-ins of HDF5, which a file can ask for, and without threads, which cost time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HDF5_")}
    return {**kept, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"}


def _told(answer: IO[bytes], code: int) -> dict[str, Any]:
    """Read the child's first line."""
    line = answer.readline(_MOST_ANSWER)
    if code or not line.endswith(b"\n"):
        raise CheckpointError("is damaged, or made to take forever")
    try:
        told = json.loads(line)
        reason = told.get("error")
    except (ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError("cannot be read") from error
    if reason or "damage" in told:
        raise CheckpointError(str(reason or f"is damaged ({told['damage']})"))
    return dict(told)


def _checked(told: Mapping[str, Any], path: Path, length: int, values: IO[bytes]) -> Hdf5:
    """Build what the child tells of, believing none of its numbers."""
    whole = np.memmap(path, np.uint8, "c")
    left = {"mapped": length, "sent": length + _BUDGET}
    datasets: dict[str, NDArray[Any]] = {}
    try:
        for item in told["datasets"]:
            shape = _shape(item["shape"])
            if "text" in item:
                datasets[str(item["path"])] = _texts(item, shape)
                continue
            kind = _kind(item["dtype"])
            size = prod(shape) * kind.itemsize
            where = "mapped" if "offset" in item else "sent"
            left[where] -= size
            if left[where] < 0:
                raise CheckpointError("claims to hold far more values than its own length")
            if where == "mapped":
                start = max(int(item["offset"]), 0)
                raw = np.asarray(whole[start : start + size])
            else:
                raw = np.fromfile(values, np.uint8, size)
            if raw.size != size:
                raise CheckpointError("is cut short")
            array = raw.view(kind).reshape(shape)
            plain = array.flags.aligned and kind.isnative
            datasets[str(item["path"])] = array if plain else array.astype(kind.newbyteorder("="))
        attributes = {
            str(owner): {str(name): _value(value) for name, value in found.items()}
            for owner, found in told["attributes"].items()
        }
        return Hdf5(attributes, datasets, tuple(str(group) for group in told["groups"]))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError("cannot be read") from error


def _shape(extents: Any) -> tuple[int, ...]:
    shape = tuple(int(extent) for extent in extents)
    if len(shape) > 32 or any(extent < 0 for extent in shape):
        raise CheckpointError("has values of a strange shape")
    return shape


def _kind(name: Any) -> np.dtype[Any]:
    kind = np.dtype(str(name))
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise CheckpointError("has values of no number")
    return kind


def _texts(item: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[Any]:
    texts = np.empty(len(item["text"]), object)
    texts[:] = [str(text) for text in item["text"]]
    return texts.reshape(shape)


def _value(item: Mapping[str, Any]) -> Any:
    """Turn an attribute into a plain value, a list of texts or an array."""
    shape = _shape(item["shape"])
    if "text" in item:
        texts = [str(text) for text in item["text"]]
        return texts if shape else texts[0]
    kind = _kind(item["dtype"])
    values = np.array(item["values"], kind.newbyteorder("=")).reshape(shape)
    return values if shape else values.item()
