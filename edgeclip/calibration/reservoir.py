"""A stream of any length in, a uniform sample of bounded size out (Vitter's algorithm R, 1985)."""

from __future__ import annotations

import random
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Every item offered is in the sample with the same chance.

    Args:
        size: most items kept.
        seed: decides which.
    """

    def __init__(self, size: int, seed: str) -> None:
        self.items: list[T] = []
        self.offered = 0
        self._size, self._random = size, random.Random(seed)

    def offer(self, item: T) -> None:
        """Show it one more item."""
        self.offered += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := self._random.randrange(self.offered)) < self._size:
            self.items[place] = item
