"""From the names and shapes of weights to a network: what they say, and what has to be assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from napari_unet.card import Card, ClassInfo
from napari_unet.config import UNetConfig
from napari_unet.errors import CheckpointError, OptionError
from napari_unet.importers.concatenations import Level, check_concatenations
from napari_unet.importers.graph import match_graph
from napari_unet.importers.layouts import Layout, Shape, Unit, find_layout
from napari_unet.importers.origin import Origin, check_assumptions
from napari_unet.importers.reading import Reading
from napari_unet.importers.roles import classes_with_roles, habitual_roles
from napari_unet.intensity import Normalisation

__all__ = ["Finding", "examine"]

_STATISTICS = ("weight", "bias", "running_mean", "running_var")
# What a person may know better even where the file says something.
_CHANGEABLE = ("normalisation", "shift", "foreground", "contour")


@dataclass(frozen=True)
class Finding:
    """What a state dict is.

    Parameters
    ----------
    config : UNetConfig
        The network.
    normalisation : Normalisation
        Read, assumed, or as given.
    classes : tuple of ClassInfo
        Of the output, with what each means.
    names : mapping of str to str
        For each of our network's weights the file's; a bias or statistic that the file lacks is
        left out.
    origin : Origin
        How all this came to be known.
    """

    config: UNetConfig
    normalisation: Normalisation
    classes: tuple[ClassInfo, ...]
    names: Mapping[str, str]
    origin: Origin


def examine(reading: Reading, assume: Mapping[str, object] | None = None) -> Finding:
    """Recognise a network.

    Parameters
    ----------
    reading : Reading
        A file's weights without wrappers, and what else it says.
    assume : mapping
        What the person knows; see `check_assumptions`.

    Raises
    ------
    CheckpointError
        If it is none that can be run; the message says why.
    OptionError
        If an assumption is none, or the file itself contradicts it.
    """
    given = check_assumptions(assume or {})
    if reading.card is not None:
        return _declared(reading.card, reading, given)
    shapes = {key: tuple(tensor.shape) for key, tensor in reading.tensors.items()}
    layout = reading.layout or find_layout(shapes) or match_graph(shapes, ordered=reading.ordered)
    units = _units(layout)
    _check_blocks(layout, units)
    norm = _norm(layout, units, shapes)
    read: dict[str, Any] = _read(layout)
    interpolated = bool(layout.up) and not layout.up[0].is_up
    up_norm = bool(layout.up) and layout.up[0].norm is not None
    inferred = {"up-sampling": "interpolation" if interpolated else "up-convolution"}
    inferred |= _positions(layout, given)
    asked = _open_questions(layout, norm, interpolated, reading)
    # What the file says itself comes first, then the person, then what its names tell, then habit.
    said = {key: value for key, value in _said(reading, asked).items() if key in asked}
    told = {k: v for k, v in inferred.items() if k not in said and k not in given}
    questions = {k: v for k, v in asked.items() if k not in said and k not in told}
    if odd := [key for key in given if key not in questions and key not in _CHANGEABLE]:
        raise OptionError(
            f"{odd[0]} is no open question of this file; open are {', '.join(questions)}."
        )
    facts = {**asked, **told, **said, **given}
    config = _config(read, {"norm": norm, **facts}, interpolated=interpolated, up_norm=up_norm)
    names = _names(config, units)
    return Finding(
        config,
        _normalisation(reading, layout.family.normalisation, facts),
        classes_with_roles(
            config.n_classes, facts["foreground"], facts["contour"], reading.classes
        ),
        _renamed(config, names, shapes, layout.unused),
        Origin(
            format=reading.kind,
            family=layout.family.name,
            read={**_told(config, up_norm=up_norm), **said},
            inferred=told,
            assumed={key: value for key, value in questions.items() if key not in given},
            given=given,
            ignored=layout.unused,
            warnings=(*reading.warnings, *_border_warning(layout, facts)),
        ),
    )


def _declared(card: Card, reading: Reading, given: Mapping[str, str]) -> Finding:
    """Believe a file that says all about its network."""
    if given:
        raise OptionError("The file says all about its network; assume nothing.")
    return Finding(
        card.config,
        card.normalisation,
        card.classes,
        {key: key for key in reading.tensors},
        Origin(
            format=reading.kind,
            family="napari-valid-unet",
            read=_told(card.config, up_norm=card.config.up_norm),
            warnings=reading.warnings,
        ),
    )


def _units(layout: Layout) -> dict[tuple[str, int, int], Unit]:
    """Each convolution by part, level and number."""
    found: dict[tuple[str, int, int], Unit] = {("head", 0, 0): layout.head}
    for part, blocks in (("down", layout.down), ("merge", layout.merge)):
        for level, block in enumerate(blocks):
            found.update({(part, level, number): unit for number, unit in enumerate(block)})
    found.update({("up", level, 0): unit for level, unit in enumerate(layout.up)})
    return found


def _check_blocks(layout: Layout, units: Mapping[tuple[str, int, int], Unit]) -> None:
    """See that there are as many blocks as a U-Net has, and that each takes what it is given."""
    depth = len(layout.down) - 1
    if depth < 0 or len(layout.merge) != depth or len(layout.up) != depth:
        raise CheckpointError(
            f"{depth + 1} blocks down, {len(layout.up)} up-samplings and {len(layout.merge)} "
            f"blocks up are no U-Net of {layout.family.name}; parts of the file are missing."
        )
    if any(len(block) != 2 for block in (*layout.down, *layout.merge)):
        raise CheckpointError("A block has not two convolutions; only such U-Nets are run.")
    dims = {len(unit.shape) for unit in units.values()}
    if len(dims) != 1 or dims - {4, 5}:
        raise CheckpointError("The weights are not those of a U-Net of 2 or 3 dimensions.")
    for unit in units.values():
        if min(unit.shape) < 1:
            raise CheckpointError(f"{unit.name}.weight has no values; get the file again.")
    for unit in layout.up:
        if unit.is_up is not layout.up[0].is_up or any(k > 2 for k in unit.shape[2:]):
            raise CheckpointError(
                f"{unit.name} has a kernel of {' x '.join(map(str, unit.shape[2:]))}; only "
                "up-convolutions of 2 px, side by side, are run."
            )
    _check_channels(layout)


def _check_channels(layout: Layout) -> None:
    """See, level by level, that each decoder block takes what is concatenated for it."""
    dims = len(layout.head.shape) - 2
    pools = _pools(layout)
    levels = [
        Level(
            down=_taken(block),
            width=block[1].shape[0],
            pool=pools[level] if level < len(pools) else (),
            merge=_taken(layout.merge[level]) if level < len(pools) else (),
            up=_up_width(layout.up[level]) if level < len(pools) else 0,
            takes=layout.merge[level][0].shape[1] if level < len(pools) else 0,
            # Weights do not say how the encoder's map was cropped: as it has to be.
            cut=_centre,
        )
        for level, block in enumerate(layout.down)
    ]
    check_concatenations(levels, (None,) * dims)


def _taken(block: Sequence[Unit]) -> tuple[int, ...]:
    """Pixels that the convolutions of a block take off along each axis."""
    extents = zip(*(unit.shape[2:] for unit in block), strict=True)
    return tuple(sum(extent - 1 for extent in axis) for axis in extents)


def _centre(_axis: int, have: int, want: int) -> tuple[int, int]:
    return (have - want) // 2, (have - want) // 2 + want


def _pools(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """Factor between levels; an interpolation has no weights, and 2 in every family."""
    dims = len(layout.head.shape) - 2
    return layout.pools or tuple(
        tuple(unit.shape[2:]) if unit.is_up else (2,) * dims for unit in layout.up
    )


def _up_width(unit: Unit) -> int:
    return unit.shape[1] if unit.is_up else unit.shape[0]


def _norm(
    layout: Layout, units: Mapping[tuple[str, int, int], Unit], shapes: Mapping[str, Shape]
) -> str:
    """Whether blocks have batch norms: all of them or none."""
    blocks = [unit for (part, _, _), unit in units.items() if part in ("down", "merge")]
    normed = [unit for unit in units.values() if unit.norm]
    if layout.head.norm:
        raise CheckpointError("A norm after the last convolution cannot be run.")
    if not normed:
        return "none"
    for unit in normed:
        if f"{unit.norm}.running_mean" not in shapes or f"{unit.norm}.running_var" not in shapes:
            raise CheckpointError(
                f"{unit.norm} has no running statistics: it is a group, layer or instance norm or "
                "a learned activation, which cannot be run tile by tile and stay exact."
            )
    ups = sum(unit.norm is not None for unit in layout.up)
    if any(unit.norm is None for unit in blocks) or ups not in (0, len(layout.up)):
        raise CheckpointError("Only some convolutions have a batch norm; such a U-Net is not run.")
    return "batch"


def _read(layout: Layout) -> dict[str, Any]:
    """What shapes alone say, as fields of the configuration."""
    return {
        "in_channels": layout.down[0][0].shape[1],
        "n_classes": layout.head.shape[0],
        "widths": tuple(block[1].shape[0] for block in layout.down),
        "ndim": len(layout.head.shape) - 2,
        "kernels": tuple(block[0].shape[2:] for block in layout.down),
        "pools": _pools(layout),
        "up_widths": tuple(_up_width(unit) for unit in layout.up),
    }


def _config(
    read: Mapping[str, Any], facts: Mapping[str, str], *, interpolated: bool, up_norm: bool
) -> UNetConfig:
    """Build the configuration from what was read and what is known or assumed."""
    try:
        return UNetConfig.from_dict(
            {
                **read,
                "norm": facts["norm"],
                "norm_order": facts.get("norm-order", "norm-act"),
                "slope": float(facts["slope"]),
                "up": facts["up"] if interpolated else "upconv",
                "up_activation": facts.get("up-activation") == "yes",
                "up_norm": up_norm,
                "concat": facts.get("order", "skip-up"),
                "padding": facts["padding"],
            }
        )
    except OptionError as error:
        raise CheckpointError(f"The weights make no network: {error}") from error


def _positions(layout: Layout, given: Mapping[str, str]) -> dict[str, str]:
    """What gaps in the numbering of a block's modules say, unless the person knows better."""
    orders = {unit.norm_order for block in (*layout.down, *layout.merge) for unit in block}
    found: dict[str, str] = {}
    order = orders.pop() if len(orders) == 1 else None
    if order and given.get("norm-order", order) == order:
        found["norm-order"] = order
        ups = {unit.norm_order for unit in layout.up}
        # Where the norm comes last, the activation has a number of its own before it.
        if order == "act-norm" and len(ups) == 1 and (after := ups.pop()):
            found["up-activation"] = "yes" if after == "act-norm" else "no"
    return found


