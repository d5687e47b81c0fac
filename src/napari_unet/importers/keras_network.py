"""A U-Net out of a Keras graph and its weights: tensors in PyTorch's orders, and what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.errors import CheckpointError
from napari_unet.importers.concatenations import Level, check_concatenations
from napari_unet.importers.keras_config import Node, graph_of
from napari_unet.importers.keras_graph import read_plan
from napari_unet.importers.keras_layers import Crop
from napari_unet.importers.keras_plan import Plan, Step
from napari_unet.importers.layouts import Family, Layout, Unit
from napari_unet.importers.reading import Reading
from napari_unet.intensity import Normalisation

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "EPSILON",
    "Weights",
    "as_torch",
    "convolution_tensors",
    "norm_tensors",
    "reading_of_model",
]

# By layer: kernel, bias, gamma, beta, moving_mean, moving_variance.
Weights = Mapping[str, Mapping[str, NDArray[Any]]]

_FAMILY = Family("Keras functional model")
EPSILON = 1e-3  # Keras's, if nothing is said
_OUR_EPSILON = 1e-5  # PyTorch's, which is the model's
_BYTE = 255.0


def reading_of_model(model: Mapping[str, Any], weights: Weights, kind: str) -> Reading:
    """Read a model.

    Parameters
    ----------
    model : mapping
        Its config.
    weights : mapping of str to mapping of str to ndarray
        Of each layer, by the layer's name behind that of the models it is inside of.
    kind : str
        Of the file, for people.

    Raises
    ------
    CheckpointError
        If it is no U-Net that can be run, or weights are missing.
    """
    graph = graph_of(model)
    try:
        plan = read_plan(graph)
        tensors = _tensors(plan, weights, graph.nodes)
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"the model's description is damaged ({type(error).__name__}: {str(error)[:80]}); "
            "save the model again."
        ) from error
    layout = _layout(plan, tensors)
    warnings = check_concatenations(_levels(plan, layout), plan.size)
    normalisation, factor = _normalisation(plan)
    if factor != 1:
        first = f"{plan.down[0][0].layer}.weight"
        tensors[first] = tensors[first] * factor
    return Reading(
        kind,
        as_torch(tensors),
        layout=layout,
        facts=_facts(plan),
        name="" if graph.name.startswith(("model", "functional", "sequential")) else graph.name,
        normalisation=normalisation,
        warnings=(*warnings, *_output_warnings(plan, layout.head.shape[0])),
    )


def convolution_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Bring a convolution's kernel from (extents, in, out) to (out, in, extents).

    A transposed one's goes from (extents, out, in) to (in, out, extents) likewise.
    """
    kernel = arrays["kernel"]
    axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    found = {"weight": kernel.transpose(axes)}
    return {**found, "bias": arrays["bias"]} if "bias" in arrays else found


def norm_tensors(arrays: Mapping[str, NDArray[Any]], epsilon: float) -> dict[str, NDArray[Any]]:
    """Return a batch norm's weights for PyTorch's epsilon: the difference goes into the variance.

    What the norm does without, a scale or a centre, is filled in.
    """
    mean, variance = arrays["moving_mean"], arrays["moving_variance"].astype(np.float64)
    gamma = arrays.get("gamma", np.ones_like(mean)).astype(np.float64)
    moved = variance + (epsilon - _OUR_EPSILON)
    low = (moved < 0) & (variance >= 0)
    if low.any():
        # No variance below zero: the scale takes what is left.
        gamma = np.where(low, gamma * np.sqrt(_OUR_EPSILON / (variance + epsilon)), gamma)
        moved = np.where(low, 0, moved)
    return {
        "weight": gamma.astype(np.float32),
        "bias": arrays.get("beta", np.zeros_like(mean)),
        "running_mean": mean,
        "running_var": moved.astype(np.float32),
    }


def _tensors(plan: Plan, weights: Weights, nodes: Mapping[str, Node]) -> dict[str, NDArray[Any]]:
    """All tensors, by layer and field; every kernel is held against the layer's settings."""
    found: dict[str, NDArray[Any]] = {}
    filters = {node.layer: node.config.get("filters") for node in nodes.values()}
    transposed = {up.step.layer for up in plan.ups if up.how == "upconv"}
    bare = [(level, up) for level, up in enumerate(plan.ups) if up.is_bare]
    steps = [*plan.units, plan.head]
    for step in steps:
        if any(step is up.step for _, up in bare):
            continue
        kernel = _needed(weights, step.layer, "kernel")
        out = -2 if step.layer in transposed else -1
        if (
            kernel.ndim != plan.ndim + 2
            or kernel.shape[: plan.ndim] != step.kernel
            or kernel.shape[out] != filters[step.layer]
        ):
            raise CheckpointError(
                f"the weights of layer {step.layer}, {' x '.join(map(str, kernel.shape))}, are not "
                "those that the model's description asks for."
            )
        tensors = convolution_tensors(weights[step.layer])
        found.update({f"{step.layer}.{field}": array for field, array in tensors.items()})
    for step in steps:
        if step.norm is not None:
            for field in ("moving_mean", "moving_variance"):
                _needed(weights, step.norm.layer, field)
            epsilon = step.norm.config.get("epsilon", EPSILON)
            if isinstance(epsilon, bool) or not 0 <= float(epsilon) < 1:
                raise CheckpointError(f"its layer {step.norm.layer} has an impossible epsilon.")
            tensors = norm_tensors(weights[step.norm.layer], float(epsilon))
            found.update({f"{step.norm.layer}.{field}": array for field, array in tensors.items()})
    for level, up in bare:
        # Nothing but an interpolation: a convolution of one pixel that hands every channel on.
        below = plan.down[-1] if level + 1 == len(plan.ups) else plan.merge[level + 1]
        width = found[f"{below[-1].layer}.weight"].shape[0]
        eye = np.eye(width, dtype=np.float32)
        found[f"{up.step.layer}.weight"] = eye.reshape(width, width, *(1,) * plan.ndim)
    return found


