"""From a person's labels to a better checkpoint: targets, weights, augmentation, the loop, reports.

Nothing here knows a window: `napari_unet.training.loop.train_steps` is a generator that a dock or
a command line walks through. Import the module you need; most of them need torch.
"""

from __future__ import annotations

__all__: list[str] = []
