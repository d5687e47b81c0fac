"""Environment, peak memory, and images of any size from the sample."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Peak", "environment", "image_file", "in_subprocess", "peak_in_subprocess"]

_PACKAGES = (
    "napari-valid-unet", "torch", "openvino", "ncnn", "monai", "numpy", "scipy", "scikit-image"
)  # fmt: skip
_KINDS = {"VmRSS": "resident", "RssAnon": "own"}


def environment(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    found: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {"name": properties.name, "memory_bytes": properties.total_memory}
        found["cuda"] = torch.version.cuda
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def image_file(side: int, folder: Path) -> Path:
    """An uncompressed TIFF of `side` x `side` pixels: the sample, side by side; made once."""
    import tifffile

    from napari_unet.sample import sample_nuclei

    path = folder / f"nuclei_{side}.tif"
    if path.exists():
        return path
    sample, _ = sample_nuclei()
    row = np.tile(sample, (1, -(-side // sample.shape[1])))[:, :side]
    partial = folder / f"nuclei_{side}.partial.tif"
    pixels = tifffile.memmap(partial, shape=(side, side), dtype=sample.dtype)
    for start in range(0, side, len(row)):
        pixels[start : start + len(row)] = row[: side - start]
    pixels.flush()
    del pixels
    partial.rename(path)
    return path


class Peak:
    """Most memory of this process above what it had at the start, looked at every 5 ms.

    `resident` counts everything the system keeps in memory for the process, pages of mapped files
    included; `own` leaves those out, which the system may drop at any moment. Linux only.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._base = _status()
        self.most = dict.fromkeys(self._base, 0)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            for kind, size in _status().items():
                self.most[kind] = max(self.most[kind], size - self._base[kind])

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _status() -> dict[str, int]:
    path = Path("/proc/self/status")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().splitlines())
    return {_KINDS[k]: int(v.split()[0]) << 10 for k, v in pairs if k in _KINDS}


def peak_in_subprocess(
    way: str,
    network: str,
    path: Path,
    device: str,
    memory: int | None,
    threads: int,
    *,
    runs: int = 1,
) -> dict[str, Any]:
    """Run one way in a process of its own, and return its peaks, time and details."""
    arguments = {
        "runs": runs,
        "way": way,
        "network": network,
        "path": str(path),
        "device": device,
        "memory": memory,
        "threads": threads,
    }
    return in_subprocess(__file__, json.dumps(arguments))


def in_subprocess(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script in a process of its own; return the JSON of its last line, or an `error`."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        return {"error": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _main() -> None:
    """Be the subprocess."""
    import time

    import torch
    from ways import is_own, network_of, run_way

    from napari_unet.files import read_image
    from napari_unet.predictors import kept

    given = json.loads(sys.argv[1])
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    model = network_of(given["network"])
    # What every run needs once, whatever the image: libraries, threads. PyTorch, too, which takes
    # over where memory is scarce.
    for way in ("product torch", given["way"]) if is_own(given["way"]) else (given["way"],):
        run_way(way, np.zeros((64, 64), np.uint16), model, given["device"], given["memory"])
    kept.clear()
    image = read_image(given["path"], lazy_above=0).data
    on_gpu = given["device"].startswith("cuda")
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_reserved()
    times, outcome = [], None
    with Peak() as peak:
        for _ in range(given["runs"]):  # what one leaves ready takes memory in the next
            del outcome  # whose labels are not part of that
            start = time.perf_counter()
            outcome = run_way(given["way"], image, model, given["device"], given["memory"])
            times.append(time.perf_counter() - start)
    assert outcome is not None
    if on_gpu:
        peak.most["gpu"] = torch.cuda.max_memory_reserved() - base
    found = {"seconds": times[-1], "first_median": times[0], "peak_bytes": peak.most}
    print(json.dumps(found | outcome.details))


if __name__ == "__main__":
    _main()
