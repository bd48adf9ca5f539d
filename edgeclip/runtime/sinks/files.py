"""Labelled frames in; a JSONL or a CSV file out.

It is whole or absent; or, while a camera runs, it can be followed as it grows, and is rotated.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec

from edgeclip.errors import InputError
from edgeclip.files import atomic_file, sweep
from edgeclip.outputs import find_output
from edgeclip.printable import printable
from edgeclip.runtime.records import LabelledFrame, View
from edgeclip.runtime.sinks.base import Run, Sink
from edgeclip.runtime.sources.base import Frame

COLUMNS = (
    "source",
    "frame",
    "time_s",
    "table",
    "region",
    "label",
    "score",
    "present",
    "gated",
    "encode_ms",
    "latency_ms",
    "file",
)


_LARGEST_MB = 1e9  # a petabyte


class JsonlSink(Sink):
    """One ``LabelledFrame`` a line, as JSON.

    Args:
        path: the file. Where a source is live it grows line by line; otherwise it appears when it is complete.
        rotate_mb: where a source is live, start a new file before this many megabytes (10⁶ bytes); None for never.
        keep: earlier files to keep: ``path.1`` is the latest.

    Raises:
        InputError: a size or count below what makes sense.
    """

    name = "jsonl"
    lossless = True
    hurried_s = 2.0

    def __init__(self, path: Path, *, rotate_mb: float | None = None, keep: int = 5) -> None:
        if rotate_mb is not None and not 1e-6 <= rotate_mb <= _LARGEST_MB:
            raise InputError(f"expected a size above 0 and up to {_LARGEST_MB:g} MB to rotate at, got {rotate_mb:g}")
        if keep < 1:
            raise InputError(f"expected to keep at least 1 earlier file, got {keep}")
        self._file = LineFile(path, rotate_bytes=int(rotate_mb * 1e6) if rotate_mb else None, keep=keep)
        self._encoder = msgspec.json.Encoder()

    def open(self, run: Run) -> None:
        """Open the file."""
        self._file.open(follow=run.live)

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:  # noqa: ARG002 - the interface of every sink
        """Append a line."""
        self._file.write(self._encoder.encode(labelled) + b"\n")

    def close(self, *, complete: bool) -> None:
        """Finish the file."""
        self._file.close(complete=complete)


class CsvSink(Sink):
    """One row a frame and view, under a row of column names; ``present`` is a JSON list, as labels may hold anything.

    Args:
        path: the file. Where a source is live it grows row by row; otherwise it appears when it is complete.
    """

    name = "csv"
    lossless = True
    hurried_s = 2.0

    def __init__(self, path: Path) -> None:
        self._file = LineFile(path, header=_row(COLUMNS))
        self._table = ""
        self._source = ""

    def open(self, run: Run) -> None:
        """Open the file and write the column names."""
        self._table, self._source = run.tables.names[0], run.sources[0].name
        self._file.open(follow=run.live)

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:  # noqa: ARG002 - the interface of every sink
        """Append a row for each view."""
        only = View(self._table, "", labelled.label, labelled.score, labelled.top, labelled.present)
        rows = [
            _row(
                (
                    labelled.source or self._source,
                    labelled.frame,
                    labelled.time_s,
                    view.table,
                    view.region,
                    view.label,
                    view.score,
                    msgspec.json.encode(view.present).decode(),
                    int(labelled.gated),
                    labelled.encode_ms,
                    labelled.latency_ms,
                    labelled.file or "",
                )
            )
            for view in labelled.views or [only]
        ]
        self._file.write(b"".join(rows))

    def close(self, *, complete: bool) -> None:
        """Finish the file."""
        self._file.close(complete=complete)


def _row(values: tuple[object, ...]) -> bytes:
    text = io.StringIO(newline="")
    shown = [printable(value) if isinstance(value, str) else value for value in values]
    csv.writer(text, lineterminator="\n").writerow(shown)
    return text.getvalue().encode()


class LineFile:
    """A file that is written line by line.

    Args:
        path: the file; a device or pipe is written to as it is, and a link leads to what is written.
        header: first line of every file, with its line end; may be empty.
        rotate_bytes: while followed, start a new file before this size would be passed; None for never.
        keep: how many earlier files to keep, as ``path.1`` (the latest) to ``path.N``.

    A write that fails half-way leaves no half line in a file that can be followed.
    """

    def __init__(self, path: Path, *, header: bytes = b"", rotate_bytes: int | None = None, keep: int = 5) -> None:
        self.path = path
        self._header = header
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._follow = False
        self._regular = True
        self._size = 0
        self._stream: IO[bytes] | None = None
        self._resources = ExitStack()

    def open(self, *, follow: bool) -> None:
        """Start writing: straight to the file if it shall be followed, else beside it until it is complete.

        Raises:
            InputError: it cannot be written there.
        """
        output = find_output(self.path)
        self._regular = output.way != "stream"
        self._follow = follow or not self._regular
        if follow and self._rotate_bytes and output.way == "in place":
            raise InputError(
                f"cannot rotate {self.path} (it is mounted by itself, or its folder may not be written to): choose "
                "another place"
            )
        try:
            if not self._regular:
                self._start(output.open_stream())
            elif follow:
                self.path = output.target
                self.path.parent.mkdir(parents=True, exist_ok=True)
                sweep(self.path.parent)
                if self._rotate_bytes and self.path.exists() and self.path.stat().st_size:
                    self._shift()  # what an earlier run left is kept like any other earlier file
                self._start(self._unbuffered())
            else:
                self._start(self._resources.enter_context(atomic_file(self.path)).open("wb"))
        except OSError as error:
            with contextlib.suppress(OSError):  # it would say the same once more
                self._discard()
            raise self._refusal(error) from error

    def write(self, line: bytes) -> None:
        """Append one line, which brings its line end.

        Raises:
            InputError: the disk is full, the file was deleted, or the like.
        """
        try:
            if self._follow and self._regular:
                self._check_still_there()
                grown = self._size + len(line)
                if self._rotate_bytes and self._size > len(self._header) and grown > self._rotate_bytes:
                    self._rotate()
            self._append(line)
        except OSError as error:
            raise self._refusal(error) from error

    def close(self, *, complete: bool) -> None:
        """Finish the file; one that is not followed disappears unless it is complete.

        Raises:
            InputError: the last bytes could not be written.
        """
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            if complete:
                with self._resources:  # which keep the file only if its last bytes could be written
                    stream.close()
            else:
                self._discard()
                stream.close()
        except OSError as error:
            raise self._refusal(error) from error

    def _discard(self) -> None:
        with contextlib.suppress(_IncompleteError), self._resources:
            raise _IncompleteError

    def _unbuffered(self) -> IO[bytes]:
        return self.path.open("wb", buffering=0)  # a reader sees whole lines, and nothing is lost with the process

    def _start(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._size = 0
        if self._header:
            self._append(self._header)

    def _append(self, line: bytes) -> None:
        assert self._stream is not None
        rest = memoryview(line)
        try:
            while rest:  # an unbuffered write may take a part only
                rest = rest[self._stream.write(rest) :]
        except OSError:
            if self._follow and self._regular and len(rest) < len(line):
                os.ftruncate(self._stream.fileno(), self._size)
            raise
        self._size += len(line)

    def _check_still_there(self) -> None:
        assert self._stream is not None
        found = os.fstat(self._stream.fileno())
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
            raise InputError(f"{self.path} was deleted while it was being written: start the run again")

    def _rotate(self) -> None:
        assert self._stream is not None
        self._stream.close()
        self._shift()
        self._start(self._unbuffered())

    def _shift(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            if (earlier := self._numbered(number)).exists():
                earlier.replace(self._numbered(number + 1))
        self.path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _refusal(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self.path} ({error.strerror or error}): make room or choose another place")


class _IncompleteError(Exception):
    """Makes ``atomic_file`` throw away what it holds."""
