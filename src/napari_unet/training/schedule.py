"""How fast the network learns, and when: the paper's SGD, or AdamW with one cycle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import lr_scheduler

from napari_unet.errors import OptionError

__all__ = ["Optimisation", "build_optimiser"]

Kind = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Optimisation:
    """An optimiser and its learning rate over time.

    Parameters
    ----------
    kind : {"adamw", "sgd"}
        AdamW whose rate rises to `rate` over the first `warm` of the steps and falls to nothing
        along half a cosine each (one cycle), or the paper's stochastic gradient descent with
        momentum 0.99 and a constant rate.
    rate : float
        Highest learning rate.
    warm : float
        Part of the steps in which the rate rises.
    decay : float
        Weight decay.
    momentum : float
        Of SGD.
    clip : float
        Longest gradient; longer ones are shortened. 0 takes them as they are.
    """

    kind: Kind = "adamw"
    rate: float = 3e-3
    warm: float = 0.1
    decay: float = 1e-3
    momentum: float = 0.99
    clip: float = 5.0

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "sgd"):
            raise OptionError(f"The optimiser is adamw or sgd, not {self.kind!r}.")
        if not 0 < self.rate < 100:
            raise OptionError(f"A learning rate is above 0 and below 100, not {self.rate!r}.")
        if not 0 < self.warm < 1 or not 0 <= self.momentum < 1:
            raise OptionError("The warm-up and the momentum are parts of 1.")
        if self.decay < 0 or self.clip < 0:
            raise OptionError("Weight decay and gradient clipping are numbers from 0 up.")


def build_optimiser(
    parameters: Iterable[nn.Parameter], settings: Optimisation, steps: int
) -> tuple[torch.optim.Optimizer, lr_scheduler.LRScheduler]:
    """Make the optimiser, and the schedule that is stepped once after each of its steps.

    Parameters
    ----------
    parameters : iterable of Parameter
        What is trained.
    settings : Optimisation
        How.
    steps : int
        In all.
    """
    if settings.kind == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(
            parameters, settings.rate, momentum=settings.momentum, weight_decay=settings.decay
        )
        return optimiser, lr_scheduler.ConstantLR(optimiser, factor=1.0, total_iters=1)
    optimiser = torch.optim.AdamW(parameters, settings.rate, weight_decay=settings.decay)
    schedule = lr_scheduler.OneCycleLR(
        optimiser,
        settings.rate,
        # One more than is used: the last step shall still move something.
        total_steps=steps + 1,
        # At least one step of rising: a rise of none is a division by zero.
        pct_start=max(settings.warm, 2 / (steps + 1)),
        cycle_momentum=False,
    )
    return optimiser, schedule
