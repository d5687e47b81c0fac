"""What survives a restart: the choices, in napari's Preferences, and the models used of late."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from napari_unet._napari.recent import RecentList

__all__ = ["PLUGIN", "Saved", "Settings"]

PLUGIN = "napari-valid-unet"
_RECENT = f"{PLUGIN}-recent.json"


@dataclass(frozen=True)
class Saved:
    """The properties that ``napari.yaml`` declares, with their defaults."""

    model: str = "nuclei"
    output: str = "instances"
    keep_probabilities: bool = False
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    memory: float = 0.0
    tile_size: int = 0
    fill_holes: bool = True
    rescale: bool = True
    keep_tiles: bool = False


class Settings:
    """The plugin's page in napari's Preferences, which napari stores, and a list of recent files.

    The dock and the page show the same values: what is changed in one changes in the other.
    Where the plugin is not registered (in a script that makes the widget itself), values live as
    long as the object.

    Attributes
    ----------
    recent : RecentList
        Checkpoints used of late.
    """

    def __init__(self) -> None:
        from napari.settings import get_plugin_settings

        self._group: Any = None
        self._memory = Saved()
        folder: Path | None = None
        with contextlib.suppress(KeyError):
            stored = get_plugin_settings(PLUGIN)
            self._group = getattr(stored, "segmentation", None)
            if isinstance(stored.config_path, Path):
                folder = stored.config_path.parent
        self.recent = RecentList(None if folder is None else folder / _RECENT)

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
