"""``valid-unet doctor``: what is installed, what the network can run on, and what to install.

Nothing here may fail: each question is asked by itself, PyTorch in a process of its own, since a
broken installation of it can end the one that imports it.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from napari_unet._version import __version__
from napari_unet.cli.common import Commands, Parents, add_json, print_json, table

_NEEDED = ("numpy", "scipy", "scikit-image", "tifffile", "safetensors", "Pillow")
_WINDOW = ("napari", "npe2", "magicgui", "qtpy")
_BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")
_OPTIONAL = {
    "zarr": "reads zarr images, and TIFFs larger than memory",
    "imagecodecs": "reads TIFFs compressed with LZW, JPEG, ...",
    "openvino": "runs models on the processor faster than PyTorch does",
    "ncnn": "runs wide 2-D models in float32 on the processor, faster still",
}
# Libraries that Qt and OpenGL load on Linux, and the Debian or Ubuntu packages that bring them.
_LIBRARIES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libfontconfig.so.1": "libfontconfig1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}
_GET_TORCH = "https://pytorch.org/get-started/locally/"
_ASK_TORCH = """
import json, torch
from napari_unet.devices import has_kernels
cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
gpus, unusable = [], []
for index in range(torch.cuda.device_count() if cuda else 0):
    properties = torch.cuda.get_device_properties(index)
    name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    (gpus if has_kernels(index) else unusable).append(name)
print("\\n" + json.dumps({
    "version": torch.__version__, "threads": torch.get_num_threads(), "mps": mps, "gpus": gpus,
    "unusable": unusable, "built_for": torch.version.cuda and "CUDA " + torch.version.cuda
    or torch.version.hip and "ROCm " + torch.version.hip,
}))
"""


def add_parser(commands: Commands, parents: Parents) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "doctor",
        parents=parents,
        help="versions, GPU, what to install: a report to paste",
        description="Look at the installation: versions, the GPU or why there is none, and what "
        "to install. Paste the report when you ask for help.",
    )
    add_json(parser, "the report as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report."""
    report = examine()
    if arguments.json:
        print_json(report)
    else:
        print(describe(report))
    return 0


