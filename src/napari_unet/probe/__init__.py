"""What a checkpoint's file does not say, found out on one annotated picture.

Weights alone do not tell in which order maps were concatenated, how images were scaled, or which
output means foreground. Each answer makes another network; the right one finds what a person has
drawn. See `probe_steps` for how it is decided, and docs/probe.md for the limits.
"""

from __future__ import annotations

from napari_unet.probe.outcome import Candidate, Probe, ProbeProgress
from napari_unet.probe.search import probe, probe_steps

__all__ = ["Candidate", "Probe", "ProbeProgress", "probe", "probe_steps"]