def _needed(weights: Weights, layer: str, field: str) -> NDArray[Any]:
    array = weights.get(layer, {}).get(field)
    if array is None:
        raise CheckpointError(f"it holds no {field} for its layer {layer}; save the model again.")
    if not np.issubdtype(array.dtype, np.floating):
        raise CheckpointError(f"the {field} of its layer {layer} is not made of plain numbers.")
    return array


def _layout(plan: Plan, tensors: Mapping[str, NDArray[Any]]) -> Layout:
    def unit(step: Step) -> Unit:
        shape = tensors[f"{step.layer}.weight"].shape
        return Unit(step.layer, shape, step.norm.layer if step.norm else None, step.norm_order)

    return Layout(
        _FAMILY,
        tuple(tuple(map(unit, block)) for block in plan.down),
        tuple(tuple(map(unit, block)) for block in plan.merge),
        tuple(unit(up.step) for up in plan.ups),
        unit(plan.head),
        pools=plan.pools,
    )


def _levels(plan: Plan, layout: Layout) -> list[Level]:
    """What each level does to sizes and channels."""
    if any(not block for block in (*plan.down, *plan.merge)):
        raise CheckpointError("A block of the network has no convolution.")
    found = []
    for number, block in enumerate(plan.down):
        width = layout.down[number][-1].shape[0]
        if number == len(plan.ups):
            found.append(Level(_lost(block, plan.ndim), width))
            continue
        up, crops = layout.up[number], plan.crops[number]
        found.append(
            Level(
                _lost(block, plan.ndim),
                width,
                plan.pools[number],
                _lost(plan.merge[number], plan.ndim),
                up.shape[1] if plan.ups[number].how == "upconv" else up.shape[0],
                layout.merge[number][0].shape[1],
                _cut(crops) if crops else None,
            )
        )
    return found


def _lost(block: Sequence[Step], ndim: int) -> tuple[int, ...]:
    """Pixels that a block's convolutions take off each axis."""
    valid = [step.kernel for step in block if step.padding == "valid"]
    return tuple(sum(kernel[axis] - 1 for kernel in valid) for axis in range(ndim))


def _cut(crops: Sequence[Crop]) -> Any:
    """Join crops that follow each other."""

    def cut(axis: int, have: int, want: int) -> tuple[int, int]:
        start, stop = 0, have
        for crop in crops:
            first, last = crop(axis, stop - start)
            start, stop = start + first, start + last
        return start, stop

    return cut


def _facts(plan: Plan) -> dict[str, str]:
    """Return the answers that the graph gives to what weights cannot say."""
    paddings = {
        step.padding
        for block in (*plan.down, *plan.merge)
        for step in block
        if any(n > 1 for n in step.kernel)
    }
    if len(paddings) > 1:
        raise CheckpointError("only some of its convolutions are padded; such a U-Net is not run.")
    facts = {"padding": paddings.pop() if paddings else "valid"}
    slopes = {step.slope for step in plan.units if step.slope is not None}
    if len(slopes) > 1:
        listed = ", ".join(f"{slope:g}" for slope in sorted(slopes))
        raise CheckpointError(
            f"its activations have different slopes below zero ({listed}); such a U-Net is not run."
        )
    # Keras's settings went through float32; ours print as they were typed.
    facts["slope"] = str(np.float32(slopes.pop())).removesuffix(".0") if slopes else "0"
    orders = {step.norm_order for step in plan.units if step.norm_order}
    if len(orders) > 1:
        raise CheckpointError("its batch norms stand now before, now behind the activation.")
    if any(step.norm for step in plan.units):
        facts["norm-order"] = orders.pop() if orders else "norm-act"
    if plan.ups:
        active = {up.step.slope is not None for up in plan.ups}
        if len(active) > 1:
            raise CheckpointError("only some of its up-samplings are followed by an activation.")
        facts |= {"order": plan.order, "up-activation": "yes" if active.pop() else "no"}
        if plan.ups[0].how != "upconv":
            facts["up"] = plan.ups[0].how
    return facts


def _normalisation(plan: Plan) -> tuple[Normalisation | None, float]:
    """Return what a Rescaling layer is for the image, and a factor for the first convolution."""
    if plan.rescaling is None:
        return None, 1.0
    scale, offset = plan.rescaling
    # Made for 8-bit images, mapped to [0, 1] or to [-1, 1]; else for pixels as they are.
    is_byte = any(abs(scale * _BYTE - factor) < 1e-6 for factor in (1, 2))
    factor = scale * _BYTE if is_byte else scale
    kind = "dtype-range" if is_byte else "none"
    factor = round(factor) if is_byte else factor
    return Normalisation.from_dict({"kind": kind, "shift": offset / factor}), factor


def _output_warnings(plan: Plan, classes: int) -> tuple[str, ...]:
    if plan.final == "sigmoid" and classes > 1:
        return (
            "Its outputs are sigmoids, one yes or no for each class; here the classes share one "
            "softmax.",
        )
    if plan.final == "softmax" and classes == 1:
        return ("Its only output is a softmax, which is always 1; here it is a sigmoid.",)
    return ()


def as_torch(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Hand arrays over without a copy: they may lie in a file until they are used."""
    import torch

    return {name: torch.from_numpy(array) for name, array in tensors.items()}
