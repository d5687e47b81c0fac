"""Plots of a result: ``python benchmarks/plots.py benchmarks/results/cpu.json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
GIB = 1 << 30


def curves(
    rows: list[dict[str, Any]], network: str, along: str
) -> dict[str, list[tuple[float, float]]]:
    """Microseconds per pixel of each way, against the image's side or the budget."""
    part = {"size": ("ways", "large"), "memory": ("budget",)}[along]
    found = defaultdict(list)
    for row in rows:
        if row["part"] in part and row.get("network") == network and "megapixels_per_second" in row:
            cost = 1 / row["megapixels_per_second"]
            found[row["way"]].append((row[along], cost))
    return {way: sorted(points) for way, points in found.items() if len(points) > 1}


def draw(document: dict[str, Any], network: str, along: str, path: Path) -> bool:
    """Draw one figure; False if there is nothing to draw."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = curves(document["rows"], network, along)
    if not lines:
        return False
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for way, points in lines.items():
        xs, ys = zip(*points, strict=True)
        xs = [x / GIB for x in xs] if along == "memory" else list(xs)
        axes.plot(xs, ys, marker="o", label=way)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("memory budget, GiB" if along == "memory" else "side of the image, px")
    axes.set_ylabel("µs per pixel")
    where = document["environment"]
    machine = where.get("gpu", {}).get("name") or f"{where['threads']} threads"
    axes.set_title(f"{network}, {machine}")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)
    return True


def main() -> int:
    """Draw every figure of a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--folder", type=Path, default=IMAGES)
    given = parser.parse_args()
    document = json.loads(given.result.read_text())
    given.folder.mkdir(parents=True, exist_ok=True)
    for network in sorted({row["network"] for row in document["rows"] if "network" in row}):
        for along in ("size", "memory"):
            path = given.folder / f"cost-{along}-{network}-{given.result.stem}.svg"
            if draw(document, network, along, path):
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
