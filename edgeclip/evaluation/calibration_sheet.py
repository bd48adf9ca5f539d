"""The images of a calibration set in, one picture of all of them out, exposure by exposure: to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclip.calibration.chosen_set import CalibrationSet
from edgeclip.evaluation.corruption_sheet import middle_square
from edgeclip.runtime.images import Image, opencv

_CAPTION = 22  # pixels above the pictures of an exposure
_COLUMNS = 20
_GAP = 4


def calibration_sheet(record: CalibrationSet, images: Sequence[Image], *, side: int = 72) -> Image:
    """Middle squares in rows of 20, under the name of their exposure, darkest first; in each as they were taken.

    Args:
        images: those of the record, in its order, each (H, W, 3) uint8 RGB; decoded one at a time if they are lazy.
        side: pixels of one picture.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    groups: dict[str, list[int]] = {}
    for number in sorted(range(len(record.images)), key=lambda at: record.images[at].exposure.luma):
        groups.setdefault(record.images[number].stratum, []).append(number)
    small = [middle_square(images[number], side) for number in range(len(images))]
    width = min(_COLUMNS, max(len(group) for group in groups.values()))
    width = max(width, 5) * (side + _GAP) + _GAP
    parts = [_caption(f"{len(images)} calibration images, by exposure", width)]
    for name, numbers in groups.items():
        parts.append(_caption(f"{name}: {len(numbers)}", width))
        numbers = sorted(numbers)
        columns = (width - _GAP) // (side + _GAP)
        for at in range(0, len(numbers), columns):
            row = np.full((side + _GAP, width, 3), 255, np.uint8)
            for column, number in enumerate(numbers[at : at + columns]):
                left = _GAP + column * (side + _GAP)
                row[:side, left : left + side] = small[number]
            parts.append(row)
    return np.concatenate(parts)


def _caption(text: str, width: int) -> Image:
    cv2 = opencv()
    caption = np.full((_CAPTION, width, 3), 255, np.uint8)
    cv2.putText(caption, text, (_GAP, _CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return caption
