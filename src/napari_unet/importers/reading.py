"""What a reader of one file format gives: weights, and whatever else the format says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from napari_unet.card import Card, ClassInfo
from napari_unet.importers.layouts import Layout
from napari_unet.intensity import Normalisation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """One file, read but not yet understood.

    Parameters
    ----------
    kind : str
        Format of the file, for people.
    tensors : mapping of str to Tensor
        Weights in PyTorch's orders, (out, in, ...) for convolutions and (in, out, ...) for
        transposed ones, named ``<layer>.weight``, ``.bias``, ``.running_mean``, ``.running_var``.
    ordered : bool
        Whether they come in the order in which the layers were made.
    layout : Layout, optional
        Which weights are which part, where the file holds the network's graph; else names and
        shapes have to tell.
    facts : mapping of str
        Answers to questions of `napari_unet.importers.CHOICES` that the file itself gives.
    name : str
        Of the network; that of the file if empty.
    normalisation : Normalisation, optional
        Of the images, where the file says it.
    classes : tuple of ClassInfo
        Of the output, where the file says it.
    spacing : tuple of float, optional
        Micrometres per pixel, [Z,] Y, X.
    notes : mapping of str
        What else the file says, by heading: authors, licence, description.
    warnings : tuple of str
        Sentences about what differs from the program that wrote the file.
    card : Card, optional
        Where the file says all about its network, under the names of our own: then nothing is
        open, and `card` is held against the tensors already.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    ordered: bool = True
    layout: Layout | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    normalisation: Normalisation | None = None
    classes: tuple[ClassInfo, ...] = ()
    spacing: tuple[float, ...] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    card: Card | None = None
