"""CSV, TSV or JSONL files that name images and say what is on them in; pairs out.

Paths of images are relative to the table. The rows are held in memory, packed; images are read by the loader's workers.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgeclip.errors import SourceError, TrainingError
from edgeclip.training.data.pairs import Damaged, ImageTextPair, IndexedPairs, Packed
from edgeclip.training.data.patterns import expand, short_names
from edgeclip.training.recipe import Data

# Where no column is named, the first of these that a row has.
IMAGE_KEYS = ("image", "filepath", "file_name", "filename", "path", "file")
CAPTION_KEYS = ("captions", "caption", "text", "title", "sentences")
LABEL_KEYS = ("label", "class", "class_name", "category")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
NO_CAPTIONS = "-"  # in the place of a column's name: a table of images alone


class TableColumn(NamedTuple):
    """What a table says of its images.

    Attributes:
        what: how messages call it.
        keys: the columns that it usually stands in.
        image_hint, hint: how to name another column for the images, and for it.
    """

    what: str
    keys: tuple[str, ...]
    image_hint: str
    hint: str


CAPTIONS = TableColumn("caption", CAPTION_KEYS, "set data.image_key", "set data.caption_key")
LABELS = TableColumn("label", LABEL_KEYS, "call the column with the paths so", "call the column with the classes so")


def open_tables(texts: Sequence[str], data: Data, column: TableColumn = CAPTIONS) -> TablePairs:
    """CSV and TSV files with a header; an image may have several rows.

    Args:
        column: what is read beside the image: ``CAPTIONS``; or ``LABELS``, which are then the pairs' captions.

    Raises:
        SourceError: not UTF-8, or without the columns (those that it has are told).
    """
    paths = [Path(path) for text in texts for path in expand(text)]
    rows: list[tuple[Any, ...]] = []
    for table, path in enumerate(paths):
        try:
            with path.open(encoding="utf-8-sig", newline="") as stream:
                reader = csv.reader(stream, delimiter=_DELIMITERS[path.suffix.lower()])
                header = next(reader, [])
                image = _column(header, path, data.image_key, IMAGE_KEYS, column.image_hint)
                caption = None
                if data.caption_key != NO_CAPTIONS:
                    caption = _column(header, path, data.caption_key, column.keys, column.hint)
                rows += [(table, reader.line_num, *_cells(row, image, caption)) for row in reader if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise SourceError(f"expected a UTF-8 table at {path}, got: {error}") from error
    return TablePairs(paths, rows, what=column.what)


def open_json_lines(texts: Sequence[str], data: Data, column: TableColumn = CAPTIONS) -> TablePairs:
    """JSONL files: an object a line, with the path of an image and one caption or a list of them (or its label)."""
    paths = [Path(path) for text in texts for path in expand(text)]
    image_keys = (data.image_key,) if data.image_key else IMAGE_KEYS
    caption_keys = {"": column.keys, NO_CAPTIONS: ()}.get(data.caption_key, (data.caption_key,))
    rows: list[tuple[Any, ...]] = []
    for table, path in enumerate(paths):
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise SourceError(f"expected JSON lines at {path}, got: {error.strerror}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append((table, number, *_fields(line, image_keys, caption_keys, column.what)))
    return TablePairs(paths, rows, what=column.what)


def captions_of(row: Any, keys: Sequence[str], *, what: str = "caption") -> list[str]:
    """The captions of a row: one text or a list of them.

    Raises:
        ValueError: no such key, or something else in it.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object with a {what}, got {type(row).__name__}")
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise ValueError(
            f"expected a {what} under {' or '.join(keys)}, got only {', '.join(map(str, row)) or 'nothing'}"
        )
    value = row[key]
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"expected a text or a list of texts under {key}, got {type(value).__name__}")
    return [text.strip() for text in captions if text.strip()]


class TablePairs(IndexedPairs):
    """Pairs of tables: each row an image's path and its captions, or what is wrong with the row.

    Args:
        paths: the tables.
        rows: (table, row's number, image, captions) or (table, row's number, reason).

    Raises:
        TrainingError: no row, or none that can be used.
    """

    def __init__(self, paths: Sequence[Path], rows: Sequence[tuple[Any, ...]], *, what: str = "caption") -> None:
        self.name = ", ".join(map(str, paths))
        if not any(len(row) == 4 for row in rows):
            wrong = f"; the first: {rows[0][2]}" if rows else ""
            raise TrainingError(f"expected rows with an image and a {what} in {self.name}, got {len(rows)} rows{wrong}")
        self._paths = [Path(path) for path in paths]
        self._names = short_names([str(path) for path in paths])
        self.rows = Packed(rows)

    def pair(self, row: int) -> ImageTextPair | Damaged:
        """The pair of a row."""
        table, number, *rest = self.rows[row]
        key = f"{self._names[table]}:{number}"
        if len(rest) == 1:
            return Damaged(key, rest[0])
        return ImageTextPair(f"{key}:{rest[0]}", self._paths[table].parent / rest[0], tuple(rest[1]))


def _column(header: Sequence[str], path: Path, key: str, usual: Sequence[str], hint: str) -> int:
    names = [name.strip() for name in header]
    if (found := next((name for name in ((key,) if key else usual) if name in names), None)) is not None:
        return names.index(found)
    near = difflib.get_close_matches(key, names, n=1) if key else []
    hint = f"; did you mean {near[0]!r}?" if near else f": {hint}"
    expected = repr(key) if key else " or ".join(usual)
    raise SourceError(f"expected a column {expected} in {path}, got {', '.join(names) or 'an empty file'}{hint}")


def _cells(row: Sequence[str], image: int, caption: int | None) -> list[Any]:
    if len(row) <= max(image, caption or 0) or not row[image].strip():
        return [f"expected an image{'' if caption is None else ' and a caption'}, got too few cells"]
    text = row[caption].strip() if caption is not None else ""
    return [row[image].strip(), [text] if text else []]


def _fields(line: bytes, image_keys: Sequence[str], caption_keys: Sequence[str], what: str) -> list[Any]:
    try:
        found = msgspec.json.decode(line)
        if what == LABELS.what and isinstance(found, dict):  # an index is a label too
            found = {key: str(value) if isinstance(value, int) else value for key, value in found.items()}
        captions = captions_of(found, caption_keys, what=what) if caption_keys else []
        image = next((found[key] for key in image_keys if key in found), None) if isinstance(found, dict) else None
        if not isinstance(image, str) or not image:
            raise ValueError(f"expected the path of an image under {' or '.join(image_keys)}")
    except ValueError as error:  # msgspec's among them
        return [str(error)]
    return [image, captions]
