"""What a tile costs before it runs: arithmetic, and the most memory that is held at once.

Both follow the network layer by layer, as `predictors` runs it: batch norm folded, activation in
place, the skip cropped and already convolved on the way down (a convolution of concatenated maps
is the sum of one convolution each, so that nothing is ever concatenated)::

    down[l]: conv conv -> map -> crop -> conv -> kept     (what the skip becomes)
                           |
                          pool -> down[l + 1] ... -> up -> conv, added to kept -> conv -> up ...

Everything here is integers; nothing imports torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from pathlib import Path

from napari_unet.config import UNetConfig
from napari_unet.levels import Shape, levels, merges

__all__ = ["GROUP", "KEPT", "QUEUED", "SMALL", "Footprint", "footprint"]

# What either predictor keeps for itself: threads, generated kernels, small tensors.
_BASE = {"torch": 16 << 20, "openvino": 24 << 20, "ncnn": 16 << 20, "cuda": 16 << 20}
# What torch takes of a GPU's memory over what its maps are: pieces that fit nothing else, and what
# cuDNN takes to multiply float32 numbers.
_ON_GPU = {True: 9 / 8, False: 6 / 5}
# Channels that a GPU computes with at once; the image is given so many.
GROUP = 8
# Calls whose pixels and answers are on a GPU besides those that are computed.
QUEUED = 2
# The C library keeps what smaller pieces of memory took for the next ones, and gives larger ones
# back at once (`torch_predictor` tells it to). OpenVINO plans all of its maps in one piece.
SMALL, KEPT = 4 << 20, 32 << 20
# Intel's matrix units (AMX) take so many channels at once. Of others OpenVINO copies the map before
# a convolution of 1 x 1, and of all before an up-convolution, with some room beside.
_TOGETHER, _BESIDE = 32, 5 / 4
# ncnn computes with this many channels at once, and lays out that many bytes for each core: more
# where there are few channels.
_PACK, _AT_ONCE = 16, (34 << 20, 23 << 20)


@dataclass(frozen=True)
class Footprint:
    """Cost of one call of the network.

    Parameters
    ----------
    flops : int
        Multiplications and additions of the convolutions.
    peak : int
        Bytes held at once at most: activations, input, output, weights.
    weights : int
        Bytes of the weights alone, as often as they are held.
    """

    flops: int
    peak: int
    weights: int


@lru_cache(maxsize=4096)
def footprint(
    config: UNetConfig, shape: Shape, *, predictor: str = "torch", half: bool = False
) -> Footprint:
    """Account for one tile.

    Parameters
    ----------
    config : UNetConfig
        Of the network.
    shape : tuple of int
        Admissible input of the network, in pixels along each axis.
    predictor : {"torch", "openvino", "ncnn", "cuda"}
        Who runs it; ``cuda`` is torch on an NVIDIA GPU, as `predictors.fused` runs it.
    half : bool
        Whether maps and weights are of two bytes a number instead of four.

    Returns
    -------
    Footprint
    """
    walk = _Walk(config, shape, 2 if half else 4, predictor)
    walk.run()
    if predictor == "openvino":
        packed = _packed(walk.maps) * 17 // 16
    elif predictor == "ncnn":
        packed = _pooled(walk.maps) + _pooled(walk.work)
    else:
        packed = _allocated(walk.maps)
    if predictor == "cuda":
        packed = int(packed * _ON_GPU[half])
    if predictor == "openvino":
        # The logits leave the piece in which the maps have their place.
        packed += 4 * config.n_classes * prod(walk.levels[0].fourth) + walk.copied
    weights = walk.weights()
    return Footprint(walk.flops, packed + weights + _BASE[predictor], weights)


@cache
def _has_matrix_units() -> bool:
    """Whether the processor has AMX; taken for granted where the system does not tell."""
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return sys.platform == "win32"


@dataclass
class _Map:
    """Bytes held from one moment to another, both included."""

    size: int
    start: int
    stop: int = sys.maxsize
    offset: int = 0

    def meets(self, other: _Map) -> bool:
        """Whether both are held at some moment."""
        return self.start <= other.stop and other.start <= self.stop


def _allocated(maps: list[_Map]) -> int:
    """Most bytes at a moment, for maps that are allocated one by one.

    The C library keeps some of what small pieces took for the next ones (`KEPT`); larger ones it
    gives back at once.
    """
    most = kept = 0
    for now in range(len(maps)):
        held = [one for one in maps if one.start <= now <= one.stop]
        small = sum(one.size for one in held if one.size <= SMALL)
        kept = max(small, min(kept, small + KEPT))
        most = max(most, kept + sum(one.size for one in held if one.size > SMALL))
    return most


def _packed(maps: list[_Map]) -> int:
    """Extent of one piece of memory in which all maps have their place.

    The largest is placed first, each as low as the ones that it meets allow: what OpenVINO does.
    """
    placed: list[_Map] = []
    for one in sorted(maps, key=lambda held: -held.size):
        one.offset = 0
        for other in sorted((p for p in placed if p.meets(one)), key=lambda held: held.offset):
            if other.offset >= one.offset + one.size:
                break
            one.offset = max(one.offset, other.offset + other.size)
        placed.append(one)
    return max(one.offset + one.size for one in placed)


def _pooled(maps: list[_Map]) -> int:
    """Bytes that a pool takes from the system in two tiles: ncnn's way.

    A map gets the piece that has been free for longest of those that it fits into, however large;
    only where there is none is one taken from the system, and none goes back.
    """
    total, free = 0, list[int]()
    for _tile in range(2):
        used: list[tuple[_Map, int]] = []
        for now, one in enumerate([*maps, _Map(0, len(maps))]):
            free += [piece for held, piece in used if held.stop < now]
            used = [(held, piece) for held, piece in used if held.stop >= now]
            piece = next((piece for piece in free if piece >= one.size), None)
            if piece is None:
                piece = one.size
                total += piece
            else:
                free.remove(piece)
            used.append((one, piece))
        free += [piece for _, piece in used]
    return total


class _Walk:
    """Runs a network in numbers: which maps are held, and what is computed."""

    def __init__(self, config: UNetConfig, shape: Shape, itemsize: int, predictor: str) -> None:
        self.config, self.itemsize, self.predictor = config, itemsize, predictor
        self.levels = levels(config, shape)
        self.maps: list[_Map] = []
        # What ncnn uses for a layer, and the weights as it lays them out.
        self.work: list[_Map] = []
        self.laid_out = 0
        # What OpenVINO copies a map to: one place for all layers.
        self.copied = 0
        self.flops = 0

    def weights(self) -> int:
        """Bytes of the weights where they run.

        torch holds a copy made for inference. OpenVINO holds its own layout beside the graph's
        constants, which are the model's own but for what is folded or taken apart. ncnn holds
        them transformed.
        """
        config = self.config
        if self.predictor == "ncnn":
            return self.laid_out
        held = config.n_parameters * self.itemsize
        if self.predictor != "openvino":
            return held
        apart = extra = 0
        for level in range(config.depth):
            width, up, kernel = config.widths[level], config.up_widths[level], config.kernels[level]
            apart += (width + up) * width * prod(kernel)
            if merges(config, level):
                coarse, block = config.widths[level + 1] * width, prod(config.pools[level])
                extra += coarse * prod(
                    k + p - 1 for k, p in zip(kernel, config.pools[level], strict=True)
                )
                extra -= up * (config.widths[level + 1] * block + width * prod(kernel))
        constants = apart if config.norm == "none" else config.n_parameters
        return held + self.itemsize * extra + 4 * (constants + extra)

    def run(self) -> None:
        """Follow the forward pass."""
        config = self.config
        self.hold(config.in_channels, self.levels[0].entry, 4)
        held = self.hold(config.in_channels, self.levels[0].entry)
        if self.predictor == "cuda":
            self.hold(QUEUED * config.in_channels, self.levels[0].entry, 4)
            self.hold(QUEUED * max(config.n_classes, 2), self.levels[0].fourth, 4)
            wide = -(-config.in_channels // GROUP) * GROUP
            held = self.hold(wide, self.levels[0].entry)
        inputs, kept = config.in_channels, []
        for level, at in enumerate(self.levels):
            width = config.widths[level]
            first = self.conv(inputs, width, at.first, level)
            self.free(held)
            held = self.conv(width, width, at.second, level)
            self.free(first)
            if level == config.depth:
                break
            skip = self.hold(width, at.risen)
            pooled = self.hold(width, self.levels[level + 1].entry)
            self.free(held)
            if self.predictor != "openvino":
                # OpenVINO keeps the skip itself, and convolves it on the way up.
                skip = self.replace(skip, self.conv(width, width, at.third, level))
            kept.append(skip)
            held, inputs = pooled, width
        for level in reversed(range(config.depth)):
            held = self._rise(level, held, kept.pop())
        if self.predictor == "ncnn":
            self.use(4 * config.widths[0] * prod(self.levels[0].fourth))
        if config.widths[0] > _TOGETHER and config.widths[0] % _TOGETHER:
            self.copy(config.widths[0], self.levels[0].fourth)
        logits = self.hold(config.n_classes, self.levels[0].fourth)
        self.free(held)
        self.flops += 2 * config.widths[0] * config.n_classes * prod(self.levels[0].fourth)
        # float32, channels first; and a copy, for what comes after.
        self.replace(logits, self.hold(config.n_classes, self.levels[0].fourth, 4))
        if self.predictor == "cuda":
            # The answer, while the logits are still there.
            self.hold(max(config.n_classes, 2), self.levels[0].fourth, 4)
        self.hold(config.n_classes, self.levels[0].fourth, 4)

    def _rise(self, level: int, below: _Map, kept: _Map) -> _Map:
        """From one level up to the next; returns its last map."""
        config, at = self.config, self.levels[level]
        width, up, source = config.widths[level], config.up_widths[level], config.widths[level + 1]
        self.flops += 2 * source * up * prod(at.risen)
        if self.predictor == "openvino" and merges(config, level):
            # What one convolution gives is laid out anew.
            once = self.replace(below, self.conv(up, width, at.third, level))
            return self._join(level, self.replace(once, self.hold(width, at.third)), kept)
        if config.up != "upconv":
            below = self.replace(below, self.hold(source, at.risen))
        else:
            self.copy(source, self.levels[level + 1].fourth, _BESIDE)
        risen = self.hold(up, at.risen)
        if self.predictor == "ncnn":
            # Made with a margin that is then cut off, even where it is empty.
            self.free(self.hold(up, at.risen))
            self.laid_out += 4 * source * up * prod(config.pools[level])
            self.use(below.size)
        self.free(below)
        return self._join(level, self.replace(risen, self.conv(up, width, at.third, level)), kept)

    def _join(self, level: int, added: _Map, kept: _Map) -> _Map:
        """Add what comes from below to the skip; returns the level's last map."""
        config, at = self.config, self.levels[level]
        width = config.widths[level]
        if self.predictor == "ncnn":
            added = self.replace(added, self.hold(width, at.third))
        elif self.predictor != "openvino":
            kept, added = added, kept
        else:
            self.flops += 2 * width * width * prod(config.kernels[level]) * prod(at.third)
        # One is added to the other in place.
        self.free(kept)
        return self.replace(added, self.conv(width, width, at.fourth, level))

    def conv(self, inputs: int, outputs: int, size: Shape, level: int) -> _Map:
        """Compute a convolution."""
        kernel = self.config.kernels[level]
        self.flops += 2 * inputs * outputs * prod(kernel) * prod(size)
        if self.predictor == "ncnn":
            self.transform(inputs, outputs, size)
        if self.predictor != "torch":
            return self.hold(outputs, size)
        # torch lays the weights out for this one run, ...
        weights = self.hold(inputs * outputs, kernel)
        found = self.hold(outputs, size)
        self.free(weights)
        if self.config.ndim == 3 and self.itemsize == 4:
            # ... and such maps first in the library's own layout.
            found = self.replace(found, self.hold(outputs, size))
        return found

    def transform(self, inputs: int, outputs: int, size: Shape) -> None:
        """Use what Winograd's algorithm needs: the input and the weights in squares, transformed.

        Squares of 6 or 8 give 4 or 6 pixels along each axis; the smaller ones save less and are
        the faster ones where there are many channels.
        """
        cores, given = os.cpu_count() or 1, -(-inputs // _PACK) * _PACK
        step = 6 if max(inputs, outputs) <= 2 * _PACK else 4
        square = 4 * (step + 2) ** 2
        self.laid_out += square * given * -(-outputs // _PACK) * _PACK
        whole = square * given * prod(-(-s // step) for s in size)
        part = min(whole, cores * _AT_ONCE[given >= 4 * _PACK])
        made = -(-outputs // cores // _PACK) * _PACK
        self.use(whole, part, part * made // given)

    def use(self, whole: int, *parts: int) -> None:
        """Use memory within one layer: a piece throughout, and others one after the other."""
        start = len(self.work)
        last = start + len(parts)
        self.work.append(_Map(whole, start, last))
        self.work += [_Map(part, start + n, start + n) for n, part in enumerate(parts, 1)]

    def copy(self, channels: int, size: Shape, over: float = 1.0) -> None:
        """Have OpenVINO copy a map for matrix units."""
        if self.predictor == "openvino" and self.itemsize == 2 and _has_matrix_units():
            whole = -(-channels // _TOGETHER) * _TOGETHER * prod(size) * self.itemsize
            self.copied = max(self.copied, int(over * whole))

    def hold(self, channels: int, size: Shape, itemsize: int = 0) -> _Map:
        """Allocate a map."""
        held = _Map(channels * prod(size) * (itemsize or self.itemsize), len(self.maps))
        self.maps.append(held)
        return held

    def free(self, held: _Map) -> None:
        """Let go of a map, after the last that was made."""
        held.stop = len(self.maps) - 1

    def replace(self, held: _Map, by: _Map) -> _Map:
        """Let go of a map for another one."""
        self.free(held)
        return by
