"""What survives a restart: the choices, in napari's Preferences, and the models used of late."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from napari_unet._napari.recent import RecentList

__all__ = ["PLUGIN", "Saved", "SavedTraining", "Settings"]

PLUGIN = "napari-valid-unet"
_RECENT = f"{PLUGIN}-recent.json"


@dataclass(frozen=True)
class Saved:
    """The properties that ``napari.yaml`` declares for the Segment page, with their defaults."""

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


@dataclass(frozen=True)
class SavedTraining:
    """The same for the Train page; no folder is the usual one."""

    minutes: float = 10.0
    held_out: float = 15.0
    folder: str = ""


Values = TypeVar("Values", Saved, SavedTraining)


class _Stored(Generic[Values]):
    """Values of one page of napari's Preferences, or of this object where there is none."""

    def __init__(self, values: Values, group: Any) -> None:
        self._memory: Values = values
        self.group = group

    @property
    def saved(self) -> Values:
        """The values now."""
        if self.group is None:
            return self._memory
        names = [field.name for field in fields(self._memory)]
        stored: Values = replace(
            self._memory, **{name: getattr(self.group, name) for name in names}
        )
        return stored

    def save(self, values: Values) -> None:
        """Store values; only what differs is written."""
        self._memory = values
        if self.group is None:
            return
        for field in fields(values):
            value = getattr(values, field.name)
            if getattr(self.group, field.name) != value:
                setattr(self.group, field.name, value)


class Settings:
    """The plugin's pages in napari's Preferences, which napari stores, and a list of recent files.

    The dock and the pages show the same values: what is changed in one changes in the other.
    Where the plugin is not registered (in a script that makes the widget itself), values live as
    long as the object.

    Attributes
    ----------
    recent : RecentList
        Checkpoints used of late.
    """

    def __init__(self) -> None:
        from napari.settings import get_plugin_settings

        segmentation = training = None
        folder: Path | None = None
        with contextlib.suppress(KeyError):
            stored = get_plugin_settings(PLUGIN)
            segmentation = getattr(stored, "segmentation", None)
            training = getattr(stored, "training", None)
            if isinstance(stored.config_path, Path):
                folder = stored.config_path.parent
        self._segmentation = _Stored(Saved(), segmentation)
        self._training = _Stored(SavedTraining(), training)
        self.recent = RecentList(None if folder is None else folder / _RECENT)

    @property
    def saved(self) -> Saved:
        """The values of the Segment page."""
        return self._segmentation.saved

    @property
    def training(self) -> SavedTraining:
        """The values of the Train page."""
        return self._training.saved

    def save(self, values: Saved | SavedTraining) -> None:
        """Store the values of a page."""
        if isinstance(values, Saved):
            self._segmentation.save(values)
        else:
            self._training.save(values)

    def connect(self, callback: Callable[..., None]) -> None:
        """Call back when a value changes in the Preferences."""
        for stored in (self._segmentation, self._training):
            if stored.group is not None:
                stored.group.events.connect(callback)

    def disconnect(self, callback: Callable[..., None]) -> None:
        """Undo `connect`."""
        for stored in (self._segmentation, self._training):
            if stored.group is not None:
                stored.group.events.disconnect(callback)
