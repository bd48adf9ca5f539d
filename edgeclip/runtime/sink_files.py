"""Labelled frames in; a JSONL or a CSV file out, whole or absent, or followed while a camera runs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec

from edgeclip.errors import InputError
from edgeclip.runtime.line_file import LineFile
from edgeclip.runtime.records import LabelledFrame, View
from edgeclip.runtime.sink import Run, Sink
from edgeclip.runtime.source import Frame

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


class JsonlSink(Sink):
    """One :class:`LabelledFrame` a line, as JSON.

    Args:
        path: the file. Where a source is live it grows line by line; otherwise it appears when it is complete.
        rotate_mb: where a source is live, start a new file before this many megabytes (10⁶ bytes); None for never.
        keep: earlier files to keep: ``path.1`` is the latest.

    Raises:
        InputError: a size or count below what makes sense.
    """

    name = "jsonl"
    lossless = True

    def __init__(self, path: Path, *, rotate_mb: float | None = None, keep: int = 5) -> None:
        if rotate_mb is not None and not rotate_mb > 0:
            raise InputError(f"expected a size above 0 MB to rotate at, got {rotate_mb:g}")
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
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()
