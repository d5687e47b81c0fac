"""Weights that Keras saved without their model: layers by their automatic names and order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import CheckpointError
from napari_unet.importers.graph import match_graph
from napari_unet.importers.keras_network import (
    EPSILON,
    Weights,
    as_torch,
    convolution_tensors,
    norm_tensors,
)
from napari_unet.importers.layouts import Family, Layout, Unit
from napari_unet.importers.reading import Reading
from napari_unet.importers.weights import natural_order

__all__ = ["reading_of_weights"]

# UpSampling2D repeats pixels if nothing is said; keras-unet's valid network puts [up, skip].
_FAMILY = Family("Keras layers by their order", order="up-skip", up="nearest")
_CROPS = ("cropping2d", "cropping3d", "center_crop")
_OTHER_CROPS = ("lambda", "getitem", "sliced", "get_item")
# Slopes below zero that Keras takes where nothing is said, of the layer and of the function.
_LEAKY = {"leaky_re_lu": "0.3", "leaky_relu": "0.2"}
_ACTIVATIONS = ("activation", "re_lu", "relu", *_LEAKY)
_KNOWN = {
    *(_CROPS + _OTHER_CROPS + _ACTIVATIONS),
    *("conv2d", "conv3d", "conv2d_transpose", "conv3d_transpose", "max_pooling2d"),
    *("max_pooling3d", "dropout", "spatial_dropout2d", "spatial_dropout3d", "up_sampling2d"),
    *("up_sampling3d", "concatenate"),
}
# Nothing that these do to a map is lost.
_HARMLESS = {
    *("input", "input_layer", "functional", "model", "sequential", "softmax", "sigmoid"),
    *("gaussian_noise", "gaussian_dropout", "alpha_dropout"),
}
_FOREIGN = re.compile(
    r"(global_)?average_pooling\w*|global_max_pooling\w*|p_?re_?lu|[cgs]?elu|silu|swish|mish"
    r"|thresholded_re_lu|(?!(sync_)?batch_norm)\w*normalization|zero_padding\w*"
    r"|(separable|depthwise)_conv\w*|add|subtract|multiply|average|maximum|minimum|dot"
)
# By what it cannot lack: all that a layer with weights may have.
_ROLES = {
    "kernel": {"kernel", "bias"},
    "moving_mean": {"gamma", "beta", "moving_mean", "moving_variance"},
}


def reading_of_weights(layers: Weights, *, is_ordered: bool) -> Reading:
    """Find the only U-Net that layers can be.

    Parameters
    ----------
    layers : mapping of str to mapping of str to ndarray
        By the layer's name; a layer without weights is empty.
    is_ordered : bool
        Whether they come in the order of the model, and are all of its layers.

    Raises
    ------
    CheckpointError
        If no U-Net, or more than one, has such layers, or one of them is none of a U-Net.
    """
    names = list(layers) if is_ordered else natural_order(layers)
    _check_layers(layers)
    tensors = _tensors(names, layers, is_ordered=is_ordered)
    layout = match_graph({key: array.shape for key, array in tensors.items()}, ordered=True)
    kinds = [_kind(name) for name in names]
    facts, family = {}, _FAMILY
    if any(kind in _CROPS for kind in kinds):
        facts["padding"] = "valid"
    elif is_ordered and layout.up and not any(kind in _OTHER_CROPS for kind in kinds):
        family = replace(family, padding="same")
    if leaky := [kind for kind in kinds if kind in _LEAKY]:
        family = replace(family, slope=_LEAKY[leaky[0]])
    order = _norm_order(names, kinds, layers) if is_ordered else None
    return Reading(
        "Keras weights",
        as_torch(tensors),
        layout=_ordered(replace(layout, family=family), order),
        facts=facts,
        warnings=_warnings(names, layers),
    )


def _check_layers(layers: Weights) -> None:
    """Refuse what no U-Net that is run has, by the weights and by the automatic names."""
    for name, arrays in layers.items():
        if _FOREIGN.fullmatch(_kind(name)):
            raise CheckpointError(
                f"its layer {name} is none of a plain U-Net; networks of convolutions, batch "
                "norms, ReLUs, max poolings, crops and concatenations are run, no others."
            )
        if arrays and not any(one in arrays and arrays.keys() <= _ROLES[one] for one in _ROLES):
            raise CheckpointError(
                f"the weights of its layer {name} ({', '.join(sorted(arrays))[:100]}) are neither "
                "a convolution's nor a batch norm's; no other layers with weights are run."
            )
    kinds = {_kind(name) for name in layers}
    if len(kinds & {"re_lu", "relu", *_LEAKY}) > 1:
        raise CheckpointError(
            "its activations are of several kinds, with slopes that weights alone do not say; save "
            "the whole model instead."
        )


def _warnings(names: Sequence[str], layers: Weights) -> tuple[str, ...]:
    """Say what Keras keeps in the model's description alone."""
    found = []
    if any("moving_mean" in arrays for arrays in layers.values()):
        found.append(
            f"Weights alone do not say the epsilon of its batch norms; {EPSILON}, Keras's own, is "
            "taken."
        )
    if leaky := [name for name in names if _kind(name) in _LEAKY]:
        found.append(
            f"Weights alone do not say the slope of {leaky[0]} and its like; where none is given, "
            f"{_LEAKY[_kind(leaky[0])]}, Keras's own, is taken."
        )
    known = _KNOWN | _HARMLESS
    if odd := [name for name in names if not layers[name] and _kind(name) not in known]:
        found.append(
            f"Weights alone do not say what these layers do: {', '.join(odd)[:200]}; what is no "
            "max pooling, ReLU, crop or concatenation of a plain U-Net is left out."
        )
    return tuple(found)


