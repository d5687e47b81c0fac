"""Text protobufs, in which Caffe describes networks: a small reader that needs no schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Union

from napari_unet.errors import CheckpointError

__all__ = ["Message", "parse_prototxt"]

# Fields by name, each as often as it is there: texts as they are written, or messages.
Message = dict[str, list[Union[str, "Message"]]]

_MOST_TEXT = 4 << 20
_MOST_TOKENS = 800_000  # blanks and comments are counted
_DEEPEST = 20
# A blank or a comment is a match of its own: what repeats both could cut a comment in pieces in
# more ways than can be tried.
_TOKEN = re.compile(
    r"""(?P<blank>\s+|\#[^\n]*)
      | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<word>[-+.\w/]+)
      | (?P<mark>[{}<>:;,\[\]])
      | (?P<end>\Z)
    """,
    re.VERBOSE,
)


def parse_prototxt(text: str) -> Message:
    """Read a message.

    Parameters
    ----------
    text : str
        Such as ``layer { name: 'a' kernel_size: [3, 3] }``; comments begin with ``#``.

    Returns
    -------
    dict of str to list
        Values of each field in their order: numbers and words as they are written, strings
        without their quotation marks, messages as such dictionaries.

    Raises
    ------
    CheckpointError
        If it is no such text, or far larger than a network's description.
    """
    if len(text) > _MOST_TEXT:
        raise CheckpointError("The network's definition is far longer than one needs to be.")
    tokens = _tokens(text)
    root: Message = {}
    open_ones = [root]
    name = ""  # of the field whose value comes next
    listed = False
    for kind, token in tokens:
        here = open_ones[-1]
        if kind == "mark" and token in "{<" and name:
            inner: Message = {}
            here.setdefault(name, []).append(inner)
            open_ones.append(inner)
            name = ""
            if listed:
                raise CheckpointError("The network's definition is damaged: a list of messages.")
            if len(open_ones) > _DEEPEST:
                raise CheckpointError("The network's definition nests far deeper than one does.")
        elif kind == "mark" and token in "}>" and not name and len(open_ones) > 1:
            open_ones.pop()
        elif kind == "mark" and token in "[]" and name and listed is (token == "]"):
            listed = token == "["
            name = name if listed else ""
        elif kind == "mark" and token in ":;,":
            continue
        elif kind == "word" and not name:
            name = token
        elif kind in ("word", "text") and name:
            here.setdefault(name, []).append(token)
            name = name if listed else ""
        else:
            raise CheckpointError(f"The network's definition is damaged at {token[:20]!r}.")
    if name or len(open_ones) > 1:
        raise CheckpointError("The network's definition is cut short.")
    return root


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    for _ in range(_MOST_TOKENS):
        match = _TOKEN.match(text, position)
        if match is None:
            raise CheckpointError(
                f"The network's definition is damaged at {text[position : position + 20]!r}."
            )
        position = match.end()
        kind = match.lastgroup or "end"
        if kind == "end":
            return
        if kind == "blank":
            continue
        token = match[kind]
        yield kind, token[1:-1] if kind == "text" else token
    raise CheckpointError("The network's definition is far longer than one needs to be.")
