"""How fast this machine computes, measured once: which predictor and precision are worth taking.

A small network is timed for some tenths of a second in each way that is in question; what was
found is kept in the user's cache, for this processor and these versions. No job waits for that
longer than for its result: short ones take what is known, or what is fastest on most machines.

What a library does before it first computes is not counted: it is a fifth of a second, PyTorch's
own first run takes no less, and afterwards it stays ready (`predictors.kept`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch

from napari_unet.atomic import replacing_file
from napari_unet.config import UNetConfig
from napari_unet.devices import resolve_precision
from napari_unet.errors import OptionError, OutputError
from napari_unet.footprint import footprint
from napari_unet.model import UNet
from napari_unet.predictors import Predictor, PredictorError
from napari_unet.predictors.lean import LeanUNet
from napari_unet.predictors.libraries import library_predictor
from napari_unet.predictors.ncnn_predictor import have_ncnn, suits_ncnn
from napari_unet.predictors.openvino_predictor import have_openvino
from napari_unet.predictors.torch_predictor import TorchPredictor

__all__ = ["Way", "choose_engine", "operations_per_second"]

# Of a GPU nothing is measured: operations a second of each multiprocessor, in half precision and
# in float32, and of a GPU that does not tell how many it has.
_PER_UNIT, _PER_UNIT_WIDE, _GPU_SPEED = 1e12, 2e11, 5e12
_CPU = torch.device("cpu")
_PROBE_SECONDS = 0.25
# How fast a predictor is depends on how wide the network is: narrow ones, and those with this many
# features or more halfway down. Tiles are large enough that their maps fit into no cache.
_WIDE = 128
_PROBES = {
    False: (UNetConfig(widths=(24, 48, 96)), (404, 404)),
    True: (UNetConfig(widths=(64, 128, 256)), (300, 300)),
}
# Below this, a job is over before anything is measured (half a second), ...
_SHORT = 1e11
# ... or loaded (a tenth).
_TINY = 1e10
# Precision is given up only for a gain that is felt.
_WORTH = 1.15
_LIBRARIES = {"openvino": ("OpenVINO", have_openvino), "ncnn": ("ncnn", have_ncnn)}


@dataclass(frozen=True)
class Way:
    """How to compute.

    Parameters
    ----------
    engine : {"torch", "openvino", "ncnn"}
        Who does it.
    dtype : torch.dtype
        In which precision.
    speed : float
        Operations per second.
    measured : bool
        Whether that is more than a guess.
    """

    engine: str
    dtype: torch.dtype
    speed: float = 1e11
    measured: bool = False


def choose_engine(
    config: UNetConfig,
    operations: Callable[[str, bool], float],
    device: torch.device,
    engine: str,
    precision: str,
) -> Way:
    """Choose who computes, and in which precision, for the shortest time.

    Parameters
    ----------
    config : UNetConfig
        Of the network.
    operations : callable
        Of the whole job, for an engine and whether in half precision: who needs less memory
        computes larger tiles, which overlap less.
    device : torch.device
        Where it runs.
    engine : {"auto", "torch", "openvino", "ncnn"}
        What the person wants.
    precision : str
        What the person wants.

    Returns
    -------
    Way

    Raises
    ------
    OptionError
        If that cannot be had.
    """
    dtype = resolve_precision(precision, device, config.ndim)
    _check_engine(config, device, engine, dtype)
    if device.type != "cpu":
        return Way("torch", dtype, _gpu_speed(device, dtype))
    engines = [engine] if engine != "auto" else _engines(config)
    halves = [False, True] if precision == "auto" else [dtype != torch.float32]
    ways = [(one, half) for one in engines for half in halves if not (one == "ncnn" and half)]
    wide, work = _is_wide(config), operations(*ways[0])
    if work < _TINY:
        return _way(*ways[0])
    if work < _SHORT and not is_known(ways, wide):
        return _way(*next((way for way in ways if way[0] == "openvino"), ways[0]))
    # Precision is given up only for a gain that is felt.
    worth = {False: 1.0, True: _WORTH if precision == "auto" else 1.0}

    def seconds(way: tuple[str, bool]) -> float:
        rate = operations_per_second(way[0], half=way[1], wide=wide)
        return worth[way[1]] * operations(*way) / rate if rate else float("inf")

    name, half = min(ways, key=seconds)
    speed = operations_per_second(name, half=half, wide=wide)
    return replace(_way(name, half), speed=speed or 1e9, measured=speed > 0)


def _way(engine: str, half: bool) -> Way:
    return Way(engine, torch.bfloat16 if half else torch.float32)


def _check_engine(
    config: UNetConfig, device: torch.device, engine: str, dtype: torch.dtype
) -> None:
    """Raise `OptionError` where an engine that is asked for by name cannot do it."""
    if engine not in _LIBRARIES:
        return
    name, have = _LIBRARIES[engine]
    if device.type != "cpu":
        raise OptionError(f"{name} runs on the processor; choose the device 'cpu', or 'torch'.")
    if not have():
        raise OptionError(
            f"{name} is not installed; run `pip install {engine}`, or choose the engine 'torch'."
        )
    if engine == "ncnn" and dtype != torch.float32:
        raise OptionError("ncnn computes in float32; choose that precision, or another engine.")
    if engine == "ncnn" and config.ndim != 2:
        raise OptionError("ncnn runs 2-D models only; choose another engine.")


def _engines(config: UNetConfig) -> list[str]:
    """Who could run a network, PyTorch first."""
    found = ["torch"]
    if have_openvino():
        found.append("openvino")
    if have_ncnn() and suits_ncnn(config):
        found.append("ncnn")
    return found


def _is_wide(config: UNetConfig) -> bool:
    return config.widths[len(config.widths) // 2] >= _WIDE


def _gpu_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Guess operations per second: only how they compare with the time of a call matters."""
    if device.type != "cuda":
        return _GPU_SPEED
    units = torch.cuda.get_device_properties(device).multi_processor_count
    return float(units) * (_PER_UNIT_WIDE if dtype == torch.float32 else _PER_UNIT)


