"""The graph of a Caffe network: which layer is which part of a U-Net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from napari_unet.errors import CheckpointError

__all__ = ["CaffeLayer", "Joint", "Node", "Walk"]

# What a blob passes through unchanged when a network is run.
_PASSING = ("relu", "dropout", "split", "power", "valuetransformation")
_STRUCTURE = ("convolution", "deconvolution", "pooling", "concat", "crop")
_MOST_LAYERS = 5_000


@dataclass(frozen=True)
class CaffeLayer:
    """One layer of a definition.

    Parameters
    ----------
    name : str
        Its weights have the same.
    kind : str
        Its type in small letters: convolution, deconvolution, pooling, concat, crop, relu ...
    bottoms, tops : tuple of str
        Blobs that it takes and makes.
    settings : mapping of str to tuple of float
        What its parameters say: kernel, stride, pad, group, dilation, num_output, slope, offset,
        pool (0 is the maximum), shift, scale, power.
    """

    name: str
    kind: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    settings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def all_are(self, setting: str, value: float) -> bool:
        """Whether a setting has this value along every axis; one that is missing has it."""
        return all(v == value for v in self.settings.get(setting, ()))


@dataclass(frozen=True)
class Node:
    """A layer with the layers that it takes its blobs from; None is the input."""

    layer: CaffeLayer
    sources: tuple[Node | None, ...]


@dataclass(frozen=True)
class Joint:
    """One concatenation on the way up."""

    up: Node
    skip: Node | None
    crop: Node | None
    up_first: bool


class Walk:
    """The parts of a U-Net among layers, found from the last convolution back to the image.

    Parameters
    ----------
    layers : iterable of CaffeLayer
        In the order in which they run.

    Attributes
    ----------
    head : Node
        The last convolution.
    down, merge : list of list of Node
        The convolutions of each block, level 0 first.
    pools, joints : list of Node, list of Joint
        Between the levels on the way down, and on the way up.
    first : list of CaffeLayer
        Between the image and the first convolution, the last first.
    after : dict of int to set of tuple of float
        By `id` of a convolution's node: slopes of what its output passes through.

    Raises
    ------
    CheckpointError
        If they make no U-Net.
    """

    def __init__(self, layers: Iterable[CaffeLayer]) -> None:
        self.nodes: list[Node] = []
        self.after: dict[int, set[tuple[float, ...]]] = {}
        self.down: list[list[Node]] = []
        self.merge: list[list[Node]] = []
        self.pools: list[Node] = []
        self.joints: list[Joint] = []
        self.first: list[CaffeLayer] = []
        self._connect(layers)
        self.head = self._last()
        self._follow()

    def _connect(self, layers: Iterable[CaffeLayer]) -> None:
        """Resolve the names of blobs; layers that work in place keep them."""
        made: dict[str, Node] = {}
        for layer in layers:
            node = Node(layer, tuple(made.get(blob) for blob in layer.bottoms))
            made.update(dict.fromkeys(layer.tops, node))
            self.nodes.append(node)
            if len(self.nodes) > _MOST_LAYERS:
                raise CheckpointError("The network's definition has far more layers than a U-Net.")

    def _source(self, node: Node, number: int = 0) -> Node | None:
        """Return what makes a layer's input, past layers that hardly change it."""
        if len(node.sources) <= number:
            raise CheckpointError(f"The network's definition gives {node.layer.name} no input.")
        source = node.sources[number]
        passed: list[CaffeLayer] = []
        while source is not None and source.layer.kind in _PASSING and source.sources:
            passed.append(source.layer)
            source = source.sources[0]
        relus = [layer for layer in passed if layer.kind == "relu"]
        if source is not None and source.layer.kind in ("convolution", "deconvolution"):
            slopes = tuple(layer.settings.get("slope", (0.0,))[0] for layer in relus)
            self.after.setdefault(id(source), set()).add(slopes)
        elif relus:
            raise CheckpointError(_unknown(relus[0]))
        scaling = [layer for layer in passed if layer.kind in ("power", "valuetransformation")]
        if source is None:
            self.first = passed
        elif scaling:
            raise CheckpointError(
                f"{scaling[0].name} scales maps inside the network, which is not run."
            )
        return source

    def _follow(self) -> None:
        """Walk from the last convolution down to the bottleneck, then up to the image."""
        node = self._source(self.head)
        while True:
            block, before = self._block(node)
            if before is None or before.layer.kind != "concat":
                break
            self.merge.append(block)
            self.joints.append(self._joint(before))
            node = self._source(self.joints[-1].up)
        self.down = [block]
        while before is not None and before.layer.kind == "pooling":
            self.pools.insert(0, before)
            block, before = self._block(self._source(before))
            self.down.insert(0, block)
        if before is not None:
            raise CheckpointError(_unknown(before.layer))

    def _last(self) -> Node:
        """The only convolution whose output no other takes."""
        taken: set[int] = set()
        for node in self.nodes:
            if node.layer.kind in _STRUCTURE:
                for source in node.sources:
                    # Past layers of any kind: what an unknown one does is said later.
                    while source is not None and source.layer.kind not in _STRUCTURE:
                        source = source.sources[0] if source.sources else None
                    taken |= {id(source)} if source else set()
        last = [
            node
            for node in self.nodes
            if node.layer.kind == "convolution" and id(node) not in taken
        ]
        if len(last) != 1:
            raise CheckpointError(
                f"The network's definition ends in {len(last)} convolutions; a U-Net ends in one."
            )
        return last[0]

    def _block(self, node: Node | None) -> tuple[list[Node], Node | None]:
        """Take convolutions that follow each other; return what comes before them, too."""
        found: list[Node] = []
        while node is not None and node.layer.kind == "convolution":
            found.insert(0, node)
            node = self._source(node)
        if not found:
            raise CheckpointError(
                _unknown(node.layer) if node else "The network has a level without convolutions."
            )
        return found, node

    def _joint(self, node: Node) -> Joint:
        """Tell the two maps of a concatenation apart."""
        if len(node.sources) != 2:
            raise CheckpointError(
                f"{node.layer.name} concatenates {len(node.sources)} maps; in a U-Net it is two."
            )
        made = [self._source(node, number) for number in (0, 1)]
        crops = [m if m is not None and m.layer.kind == "crop" else None for m in made]
        made = [self._source(c) if c else m for c, m in zip(crops, made, strict=True)]
        ups = [m is not None and m.layer.kind == "deconvolution" for m in made]
        if sum(ups) != 1:
            raise CheckpointError(
                f"{node.layer.name} does not concatenate an up-convolution with the encoder's map."
            )
        which = ups.index(True)
        up, skip = made[which], made[1 - which]
        assert up is not None
        return Joint(up, skip, crops[1 - which], which == 0)


def _unknown(layer: CaffeLayer) -> str:
    return (
        f"{layer.name} is a layer of type {layer.kind or 'unknown'}, which stands in no plain "
        "valid U-Net at that place."
    )
