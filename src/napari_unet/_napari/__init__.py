"""The napari face: the dock widget, and what lies between a layer and an array.

Nothing else in the package imports napari, Qt or magicgui, and nothing here imports torch before
a person has clicked Segment.
"""

from __future__ import annotations
