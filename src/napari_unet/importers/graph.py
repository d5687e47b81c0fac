"""Unknown names: the shapes of the convolutions alone, where only one U-Net has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise

from napari_unet.errors import CheckpointError
from napari_unet.importers.layouts import Family, Layout, Shape, Unit, modules_of

__all__ = ["match_graph"]

_UNKNOWN = Family("unknown names, matched by shape")
_MOST_STEPS = 20_000
_MOST_MATCHES = 50

Pair = tuple[Unit, Unit]


def match_graph(shapes: Mapping[str, Shape], *, ordered: bool) -> Layout:
    """Find the only U-Net whose convolutions have these shapes.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Of a state dict, in the order of the file.
    ordered : bool
        Whether that order is the one in which modules were made; it decides between networks that
        shapes alone cannot tell apart.

    Raises
    ------
    CheckpointError
        If no U-Net has these shapes, or several have.
    """
    modules = modules_of(shapes)
    convolutions = [Unit(name, shape) for name, shape in modules.items() if len(shape) > 1]
    norms = [name for name, shape in modules.items() if len(shape) == 1]
    if len({len(unit.shape) for unit in convolutions}) != 1 or len(convolutions[0].shape) < 4:
        raise CheckpointError("The weights are not those of a U-Net of 2 or 3 dimensions.")
    blocks = [unit for unit in convolutions if not unit.is_up and not unit.is_pointwise]
    ups = [unit for unit in convolutions if unit.is_up]
    ones = [unit for unit in convolutions if unit.is_pointwise]
    depth, odd = divmod(len(blocks) // 2 - 1, 2)
    if len(blocks) % 2 or odd or not 0 <= depth < 12 or len(ups) + len(ones) != depth + 1:
        raise CheckpointError(
            f"The names are of no known U-Net, and {len(blocks)} convolutions, {len(ups)} "
            f"up-convolutions and {len(ones)} of one pixel do not make one: a U-Net of depth d has "
            "4 d + 2, d and 1."
        )
    units = _with_norms(convolutions, blocks, norms, modules)
    blocks, ups, ones = ([units[u.name] for u in part] for part in (blocks, ups, ones))
    pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
    place = {name: index for index, name in enumerate(modules)} if ordered else None
    matches = _found(_matches(pairs, ups, ones, depth), place)
    if not matches:
        # A U-Net but for its concatenations: the caller tells what is wrong with each of them.
        near = _found(_matches(pairs, ups, ones, depth, exact=False), place)
        if len(near) == 1:
            return near[0]
    if len(matches) != 1:
        how = "several U-Nets have" if matches else "no U-Net has"
        raise CheckpointError(
            f"The names are of no known U-Net, and {how} convolutions of these shapes; convert "
            "the file with the code that wrote it."
        )
    return matches[0]


def _with_norms(
    convolutions: Sequence[Unit],
    blocks: Sequence[Unit],
    norms: Sequence[str],
    modules: Mapping[str, Shape],
) -> dict[str, Unit]:
    """Give each convolution its norm: the n-th norm is the n-th convolution's."""
    owners = list(blocks)
    if len(norms) > len(blocks):
        # A norm behind each up-convolution as well, none behind the head.
        owners = [u for u in convolutions if not u.is_pointwise]
    if norms and (
        len(norms) != len(owners)
        or any(
            modules[norm] != ((u.shape[1] if u.is_up else u.shape[0]),)
            for norm, u in zip(norms, owners, strict=True)
        )
    ):
        raise CheckpointError("The names are of no known U-Net, and its norms fit no convolutions.")
    units = {u.name: u for u in convolutions}
    for norm, u in zip(norms, owners, strict=False):
        units[u.name] = replace(u, norm=norm, norm_order=_norm_order(u, norm, convolutions))
    return units


def _norm_order(unit: Unit, norm: str, convolutions: Sequence[Unit]) -> str | None:
    """Tell from positions in one sequence: next to each other, or an activation between them."""
    (parent, here), (other, there) = _position(unit.name), _position(norm)
    if parent != other or here is None or there is None:
        return None
    beside = (_position(u.name) for u in convolutions)
    places = sorted(number for name, number in beside if name == parent and number is not None)
    # What stands between them may be a dropout: then the activation stands behind the norm, and no
    # convolution follows it directly. An up-convolution is alone and goes by the blocks.
    if there - here == 2 and not unit.is_up and 3 not in (b - a for a, b in pairwise(places)):
        return None
    return {1: "norm-act", 2: "act-norm"}.get(there - here)


def _position(name: str) -> tuple[str, int | None]:
    """Split off the position in a sequence, if the name ends in one."""
    parent, _, last = name.rpartition(".")
    return parent, int(last) if last.isdecimal() and len(last) < 7 else None


def _found(matches: Iterator[Layout], place: Mapping[str, int] | None) -> list[Layout]:
    """Take a few matches; where there are several, those in the order of the file."""
    found = list(islice(matches, _MOST_MATCHES))
    if len(found) > 1 and place is not None:
        return [match for match in found if _in_order(match, place)]
    return found


def _matches(
    pairs: Sequence[Pair],
    ups: Sequence[Unit],
    ones: Sequence[Unit],
    depth: int,
    *,
    exact: bool = True,
) -> Iterator[Layout]:
    """Try every way to lay the convolutions out as a U-Net, up to a limit.

    Without `exact` a block may take other numbers of channels than are concatenated for it.
    """
    steps = 0
    joints = list(ups) or list(ones)

    def downs(path: list[Pair]) -> Iterator[list[Pair]]:
        nonlocal steps
        steps += 1
        if steps > _MOST_STEPS:
            return
        if len(path) == depth + 1:
            yield path
            return
        for pair in pairs:
            if pair not in path and (not path or pair[0].shape[1] == path[-1][1].shape[0]):
                yield from downs([*path, pair])

    def merges(down: list[Pair], merge: list[Pair], up: list[Unit]) -> Iterator[Layout]:
        nonlocal steps
        steps += 1
        if steps > _MOST_STEPS:
            return
        level = len(merge)
        if level == depth:
            for head in ones:
                if head not in up and head.shape[1] == down[0][1].shape[0]:
                    yield Layout(_UNKNOWN, tuple(down), tuple(merge), tuple(up), head)
            return
        skip = down[level][1].shape[0]
        for pair in pairs:
            if pair in down or pair in merge or pair[1].shape[0] != skip:
                continue
            need = (down[level + 1][1].shape[0], pair[0].shape[1] - skip)
            for joint in joints:
                have = joint.shape[:2] if joint.is_up else joint.shape[1::-1]
                if joint not in up and (have == need or (not exact and have[0] == need[0])):
                    yield from merges(down, [*merge, pair], [*up, joint])

    if any(first.shape[0] != second.shape[1] for first, second in pairs):
        return
    for down in downs([]):
        yield from merges(down, [], [])


def _in_order(layout: Layout, place: Mapping[str, int]) -> bool:
    """Whether the convolutions are made in the order in which they run."""
    down = [place[pair[0].name] for pair in layout.down]
    merge = [place[pair[0].name] for pair in layout.merge]
    up = [place[unit.name] for unit in layout.up]
    return (
        down == sorted(down)
        and merge == sorted(merge, reverse=True)
        and up == sorted(up, reverse=True)
    )
