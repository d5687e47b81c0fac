"""Where a network runs, in which precision, and how much memory it may take there."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from napari_unet.errors import OptionError
from napari_unet.options import DEVICES, PRECISIONS

__all__ = [
    "arithmetic",
    "computes_half",
    "empty_cache",
    "free_memory",
    "half_precision",
    "has_kernels",
    "idle_memory",
    "is_out_of_memory",
    "learn_limit",
    "memory_budget",
    "memory_layout",
    "resolve_device",
    "resolve_precision",
]

# Of what is free: other programs want some of it as well, less so on a GPU.
_SHARE, _SHARE_OF_GPU = 0.5, 0.8
# What plain RuntimeErrors say: the CPU's allocator, CUDA's, cuDNN's (which says no more than that
# nothing was found, if the reason was memory), and Metal's.
_NO_MEMORY = (
    "not enough memory",
    "out of memory",
    "can't allocate",
    "alloc_failed",
    "allocation_failed",
    "unable to find an engine",
    "invalid buffer size",
)
_telling_cudnn = RLock()


def resolve_device(name: str = "auto") -> torch.device:
    """Choose the device: the first GPU that torch can use, or the processor.

    Parameters
    ----------
    name : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises
    ------
    OptionError
        If there is no such device here, or torch has nothing to run on it.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    have_mps = torch.backends.mps.is_available()
    if name == "auto":
        usable = next((number for number in range(found) if has_kernels(number)), None)
        if usable is not None:
            return torch.device("cuda", usable) if usable else torch.device("cuda")
        return torch.device("mps" if have_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"There is no device {name!r}; choose {', '.join(DEVICES)}.") from None
    count = {"cpu": 1, "cuda": found, "mps": int(have_mps)}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise OptionError(
            f"No device {name!r} was found; choose 'cpu', or run `valid-unet doctor` to see why."
        )
    if device.type == "cuda" and not has_kernels(device.index or 0):
        raise OptionError(
            f"This PyTorch ({torch.__version__}) has nothing to run on the device {name!r}; choose "
            "'cpu', or run `valid-unet doctor` to see what to install."
        )
    return device


def has_kernels(number: int) -> bool:
    """Whether this PyTorch was built for an NVIDIA GPU: it sees older ones, too, and then fails.

    What was built for a capability runs on that and on later ones of its major version; what is
    compiled on the spot (``compute_``) on all later ones. AMD's are not looked at.
    """
    built = [] if torch.version.hip else torch.cuda.get_arch_list()
    major, minor = torch.cuda.get_device_capability(number) if built else (0, 0)
    for name in built:
        kind, _, digits = name.partition("_")
        made_for = divmod(int("".join(filter(str.isdigit, digits))), 10)
        same = made_for[0] == major or kind == "compute"
        if same and made_for <= (major, minor):
            return True
    return not built


def resolve_precision(name: str, device: torch.device, ndim: int = 2) -> torch.dtype:
    """Choose the precision of the arithmetic of a network with so many spatial axes.

    ``auto`` is the half precision that an NVIDIA GPU has units for (bfloat16 from Ampere on,
    float16 on Volta and Turing), else float32; what is fastest on the processor is measured
    (`speed`). ``tf32`` is float32 whose products an NVIDIA GPU rounds (`arithmetic`).

    Raises
    ------
    OptionError
        If the device cannot compute in it.
    """
    if name == "auto":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
        return half_precision(device) if capable else torch.float32
    if name not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, not {name!r}.")
    if name in ("float16", "bfloat16") and not computes_half(device, ndim):
        raise OptionError(f"Apple's GPUs compute volumes in float32, not {name}; choose that.")
    if name == "float16" and device.type == "cpu":
        raise OptionError("float16 needs a GPU; choose float32 or bfloat16 on the CPU.")
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    if name == "bfloat16" and old:
        raise OptionError("bfloat16 needs an NVIDIA GPU from Ampere on; choose float16.")
    if name == "tf32":
        if device.type != "cuda" or old:
            raise OptionError("tf32 needs an NVIDIA GPU from Ampere on; choose float32.")
        return torch.float32
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


