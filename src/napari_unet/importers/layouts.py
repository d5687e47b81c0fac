"""Names of public U-Nets' weights, and what each family does that its weights cannot say.

A family is recognised when every convolution's name matches one of its patterns. A pattern says
which part of the network a name belongs to; its ``level`` counts blocks and its ``pos`` the modules
of a block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from napari_unet.errors import CheckpointError
from napari_unet.intensity import Normalisation

__all__ = ["FAMILIES", "Family", "Layout", "Unit", "find_layout", "modules_of"]

Shape = tuple[int, ...]
_LAST = 1 << 20  # a level below all numbered ones


@dataclass(frozen=True)
class Unit:
    """One convolution: its name, its weight's shape, the norm that follows, if any."""

    name: str
    shape: Shape
    norm: str | None = None
    norm_order: str | None = None  # where the positions of both in their block say it

    @property
    def is_up(self) -> bool:
        """Whether the kernel is that of a transposed convolution (even, or 1 x 2 x 2)."""
        return any(extent % 2 == 0 for extent in self.shape[2:])

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel is a single pixel."""
        return all(extent == 1 for extent in self.shape[2:])


@dataclass(frozen=True)
class Family:
    """One code base's names and habits.

    Parameters
    ----------
    name : str
        Of the code base.
    patterns : tuple of (part, regular expression, level)
        `part` is down, merge, up or head; `level` stands in where the expression has none.
    ascending : bool
        Whether the decoder is counted from the top.
    padding, order, norm_order, up_activation, up, slope : str
        What is assumed if nobody says otherwise.
    normalisation : Normalisation
        Of the images, likewise.
    """

    name: str
    patterns: tuple[tuple[str, str, int], ...] = ()
    ascending: bool = False
    padding: str = "valid"
    order: str = "skip-up"
    norm_order: str = "norm-act"
    up_activation: str = "no"
    up: str = "linear"
    slope: str = "0"
    normalisation: Normalisation = field(default_factory=Normalisation)


@dataclass(frozen=True)
class Layout:
    """Which weights are which part of a U-Net; lists of levels begin at level 0.

    Parameters
    ----------
    family : Family
        For what the weights cannot say.
    down, merge : tuple of tuple of Unit
        The convolutions of each block.
    up : tuple of Unit
        Up-convolutions, or the 1x1 convolutions after an interpolation.
    head : Unit
        The last 1x1 convolution.
    unused : tuple of str
        Modules that the family registers but does not run.
    pools : tuple of tuple of int
        Factor per pooling and axis, where they are known: only up-convolutions show them.
    """

    family: Family
    down: tuple[tuple[Unit, ...], ...]
    merge: tuple[tuple[Unit, ...], ...]
    up: tuple[Unit, ...]
    head: Unit
    unused: tuple[str, ...] = field(default=())
    pools: tuple[tuple[int, ...], ...] = field(default=())


FAMILIES = (
    Family(
        "jvanvugt/pytorch-unet",
        (
            ("down", r"down_path\.(?P<level>\d+)\.block\.(?P<pos>\d+)", 0),
            ("merge", r"up_path\.(?P<level>\d+)\.conv_block\.block\.(?P<pos>\d+)", 0),
            ("up", r"up_path\.(?P<level>\d+)\.up(\.1)?", 0),
            ("head", r"last", 0),
        ),
        order="up-skip",
        norm_order="act-norm",
    ),
    Family(
        "hayashimasa/UNet-PyTorch",
        (
            ("down", r"contract(?P<level>\d+)\.(?P<pos>\d+)", 0),
            ("merge", r"deconv(?P<level>\d+)\.(?P<pos>\d+)", 0),
            ("up", r"up(?P<level>\d+)", 0),
            ("head", r"segment", 0),
        ),
    ),
    Family(
        "johschmidt42 2D-3D U-Net",
        (
            ("down", r"down_blocks\.(?P<level>\d+)\.(conv|norm)(?P<pos>\d)", 0),
            ("merge", r"up_blocks\.(?P<level>\d+)\.(conv|norm)(?P<pos>[12])", 0),
            ("up", r"up_blocks\.(?P<level>\d+)\.(up|(conv|norm)(?P<pos>0))", 0),
            ("head", r"conv_final", 0),
        ),
        order="up-skip",
        norm_order="act-norm",
        up_activation="yes",
        up="nearest",
    ),
    Family(
        "milesial/Pytorch-UNet",
        (
            ("down", r"inc\.double_conv\.(?P<pos>\d+)", 0),
            ("down", r"down(?P<level>\d+)\.maxpool_conv\.1\.double_conv\.(?P<pos>\d+)", 0),
            ("merge", r"up(?P<level>\d+)\.conv\.double_conv\.(?P<pos>\d+)", 0),
            ("up", r"up(?P<level>\d+)\.up", 0),
            ("head", r"outc\.conv", 0),
        ),
        padding="same",
    ),
    Family(
        "labmlai annotated U-Net",
        (
            ("down", r"down_conv\.(?P<level>\d+)\.(?P<pos>first|second)", 0),
            ("down", r"middle_conv\.(?P<pos>first|second)", _LAST),
            ("merge", r"up_conv\.(?P<level>\d+)\.(?P<pos>first|second)", 0),
            ("up", r"up_sample\.(?P<level>\d+)\.up", 0),
            ("head", r"final_conv", 0),
        ),
        padding="same",
        order="up-skip",
    ),
    Family(
        "Freiburg U-Net",
        (
            # Who trains on gives the first and the last layer names of their own.
            ("down", r"conv_d(?P<level>\d+)(?P<pos>a-b|b-c)([-_]\w+)?", 0),
            ("merge", r"conv_u(?P<level>\d+)(?P<pos>b-c|c-d)", 0),
            ("up", r"upconv_[du]\d+[cd]_u(?P<level>\d+)a", 0),
            ("head", r"conv_(d0c|u0d)-score([-_]\w+)?", 0),
        ),
        ascending=True,
        order="up-skip",
        up_activation="yes",
        slope="0.1",
        normalisation=Normalisation("min-max", shift=-0.5),
    ),
    Family(
        "napari-valid-unet",
        (
            ("down", r"down\.(?P<level>\d+)\.(?P<pos>\d+)", 0),
            ("merge", r"merge\.(?P<level>\d+)\.(?P<pos>\d+)", 0),
            ("up", r"up\.(?P<level>\d+)\.(?P<pos>\d+)", 0),
            ("head", r"head", 0),
        ),
        ascending=True,
    ),
)

_Place = tuple[str, int, int]
_POSITIONS = {"first": "1", "second": "2", "a-b": "1", "b-c": "2", "c-d": "3"}


def modules_of(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Names and weight shapes of the modules that have a weight, in the order of the file."""
    return {
        key.removesuffix(".weight"): shape
        for key, shape in shapes.items()
        if key.endswith(".weight")
    }


