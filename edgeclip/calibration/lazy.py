"""Ways to read things in; a sequence that reads each when it is asked for, out: frames need not all be in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T]):
    """What each of ``reads`` returns, called whenever that one is asked for; a slice is a list, read at once."""

    def __init__(self, reads: Sequence[Callable[[], T]]) -> None:
        self._reads = tuple(reads)

    def __len__(self) -> int:
        return len(self._reads)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [read() for read in self._reads[index]]
        return self._reads[index]()
