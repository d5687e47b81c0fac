"""Measure on the U-Net paper's task: membranes of the ISBI 2012 challenge.

    python scripts/train_isbi2012.py DATA OUT.safetensors [--seed 0] [--rotations 7]

DATA holds the challenge's training stack (research only: neither it nor weights trained on it may
be shipped), 20 slices with split ``train`` and 5 with ``test``. Reported are the pixel error and
the foreground-restricted Rand and information scores after thinning, of one prediction and of the
mean over rotated and mirrored copies, as the paper averaged seven.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data_sets import Task, pairs_of, parser_of, train_task
from numpy.typing import NDArray

from napari_unet.checkpoint import Model
from napari_unet.config import UNetConfig
from napari_unet.membranes import evaluate_membranes
from napari_unet.segmentation import segment
from napari_unet.training.augment import Augmentation
from napari_unet.training.pairs import Pair
from napari_unet.training.plan import parse_classes
from napari_unet.training.recipe import Recipe
from napari_unet.training.weights import Weighting

THRESHOLDS = tuple(step / 20 for step in range(20))
TASK = Task(
    "isbi2012",
    UNetConfig(widths=(16, 32, 64, 128), norm="batch"),
    (
        Recipe(
            steps=2000,
            weighting=Weighting("none"),
            augmentation=Augmentation(scale=0.2, elastic=6, knots=6, contrast=0.4),
        ),
    ),
    settings={},
    provenance={
        "data": "ISBI 2012 EM challenge, 20 of its 30 training slices. Arganda-Carreras et al., "
        "Front Neuroanat 9:142 (2015); Cardona et al., PLoS Biol 8 (2010).",
        "licence": "Research only; not to be passed on.",
    },
    classes=parse_classes("membrane,interior"),
)


def interior_of(model: Model, pair: Pair, rotations: int) -> NDArray[np.float32]:
    """Probability of the interior, mean over rotated and mirrored copies."""
    total = np.zeros(pair.labels.shape, np.float32)
    for number in range(rotations):
        mirrored = pair.image[:, ::-1] if number >= 4 else pair.image
        turned = np.ascontiguousarray(np.rot90(mirrored, number))
        found = segment(turned, model, output="probabilities", axes="YX").probabilities
        assert found is not None
        back = np.rot90(found[1], -number)
        total += back[:, ::-1] if number >= 4 else back
    return total / np.float32(rotations)


def figures(model: Model, pairs: Sequence[Pair], rotations: int) -> dict[str, float]:
    """Scores of the challenge."""
    interior = np.stack([interior_of(model, pair, rotations) for pair in pairs])
    return evaluate_membranes(interior, np.stack([pair.labels for pair in pairs]), THRESHOLDS)


def main() -> None:
    """Train and measure."""
    parser = parser_of(__doc__)
    parser.add_argument("--rotations", type=int, default=7)
    options = parser.parse_args()
    model = train_task(TASK, options, val=0.1)
    pairs = pairs_of(options.data, "test")
    found = {
        f"{count} rotation{'s' * (count > 1)}": figures(model, pairs, count)
        for count in sorted({1, options.rotations})
    }
    Path(options.out).with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
