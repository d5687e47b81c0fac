"""What is trained and what trains it: network, running mean, optimiser, schedule; one step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from napari_unet.devices import (
    arithmetic,
    is_out_of_memory,
    memory_layout,
    resolve_device,
    resolve_precision,
)
from napari_unet.errors import CheckpointError, MemoryLimitError
from napari_unet.model import UNet
from napari_unet.training.loss import valid_part, weighted_cross_entropy
from napari_unet.training.recipe import Recipe
from napari_unet.training.schedule import build_optimiser
from napari_unet.training.state import pack_optimiser, unpack_optimiser
from napari_unet.training.tiles import Batch

__all__ = ["Run"]

_PARTS = ("network", "mean", "optimiser")


class Run:
    """A training in progress.

    Parameters
    ----------
    network : UNet
        Where it starts; left as it is.
    recipe : Recipe
        How it is trained.
    total : int
        Steps in all.
    """

    def __init__(self, network: UNet, recipe: Recipe, total: int) -> None:
        self.recipe = recipe
        self.device = resolve_device(recipe.device)
        self.dtype = _precision(recipe.precision, self.device, network.config.ndim)
        self.tf32 = recipe.precision == "tf32"
        self.layout = memory_layout(self.device, network.config.ndim)
        self.trim = network.config.geometry.trim
        instead = "close other programs" if self.device.type == "cpu" else "choose the CPU"
        with _enough_memory(self.device, "the network alone", instead):
            self.network = copy.deepcopy(network).to(self.device)
            self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
            self.mean: AveragedModel = AveragedModel(
                self.network, multi_avg_fn=_Mean(recipe.average), use_buffers=True
            )
        self.optimiser, self.schedule = build_optimiser(
            self.network.parameters(), recipe.optimisation, total
        )
        # float16 has too few exponents for small gradients; it is a GPU's.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    @property
    def averaged(self) -> UNet:
        """The network that is kept."""
        found = self.mean.module
        assert isinstance(found, UNet)
        return found

    @property
    def rate(self) -> float:
        """Learning rate now."""
        return float(self.optimiser.param_groups[0]["lr"])

    def step(self, batch: Batch, number: int) -> float:
        """Learn from a batch.

        Parameters
        ----------
        batch : Batch
            Tiles.
        number : int
            Of the step: with the seed it decides what dropout drops.

        Returns
        -------
        float
            The loss; where it is not finite, nothing was learned.

        Raises
        ------
        MemoryLimitError
            If the batch does not fit into the device's memory.
        """
        self.network.train()
        size = " x ".join(map(str, batch.images.shape[2:]))
        tiles = f"{len(batch.images)} tiles of {size} px a step"
        with (
            _enough_memory(self.device, tiles, "choose a smaller tile or fewer tiles a step"),
            self._randomness(number),
            arithmetic(self.device, tf32=self.tf32, one_shape=True),
        ):
            return self._learn(batch)

    def _learn(self, batch: Batch) -> float:
        images = batch.images.to(self.device, non_blocking=True)
        images = images.contiguous(memory_format=self.layout)
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=half):
            logits = self.network(images)
        loss = weighted_cross_entropy(
            valid_part(logits, self.trim),
            batch.classes.to(self.device, non_blocking=True),
            batch.weights.to(self.device, non_blocking=True),
        )
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            return value
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.recipe.optimisation.clip:
            self.scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optimisation.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        self.mean.update_parameters(self.network)
        return value

    def _randomness(self, number: int) -> AbstractContextManager[None]:
        """Random numbers of a step, which leave those of the rest of the program alone."""
        if not self.network.config.dropout:
            return nullcontext()
        return _seeded(self.device, (self.recipe.seed, number))

    def tensors(self) -> dict[str, Tensor]:
        """All that changes with the steps and is a tensor."""
        parts = (self.network.state_dict(), self.mean.state_dict(), self._packed()[0])
        return {
            f"{part}.{key}": tensor
            for part, tensors in zip(_PARTS, parts, strict=True)
            for key, tensor in tensors.items()
        }

    def numbers(self) -> dict[str, Any]:
        """All else, as JSON types."""
        return {
            "optimiser": self._packed()[1],
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Put `tensors` and `numbers` back.

        Raises
        ------
        CheckpointError
            If they are of another network.
        """
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part in parts:
                parts[part][name] = tensor
        try:
            self.network.load_state_dict(parts["network"])
            self.mean.load_state_dict(parts["mean"])
            unpack_optimiser(self.optimiser, parts["optimiser"], numbers["optimiser"])
            self.schedule.load_state_dict(numbers["schedule"])
            if numbers["scaler"]:  # there is none of a device that needs none
                self.scaler.load_state_dict(numbers["scaler"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                "The saved state is of another network; delete it to begin again."
            ) from error

    def _packed(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        return pack_optimiser(self.optimiser)


def _precision(name: str, device: torch.device, ndim: int) -> torch.dtype:
    """As for segmenting; but processors with bfloat16 in hardware learn in mixed precision."""
    if name == "auto" and device.type == "cpu":
        found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = found.get("avx512_bf16") or found.get("amx_bf16")
        return torch.bfloat16 if fast else torch.float32
    return resolve_precision(name, device, ndim)


class _Mean:
    """Running mean of weights: young means follow faster, or they would keep the beginning."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, mean: Any, now: Any, count: Any) -> None:
        number = float(count)
        share = 1 - min(self.decay, (1 + number) / (10 + number))
        if not torch.is_floating_point(mean[0]):
            for kept, value in zip(mean, now, strict=True):
                kept.copy_(value)
        elif share == 1:
            torch._foreach_copy_(mean, now)
        else:
            torch._foreach_lerp_(mean, now, share)


@contextmanager
def _enough_memory(device: torch.device, what: str, advice: str) -> Iterator[None]:
    """Say what to do where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            message = f"Out of memory on {device} with {what}; {advice}."
            raise MemoryLimitError(message, device.type) from error
        raise


@contextmanager
def _seeded(device: torch.device, numbers: tuple[int, ...]) -> Iterator[None]:
    """Seed torch's random numbers on a device for a while, and no others."""
    if device.type == "mps":
        read, write = torch.mps.get_rng_state, torch.mps.set_rng_state
        sow: Any = torch.mps.manual_seed
    else:
        source: Any = torch.default_generator
        if device.type == "cuda":
            here = torch.cuda.current_device() if device.index is None else device.index
            source = torch.cuda.default_generators[here]
        read, write, sow = source.get_state, source.set_state, source.manual_seed
    before = read()
    try:
        sow(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
        yield
    finally:
        write(before)
