"""What single Keras layers say about themselves: sizes, activations, crops, and what cannot be run.

A setting that a U-Net of ours does not have ends in an error that names the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from napari_unet.errors import CheckpointError
from napari_unet.importers.keras_config import Node

__all__ = [
    "ACTIVATIONS",
    "CONVOLUTIONS",
    "CROPS",
    "IDENTITIES",
    "NORMS",
    "POOLS",
    "TRANSPOSED",
    "UPSAMPLINGS",
    "Activation",
    "Crop",
    "activation_behind",
    "activation_inside",
    "check_axis",
    "check_convolution",
    "crop_of",
    "extents",
    "interpolation_of",
    "is_channels_first",
    "pool_of",
    "refused",
    "rescaling_of",
]

# Spatial axes by class.
CONVOLUTIONS = {"Conv2D": 2, "Conv3D": 3}
TRANSPOSED = {"Conv2DTranspose": 2, "Conv3DTranspose": 3}
UPSAMPLINGS = {"UpSampling2D": 2, "UpSampling3D": 3}
POOLS = {"MaxPooling2D": 2, "MaxPooling3D": 3}
NORMS = ("BatchNormalization", "BatchNormalizationV1", "SyncBatchNormalization")
CROPS = ("Cropping2D", "Cropping3D", "CenterCrop", "GetItem", "SlicingOpLambda")
# What does nothing once training is over.
IDENTITIES = (
    "Identity", "Dropout", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout",
    "GaussianDropout", "GaussianNoise", "ActivityRegularization",
)  # fmt: skip
# Operations of Keras 3 and functions of TensorFlow that stand in a graph like layers.
_OPERATIONS = {
    "Relu": "relu", "LeakyRelu": "leaky_relu", "Softmax": "softmax", "Sigmoid": "sigmoid",
    "nn.relu": "relu", "nn.leaky_relu": "leaky_relu", "nn.softmax": "softmax",
    "nn.sigmoid": "sigmoid", "math.sigmoid": "sigmoid",
}  # fmt: skip
ACTIVATIONS = ("Activation", "ReLU", "LeakyReLU", "TFOpLambda", *_OPERATIONS)
_SLOPE_KEYS = ("negative_slope", "alpha")
_LAYER_SLOPE, _FUNCTION_SLOPE = 0.3, 0.2  # what LeakyReLU and leaky_relu have if nothing is said

# A slope below zero; or linear, softmax or sigmoid.
Activation = float | str
# Axis and extent -> where the crop starts and stops.
Crop = Callable[[int, int], tuple[int, int]]


def refused(node: Node) -> CheckpointError:
    """Say which layer cannot be run, and what may help."""
    if node.kind in ("Lambda", "TFOpLambda"):
        return CheckpointError(
            f"its layer {node.layer} is a {node.kind}, a piece of code, which is never run; build "
            "the model with Keras's own layers (Cropping2D, Activation), load the weights and "
            "save it again."
        )
    return CheckpointError(
        f"its layer {node.layer} ({node.kind[:60]}) has no place in a U-Net that can be run tile "
        "by tile here."
    )


def extents(node: Node, key: str, ndim: int, default: int | None = None) -> tuple[int, ...]:
    """Return a setting that has one number, or one for each spatial axis."""
    value: Any = node.config.get(key)
    value = default if value is None else value
    numbers: tuple[int, ...] = tuple(value) if isinstance(value, list) else (value,) * ndim
    if len(numbers) != ndim or not all(_is_count(n, 1) for n in numbers):
        raise _odd(node, key)
    return numbers


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 16


def _odd(node: Node, key: str) -> CheckpointError:
    value = str(node.config.get(key))[:40]
    return CheckpointError(f"its layer {node.layer} has a {key} of {value}, which is not run here.")


def is_channels_first(node: Node) -> bool:
    """Whether the layer expects channels before rows and columns."""
    return bool(node.config.get("data_format") == "channels_first")


def check_axis(node: Node, ndim: int, *, channels_first: bool) -> None:
    """See that a layer works on the axis of the channels."""
    axis = node.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in ((1, -ndim - 1) if channels_first else (-1, ndim + 1)):
        raise CheckpointError(
            f"its layer {node.layer} works along axis {str(axis)[:20]}, which is not that of the "
            "channels."
        )


def check_convolution(node: Node, ndim: int) -> None:
    """See that a convolution is a plain one, or a transposed one whose kernels lie side by side."""
    if any(n != 1 for n in extents(node, "dilation_rate", ndim, 1)):
        raise _odd(node, "dilation_rate")
    if node.config.get("groups", 1) != 1:
        raise _odd(node, "groups")
    if node.config.get("padding", "valid") not in ("valid", "same"):
        raise _odd(node, "padding")
    kernel, strides = extents(node, "kernel_size", ndim), extents(node, "strides", ndim, 1)
    if node.kind in CONVOLUTIONS:
        if any(n != 1 for n in strides):
            raise _odd(node, "strides")
        return
    added = node.config.get("output_padding")
    if added is not None and any(added if isinstance(added, list) else [added]):
        raise _odd(node, "output_padding")
    if kernel != strides:
        raise CheckpointError(
            f"its layer {node.layer} has a kernel of {_by(kernel)} at strides of {_by(strides)}; "
            "only up-convolutions whose kernels lie side by side, as 2 x 2 at 2 x 2, are run."
        )


def pool_of(node: Node, ndim: int) -> tuple[int, ...]:
    """Return a pooling's factor along each axis."""
    factor = extents(node, "pool_size", ndim)
    if node.config.get("strides") is not None and extents(node, "strides", ndim) != factor:
        raise CheckpointError(
            f"its layer {node.layer} pools overlapping windows; only those side by side are run."
        )
    return factor


