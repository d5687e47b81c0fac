"""State dicts out of their wrappers, and into our network's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from napari_unet.errors import CheckpointError
from napari_unet.importers.detective import Finding
from napari_unet.importers.graph import match_graph
from napari_unet.importers.layouts import find_layout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["fitted_weights", "natural_order", "unwrap"]

_LONGEST_NAME = 1000
_MOST_PREFIXES = 20
_MOST_PARTS = 8
# How averages of weights over the training are called.
_AVERAGE = re.compile(r"(.*_)?(ema|swa|avg|averaged?|teacher|target|shadow)(_.*)?", re.IGNORECASE)


def unwrap(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Remove the prefix that all convolutions of a U-Net share, such as ``module.`` or ``model.``.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        DataParallel prefixes ``module.``, torch.compile ``_orig_mod.``, Lightning the name of an
        attribute.

    Returns
    -------
    inside : dict of str to Tensor
        What has the prefix, without it.
    outside : tuple of str
        What does not have it: weights of a loss, a metric or an average of the training, which no
        network needs.

    Raises
    ------
    CheckpointError
        If a name is far longer than a network's.
    """
    if any(len(key) > _LONGEST_NAME for key in tensors):
        raise CheckpointError(
            f"The file names a weight with more than {_LONGEST_NAME} characters; save the "
            "network's state_dict() alone."
        )
    inside, outside = _within(tensors)
    parts = _parts(inside)
    if not 2 <= len(parts) <= _MOST_PARTS or _is_unet(inside):
        return inside, tuple(outside)
    found = {part: _within(tensors) for part, tensors in parts.items()}
    networks = [part for part, (tensors, _) in found.items() if _is_unet(tensors)]
    # The average is a copy that few programs use; two networks of their own may be one cascade.
    plain = [part for part in networks if not _AVERAGE.fullmatch(part)] or networks
    if len(plain) != 1:
        return inside, tuple(outside)
    chosen, left = found[plain[0]]
    other = [key for key in inside if not key.startswith(f"{plain[0]}.")]
    return chosen, (*outside, *other, *left)


def _within(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove prefixes for as long as all convolutions share one."""
    inside, outside = dict(tensors), []
    for _ in range(_MOST_PREFIXES):
        parts = _parts(inside)
        if len(parts) != 1 or sum(tensor.ndim >= 4 for tensor in inside.values()) < 2:
            break
        ((prefix, within),) = parts.items()
        outside += [key for key in inside if not key.startswith(f"{prefix}.")]
        inside = within
    return inside, outside


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort weights by the first part of their names, where that has convolutions."""
    parts: dict[str, dict[str, Tensor]] = {
        key.partition(".")[0]: {} for key, tensor in tensors.items() if tensor.ndim >= 4
    }
    for key, tensor in tensors.items():
        first, dot, rest = key.partition(".")
        if dot and first in parts:
            parts[first][rest] = tensor
    return parts


def _is_unet(tensors: Mapping[str, Tensor]) -> bool:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        return bool(find_layout(shapes) or match_graph(shapes, ordered=True))
    except CheckpointError:
        return False


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names so that ``up10`` comes behind ``up9``."""

    def key(name: str) -> list[tuple[int, str]]:
        # Digits compare by length first: no conversion, however many there are.
        parts = re.split(r"(\d+)", name)
        return [(len(part) if part.isdecimal() else 0, part) for part in parts]

    return sorted(names, key=key)


def fitted_weights(tensors: Mapping[str, Tensor], finding: Finding) -> dict[str, Tensor]:
    """Copy weights under the names of our network, as float32.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Of the file.
    finding : Finding
        Which of them is which.

    Raises
    ------
    CheckpointError
        If a shape is not what the network needs, or values are not numbers.
    """
    import torch

    from napari_unet.model import UNet

    with torch.device("meta"):
        expected = UNet(finding.config).state_dict()
    _check(tensors, finding, expected)
    weights: dict[str, Tensor] = {}
    for ours, like in expected.items():
        theirs = finding.names.get(ours)
        if theirs is not None:
            kind = torch.float32 if like.is_floating_point() else like.dtype
            # One copy at most, out of the file and into rows, whatever order they came in.
            own = tensors[theirs].detach().to(kind)
            weights[ours] = own.clone(memory_format=torch.contiguous_format)
            if not torch.isfinite(weights[ours]).all():
                raise CheckpointError(f"{theirs} holds values that are no numbers; get it again.")
        else:
            fill = 1.0 if ours.endswith(".weight") else 0.0
            weights[ours] = torch.full(like.shape, fill, dtype=like.dtype)
        if ours.endswith("running_var") and bool((weights[ours] < 0).any()):
            raise CheckpointError(f"{theirs} holds variances below zero; get the file again.")
    return weights


def _check(tensors: Mapping[str, Tensor], finding: Finding, expected: Mapping[str, Tensor]) -> None:
    """Compare shapes and sizes before anything is copied."""
    import torch

    for ours, like in expected.items():
        theirs = finding.names.get(ours)
        if theirs is None:
            if ours.rpartition(".")[2] == "weight" and like.ndim > 1:
                raise CheckpointError(f"a weight for {ours} is missing; it is another network.")
            continue
        tensor = tensors[theirs]
        if tensor.shape != like.shape:
            have, need = (" x ".join(map(str, t.shape)) or "one" for t in (tensor, like))
            raise CheckpointError(
                f"{theirs} has {have} values where a valid U-Net of this depth has {need}; it is "
                "another network."
            )
        floats = tensor.is_floating_point() or not like.is_floating_point()
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex() or not floats:
            raise CheckpointError(f"{theirs} is not made of plain numbers; save it as float32.")
