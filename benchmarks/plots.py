"""Plots of results: ``python benchmarks/plots.py benchmarks/results/cpu.json [MORE.json]``."""

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

from verdicts import costs

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
GIB = 1 << 30
WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 36, 48
# Told apart by people who see few colours, too (Okabe and Ito), and by their marks.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKS = ("circle", "square", "diamond")

# Of all ways that are measured: (a), (b), (c) and (d).
WAYS = ("tutorial", "monai", "whole", "product float32", "product auto")
DASHES = ("", "6 4", "2 3")

Line = tuple[str, str, list[tuple[float, float]]]


def by_size(rows: Sequence[dict[str, Any]], network: str) -> list[Line]:
    """Microseconds per pixel of each way, against the image's side."""
    found = costs(rows, network)
    lines = [(network, way, sorted(found[way].items())) for way in WAYS if way in found]
    return [line for line in lines if len(line[2]) > 1]


def by_memory(rows: Sequence[dict[str, Any]], network: str) -> list[Line]:
    """The same against the budget, in GiB."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["part"] == "budget" and row["network"] == network and "median" in row:
            point = row["memory"] / GIB, 1 / row["megapixels_per_second"]
            found[row["way"]].append(point)
    return [(network, way, sorted(found[way])) for way in WAYS if len(found[way]) > 1]


def figure(lines: Sequence[Line], title: str, across: str) -> str:
    """Draw both axes logarithmic, as SVG."""
    xs = sorted({x for *_, points in lines for x, _ in points})
    ys = [y for *_, points in lines for _, y in points]
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
    networks = sorted({network for network, *_ in lines})
    for number, (network, way, points) in enumerate(lines):
        # Colours and marks for ways, strokes for networks.
        color, mark = COLORS[WAYS.index(way)], MARKS[WAYS.index(way) % len(MARKS)]
        dash = DASHES[networks.index(network) % len(DASHES)]
        way_points = [place(x, y) for x, y in points]
        route = " ".join(f"{a:.1f},{b:.1f}" for a, b in way_points)
        at = TOP + 8 + 18 * number
        legend = (WIDTH - RIGHT + 22, at)
        sample = f"{legend[0] - 12:.1f},{at} {legend[0] + 12:.1f},{at}"
        parts += [stroke(line, color, dash) for line in (route, sample)]
        parts += [dot(*point, color, mark) for point in (*way_points, legend)]
        parts.append(text(WIDTH - RIGHT + 40, at + 4, f"{network}, {way}"))
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


def stroke(points: str, color: str, dash: str) -> str:
    """A curve."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"{dashed}/>'


def dot(x: float, y: float, color: str, mark: str) -> str:
    """A mark on a curve."""
    if mark == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if mark == "diamond" else ""
    return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{color}"{turn}/>'


def main() -> int:
    """Draw both figures of some results, which are of one machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, default=IMAGES)
    given = parser.parse_args()
    documents = [json.loads(path.read_text()) for path in given.results]
    rows = [row for document in documents for row in document["rows"]]
    given.folder.mkdir(parents=True, exist_ok=True)
    where = documents[0]["environment"]
    machine = where.get("gpu", {}).get("name") or f"processor, {where['threads']} threads"
    device = "gpu" if "gpu" in where else "cpu"
    networks = sorted({row["network"] for row in rows if "network" in row})
    for name, curves, across in (
        ("size", by_size, "side of the image, px"),
        ("memory", by_memory, "budget, GiB"),
    ):
        lines = [line for network in networks for line in curves(rows, network)]
        if lines:
            path = given.folder / f"cost-{name}-{device}.svg"
            path.write_text(figure(lines, f"Cost per pixel, {machine}", across), encoding="utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