def _tensors(names: Sequence[str], layers: Weights, *, is_ordered: bool) -> dict[str, NDArray[Any]]:
    """Tensors in PyTorch's orders, convolutions in the order in which they run, then norms."""
    convolutions = [name for name in names if "kernel" in layers[name]]
    tensors: dict[str, NDArray[Any]] = {}
    for name in convolutions if is_ordered else _as_computed(convolutions, layers):
        if layers[name]["kernel"].ndim not in (4, 5):
            raise CheckpointError(f"its layer {name} is no convolution of 2 or 3 dimensions.")
        found = convolution_tensors(layers[name])
        tensors.update({f"{name}.{field}": array for field, array in found.items()})
    for name in (name for name in names if "moving_mean" in layers[name]):
        if "moving_variance" not in layers[name]:
            raise CheckpointError(f"the statistics of its layer {name} are incomplete.")
        found = norm_tensors(layers[name], EPSILON)
        tensors.update({f"{name}.{field}": array for field, array in found.items()})
    if odd := [key for key, array in tensors.items() if not _is_plain(array)]:
        raise CheckpointError(f"{odd[0]} is not made of plain numbers; save it as float32.")
    return tensors


def _is_plain(array: NDArray[Any]) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _as_computed(names: Sequence[str], layers: Weights) -> list[str]:
    """Order convolutions as they run: names count within a class, transposed ones apart."""
    ups = [n for n in names if any(k % 2 == 0 for k in layers[n]["kernel"].shape[:-2])]
    others = [n for n in names if n not in ups]
    depth = len(ups)
    if len(others) != 4 * depth + 3:
        return [*others, *ups]
    ordered = others[: 2 * depth + 2]
    for number, up in enumerate(ups):
        start = 2 * depth + 2 + 2 * number
        ordered += [up, *others[start : start + 2]]
    return [*ordered, others[-1]]


def _kind(name: str) -> str:
    """Class in an automatic name: conv2d of conv2d_12, elu of tf.nn.elu_1."""
    return re.sub(r"_\d+$", "", re.split(r"[/.]", name)[-1])


def _norm_order(names: Sequence[str], kinds: Sequence[str], layers: Weights) -> str | None:
    """Tell from the order of layers whether batch norms come before the activation."""
    found = set()
    for number, name in enumerate(names):
        if "moving_mean" not in layers[name]:
            continue
        beside = [*kinds[max(0, number - 1) : number], *kinds[number + 1 : number + 2]]
        if kinds[number] != "batch_normalization" or not {*beside} <= _KNOWN or len(beside) != 2:
            return None
        # With no activation beside it, it stands in the convolution before.
        is_first = beside[0] not in _ACTIVATIONS and beside[1] in _ACTIVATIONS
        found.add("norm-act" if is_first else "act-norm")
    return found.pop() if len(found) == 1 else None


def _ordered(layout: Layout, order: str | None) -> Layout:
    """Note the order in the layout's units."""
    if order is None:
        return layout

    def noted(units: tuple[Unit, ...]) -> tuple[Unit, ...]:
        return tuple(replace(u, norm_order=order) if u.norm else u for u in units)

    return replace(
        layout,
        down=tuple(noted(block) for block in layout.down),
        merge=tuple(noted(block) for block in layout.merge),
    )
