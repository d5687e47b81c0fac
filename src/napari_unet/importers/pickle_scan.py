"""Look through a pickle without running it: what it asks for, and how much it would build.

The pickle is walked opcode by opcode with a stack of plain values in place of objects. Nothing is
imported and nothing is called.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import IO, Any

from napari_unet.errors import CheckpointError

__all__ = ["Scan", "scan_pickle"]

_MOST_OPCODES = 500_000
_MOST_IN_TUPLE = 10_000
# Keys of one hash each take as long as all before them. Nobody can choose the hash of text, and
# small integers have one each. Optimizers of old have keys of 48 bits, one for each tensor.
_SMALL_KEY = 1 << 16
_MOST_OTHER_KEYS = 8_192
# Beyond these, `torch.load` would refuse or could be made to allocate without bound.
_HARMLESS = {
    "collections OrderedDict",
    "collections Counter",
    "builtins set",
    "builtins complex",
    "__builtin__ set",
    "__builtin__ complex",
    "torch Size",
    "torch device",
    "torch.serialization _get_layout",
    "torch.nn.parameter Parameter",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
}
_DTYPES = {
    "float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4, "float64": 8, "double": 8,
    "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8, "long": 8, "bool": 1,
}  # fmt: skip
_STORAGES = {
    "Half": 2, "BFloat16": 2, "Float": 4, "Double": 8, "Char": 1, "Byte": 1, "Short": 2, "Int": 4,
    "Long": 8, "Bool": 1,
}  # fmt: skip

# Opcodes that put values into something, and which of the values become keys.
_KEYS = {
    "APPEND": slice(0), "APPENDS": slice(0), "LIST": slice(0), "EMPTY_LIST": slice(0),
    "SETITEM": slice(0, None, 2), "SETITEMS": slice(0, None, 2), "DICT": slice(0, None, 2),
    "EMPTY_DICT": slice(0), "ADDITEMS": slice(None), "FROZENSET": slice(None),
    "EMPTY_SET": slice(0),
}  # fmt: skip
_NEW = {"LIST", "EMPTY_LIST", "DICT", "EMPTY_DICT", "FROZENSET", "EMPTY_SET"}


@dataclass(frozen=True)
class _Name:
    """A global that the pickle asks for."""

    text: str


class _Other:
    """A value of which nothing needs to be known."""


class _Filled:
    """A list, dictionary or set, or what may be one: only its size is known."""

    size = 0


@dataclass(frozen=True)
class _Tuple:
    """A tuple, and how many values are in it and in the tuples in it."""

    items: tuple[Any, ...]
    weight: int


@dataclass(frozen=True)
class Scan:
    """What a pickle holds.

    Parameters
    ----------
    refused : tuple of str
        Globals that a plain state dict does not need, as ``module.name``.
    storages : mapping of str to int
        Bytes of each storage that is referred to.
    """

    refused: tuple[str, ...]
    storages: dict[str, int]


def scan_pickle(stream: IO[bytes]) -> Scan:
    """Walk through one pickle, up to its STOP.

    Parameters
    ----------
    stream : binary file
        Left behind the pickle.

    Raises
    ------
    CheckpointError
        If it is damaged, or far larger than what describes a state dict.
    """
    scanner = _Scanner()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number > _MOST_OPCODES:
                raise CheckpointError("The file's pickle is far longer than a state dict needs.")
            scanner.step(opcode, argument)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError("The file's pickle is damaged; get the file again.") from error
    return Scan(tuple(dict.fromkeys(scanner.refused)), scanner.storages)


class _Scanner:
    """The stack and memo of a pickle machine that builds nothing but tuples and text."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.refused: list[str] = []
        self.storages: dict[str, int] = {}
        self.other_keys = 0
        self.mark = object()

    def step(self, opcode: Any, argument: Any) -> None:
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            slot = len(self.memo) if name == "MEMOIZE" else int(argument)
            self.memo[slot] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name == "MARK":
            self.stack.append(self.mark)
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        else:
            self._push(opcode, argument, self._pop(opcode))

    def _pop(self, opcode: Any) -> list[Any]:
        """Take off the stack what an opcode consumes."""
        before = [item.name for item in opcode.stack_before]
        if "mark" in before:
            items: list[Any] = []
            while (value := self.stack.pop()) is not self.mark:
                items.append(value)
            below = before.index("mark")
        else:
            items, below = [], 0
            for _ in before:
                items.append(self.stack.pop())
        for _ in range(below):
            items.append(self.stack.pop())
        items.reverse()
        if opcode.name not in ("POP", "POP_MARK") and self.mark in items:
            raise ValueError("a mark where a value belongs")
        return items

    def _push(self, opcode: Any, argument: Any, items: list[Any]) -> None:
        """Put on the stack what it leaves there."""
        name = opcode.name
        value: Any = _Other()
        if name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            text = argument if argument else " ".join(map(str, items))
            value = _Name(str(text))
            self._ask(value)
        elif name.startswith(("TUPLE", "EMPTY_TUPLE")):
            weight = 1 + sum(item.weight if isinstance(item, _Tuple) else 1 for item in items)
            value = _Tuple(tuple(items), weight)
            # The hash of tuples in tuples in tuples can take for ever.
            if weight > _MOST_IN_TUPLE:
                raise CheckpointError("The file's pickle nests far deeper than a state dict.")
        elif name in _KEYS:
            value = self._fill(name, items)
        elif name in ("REDUCE", "BUILD"):
            value = self._call(name, *items)
        elif name in ("BINPERSID", "PERSID"):
            self._storage(items[0] if items else None)
        elif name in ("EXT1", "EXT2", "EXT4"):
            self.refused.append(f"copyreg extension {argument}")
        elif argument is not None and isinstance(argument, (str, int)):
            value = argument
        self.stack.extend([value] * len(opcode.stack_after))

    def _fill(self, name: str, items: list[Any]) -> Any:
        """Put values into a list, dictionary or set; return it."""
        into, values = (_Filled(), items) if name in _NEW else (items[0], items[1:])
        keys = values[_KEYS[name]]
        self._use(sum(not _is_plain_key(key) for key in keys))
        if isinstance(into, _Filled):
            into.size += len(values)
        return into

    def _call(self, name: str, called: Any, given: Any) -> Any:
        """Let a function, or the state of an object, take keys out of anything that it is given."""
        values = given.items if isinstance(given, _Tuple) else (given,)
        # Shapes and strides of tensors are tuples.
        is_tensor = isinstance(called, _Name) and called.text.startswith("torch._utils ")
        for value in values:
            if isinstance(value, _Filled):
                self._use(value.size)
            elif isinstance(value, str):
                self._use(len(value))
            elif isinstance(value, _Tuple) and not is_tensor:
                self._use(value.weight)
        return _Filled() if name == "REDUCE" else called

    def _use(self, keys: int) -> None:
        """Count what may become keys of any hash."""
        self.other_keys += keys
        if self.other_keys > _MOST_OTHER_KEYS:
            raise CheckpointError("The file's pickle has far more odd keys than a state dict.")

    def _ask(self, name: _Name) -> None:
        module, _, attribute = name.text.partition(" ")
        known = (
            name.text in _HARMLESS
            or (module == "torch" and attribute in _DTYPES)
            or (
                module in ("torch", "torch.storage")
                and attribute.removesuffix("Storage") in {*_STORAGES, "Untyped"}
            )
        )
        if not known:
            self.refused.append(f"{module}.{attribute}"[:100])

    def _storage(self, reference: Any) -> None:
        """Note the size of ("storage", type, key, device, number of values)."""
        if not isinstance(reference, _Tuple):
            raise ValueError("not a reference to a storage")
        kind, typed, key, _, count = reference.items[:5]
        if kind != "storage" or not isinstance(typed, _Name) or not isinstance(count, int):
            raise ValueError("not a reference to a storage")
        each = _STORAGES.get(typed.text.rpartition(" ")[2].removesuffix("Storage"), 1)
        if count < 0:
            raise ValueError("a storage of negative size")
        self.storages[str(key)] = each * count


def _is_plain_key(key: Any) -> bool:
    return isinstance(key, str) or (isinstance(key, int) and abs(key) < _SMALL_KEY)
