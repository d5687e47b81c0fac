"""What a segmentation did, for the layer's metadata and for machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Facts of one run.

    Parameters
    ----------
    shape : tuple of int
        Of the image, with channels.
    region : tuple of (start, stop)
        What was segmented, along each axis without channels.
    model, model_sha256, version : str
        Name and hash of the checkpoint, and this package's version.
    tile_size, halo, network_shape : tuple of int
        The network's input, what it loses per side, and the grid it ran on, in its pixels.
    tiles : int
        Tiles computed.
    device, precision, engine : str
        Where, how, and who computed (``torch``, ``openvino`` or ``ncnn``); as it was in the end.
    seconds, megapixels_per_second : float
        Wall-clock time with post-processing, and image pixels over it.
    objects : int
        Found; 0 for classes.
    complete : bool
        False where it was stopped and the finished tiles were kept.
    remarks : tuple of str
        What had to be changed on the way, such as smaller tiles where memory ran out; sentences.
    settings : dict
        The options in force.
    """

    shape: tuple[int, ...]
    region: tuple[tuple[int, int], ...]
    model: str
    model_sha256: str
    version: str
    tile_size: tuple[int, ...]
    tiles: int
    halo: tuple[int, ...]
    network_shape: tuple[int, ...]
    device: str
    precision: str
    engine: str
    seconds: float
    megapixels_per_second: float
    objects: int
    complete: bool
    remarks: tuple[str, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
