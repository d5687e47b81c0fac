"""Everything that decides a training, in one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from napari_unet.errors import OptionError
from napari_unet.training.augment import Augmentation
from napari_unet.training.schedule import Optimisation
from napari_unet.training.targets import Targets
from napari_unet.training.weights import Weighting

__all__ = ["Recipe", "fine_tuning_recipe", "paper_recipe"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    targets, weighting, augmentation, optimisation
        What it shall answer, what counts how much, how tiles are changed, how fast it learns.
    steps : int, optional
        Steps of the optimiser; needed unless `minutes` is given.
    minutes : float, optional
        Time to spend instead: the first steps are timed, and the schedule laid out accordingly.
    write : int or tuple of int
        Output pixels of a tile along each axis; the network reads its halo besides.
    batch : int
        Tiles of a step.
    average : float
        Decay of the running mean of the weights, which is what is kept; 0 keeps the weights.
    every : int, optional
        Steps between two looks at the held-out images; a twentieth of the steps if left out.
    patience : int
        Looks without a better score after which the training ends; 0 is never.
    replay : float
        Part of the tiles from the replay set, if there is one.
    seed : int
        Of all random numbers.
    workers : int
        Who cuts tiles beside the network: a thread, or so many processes; changes no result.
    device, precision : str
        As for segmenting; float16 and bfloat16 are mixed precision, and ``auto`` is bfloat16 also
        on a processor that has it in hardware.

    Raises
    ------
    OptionError
        If a number is out of range.
    """

    targets: Targets = field(default_factory=Targets)
    weighting: Weighting = field(default_factory=Weighting)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimisation: Optimisation = field(default_factory=Optimisation)
    steps: int | None = None
    minutes: float | None = None
    write: int | tuple[int, ...] = 240
    batch: int = 4
    average: float = 0.998
    every: int | None = None
    patience: int = 0
    replay: float = 0.5
    seed: int = 0
    workers: int = 1
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise OptionError("Say how long to train: either steps or minutes.")
        write = (self.write,) if isinstance(self.write, int) else self.write
        least = (
            ("steps", self.steps, 1),
            ("batch", self.batch, 1),
            ("every", self.every, 1),
            ("patience", self.patience, 0),
            ("seed", self.seed, 0),
            ("workers", self.workers, 0),
            *(("tile", size, 1) for size in write),
        )
        for name, value, low in least:
            if value is not None and value < low:
                raise OptionError(f"{name} must be a whole number from {low} up, not {value}.")
        if self.minutes is not None and not 0 < self.minutes < 1e6:
            raise OptionError(f"minutes must be a number above 0, not {self.minutes}.")
        if not 0 <= self.average < 1 or not 0 <= self.replay <= 1:
            raise OptionError("average is a number from 0 up to 1, replay from 0 to 1.")

    def decisive(self) -> dict[str, Any]:
        """Return what changes the result, as JSON types: two runs that agree in it are equal."""
        document = asdict(self)
        for name in ("workers", "device"):
            del document[name]
        return {key: _plain(value) for key, value in document.items()}


def paper_recipe(targets: Targets, **changes: Any) -> Recipe:
    """Recipe of Ronneberger et al. (2015): SGD with momentum 0.99, one large tile a step.

    Mirroring and changes of scale, which the paper does not name, are left out, and so are the
    running mean of the weights and gradient clipping. The rate is for the weighted *mean* that
    this package minimises. Say how long by `steps` or `minutes` among the `changes`.
    """
    settings: dict[str, Any] = {
        "weighting": Weighting("paper"),
        "augmentation": Augmentation(mirror=False, scale=0, contrast=0.2, blur=0, noise=0),
        "optimisation": Optimisation("sgd", rate=1e-3, decay=0, clip=0),
        "write": 388,
        "batch": 1,
        "average": 0.0,
    }
    return Recipe(targets=targets, **{**settings, **changes})


def fine_tuning_recipe(**changes: Any) -> Recipe:
    """Recipe for a network that knows something already, in minutes and from few images.

    The rate is lower than for one that knows nothing, and the running mean of the weights is over
    fewer steps, as there are fewer. Say how long by `steps` or `minutes` among the `changes`.
    """
    settings: dict[str, Any] = {"optimisation": Optimisation(rate=2e-3), "average": 0.99}
    return Recipe(**{**settings, **changes})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
