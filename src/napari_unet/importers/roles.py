"""Which outputs of an imported network mean what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from napari_unet.card import ClassInfo, Role, default_classes
from napari_unet.errors import OptionError

__all__ = ["classes_with_roles", "habitual_roles"]


def habitual_roles(n_classes: int) -> dict[str, str]:
    """Foreground and contour as they are numbered where nobody says otherwise."""
    count = max(n_classes, 2)
    if count == 3:
        return {"foreground": "1", "contour": "2"}
    return {"foreground": "+".join(map(str, range(1, count))), "contour": "none"}


def classes_with_roles(
    n_classes: int, foreground: str, contour: str, named: Sequence[ClassInfo] = ()
) -> tuple[ClassInfo, ...]:
    """Describe the classes of a network.

    Parameters
    ----------
    n_classes : int
        Outputs of the network; one output, a sigmoid, makes class 0 (below half) and class 1.
    foreground, contour : str
        Numbers of classes as ``1`` or ``1+2``; a contour can be ``none``. All others are
        background.
    named : sequence of ClassInfo
        Names and colours, where the file gives them.

    Raises
    ------
    OptionError
        If there is no such class, or one is to be both.
    """
    count = max(n_classes, 2)
    inside = {int(number) for number in foreground.split("+")}
    between = set() if contour == "none" else {int(number) for number in contour.split("+")}
    if odd := sorted((inside | between) - set(range(count))):
        raise OptionError(f"There is no class {odd[0]}; the network has 0 to {count - 1}.")
    if inside & between or len(inside | between) == count:
        raise OptionError(
            "foreground and contour must be different classes and leave one as background."
        )

    def role(number: int) -> Role:
        return (
            "foreground" if number in inside else "contour" if number in between else "background"
        )

    if named or {"foreground": foreground, "contour": contour} == habitual_roles(n_classes):
        known = tuple(named) or default_classes(count)
        return tuple(replace(info, role=role(number)) for number, info in enumerate(known))
    # The habitual names would be wrong for other roles.
    roles = [role(number) for number in range(count)]
    colors = [info.color for info in default_classes(max(count, 4))]
    return tuple(
        ClassInfo(
            kind if roles.count(kind) == 1 else f"{kind} {number}",
            "#000000" if kind == "background" else colors[number or 1],
            kind,
        )
        for number, kind in enumerate(roles)
    )