def interpolation_of(node: Node) -> str:
    """Return how an up-sampling fills in: nearest or linear."""
    how = node.config.get("interpolation", "nearest")
    if how not in ("nearest", "bilinear", "trilinear"):
        raise _odd(node, "interpolation")
    return "nearest" if how == "nearest" else "linear"


def activation_inside(node: Node) -> Activation:
    """Return the activation that a convolution ends in."""
    found = node.config.get("activation")
    if isinstance(found, Mapping):
        # A layer, or a function by its name.
        config = found.get("config")
        if isinstance(config, str):
            return _named(node, config, {})
        inner = Node(node.layer, str(found.get("class_name")), config or {})
        return activation_behind(inner)
    return _named(node, found, {})


def activation_behind(node: Node) -> Activation:
    """Return the activation that a layer is."""
    if node.kind == "ReLU":
        if node.config.get("max_value") is not None or node.config.get("threshold"):
            raise refused(node)
        return _slope(node, node.config, 0.0)
    if node.kind == "LeakyReLU":
        return _slope(node, node.config, _LAYER_SLOPE)
    if node.kind == "Activation":
        return activation_inside(node)
    if node.kind == "TFOpLambda":
        called = node.arguments[-1] if node.arguments else {}
        return _named(node, _OPERATIONS.get(str(node.config.get("function")), "?"), called)
    if node.kind in _OPERATIONS:
        return _named(node, _OPERATIONS[node.kind], node.config)
    raise refused(node)


def _named(node: Node, name: Any, settings: Mapping[str, Any]) -> Activation:
    """Return an activation by the name of its function."""
    if name in (None, "linear"):
        return "linear"
    if name in ("softmax", "sigmoid"):
        return str(name)
    if name == "relu":
        return 0.0
    if name == "leaky_relu":
        return _slope(node, settings, _FUNCTION_SLOPE)
    if name == "?":
        raise refused(node)
    raise CheckpointError(
        f"its layer {node.layer} has the activation {str(name)[:40]}; only ReLU and leaky ReLU "
        "are run."
    )


def _slope(node: Node, settings: Mapping[str, Any], default: float) -> float:
    """Return a slope below zero, by either of its names."""
    values = [settings[key] for key in _SLOPE_KEYS if settings.get(key) is not None]
    value = values[0] if values else default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise CheckpointError(f"its layer {node.layer} has a slope of {str(value)[:40]}.")
    return float(value)


