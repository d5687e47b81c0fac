"""The models on offer: what was used of late, what comes with the package, what a person opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_unet.checkpoint import Card, bundled_models
from napari_unet.importers import DESCRIPTIONS, SUFFIXES

__all__ = ["FILTER", "ModelEntry", "offer", "passport"]

# For the dialog that chooses a file; a package's description stands for its folder.
FILTER = (
    f"Checkpoints ({' '.join(f'*{suffix}' for suffix in SUFFIXES)} {' '.join(DESCRIPTIONS)});;"
    "All files (*)"
)


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be chosen.

    Parameters
    ----------
    key : str
        Name of a bundled model, or a path.
    label : str
        As the list shows it.
    """

    key: str
    label: str


def offer(recent: Sequence[str]) -> list[ModelEntry]:
    """List the models: recent ones that are still there first, then the bundled ones.

    Parameters
    ----------
    recent : sequence of str
        Names and paths, the last used first.
    """
    bundled = list(bundled_models())
    keys = [key for key in recent if key in bundled or Path(key).exists()]
    keys += [name for name in bundled if name not in keys]
    stems = [Path(key).stem for key in keys]
    return [ModelEntry(key, _label(key, stems)) for key in keys]


def passport(card: Card) -> str:
    """Tell all a checkpoint says about itself, one heading per paragraph."""
    norm = card.normalisation
    scaled = {
        "percentile": f"percentiles {norm.low:g} and {norm.high:g} to 0 and 1",
        "min-max": "smallest and largest value to 0 and 1",
        "mean-std": "mean 0, standard deviation 1",
        "dtype-range": "the largest number of the pixels' type to 1",
        "none": "as they are",
    }[norm.kind]
    lines = [card.describe(), f"Grey levels: {scaled}, over the whole image."]
    for key, value in card.settings.items():
        lines.append(
            f"Objects that touch are cut at waists deeper than {value:g} px."
            if key == "waist"  # for which the dock has no field
            else f"{key.replace('_', ' ').capitalize()}: {value:g} unless set below."
        )
    lines += [f"{heading.capitalize()}: {text}" for heading, text in card.provenance.items()]
    if not card.provenance:
        lines.append("The file does not say what it was trained on.")
    return "\n".join(lines)


def _label(key: str, stems: list[str]) -> str:
    path = Path(key)
    # Two files of one name are told apart by their folders.
    return f"{path.stem} ({path.parent.name})" if stems.count(path.stem) > 1 else path.stem
