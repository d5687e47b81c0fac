"""Every test runs away from the person's settings, on a fixed number of threads, with any display.

What is set here must be set before numpy, torch, Qt or napari are imported, so it happens while
this file is imported, not in fixtures.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Two threads on every machine: the suite is timed, and small CI machines have two cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, str(min(2, os.cpu_count() or 1)))

# The same examples every time; `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("steady")


def _isolate() -> None:
    """Point every place where napari, Qt or this package keep settings into a temporary folder."""
    home = Path(tempfile.mkdtemp(prefix="napari-valid-unet-tests-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        os.environ[name] = str(home / name)
    if sys.platform == "win32":
        for name in ("APPDATA", "LOCALAPPDATA"):
            os.environ[name] = str(home / name)
    os.environ["NAPARI_CONFIG"] = str(home / "napari" / "settings.yaml")


def has_display() -> bool:
    """Whether Qt can open a real window here."""
    if sys.platform != "linux":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class _Surfaceless:
    """An OpenGL context without a window, made current so that napari's canvas finds one.

    Qt's offscreen platform has no OpenGL of its own; adding a layer then raises. The context stays
    current on the main thread for the life of the process. Mesa's surfaceless platform
    (EGL_MESA_platform_surfaceless) needs no X server, no GPU and no special rights.
    """

    PLATFORM_SURFACELESS = 0x31DD
    OPENGL_API = 0x30A2
    # EGL_SURFACE_TYPE = any, EGL_RENDERABLE_TYPE = EGL_OPENGL_BIT, EGL_NONE
    ATTRIBUTES = (ctypes.c_int32 * 5)(0x3033, 0, 0x3040, 0x0008, 0x3038)

    def __init__(self) -> None:
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetPlatformDisplay.restype = ctypes.c_void_p
        egl.eglCreateContext.restype = ctypes.c_void_p
        display = ctypes.c_void_p(egl.eglGetPlatformDisplay(self.PLATFORM_SURFACELESS, None, None))
        config, count = ctypes.c_void_p(), ctypes.c_int32()
        if not (
            display
            and egl.eglInitialize(display, None, None)
            and egl.eglBindAPI(self.OPENGL_API)
            and egl.eglChooseConfig(
                display, self.ATTRIBUTES, ctypes.byref(config), 1, ctypes.byref(count)
            )
            and count.value
        ):
            raise OSError("no surfaceless EGL display")
        context = ctypes.c_void_p(egl.eglCreateContext(display, config, None, None))
        if not (context and egl.eglMakeCurrent(display, None, None, context)):
            raise OSError("no surfaceless OpenGL context")


_isolate()
if not has_display():
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    # Where it fails, the tests of the core still run, and those of the dock say what is missing.
    with contextlib.suppress(OSError):
        _Surfaceless()


def pytest_configure(config: pytest.Config) -> None:
    """Ask for an X display before anything runs, where a real window is what is tested."""
    wanted = "window" in config.option.markexpr.replace("not window", "")
    if wanted and not os.environ.get("DISPLAY"):
        raise pytest.UsageError(
            "The window tests need an X display; run them as: "
            "xvfb-run -a -s '-screen 0 1600x1000x24' python3 dev.py test -m window"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that take over mouse and keyboard, unless ``-m window`` asks for them."""
    if "window" in config.option.markexpr:
        return
    windows = [item for item in items if item.get_closest_marker("window")]
    if windows:
        config.hook.pytest_deselected(items=windows)
        items[:] = [item for item in items if item not in windows]
