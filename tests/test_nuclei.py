"""The bundled model on real images, where they are at hand, and on the sample."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_unet.checkpoint import load_model
from napari_unet.evaluate import aggregate, evaluate
from napari_unet.sample import sample_nuclei
from napari_unet.segmentation import segment
from napari_unet.verification import verify

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def scores(folder: str) -> dict[str, float]:
    """Mean scores over the ``test`` images of a data set."""
    index = DATA / folder / "index.csv"
    if not index.is_file():
        pytest.skip(f"the images of {folder} are not beside this checkout, in ../shared/data")
    model = load_model("nuclei")
    rows = []
    with index.open() as file:
        ids = [row["id"] for row in csv.DictReader(file) if row["split"] == "test"]
    for name in ids:
        image = tifffile.imread(DATA / folder / "images" / f"{name}.tif")
        truth = tifffile.imread(DATA / folder / "masks" / f"{name}.tif")
        rows.append(evaluate(segment(image, model).labels, truth))
    return aggregate(rows)


def test_nuclei_on_images_it_never_saw() -> None:
    assert scores("nuclei_dsb2018")["f1_50"] >= 0.91


def test_nuclei_on_larger_fields() -> None:
    assert scores("nuclei_dsb2018_large")["f1_50"] >= 0.89


def test_the_sample_is_segmented_without_seams() -> None:
    image, _ = sample_nuclei()
    found = verify(image, "nuclei", tile_size=200)
    assert found.max_abs_logit_difference <= 1e-4
    assert found.changed_labels == 0
    result = segment(image, "nuclei")
    assert 50 < result.report.objects < 500
    assert np.median(result.objects["foreground_probability"]) > 0.8
