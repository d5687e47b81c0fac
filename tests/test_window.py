"""The main job with mouse and keyboard, in a real window on an X display.

Run it on a display of its own: ``xvfb-run -a -s "-screen 0 1600x1000x24" python3 dev.py test -m
window``. xdotool moves the mouse; the window says where things are (see window_app.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

pytestmark = [
    pytest.mark.window,
    pytest.mark.skipif(
        not (os.environ.get("DISPLAY") and shutil.which("xdotool")),
        reason="needs an X display and xdotool",
    ),
]

State = dict[str, Any]


class Window:
    """A napari of its own process, seen and moved from outside."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.json"
        app = Path(__file__).with_name("window_app.py")
        self.log = (folder / "log.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, app, self.path],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Neither the models that are trained here nor what the dock remembers reach another
            # window: the tiny tiles of the first test cost the second one 65 s a run, or 120.
            env={
                **os.environ,
                "XDG_DATA_HOME": str(folder / "data"),
                "NAPARI_CONFIG": str(folder / "settings.yaml"),
            },
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def state(self) -> State:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        return dict(json.loads(self.path.read_text())) if self.path.exists() else {}

    def wait(self, what: str, good: Callable[[State], Any], seconds: float = 60) -> State:
        """Look until something is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            state = self.state()
            if state and good(state):
                return state
            time.sleep(0.05)
        state = self.state()
        pytest.fail(f"after {seconds} s not {what}: {state}\n{self.stacks()}")

    def stacks(self) -> str:
        """How old the state is, all that the window has said, and what each of its threads does."""
        age = time.time() - self.path.stat().st_mtime if self.path.exists() else float("inf")
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(1)
        return f"told {age:.1f} s ago\n{Path(self.log.name).read_text()}"

    def click(self, place: list[int]) -> None:
        xdotool("mousemove", *place, "sleep", "0.2", "click", 1)

    def press(self, name: str, what: str, good: Callable[[State], Any], seconds: float) -> State:
        """Click a button of the dock where it has stopped moving; look until that has worked."""
        last: Any = None
        state = self.wait(f"a button {name}", lambda s: name in s.get("places", ()))
        while last != (last := state["places"][name]):
            time.sleep(0.5)
            state = self.wait(f"a button {name}", lambda s: name in s["places"])
        self.click(last)
        return self.wait(what, good, seconds)

    def menu(self, *texts: str) -> None:
        """Click through a menu; each text is the beginning of an entry."""
        first, *rest = texts
        self.click(self.wait(f"a menu {first}", lambda s: s["bar"].get(first))["bar"][first])
        for text in rest:
            state = self.wait(f"an entry {text}", lambda s, text=text: entry(s, text))
            self.click(entry(state, text))


def entry(state: State, text: str) -> Any:
    """Place of the menu entry that begins with a text, where it has stopped moving."""
    return next((place for name, place in state["menus"].items() if name.startswith(text)), None)


def xdotool(*words: object) -> None:
    subprocess.run(["xdotool", *map(str, words)], check=True, timeout=20)


def labels_of(state: State) -> list[dict[str, Any]]:
    return [layer for layer in state["layers"] if layer["type"] == "Labels"]


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    window = Window(tmp_path)
    try:
        window.wait("open", lambda s: "File" in s["bar"], 120)
        time.sleep(1)
        yield window
    finally:
        window.close()


@pytest.mark.timeout(400)
def test_from_the_sample_to_a_corrected_and_saved_mask(window: Window, tmp_path: Path) -> None:
    # Open the sample.
    window.menu("File", "Open Sample", "Nuclei (fluorescence)")
    window.wait("an image", lambda s: s["layers"])

    # Open the dock from Layers > Segment, close it by opening it from Plugins.
    window.menu("Layers", "Segment", "U-Net (Valid U-Net)")
    window.wait("a dock", lambda s: s["docks"] == 1)
    window.menu("Plugins", "U-Net (Valid U-Net)")
    time.sleep(1)
    if not window.state()["docks"]:  # the menu entry shows and hides one and the same dock
        window.menu("Plugins", "U-Net (Valid U-Net)")
    state = window.wait("a button", lambda s: s.get("button_text") == "Segment")

    # Segment.
    window.click(state["button"])
    state = window.wait("objects", lambda s: "objects in" in s.get("answer", ""), 120)
    (result,) = labels_of(state)
    assert state["active"] == result["name"]
    assert "nuclei" in result["name"].lower()

    # Paint a stroke, undo it, paint it again.
    stroke(window, state["canvas"])
    state = window.wait("painted", lambda s: labels_of(s)[0]["content"] != result["content"])
    painted = labels_of(state)[0]
    xdotool("key", "ctrl+z")
    window.wait("undone", lambda s: labels_of(s)[0]["content"] == result["content"])
    stroke(window, state["canvas"])
    window.wait("painted again", lambda s: labels_of(s)[0]["content"] != result["content"])
    assert painted["mode"] == "paint"

    # Save the layer.
    window.menu("File", "Save Selected Layers")
    state = window.wait("a dialog", lambda s: s["dialog"])
    target = tmp_path / "corrected.tif"
    window.click(state["dialog"][0])
    xdotool("key", "ctrl+a", "type", "--delay", "20", str(target))
    xdotool("key", "Return")
    window.wait("saved", lambda s: target.exists() and not s["dialog"])
    time.sleep(1)
    saved = tifffile.imread(target)
    assert saved.shape == (600, 800)
    assert len(np.unique(saved)) > 50

    # Segment again and cancel: the first layer stays, with what was painted.
    before = labels_of(window.state())[0]
    tmp_path.joinpath("slow").touch()
    window.wait("slow", lambda _: not tmp_path.joinpath("slow").exists())
    window.click(window.state()["button"])
    state = window.wait("running", lambda s: s["button_text"] == "Cancel" and s["running"])
    asked = time.monotonic()
    window.click(state["button"])
    state = window.wait("cancelled", lambda s: not s["running"])
    # 0.2 s of it go by before the click.
    assert time.monotonic() - asked < 5
    assert state["button_text"] == "Segment"
    assert "ancel" in state["answer"] or "topped" in state["answer"]
    assert labels_of(state)[0] | {"mode": ""} == before | {"mode": ""}


@pytest.mark.timeout(600)
def test_from_labels_to_a_model_that_is_used(window: Window, tmp_path: Path) -> None:
    window.menu("File", "Open Sample", "Nuclei (fluorescence)")
    window.wait("an image", lambda s: s["layers"])
    window.menu("Layers", "Segment", "U-Net (Valid U-Net)")
    state = window.press("segment", "objects", lambda s: "objects in" in s["answer"], 120)

    # The image and its labels are chosen already.
    window.click(state["tabs"]["Train"])
    window.press("train", "steps", lambda s: s["training"] and s["step"] >= 1, 240)
    state = window.press(
        "stop", "an end", lambda s: not s["training"] and "use" in s["places"], 120
    )
    assert "(new)" in " ".join(layer["name"] for layer in labels_of(state))

    state = window.press(
        "use", "the model", lambda s: s["page"] == "Segment" and s["model"] != "nuclei", 60
    )
    (written,) = (tmp_path / "data").rglob("*.safetensors")
    assert state["model"] == written.stem
    before = len(labels_of(state))
    window.press(
        "segment", "its objects", lambda s: len(labels_of(s)) > before and not s["running"], 120
    )


def stroke(window: Window, canvas: list[int]) -> None:
    """Take the brush and draw a line over the middle of the canvas."""
    x, y = canvas
    window.click([x - 150, y - 150])
    xdotool("key", "2", "sleep", "0.5")
    xdotool("mousemove", x - 60, y, "sleep", "0.2", "mousedown", 1)
    for step in range(0, 121, 20):
        xdotool("mousemove", x - 60 + step, y, "sleep", "0.05")
    xdotool("mouseup", 1)
