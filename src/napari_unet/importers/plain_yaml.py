"""YAML of strangers: plain values of bounded size, without references that could multiply."""

from __future__ import annotations

from typing import Any

from napari_unet.errors import CheckpointError

__all__ = ["read_yaml"]

# Descriptions of models have tens of kilobytes, and a dozen levels.
MOST_BYTES = 1 << 19
_MOST_EVENTS = 100_000
_MOST_LEVELS = 40
_LONGEST_NUMBER = 100  # characters


def read_yaml(content: bytes) -> dict[str, Any]:
    """Read a mapping.

    Parameters
    ----------
    content : bytes
        UTF-8 text.

    Raises
    ------
    CheckpointError
        If it is no mapping, nests or repeats without reason, or has objects in it.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        """Refuses to choose between two values of one key, and numbers of thousands of digits."""

        def construct_scalar(self, node: Any) -> Any:
            # YAML 1.1 reads 1:59:59 with 60 as its base, in a time that grows with the square.
            value = super().construct_scalar(node)
            if node.tag.endswith((":int", ":float")) and len(value) > _LONGEST_NUMBER:
                raise ValueError("a number far longer than one of a model")
            return value

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if len(set(map(str, keys))) < len(keys):
                raise CheckpointError("its description says one thing twice.")
            return super().construct_mapping(node, deep=deep)

    if len(content) > MOST_BYTES:
        raise CheckpointError("its description is far longer than one of a model.")
    try:
        # Event by event first: what nests too deeply never gets to be built.
        level = 0
        for number, event in enumerate(yaml.parse(content, Loader=base)):
            if isinstance(event, yaml.AliasEvent):
                raise CheckpointError("its description refers to itself, which no model needs.")
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                level += 1
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                level -= 1
            if level > _MOST_LEVELS or number > _MOST_EVENTS:
                raise CheckpointError("its description nests far deeper than one of a model.")
        document = yaml.load(content, Loader=Loader)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError("its description is no readable YAML; get it again.") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise CheckpointError("its description is no list of facts; get it again.")
    return document
