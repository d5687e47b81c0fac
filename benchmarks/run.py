"""Compare ways of segmenting large images: ``python benchmarks/run.py`` (see README.md)."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from ceiling import convolution, matrix_product, openvino_tool
from measure import environment, image_file, peak_in_subprocess
from verdicts import verdicts
from ways import BARE, ONLY_GPU, WAYS, is_own, network_of, run_way

from napari_unet.errors import ValidUNetError
from napari_unet.footprint import footprint
from napari_unet.predictors import kept

HERE = Path(__file__).resolve().parent
GIB = 1 << 30
PARTS = ("ways", "memory", "budget", "large", "ceiling")
NETWORKS = ("paper", "nuclei")
# Of the memory there is; a pass over the whole image that needs more is not tried.
_MOST = 0.6
# Bytes of memory that the budget's part gives.
BUDGETS = tuple(int(n * GIB) for n in (0.25, 0.5, 1, 2, 4))


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--ways", nargs="+", choices=_ways(), default=None, help="default: all that fit")
    add("--sizes", nargs="+", type=int, default=[1024, 2048, 4096], metavar="PX")
    add("--large", type=int, default=16384, metavar="PX", help="from disk (default: %(default)s)")
    add("--repeat", type=int, default=3, metavar="N", help="runs of each way")
    add("--memory", type=float, default=2.0, metavar="GIB", help="budget (default: %(default)s)")
    add(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="for another GPU than the first set CUDA_VISIBLE_DEVICES (default: %(default)s)",
    )
    add("--threads", type=int, default=0, help="of the processor (default: torch's)")
    add("--seconds", type=float, default=5.0, help="for each ceiling")
    add("--folder", type=Path, default=None, help="where images are kept between runs")
    add(
        "--name",
        default=None,
        help="of the result, results/NAME.json (default: the device's); what it has already stays",
    )
    add("--quick", action="store_true", help="small sizes, two runs: some minutes")
    given = parser.parse_args()
    if given.quick:
        given.sizes, given.large = [size for size in given.sizes if size <= 1024] or [512], 2048
        given.repeat, given.seconds = 2, 1.0
        given.name = given.name or f"quick-{given.device}"
    given.name = given.name or given.device
    return given


def _ways() -> list[str]:
    """Names of all ways, on any device."""
    return [*WAYS, *(way for ways in BARE.values() for way in ways)]


class Bench:
    """Runs the parts and keeps the rows."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.memory = int(given.memory * GIB)
        self.models = {name: network_of(name) for name in given.networks}
        self.output = HERE / "results" / f"{given.name}.json"
        self.rows = known_rows(self.output, given.device)

    def run(self) -> None:
        """All parts; what is there is saved after each row."""
        for part in self.given.parts:
            for found in getattr(self, f"part_{part}")():
                row = {"part": part, **found}
                # What was measured before, in another call, gives way.
                self.rows = [old for old in self.rows if identity(old) != identity(row)]
                self.rows.append(row)
                print(_line(self.rows[-1]), flush=True)
                self.save()

    def save(self) -> None:
        """Write everything so far."""
        now = datetime.now(UTC)
        document = {
            "written": now.isoformat(timespec="seconds"),
            "environment": environment(self.given.device),
            "settings": {k: v for k, v in vars(self.given).items() if k != "folder"},
            "rows": self.rows,
            "ratios": ratios(self.rows),
            "verdicts": verdicts(self.rows, self.given.device),
        }
        self.output.parent.mkdir(exist_ok=True)
        self.output.write_text(json.dumps(document, indent=1) + "\n")

    def fitting(self, network: str, size: int, *, bare: bool = False) -> list[str]:
        """Ways worth running: a pass over the whole image has to fit into memory."""
        config = self.models[network].config
        axis = config.geometry.axes[0]
        side = axis.above(size + axis.loss)
        if self.given.device == "cpu":
            there = environment("cpu")["memory_bytes"]
        else:
            there = torch.cuda.mem_get_info()[1]
        # The plain network concatenates: half as much again as the product's own. Of the product's
        # engines the fastest takes most.
        needs = max(
            1.5 * footprint(config, (side, side)).peak,
            footprint(config, (side, side), predictor="ncnn").peak,
        )
        skip = {way for way in WAYS if way.startswith("whole") and needs > _MOST * there}
        if network == "paper":
            skip |= {"instances float32", "instances auto"}
        kind = self.given.device
        skip |= set(ONLY_GPU) if kind == "cpu" else set()
        there_are = [*WAYS, *(BARE.get(kind, ()) if bare else ())]
        wanted = self.given.ways or there_are
        return [way for way in there_are if way in wanted and way not in skip]

    def part_ways(self) -> Iterator[dict[str, Any]]:
        """Time all ways side by side in this process, in alternating order."""
        for network in self.given.networks:
            for size in self.given.sizes:
                image = np.asarray(_read(image_file(size, self.folder)))
                ways = self.fitting(network, size, bare=True)
                times: dict[str, list[float]] = {way: [] for way in ways}
                firsts: dict[str, list[float]] = {way: [] for way in ways}
                details: dict[str, dict[str, Any]] = {}
                for way in ways:  # libraries and compilers
                    self.timed(way, network, image[:512, :512])
                for turn in range(self.given.repeat):
                    for way in ways if turn % 2 == 0 else reversed(ways):
                        kept.clear()
                        seconds, found = self.timed(way, network, image)
                        if seconds is not None and is_own(way):  # then with what it kept ready
                            firsts[way].append(seconds)
                            seconds, found = self.timed(way, network, image)
                        if seconds is not None:
                            times[way].append(seconds)
                        details[way] = found
                for way in ways:
                    row = self.row(network, size, way, times[way], details[way])
                    if firsts[way]:
                        row |= {"first_seconds": firsts[way], "first_median": median(firsts[way])}
                    yield row | {"memory": self.memory}

    def timed(self, way: str, network: str, image: Any) -> tuple[float | None, dict[str, Any]]:
        """One run."""
        start = time.perf_counter()
        try:
            outcome = run_way(way, image, self.models[network], self.given.device, self.memory)
        except (ValidUNetError, MemoryError, torch.OutOfMemoryError) as error:
            return None, {"error": str(error)}
        seconds = time.perf_counter() - start
        return outcome.details.pop("seconds", seconds), outcome.details

    def row(
        self, network: str, size: int, way: str, seconds: list[float], details: dict[str, Any]
    ) -> dict[str, Any]:
        """One line of the result."""
        row: dict[str, Any] = {"network": network, "size": size, "way": way, "seconds": seconds}
        if seconds:
            row["median"] = median(seconds)
            row["megapixels_per_second"] = size * size / 1e6 / row["median"]
        return row | details

    def peak(self, network: str, size: int, way: str, memory: int) -> dict[str, Any]:
        """One run in a process of its own, or two where the first leaves something."""
        path = image_file(size, self.folder)
        runs = 2 if is_own(way) and size < self.given.large else 1
        found = peak_in_subprocess(
            way, network, path, self.given.device, memory, self.given.threads, runs=runs
        )
        seconds = [found.pop("seconds")] if "seconds" in found else []
        return {**self.row(network, size, way, seconds, found), "memory": memory}

    def part_memory(self) -> Iterator[dict[str, Any]]:
        """Peaks at the ordinary sizes."""
        for network in self.given.networks:
            for size in self.given.sizes:
                for way in self.fitting(network, size):
                    yield self.peak(network, size, way, self.memory)

    def part_large(self) -> Iterator[dict[str, Any]]:
        """A large image from disk, and a smaller one for comparison."""
        usual = ["product float32", "product auto", "instances auto"]
        ways = [way for way in self.given.ways or usual if way in WAYS]
        for network in self.given.networks:
            for way in ways:
                if way.startswith("instances") and network == "paper":
                    continue
                for size in (self.given.large // 4, self.given.large):
                    yield self.peak(network, size, way, self.memory)

    def part_budget(self) -> Iterator[dict[str, Any]]:
        """Cost and peak against the budget."""
        size = max((size for size in self.given.sizes if size <= 2048), default=1024)
        for network in self.given.networks:
            for way in ("product float32", "product auto"):
                for memory in BUDGETS:
                    yield self.peak(network, size, way, memory)

    def part_ceiling(self) -> Iterator[dict[str, Any]]:
        """What the machine and OpenVINO reach without an image around the network."""
        device, seconds = self.given.device, self.given.seconds
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            for what, call in (("convolution", convolution), ("matrix product", matrix_product)):
                rate = call(dtype, device, seconds)
                yield {"way": what, "precision": name, "flops_per_second": rate}
        if device == "cpu":
            for network in self.given.networks:
                for way, precision in (
                    ("product float32", "float32"),
                    ("product auto", "bfloat16"),
                ):
                    yield from self.openvino(network, way, precision)

    def openvino(self, network: str, way: str, precision: str) -> Iterator[dict[str, Any]]:
        """The figure of OpenVINO's tool at the tile that the product used last, or the paper's."""
        model = self.models[network]
        used = [row for row in self.rows if (row.get("network"), row["way"]) == (network, way)]
        tiles = [tuple(row["tile"]) for row in used if "tile" in row]
        usual = model.config.geometry.axes[0].below(572) or 572
        tile = tiles[-1] if tiles else (usual, usual)
        found = openvino_tool(model, tile, precision, self.given.seconds)
        if found is not None:
            row = {"network": network, "way": "benchmark_app", "precision": precision}
            yield row | {"tile": tile} | found


def known_rows(path: Path, device: str) -> list[dict[str, Any]]:
    """Rows of a result that this run adds to; those of another machine are not mixed with it."""
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    if document["environment"] != environment(device):
        sys.exit(f"{path.name} is of another environment: choose another --name, or delete it.")
    rows: list[dict[str, Any]] = document["rows"]
    return rows


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same measurement."""
    precision = row.get("precision") if row["part"] == "ceiling" else None
    names = ("part", "network", "size", "way", "memory")
    return (*(row.get(name) for name in names), precision)


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times as fast each way is as others."""
    timed = {
        (row["network"], row["size"], row["way"]): row
        for row in rows
        if row["part"] == "ways" and "median" in row
    }
    found = []
    for (network, size, way), row in timed.items():
        line = {"network": network, "size": size, "way": way}
        for other in ("tutorial", "monai", "whole", "whole product float32", "whole product auto"):
            if (network, size, other) in timed:
                line[f"times {other}"] = timed[network, size, other]["median"] / row["median"]
        found.append(line)
    return found


def _read(path: Path) -> Any:
    from napari_unet.files import read_image

    return read_image(path, lazy_above=0).data


def _line(row: dict[str, Any]) -> str:
    """One row for people."""
    words = [row["part"], *(str(row[k]) for k in ("network", "size", "way") if k in row)]
    if "precision" in row:
        words.append(row["precision"])
    if "median" in row:
        words.append(f"{row['median']:.2f} s, {row['megapixels_per_second']:.3g} MPx/s")
    if "flops_per_second" in row:
        words.append(f"{row['flops_per_second'] / 1e9:.0f} GFLOP/s")
    if "tile" in row:
        words.append("tile " + " x ".join(map(str, row["tile"])))
    if "objects_seconds" in row and row.get("objects"):
        words.append(f"{row['objects']} objects in {row['objects_seconds']:.2f} s of it")
    if "peak_bytes" in row:
        sizes = (f"{kind} {size / GIB:.2f} GiB" for kind, size in row["peak_bytes"].items())
        words.append("peak " + ", ".join(sizes))
    if "error" in row:
        words.append(f"failed: {row['error']}")
    return " | ".join(words)


def main() -> int:
    """Run what was asked for."""
    given = parsed()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="valid-unet-bench-") as temporary:
        bench = Bench(given, given.folder or Path(temporary))
        bench.folder.mkdir(parents=True, exist_ok=True)
        bench.run()
    print(f"\nwritten to {bench.output}\n")
    for row in ratios(bench.rows):
        print(
            " | ".join(f"{v:.2f} {k}" if isinstance(v, float) else str(v) for k, v in row.items())
        )
    print()
    for one in verdicts(bench.rows, given.device):
        held = "holds" if one["holds"] else "FAILS"
        print(f"{held} | {one['what']}: {one['found']:.3f} ({one['wanted']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
