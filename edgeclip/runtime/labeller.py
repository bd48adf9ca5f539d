"""A bundle in; a stream of what its encoder and prompt tables say of cameras and files out, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError
from edgeclip.prompts import PromptTable
from edgeclip.runtime.proof.choose import Choice, choose
from edgeclip.runtime.sinks.base import Sink
from edgeclip.runtime.sources.open import Source, SourceOptions, open_source
from edgeclip.runtime.stream import Stream, StreamOptions
from edgeclip.runtime.tables import TableSet

TableLike = str | Path | PromptTable


class Labeller:
    """A bundle with the variant and engine that were proved to be the fastest here.

    Args:
        bundle: an opened bundle.
        variant, engine: restrict the choice; by default any.
        threads: CPU threads an inference; None for all.
        progress: called with a short sentence while variants are proved, which takes seconds the first time.

    Attributes:
        bundle: the bundle.
        choice: what will run, and why.

    Raises:
        EdgeclipError: as ``choose``.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        variant: str | None = None,
        engine: str | None = None,
        threads: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.bundle = bundle
        self._threads = threads
        self.choice: Choice = choose(bundle, variant=variant, engine=engine, threads=threads, progress=progress)

    def stream(
        self,
        *sources: str | Source,
        table: TableLike | Sequence[TableLike] | None = None,
        realtime: bool = False,
        options: StreamOptions | None = None,
        source_options: SourceOptions | None = None,
        sinks: Sequence[Sink] = (),
    ) -> Stream:
        """Label one or several sources; iterate over the result for events, or over its ``frames()``.

        Args:
            sources: what ``open_source`` takes, or opened sources.
            table: name of a table of the bundle, a ``.safetensors`` file, a table, or several of these; may be left
                out where the bundle has one only.
            realtime: play files as cameras.
            options: rare knobs; ``variant`` and ``engine`` among them are those of ``choice``.
            source_options: rare knobs of opening the sources.
            sinks: where labelled frames go besides.

        Raises:
            EdgeclipError: a source, table, option or sink that cannot be used.
        """
        tables = TableSet(self.bundle, find_tables(self.bundle, table), variant=self.choice.variant)
        opened: list[Source] = []
        try:
            for source in sources:
                if isinstance(source, str):
                    source = open_source(source, realtime=realtime, options=source_options)
                opened.append(source)
            chosen = replace(
                options or StreamOptions(),
                variant=self.choice.variant,
                engine=self.choice.engine,
                threads=self._threads,
            )
            return Stream(self.bundle, opened, tables, chosen, sinks)
        except BaseException:
            for taken in opened:
                taken.close()
            raise


def find_tables(bundle: Bundle, wanted: TableLike | Sequence[TableLike] | None) -> list[PromptTable]:
    """The tables that are meant by names in the bundle, by ``.safetensors`` files or by themselves.

    Raises:
        TableError: no such table, or one of another model.
        InputError: an empty list.
    """
    return [table for table, _ in find_tables_and_files(bundle, wanted)]


def find_tables_and_files(
    bundle: Bundle, wanted: TableLike | Sequence[TableLike] | None
) -> list[tuple[PromptTable, Path | None]]:
    """The same, each with what ``TableWatch`` has to watch for changes of it."""
    if wanted is None:
        return [(bundle.table(), bundle.path)]
    several = [wanted] if isinstance(wanted, str | Path | PromptTable) else list(wanted)
    if not several:
        raise InputError("expected a prompt table, got an empty list: name one, or leave it out")
    return [_find_table(bundle, item) for item in several]


def _find_table(bundle: Bundle, wanted: TableLike) -> tuple[PromptTable, Path | None]:
    if isinstance(wanted, PromptTable):
        table, file = wanted, None
    elif isinstance(wanted, Path) or wanted.endswith(".safetensors"):
        table, file = PromptTable.load(Path(wanted)), Path(wanted)
    else:
        return bundle.table(wanted), bundle.path
    bundle.check_table(table)
    return table, file