def examine() -> dict[str, Any]:
    """Ask everything; a question that fails is answered by its error."""
    report: dict[str, Any] = {
        "napari-valid-unet": __version__,
        "folder": str(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": _asked(platform.platform),
        "machine": _asked(platform.machine),
        "cores": os.cpu_count(),
        "memory_gib": _asked(_memory),
        "packages": {name: _version(name) for name in (*_NEEDED, *_WINDOW, *_OPTIONAL)},
        "qt": {name: _version(name) for name in _BINDINGS if _version(name)},
        "display": _asked(_display),
        "missing_libraries": _asked(_missing_libraries),
        "torch": _torch(),
        "nvidia": _asked(_nvidia),
        "models": _asked(_models),
    }
    report["gpu"] = _asked(lambda: _gpu(report))
    report["advice"] = _asked(lambda: _advice(report))
    return report


def _asked(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - whatever is broken here is what is being looked for
        return f"unknown ({type(error).__name__}: {error})"


def _version(package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - broken metadata raises anything
        return f"unknown ({type(error).__name__})"


def _memory() -> float | None:
    """Physical memory in GiB."""
    if sys.platform == "win32":
        size = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(size))
        return round(size.value / (1 << 20), 1)
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return round(pages * page / (1 << 30), 1)


def _display() -> str | None:
    if sys.platform != "linux":
        return "yes"
    return os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or None


def _missing_libraries() -> list[str]:
    """Debian packages of the libraries that Qt would not find."""
    if sys.platform != "linux":
        return []
    missing = []
    for library, package in _LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    return missing


def _torch() -> dict[str, Any]:
    """Ask PyTorch, in another process: a broken one may crash or hang."""
    version = _version("torch")
    unknown: dict[str, Any] = {
        "version": version,
        "threads": None,
        "mps": False,
        "gpus": [],
        "unusable": [],
        "built_for": None,
    }
    if version is None:
        return {**unknown, "error": "it is not installed"}
    command = [sys.executable, "-c", _ASK_TORCH]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if answer.returncode:
            last = (answer.stderr.strip().splitlines() or [f"it ended with {answer.returncode}"])[
                -1
            ]
            return {**unknown, "error": last[:300]}
        return {**json.loads(answer.stdout.strip().splitlines()[-1]), "error": None}
    except subprocess.TimeoutExpired:
        return {**unknown, "error": "it did not load within two minutes"}
    except (OSError, ValueError, IndexError) as error:
        return {**unknown, "error": f"it cannot be asked: {error}"}


def _nvidia() -> list[str]:
    """GPUs that the driver sees, whatever PyTorch does."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return [] if answer.returncode else [line.replace(", ", ", driver ") for line in lines]


def _models() -> dict[str, str]:
    from napari_unet.checkpoint import bundled_models, read_card

    def describe_model(name: str) -> str:
        return read_card(name).describe()

    return {name: _asked(partial(describe_model, name)) for name in bundled_models()}


def _gpu(report: dict[str, Any]) -> str:
    """Say which GPU is used, or why none is."""
    torch, nvidia = report["torch"], report["nvidia"]
    if torch["error"]:
        return "not known, since PyTorch does not load"
    if torch["gpus"]:
        return "; ".join(torch["gpus"]) + f" ({torch['built_for']})"
    if torch["mps"]:
        return "Apple's, by Metal (mps)"
    if torch["unusable"]:
        return (
            f"not used: {torch['unusable'][0]}: this PyTorch ({torch['built_for']}) cannot use it"
        )
    if nvidia and torch["built_for"] is None:
        return f"not used: {nvidia[0]} is there, but this PyTorch is built for the CPU only"
    if nvidia:
        return f"not used: {nvidia[0]} is there, but PyTorch ({torch['built_for']}) cannot use it"
    if torch["built_for"]:
        return f"none: PyTorch is built for {torch['built_for']}, but nvidia-smi finds no GPU"
    return "none: nvidia-smi finds no GPU, and this PyTorch is built for the CPU only"


def _advice(report: dict[str, Any]) -> list[str]:
    """Say what to install, most needed first."""
    packages, torch, nvidia = report["packages"], report["torch"], report["nvidia"]
    advice = []
    if missing := [name for name in _NEEDED if packages[name] is None]:
        advice.append(f"Install what is missing: pip install {' '.join(missing)}")
    if torch["error"]:
        advice.append(f"Install PyTorch anew ({torch['error']}): {_GET_TORCH}")
        if sys.platform == "win32":
            advice.append(
                "If PyTorch loads here but not in napari: it cannot find its DLLs once Qt is "
                "loaded; install the Microsoft Visual C++ Redistributable, or import torch "
                "before napari."
            )
    elif torch["unusable"] and not torch["gpus"]:
        advice.append(
            f"To use the GPU, install a PyTorch built for it, such as another CUDA's: {_GET_TORCH}"
        )
    elif nvidia and not torch["gpus"]:
        advice.append(
            f"To use the GPU, install a PyTorch built for CUDA: {_GET_TORCH}"
            if torch["built_for"] is None
            else "To use the GPU, update its driver, or install a PyTorch built for an older CUDA: "
            + _GET_TORCH
        )
    if packages["napari"] is None:
        advice.append('For the window: pip install "napari-valid-unet[all]"')
    elif not report["qt"]:
        advice.append("For the window: pip install PyQt6")
    elif set(report["qt"]) == {"PySide6"}:
        advice.append("PyQt6 is what the dock is tested with; PySide6 may swallow its errors.")
    if report["qt"] and report["missing_libraries"]:
        names = " ".join(report["missing_libraries"])
        advice.append(f"For the window, on Debian or Ubuntu: sudo apt-get install -y {names}")
    if missing := [name for name in _OPTIONAL if packages[name] is None]:
        advice.append(
            f"Optional: pip install {' '.join(missing)} ({_OPTIONAL[missing[0]]}"
            + (", and more)" if len(missing) > 1 else ")")
        )
    if not report["models"]:
        advice.append("The bundled models are missing: install napari-valid-unet anew.")
    return advice


def describe(report: dict[str, Any]) -> str:
    """Return the report as plain text."""
    torch, models, advice = report["torch"], report["models"], report["advice"]
    if torch["error"]:
        pytorch = f"{torch['version'] or 'not installed'}: {torch['error']}"
    else:
        built_for = torch["built_for"] or "the CPU only"
        pytorch = f"{torch['version']}, built for {built_for}, {torch['threads']} threads"
    rows = [
        ("napari-valid-unet", f"{report['napari-valid-unet']} in {report['folder']}"),
        ("Python", f"{report['python']} ({report['executable']})"),
        ("system", f"{report['system']}, {report['machine']}"),
        ("processor", f"{report['cores']} cores, {report['memory_gib']} GiB of memory"),
        ("PyTorch", pytorch),
        ("GPU", report["gpu"]),
        *((name, version or "not installed") for name, version in report["packages"].items()),
        ("Qt", ", ".join(f"{k} {v}" for k, v in report["qt"].items()) or "not installed"),
        ("display", report["display"] or "none: napari cannot open a window here"),
    ]
    if isinstance(models, dict):
        rows += [(f"model {name}", text) for name, text in models.items()] or [("models", "none")]
    else:
        rows.append(("models", models))
    lines = advice if isinstance(advice, list) else [advice]
    listed = "\n".join(f"- {line}" for line in lines) or "- nothing: all that is needed is here."
    return f"{table(rows)}\n\nWhat to do:\n{listed}"
