"""The script that damages checkpoints of every format: a short run, and that it notices harm."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_model

from napari_unet.errors import CheckpointError, OptionError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="memory is limited and measured elsewhere")
def test_damaged_checkpoints_open_right_or_are_refused() -> None:
    script = str(SCRIPTS / "fuzz_checkpoints.py")
    done = subprocess.run(
        [sys.executable, script, "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert " 0 violations" in done.stdout


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("fuzz_worker")


def test_harm_is_noticed(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    right = {key: value.clone() for key, value in model.network.state_dict().items()}
    first = next(iter(right))

    def outcome(result: Any, *, strict: bool) -> str:
        def load(path: Path) -> Any:
            if isinstance(result, Exception):
                raise result
            model.network.load_state_dict({**right, first: result})
            return model

        monkeypatch.setattr(worker, "load_model", load)
        return str(worker._opened(Path("x"), right, strict=strict)[0])

    assert outcome(right[first], strict=True) == "same"
    assert outcome(right[first] + 1, strict=False) == "other"
    assert outcome(CheckpointError("It is damaged."), strict=True) == "refused"
    assert outcome(right[first] + 1, strict=True) == "violation"
    assert outcome(right[first] * torch.nan, strict=False) == "violation"
    for error in (CheckpointError(""), OptionError("x"), KeyError("x"), MemoryError()):
        assert outcome(error, strict=False) == "violation"


def test_a_process_that_ends_or_hangs_is_noticed(worker: Any, tmp_path: Path) -> None:
    fuzz = importlib.import_module("fuzz_checkpoints")
    case = (0, 0, "0:0")
    for code, seconds, words in (
        ("raise SystemExit(7)", 30.0, "ended with 7"),
        ("import time; time.sleep(100)", 0.2, "no answer"),
    ):
        (tmp_path / "script.py").write_text(f"input()\nprint('{{}}', flush=True)\ninput()\n{code}")
        one = fuzz.Worker(tmp_path / "seeds.json", tmp_path / words)
        one.command = [sys.executable, str(tmp_path / "script.py")]
        assert one.ask(case, seconds) == {}
        answer = one.ask(case, seconds)
        assert answer["result"] == "violation"
        assert words in answer["why"]
        assert one.process is None


def test_the_same_number_gives_the_same_damage(worker: Any, tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    seeds = [
        {"kind": name, "path": str(tmp_path / name), "files": [str(tmp_path / name)]}
        for name in ("a.bin", "b.bin")
    ]
    (tmp_path / "seeds.json").write_text(json.dumps(seeds))
    cases = worker.Cases(tmp_path / "seeds.json", tmp_path / "work")
    made = []
    for number in (*range(40), *range(40)):
        path, what = cases.damaged(number, seeds[0], f"0:{number}")
        made.append((what, path.read_bytes()))
    assert made[:40] == made[40:]
    assert len(set(made)) > 35
