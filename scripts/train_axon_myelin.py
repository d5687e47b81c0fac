"""Train the bundled `axon-myelin` checkpoint: SEM of spinal cord, three classes.

    python scripts/train_axon_myelin.py DATA OUT.safetensors [--seed 0]

DATA holds images with the classes 0 background, 1 myelin, 2 axon (MIT), rows with split ``train``.
Large axons are wider than a network of depth 3 sees, and look like background to it.
"""

from __future__ import annotations

from dataclasses import replace

from data_sets import Task, parser_of, train_task

from napari_unet.config import UNetConfig
from napari_unet.training.augment import Augmentation
from napari_unet.training.plan import parse_classes
from napari_unet.training.recipe import Recipe
from napari_unet.training.schedule import Optimisation
from napari_unet.training.weights import Weighting

FIRST = Recipe(
    steps=1800,
    weighting=Weighting("none"),
    augmentation=Augmentation(scale=0.4, elastic=3, knots=9, contrast=0.4, noise=0.2),
    write=392,
    batch=2,
)
# Other animals, stains and microscopes differ more than six images show.
SECOND = replace(
    FIRST,
    steps=1000,
    augmentation=Augmentation(
        scale=0.5, elastic=4, knots=9, contrast=0.6, gamma=0.8, brightness=0.2, blur=2, noise=0.3
    ),
    optimisation=Optimisation(rate=2e-3),
)
TASK = Task(
    "axon-myelin",
    UNetConfig(n_classes=3, widths=(16, 32, 64, 128, 192), norm="batch"),
    (FIRST, SECOND),
    settings={"min_size": 100},
    provenance={
        "data": "SEM of rat spinal cord (AxonDeepSeg), 6 training images. Zaimi et al., Sci Rep 8, "
        "3816 (2018), doi:10.1038/s41598-018-22181-4.",
        "licence": "Data: MIT, data_axondeepseg_sem, doi:10.5281/zenodo.5498378. Weights: MIT, "
        "with that notice.",
    },
    classes=parse_classes("background,myelin:other,axon:foreground"),
)

if __name__ == "__main__":
    train_task(TASK, parser_of(__doc__).parse_args(), val=0.17)
