"""What must hold of a result: ratios of one run, each with its bound."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

__all__ = ["costs", "verdicts"]

Row = dict[str, Any]
Verdict = dict[str, Any]

# Way, another one, and how many times as fast it has to be; of the paper's network, from 2048 px.
_FASTER = (
    ("product float32", "tutorial", 2.8),
    ("product float32", "monai", 2.0),
    ("product auto", "tutorial", 5.0),
)
# A budget costs little against none, and what is around the network even less.
_KEPT = (
    ("product float32", "whole product float32", 0.9),
    ("product auto", "whole product auto", 0.9),
    ("product float32", "openvino float32", 0.95),
    ("product auto", "openvino auto", 0.95),
)
# The next image with the same model, and the first.
_TIMES = {"median": "", "first_median": ", first image"}
# The network alone, on a GPU.
_BARE = ("network auto",)
_FLAT = 1.1
# Smaller images are over before anything is worth a comparison.
_FROM = 1024
# The label image is no part of a budget, but for this much of it.
_LABELS_WITHIN = 128 << 20
# Large images take the memory of small ones and their labels; tiles are not quite the same.
_SAME_MEMORY = 1.15


def verdicts(rows: Sequence[Row], device: str = "cpu") -> list[Verdict]:
    """Hold rows against what they must show; nothing is said of what was not measured."""
    found = [*_speed(rows), *_flat(rows), *_memory(rows), *_objects(rows)]
    return [*found, *_gpu(rows)] if device.startswith("cuda") else found


def costs(rows: Sequence[Row], network: str, time: str = "median") -> dict[str, dict[float, float]]:
    """Microseconds per pixel of each way, by the image's side."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for part in ("large", "ways"):  # side by side with others counts more than alone
        for row in _of(rows, part, network):
            found[row["way"]][row["size"]] = row.get(time, row["median"]) / row["size"] ** 2 * 1e6
    return found


def _of(rows: Sequence[Row], part: str, network: str) -> list[Row]:
    return [r for r in rows if (r["part"], r.get("network")) == (part, network) and "median" in r]


def _networks(rows: Sequence[Row]) -> list[str]:
    return sorted({row["network"] for row in rows if "network" in row})


def _at_least(what: str, found: float, bound: float) -> Verdict:
    return {"what": what, "found": found, "wanted": f">= {bound:g}", "holds": found >= bound}


def _at_most(what: str, found: float, bound: float) -> Verdict:
    return {"what": what, "found": found, "wanted": f"<= {bound:g}", "holds": found <= bound}


def _speed(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Times as fast as others; against bare OpenVINO per operation, as tiles may differ."""
    for network in _networks(rows):
        by_size: dict[int, dict[str, Row]] = defaultdict(dict)
        for row in (row for row in _of(rows, "ways", network) if row["size"] >= _FROM):
            by_size[row["size"]][row["way"]] = row
        for size, ways in sorted(by_size.items()):
            must = (_FASTER if network == "paper" and size >= 2048 else ()) + _KEPT
            for way, other, bound in must:
                if way not in ways or other not in ways:
                    continue
                for time, words in _TIMES.items():
                    if time in ways[way]:
                        times = ways[other].get(time, ways[other]["median"]) / ways[way][time]
                        if other.startswith("openvino"):
                            times *= ways[way]["flops"] / ways[other]["flops"]
                        what = f"{network}, {size} px: {way}{words}, times {other}"
                        yield _at_least(what, times, bound)


def _flat(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Cost per pixel, whatever the image's size."""
    for network, (time, words) in product(_networks(rows), _TIMES.items()):
        for way, by_size in costs(rows, network, time).items():
            large = [cost for size, cost in by_size.items() if size >= _FROM]
            if way.startswith("product") and len(large) > 1:
                what = f"{network}: {way}{words}, dearest size over cheapest, per pixel"
                yield _at_most(what, max(large) / min(large), _FLAT)


def _memory(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Measured peaks against the budget, and of large images against smaller ones."""
    own = [r for r in rows if "own" in r.get("peak_bytes", {})]
    own = [r for r in own if r["way"].startswith(("product", "instances"))]
    for row in own:
        above = max(0, 4 * row["size"] ** 2 - _LABELS_WITHIN)
        share = row["peak_bytes"]["own"] / (row["memory"] + above)
        if "gpu" in row["peak_bytes"]:  # whose memory the budget is then
            share = row["peak_bytes"]["gpu"] / row["memory"]
        words = f"{row['part']}, {row['network']}, {row['size']} px: {row['way']}"
        yield _at_most(f"{words}, share of {row['memory'] / (1 << 30):g} GiB", share, 1)
    pairs: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in own:
        if row["part"] == "large":
            pairs[row["network"], row["way"]].append(row)
    for (network, way), found in pairs.items():
        small, large = (pick(found, key=lambda row: row["size"]) for pick in (min, max))
        if small["size"] >= 2 * _FROM and small is not large:
            rest = large["peak_bytes"]["own"] - 4 * large["size"] ** 2
            what = f"{network}: {way}, {large['size']} px without labels, times {small['size']} px"
            yield _at_most(what, rest / small["peak_bytes"]["own"], _SAME_MEMORY)


def _objects(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Finding objects costs less than the network."""
    for row in rows:
        if row.get("objects") and "median" in row:
            share = row["objects_seconds"] / row["network_seconds"]
            words = f"{row['part']}, {row['network']}, {row['size']} px: {row['way']}"
            yield _at_most(f"{words}, objects' seconds over the network's", share, 1)


def _gpu(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Share of the matrix product's speed."""
    products = [r for r in rows if (r["way"], r["precision"]) == ("matrix product", "bfloat16")]
    for row in _of(rows, "ways", "paper") if products else ():
        if row["size"] >= 16384 and row.get("precision") == "bfloat16":
            rate = row["flops"] / products[-1]["flops_per_second"]
            words = f"paper, {row['size']} px: {row['way']}, share of a bfloat16 matrix product"
            yield _at_least(words, rate / row["median"], 0.5 if row["way"] in _BARE else 0.4)
