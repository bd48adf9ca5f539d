"""Pictures in; out: which of them differ, which are there twice or nearly so, and which show nothing.

A proof on thirty frames of a film that stands still, or on copies, or through a covered lens, is a proof on one picture
or none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeclip.prompts import FloatArray
from edgeclip.runtime.images import Image, opencv

_CELLS = 16  # a side
_WIDTH = 3 * _CELLS * _CELLS
# Of the mean colours of the cells, less their mean. Different photographs of ImageNet, CIFAR-10 and Caltech-101 reached
# .90, and .98 where one was there twice; frames of two films .999 after 0.04 s, three in four .97 after half a second.
_NEAR = 0.97
# Grey levels: what the noise of a covered lens stays within, pixel by pixel and averaged over cells.
_FLAT_PIXELS, _FLAT_CELLS = 4.0, 8.0

Verdict = Literal["new", "same", "near", "flat"]


@dataclass(frozen=True)
class Look:
    """What is remembered of a picture.

    Attributes:
        digest: hex sha256 of its pixels.
        direction: (768,) float32, a unit vector near to those of pictures like it; None for one of a single colour.
    """

    digest: str
    direction: FloatArray | None


def pixels_digest(pixels: Image) -> str:
    """Hex sha256 of an (H, W, 3) uint8 RGB image: the same whatever file, of whatever name, it was decoded from."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def look_at(pixels: Image) -> Look:
    """Take an (H, W, 3) uint8 RGB image in."""
    cv2 = opencv()
    cells = cv2.resize(pixels, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
    direction = (cells - cells.mean()).ravel()
    length = float(np.linalg.norm(direction))
    flat = np.ptp(cells, axis=(0, 1)).max() <= _FLAT_CELLS and cv2.meanStdDev(pixels)[1].max() <= _FLAT_PIXELS
    return Look(pixels_digest(pixels), None if flat or not length else direction / length)


class Different:
    """Pictures that differ, as they come.

    Args:
        near: cosine of the directions of two pictures from which they count as one.
    """

    def __init__(self, near: float = _NEAR) -> None:
        self._near = near
        self._rows = np.empty((64, _WIDTH), np.float32)
        self._numbers: dict[str, int] = {}  # by digest: of the different picture that it is or is like
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, look: Look) -> tuple[Verdict, int]:
        """Whether a picture is new, the same as one before, nearly so, or of one colour; and which one's number.

        Numbers count the new ones from 0; that of a flat one means nothing.
        """
        if (known := self._numbers.get(look.digest)) is not None:
            return "same", known
        if look.direction is None:
            return "flat", -1
        # Not ``@``: for so short a product the threads of a BLAS cost twenty times the work.
        alike = np.einsum("nd,d->n", self._rows[: self._count], look.direction)
        if self._count and alike.max() >= self._near:
            number = self._numbers[look.digest] = int((alike >= self._near).argmax())  # the first that it is like
            return "near", number
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = look.direction
        self._numbers[look.digest] = self._count
        self._count += 1
        return "new", self._count - 1
