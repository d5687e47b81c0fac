"""Run the network of one combination over the patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_unet.axes import ImageAxes
from napari_unet.config import UNetConfig
from napari_unet.frames import Frame
from napari_unet.importers.detective import Finding, examine
from napari_unet.importers.reading import Reading
from napari_unet.importers.weights import fitted_weights
from napari_unet.intensity import Intensity, Normalisation, fit_intensity
from napari_unet.probe.evidence import errors_of
from napari_unet.probe.patches import Patch
from napari_unet.probe.questions import Roles
from napari_unet.resample import Grid
from napari_unet.tiling import plan_tiles

if TYPE_CHECKING:
    from torch import Tensor

    from napari_unet.prepared import Prepared

__all__ = ["Errors", "Runner"]

Errors = dict[frozenset[int], NDArray[np.float64]]


@dataclass
class Runner:
    """What is computed once and used by many combinations.

    Parameters
    ----------
    reading : Reading
        The checkpoint's file.
    data : array-like
        The picture, (T)(Z)YX(C).
    axes : ImageAxes
        Of `data`.
    grid : Grid
        The picture's pixels and the network's.
    roles : Roles
        Sets of classes to score.
    should_stop : callable, optional
        Asked before every layer.
    """

    reading: Reading
    data: Any
    axes: ImageAxes
    grid: Grid
    roles: Roles
    should_stop: Callable[[], bool] | None = None
    runs: int = 0
    _intensities: dict[tuple[Normalisation, tuple[int, ...]], Intensity] = field(
        default_factory=dict
    )
    _weights: tuple[Mapping[str, str], Mapping[str, Tensor]] | None = None
    _network: tuple[UNetConfig, Prepared] | None = None

    def finding(self, assume: Mapping[str, str]) -> Finding:
        """Say which network a combination is."""
        return examine(self.reading, assume)

    def errors(self, assume: Mapping[str, str], patches: Sequence[Patch]) -> Errors:
        """Errors, block by block, of every set of classes that could be the objects."""
        maps = self.probabilities(assume, patches)
        unions = self.roles.unions or _prefixes(patches, maps)
        return {
            union: errors_of(patches, [found[sorted(union)].sum(0) for found in maps])
            for union in unions
        }

    def probabilities(
        self, assume: Mapping[str, str], patches: Sequence[Patch]
    ) -> list[NDArray[np.float32]]:
        """Probabilities (K, ...) of the classes, for each patch."""
        from napari_unet.engine import run_tiles

        finding = self.finding(assume)
        network, runtime = self._prepared(finding), self._runtime()
        geometry = finding.config.geometry
        maps: list[NDArray[np.float32]] = []
        for patch in patches:
            intensity = self._intensity(finding.normalisation, patch.index)
            frame = Frame(self.data, self.axes, patch.index, intensity, self.grid)
            # One tile; a stride more on either side for the pooling grid.
            extents = zip(patch.window.shape, geometry.stride, strict=True)
            size = geometry.size_for([extent + 2 * stride for extent, stride in extents])
            plan = plan_tiles(self.grid.network, geometry, size, patch.window, exact=False)
            found = np.empty((self.roles.classes, *patch.window.shape), np.float32)
            for tile, part in run_tiles(network, frame.read, plan, runtime, self.should_stop):
                where = tile.write.within(patch.window.start).slices
                found[(slice(None), *where)] = part
            # Grey levels that overflow a network say nothing.
            maps.append(np.nan_to_num(found, copy=False, nan=1 / self.roles.classes))
        self.runs += 1
        return maps

    def _runtime(self) -> Any:
        import torch

        from napari_unet.devices import resolve_device
        from napari_unet.prepared import Runtime

        return Runtime(resolve_device("auto"), torch.float32)

    def _prepared(self, finding: Finding) -> Prepared:
        """Return the network; the last one is kept, since grey levels change more often."""
        import torch

        from napari_unet.answers import probabilities
        from napari_unet.devices import idle_memory
        from napari_unet.model import UNet
        from napari_unet.prepared import Prepared

        if self._network is not None and self._network[0] == finding.config:
            return self._network[1]
        if self._weights is None or self._weights[0] != finding.names:
            self._weights = finding.names, fitted_weights(self.reading.tensors, finding)
        with torch.device("meta"):
            network = UNet(finding.config)
        network.load_state_dict(self._weights[1], assign=True)
        self._network = (
            finding.config,
            Prepared(network.eval(), self._runtime(), probabilities, idle=idle_memory()),
        )
        return self._network[1]

    def _intensity(self, normalisation: Normalisation, index: tuple[int, ...]) -> Intensity:
        of = self.axes.fit_index(index)
        key = normalisation, of
        if key not in self._intensities:
            volume = self.data[of] if of else self.data
            self._intensities[key] = fit_intensity(
                volume, normalisation, channel_last=self.axes.has_channels
            )
        return self._intensities[key]


def _prefixes(
    patches: Sequence[Patch], maps: Iterable[NDArray[np.float32]]
) -> list[frozenset[int]]:
    """Sets of many classes worth a look: those that speak most for objects, one more each time."""
    sums: NDArray[np.float64] = np.zeros(0)
    for patch, found in zip(patches, maps, strict=True):
        inside, outside = patch.truth == 1, patch.truth == 0
        part = found[:, inside].sum(1, dtype=float) / max(int(inside.sum()), 1)
        part = part - found[:, outside].sum(1, dtype=float) / max(int(outside.sum()), 1)
        sums = part if not sums.size else sums + part
    order = [int(number) for number in np.argsort(-sums, kind="stable")]
    return [frozenset(order[:size]) for size in range(1, len(order))]
