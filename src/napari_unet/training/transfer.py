"""Where a training starts: a network from nothing, or one that knows something already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from napari_unet.card import Card, ClassInfo
from napari_unet.checkpoint import Model
from napari_unet.config import UNetConfig
from napari_unet.errors import OptionError
from napari_unet.model import UNet, he_initialise

__all__ = ["Transfer", "new_model", "transfer"]


@dataclass(frozen=True)
class Transfer:
    """A start, and what became of the old network.

    Parameters
    ----------
    model : Model
        To train; its card has the old one's normalisation, spacing and settings.
    kept, new : tuple of str
        What it knows already, and what begins at random, in words.
    """

    model: Model
    kept: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def comparable(self) -> bool:
        """Whether old and new network answer the same question."""
        return not self.new


def new_model(card: Card, seed: int) -> Model:
    """Make a network from nothing: He's initialisation (section 3 of the paper)."""
    network = UNet(card.config)
    he_initialise(network, torch.Generator().manual_seed(seed))
    return Model(card, network.eval())


def transfer(
    model: Model,
    *,
    in_channels: int | None = None,
    classes: Sequence[ClassInfo] | None = None,
    dropout: float | None = None,
    seed: int = 0,
) -> Transfer:
    """Start from a network, whatever wrote it, for other images or other classes.

    Parameters
    ----------
    model : Model
        From `load_model`; left as it is.
    in_channels : int, optional
        Channels of the images, where they differ. Each new channel sees the mean of what the old
        ones looked for, so that the sum over equal channels stays.
    classes : sequence of ClassInfo, optional
        What shall be told apart, where it differs. A class of the same name, or else the only one
        of the same role, keeps its weights.
    dropout : float, optional
        At the end of the contracting path, where it differs.
    seed : int
        Of what begins at random.

    Raises
    ------
    OptionError
        If fewer than two classes are left.
    """
    old = model.config
    channels = old.in_channels if in_channels is None else in_channels
    wanted = tuple(model.card.classes if classes is None else classes)
    if len(wanted) < 2:
        raise OptionError("A network tells at least two classes apart; name another one.")
    same = [_identity(info) for info in wanted] == [_identity(i) for i in model.card.classes]
    outputs = old.n_classes if same else len(wanted)
    config = replace(
        old,
        in_channels=channels,
        n_classes=outputs,
        dropout=old.dropout if dropout is None else dropout,
    )
    start = new_model(Card("start", config), seed).network
    weights = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    kept, new = ["the network inside"], []
    if channels != old.in_channels:
        _widen(weights, channels)
        new.append(f"its input: {channels} channels instead of {old.in_channels}, from their mean")
    if same:
        kept.append(f"its classes ({_names(wanted)})")
    else:
        sources = _sources(wanted, model.card.classes)
        _rehead(weights, start, sources, old)
        for info, source in zip(wanted, sources, strict=True):
            (new if source is None else kept).append(f"class {info.name}")
    start.load_state_dict(weights)
    card = replace(model.card, config=config, classes=wanted)
    return Transfer(Model(card, start.eval()), tuple(kept), tuple(new))


def _identity(info: ClassInfo) -> tuple[str, str]:
    return info.name, info.role


def _names(classes: Sequence[ClassInfo]) -> str:
    return ", ".join(info.name for info in classes)


def _widen(weights: dict[str, Tensor], channels: int) -> None:
    """Let the first convolution read another number of channels."""
    first = weights["down.0.0.weight"]
    mean = first.sum(dim=1, keepdim=True) / channels
    weights["down.0.0.weight"] = mean.expand(-1, channels, *first.shape[2:]).clone()


def _sources(wanted: Sequence[ClassInfo], old: Sequence[ClassInfo]) -> list[int | None]:
    """Old class of each new one: by name, else by a role that both have once."""
    names = {info.name: number for number, info in enumerate(old)}
    taken = {names[info.name] for info in wanted if info.name in names}
    found: list[int | None] = []
    for info in wanted:
        source = names.get(info.name)
        if source is None and info.role != "other":
            same = [n for n, o in enumerate(old) if o.role == info.role and n not in taken]
            alone = sum(other.role == info.role for other in wanted) == 1
            source = same[0] if len(same) == 1 and alone else None
        found.append(source)
    return found


def _rehead(
    weights: dict[str, Tensor], start: UNet, sources: Sequence[int | None], old: UNetConfig
) -> None:
    """Give the last layer other outputs; new ones begin as `start` has them."""
    fresh: dict[str, Any] = start.head.state_dict()
    for name in ("weight", "bias"):
        rows = weights[f"head.{name}"]
        if old.n_classes == 1:
            # A sigmoid of z is a softmax of (0, z).
            rows = torch.cat([torch.zeros_like(rows), rows])
        head = fresh[name].clone()
        for number, source in enumerate(sources):
            if source is not None:
                head[number] = rows[source]
        weights[f"head.{name}"] = head
