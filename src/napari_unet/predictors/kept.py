"""Networks made ready stay ready for the next run with the same model: its first tile comes sooner.

Compiling takes a twentieth of a second for a small network and a quarter of one for the paper's;
memory for the maps, had anew, as long again: more than a quarter of what an image of a megapixel
takes. Of what is held between runs what was used last stays, and nothing of a network that is gone
or has learned something since. The maps' memory goes back when another network runs, or after
a minute.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from threading import Timer
from typing import Any

import torch
from torch import nn

from napari_unet.predictors import Predictor

__all__ = ["Key", "clear", "keep", "key_of", "take"]


@dataclass(frozen=True)
class Key:
    """What a network was made ready for.

    Parameters
    ----------
    network : weakref to nn.Module
        The network itself; none is alive only because it was used.
    weights : tuple of bytes
        What the bits of each tensor come to: something else after a training step.
    way : hashable
        Device, precision, engine.
    threads : int
        That torch used, and with it any library.
    """

    network: weakref.ref[nn.Module]
    weights: tuple[bytes, ...]
    way: Hashable
    threads: int


_kept: dict[Key, Predictor] = {}  # the one used last comes last
_MINUTE = 60.0  # s
_WORDS = 4099
_lull: Timer | None = None


def key_of(network: nn.Module, way: Hashable) -> Key:
    """Look at a network as it is now: some milliseconds for 31 million parameters."""
    weights = tuple(_fingerprint(tensor) for tensor in network.state_dict().values())
    return Key(weakref.ref(network, _forget), weights, way, torch.get_num_threads())


def take(key: Key) -> Predictor | None:
    """Hand over what was kept, for one run at a time; None where nothing was."""
    found = _kept.pop(key, None)
    if found is None:
        _rest()  # the memory is another's now
    return found


def keep(key: Key, predictor: Predictor, most: int) -> None:
    """Keep a predictor that rests, as long as all together hold no more than `most` bytes."""
    global _lull
    for other in list(_kept):  # of the same network, before it learned
        if other.network == key.network and other.weights != key.weights:
            _kept.pop(other, None)
    _kept.pop(key, None)
    _kept[key] = predictor
    while sum(one.held for one in list(_kept.values())) > most:
        _kept.pop(next(iter(_kept)), None)
    if _lull is not None:
        _lull.cancel()
    _lull = Timer(_MINUTE, _rest)
    _lull.daemon = True
    _lull.start()


def clear() -> None:
    """Let go of everything."""
    _kept.clear()


def _rest() -> None:
    """Give back what only the next tile has a use for."""
    for key in list(_kept):
        predictor = _kept.pop(key, None)  # no run begins with it meanwhile
        if predictor is not None:
            predictor.rest()
            _kept.setdefault(key, predictor)


def _fingerprint(tensor: torch.Tensor) -> bytes:
    """Hash the sums of every 4099th word: of all words it would take ten times as long.

    As 4099 is a prime, channels that change places change the sums, too.
    """
    whole = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    end = len(whole) // (8 * _WORDS) * (8 * _WORDS)
    found = hashlib.blake2b(whole[:end].view("int64").reshape(-1, _WORDS).sum(0), digest_size=16)
    found.update(whole[end:].tobytes())
    return found.digest()


def _forget(network: weakref.ref[Any]) -> None:
    """Let go of what was kept for a network that is gone."""
    for key in [key for key in _kept if key.network is network]:
        _kept.pop(key, None)


def _after_fork() -> None:
    """Take nothing over from the parent: its threads are not here, not even to end them."""
    global _lull
    _orphans.extend(_kept.values())
    _kept.clear()
    _lull = None


_orphans: list[Predictor] = []
# A library's memory may refer to Python's, so it goes first.
atexit.register(clear)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
