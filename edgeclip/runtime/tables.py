"""The prompt tables in use, each of which can be replaced between two frames."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Sequence

from edgeclip.bundle import Bundle
from edgeclip.errors import TableError
from edgeclip.prompts import PromptTable
from edgeclip.runtime.scoring import Scorer

_log = logging.getLogger("edgeclip")


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

    def _scorer(self, table: PromptTable) -> Scorer:
        self._bundle.check_table(table)
        found = self._bundle.decisions(table, self._variant)
        self.said.pop(table.name, None)
        if found.said:
            self.said[table.name] = found.said
        return Scorer(table, self._bundle.manifest.encoder, found.decisions)
