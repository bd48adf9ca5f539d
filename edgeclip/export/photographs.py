"""The real photographs that scikit-image's wheel ships: known licences, and nothing to download.

A folder, or nothing, in; real photographs on which an export is compared with its model, out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeclip.errors import SourceError
from edgeclip.extras import require
from edgeclip.printable import path_text
from edgeclip.runtime.images import Image, list_images, read_image

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


def photographs(folder: Path | None = None) -> list[Photograph]:
    """Read photographs as ``(file name, (H, W, 3) uint8 RGB)``; those of a folder in the order of their names.

    Args:
        folder: of image files; None for the photographs that scikit-image ships (nothing is downloaded).

    Raises:
        SourceError: no image in the folder, or one that cannot be read.
        MissingExtraError: no folder is given and scikit-image is not installed.
    """
    if folder is None:
        return [(name, photograph(name)) for name in _PACKAGED]
    paths = list_images(folder) if folder.is_dir() else []
    if not paths:
        raise SourceError(f"expected a folder of photographs, got {folder} without an image: give another folder")
    return [(path_text(path.name), read_image(path)) for path in paths]
