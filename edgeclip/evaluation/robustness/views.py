"""Images in; each as it is and under every corruption out: as views for an encoder, or as a sheet to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgeclip.calibration.hashed_images import Item
from edgeclip.evaluation.data.dataset import Items
from edgeclip.evaluation.robustness.corruptions import SEVERITIES, SUITE, SUITE_VERSION, corrupt
from edgeclip.files import sha256_json
from edgeclip.runtime.images import Image, opencv


class _Photograph:
    """An image and its digest, read once for all of its views."""

    def __init__(self, item: Item, side: int) -> None:
        self.item, self.side = item, side

    @cached_property
    def digest(self) -> str:
        return self.item.digest()

    @cached_property
    def image(self) -> Image:
        return reduced(self.item.read(), self.side)


@dataclass(frozen=True)
class ImageView:
    """One image under one condition; (corruption, severity), or None for the image as it is."""

    photograph: _Photograph
    condition: tuple[str, int] | None

    def digest(self) -> str:
        """Hex sha256 of what decides the pixels; SourceError if the file cannot be read."""
        drawn = None if self.condition is None else [self.photograph.item.key, *self.condition, SUITE_VERSION]
        return sha256_json([self.photograph.digest, self.photograph.side, drawn])

    def read(self) -> Image:
        """(H, W, 3) uint8 RGB; SourceError if the file cannot be decoded."""
        image = self.photograph.image
        return image if self.condition is None else corrupt(image, *self.condition, key=self.photograph.item.key)


class Views:
    """N images under K conditions: (1 + K) views of the first image, then of the second, and so on.

    Args:
        items: the images.
        conditions: (corruption, severity) of each view after the first, which is the image as it is.
        side: see ``reduced``.
    """

    def __init__(self, items: Items, conditions: Sequence[tuple[str, int]], *, side: int) -> None:
        self._items, self._conditions, self._side = items, (None, *conditions), side

    def __len__(self) -> int:
        return len(self._items) * len(self._conditions)

    def __iter__(self) -> Iterator[ImageView]:
        for item in self._items:
            photograph = _Photograph(item, self._side)
            for condition in self._conditions:
                yield ImageView(photograph, condition)


def reduced(image: Image, side: int) -> Image:
    """The image, with its shorter side brought down to ``side`` pixels if it is longer (mean of the area)."""
    height, width = image.shape[:2]
    if min(height, width) <= side:
        return image
    ratio = side / min(height, width)
    cv2 = opencv()
    size = (max(side, round(width * ratio)), max(side, round(height * ratio)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


_CAPTION = 18  # pixels above a row


def contact_sheet(
    photograph: Image, *, key: str, corruptions: tuple[str, ...] = tuple(SUITE), side: int = 128
) -> Image:
    """One row a corruption: the photograph, then severities 1 to 5, two rows of corruptions beside each other.

    Args:
        photograph: (H, W, 3) uint8 RGB; its middle square is shown, and corrupted at twice the size that is shown.
        key: names the photograph, see ``corrupt``.
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
