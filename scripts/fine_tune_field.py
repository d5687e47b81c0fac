"""Measure what one corrected field is worth: the Train page's recipe, from `nuclei`.

    python scripts/fine_tune_field.py DATA FULL_MODEL [--field 0] [--minutes 10] [--json OUT]

DATA holds images of a kind that `nuclei` does badly on; colours are turned grey, as `nuclei` takes
one channel. One image with split ``test`` is the corrected field; the others are measured before
and after, beside FULL_MODEL, which was trained on the rows with split ``train``, with colours if
it takes them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from data_sets import pairs_of

from napari_unet.checkpoint import Model, load_model
from napari_unet.evaluate import evaluate
from napari_unet.segmentation import segment
from napari_unet.steps import walk
from napari_unet.training.loop import train_steps
from napari_unet.training.pairs import Pair
from napari_unet.training.plan import plan_training
from napari_unet.training.recipe import fine_tuning_recipe


def f1(model: Model, pairs: list[Pair]) -> list[float]:
    """F1 at IoU 0.5 of each image."""
    found = [segment(pair.image, model, axes=pair.axes).labels for pair in pairs]
    return [evaluate(a, pair.labels)["f1_50"] for a, pair in zip(found, pairs, strict=True)]


def main() -> None:
    """Fine-tune and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("full", help="model to compare with")
    parser.add_argument("--field", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    full, start = load_model(options.full), load_model("nuclei")
    colours = pairs_of(options.data, "test", grey=full.config.in_channels == 1)
    grey = pairs_of(options.data, "test", grey=True)
    field = grey.pop(options.field)
    del colours[options.field]
    plan = plan_training(
        [field], fine_tuning_recipe(minutes=options.minutes), name="tuned", start=start
    )
    steps = train_steps(plan.model, plan.samples, plan.held, plan.recipe, before=plan.before)
    trained = walk(steps)
    tuned = Model(plan.model.card, trained.network)
    scores = {"nuclei": f1(start, grey), "tuned": f1(tuned, grey), "full": f1(full, colours)}
    means = {name: float(np.mean(each)) for name, each in scores.items()}
    closed = (means["tuned"] - means["nuclei"]) / (means["full"] - means["nuclei"])
    result = {
        "data": options.data.name,
        "field": field.name,
        "others": [pair.name for pair in grey],
        "f1_50": scores,
        "mean_f1_50": means,
        "gap_closed": closed,
        "minutes": trained.seconds / 60,
        "steps": trained.steps,
        "best_step": trained.best_step,
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
