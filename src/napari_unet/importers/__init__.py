"""Checkpoints of other programs: each reader gives weights, the detective says which network.

Nothing here runs code of a file. PyTorch is imported only once there is a file to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_unet.card import Card
from napari_unet.errors import CheckpointError
from napari_unet.importers.detective import examine
from napari_unet.importers.origin import CHOICES, Origin
from napari_unet.importers.weights import fitted_weights, natural_order, unwrap

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHOICES", "Imported", "Origin", "import_checkpoint", "is_pytorch"]

_PICKLES = (b"PK\x03\x04", b"\x80")
_SUFFIXES = (".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Imported:
    """A network from a file that does not say all about it.

    Parameters
    ----------
    card : Card
        What it is; its provenance tells what was read, inferred and assumed.
    weights : dict of str to Tensor
        By the names of our network, float32.
    origin : Origin
        What the card's provenance says, fact by fact.
    """

    card: Card
    weights: dict[str, Tensor]
    origin: Origin


def is_pytorch(path: Path) -> bool:
    """Whether a file is a PyTorch pickle, by its first bytes or else by its name."""
    with path.open("rb") as file:
        start = file.read(9)
    # The length of a safetensors header, eight bytes, can look like the start of a pickle.
    if start[4:] == b"\0\0\0\0{":
        return False
    return start.startswith(_PICKLES) or path.suffix.lower() in _SUFFIXES


def import_checkpoint(path: Path, assume: Mapping[str, object] | None = None) -> Imported:
    """Open a checkpoint that this package did not write.

    Parameters
    ----------
    path : Path
        A PyTorch file, or a safetensors file without a description.
    assume : mapping, optional
        What the file does not say; `CHOICES` names the keys and values.

    Raises
    ------
    CheckpointError
        If it is damaged or hostile, or its network cannot be recognised or run.
    OptionError
        If an assumption is none of the choices, or no open question of this file.
    """
    if is_pytorch(path):
        from napari_unet.importers.pickles import read_pickle

        tensors, kind, ordered = read_pickle(path), "PyTorch state dict", True
    else:
        from napari_unet.importers.tensors import read_safetensors

        # The names of a safetensors file come sorted.
        found = read_safetensors(path)
        tensors = {key: found[key] for key in natural_order(found)}
        kind, ordered = "plain safetensors", False
    tensors, outside = unwrap(tensors)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        finding = examine(shapes, assume, kind=kind, ordered=ordered)
        weights = fitted_weights(tensors, finding, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    origin = replace(finding.origin, ignored=(*finding.origin.ignored, *outside))
    card = Card(
        name=path.stem[:200] or "imported",
        config=finding.config,
        normalisation=finding.normalisation,
        provenance=origin.provenance(),
    )
    return Imported(card, weights, origin)