def rescaling_of(node: Node) -> tuple[float, float]:
    """Return scale and offset of a Rescaling layer."""
    scale: Any = node.config.get("scale")
    offset: Any = node.config.get("offset", 0.0)
    for value in (scale, offset):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refused(node)
    if not (math.isfinite(scale) and math.isfinite(offset) and scale):
        raise refused(node)
    return float(scale), float(offset)


def crop_of(node: Node, ndim: int, size: tuple[int | None, ...], *, channels_first: bool) -> Crop:
    """Return what a cropping layer, or a slice, leaves of each axis.

    Parameters
    ----------
    node : Node
        Of one of `CROPS`.
    ndim : int
        Spatial axes.
    size : tuple of int or None
        Declared input extent: what is cut to a fixed size is only exact where it is known.
    channels_first : bool
        Order of the axes.
    """
    if node.kind.startswith("Cropping"):
        sides = _cropping(node, ndim)
        return lambda axis, extent: (sides[axis][0], extent - sides[axis][1])
    if node.kind == "CenterCrop":
        if ndim != 2 or None in size:
            raise _needs_size(node)
        wanted = [node.config["height"], node.config["width"]]
        if not all(_is_count(n, 1) for n in wanted):
            raise refused(node)

        def centre(axis: int, extent: int) -> tuple[int, int]:
            start = int((extent - wanted[axis]) / 2)
            return start, start + wanted[axis]

        return centre
    slices = _slices(node, ndim, channels_first=channels_first)
    for part, extent in zip(slices, size, strict=True):
        from_end = part.start is not None and part.start < 0
        if extent is None and (from_end or (part.stop is not None and part.stop >= 0)):
            raise _needs_size(node)
    return lambda axis, extent: slices[axis].indices(extent)[:2]


def _needs_size(node: Node) -> CheckpointError:
    return CheckpointError(
        f"its layer {node.layer} crops to a fixed size, but the model declares no input size; give "
        "its Input a shape, load the weights and save it again."
    )


def _cropping(node: Node, ndim: int) -> list[tuple[int, int]]:
    """Pixels off either side of each axis."""
    found = node.config["cropping"]
    rows = list(found) if isinstance(found, list) else [found] * ndim
    sides = [tuple(row) if isinstance(row, list) else (row, row) for row in rows]
    if len(sides) != ndim or any(
        len(pair) != 2 or not all(_is_count(n, 0) for n in pair) for pair in sides
    ):
        raise _odd(node, "cropping")
    return [(first, second) for first, second in sides]


def _slices(node: Node, ndim: int, *, channels_first: bool) -> list[slice]:
    """Slices of the spatial axes; batch and channels have to stay whole."""
    named = node.arguments[-1]
    found = named.get("slice_spec", named.get("key"))
    if found is None:
        found = next((a for a in node.arguments[:-1] if isinstance(a, list)), None)
    if isinstance(found, Mapping):
        found = found.get("items")
    if not isinstance(found, list):
        raise refused(node)
    parts = [_slice(node, item) for item in found]
    if parts.count(None) > 1:
        raise refused(node)
    if None in parts:
        where = parts.index(None)
        parts[where : where + 1] = [slice(None)] * (ndim + 3 - len(parts))
    parts += [slice(None)] * (ndim + 2 - len(parts))
    spatial = parts[2:] if channels_first else parts[1:-1]
    others = parts[:2] if channels_first else [parts[0], parts[-1]]
    plain = [part for part in spatial if part is not None and part.step in (None, 1)]
    if len(plain) != ndim or any(part not in (slice(None), slice(0, None)) for part in others):
        raise refused(node)
    return plain


def _slice(node: Node, item: Any) -> slice | None:
    """Read one slice; None is an ellipsis."""
    if isinstance(item, Mapping) and item.get("class_name") == "__ellipsis__":
        return None
    config = item.get("config", item) if isinstance(item, Mapping) else None
    if not isinstance(config, Mapping) or not {"start", "stop"} <= set(config):
        raise refused(node)
    values = [config["start"], config["stop"], config.get("step")]
    for value in values:
        if value is not None and not (_is_count(value, 0) or _is_count(-value, 0)):
            raise refused(node)
    return slice(*values)


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
