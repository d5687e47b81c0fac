"""The bundled models on real images, where they are at hand, and on the sample."""

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
from napari_unet.training.validation import class_scores
from napari_unet.verification import verify

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def scores(name: str, folder: str) -> dict[str, float]:
    """Mean scores of a bundled model over the ``test`` images of a data set."""
    index = DATA / folder / "index.csv"
    if not index.is_file():
        pytest.skip(f"the images of {folder} are not beside this checkout, in ../shared/data")
    model = load_model(name)
    rows = []
    with index.open() as file:
        ids = [row["id"] for row in csv.DictReader(file) if row["split"] == "test"]
    for number in ids:
        image = tifffile.imread(DATA / folder / "images" / f"{number}.tif")
        truth = tifffile.imread(DATA / folder / "masks" / f"{number}.tif")
        if name == "axon-myelin":
            labels = segment(image, model, output="classes").labels
            rows.append(class_scores(labels, truth, 3))
        else:
            rows.append(evaluate(segment(image, model).labels, truth))
    return aggregate(rows)


@pytest.mark.parametrize(
    ("name", "folder", "least"),
    [
        ("nuclei", "nuclei_dsb2018", {"f1_50": 0.91, "mean_ap": 0.6}),
        ("nuclei", "nuclei_dsb2018_large", {"f1_50": 0.89, "mean_ap": 0.6}),
        ("nuclei-histology", "histology_dsb2018_rgb", {"f1_50": 0.6}),
        ("cells-phase", "phase_t98g_usiigaci", {"f1_50": 0.68}),
        ("axon-myelin", "sem_axon_myelin", {"iou_1": 0.73, "iou_2": 0.8}),
    ],
)
def test_bundled_models_on_images_they_never_saw(
    name: str, folder: str, least: dict[str, float]
) -> None:
    found = scores(name, folder)
    for key, value in least.items():
        assert found[key] >= value


def test_the_sample_is_segmented_without_seams() -> None:
    image, _ = sample_nuclei()
    found = verify(image, "nuclei", tile_size=200)
    assert found.max_abs_logit_difference <= 1e-4
    assert found.changed_labels == 0
    result = segment(image, "nuclei")
    assert 50 < result.report.objects < 500
    assert np.median(result.objects["foreground_probability"]) > 0.8