def find_layout(shapes: Mapping[str, Shape]) -> Layout | None:
    """Recognise a family by its names.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of a state dict, without wrappers.

    Returns
    -------
    Layout or None
        None if the names are of no known family.

    Raises
    ------
    CheckpointError
        If the names are of a family but something of it is missing.
    """
    modules = modules_of(shapes)
    for family in FAMILIES:
        places = {name: _place(family, name) for name in modules}
        known = {name: place for name, place in places.items() if place is not None}
        convolutions = [name for name, shape in modules.items() if len(shape) > 1]
        if convolutions and all(name in known for name in convolutions):
            return _layout(family, modules, known)
    return None


def _place(family: Family, name: str) -> _Place | None:
    """Part, level and position of a module, or None if the family has no such name."""
    for part, pattern, level in family.patterns:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            # Nine digits are more than any network has, and keep the conversion quick.
            digits = (groups.get("level") or str(level))[:9]
            position = _POSITIONS.get(groups.get("pos") or "", groups.get("pos"))
            return part, int(digits), int((position or "-1")[:9])
    return None


def _layout(family: Family, modules: Mapping[str, Shape], known: Mapping[str, _Place]) -> Layout:
    """Sort the modules of a family into parts, levels and positions."""
    parts: dict[str, dict[int, list[tuple[int, str]]]] = {}
    for name, (part, level, position) in known.items():
        parts.setdefault(part, {}).setdefault(level, []).append((position, name))
    blocks = {
        part: [_units(levels[level], modules) for level in sorted(levels)]
        for part, levels in parts.items()
    }
    if not family.ascending:
        for part in ("merge", "up"):
            blocks.get(part, []).reverse()
    if family.name.startswith("milesial") and "up" not in blocks:
        raise CheckpointError(
            "This is a milesial/Pytorch-UNet with bilinear up-sampling, which aligns the corners "
            "of every tile and so cannot be run tile by tile; train it with bilinear=False."
        )
    unused = [unit for units in blocks.get("up", []) for unit in units[1:] if units[0].is_up]
    ups: list[Unit] = []
    for units in blocks.get("up", []):
        spare = [unit for unit in units if unit in unused]
        # The norm stands behind the convolution that is not run.
        norm = next((unit.norm for unit in spare if unit.norm), units[0].norm)
        ups.append(replace(units[0], norm=norm))
    heads = [unit for units in blocks.get("head", []) for unit in units]
    if len(heads) != 1 or any(
        len(units) - len(set(units) & set(unused)) != 1 for units in blocks.get("up", [])
    ):
        raise CheckpointError(f"This looks like {family.name}, but convolutions are missing.")
    return Layout(
        family,
        tuple(blocks.get("down", ())),
        tuple(blocks.get("merge", ())),
        tuple(ups),
        heads[0],
        tuple(unit.name for unit in unused),
    )


def _units(found: Sequence[tuple[int, str]], modules: Mapping[str, Shape]) -> tuple[Unit, ...]:
    """Pair each convolution of a block with the norm behind it."""
    units: list[Unit] = []
    before, is_doubtful = 0, False
    # At the same position, as conv1 and norm1, the convolution comes first.
    for position, name in sorted(found, key=lambda item: (item[0], len(modules[item[1]]) == 1)):
        if len(modules[name]) > 1:
            # A dropout before the norm has a number, too: then the activation stands behind it.
            is_doubtful |= bool(units) and position - before > 3
            units.append(Unit(name, modules[name]))
            before = position
        elif units and units[-1].norm is None:
            order = {1: "norm-act", 2: "act-norm"}.get(position - before)
            units[-1] = replace(units[-1], norm=name, norm_order=order)
        else:
            raise CheckpointError(f"{name} is a norm or activation in an unknown place.")
    if not units:
        raise CheckpointError("A block of the network has no convolution.")
    if is_doubtful:
        units = [replace(u, norm_order=None) if u.norm_order == "act-norm" else u for u in units]
    return tuple(units)
