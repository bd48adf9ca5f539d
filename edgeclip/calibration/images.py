"""Folders of footage or photographs in, the images that quantization ranges are measured on out."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

from edgeclip.calibration.choice.chosen_set import IMAGES, ChosenImages, is_chosen_set
from edgeclip.errors import SourceError
from edgeclip.printable import path_text
from edgeclip.runtime.images import Image, images_among, read_image

_log = logging.getLogger("edgeclip")


def find_images(folder: Path) -> list[Path]:
    """The image files below a folder, searched recursively, by path; of a chosen set only its images.

    What is hidden, or in a hidden folder (thumbnails, say), is none of anybody's.

    Raises:
        SourceError: none.
    """
    if is_chosen_set(folder):
        folder = folder / IMAGES
    shown = (path for path in sorted(folder.rglob("*")) if not any(map(_hidden, path.relative_to(folder).parts)))
    paths = images_among((path for path in shown if not path.is_dir()), path_text(folder))
    if not paths:
        raise SourceError(
            f"expected images below {folder}, got none: check the path; edgeclip calibrate images takes frames of films"
        )
    return paths


def _hidden(name: str) -> bool:
    return name.startswith(".")


def sample_images(folder: Path, count: int, *, seed: int = 0) -> Sequence[Image]:
    """A seeded random sample of the readable images below a folder, each (H, W, 3) uint8 RGB.

    A folder that ``edgeclip calibrate images`` wrote is taken whole and in its order: it has been chosen already.

    Args:
        folder: searched recursively.
        count: how many; fewer if there are not so many.

    Raises:
        SourceError: no readable image.
        IntegrityError: an image of a chosen set is not the one that was chosen.
    """
    if is_chosen_set(folder):
        return ChosenImages(folder)
    paths = find_images(folder)
    random.Random(seed).shuffle(paths)
    images: list[Image] = []
    for path in paths:
        if len(images) == count:
            break
        try:
            images.append(read_image(path))
        except SourceError as error:
            _log.warning("passed over: %s", error)
    if not images:
        raise SourceError(f"expected calibration images below {folder}, got none that can be read")
    if len(images) < count:
        _log.warning("expected %d calibration images below %s, got %d", count, path_text(folder), len(images))
    return images


def crops(images: Sequence[Image], count: int, *, seed: int = 0) -> list[Image]:
    """``count`` random crops with sides of 40–100 % of their image: more views from few images."""
    chooser = random.Random(seed)
    views: list[Image] = []
    for index in range(count):
        image = images[index % len(images)]
        height, width = (max(1, round(side * chooser.uniform(0.4, 1.0))) for side in image.shape[:2])
        top, left = chooser.randint(0, image.shape[0] - height), chooser.randint(0, image.shape[1] - width)
        views.append(image[top : top + height, left : left + width])
    return views
