"""Prompt tables in; the ones in use out, each of which can be replaced between two frames.

``TableWatch`` replaces those whose files on disk change while a stream runs.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.errors import EdgeclipError, TableError
from edgeclip.manifest import MANIFEST
from edgeclip.prompts import PromptTable
from edgeclip.runtime.scoring import Scorer
from edgeclip.tensors import open_tensors

_log = logging.getLogger("edgeclip")

Stamp = tuple[int, int, int]  # inode, size, time of the last change in ns


class TableSet:
    """Named prompt tables of one bundle's encoder.

    Args:
        bundle: whose encoder the tables must fit.
        tables: at least one; names are unique.
        variant: form of the encoder that will run, whose decisions apply; None for scores without any.

    Attributes:
        said: of each table with decisions, by name, whether they hold, in a sentence.

    Raises:
        TableError: a table of another model or width, none at all, or two of one name.
    """

    def __init__(self, bundle: Bundle, tables: Sequence[PromptTable], *, variant: str | None = None) -> None:
        self._bundle = bundle
        self._variant = variant
        self.said: dict[str, str] = {}
        self._writing = threading.Lock()
        self.names = tuple(table.name for table in tables)
        if not tables or len(set(self.names)) < len(tables):
            raise TableError(f"expected prompt tables of different names, got {', '.join(self.names) or 'none'}")
        self._scorers = tuple(self._scorer(table) for table in tables)

    def current(self) -> tuple[Scorer, ...]:
        """The tables as they are now, in the order of ``names``; the tuple never changes, later calls give another."""
        return self._scorers

    def replace(self, name: str, table: PromptTable) -> None:
        """Use ``table`` in place of the one called ``name`` from the next frame on.

        Everything is checked and computed beside the running loop; the change itself is one assignment. The table
        takes the name that it stands in for, so that what follows the old one's labels goes on with the new one's.

        Raises:
            TableError: no such name, or a table of another model or width; the old one stays.
        """
        if name not in self.names:
            raise TableError(f"expected a table out of {', '.join(self.names)}, got {name!r}")
        old = self._scorers[self.names.index(name)].table
        kept = table.decisions or old.decisions  # of other rows, perhaps: then they are stale, and that is said
        scorer = self._scorer(dataclasses.replace(table, name=name, decisions=kept))
        if name in self.said:
            _log.log(logging.INFO if scorer.decided else logging.WARNING, "%s", self.said[name])
        with self._writing:
            self._scorers = tuple(
                scorer if name == own else old for own, old in zip(self.names, self._scorers, strict=True)
            )

    def take_back(self, bad: Sequence[Scorer], good: tuple[Scorer, ...]) -> None:
        """Use the tables ``good`` again, which were in use before ``bad``; nothing if these were replaced meanwhile."""
        with self._writing:
            if self._scorers is bad:
                self._scorers = good

    def _scorer(self, table: PromptTable) -> Scorer:
        self._bundle.check_table(table)
        found = self._bundle.decisions(table, self._variant)
        scorer = Scorer(table, self._bundle.manifest.encoder, found.decisions)
        self.said.pop(table.name, None)
        if found.said:
            self.said[table.name] = found.said
        return scorer


class TableWatch:
    """A thread that looks at the files from time to time; use it as a context, or ``start`` and ``close``.

    Args:
        tables: where changed tables go.
        origins: name of a table to where it comes from: a ``.safetensors`` file, or the folder of a bundle that lists
            it. Tables that are not named are left alone.
        interval_s: how often to look, seconds.
        on_change: called with the name after a table was replaced, on this thread.

    Raises:
        TableError: an origin of a table that is not among ``tables``.

    A file must look the same twice in a row before it is read, so one that is being written is waited for. A table
    that cannot be used is refused with one warning, and the old one stays until the file changes again; whatever goes
    wrong in one look, the next is taken.
    """

    def __init__(
        self,
        tables: TableSet,
        origins: Mapping[str, Path],
        *,
        interval_s: float = 1.0,
        on_change: Callable[[str], None] | None = None,
    ) -> None:
        if strange := sorted(set(origins).difference(tables.names)):
            raise TableError(f"expected origins of the tables {', '.join(tables.names)}, got {', '.join(strange)}")
        self._tables = tables
        self._origins = dict(origins)
        self._interval_s = interval_s
        self._on_change = on_change
        self._seen = {name: _stamp(path) for name, path in self._origins.items()}  # as last read
        self._before = dict(self._seen)  # as last looked at
        self._read = {name: scorer.table for name, scorer in zip(tables.names, tables.current(), strict=True)}
        for name, path in self._origins.items():
            if _content_hash(name, path) != self._read[name].content_hash:  # it changed after it had been loaded
                self._seen[name] = None
        # Of all that wakes a thread only this may be used where a signal has interrupted a use of it.
        self._orders: queue.SimpleQueue[Literal["reload", "close"]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edgeclip-tables", daemon=True)

    def start(self) -> TableWatch:
        """Begin to watch."""
        self._thread.start()
        return self

    def reload(self) -> None:
        """Read every file again soon, changed or not; may be called from a signal handler."""
        self._orders.put("reload")

    def close(self) -> None:
        """Stop watching."""
        self._orders.put("close")
        if self._thread.is_alive():
            self._thread.join(5.0)

    def __enter__(self) -> TableWatch:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            try:
                order = self._orders.get(timeout=self._interval_s)
            except queue.Empty:
                order = None
            if order == "close":
                return
            for name, origin in self._origins.items():
                try:
                    self._look(name, origin, forced=order == "reload")
                except EdgeclipError as error:
                    _log.warning("the new table %s is refused, the old one stays: %s", name, error)
                except Exception as error:  # noqa: BLE001 - the watch outlives whatever one look meets
                    said = f"{type(error).__name__}: {error}"
                    _log.warning("the new table %s is refused, the old one stays: %s", name, said)

    def _look(self, name: str, origin: Path, *, forced: bool) -> None:
        stamp = _stamp(origin)
        settled = stamp == self._before[name] and stamp is not None
        self._before[name] = stamp
        if not forced and (not settled or stamp == self._seen[name]):
            return
        self._seen[name] = stamp
        table = _load(name, origin)
        if not forced and _same(table, self._read[name]):
            return  # another table of the bundle has changed
        self._tables.replace(name, table)
        self._read[name] = table
        _log.info("table %s replaced: %d classes", name, len(table.classes))
        if self._on_change:
            self._on_change(name)


def _load(name: str, origin: Path) -> PromptTable:
    return Bundle.open(origin).table(name) if origin.is_dir() else PromptTable.load(origin)


def _same(one: PromptTable, other: PromptTable) -> bool:
    # Rows too: those of one model may be made otherwise than from the prompts that the hash covers.
    return one.content_hash == other.content_hash and np.array_equal(one.embeddings, other.embeddings)


def _content_hash(name: str, origin: Path) -> str | None:
    """What the origin says that its table is made of, without reading its rows; None if it cannot be told."""
    try:
        if origin.is_dir():
            entries = Bundle.open(origin).manifest.tables
            return next((entry.content_hash for entry in entries if entry.name == name), None)
        with open_tensors(origin, error=TableError) as stored:
            return stored.metadata.get("content_hash")
    except (EdgeclipError, OSError):
        return None  # the first look reads it, and says what is wrong


def _stamp(origin: Path) -> Stamp | None:
    """What tells a changed file from an unchanged one; None if there is none just now."""
    try:
        found = (origin / MANIFEST if origin.is_dir() else origin).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
