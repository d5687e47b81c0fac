"""The libraries beside PyTorch, by the names that engines go by."""

from __future__ import annotations

from napari_unet.answers import Answer, logits
from napari_unet.predictors import Predictor
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.ncnn_predictor import NcnnPredictor
from napari_unet.predictors.openvino_predictor import OpenVinoPredictor

__all__ = ["library_predictor"]


def library_predictor(
    engine: str, network: LeanUNet, *, half: bool = False, answer: Answer = logits
) -> Predictor:
    """Make a network ready for a library.

    Parameters
    ----------
    engine : {"openvino", "ncnn"}
        Which one.
    network : LeanUNet
        float32, on the processor.
    half : bool
        Compute in bfloat16; not for ncnn.
    answer : callable
        What is made of the logits.

    Raises
    ------
    PredictorError
        If the library is not there, or cannot run the network.
    """
    if engine == "ncnn":
        return NcnnPredictor(network, answer=answer)
    return OpenVinoPredictor(network, half=half, answer=answer)
