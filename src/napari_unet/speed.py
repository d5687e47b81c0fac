"""How fast this machine computes, measured once: which predictor and precision are worth taking.

A small network is timed for some hundredths of a second in each way that is in question; what was
found is kept in the user's cache, for this processor and these versions. Short jobs measure
nothing and run in float32 with PyTorch, which needs no preparation.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
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
from napari_unet.predictors.openvino_predictor import OpenVinoPredictor, have_openvino
from napari_unet.predictors.torch_predictor import TorchPredictor

__all__ = ["Way", "choose_engine", "operations_per_second"]

# Of a GPU nothing is measured: operations a second of each multiprocessor, in half precision and
# in float32, and of a GPU that does not tell how many it has.
_PER_UNIT, _PER_UNIT_WIDE, _GPU_SPEED = 1e12, 2e11, 5e12
_CPU = torch.device("cpu")
_PROBE_SECONDS = 0.12
_PROBE, _PROBE_TILE = UNetConfig(widths=(32, 64)), (140, 140)
# Below this, a job is over before anything else would have begun (a few tenths of a second).
_SHORT = 2e10
# Precision is given up only for a gain that is felt.
_WORTH = 1.25
# Seconds until OpenVINO computes: its import, and compiling a network, by its parameters.
_IMPORT, _COMPILE, _COMPILE_EACH = 0.3, 0.06, 8e-9


@dataclass(frozen=True)
class Way:
    """How to compute.

    Parameters
    ----------
    engine : {"torch", "openvino"}
        Who does it.
    dtype : torch.dtype
        In which precision.
    speed : float
        Operations per second; a guess where nothing was measured.
    """

    engine: str
    dtype: torch.dtype
    speed: float = 1e11


def choose_engine(
    config: UNetConfig, flops: float, device: torch.device, engine: str, precision: str
) -> Way:
    """Choose who computes, and in which precision, for the shortest time with preparations.

    Parameters
    ----------
    config : UNetConfig
        Of the network.
    flops : float
        Operations of the whole job.
    device : torch.device
        Where it runs.
    engine : {"auto", "torch", "openvino"}
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
    dtype = resolve_precision(precision, device)
    if engine == "openvino" and device.type != "cpu":
        raise OptionError("OpenVINO runs on the processor; choose the device 'cpu', or 'torch'.")
    if engine == "openvino" and not have_openvino():
        raise OptionError(
            "OpenVINO is not installed; run `pip install openvino`, or choose the engine 'torch'."
        )
    if device.type != "cpu":
        return Way("torch", dtype, _gpu_speed(device, dtype))
    engines = [engine] if engine != "auto" else ["torch", "openvino"][: 1 + have_openvino()]
    halves = [False, True] if precision == "auto" else [dtype != torch.float32]
    ways = [(one, half) for one in engines for half in halves]
    short = flops < _SHORT
    if len(ways) > 1 and not (short and "openvino" not in sys.modules):
        ways.sort(key=lambda way: _seconds(config, flops, *way))
    name, half = ways[0]
    found = Way(name, torch.bfloat16 if half else torch.float32)
    return found if short else replace(found, speed=operations_per_second(name, half=half) or 1e9)


def _gpu_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Guess operations per second: only how they compare with the time of a call matters."""
    if device.type != "cuda":
        return _GPU_SPEED
    units = torch.cuda.get_device_properties(device).multi_processor_count
    return float(units) * (_PER_UNIT_WIDE if dtype == torch.float32 else _PER_UNIT)


def _seconds(config: UNetConfig, flops: float, engine: str, half: bool) -> float:
    """Time of a job; infinite for what cannot run here."""
    rate = operations_per_second(engine, half=half)
    if half:
        rate = rate / _WORTH if rate > _WORTH * operations_per_second(engine) else 0.0
    start = 0.0
    if engine == "openvino":
        start = _COMPILE + _COMPILE_EACH * config.n_parameters
        start += 0.0 if "openvino" in sys.modules else _IMPORT
    return start + flops / rate if rate else float("inf")


@lru_cache(maxsize=16)
def operations_per_second(engine: str, *, half: bool = False) -> float:
    """Speed of the processor on a small U-Net, measured or from the cache; 0 if it cannot."""
    key, way = _machine(), f"{engine}, {'bfloat16' if half else 'float32'}"
    known = _cached()
    if way in known.get(key, {}):
        return known[key][way]
    found, steady = _measured(engine, half)
    if steady:
        known.setdefault(key, {})[way] = found
        with suppress(OSError, OutputError):
            path = _cache_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing_file(path) as file:
                file.write(json.dumps(known, indent=1).encode())
    return found


def _measured(engine: str, half: bool) -> tuple[float, bool]:
    """Time the probe: the best of some runs, since other programs only ever make it slower.

    Returns
    -------
    speed : float
    steady : bool
        Whether two runs agree on it; on a busy machine they do not.
    """
    dtype = torch.bfloat16 if half else torch.float32
    pixels = np.ones((1, 1, *_PROBE_TILE), np.float32)
    seconds: list[float] = []
    try:
        lean = LeanUNet(UNet(_PROBE).eval())
        predictor: Predictor
        if engine == "openvino":
            predictor = OpenVinoPredictor(lean, half=half)
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
    flops = footprint(_PROBE, _PROBE_TILE, predictor=engine, half=half).flops
    return flops / best, second < 1.25 * best


def _machine() -> str:
    """What a measurement holds for."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        processor = next(line for line in lines if line.startswith("model name")).split(":")[1]
    try:
        openvino = importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        openvino = "none"
    threads = torch.get_num_threads()
    return f"{processor.strip()}, {threads} threads, torch {torch.__version__}, openvino {openvino}"


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
