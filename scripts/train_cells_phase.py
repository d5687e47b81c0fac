"""Train the bundled `cells-phase` checkpoint: cells in phase contrast, instances.

    python scripts/train_cells_phase.py DATA OUT.safetensors [--seed 0] [--workers 14]

DATA holds the T98G glioblastoma images of Usiigaci (MIT), rows with split ``train``. The cells are
thin, touch, and have little contrast: the network sees far (depth 4) and contours count. Two
minutes on a large GPU.
"""

from __future__ import annotations

from data_sets import Task, parser_of, train_task

from napari_unet.config import UNetConfig
from napari_unet.training.augment import Augmentation
from napari_unet.training.recipe import Recipe
from napari_unet.training.targets import Targets
from napari_unet.training.weights import Weighting

TASK = Task(
    "cells-phase",
    UNetConfig(
        n_classes=3, widths=(24, 48, 96, 192, 256), up_widths=(16, 32, 64, 128), norm="batch"
    ),
    (
        Recipe(
            steps=2457,
            targets=Targets(touching=2),
            weighting=Weighting("gaps", border=6, classes=(1, 1.5, 3)),
            augmentation=Augmentation(
                scale=0.35, elastic=3, knots=9, contrast=0.5, gamma=0.6, blur=2, noise=0.15
            ),
            average=0.999,
            write=392,
            batch=8,
        ),
    ),
    # Chosen on the images held out of the training.
    settings={"threshold": 0.6, "min_size": 200, "waist": 4.0},
    provenance={
        "data": "Usiigaci: T98G glioblastoma cells in phase contrast, 38 training images. Tsai et "
        "al., SoftwareX 9, 230-237 (2019), doi:10.1016/j.softx.2019.02.007.",
        "licence": "Data: MIT, Copyright (c) 2018 Okinawa Institute of Science and Technology "
        "Graduate University. Weights: MIT, with that notice.",
    },
)

if __name__ == "__main__":
    train_task(TASK, parser_of(__doc__).parse_args(), val=0.1)
