"""The layer graph of a Keras model out of its config: JSON of Keras 2 and 3, never code.

Models inside the model are laid open, so that what remains are layers and what each is given. A
layer that is called several times becomes one node per call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from napari_unet.errors import CheckpointError

__all__ = ["MODELS", "Graph", "Node", "graph_of", "layer_name", "layers_of", "parse_config"]

MODELS = ("Functional", "Model", "Sequential")

_MOST_TEXT = 16 << 20
_MOST_NODES = 10_000
_MOST_NESTING = 24
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Node:
    """One call of one layer.

    Parameters
    ----------
    layer : str
        Name of the layer; behind that of the model it is inside of, ``outer/inner``.
    kind : str
        Class of the layer, as Keras names it.
    config : mapping
        The layer's settings.
    inputs : tuple of str
        Keys of the nodes that it is given, in `Graph.nodes`.
    arguments : tuple
        Whatever else it is called with: positional arguments that are no tensors, then a mapping.
    """

    layer: str
    kind: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Graph:
    """A model.

    Parameters
    ----------
    name : str
        Of the model.
    nodes : mapping of str to Node
        By a key that is unique.
    output : str
        Key of the only output.
    """

    name: str
    nodes: Mapping[str, Node]
    output: str


def parse_config(text: str | bytes) -> Mapping[str, Any]:
    """Read a model's config.

    Raises
    ------
    CheckpointError
        If it is no such JSON, or far longer or deeper than a network's.
    """
    if len(text) > _MOST_TEXT:
        raise CheckpointError("the model's description is far longer than a network needs.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            "the model's description is damaged; save the model again."
        ) from error
    if not isinstance(found, Mapping):
        raise CheckpointError("the model's description is damaged; save the model again.")
    return found


def layers_of(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of a model's layers, in its own order.

    Raises
    ------
    CheckpointError
        If it lists none: a subclassed model is code, which the file does not hold.
    """
    config = model.get("config")
    # The first versions wrote the layers of a Sequential alone.
    layers = config if isinstance(config, list) else _field(config, "layers")
    if model.get("class_name") not in MODELS and not isinstance(layers, list):
        raise CheckpointError(
            f"it is a model of its own class, {str(model.get('class_name'))[:60]!r}, whose graph "
            "is code that the file does not hold; build it as a functional model and save that."
        )
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise CheckpointError("the model's description lists no layers; save the model again.")
    if len(layers) > _MOST_NODES:
        raise CheckpointError("the model's description has far more layers than a network.")
    return layers


def layer_name(layer: Mapping[str, Any]) -> str:
    """Name of a layer's entry; names end up in messages, so that none is longer than a line."""
    return str(layer.get("name") or _field(layer.get("config"), "name") or "")[:200]


def graph_of(model: Mapping[str, Any]) -> Graph:
    """Read a model's graph.

    Parameters
    ----------
    model : mapping
        As `parse_config` returns it.

    Raises
    ------
    CheckpointError
        If it is damaged, no functional model, or has several inputs or outputs.
    """
    builder = _Builder()
    try:
        output = builder.add(model, "", (), 0)
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(
            f"the model's description is damaged ({type(error).__name__}: {str(error)[:80]}); "
            "save the model again."
        ) from error
    name = _field(model.get("config"), "name")
    return Graph(name if isinstance(name, str) else "", builder.nodes, output)


