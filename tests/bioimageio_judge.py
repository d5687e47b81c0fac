"""bioimageio.spec and bioimageio.core as judges of packages: imported late, since they are slow."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Their warnings are their own, and so is the garbage that they collect again and again."""
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.unfreeze()


def described(path: Path) -> Any:
    """The validated description; fails with the validator's own words."""
    with _quiet():
        from bioimageio.spec import load_description

        found = load_description(path, perform_io_checks=True)
        summary = found.validation_summary
    errors = [f"{error.loc}: {error.msg}" for error in summary.errors]
    assert summary.status in ("passed", "valid-format"), errors
    return found


def tested(path: Path) -> Any:
    """The summary of bioimageio.core's own test run of the weights."""
    with _quiet():
        from bioimageio.core import test_description

        return test_description(path)


def logits_of(
    path: Path, image: NDArray[np.float32], *, blocks: int | None = None
) -> NDArray[np.float32]:
    """What bioimageio.core computes for (B, C, [Z,] Y, X), at once or in blocks of a size."""
    with _quiet():
        from bioimageio.core import create_prediction_pipeline
        from bioimageio.core.digest_spec import create_sample_for_model

        model = described(path)
        sample = create_sample_for_model(model, inputs={"image": image})
        with create_prediction_pipeline(model) as pipeline:
            if blocks is None:
                # Else it would add the halo and take it into the statistics, too.
                found = pipeline.predict_sample_without_blocking(
                    sample, skip_input_padding=True, skip_output_cropping=True
                )
            else:
                found = pipeline.predict_sample_with_blocking(sample, ns=blocks)
    logits: NDArray[np.float32] = found.members["logits"].data.values
    return logits
