"""What is installed is what the project says: names, versions, requirements, files."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import npe2
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import napari_unet

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "napari_unet"
NAME = "napari-valid-unet"
DISTRIBUTION_OF = {"skimage": "scikit-image", "PIL": "pillow", "yaml": "pyyaml"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def imported() -> set[str]:
    """Distributions that the package imports at run time, anywhere in a module."""
    modules: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            waiting += ast.iter_child_nodes(node)
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    modules -= sys.stdlib_module_names | {"napari_unet"}
    return {canonicalize_name(DISTRIBUTION_OF.get(name, name)) for name in modules}


def test_version_has_one_source() -> None:
    assert importlib.metadata.version(NAME) == napari_unet.__version__
    assert f"## {napari_unet.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("name", napari_unet.__all__)
def test_lazy_name(name: str) -> None:
    assert name in dir(napari_unet)
    assert not isinstance(getattr(napari_unet, name), ModuleType)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        napari_unet.nonsense  # noqa: B018


def test_everything_imported_is_required_and_nothing_else(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    required = names(project["dependencies"])
    optional = names(
        [text for extra in project["optional-dependencies"].values() for text in extra]
    )
    assert imported() - required - optional == set()
    assert required - imported() == set()


def test_the_plugin_brings_no_qt(pyproject: dict[str, Any]) -> None:
    qt = {"napari", "pyqt5", "pyqt6", "pyside2", "pyside6"}
    assert not names(pyproject["project"]["dependencies"]) & qt


def test_the_hub_can_list_it(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    assert "Framework :: napari" in project["classifiers"]
    assert project["requires-python"] == ">=3.11"
    readme = (ROOT / "README.md").read_text("utf-8")
    images = re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]+src=\"([^\"]+)", readme)
    assert all("".join(image).startswith("https://") for image in images)


def test_constraints_pin_everything(pyproject: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert "torch==2.13.0" in pins
    extras = pyproject["project"]["optional-dependencies"]
    groups = pyproject["dependency-groups"]
    wanted = names(
        [
            *pyproject["project"]["dependencies"],
            *(text for extra in extras.values() for text in extra),
            *groups["test"],
            *groups["lint"],
        ]
    )
    assert wanted - {NAME} <= names(pins)


def test_command_is_installed() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="valid-unet")
    assert callable(script.load())


def test_manifest() -> None:
    manifest = npe2.PluginManifest.from_distribution(NAME)
    assert manifest.name == NAME
    manifest.validate_imports()


def test_manifest_at_the_top_is_the_packages() -> None:
    top, real = ROOT / "napari.yaml", PACKAGE / "napari.yaml"
    # Checkouts without symbolic links have the target's path as text.
    assert top.samefile(real) or top.read_text("utf-8").strip() == "src/napari_unet/napari.yaml"


def test_files_in_the_package() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert 0 < (PACKAGE / "models" / "nuclei.safetensors").stat().st_size <= 8e6
    assert (PACKAGE / "models" / "nuclei.md").exists()


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import dev.py as a module, on a Linux machine where nothing is installed."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(module, "PYTHON", Path("nowhere"))
    monkeypatch.setattr(module, "loads", lambda library: False)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return module


def test_dev_names_the_missing_packages(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dev.missing_packages("check") == ["python3-venv"]
    assert dev.missing_packages("demo") == ["python3-venv"]
    assert "libegl1" in dev.missing_packages("test")
    assert "libxcb-cursor0" not in dev.missing_packages("test")
    monkeypatch.setenv("DISPLAY", ":0")
    assert "libxcb-cursor0" in dev.missing_packages("demo")
    monkeypatch.setattr(dev.shutil, "which", lambda name: "apt-get")
    with pytest.raises(SystemExit, match=r"sudo apt-get install -y python3-venv libegl1 .*cursor0"):
        dev.check_system("demo")


def test_dev_without_a_command_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "dev.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python3 dev.py")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no execute permission")
def test_ci_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
