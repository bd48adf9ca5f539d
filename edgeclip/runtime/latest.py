"""A slot between two threads: what is put replaces what was there, what is taken was not taken before."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Item = TypeVar("Item")


class LatestFrame(Generic[Item]):
    """Holds the latest item only, and counts those that nobody took in time.

    Attributes:
        dropped: items that were replaced before anyone took them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._item: Item | None = None
        self._ended = False
        self.dropped = 0

    def put(self, item: Item) -> None:
        """Offer an item; it goes nowhere once the stream has ended."""
        with self._changed:
            if self._ended:
                return
            self.dropped += self._item is not None
            self._item = item
            self._changed.notify_all()

    def end(self) -> None:
        """No more items will come; one that is still there can be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait for an item or the end."""
        with self._changed:
            self._changed.wait_for(self._there)

    def take(self) -> Item | None:
        """The latest item, waiting for it if need be; None once the stream has ended."""
        with self._changed:
            self._changed.wait_for(self._there)
            item, self._item = self._item, None
            return item

    def _there(self) -> bool:
        return self._item is not None or self._ended
