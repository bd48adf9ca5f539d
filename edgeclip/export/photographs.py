"""A folder, or nothing, in; real photographs on which an export is compared with its model, out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeclip.errors import SourceError
from edgeclip.photographs import COLOUR, photograph
from edgeclip.runtime.images import list_images, read_image

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
    return [(path.name, read_image(path)) for path in paths]
