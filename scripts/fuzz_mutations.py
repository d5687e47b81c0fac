"""Damage of many kinds: of any bytes, and of what a format's own structure makes dangerous."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable

__all__ = ["mutated"]

_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, (1 << 63) - 1)
_SAFETENSORS = re.compile(rb".{4}\0\0\0\0\{", re.DOTALL)


def mutated(good: bytes, other: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Damage a file.

    Parameters
    ----------
    good : bytes
        The sound one.
    other : bytes
        A file of another format, to splice from.
    chance : random.Random
        Decides everything.

    Returns
    -------
    content : bytes
    what : str
        The kind of damage; begins with "repaired" where the format's sums were made right again.
    """
    if chance.random() < 0.35:
        if good.startswith(b"PK\3\4"):
            return _zip(good, other, chance)
        if _SAFETENSORS.match(good):
            return _safetensors(good, chance), "header"
        if b"layer {" in good:
            return _definition(good, chance), "definition"
        if good[:20].isascii():
            return _text(good, chance), "text"
    kinds: list[Callable[[bytearray, bytes, random.Random], None]] = [
        _flip, _byte, _cut, _remove, _insert, _extreme, _repeat, _zeros, _swap, _splice, _length,
    ]  # fmt: skip
    content = bytearray(good)
    names = []
    for _ in range(1 if chance.random() < 0.8 else chance.randrange(2, 6)):
        kind = chance.choice(kinds)
        kind(content, other, chance)
        names.append(kind.__name__.strip("_"))
        if not content:
            break
    return bytes(content), " ".join(names)


def _where(content: bytearray, chance: random.Random) -> int:
    """Mostly where formats keep what they say of themselves: at the start and the end."""
    length = len(content)
    place = chance.random()
    if place < 0.35:
        return chance.randrange(min(length, 512))
    if place < 0.5:
        return length - 1 - chance.randrange(min(length, 512))
    return chance.randrange(length)


def _flip(content: bytearray, other: bytes, chance: random.Random) -> None:
    content[_where(content, chance)] ^= 1 << chance.randrange(8)


def _byte(content: bytearray, other: bytes, chance: random.Random) -> None:
    content[_where(content, chance)] = chance.choice(
        (0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256))
    )


def _cut(content: bytearray, other: bytes, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def _remove(content: bytearray, other: bytes, chance: random.Random) -> None:
    start = _where(content, chance)
    del content[start : start + chance.choice((1, 4, 8, chance.randrange(1, 256)))]


def _insert(content: bytearray, other: bytes, chance: random.Random) -> None:
    start = _where(content, chance)
    content[start:start] = chance.randbytes(chance.choice((1, 4, 8, chance.randrange(1, 64))))


def _extreme(content: bytearray, other: bytes, chance: random.Random) -> None:
    """A number that is far too large, or none."""
    form = chance.choice(("<Q", "<I", "<H", ">I"))
    size = struct.calcsize(form)
    start = min(_where(content, chance), max(0, len(content) - size))
    content[start : start + size] = struct.pack(
        form, chance.choice((*_EXTREMES, chance.getrandbits(64))) % (1 << 8 * size)
    )


def _length(content: bytearray, other: bytes, chance: random.Random) -> None:
    """A small number, which may be a length or a count, grown or shrunk."""
    start = _where(content, chance)
    for position in range(start, min(start + 64, len(content) - 3)):
        value = struct.unpack_from("<I", content, position)[0]
        if 0 < value < 1 << 20:
            more = chance.choice((value * 2, value - 1, value + 1, value << 10, 0))
            struct.pack_into("<I", content, position, more % (1 << 32))
            return


def _repeat(content: bytearray, other: bytes, chance: random.Random) -> None:
    start = _where(content, chance)
    piece = content[start : start + chance.randrange(1, 512)]
    target = _where(content, chance)
    content[target:target] = piece * chance.choice((1, 1, 2, 50))


def _zeros(content: bytearray, other: bytes, chance: random.Random) -> None:
    start = _where(content, chance)
    stop = min(start + chance.randrange(1, 256), len(content))
    content[start:stop] = bytes(stop - start)


def _swap(content: bytearray, other: bytes, chance: random.Random) -> None:
    size = chance.choice((1, 4, 8, 32))
    first, second = (_where(content, chance) for _ in range(2))
    if max(first, second) + size <= len(content) and abs(first - second) >= size:
        one, two = content[first : first + size], content[second : second + size]
        content[first : first + size], content[second : second + size] = two, one


def _splice(content: bytearray, other: bytes, chance: random.Random) -> None:
    start, source = _where(content, chance), chance.randrange(len(other))
    size = chance.randrange(1, 512)
    content[start : start + size] = other[source : source + size]


def _zip(good: bytes, other: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Damage one member and pack the archive again, so that its sums are right."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
        packing = archive.infolist()[0].compress_type
    name = chance.choice(sorted(members))
    act = chance.random()
    what = f"repaired {name.rpartition('/')[2]}"
    if act < 0.1:
        del members[name]
    elif act < 0.2:
        renamed = chance.choice(("../" + name, "/" + name, name + "x", name.upper()))
        members[renamed] = members.pop(name)
    elif members[name][:20].isascii() and members[name]:
        members[name] = _text(members[name], chance)
    elif members[name]:
        content, inner = mutated(members[name], other, chance)
        members[name], what = content, f"{what} {inner.removeprefix('repaired ')}"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for key, content in members.items():
            archive.writestr(key, content)
    return stream.getvalue(), what


def _safetensors(good: bytes, chance: random.Random) -> bytes:
    """Change the header and its length together."""
    length = struct.unpack("<Q", good[:8])[0]
    header = _text(good[8 : 8 + length], chance)
    return struct.pack("<Q", len(header)) + header + good[8 + length :]


def _definition(good: bytes, chance: random.Random) -> bytes:
    """Change the definition inside an HDF5 file, where it keeps its length."""
    start = good.index(b"layer {")
    stop = good.index(b"\0", start) if b"\0" in good[start:] else len(good)
    text = _text(good[start:stop], chance)[: stop - start]
    return good[:start] + text.ljust(stop - start) + good[stop:]


def _text(good: bytes, chance: random.Random) -> bytes:
    """Change a number, a word or a line of JSON, YAML or a definition."""
    tokens = list(re.finditer(rb"-?\d+(?:\.\d+)?|\"[^\"]*\"|'[^']*'|\b\w+\b|[\[\]{}:,]", good))
    if not tokens:
        return good
    token = chance.choice(tokens)
    values: tuple[bytes, ...] = (
        b"0", b"-1", b"1e999", b"NaN", b"null", b"99999999999999999999", b"1048576", b'""', b"[]",
        b"{}", b"true", b"&a [*a, *a]", b"!!python/object/apply:os.system [id]",
        b'"' + b"x" * 2000 + b'"', b"[" * 3000, chance.choice(tokens)[0],
        json.dumps({"class_name": "Lambda", "config": {"function": "id"}}).encode(),
    )  # fmt: skip
    return good[: token.start()] + chance.choice(values) + good[token.end() :]
