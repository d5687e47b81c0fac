"""Set up and run this project with nothing but Python: ``python3 dev.py demo|test|check``.

Makes ``.venv`` beside this file, installs the tested versions of everything into it, and runs the
command there. A second run installs nothing, unless what it installs from has changed.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN, EXE = (VENV / "Scripts", ".exe") if os.name == "nt" else (VENV / "bin", "")
PYTHON = BIN / f"python{EXE}"

# What Qt and OpenGL load at run time on Linux, and the Debian/Ubuntu package that brings it.
LIBRARIES = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libfontconfig.so.1": "libfontconfig1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libxkbcommon.so.0": "libxkbcommon0",
}
WINDOW_LIBRARIES = {
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}


def loads(library: str) -> bool:
    """Whether the system's linker finds a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def missing_packages(command: str) -> list[str]:
    """Debian/Ubuntu packages that `command` needs and this machine lacks."""
    missing = [] if importlib.util.find_spec("ensurepip") or PYTHON.exists() else ["python3-venv"]
    if sys.platform != "linux" or command == "check":
        return missing
    display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    needed: dict[str, str] = {}
    if display or command == "test":
        needed |= LIBRARIES
    if display:
        needed |= WINDOW_LIBRARIES
    return missing + [package for library, package in needed.items() if not loads(library)]


def check_system(command: str) -> None:
    """Stop with one line where the system lacks what pip cannot install."""
    if sys.version_info < (3, 11):  # noqa: UP036  (it is this script that says so)
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")
    if not (missing := missing_packages(command)):
        return
    if shutil.which("apt-get"):
        sys.exit(f"Run this first: sudo apt-get install -y {' '.join(missing)}")
    # Other distributions have other names, and other places for libraries: say it and try.
    print(f"May be missing (Debian's names): {' '.join(missing)}", file=sys.stderr)


def fingerprint() -> str:
    """Digest of everything that an installation follows from."""
    sources = ["pyproject.toml", "constraints.txt", "src/napari_unet/_version.py"]
    content = b"\0".join((ROOT / name).read_bytes() for name in sources)
    return hashlib.sha256(content + f"\0{ROOT}\0{sys.version_info[:2]}".encode()).hexdigest()


def install(command: str) -> None:
    """Bring ``.venv`` up to date, with the developers' groups for all but the demo."""
    stamp = VENV / "installed.txt"
    developer = command != "demo"
    now = fingerprint()
    have = stamp.read_text().split() if stamp.exists() else []
    if PYTHON.exists() and have[:1] == [now] and (not developer or "developer" in have):
        return
    stamp.unlink(missing_ok=True)
    pip = [str(PYTHON), "-m", "pip"]
    if not PYTHON.exists() or subprocess.run([*pip, "--version"], capture_output=True).returncode:
        print(f"Creating {VENV}", flush=True)
        venv.create(VENV, clear=True, with_pip=True)
    print("Installing: up to 2 GB to fetch (more with CUDA), minutes the first time", flush=True)
    requirements = ["-e", f"{ROOT}[all]"]
    if developer:
        import tomllib

        groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
        requirements += [*groups["test"], *groups["lint"]]
    run([*pip, "install", "-c", str(ROOT / "constraints.txt"), *requirements])
    stamp.write_text(f"{now} developer\n" if developer else f"{now}\n")


def run(command: list[str]) -> None:
    """Run a program in the project's folder; where it fails, end with its exit status."""
    if status := subprocess.run(command, cwd=ROOT).returncode:
        # A negative status is the signal that ended it, which a shell reports as 128 + signal.
        sys.exit(status if status > 0 else 128 - status)


def workers(arguments: list[str]) -> list[str]:
    """Share the whole suite among processors; what a person picks out runs in one process."""
    if arguments:
        return arguments
    # Each worker has a thread of its own; four of them take 4 GB.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ["-n", str(min(os.cpu_count() or 1, 4))]


def main() -> None:
    """Dispatch to one of the three commands."""
    command, *arguments = sys.argv[1:] or [""]
    if command not in {"demo", "test", "check"}:
        sys.exit(
            "usage: python3 dev.py demo [--screenshot PNG] | test [pytest arguments] | check\n"
            "  demo   set up, then open napari with a sample and the dock\n"
            "  test   set up, then run the tests\n"
            "  check  set up, then run the linters and the type checker"
        )
    check_system(command)
    install(command)
    if command == "demo":
        run([str(BIN / f"valid-unet{EXE}"), "demo", *arguments])
    elif command == "test":
        run([str(PYTHON), "-m", "pytest", *workers(arguments)])
    else:
        run([str(PYTHON), "-m", "ruff", "check"])
        run([str(PYTHON), "-m", "ruff", "format", "--check"])
        run([str(PYTHON), "-m", "mypy"])
        run([str(BIN / f"lint-imports{EXE}")])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
