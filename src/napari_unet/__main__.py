"""``python -m napari_unet`` is the command ``valid-unet``."""

from __future__ import annotations

import sys

from napari_unet.cli import main

if __name__ == "__main__":
    sys.exit(main())
