"""Plots of a result: ``python benchmarks/plots.py benchmarks/results/cpu.json``."""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from math import ceil, floor, log2, log10
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
GIB = 1 << 30
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 36, 48
# Told apart by people who see few colours, too (Okabe and Ito), and by their marks.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKS = ("circle", "square", "diamond")

Line = tuple[str, list[tuple[float, float]]]


def curves(rows: Sequence[dict[str, Any]], network: str, along: str) -> list[Line]:
    """Microseconds per pixel of each way, against the image's side or the budget."""
    parts = {"size": ("ways", "large"), "memory": ("budget",)}[along]
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for row in rows:
        if row["part"] in parts and row.get("network") == network and "median" in row:
            at = row[along] / GIB if along == "memory" else row[along]
            # A side that was timed side by side with the others counts more than a run alone.
            found[row["way"]].setdefault(at, 1 / row["megapixels_per_second"])
    return [(way, sorted(points.items())) for way, points in found.items() if len(points) > 1]


def figure(lines: Sequence[Line], title: str, across: str) -> str:
    """Draw both axes logarithmic, as SVG."""
    xs = sorted({x for _, points in lines for x, _ in points})
    ys = [y for _, points in lines for _, y in points]
    low, high = floor(log10(min(ys)) * 3) / 3, ceil(log10(max(ys)) * 3) / 3
    left, right = log2(xs[0]), log2(xs[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        u = (log2(x) - left) / max(right - left, 1e-9)
        v = (log10(y) - low) / max(high - low, 1e-9)
        return LEFT + u * width, HEIGHT - BOTTOM - v * height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        text(LEFT, 22, title, size=14),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, across, anchor="middle"),
        f'<g transform="rotate(-90 16 {HEIGHT / 2})">'
        + text(16, HEIGHT / 2, "µs per pixel", anchor="middle")
        + "</g>",
    ]
    for x in xs:
        (a, b), (_, top) = place(x, 10**low), place(x, 10**high)
        parts += [rule(a, b, a, top), text(a, b + 18, f"{x:g}", anchor="middle")]
    for y in ticks(low, high):
        (a, b), (right_end, _) = place(xs[0], y), place(xs[-1], y)
        parts += [rule(a, b, right_end, b), text(a - 6, b + 4, f"{y:g}", anchor="end")]
    for number, (way, points) in enumerate(lines):
        color, mark = COLORS[number % len(COLORS)], MARKS[number % len(MARKS)]
        way_points = [place(x, y) for x, y in points]
        route = " ".join(f"{a:.1f},{b:.1f}" for a, b in way_points)
        parts.append(f'<polyline points="{route}" fill="none" stroke="{color}" stroke-width="2"/>')
        at = TOP + 8 + 18 * number
        legend = (WIDTH - RIGHT + 22, at)
        parts += [dot(*point, color, mark) for point in (*way_points, legend)]
        parts.append(text(WIDTH - RIGHT + 34, at + 4, way))
    return "\n".join([*parts, "</svg>", ""])


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in a range."""
    powers = range(floor(low), ceil(high) + 1)
    values = (float(f"{n}e{power}") for power in powers for n in (1, 2, 5))
    return [value for value in values if low - 1e-9 <= log10(value) <= high + 1e-9]


def text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start") -> str:
    """Words."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def rule(a: float, b: float, c: float, d: float) -> str:
    """A thin line."""
    return f'<path d="M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" stroke="#ddd"/>'


def dot(x: float, y: float, color: str, mark: str) -> str:
    """A mark on a curve."""
    if mark == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if mark == "diamond" else ""
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{color}"{turn}/>'


def main() -> int:
    """Draw every figure of a result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--folder", type=Path, default=IMAGES)
    given = parser.parse_args()
    document = json.loads(given.result.read_text())
    given.folder.mkdir(parents=True, exist_ok=True)
    where = document["environment"]
    machine = where.get("gpu", {}).get("name") or f"processor, {where['threads']} threads"
    for network in sorted({row["network"] for row in document["rows"] if "network" in row}):
        for along, across in (("size", "side of the image, px"), ("memory", "budget, GiB")):
            lines = curves(document["rows"], network, along)
            if lines:
                path = given.folder / f"cost-{along}-{network}-{given.result.stem}.svg"
                path.write_text(figure(lines, f"{network}, {machine}", across), encoding="utf-8")
                print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