def _open_questions(
    layout: Layout, norm: str, interpolated: bool, reading: Reading
) -> dict[str, str]:
    """What weights cannot say, with the family's habit."""
    family = layout.family
    found = {"padding": family.padding}
    if layout.up:
        found |= {"order": family.order, "up-activation": family.up_activation}
    if interpolated:
        found["up"] = family.up
    if norm == "batch":
        found["norm-order"] = family.norm_order
    normalisation = reading.normalisation or family.normalisation
    found |= {
        "slope": family.slope,
        "normalisation": normalisation.kind,
        "shift": f"{normalisation.shift:g}",
        **habitual_roles(layout.head.shape[0]),
    }
    for role in ("foreground", "contour") if reading.classes else ():
        numbers = [str(n) for n, info in enumerate(reading.classes) if info.role == role]
        found[role] = "+".join(numbers) or "none"
    return found


def _said(reading: Reading, asked: Mapping[str, str]) -> dict[str, str]:
    """What the file itself says of what weights cannot."""
    keys = [
        *(("normalisation", "shift") if reading.normalisation else ()),
        *(("foreground", "contour") if reading.classes else ()),
    ]
    return {**{key: asked[key] for key in keys}, **reading.facts}


def _normalisation(
    reading: Reading, habit: Normalisation, facts: Mapping[str, str]
) -> Normalisation:
    """Return the file's own, or the family's, with what the person said instead."""
    base = (reading.normalisation or habit).to_dict()
    changed = {"kind": facts["normalisation"], "shift": float(facts["shift"])}
    return Normalisation.from_dict({**base, **changed})


