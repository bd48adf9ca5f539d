"""A connection to the live page in; requests to the page out, as long as there is room for those that ask something."""

from __future__ import annotations

import asyncio
from collections import Counter

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 128  # connections with a request under way; beyond, an answer says that there are too many
_ROOM = 96  # open ones; beyond, one that waits gives way to each that comes


class PageConnection(H11Protocol):
    """HTTP over one connection, which gives way where many are open and it asks nothing.

    A connection costs nothing to open, whoever has no token may do so, and one that sends no request would keep its
    place for ever. So the oldest that has no request under way is closed, of the address that has the most of them:
    whoever holds many loses theirs, and the page stays open for others.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Take the connection, and close another if there are too many."""
        super().connection_made(transport)
        self._made_s = self.loop.time()
        if len(self.connections) <= _ROOM:
            return
        waiting = [each for each in self.connections if isinstance(each, PageConnection) and each._waits()]
        held = Counter(each._host for each in waiting)
        if others := [each for each in waiting if each is not self]:
            max(others, key=lambda each: (held[each._host], -each._made_s)).transport.abort()

    def _waits(self) -> bool:
        closing = self.transport.is_closing()
        return not closing and (self.cycle is None or self.cycle.response_complete)

    @property
    def _host(self) -> str:
        return self.client[0] if self.client else ""
