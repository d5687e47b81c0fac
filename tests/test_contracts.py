"""The shape of the code: layers, what is imported when, and how long a piece may be."""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "napari_unet").rglob("*.py"))
QT = {"PyQt5", "PyQt6", "PySide2", "PySide6", "magicgui", "qtpy", "superqt"}


def python(code: str) -> str:
    """Run code in a new interpreter; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def imported_by(module: str) -> set[str]:
    """Top-level names in ``sys.modules`` after importing one module in a new interpreter."""
    code = f"import json, sys, {module}; print(json.dumps([*sys.modules]))"
    return {name.partition(".")[0] for name in json.loads(python(code))}


def test_layers() -> None:
    # In an interpreter of its own: late in a long run it would close what pytest writes to.
    config = str(ROOT / "pyproject.toml")
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        f"sys.exit(lint_imports(config_filename={config!r}, no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


def test_import_of_the_package_is_fast() -> None:
    # Timed inside the new interpreter, so that its own start does not count, and in processor
    # time, so that other programs on the machine do not count either.
    code = (
        "from time import process_time as now; start = now(); import napari_unet; "
        "print(1000 * (now() - start))"
    )
    python(code)  # the first run compiles
    assert statistics.median(float(python(code)) for _ in range(5)) < 60  # ms


def test_package_imports_nothing_large() -> None:
    assert not imported_by("napari_unet") & (QT | {"napari", "numpy", "scipy", "skimage", "torch"})


def test_command_line_imports_neither_torch_nor_napari() -> None:
    assert not imported_by("napari_unet.cli") & (QT | {"napari", "torch"})


@pytest.mark.parametrize(
    "module", ["axes", "checkpoint", "config", "evaluate", "geometry", "instances", "tiling"]
)
def test_module_imports_no_torch(module: str) -> None:
    assert "torch" not in imported_by(f"napari_unet.{module}")


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda path: path.relative_to(ROOT / "src").as_posix()
)
def test_pieces_are_small(path: Path) -> None:
    text = path.read_text("utf-8")
    lines = text.count("\n")
    assert lines < 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A docstring may be as long as it has to be.
            start = node.body[ast.get_docstring(node) is not None :] or node.body
            assert (node.end_lineno or 0) - start[0].lineno < 60, node.name
