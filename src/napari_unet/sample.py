"""A picture of fluorescent nuclei, made up, to try things out without a microscope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["sample_nuclei"]

_SHAPE = (600, 800)
_SPACING = (0.65, 0.65)  # micrometres: a 10x objective on a camera with pixels of 6.5 µm
_OFFSET = 100.0  # grey levels of an empty camera pixel
_READ_NOISE = 4.0  # grey levels
_PHOTONS = 700.0  # of a nucleus of brightness 1, in each pixel


@dataclass(frozen=True)
class _Nucleus:
    """One ellipse with a wavy outline; lengths in pixels."""

    centre: tuple[float, float]
    radius: float
    stretch: float
    angle: float
    brightness: float
    waves: tuple[float, ...]

    @property
    def reach(self) -> float:
        """Radius that it surely stays within."""
        return float(self.radius * np.sqrt(self.stretch) * 1.15 + 3)


def sample_nuclei(seed: int = 3) -> tuple[NDArray[np.uint16], tuple[float, float]]:
    """Draw a field of cell nuclei as a fluorescence microscope shows them.

    Nuclei of 18 to 40 px that touch here and there, with chromatin, out-of-focus haze, uneven
    light, blur, photon noise and a camera's read noise. The same seed gives the same picture.

    Parameters
    ----------
    seed : int
        Another one gives another picture.

    Returns
    -------
    image : ndarray of uint16, of shape (600, 800)
        Y, X; grey levels of a 12-bit camera, 0 to 4095.
    spacing : tuple of float
        Micrometres per pixel along Y and X.

    Examples
    --------
    >>> image, spacing = sample_nuclei()
    >>> image.shape, str(image.dtype), spacing
    ((600, 800), 'uint16', (0.65, 0.65))
    """
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    chromatin = _chromatin(rng)
    light: NDArray[np.float32] = np.zeros(_SHAPE, np.float32)
    deep: NDArray[np.float32] = np.zeros(_SHAPE, np.float32)
    for nucleus in _place(rng):
        _draw(light, nucleus, chromatin)
    for nucleus in _place(rng, count=24):
        _draw(deep, nucleus, chromatin)
    # What lies below the plane in focus is wide and dim; its light spreads over all.
    light += 0.3 * ndimage.gaussian_filter(deep, 7)
    haze = 0.16 * _smooth(light, 24) + 0.035
    y, x = np.ogrid[-1 : 1 : _SHAPE[0] * 1j, -1 : 1 : _SHAPE[1] * 1j]
    uneven = 1.06 - 0.16 * ((y + 0.15) ** 2 + (x - 0.2) ** 2)
    seen = (ndimage.gaussian_filter(light, 1.1) + haze) * uneven
    photons = rng.poisson(_PHOTONS * seen)
    noisy = photons + _OFFSET + rng.normal(0, _READ_NOISE, _SHAPE)
    return np.clip(np.rint(noisy), 0, 4095).astype(np.uint16), _SPACING


def _place(rng: np.random.Generator, count: int = 165) -> list[_Nucleus]:
    """Scatter nuclei: most near another one, none much inside another."""
    height, width = _SHAPE
    placed: list[_Nucleus] = []
    for _ in range(count * 60):
        if len(placed) == count:
            break
        radius = float(np.clip(rng.normal(13, 2.4), 9, 19.5))
        if placed and rng.random() < 0.7:
            beside = placed[rng.integers(len(placed))]
            angle, gap = rng.uniform(0, 2 * np.pi), rng.uniform(0.86, 1.5)
            distance = gap * (radius + beside.radius)
            centre = (
                beside.centre[0] + distance * np.sin(angle),
                beside.centre[1] + distance * np.cos(angle),
            )
        else:
            centre = (rng.uniform(0, height), rng.uniform(0, width))
        if not (0 <= centre[0] < height and 0 <= centre[1] < width):
            continue
        if any(
            np.hypot(centre[0] - n.centre[0], centre[1] - n.centre[1]) < 0.86 * (radius + n.radius)
            for n in placed
        ):
            continue
        placed.append(
            _Nucleus(
                centre,
                radius,
                stretch=float(np.clip(rng.normal(1.35, 0.2), 1.0, 1.9)),
                angle=float(rng.normal(0.6, 0.8)),
                brightness=float(np.exp(np.clip(rng.normal(-0.3, 0.33), -1.1, 0.35))),
                waves=tuple(rng.normal(0, 1.2, 6)),
            )
        )
    return placed


def _chromatin(rng: np.random.Generator) -> NDArray[np.float32]:
    """Texture around 1: coarse clumps, fine grains, and the dark holes of nucleoli."""
    noise = rng.standard_normal((3, *_SHAPE), dtype=np.float32)
    coarse, fine, holes = (
        part / part.std()
        for part in (_smooth(noise[0], 3.2), _smooth(noise[1], 1.3), _smooth(noise[2], 2.4))
    )
    dark = 0.4 * np.clip(holes - 1.2, 0, 1)
    texture: NDArray[np.float32] = np.clip(1 + 0.11 * coarse + 0.09 * fine - dark, 0.3, 2)
    return texture


def _draw(light: NDArray[np.float32], nucleus: _Nucleus, chromatin: NDArray[np.float32]) -> None:
    """Add one nucleus: a dome with a soft edge."""
    (cy, cx), reach = nucleus.centre, nucleus.reach
    rows = slice(max(0, int(cy - reach)), min(light.shape[0], int(cy + reach) + 1))
    columns = slice(max(0, int(cx - reach)), min(light.shape[1], int(cx + reach) + 1))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    y, x = y - cy, x - cx
    cos, sin = np.cos(nucleus.angle), np.sin(nucleus.angle)
    along = (cos * x + sin * y) / np.sqrt(nucleus.stretch)
    across = (cos * y - sin * x) * np.sqrt(nucleus.stretch)
    theta = np.arctan2(across, along)
    a = nucleus.waves
    outline = 1 + 0.024 * (
        a[0] * np.sin(2 * theta + a[1])
        + a[2] * np.sin(3 * theta + a[3])
        + 0.5 * a[4] * np.sin(5 * theta + a[5])
    )
    rho = np.hypot(along, across) / (nucleus.radius * outline)
    edge = np.clip((1 - rho) * nucleus.radius / 1.6 + 0.5, 0, 1)
    dome = 0.62 + 0.38 * np.sqrt(np.clip(1 - rho**2, 0, 1))
    drawn = nucleus.brightness * edge * dome * chromatin[rows, columns]
    # Where two lie over each other, the dimmer one adds a part of its light.
    there = light[rows, columns]
    light[rows, columns] = np.maximum(there, drawn) + 0.35 * np.minimum(there, drawn)


def _smooth(field: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    from scipy import ndimage

    smooth: NDArray[np.float32] = ndimage.gaussian_filter(field, sigma, mode="wrap")
    return smooth