@lru_cache(maxsize=16)
def operations_per_second(engine: str, *, half: bool = False, wide: bool = False) -> float:
    """Speed of the processor on a small U-Net, measured or from the cache; 0 if it cannot.

    Parameters
    ----------
    engine : {"torch", "openvino", "ncnn"}
        Who computes.
    half : bool
        In bfloat16 instead of float32.
    wide : bool
        With many features instead of few.
    """
    key, way, known = _machine(), _name(engine, half, wide), _cached()
    if way in known.get(key, {}):
        return known[key][way]
    found, steady = _measured(engine, half, *_PROBES[wide])
    if steady:
        known.setdefault(key, {})[way] = found
        with suppress(OSError, OutputError):
            path = _cache_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing_file(path) as file:
                file.write(json.dumps(known, indent=1).encode())
    return found


def is_known(ways: Sequence[tuple[str, bool]], wide: bool) -> bool:
    """Whether the speed of all of them was measured before, on this machine."""
    known = _cached().get(_machine(), {})
    return all(_name(*way, wide) in known for way in ways)


def _name(engine: str, half: bool, wide: bool) -> str:
    return f"{engine}, {'bfloat16' if half else 'float32'}, {'wide' if wide else 'narrow'}"


def _measured(
    engine: str, half: bool, config: UNetConfig, tile: tuple[int, int]
) -> tuple[float, bool]:
    """Time the probe: the best of some runs, since other programs only ever make it slower.

    Returns
    -------
    speed : float
    steady : bool
        Whether two runs agree on it; on a busy machine they do not.
    """
    dtype = torch.bfloat16 if half else torch.float32
    pixels = np.ones((1, 1, *tile), np.float32)
    seconds: list[float] = []
    try:
        lean = LeanUNet(UNet(config).eval())
        predictor: Predictor
        if engine != "torch":
            predictor = library_predictor(engine, lean, half=half)
        else:
            lean = lean.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            predictor = TorchPredictor(lean, _CPU, dtype)
        predictor.start(pixels).result(None)
        while len(seconds) < 3 or (sum(seconds) < _PROBE_SECONDS and len(seconds) < 10):
            started = time.perf_counter()
            predictor.start(pixels).result(None)
            seconds.append(time.perf_counter() - started)
    except (PredictorError, RuntimeError, MemoryError):
        return 0.0, False
    best, second, *_ = sorted(seconds)
    flops = footprint(config, tile, predictor=engine, half=half).flops
    return flops / best, second < 1.25 * best


def _machine() -> str:
    """What a measurement holds for."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = next(line for line in lines if line.startswith("model name")).split(":")[1]
    versions = [f"{name} {_version(name)}" for name in ("torch", "openvino", "ncnn")]
    return f"{processor.strip()}, {torch.get_num_threads()} threads, {', '.join(versions)}"


@cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cached() -> dict[str, dict[str, float]]:
    """Read all measurements; nothing of a file that is damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(_cache_file().read_text("utf-8"))
        if isinstance(found, dict) and all(isinstance(part, dict) for part in found.values()):
            return found
    return {}


def _cache_file() -> Path:
    """Where the system wants what a program can find out again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "napari-valid-unet" / "speed.json"