def _border_warning(layout: Layout, facts: Mapping[str, str]) -> tuple[str, ...]:
    """Say how the borders of the image come out where a network was trained with padding."""
    if facts["padding"] == "same":
        return (
            "Its convolutions are padded: near the image's edge the result differs from that of "
            "the program that trained it, for zeros were filled in there and mirrored pixels here.",
        )
    if layout.family.padding == "same":
        return (
            "It was trained with padded convolutions and is run as a valid network: what it sees "
            "at borders differs from its training.",
        )
    return ()


def _names(
    config: UNetConfig, units: Mapping[tuple[str, int, int], Unit]
) -> dict[str, tuple[str, str]]:
    """Pair the names of our modules with the file's: ours -> (theirs, conv or norm)."""
    found: dict[str, tuple[str, str]] = {}
    first = config.norm_order == "norm-act"
    for (part, level, number), unit in units.items():
        if part == "head":
            found["head"] = (unit.name, "conv")
            continue
        if part == "up":
            start = 0 if config.up == "upconv" else 1
            after = 1 if first or not config.up_activation else 2
        else:
            start, after = number * (2 + (config.norm == "batch")), 1 if first else 2
        found[f"{part}.{level}.{start}"] = (unit.name, "conv")
        if unit.norm:
            found[f"{part}.{level}.{start + after}"] = (unit.norm, "norm")
    return found


def _renamed(
    config: UNetConfig,
    names: Mapping[str, tuple[str, str]],
    shapes: Mapping[str, Shape],
    unused: Sequence[str],
) -> dict[str, str]:
    """Our weights' names -> the file's; everything in the file must have found its place."""
    found: dict[str, str] = {}
    for ours, (theirs, kind) in names.items():
        fields = ("weight", "bias") if kind == "conv" else (*_STATISTICS, "num_batches_tracked")
        found.update({f"{ours}.{f}": f"{theirs}.{f}" for f in fields if f"{theirs}.{f}" in shapes})
    left = set(shapes) - set(found.values())
    left = {key for key in left if not key.startswith(tuple(f"{name}." for name in unused))}
    if left:
        raise CheckpointError(
            f"The file holds {sorted(left)[0]} ({len(left)} such weights), for which a plain valid "
            "U-Net has no place; it is another network."
        )
    return found


def _told(config: UNetConfig, *, up_norm: bool) -> dict[str, str]:
    """What was read, for people."""
    kernels = {extent for row in config.kernels for extent in row}
    told = {
        "dimensions": str(config.ndim),
        "channels": str(config.in_channels),
        "classes": str(config.n_classes),
        "depth": str(config.depth),
        "widths": " ".join(map(str, config.widths)),
        "up-widths": " ".join(map(str, config.up_widths)) or "none",
        "kernels": " ".join(map(str, sorted(kernels))),
        "norm": config.norm,
    }
    return {**told, "norm after up-sampling": "yes"} if up_norm else told
