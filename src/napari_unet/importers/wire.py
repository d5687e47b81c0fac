"""The binary form of protobufs: fields one after the other, each checked against what is left."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from napari_unet.errors import CheckpointError

__all__ = ["Field", "Wire", "floats", "integers", "packed"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Number, form, and the value: an integer, or first and last byte of what it holds.
Field = tuple[int, int, int, int]

_MOST_FIELDS = 100_000


class Wire:
    """One file.

    Parameters
    ----------
    content : memoryview
        All its bytes; nothing is copied.
    """

    def __init__(self, content: memoryview) -> None:
        self.content = content
        self.left = _MOST_FIELDS

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """Go through the fields between two positions.

        Yields
        ------
        number, form, value, end : int
            Of a varint `value` is the number itself; else the bytes are ``value`` to ``end``.
            Numbers of 4 or 8 bytes that follow each other come as one field, with a byte of tag
            between each two.

        Raises
        ------
        CheckpointError
            If a field reaches beyond `stop`, or there are far too many.
        """
        position = start
        while position < stop:
            self.left -= 1
            if self.left < 0:
                raise CheckpointError("it has far more parts than a network's weights.")
            tag, position = self.varint(position, stop)
            number, form = tag >> 3, tag & 7
            if form == VARINT:
                value, position = self.varint(position, stop)
                yield number, form, value, position
                continue
            if form == BYTES:
                length, position = self.varint(position, stop)
            elif form in (FIXED64, FIXED32):
                size = 8 if form == FIXED64 else 4
                count = self._run(position - 1, stop, size) if tag < 0x80 else 1
                length = max(count, 1) * (size + 1) - 1
            else:
                raise CheckpointError("it is damaged, or no .caffemodel; get the file again.")
            if number == 0 or length > stop - position:
                raise CheckpointError("it is damaged or cut short; get the file again.")
            yield number, form, position, position + length
            position += length

    def _run(self, position: int, stop: int, size: int) -> int:
        """Count numbers of so many bytes that each have the tag of the first, at `position`."""
        most, window = (stop - position) // (size + 1), 16
        if most < 2 or self.content[position + size + 1] != self.content[position]:
            return min(most, 1)
        while True:
            count = min(window, most)
            tags = np.frombuffer(self.content, np.uint8, count * (size + 1), position)
            tags = tags[:: size + 1]
            other = np.flatnonzero(tags != tags[:1])
            if len(other) or count == most:
                return int(other[0]) if len(other) else count
            window *= 16  # so that short runs do not look far ahead

    def text(self, start: int, stop: int) -> str:
        """Read a name."""
        return bytes(self.content[start : min(stop, start + 1000)]).decode(errors="replace")

    def varint(self, position: int, stop: int) -> tuple[int, int]:
        """Read an integer; return it and the position behind it."""
        value = 0
        for shift in range(0, 70, 7):
            if position >= stop:
                break
            byte = self.content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
        raise CheckpointError("it is damaged or cut short; get the file again.")


def integers(wire: Wire, field: Field) -> list[int]:
    """Read one integer, or several that are packed."""
    _, form, value, end = field
    if form == VARINT:
        return [value]
    return packed(wire, value, end) if form == BYTES else []


def packed(wire: Wire, start: int, stop: int) -> list[int]:
    """Read varints that stand side by side."""
    values: list[int] = []
    while start < stop:
        value, start = wire.varint(start, stop)
        values.append(value)
        if len(values) > 32:
            raise CheckpointError("it is damaged, or no .caffemodel; get the file again.")
    return values


def floats(wire: Wire, field: Field) -> list[float]:
    """Read one float, of several the last; other forms of numbers count as they are."""
    _, form, value, end = field
    if form == FIXED32:
        return [float(struct.unpack("<f", wire.content[end - 4 : end])[0])]
    return [float(value)] if form == VARINT else []
