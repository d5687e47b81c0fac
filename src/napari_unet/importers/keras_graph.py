"""From the layer graph of a Keras model to a U-Net: which layer is which part, and what it says.

The graph is walked from the output backwards: a block of convolutions ends at a concatenation,
whose one input comes from an up-sampling and whose other is an encoder's map, cropped; the deepest
block ends at a pooling, and from there on poolings alternate with blocks up to the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from napari_unet.errors import CheckpointError
from napari_unet.importers.keras_config import Graph, Node
from napari_unet.importers.keras_layers import (
    ACTIVATIONS,
    CONVOLUTIONS,
    CROPS,
    IDENTITIES,
    NORMS,
    POOLS,
    TRANSPOSED,
    UPSAMPLINGS,
    Activation,
    Crop,
    activation_behind,
    activation_inside,
    check_axis,
    check_convolution,
    crop_of,
    extents,
    interpolation_of,
    is_channels_first,
    pool_of,
    refused,
    rescaling_of,
)
from napari_unet.importers.keras_plan import Plan, Step, Up

__all__ = ["read_plan"]

_SIDED = {**POOLS, **UPSAMPLINGS, "Cropping2D": 2, "Cropping3D": 3, "CenterCrop": 2}
# What an encoder's map can come from.
_ENCODER = (*CONVOLUTIONS, *NORMS, *ACTIVATIONS, *POOLS, "InputLayer")


def read_plan(graph: Graph) -> Plan:
    """Recognise a U-Net in a graph.

    Parameters
    ----------
    graph : Graph
        Of a functional model.

    Raises
    ------
    CheckpointError
        If it is none, or one that cannot be run: the message names the layer.
    """
    return _Reader(graph).read()


@dataclass
class _Tail:
    """What stands behind a main layer, in the order in which it is computed."""

    main: str
    norms: list[Node] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)
    order: list[str] = field(default_factory=list)


class _Reader:
    """Walks one graph."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: Mapping[str, Node] = graph.nodes
        self.output = graph.output
        # Each step goes from a node to one that it is given: more steps than nodes are a circle.
        self.steps = 8 * len(graph.nodes) + 64
        inputs = [node for node in self.nodes.values() if node.kind == "InputLayer"]
        spatial = {**CONVOLUTIONS, **TRANSPOSED}
        dims = {spatial[node.kind] for node in self.nodes.values() if node.kind in spatial}
        sided = [node for node in self.nodes.values() if node.kind in {**spatial, **_SIDED}]
        orders = {is_channels_first(node) for node in sided}
        if not inputs or len(dims) != 1:
            raise CheckpointError("its layers are not those of a U-Net of 2 or 3 dimensions.")
        if len(orders) != 1:
            raise CheckpointError("its layers disagree about which axis is that of the channels.")
        self.ndim, self.channels_first = dims.pop(), orders.pop()
        self.size = self._declared(inputs[0])
        self.skips: list[str] = []
        self.crops: list[tuple[Crop, ...]] = []
        self.orders: list[str] = []

    def _declared(self, node: Node) -> tuple[int | None, ...]:
        """Input extent along the spatial axes."""
        shape = node.config.get("batch_shape") or node.config.get("batch_input_shape")
        if not isinstance(shape, list) or len(shape) != self.ndim + 2:
            return (None,) * self.ndim
        spatial = shape[2:] if self.channels_first else shape[1:-1]
        return tuple(
            n if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 20 else None
            for n in spatial
        )

    def read(self) -> Plan:
        head, final, features = self._head()
        merge: list[tuple[Step, ...]] = []
        ups: list[Up] = []
        block, source = self._block(features)
        while self.nodes[source].kind == "Concatenate":
            merge.append(block)
            up, features = self._concatenation(source)
            ups.append(up)
            block, source = self._block(features)
        down, pools = [block], []
        while self.nodes[source].kind in POOLS:
            node = self.nodes[source]
            pools.append(pool_of(node, self.ndim))
            entry = self._given(node)
            self._check_skip(len(pools), len(merge), entry, node)
            block, source = self._block(entry)
            down.append(block)
        rescaling = None
        if self.nodes[source].kind == "Rescaling":
            rescaling = rescaling_of(self.nodes[source])
            source = self._plain(self._given(self.nodes[source]))
        if self.nodes[source].kind != "InputLayer":
            raise refused(self.nodes[source])
        if len(pools) != len(merge):
            raise CheckpointError(
                f"its graph has {len(pools)} poolings and {len(merge)} concatenations, which is "
                "no U-Net."
            )
        pools.reverse()
        self._check_ups(ups, pools)
        return Plan(
            self.ndim,
            self.channels_first,
            self.size,
            tuple(reversed(down)),
            tuple(merge),
            tuple(pools),
            tuple(ups),
            tuple(self.crops),
            self.orders[0] if self.orders else "",
            head,
            final,
            rescaling,
        )

    def _head(self) -> tuple[Step, str, str]:
        """Return the last convolution, what stands behind it, and what it is given."""
        tail = self._tail(self.output)
        node = self.nodes[tail.main]
        if node.kind not in CONVOLUTIONS or any(
            n != 1 for n in extents(node, "kernel_size", self.ndim)
        ):
            raise CheckpointError(
                f"its last layer {node.layer} ({node.kind[:60]}) is no convolution of one pixel "
                "that gives the classes; only such U-Nets are run."
            )
        if tail.norms or len(tail.activations) > 1:
            raise CheckpointError(f"what follows its last convolution, {node.layer}, is not run.")
        final = tail.activations[0] if tail.activations else "linear"
        if not isinstance(final, str):
            raise CheckpointError(
                f"its last convolution {node.layer} ends in a ReLU, which makes logits below zero "
                "equal; take it out, load the weights and save the model again."
            )
        check_convolution(node, self.ndim)
        kernel = extents(node, "kernel_size", self.ndim)
        return Step(node.layer, kernel, "valid"), final, self._given(node)

    def _block(self, key: str) -> tuple[tuple[Step, ...], str]:
        """Return the convolutions that end in `key`, and the node that the first is given."""
        steps: list[Step] = []
        while True:
            tail = self._tail(key)
            node = self.nodes[tail.main]
            if node.kind not in CONVOLUTIONS:
                if tail.order:
                    raise CheckpointError(
                        f"norms or activations behind its layer {node.layer} ({node.kind[:60]}) "
                        "have no place in a U-Net that is run here."
                    )
                return tuple(reversed(steps)), tail.main
            step = self._step(node, tail)
            if step.slope is None:
                raise CheckpointError(
                    f"its layer {node.layer} has no activation behind it; only U-Nets in which "
                    "every convolution but the last has one are run."
                )
            steps.append(step)
            key = self._given(node)

    def _step(self, node: Node, tail: _Tail) -> Step:
        """Read a convolution and its tail."""
        check_convolution(node, self.ndim)
        slopes = list(tail.activations)
        if len(slopes) == 2 and slopes == [0.0, 0.0] and tail.order[:2] == ["act", "act"]:
            # A ReLU twice is a ReLU.
            slopes, tail.order = slopes[1:], tail.order[1:]
        if len(slopes) > 1 or len(tail.norms) > 1 or any(isinstance(s, str) for s in slopes):
            raise CheckpointError(
                f"behind its layer {node.layer} stand several norms or activations, or one that "
                "only a last layer has; such a U-Net is not run."
            )
        for norm in tail.norms:
            if norm.arguments and norm.arguments[-1].get("training"):
                raise CheckpointError(
                    f"its layer {norm.layer} goes by the statistics of the image it is given, "
                    "which cannot be run tile by tile and stay exact."
                )
            check_axis(norm, self.ndim, channels_first=self.channels_first)
        return Step(
            node.layer,
            extents(node, "kernel_size", self.ndim),
            str(node.config.get("padding", "valid")),
            tail.norms[0] if tail.norms else None,
            {"norm act": "norm-act", "act norm": "act-norm"}.get(" ".join(tail.order)),
            float(slopes[0]) if slopes else None,
        )

    def _concatenation(self, key: str) -> tuple[Up, str]:
        """Take a concatenation apart; return its up-sampling and what that is given."""
        node = self.nodes[key]
        check_axis(node, self.ndim, channels_first=self.channels_first)
        sides = [self._up(given) for given in node.inputs]
        raised = [side for side in sides if side is not None]
        if len(sides) != 2 or len(raised) != 1:
            raise CheckpointError(
                f"its layer {node.layer} concatenates {len(sides)} maps of which {len(raised)} "
                "are up-sampled; a U-Net takes one of the encoder and one from below."
            )
        self.orders.append("up-skip" if sides[0] is not None else "skip-up")
        if self.orders[0] != self.orders[-1]:
            raise CheckpointError("its concatenations disagree about which map comes first.")
        skip = self._plain(node.inputs[1 if sides[0] is not None else 0])
        crops: list[Crop] = []
        while self.nodes[skip].kind in CROPS:
            crop = self.nodes[skip]
            crops.insert(0, crop_of(crop, self.ndim, self.size, channels_first=self.channels_first))
            skip = self._plain(self._given(crop))
        if self.nodes[skip].kind not in _ENCODER:
            raise refused(self.nodes[skip])
        self.skips.append(skip)
        self.crops.append(tuple(crops))
        return raised[0]

    def _up(self, key: str) -> tuple[Up, str] | None:
        """Read an up-sampling and what it is given; None where there is none."""
        tail = self._tail(key)
        node = self.nodes[tail.main]
        if node.kind in TRANSPOSED:
            factor = extents(node, "strides", self.ndim, 1)
            return Up(self._step(node, tail), factor, "upconv"), self._given(node)
        if node.kind in CONVOLUTIONS:
            before = self._tail(self._given(node))
            source = self.nodes[before.main]
            if source.kind not in UPSAMPLINGS:
                return None
            self._check_bare(source, before)
            kernel = extents(node, "kernel_size", self.ndim)
            if any(n != 1 for n in kernel):
                raise CheckpointError(
                    f"its layer {node.layer} is a convolution of {' x '.join(map(str, kernel))} "
                    f"behind the up-sampling {source.layer}; only convolutions of one pixel and "
                    "transposed ones are run there."
                )
            factor = extents(source, "size", self.ndim)
            how = interpolation_of(source)
            return Up(self._step(node, tail), factor, how), self._given(source)
        if node.kind not in UPSAMPLINGS:
            return None
        return self._bare_up(node, tail)

    def _bare_up(self, node: Node, tail: _Tail) -> tuple[Up, str]:
        """Read an up-sampling with its convolution before it, or with none."""
        self._check_bare(node, tail)
        factor, how = extents(node, "size", self.ndim), interpolation_of(node)
        before = self._tail(self._given(node))
        source = self.nodes[before.main]
        if source.kind in CONVOLUTIONS and all(
            n == 1 for n in extents(source, "kernel_size", self.ndim)
        ):
            # One pixel's values and an interpolation change places, but for a bend between them.
            step = self._step(source, before)
            if how == "nearest" or step.slope is None:
                return Up(step, factor, how), self._given(source)
        bare = Step(node.layer, (1,) * self.ndim, "valid")
        return Up(bare, factor, how, is_bare=True), self._given(node)

    def _check_bare(self, node: Node, tail: _Tail) -> None:
        if tail.order:
            raise CheckpointError(
                f"norms or activations right behind its up-sampling {node.layer} are not run."
            )

    def _check_skip(self, number: int, concatenations: int, entry: str, pool: Node) -> None:
        """See that a concatenation takes what is pooled at its level."""
        if number > concatenations or self.skips[-number] != self._plain(entry):
            raise CheckpointError(
                f"what its pooling {pool.layer} is given is concatenated nowhere, or elsewhere "
                "than a U-Net does; such a network is not run."
            )

    def _check_ups(self, ups: list[Up], pools: list[tuple[int, ...]]) -> None:
        for level, (up, pool) in enumerate(zip(ups, pools, strict=True)):
            if up.factor != pool:
                raise CheckpointError(
                    f"level {level}: its pooling divides by {' x '.join(map(str, pool))}, its "
                    f"up-sampling {up.step.layer} multiplies by {' x '.join(map(str, up.factor))}."
                )
        if len({up.how for up in ups}) > 1:
            raise CheckpointError("its up-samplings are of several kinds; such a U-Net is not run.")

    def _given(self, node: Node) -> str:
        """Return the only input of a node."""
        self.steps -= 1
        if self.steps < 0:
            raise CheckpointError("its graph runs in a circle; save the model again.")
        if len(node.inputs) != 1:
            raise refused(node)
        return node.inputs[0]

    def _plain(self, key: str) -> str:
        """Skip what does nothing."""
        while self._is_identity(self.nodes[key]):
            key = self._given(self.nodes[key])
        return key

    def _is_identity(self, node: Node) -> bool:
        if node.kind in ACTIVATIONS:
            return activation_behind(node) == "linear"
        return node.kind in IDENTITIES

    def _tail(self, key: str) -> _Tail:
        """Go back over norms and activations to the layer before them."""
        found = _Tail(key)
        while True:
            key = self._plain(key)
            node = self.nodes[key]
            if node.kind in ACTIVATIONS:
                found.activations.insert(0, activation_behind(node))
                found.order.insert(0, "act")
            elif node.kind in NORMS:
                found.norms.insert(0, node)
                found.order.insert(0, "norm")
            else:
                break
            key = self._given(node)
        found.main = key
        if node.kind in (*CONVOLUTIONS, *TRANSPOSED):
            inside = activation_inside(node)
            if inside != "linear":
                found.activations.insert(0, inside)
                found.order.insert(0, "act")
        return found
