"""What the definition of a Caffe network says about its weights, and what weights cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from napari_unet.errors import CheckpointError
from napari_unet.geometry import Geometry
from napari_unet.importers.caffe_walk import CaffeLayer, Joint, Node, Walk
from napari_unet.importers.concatenations import Cut, Level, check_concatenations
from napari_unet.importers.layouts import Family, Layout, Shape, Unit

__all__ = ["CaffeGraph", "read_graph"]


@dataclass(frozen=True)
class CaffeGraph:
    """What a definition says about a U-Net.

    Parameters
    ----------
    layout : Layout
        Which weights are which part.
    facts : mapping of str
        Answers to `napari_unet.importers.CHOICES`.
    notes : mapping of str
        How the network differs from the paper's drawing, level by level.
    """

    layout: Layout
    facts: Mapping[str, str]
    notes: Mapping[str, str]


def read_graph(
    layers: Iterable[CaffeLayer],
    shapes: Mapping[str, Shape],
    family: Family,
    *,
    concat_crops: bool = True,
) -> CaffeGraph:
    """Follow a definition from the last convolution back to the input.

    Parameters
    ----------
    layers : iterable of CaffeLayer
        In the order in which they run.
    shapes : mapping of str to tuple of int
        Of weights, ``<layer>.weight``.
    family : Family
        Whose habits fill in what the definition does not say.
    concat_crops : bool
        Whether it is Freiburg's own Caffe, whose concatenation crops the larger map by itself.

    Raises
    ------
    CheckpointError
        If it is no U-Net that can be run, or contradicts itself or the weights.
    """
    return _Facts(Walk(layers), shapes, family, concat_crops).graph()


class _Facts:
    """What a walk tells, held against the weights."""

    def __init__(
        self, walk: Walk, shapes: Mapping[str, Shape], family: Family, concat_crops: bool
    ) -> None:
        self.walk, self.shapes, self.family = walk, shapes, family
        self.concat_crops = concat_crops

    def graph(self) -> CaffeGraph:
        """Check everything, then say it."""
        walk = self.walk
        if len(walk.down) != len(walk.joints) + 1:
            raise CheckpointError(
                f"The network's definition has {len(walk.down) - 1} poolings but "
                f"{len(walk.joints)} up-convolutions; a U-Net has as many."
            )
        for level, joint in enumerate(walk.joints):
            if joint.skip is not walk.down[level][-1]:
                raise CheckpointError(
                    f"The skip connection of level {level} does not come from the end of that "
                    "level's convolutions."
                )
        layout = Layout(
            self.family,
            tuple(tuple(self._unit(n) for n in block) for block in walk.down),
            tuple(tuple(self._unit(n) for n in block) for block in walk.merge),
            tuple(self._unit(joint.up) for joint in walk.joints),
            self._unit(walk.head),
        )
        pools = tuple(unit.shape[2:] for unit in layout.up)
        self._check_poolings(pools)
        facts = {"padding": self._padding(), **self._activations(), **self._shift()}
        if walk.joints:
            facts["order"] = self._order()
        notes: dict[str, str] = {}
        if facts["padding"] == "valid":
            cuts = [
                _cut(joint, len(pool)) if joint.crop or self.concat_crops else None
                for joint, pool in zip(walk.joints, pools, strict=True)
            ]
            _check_crops(layout, pools, cuts)
            notes = _notes(layout, pools, walk.joints)
        return CaffeGraph(layout, facts, notes)

    def _unit(self, node: Node) -> Unit:
        """One convolution, as weights and definition both say it."""
        layer = node.layer
        shape = self.shapes.get(f"{layer.name}.weight")
        if shape is None or len(shape) < 4:
            raise CheckpointError(
                f"The weights of {layer.name} are missing; definition and weights are of two "
                "networks."
            )
        if not layer.all_are("group", 1) or not layer.all_are("dilation", 1):
            raise CheckpointError(f"{layer.name} is grouped or dilated; such U-Nets are not run.")
        up = layer.kind == "deconvolution"
        kernel = _extents(layer, "kernel", len(shape) - 2)
        width = layer.settings.get("num_output", (shape[1 if up else 0],))[0]
        if (kernel and kernel != shape[2:]) or width != shape[1 if up else 0]:
            raise CheckpointError(
                f"The network's definition gives {layer.name} {width:g} channels and a kernel of "
                f"{_by(kernel)}, its weights have {shape[1 if up else 0]} and {_by(shape[2:])}; "
                "they are of two networks."
            )
        stride = _extents(layer, "stride", len(shape) - 2) or (1,) * (len(shape) - 2)
        if stride != (shape[2:] if up else (1,) * (len(shape) - 2)):
            raise CheckpointError(f"{layer.name} has a stride of {_by(stride)}, which is not run.")
        if up and not layer.all_are("pad", 0):
            raise CheckpointError(f"{layer.name} is a padded up-convolution, which is not run.")
        return Unit(layer.name, shape)

    def _check_poolings(self, pools: Sequence[Shape]) -> None:
        for node, pool in zip(self.walk.pools, pools, strict=True):
            layer = node.layer
            sizes = [_extents(layer, name, len(pool)) for name in ("kernel", "stride")]
            if not layer.all_are("pool", 0) or not layer.all_are("pad", 0) or sizes[0] != sizes[1]:
                raise CheckpointError(f"{layer.name} is no plain maximum of blocks; it is not run.")
            if sizes[0] != pool:
                raise CheckpointError(
                    f"{layer.name} pools by {_by(sizes[0])}, but the up-convolution of that level "
                    f"gives {_by(pool)} px back; the maps cannot meet."
                )

    def _blocks(self) -> list[Node]:
        return [node for block in (*self.walk.down, *self.walk.merge) for node in block]

    def _padding(self) -> str:
        kinds = {
            "valid" if node.layer.all_are("pad", 0) else "same"
            for node in self._blocks()
            if any(k > 1 for k in self.shapes[f"{node.layer.name}.weight"][2:])
        }
        for node in self._blocks():
            kernel = self.shapes[f"{node.layer.name}.weight"][2:]
            pad = _extents(node.layer, "pad", len(kernel)) or (0,) * len(kernel)
            if any(pad) and pad != tuple(k // 2 for k in kernel):
                raise CheckpointError(f"{node.layer.name} is padded by {_by(pad)}, which is odd.")
        if len(kinds) > 1 or not self.walk.head.layer.all_are("pad", 0):
            raise CheckpointError("Only some convolutions are padded; such a U-Net is not run.")
        return kinds.pop() if kinds else "valid"

    def _activations(self) -> dict[str, str]:
        """One slope everywhere; after the up-convolutions all or nothing."""
        slopes = {s for node in self._blocks() for s in self.walk.after.get(id(node), ())}
        ups = {s for j in self.walk.joints for s in self.walk.after.get(id(j.up), ())}
        if len(slopes) != 1 or len(slope := slopes.pop()) != 1 or ups - {(), slope} or len(ups) > 1:
            raise CheckpointError(
                "The network's definition does not end every convolution in one and the same "
                "ReLU; such a U-Net is not run."
            )
        if not math.isfinite(slope[0]):
            raise CheckpointError("The slope of the network's ReLUs is no number.")
        facts = {"slope": f"{slope[0]:.7g}"}
        return {**facts, "up-activation": "yes" if ups == {slope} else "no"} if ups else facts

    def _shift(self) -> dict[str, str]:
        """What is added to the image before the first convolution."""
        shift = 0.0
        for layer in self.walk.first:
            if layer.kind in ("power", "valuetransformation"):
                if not (layer.all_are("scale", 1) and layer.all_are("power", 1)):
                    raise CheckpointError(f"{layer.name} scales the image, which is not run.")
                values = set(layer.settings.get("shift", (0.0,)))
                if len(values) != 1:
                    raise CheckpointError(f"{layer.name} shifts channels apart; it is not run.")
                shift += values.pop()
        if not math.isfinite(shift):
            raise CheckpointError("What is added to the image is no number.")
        return {"shift": f"{shift:.7g}"} if shift else {}

    def _order(self) -> str:
        orders = {"up-skip" if joint.up_first else "skip-up" for joint in self.walk.joints}
        if len(orders) > 1:
            raise CheckpointError("The order of the concatenations changes; it is not run.")
        return orders.pop()


def _notes(layout: Layout, pools: Sequence[Shape], joints: Sequence[Joint]) -> dict[str, str]:
    """Say where maps of two sizes meet, and where channels are not halved."""
    kernels = [block[0].shape[2:] for block in layout.down]
    size = tuple(axis.below(572) or axis.smallest for axis in Geometry.of(kernels, pools).axes)
    whole = _by(size)
    missing: list[str] = []
    for level, joint in enumerate(joints):
        size = tuple(n - 2 * (k - 1) for n, k in zip(size, kernels[level], strict=True))
        below = Geometry.of(kernels[level + 1 :], pools[level + 1 :]).axes
        # What all levels below cost, in pixels of this one.
        losses = [axis.loss * pool for axis, pool in zip(below, pools[level], strict=True)]
        small = tuple(n - loss for n, loss in zip(size, losses, strict=True))
        crop = tuple(loss // 2 for loss in losses)
        if joint.crop is None:
            each = str(crop[0]) if len(set(crop)) == 1 else _by(crop)
            missing.append(f"at level {level} {_by(size)} meets {_by(small)}: crop {each} per side")
        size = tuple(n // pool for n, pool in zip(size, pools[level], strict=True))
    notes: dict[str, str] = {}
    if missing:
        notes["crops"] = (
            "the definition concatenates maps of two sizes without cropping the larger one, as "
            f"Freiburg's Caffe does by itself; of an input of {whole} px, "
            f"{'; '.join(reversed(missing))}"
        )
    odd = [
        f"to level {level} it gives {up.shape[1]} channels for {up.shape[0]}, not {half}"
        for level, up in enumerate(layout.up)
        if up.shape[1] != (half := up.shape[0] // 2)
    ]
    if odd:
        notes["up-convolutions"] = f"not all halve the channels: {'; '.join(odd)}"
    return notes


def _check_crops(layout: Layout, pools: Sequence[Shape], cuts: Sequence[Cut | None]) -> None:
    """See that the crops take the centre and that channels add up."""
    axes = len(layout.head.shape) - 2

    def lost(block: Sequence[Unit]) -> tuple[int, ...]:
        return tuple(sum(unit.shape[2 + axis] - 1 for unit in block) for axis in range(axes))

    levels = [
        Level(lost(layout.down[level]), layout.down[level][-1].shape[0], pool, lost(merge),
              up.shape[1], merge[0].shape[1], cut)
        for level, (pool, merge, up, cut) in enumerate(
            zip(pools, layout.merge, layout.up, cuts, strict=True)
        )
    ]  # fmt: skip
    levels.append(Level(lost(layout.down[-1]), layout.down[-1][-1].shape[0]))
    check_concatenations(levels, [None] * axes)


def _cut(joint: Joint, axes: int) -> Cut:
    """Where a crop starts and stops; without an offset it is Freiburg's, which takes the centre."""
    offset = _extents(joint.crop.layer, "offset", axes) if joint.crop else ()

    def cut(axis: int, have: int, want: int) -> tuple[int, int]:
        start = offset[axis] if offset else (have - want) // 2
        return start, start + want

    return cut


def _extents(layer: CaffeLayer, setting: str, axes: int) -> Shape:
    """One number for each axis; a single one is for all."""
    values = tuple(int(value) for value in layer.settings.get(setting, ()))
    if len(values) not in (0, 1, axes):
        raise CheckpointError(f"{layer.name} has {len(values)} extents for {axes} axes.")
    return values * axes if len(values) == 1 else values


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size)) or "nothing"
