"""Plain ``.safetensors``: tensors by name, without a word about their network."""

from __future__ import annotations

from pathlib import Path

from napari_unet.errors import CheckpointError
from napari_unet.importers.reading import Reading
from napari_unet.importers.weights import natural_order

__all__ = ["read_safetensors"]


def read_safetensors(path: Path) -> Reading:
    """Read all tensors; the library checks every size against the file's length first.

    Parameters
    ----------
    path : Path
        A safetensors file.

    Raises
    ------
    CheckpointError
        If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is not a readable .safetensors checkpoint, or is cut short; get it again."
        ) from error
    # The names of a safetensors file come sorted, which says nothing about the network.
    tensors = {key: found[key] for key in natural_order(found)}
    return Reading("plain safetensors", tensors, ordered=False)
