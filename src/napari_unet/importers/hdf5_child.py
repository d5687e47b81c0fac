"""Reads one HDF5 file in a process of its own, and tells what is in it on standard output.

Run as a script by `napari_unet.importers.hdf5`, never imported there: HDF5's library crashes, hangs
and allocates on files that were made to do so, and then only this process ends. It knows nothing
of this package, so that it starts quickly::

    python -I -S hdf5_child.py FILE SECONDS MEMORY BUDGET [FOLDER of h5py ...]

The answer is one line of JSON, then the bytes of those datasets that do not lie in the file as they
are. What was refused and why is the line's ``"error"``.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from typing import Any

_MOST_OBJECTS = 20_000
_MOST_ATTRIBUTES = 50_000
_MOST_TEXT = 32 << 20
_MOST_TEXTS = 20_000
_MOST_VALUES = 1 << 16  # of an attribute
_SLAB = 1 << 24


class Refused(Exception):
    """What is wrong with the file, as the rest of a sentence that begins with its name."""


class Reader:
    """Walks through a file once.

    Parameters
    ----------
    h5py, numpy : module
        Imported late, so that memory can be limited after them.
    path : str
        The file.
    budget : int
        Most bytes of all datasets that do not lie in the file as they are.
    """

    def __init__(self, h5py: Any, numpy: Any, path: str, budget: int) -> None:
        self.h5py, self.numpy, self.budget = h5py, numpy, budget
        self.file = h5py.File(path, "r", locking=False)
        self.text = _MOST_TEXT
        self.attributes = 0
        self.groups: list[str] = []
        self.found: dict[str, dict[str, Any]] = {}
        self.datasets: list[dict[str, Any]] = []
        self.sent: list[Any] = []

    def walk(self) -> dict[str, Any]:
        """Collect groups, attributes and where each dataset's bytes are."""
        h5 = self.h5py
        open_ones = [("/", h5.h5g.open(self.file.id, b"/"))]
        seen: set[Any] = set()
        objects = 0
        while open_ones:
            path, node = open_ones.pop()
            objects += 1
            if objects > _MOST_OBJECTS or len(path) > 4096:
                raise Refused("holds far more objects than weights need")
            if isinstance(node, h5.h5t.TypeID):
                continue  # Java's writer keeps the names of its types in the file
            if isinstance(node, h5.h5d.DatasetID):
                self._attributes(path, node)
                self._dataset(path, node)
                continue
            here = h5.h5o.get_info(node).addr
            if here in seen:
                raise Refused("holds a group inside itself")
            seen.add(here)
            self.groups.append(path)
            self._attributes(path, node)
            children = self._children(node, _MOST_OBJECTS - objects - len(open_ones))
            stem = path.rstrip("/")
            open_ones += [(f"{stem}/{name}", child) for name, child in reversed(children)]
        return {"groups": self.groups, "attributes": self.found, "datasets": self.datasets}

    def _children(self, group: Any, most: int) -> list[tuple[str, Any]]:
        """Open what a group holds; links to elsewhere are not followed."""
        h5 = self.h5py
        if group.get_num_objs() > most:
            raise Refused("holds far more objects than weights need")
        names: list[bytes] = []
        group.links.iterate(names.append)
        children = []
        for name in names:
            if group.links.get_info(name).type != h5.h5l.TYPE_HARD:
                raise Refused("holds links to somewhere else, which are not followed")
            children.append((_word(name), h5.h5o.open(group, name)))
        return children

    def _attributes(self, path: str, node: Any) -> None:
        h5 = self.h5py
        count = h5.h5a.get_num_attrs(node)
        self.attributes += count
        if self.attributes > _MOST_ATTRIBUTES:
            raise Refused("holds far more attributes than weights need")
        values: dict[str, Any] = {}
        for index in range(count):
            attribute = h5.h5a.open(node, index=index)
            shape, kind = attribute.shape, attribute.dtype
            size = _product(shape)
            if size * max(kind.itemsize, 1) > _MOST_TEXT or size > _MOST_VALUES:
                raise Refused("has an attribute far larger than weights need")
            if attribute.get_space().get_simple_extent_type() == h5.h5s.NULL:
                continue
            text = self._is_text(kind)
            if not text and (kind.kind not in "biuf" or kind.itemsize > 8):
                continue  # of a kind that no reader here asks for
            value = self.numpy.empty(shape, kind)
            attribute.read(value)
            values[_word(attribute.name)] = (
                {"shape": list(shape), "text": self._texts(value)}
                if text
                else {"shape": list(shape), "dtype": kind.str, "values": value.ravel().tolist()}
            )
        if values:
            self.found[path] = values

    def _is_text(self, kind: Any) -> bool:
        return kind.kind == "S" or self.h5py.check_string_dtype(kind) is not None

    def _texts(self, values: Any) -> list[str]:
        texts = []
        for value in values.ravel().tolist():
            raw = value.encode(errors="surrogateescape") if isinstance(value, str) else value
            self.text -= len(raw or b"")
            if self.text < 0:
                raise Refused("holds far more text than weights need")
            texts.append((raw or b"").rstrip(b"\0").decode(errors="replace"))
        return texts

    def _dataset(self, path: str, node: Any) -> None:
        """Say where a dataset's bytes are: at an offset of the file, or behind the answer."""
        h5 = self.h5py
        plan = node.get_create_plist()
        if plan.get_external_count() or plan.get_layout() not in (
            h5.h5d.COMPACT,
            h5.h5d.CONTIGUOUS,
            h5.h5d.CHUNKED,
        ):
            raise Refused(f"keeps {path} in other files, which are not opened")
        shape, kind = node.shape, node.dtype
        if node.get_space().get_simple_extent_type() == h5.h5s.NULL:
            return
        told: dict[str, Any] = {"path": path, "shape": list(shape)}
        size = _product(shape)
        if self._is_text(kind):
            told["text"] = self._text_of(path, node, size)
        elif kind.kind in "biuf" and kind.itemsize <= 8:
            told["dtype"] = kind.str
            offset = node.get_offset() if plan.get_layout() == h5.h5d.CONTIGUOUS else None
            if offset is not None:
                told["offset"] = offset
            else:
                # A chunk is read as a whole, however little of it belongs to the dataset.
                chunked = plan.get_layout() == h5.h5d.CHUNKED
                chunk = _product(plan.get_chunk()) if chunked else 0
                self.budget -= max(size, chunk) * kind.itemsize
                if self.budget < 0:
                    raise Refused("claims to hold far more values than its own length")
                self.sent.append(node)
        else:
            raise Refused(f"has values of no number in {path}")
        self.datasets.append(told)

    def _text_of(self, path: str, node: Any, size: int) -> list[str]:
        if size > _MOST_TEXTS or size * node.dtype.itemsize > _MOST_TEXT:
            raise Refused(f"has far more text in {path} than weights need")
        texts: list[str] = []
        dataset = self.h5py.Dataset(node)
        if not node.shape:
            value = self.numpy.empty((), object)
            value[()] = dataset[()]
            return self._texts(value)
        # Row by row: elements of any length can share one place in the file.
        for row in range(node.shape[0] if size else 0):
            texts += self._texts(self.numpy.asarray(dataset[row]))
        return texts

    def send(self, stream: Any) -> None:
        """Write the values of the datasets that were left, slab by slab."""
        for node in self.sent:
            shape, kind = node.shape, node.dtype
            dataset = self.h5py.Dataset(node)
            if not _product(shape):
                continue
            row = max(_product(shape[1:]) * kind.itemsize, 1)
            rows = max(_SLAB // row, 1)
            for start in range(0, shape[0] if shape else 1, rows):
                part = dataset[start : start + rows] if shape else dataset[()]
                stream.write(self.numpy.ascontiguousarray(part, kind).tobytes())


def _word(name: Any) -> str:
    raw = name.encode(errors="surrogateescape") if isinstance(name, str) else name
    return str(raw.decode(errors="replace"))


def _product(shape: Any) -> int:
    size = 1
    for extent in shape or ():
        size *= int(extent)
    return size


def _limit(seconds: int, more: int) -> None:
    """Allow so much processor time and memory from here on, where the system can."""
    # Ends the process however deep in C it is, without help of the interpreter.
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 (no pathlib: slow)
            now = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return  # neither Linux nor limits: the time and the budgets above are left
    for limit, most in ((resource.RLIMIT_AS, now + more), (resource.RLIMIT_CPU, seconds + 1)):
        hard = resource.getrlimit(limit)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(limit, (most, hard))


def main(path: str, seconds: str, memory: str, budget: str, *folders: str) -> None:
    """Read `path` in so many seconds, so much more memory and so many bytes of values."""
    sys.path += folders
    import h5py
    import numpy

    _limit(int(seconds), int(memory))
    stream = sys.stdout.buffer
    try:
        reader = Reader(h5py, numpy, path, int(budget))
        answer: dict[str, Any] = reader.walk()
    except Refused as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "asks for far more memory than its own length"}
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        # h5py's words for damage, whatever it may be.
        answer = {"damage": str(error)[:200]}
    stream.write(json.dumps(answer).encode() + b"\n")
    if "datasets" in answer:
        reader.send(stream)
    stream.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
