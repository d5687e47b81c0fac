"""A ``.safetensors`` file read as a whole: tensors and description of one and the same file.

The library's own reader opens a file again for its tensors, and maps them: one that is replaced
meanwhile gives two files' parts, and one that is overwritten later ends the program (SIGBUS), or
cannot be overwritten at all (Windows).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Stored", "read_whole"]


@dataclass(frozen=True, eq=False)
class Stored:
    """What a file held.

    Parameters
    ----------
    tensors : dict of str to Tensor
        In memory of their own, by name.
    metadata : dict of str to str
        What is said of them.
    sha256 : str
        Of the file, in hexadecimal.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str


def read_whole(path: Path) -> Stored:
    """Read a file; for a moment it takes twice its length in memory.

    Raises
    ------
    SafetensorError, ValueError
        If it is damaged.
    OSError
        If it cannot be read.
    """
    from safetensors.torch import load

    content = path.read_bytes()
    tensors = load(content)
    # Its length in 8 bytes, then the header, which has been checked by now.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Stored(tensors, header.get("__metadata__") or {}, hashlib.sha256(content).hexdigest())