@contextmanager
def arithmetic(device: torch.device, *, tf32: bool, one_shape: bool = False) -> Iterator[None]:
    """Compute float32 convolutions on an NVIDIA GPU as they are meant.

    torch itself lets cuDNN round what is multiplied to 10 bits, unless it is told not to. It is
    told for the whole process: who else computes on a GPU through this waits.

    Parameters
    ----------
    device : torch.device
        Where; nothing is done for others than CUDA's.
    tf32 : bool
        Whether that may be.
    one_shape : bool
        Whether there will be many calls of one shape: then cuDNN tries its algorithms first.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    with _telling_cudnn:
        # Not `cudnn.flags`: it fails where anybody has set one of these by its newer name.
        before = cudnn.conv.fp32_precision, cudnn.benchmark
        cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
        cudnn.benchmark = before[1] or one_shape
        try:
            yield
        finally:
            cudnn.conv.fp32_precision, cudnn.benchmark = before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or the system, says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in words for sign in _NO_MEMORY)


def memory_layout(device: torch.device, ndim: int) -> torch.memory_format:
    """Choose how maps lie in memory: channels last is faster, on Apple's GPUs it goes wrong.

    There torch's pooling, batch norm and convolutions read such maps wrongly or end the program in
    training (pytorch/pytorch issues 175189, 175190, 162776).
    """
    if device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last if ndim == 2 else torch.channels_last_3d


def half_precision(device: torch.device) -> torch.dtype:
    """Two-byte numbers that the device computes with: bfloat16, whose range is that of float32."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.float16 if device.type == "mps" else torch.bfloat16


def computes_half(device: torch.device, ndim: int) -> bool:
    """Whether a network with so many spatial axes runs in half precision.

    Up-convolutions of volumes are missing on Apple's GPUs (pytorch/pytorch issue 160332).
    """
    return device.type != "mps" or ndim < 3


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; a cautious guess where the system does not tell."""
    if device.type == "cpu":
        return min(_system_memory(), _container_memory())
    try:
        if device.type == "mps":
            return max(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory(), 0)
        # What torch keeps for the next tile is as good as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    except RuntimeError as error:
        if is_out_of_memory(error):  # others have so much that torch cannot even begin
            return 0
        raise


def empty_cache(device: torch.device) -> None:
    """Give what torch keeps of a GPU's freed memory to other programs."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def idle_memory(wanted: int | None = None, *, objects: bool = False) -> int:
    """Bytes of RAM that may stay taken from one segmentation to the next.

    Parameters
    ----------
    wanted : int, optional
        What the person allows for one.
    objects : bool
        Whether objects are found after the network: they have the rest of it.
    """
    share = free_memory(torch.device("cpu")) // 8
    return share if wanted is None else min(share, wanted // 3 if objects else wanted)


def _system_memory() -> int:
    """What a new program can have without others being pushed out to disk."""
    if sys.platform == "win32":
        status = (ctypes.c_ulonglong * 8)()
        # MEMORYSTATUSEX: two 4-byte fields, the length first, then physical, then available.
        status[0] = ctypes.sizeof(status)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status[2])
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) << 10
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return 4 << 30


# Of the two versions of control groups, by the folder below the root: limit, use, and what of the
# use are copies of files that the system drops when it needs the room.
_GROUPS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _container_memory(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int:
    """What the limits of a container or of a cluster's job leave; much where there are none."""
    left = sys.maxsize
    with suppress(OSError, ValueError):
        for line in own.read_text("utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            kind = "memory" if controllers else ""
            folder = root / kind
            group = folder / path.lstrip("/")
            # Within a container its own group is the root, whatever it is called outside.
            for place in (group, *group.parents):
                left = min(left, _left_in(place, *_GROUPS[kind]))
                if place == folder:
                    break
    return left


def _left_in(group: Path, limit_file: str, use_file: str, dropped: str) -> int:
    try:
        limit = int((group / limit_file).read_text("ascii"))
        left = limit - int((group / use_file).read_text("ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return sys.maxsize
    with suppress(OSError, StopIteration):
        lines = (group / "memory.stat").read_text("ascii").splitlines()
        left += next(int(line.split()[1]) for line in lines if line.startswith(f"{dropped} "))
    return min(max(left, 0), limit)


# By device: what was left of the memory when it once ran out in this process.
_learned: dict[str, int] = {}


def learn_limit(device: torch.device, size: int) -> None:
    """Remember that no more than `size` bytes can be had on a device, until the process ends."""
    _learned[str(device)] = min(size, _learned.get(str(device), size))


def memory_budget(device: torch.device, wanted: int | None = None) -> int:
    """Bytes that a segmentation may take on a device.

    Parameters
    ----------
    device : torch.device
        Where the network runs.
    wanted : int, optional
        What the person allows; a safe share of what is free if left out.
    """
    share = _SHARE_OF_GPU if device.type == "cuda" else _SHARE
    budget = _rounded(int(free_memory(device) * share)) if wanted is None else wanted
    return min(budget, _learned.get(str(device), budget))


def _rounded(size: int) -> int:
    """Leave off what changes at every moment: the next image gets the same tiles."""
    unit = 1 << max(size.bit_length() - 4, 0)
    return size // unit * unit
