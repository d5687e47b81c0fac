"""Train the bundled `nuclei-histology` checkpoint: nuclei in stained tissue, RGB.

    python scripts/train_histology.py DATA OUT.safetensors [--seed 0] [--workers 4]

DATA holds the stained-tissue images of the 2018 Data Science Bowl (CC0), rows with split ``train``.
Some minutes on a large GPU.
"""

from __future__ import annotations

from data_sets import Task, parser_of, train_task

from napari_unet.config import UNetConfig
from napari_unet.training.augment import Augmentation
from napari_unet.training.recipe import Recipe
from napari_unet.training.schedule import Optimisation
from napari_unet.training.weights import Weighting

RECIPE = Recipe(
    steps=3719,
    weighting=Weighting("gaps", classes=(1, 1, 2)),
    augmentation=Augmentation(scale=0.5, elastic=2, knots=11, contrast=0.4),
    optimisation=Optimisation(rate=3e-3),
    average=0.999,
    batch=16,
)
TASK = Task(
    "nuclei-histology",
    UNetConfig(
        in_channels=3,
        n_classes=3,
        widths=(24, 48, 96, 192),
        up_widths=(16, 32, 64),
        norm="batch",
    ),
    (RECIPE,),
    settings={"threshold": 0.5, "min_size": 30, "waist": 2.0},
    provenance={
        "data": "2018 Data Science Bowl, stage 1 (BBBC038v1): stained tissue, 97 training images. "
        "Caicedo et al., Nat Methods 16, 1247-1253 (2019), doi:10.1038/s41592-019-0612-7.",
        "licence": "Data and weights: CC0 1.0.",
    },
)

if __name__ == "__main__":
    train_task(TASK, parser_of(__doc__).parse_args(), val=0.1)
