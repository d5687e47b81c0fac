"""Damage checkpoints of every format, and see that each opens right or ends in one error.

::

    python scripts/fuzz_checkpoints.py                    # 10,000 files, about half an hour
    python scripts/fuzz_checkpoints.py --quick            # a few hundred, under a minute
    python scripts/fuzz_checkpoints.py --only 1234        # one of them again

A file may load as it was, load as a network of its own finite values where the format has no sums,
or be refused with `CheckpointError`. Anything else is a violation: another exception, a crash, more
than 5 seconds, more than 1 GiB beyond the file, code that runs. Ends with 1 if there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz_seeds import Seed, seeds

_SECONDS = 5.0
_START = 120.0  # of a worker, which imports torch and reads the sound files
_QUICK = 300
_MOST_SHOWN = 50
_EVERY = 500  # cases after which a worker starts anew


@dataclass
class Tally:
    """What became of the files of one format."""

    results: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    mib: int = 0


class Worker:
    """A process that opens files, replaced whenever one of them is too much for it."""

    def __init__(self, manifest: Path, work: Path) -> None:
        work.mkdir()
        script = Path(__file__).with_name("fuzz_worker.py")
        self.command = [sys.executable, str(script), str(manifest), str(work)]
        self.process: subprocess.Popen[str] | None = None
        self.listener: threading.Thread | None = None
        self.answers: queue.Queue[str] = queue.Queue()
        self.cases = 0

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None:
            self.answers = queue.Queue()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.listener = threading.Thread(
                target=_listen, args=(self.process, self.answers), daemon=True
            )
            self.listener.start()
            self.cases = 0
        return self.process

    def ask(self, case: tuple[int, int, str], seconds: float) -> dict[str, Any]:
        """Return the answer; a violation if the process ends or takes too long."""
        process = self._started()
        assert process.stdin is not None
        wait = seconds if self.cases else _START
        self.cases += 1
        try:
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            line = self.answers.get(timeout=wait)
        except queue.Empty:
            why = f"no answer in {wait:.0f} s"
        except OSError as error:
            why, wait = f"the process ended: {error}", 0.0
        else:
            # An empty line is the end of its output.
            why, wait = "" if line else f"the process ended with {process.wait(_START)}", 0.0
        if why:
            self.stop()
            return {"result": "violation", "why": why, "what": "", "seconds": wait, "mib": 0}
        if self.cases >= _EVERY:
            self.stop()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.listener is not None:
                self.listener.join()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):  # what was written last is of no use now
                    if pipe is not None:
                        pipe.close()
            self.process = None


def _listen(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put("")


def _schedule(found: Sequence[Seed], count: int) -> list[int]:
    """Every format in turn, those that are read in a process of their own half as often."""
    turn = [place for place, seed in enumerate(found) if not seed.slow] * 2
    turn += [place for place, seed in enumerate(found) if seed.slow]
    return [turn[number % len(turn)] for number in range(count)]


class Run:
    """Damaged files shared out among workers, and what became of them."""

    def __init__(self, found: Sequence[Seed], schedule: Sequence[int], seed: int) -> None:
        self.found, self.schedule, self.seed = found, schedule, seed
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.violations: list[str] = []
        self.done = 0
        self.stopped = False
        self.lock = threading.Lock()

    def work(self, worker: Worker, cases: Iterator[int]) -> None:
        """Ask one worker for one case after the other."""
        while True:
            with self.lock:
                number = next(cases, None)
            if number is None or self.stopped:
                worker.stop()
                return
            place = self.schedule[number]
            case = (number, place, f"{self.seed}:{number}")
            answer = worker.ask(case, _SECONDS)
            if answer["seconds"] >= _SECONDS:
                # A busy machine is no violation: it has to be slow twice.
                worker.stop()
                worker.ask((number, place, "warm"), _SECONDS)
                answer = worker.ask(case, _SECONDS)
                if answer["seconds"] >= _SECONDS and answer["result"] != "violation":
                    answer |= {"result": "violation", "why": f"took {answer['seconds']:.1f} s"}
            with self.lock:
                self._count(number, self.found[place].kind, answer)

    def _count(self, number: int, kind: str, answer: dict[str, Any]) -> None:
        tally = self.tallies[kind]
        tally.results[answer["result"]] += 1
        tally.seconds = max(tally.seconds, answer["seconds"])
        tally.mib = max(tally.mib, answer["mib"])
        if answer["result"] in ("violation", "not read"):
            self.violations.append(f"{number} {kind}, {answer['what']}: {answer['why']}")
            print(self.violations[-1], file=sys.stderr)
        self.done += 1
        if self.done % _EVERY == 0:
            print(f"{self.done} files, {len(self.violations)} violations", file=sys.stderr)


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Build the sound files, damage and open them, and print what became of them."""
    (folder / "seeds").mkdir()
    found = seeds(folder / "seeds")
    manifest = folder / "seeds.json"
    manifest.write_text(json.dumps([asdict(seed) for seed in found], default=str))
    count = _QUICK if arguments.quick else arguments.count
    only = arguments.only
    cases = iter(range(count) if only is None else [only])
    campaign = Run(found, _schedule(found, max(count, (only or 0) + 1)), arguments.seed)
    began = time.monotonic()
    workers = [Worker(manifest, folder / f"work{n}") for n in range(arguments.jobs)]
    with ThreadPoolExecutor(len(workers)) as pool:
        ends = [pool.submit(campaign.work, worker, cases) for worker in workers]
        try:
            for end in ends:
                end.result()
        except KeyboardInterrupt:
            campaign.stopped = True  # and say what there is so far
    _print(campaign.tallies, campaign.violations, time.monotonic() - began)
    return 1 if campaign.violations else 0


def _print(tallies: dict[str, Tally], violations: list[str], seconds: float) -> None:
    titles = ("refused", "same", "other", "not read", "violation")
    print(f"{'format':32}{''.join(f'{title:>10}' for title in titles)}  slowest   memory")
    for kind, tally in tallies.items():
        counts = "".join(f"{tally.results[title]:>10}" for title in titles)
        print(f"{kind:32}{counts}{tally.seconds:>7.2f} s{tally.mib:>5} MiB")
    total = sum(sum(tally.results.values()) for tally in tallies.values())
    print(f"{total} files in {seconds:.0f} s, {len(violations)} violations")
    for violation in violations[:_MOST_SHOWN]:
        print(violation)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="damaged files (10,000)")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} files")
    parser.add_argument("--seed", type=int, default=0, help="another number, other damage")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--only", type=int, help="the number of one file")
    with tempfile.TemporaryDirectory() as folder:
        return run(parser.parse_args(arguments), Path(folder))


if __name__ == "__main__":
    sys.exit(main())
