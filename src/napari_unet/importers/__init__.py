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
from napari_unet.importers.formats import DESCRIPTIONS, SUFFIXES, is_safetensors, reader_of
from napari_unet.importers.origin import CHOICES, Origin
from napari_unet.importers.reading import Reading
from napari_unet.importers.weights import fitted_weights, unwrap

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHOICES",
    "DESCRIPTIONS",
    "SUFFIXES",
    "Imported",
    "Origin",
    "import_checkpoint",
    "is_safetensors",
    "open_reading",
]


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


def import_checkpoint(path: Path, assume: Mapping[str, object] | None = None) -> Imported:
    """Open a checkpoint that this package did not write.

    Parameters
    ----------
    path : Path
        A file of any format of `napari_unet.importers.formats`, or the folder of an unpacked
        bioimage.io package.
    assume : mapping, optional
        What the file does not say; `CHOICES` names the keys and values.

    Raises
    ------
    CheckpointError
        If it is damaged or hostile, or its network cannot be recognised or run.
    OptionError
        If an assumption is none of the choices, or no open question of this file.
    """
    reading, outside = open_reading(path)
    try:
        finding = examine(reading, assume)
        weights = fitted_weights(reading.tensors, finding)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    origin = replace(finding.origin, ignored=(*finding.origin.ignored, *outside))
    card = reading.card or Card(
        name=(reading.name or path.stem)[:200] or "imported",
        config=finding.config,
        normalisation=finding.normalisation,
        classes=finding.classes,
        spacing=reading.spacing,
        provenance={**reading.notes, **origin.provenance()},
    )
    return Imported(card, weights, origin)


def open_reading(path: Path) -> tuple[Reading, tuple[str, ...]]:
    """Read a checkpoint without asking yet which network it is.

    Parameters
    ----------
    path : Path
        As for `import_checkpoint`.

    Returns
    -------
    reading : Reading
        Its weights, out of their wrappers.
    outside : tuple of str
        Tensors that stood outside the wrapper and belong to no network.

    Raises
    ------
    CheckpointError
        If the file is damaged or hostile.
    """
    try:
        reading = reader_of(path)(path)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error.strerror or error}); check the file."
        ) from error
    if reading.layout is not None:
        return reading, ()
    tensors, outside = unwrap(reading.tensors)
    return replace(reading, tensors=tensors), outside
