"""Train the bundled `nuclei` checkpoint: fluorescence nuclei, instances by foreground and contour.

    python scripts/train_nuclei.py DATA OUT.safetensors [--also FOLDER ...] [--workers 4]

DATA holds the corrected 2018 Data Science Bowl stage-1 images (CC0), of which only rows with split
``train`` are used. A twentieth of them is held out to choose by. Some minutes on a large GPU, many
hours on a few CPU cores (``--scale`` shortens it); the state is saved every minute and a second
call goes on from there.
"""

from __future__ import annotations

from dataclasses import replace

from data_sets import Task, parser_of, train_task

from napari_unet.config import UNetConfig
from napari_unet.training.augment import Augmentation
from napari_unet.training.recipe import Recipe
from napari_unet.training.schedule import Optimisation
from napari_unet.training.targets import Targets
from napari_unet.training.weights import Weighting

# Contours, and gaps between nuclei, count most: they are what keeps two of them apart.
FIRST = Recipe(
    steps=4300,
    targets=Targets(touching=2),
    weighting=Weighting("gaps", border=8, classes=(1, 1.5, 3)),
    augmentation=Augmentation(scale=0.5, elastic=2, knots=11, blur=1.0),
    optimisation=Optimisation(rate=3e-3),
    average=0.999,
    batch=16,
)
SECOND = replace(
    FIRST, steps=1000, every=200, optimisation=Optimisation(rate=1.5e-3), average=0.99, batch=4
)
TASK = Task(
    "nuclei",
    UNetConfig(n_classes=3, widths=(24, 48, 96, 192), up_widths=(16, 32, 64), norm="batch"),
    (FIRST, SECOND),
    blend=True,
    # Chosen on the images held out of the training.
    settings={"threshold": 0.6, "min_size": 30, "waist": 2.0},
    provenance={
        "data": "2018 Data Science Bowl, stage 1, corrected masks (BBBC038v1): fluorescence "
        "nuclei, 440 training images. Caicedo et al., Nat Methods 16, 1247-1253 (2019), "
        "doi:10.1038/s41592-019-0612-7.",
        "licence": "Data and weights: CC0 1.0.",
    },
)

if __name__ == "__main__":
    train_task(TASK, parser_of(__doc__).parse_args())
