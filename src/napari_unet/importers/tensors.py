"""Plain ``.safetensors``: tensors by name, without a word about their network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_unet.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_safetensors"]


def read_safetensors(path: Path) -> dict[str, Tensor]:
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
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path.name} is not a readable .safetensors checkpoint, or is cut short; get it again."
        ) from error
