"""Which program wrote an HDF5 file, by its groups and attributes."""

from __future__ import annotations

from pathlib import Path

from napari_unet.errors import CheckpointError
from napari_unet.importers.hdf5 import Hdf5, read_hdf5
from napari_unet.importers.reading import Reading

__all__ = ["read_hdf5_checkpoint"]


def read_hdf5_checkpoint(path: Path) -> Reading:
    """Read Keras's ``.h5`` and ``.weights.h5``, or Freiburg's ``.caffemodel.h5``.

    Parameters
    ----------
    path : Path
        An HDF5 file.

    Raises
    ------
    CheckpointError
        If it is damaged, hostile, or of neither.
    """
    hdf5 = read_hdf5(path)
    try:
        if _is_keras(hdf5):
            from napari_unet.importers import keras_files

            return keras_files.reading_from(hdf5, path)
        if "/data" in hdf5.groups or "/unet_param" in hdf5.groups:
            from napari_unet.importers import freiburg

            return freiburg.reading_from(hdf5, path)
        raise CheckpointError(
            "it is neither Keras's nor Caffe's; give a Keras model, its weights or a "
            ".caffemodel.h5 file."
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error


def _is_keras(hdf5: Hdf5) -> bool:
    """Keras names its layers in an attribute, or since version 3 keeps variables in ``vars``."""
    names = {name for owner in ("/", "/model_weights") for name in hdf5.attributes.get(owner, ())}
    return bool(names & {"keras_version", "layer_names", "model_config"}) or any(
        group.endswith("/vars") for group in hdf5.groups
    )
