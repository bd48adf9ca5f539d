"""A photograph in, a contact sheet of all corruptions in all severities out: to be looked at before numbers are."""

from __future__ import annotations

import numpy as np

from edgeclip.evaluation.corruptions import SEVERITIES, SUITE, corrupt
from edgeclip.runtime.images import Image, opencv

_CAPTION = 18  # pixels above a row


def contact_sheet(
    photograph: Image, *, key: str, corruptions: tuple[str, ...] = tuple(SUITE), side: int = 128
) -> Image:
    """One row a corruption: the photograph, then severities 1 to 5, two rows of corruptions beside each other.

    Args:
        photograph: (H, W, 3) uint8 RGB; its middle square is shown, and corrupted at twice the size that is shown.
        key: names the photograph, see :func:`edgeclip.evaluation.corruptions.corrupt`.
        side: pixels of one picture.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    middle = middle_square(photograph, 2 * side)
    strips = [_strip(middle, name, key, side) for name in corruptions]
    half = (len(strips) + 1) // 2
    columns = [strips[:half], strips[half:]] if len(strips) > 1 else [strips]
    blank = np.full_like(strips[0], 255)
    filled = [[*column, *[blank] * (half - len(column))] for column in columns]
    gap = np.full((half * strips[0].shape[0], 12, 3), 255, np.uint8)
    parts = [part for column in filled for part in (np.concatenate(column), gap)][:-1]
    return np.concatenate(parts, axis=1)


def middle_square(image: Image, side: int) -> Image:
    """The middle square of an image, resized to ``side``."""
    cv2 = opencv()
    height, width = image.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = image[top : top + least, left : left + least]
    return np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _strip(middle: Image, name: str, key: str, side: int) -> Image:
    cv2 = opencv()
    pictures = [middle, *(corrupt(middle, name, severity, key=key) for severity in SEVERITIES)]
    row = np.concatenate([cv2.resize(item, (side, side), interpolation=cv2.INTER_AREA) for item in pictures], axis=1)
    caption = np.full((_CAPTION, row.shape[1], 3), 255, np.uint8)
    levels = ", ".join(f"{level:g}" for level in SUITE[name].levels)
    text = f"{name}: {levels} ({SUITE[name].unit})"
    cv2.putText(caption, text, (2, _CAPTION - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([caption, row])
