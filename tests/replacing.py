"""A file that is replaced by others, over and over, while it is read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_in_turn(path: Path, files: Sequence[Path]) -> Iterator[None]:
    """Put one of the files after the other in the place of `path`, whole each time."""
    done = threading.Event()

    def put(file: Path) -> None:
        following = path.with_name("next")
        following.hardlink_to(file)
        following.replace(path)

    def go_on() -> None:
        for file in itertools.cycle([*files[1:], files[0]]):
            put(file)
            if done.is_set():
                break

    put(files[0])
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
