"""The real photographs that scikit-image's wheel ships: known licences, and nothing to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeclip.errors import SourceError
from edgeclip.extras import require
from edgeclip.runtime.images import Image

# Colour photographs of things, for checks that want realistic input.
COLOUR = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg")


def photograph(name: str) -> Image:
    """One photograph as (H, W, 3) uint8 RGB.

    Args:
        name: file name in scikit-image's ``data`` folder.

    Raises:
        MissingExtraError: scikit-image is not installed.
        SourceError: the installed version does not ship that file.
    """
    skimage = require("skimage", purpose="get real photographs")
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise SourceError(f"scikit-image {skimage.__version__} does not ship {name}: install another version")
    # Pillow, which scikit-image brings, reads them without a word; OpenCV's libpng complains of one's colour profile.
    pillow = require("PIL.Image", purpose="read photographs", extra="demo")
    with pillow.open(path) as image:
        return np.asarray(image.convert("RGB"))