@dataclass
class _Builder:
    nodes: dict[str, Node] = field(default_factory=dict)

    def add(
        self, model: Mapping[str, Any], prefix: str, inputs: Sequence[str], nesting: int
    ) -> str:
        """Add a model that is given `inputs`, none at the top; return its output."""
        if nesting > _MOST_NESTING:
            raise CheckpointError("the model's description nests far deeper than a network.")
        layers = layers_of(model)
        names = [layer_name(layer) for layer in layers]
        if "" in names or len(set(names)) != len(names):
            raise CheckpointError("the model's description names a layer twice, or not at all.")
        if model.get("class_name") == "Sequential":
            return self._add_chain(layers, prefix, inputs, nesting)
        sources = _ends(model["config"], "input_layers")
        outputs = _ends(model["config"], "output_layers")
        if len(sources) != 1 or len(outputs) != 1 or len(inputs) > 1:
            raise CheckpointError(
                f"the model has {len(sources)} inputs and {len(outputs)} outputs; only U-Nets with "
                "one image in and one out are run."
            )
        # Where each call of each layer has its output.
        places: dict[tuple[str, int], str] = {}
        for layer, name in zip(layers, names, strict=True):
            calls = list(_calls(layer))
            for number in range(max(1, len(calls))):
                places[name, number] = self._key(f"{prefix}{name}", number)
        for layer, name in zip(layers, names, strict=True):
            if name == sources[0][0] and inputs:
                self._put(places[name, 0], Node(prefix + name, "Identity", {}, tuple(inputs)))
                continue
            for number, (given, arguments) in enumerate(_calls(layer)):
                given_keys = tuple(_place(places, source) for source in given)
                self._call(
                    layer, prefix + name, places[name, number], given_keys, arguments, nesting
                )
            if not any(True for _ in _calls(layer)):
                self._call(layer, prefix + name, places[name, 0], (), (), nesting)
        return _place(places, outputs[0])

    def _add_chain(
        self, layers: Sequence[Mapping[str, Any]], prefix: str, inputs: Sequence[str], nesting: int
    ) -> str:
        """Add a Sequential: each layer is given the one before."""
        last = tuple(inputs)
        for layer in layers:
            if layer.get("class_name") == "InputLayer" and last:
                continue
            name = prefix + layer_name(layer)
            if not last and layer.get("class_name") not in ("InputLayer", *MODELS):
                # Its input shape stands with the first layer.
                self._put(f"{name}:input", Node(f"{name}:input", "InputLayer", layer["config"]))
                last = (f"{name}:input",)
            key = self._key(name, 0)
            self._call(layer, name, key, last, (), nesting)
            last = (key,)
        if not last:
            raise CheckpointError("the model's description lists no layers; save the model again.")
        return last[0]

    def _call(
        self,
        layer: Mapping[str, Any],
        name: str,
        key: str,
        inputs: tuple[str, ...],
        arguments: tuple[Any, ...],
        nesting: int,
    ) -> None:
        """Add one call of a layer; of a model all that is in it."""
        kind, config = layer["class_name"], layer["config"]
        if kind in MODELS:
            output = self.add(layer, f"{key}/", inputs, nesting + 1)
            self._put(key, Node(name, "Identity", {}, (output,)))
            return
        if not isinstance(kind, str) or not isinstance(config, Mapping):
            raise TypeError("a layer without class or settings")
        self._put(key, Node(name, kind, config, inputs, arguments))

    def _put(self, key: str, node: Node) -> None:
        if key in self.nodes or len(self.nodes) >= _MOST_NODES:
            raise CheckpointError("the model's description names a layer twice, or far too many.")
        self.nodes[key] = node

    @staticmethod
    def _key(name: str, number: int) -> str:
        return f"{name}:{number}" if number else name


def _place(places: Mapping[tuple[str, int], str], source: tuple[str, int]) -> str:
    """Where a call has its output."""
    if source in places or (source[0], 1) in places:
        return places[source]
    # A model inside is called once, but counts the making of itself as a call, too.
    return places[source[0], 0]


def _field(config: Any, key: str) -> Any:
    return config.get(key) if isinstance(config, Mapping) else None


def _ends(config: Mapping[str, Any], key: str) -> list[tuple[str, int]]:
    """Inputs or outputs of a model: one ``[name, call, tensor]``, or a list or mapping of them."""
    found = config[key]
    if isinstance(found, Mapping):
        found = list(found.values())
    if len(found) == 3 and isinstance(found[0], str):
        found = [found]
    return [(str(name), int(number)) for name, number, _ in found]


def _calls(layer: Mapping[str, Any]) -> Iterator[tuple[list[tuple[str, int]], tuple[Any, ...]]]:
    """Yield for each call of a layer what it is given: outputs of calls, and other arguments."""
    for node in layer.get("inbound_nodes") or []:
        if isinstance(node, Mapping):  # Keras 3
            given: list[tuple[str, int]] = []
            others = [_without_tensors(argument, given, 0) for argument in node["args"]]
            named = {
                key: _without_tensors(value, given, 0) for key, value in node["kwargs"].items()
            }
            yield given, (*others, named)
            continue
        # Keras 2: [name, call, tensor, arguments] for each tensor, or one such alone.
        entries = [node] if node and isinstance(node[0], str) else node
        more = [e[3] for e in entries if len(e) > 3 and isinstance(e[3], Mapping)]
        yield [(str(e[0]), int(e[1])) for e in entries], (more[0] if more else {},)


def _without_tensors(value: Any, found: list[tuple[str, int]], nesting: int) -> Any:
    """Collect the tensors of an argument; return what else it is."""
    if nesting > _MOST_NESTING:
        raise CheckpointError("the model's description nests far deeper than a network.")
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        name, number, _ = value["config"]["keras_history"]
        found.append((str(name), int(number)))
        return None
    if isinstance(value, list):
        return [_without_tensors(item, found, nesting + 1) for item in value]
    return value
