"""Train the bundled `axon-myelin` checkpoint: SEM of spinal cord, three classes.

    python scripts/train_axon_myelin.py DATA OUT.safetensors [--seed 0] [--workers 4]

DATA holds images with the classes 0 background, 1 myelin, 2 axon (MIT), rows with split ``train``.
Large axons are wider than a network of depth 3 sees, and look like background to it. The images are
of few animals: none is held out, and the length was settled before anything was looked at. Some
minutes on a large GPU.
"""

from __future__ import annotations

from data_sets import Task, parser_of, train_task

from napari_unet.config import UNetConfig
from napari_unet.training.augment import Augmentation
from napari_unet.training.plan import parse_classes
from napari_unet.training.recipe import Recipe
from napari_unet.training.schedule import Optimisation
from napari_unet.training.weights import Weighting

RECIPE = Recipe(
    steps=5126,
    weighting=Weighting("none"),
    # Other animals, stains and microscopes differ more than six images show.
    augmentation=Augmentation(
        scale=0.5, elastic=4, knots=9, contrast=0.6, gamma=0.8, brightness=0.2, blur=2, noise=0.3
    ),
    optimisation=Optimisation(rate=3e-3),
    average=0.999,
    write=392,
    batch=8,
)
TASK = Task(
    "axon-myelin",
    UNetConfig(
        n_classes=3, widths=(32, 64, 96, 128, 128), up_widths=(16, 32, 64, 128), norm="batch"
    ),
    (RECIPE,),
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
    train_task(TASK, parser_of(__doc__).parse_args(), val=0)
