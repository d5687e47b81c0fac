"""Run a network over a plan of tiles, one tile at a time.

The engine is a generator: what it yields is finished, between two tiles nothing is held (no
inference mode, no hooks), and closing it stops the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_unet.devices import is_out_of_memory
from napari_unet.errors import Cancelled, MemoryLimitError
from napari_unet.model import UNet, fold_batch_norm
from napari_unet.tiling import Tile, TilePlan, Window

__all__ = ["Runtime", "prepare", "run_tiles"]


@dataclass(frozen=True)
class Runtime:
    """Where and how a network computes.

    Parameters
    ----------
    device : torch.device
        The processor or a GPU.
    dtype : torch.dtype
        float32, or a half precision for the convolutions (autocast).
    """

    device: torch.device
    dtype: torch.dtype


def prepare(network: UNet, runtime: Runtime) -> nn.Module:
    """Return a copy made for inference: batch norm folded in, channels last, on the device.

    Parameters
    ----------
    network : UNet
        Left as it is.
    runtime : Runtime
        Where the copy will run.

    Raises
    ------
    MemoryLimitError
        If the weights do not fit on the device.
    """
    folded = fold_batch_norm(network).eval()
    layout = torch.channels_last if network.config.ndim == 2 else torch.channels_last_3d
    try:
        return folded.to(device=runtime.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryLimitError(
                f"The model does not fit into the memory of {runtime.device}; choose the CPU."
            ) from error
        raise


def run_tiles(
    network: Callable[[Tensor], Tensor],
    read: Callable[[Window], NDArray[np.float32]],
    plan: TilePlan,
    runtime: Runtime,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[Tile, NDArray[np.float32]]]:
    """Compute the logits of each tile.

    Parameters
    ----------
    network : callable
        (B, C, [Z,] Y, X) -> logits, valid: smaller by ``2 * plan.loss``.
    read : callable
        Gives the normalised pixels (C, [Z,] Y, X) of a window, mirrored beyond the image.
    plan : TilePlan
        What to compute.
    runtime : Runtime
        Where and in which precision.
    should_stop : callable, optional
        Asked before every layer; once it says yes the tile is given up.

    Yields
    ------
    tile : Tile
        Its ``write`` window says where the logits belong.
    logits : ndarray of float32, of shape (K,) + ``tile.write.shape``

    Raises
    ------
    Cancelled
        If `should_stop` said yes.
    MemoryLimitError
        If a tile does not fit into the device's memory.
    """
    for tile in plan:
        pixels = torch.from_numpy(np.ascontiguousarray(read(tile.read)))[None]
        try:
            with _interruptible(network, should_stop):
                logits = _forward(network, pixels, runtime)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                size = " x ".join(map(str, plan.tile_shape))
                raise MemoryLimitError(
                    f"Out of memory on {runtime.device} with tiles of {size} px; choose a smaller "
                    "tile size or the CPU."
                ) from error
            raise
        yield tile, logits[(slice(None), *plan.keep(tile))]


@torch.inference_mode()
def _forward(network: Callable[[Tensor], Tensor], pixels: Tensor, runtime: Runtime) -> NDArray[Any]:
    """One tile through the network: (1, C, [Z,] Y, X) -> (K, [Z',] Y', X')."""
    layout = torch.channels_last if pixels.ndim == 4 else torch.channels_last_3d
    given = pixels.to(device=runtime.device).contiguous(memory_format=layout)
    half = runtime.dtype != torch.float32
    with torch.autocast(runtime.device.type, runtime.dtype, enabled=half):
        logits = network(given)
    # Channels first in memory: what follows goes over whole maps, class by class.
    return logits[0].float().contiguous().cpu().numpy()


@contextmanager
def _interruptible(
    network: Callable[[Tensor], Tensor], should_stop: Callable[[], bool] | None
) -> Iterator[None]:
    """Ask before every layer whether to go on: a tile of a large network takes many seconds."""
    if should_stop is None or not isinstance(network, nn.Module):
        if should_stop is not None and should_stop():
            raise Cancelled("Stopped.")
        yield
        return

    def check(_module: nn.Module, _inputs: tuple[Any, ...]) -> None:
        if should_stop():
            raise Cancelled("Stopped.")

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_pre_hook(check) for leaf in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
