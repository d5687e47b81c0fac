"""Opens damaged checkpoints one after the other, and tells what became of each.

One line of JSON in for each case, one out. Run by `fuzz_checkpoints`, which ends this process when
a file takes too long.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import fuzz_mutations
import torch

from napari_unet.checkpoint import load_model
from napari_unet.errors import CheckpointError, OptionError

_MIB = 1 << 20
_MOST = 1 << 30  # bytes beyond the file
# Whatever happens in Python is told here first. Reading HDF5 starts a process, and only that.
_GUARDED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "socket.bind")
_broken: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    started = event == "subprocess.Popen" and "hdf5_child.py" not in repr(arguments)
    if started or event in _GUARDED:
        _broken.append(f"{event} {arguments!r:.80}")
    elif event == "compile" and arguments[1] and "unet.py" in str(arguments[1]):
        _broken.append("code of the package was compiled")


def _status(field: str) -> int:
    """Bytes that the system says of this process; 0 where it says nothing."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _limited(length: int) -> int:
    """Forbid more memory than now, the file and one GiB; return what is in use."""
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if size := _status("VmSize"):
            resource.setrlimit(resource.RLIMIT_AS, (size + length + _MOST, hard))
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except (ImportError, OSError):
        pass
    return _status("VmRSS")


def _of_children() -> int:
    """Most bytes that a process which reads HDF5 had at a time."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


class Cases:
    """The seeds, what they load as, and a folder to damage copies of them in."""

    def __init__(self, manifest: Path, work: Path) -> None:
        self.work = work
        self.seeds = json.loads(manifest.read_text())
        self.sound: dict[str, Any] = {}

    def state(self, seed: dict[str, Any]) -> Any:
        """Return the weights of the sound file; an error's text where it does not open."""
        if seed["kind"] not in self.sound:
            try:
                self.sound[seed["kind"]] = load_model(Path(seed["path"])).network.state_dict()
            except (CheckpointError, ImportError) as error:
                self.sound[seed["kind"]] = str(error)
        return self.sound[seed["kind"]]

    def damaged(self, number: int, seed: dict[str, Any], key: str) -> tuple[Path, str]:
        """Write a damaged copy; the same key always gives the same."""
        chance = random.Random(key)
        target = Path(chance.choice(seed["files"]))
        source = Path(seed["path"])
        other = Path(self.seeds[chance.randrange(len(self.seeds))]["files"][0]).read_bytes()
        content, what = fuzz_mutations.mutated(target.read_bytes(), other, chance)
        here = self.work / "case"
        if here.exists():
            shutil.rmtree(here)
        if source.is_dir():
            shutil.copytree(source, here / source.name)
            (here / source.name / target.name).write_bytes(content)
        else:
            here.mkdir(parents=True)
            for name in seed["files"]:
                shutil.copy(name, here)
            (here / target.name).write_bytes(content)
        return here / source.name, f"{target.name}: {what}"

    def run(self, number: int, seed: dict[str, Any], key: str) -> dict[str, Any]:
        """Open one damaged file."""
        right = self.state(seed)
        if isinstance(right, str):
            return {"result": "not read", "why": right, "what": "", "seconds": 0.0, "mib": 0}
        path, what = self.damaged(number, seed, key)
        length = sum(part.stat().st_size for part in path.parent.rglob("*") if part.is_file())
        before = _limited(length)
        _broken.clear()
        start = time.perf_counter()
        result, why = _opened(path, right, strict=seed["summed"] and "repaired" not in what)
        seconds = time.perf_counter() - start
        # A process begins as a copy of this one, so that what is in use counts there, too.
        more = max(_status("VmHWM"), _of_children()) - before - length
        if _broken:
            result, why = "violation", f"ran code: {_broken[0]}"
        elif more > _MOST:
            result, why = "violation", f"took {more // _MIB} MiB beyond the file"
        mib = max(0, more) // _MIB
        return {
            "result": result, "why": why, "what": what, "seconds": seconds, "mib": mib,
        }  # fmt: skip


def _opened(path: Path, right: Any, *, strict: bool) -> tuple[str, str]:
    try:
        state = load_model(path).network.state_dict()
    except CheckpointError as error:
        text = str(error)
        return ("refused", "") if text else ("violation", "an error without a word")
    except OptionError as error:
        return "violation", f"OptionError: {error}"
    except Exception as error:  # noqa: BLE001 (anything else is what this script looks for)
        return "violation", f"{type(error).__name__}: {error}"[:300]
    same = state.keys() == right.keys() and all(
        torch.equal(state[name], right[name]) for name in right
    )
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        return "violation", "loaded values that are no numbers"
    if not same and strict:
        return "violation", "loaded other weights although the format has sums"
    return ("same" if same else "other"), ""


def main(manifest: str, work: str) -> None:
    """Answer cases until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    warnings.simplefilter("ignore")
    cases = Cases(Path(manifest), Path(work))
    sys.addaudithook(_watch)
    for line in sys.stdin:
        number, place, key = json.loads(line)
        answer = cases.run(number, cases.seeds[place], key)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
