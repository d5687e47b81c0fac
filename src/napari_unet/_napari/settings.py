"""What survives a restart: the choices, in napari's Preferences, and the models used of late."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["PLUGIN", "Saved", "Settings"]

PLUGIN = "napari-valid-unet"
_RECENT = f"{PLUGIN}-recent.json"
_MOST_RECENT = 8


@dataclass(frozen=True)
class Saved:
    """The properties that ``napari.yaml`` declares, with their defaults."""

    model: str = "nuclei"
    output: str = "instances"
    keep_probabilities: bool = False
    device: str = "auto"
    precision: str = "auto"
    tile_size: int = 0
    fill_holes: bool = True
    rescale: bool = True
    keep_tiles: bool = False


class Settings:
    """The plugin's page in napari's Preferences, which napari stores, and a list of recent files.

    The dock and the page show the same values: what is changed in one changes in the other.
    Where the plugin is not registered (in a script that makes the widget itself), values live as
    long as the object.
    """

    def __init__(self) -> None:
        from napari.settings import get_plugin_settings

        self._group: Any = None
        self._folder: Path | None = None
        self._memory = Saved()
        self._recent: tuple[str, ...] = ()
        with contextlib.suppress(KeyError):
            stored = get_plugin_settings(PLUGIN)
            self._group = getattr(stored, "segmentation", None)
            if isinstance(stored.config_path, Path):
                self._folder = stored.config_path.parent

    @property
    def saved(self) -> Saved:
        """The values now."""
        if self._group is None:
            return self._memory
        return Saved(**{field.name: getattr(self._group, field.name) for field in fields(Saved)})

    def save(self, values: Saved) -> None:
        """Store values; only what differs is written."""
        self._memory = values
        if self._group is None:
            return
        for field in fields(Saved):
            value = getattr(values, field.name)
            if getattr(self._group, field.name) != value:
                setattr(self._group, field.name, value)

    def connect(self, callback: Callable[..., None]) -> None:
        """Call back when a value changes in the Preferences."""
        if self._group is not None:
            self._group.events.connect(callback)

    def disconnect(self, callback: Callable[..., None]) -> None:
        """Undo `connect`."""
        if self._group is not None:
            self._group.events.disconnect(callback)

    @property
    def recent(self) -> tuple[str, ...]:
        """Models used of late, the last one first: names of bundled ones, and paths."""
        if self._folder is None:
            return self._recent
        try:
            stored = json.loads((self._folder / _RECENT).read_text("utf-8"))
        except (OSError, ValueError):
            return self._recent
        if not isinstance(stored, list):
            return ()
        return tuple(entry for entry in stored if isinstance(entry, str))[:_MOST_RECENT]

    def remember(self, model: str) -> None:
        """Put a model in front of the recent ones."""
        others = [entry for entry in self.recent if entry != model]
        self._recent = (model, *others)[:_MOST_RECENT]
        if self._folder is not None:
            # A folder that cannot be written costs the list of recent files, nothing else.
            with contextlib.suppress(OSError):
                _write(self._folder / _RECENT, self._recent)


def _write(path: Path, entries: Sequence[str]) -> None:
    """Replace the file once the new one is complete: two windows may write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(list(entries), file)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
