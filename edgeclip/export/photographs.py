"""The real photographs that scikit-image's wheel ships: known licences, and nothing to download.

Nothing in; real photographs on which an export is compared with its model, where nobody gave others, out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

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


Photograph = tuple[str, npt.NDArray[np.uint8]]

# A person, a cat, still lifes, a launch, galaxies; and here also a second motorcycle, a retina and tissue.
_PACKAGED = (*COLOUR, "motorcycle_right.png", "retina.jpg", "ihc.png")


def photographs() -> list[Photograph]:
    """Read the stand-ins as ``(file name, (H, W, 3) uint8 RGB)``.

    Raises:
        SourceError: the installed scikit-image does not ship one.
        MissingExtraError: it is not installed.
    """
    return [(name, photograph(name)) for name in _PACKAGED]
