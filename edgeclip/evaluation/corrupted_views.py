"""Images in; each of them as it is, and under every corruption that is asked for, out: what an encoder is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgeclip.calibration.pictures import Item
from edgeclip.evaluation.corruptions import SUITE_VERSION, corrupt
from edgeclip.evaluation.dataset import Items
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
class View:
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
        side: see :func:`reduced`.
    """

    def __init__(self, items: Items, conditions: Sequence[tuple[str, int]], *, side: int) -> None:
        self._items, self._conditions, self._side = items, (None, *conditions), side

    def __len__(self) -> int:
        return len(self._items) * len(self._conditions)

    def __iter__(self) -> Iterator[View]:
        for item in self._items:
            photograph = _Photograph(item, self._side)
            for condition in self._conditions:
                yield View(photograph, condition)


def reduced(image: Image, side: int) -> Image:
    """The image, with its shorter side brought down to ``side`` pixels if it is longer (mean of the area)."""
    height, width = image.shape[:2]
    if min(height, width) <= side:
        return image
    ratio = side / min(height, width)
    cv2 = opencv()
    size = (max(side, round(width * ratio)), max(side, round(height * ratio)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
