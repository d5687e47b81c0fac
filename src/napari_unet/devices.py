"""Where a network runs, in which precision, and how large a tile fits there."""

from __future__ import annotations

import os
from math import prod

import torch

from napari_unet.config import UNetConfig
from napari_unet.errors import OptionError
from napari_unet.options import DEVICES, PRECISIONS

__all__ = ["default_tile_size", "is_out_of_memory", "resolve_device", "resolve_precision"]

_MOST_BYTES = 1 << 30
_SHARE = 0.25  # of what is free


def resolve_device(name: str = "auto") -> torch.device:
    """Choose the device: the first GPU that torch can use, or the processor.

    Parameters
    ----------
    name : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises
    ------
    OptionError
        If there is no such device here.
    """
    have_cuda, have_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if have_cuda else "mps" if have_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"There is no device {name!r}; choose {', '.join(DEVICES)}.") from None
    found = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if have_cuda else 0,
        "mps": int(have_mps),
    }.get(device.type, 0)
    if (device.index or 0) >= found:
        raise OptionError(
            f"No device {name!r} was found; choose 'cpu', or run `valid-unet doctor` to see why."
        )
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Choose the precision of the network's arithmetic.

    ``auto`` is bfloat16 on a GPU that has it in hardware, else float32.

    Raises
    ------
    OptionError
        If the device cannot compute in it.
    """
    if name == "auto":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if capable else torch.float32
    if name not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, not {name!r}.")
    if name == "float16" and device.type == "cpu":
        raise OptionError("float16 needs a GPU; choose float32 or bfloat16 on the CPU.")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or the system, says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # The CPU allocator and MPS raise plain RuntimeErrors.
    words = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "not enough memory" in words or "out of memory" in words or "can't allocate" in words
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; a cautious guess where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" in names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def default_tile_size(config: UNetConfig, device: torch.device) -> tuple[int, ...]:
    """Tile for a network that wastes little on halos, stays in memory and answers soon.

    Parameters
    ----------
    config : UNetConfig
        Of the network.
    device : torch.device
        Where it runs; at most a quarter of its free memory is used, and at most 1 GiB.

    Returns
    -------
    tuple of int
        An admissible input for each spatial axis, in pixels.
    """
    geometry = config.geometry
    budget = min(_MOST_BYTES, int(free_memory(device) * _SHARE))
    # At the end of the decoder the concatenated map and two maps of the block's width are alive.
    up = config.up_widths[0] if config.depth else 0
    per_pixel = 4 * (3 * config.widths[0] + up + config.n_classes)
    most = max(budget // per_pixel, 1)
    # Read nine times what is lost per axis: then four pixels of five that are computed are kept.
    wanted = [max(9 * axis.loss, axis.size_for(axis.stride)) for axis in geometry.axes]
    while prod(wanted) > most:
        largest = max(range(len(wanted)), key=lambda axis: wanted[axis])
        smaller = int(wanted[largest] * 0.9)
        if smaller < geometry.axes[largest].size_for(geometry.axes[largest].stride):
            break
        wanted[largest] = smaller
    floor = geometry.size_for(geometry.stride)
    sizes = zip(geometry.axes, wanted, floor, strict=True)
    return tuple(axis.below(max(size, least)) or least for axis, size, least in sizes)
