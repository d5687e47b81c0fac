"""Which format a file has, by its first bytes and members rather than by its name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from napari_unet.errors import CheckpointError
from napari_unet.importers.archives import has_small_directory
from napari_unet.importers.reading import Reading

__all__ = ["DESCRIPTIONS", "SUFFIXES", "is_safetensors", "reader_of"]

SUFFIXES = (
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".hdf5",
    ".keras",
    ".caffemodel",
    ".zip",
)
# Of a bioimage.io package; the first is today's.
DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml")

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# What people pick by mistake.
_OTHERS = (
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)
_WANTED = "give a checkpoint: .safetensors, PyTorch, Keras, Caffe or a bioimage.io package"


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: the length of a header, then the header."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        start = file.read(9)
    # The length, eight bytes, can look like the start of a pickle.
    return start[4:] == b"\0\0\0\0{"


def reader_of(path: Path) -> Callable[[Path], Reading]:
    """Choose the reader of a file that this package did not write.

    Parameters
    ----------
    path : Path
        A file, or the folder of an unpacked bioimage.io package.

    Raises
    ------
    CheckpointError
        If it is none of the formats; the message says what it is instead.
    OSError
        If it cannot be read.
    """
    if path.is_dir():
        from napari_unet.importers.bioimageio import read_package

        return read_package
    with path.open("rb") as file:
        start = file.read(16)
    for signature, what in _OTHERS:
        if start.startswith(signature):
            raise CheckpointError(f"{path.name} is {what}; {_WANTED}.")
    if not start:
        raise CheckpointError(f"{path.name} is empty; {_WANTED}.")
    suffix = path.suffix.lower()
    if is_safetensors(path) or (suffix == ".safetensors" and not start.startswith((_ZIP, _PICKLE))):
        from napari_unet.importers.tensors import read_safetensors

        return read_safetensors
    if start.startswith(_ZIP):
        return _reader_of_zip(path)
    if start.startswith(_HDF5):
        from napari_unet.importers.hdf5_kinds import read_hdf5_checkpoint

        return read_hdf5_checkpoint
    if suffix == ".caffemodel":
        from napari_unet.importers.caffe import read_caffemodel

        return read_caffemodel
    if start.startswith(_PICKLE) or suffix in (".pt", ".pth", ".ckpt"):
        from napari_unet.importers.pickles import read_pickle

        return read_pickle
    raise CheckpointError(f"{path.name} is not a checkpoint, or is cut short; {_WANTED}.")


def _reader_of_zip(path: Path) -> Callable[[Path], Reading]:
    """Tell Keras models and bioimage.io packages from PyTorch's own archives by their members."""
    try:
        with path.open("rb") as stream:
            names = zipfile.ZipFile(stream).namelist() if has_small_directory(stream) else []
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, RuntimeError, EOFError):
        names = []  # damaged or too large: PyTorch's reader says so in its own words
    last = {name.rpartition("/")[2] for name in names}
    if "data.pkl" not in last and {"model.weights.h5", "config.json"} <= set(names):
        from napari_unet.importers.keras_files import read_keras

        return read_keras
    if "data.pkl" not in last and last & {*DESCRIPTIONS}:
        from napari_unet.importers.bioimageio import read_package

        return read_package
    from napari_unet.importers.pickles import read_pickle

    return read_pickle
