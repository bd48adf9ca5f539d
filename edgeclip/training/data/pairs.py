"""The text that names image–text pairs in; a source of them out, read the same way whatever its form.

To add a form: subclass ``PairSource`` (or ``IndexedPairs``, where any row can be had at once) in a file of
its own and add a ``Form`` to ``FORMS``.
"""

from __future__ import annotations

import glob
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgeclip.errors import SourceError
from edgeclip.files import sha256_json
from edgeclip.training.recipe import Data

Classes = tuple[tuple[str, ...], ...]
# How many damaged samples are named; the rest are only counted.
MOST_NAMED = 5


@dataclass(frozen=True)
class ImageTextPair:
    """One sample as read, before its image is decoded.

    Attributes:
        key: unique within the source, for messages.
        image: an encoded image (JPEG, PNG, …), or the path of one.
        captions: what may be said of it; empty where there is only a label, or only an image.
        label: index into the source's ``classes``, or -1.
    """

    key: str
    image: bytes | Path
    captions: tuple[str, ...] = ()
    label: int = -1


@dataclass(frozen=True)
class Damaged:
    """A sample that cannot be used, in the place where it would have been."""

    key: str
    reason: str


@dataclass(frozen=True)
class Share:
    """Which samples of a source one reader takes, and in which order.

    The shares of all ``parts`` together are the whole source, each sample once.

    Attributes:
        part, parts: the reader, and how many there are: workers × processes.
        seed: None to read in the stored order.
        epoch: with ``seed`` decides the order, which is the same for every reader.
    """

    part: int = 0
    parts: int = 1
    seed: int | None = None
    epoch: int = 0

    def order(self, count: int) -> list[int]:
        """The numbers below ``count``, shuffled if a seed is given; this reader's part is not yet cut out."""
        if self.seed is None:
            return list(range(count))
        order: list[int] = np.random.default_rng([self.seed, self.epoch]).permutation(count).tolist()
        return order


@dataclass
class Tally:
    """How many samples were passed over, and the first few by name."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, damaged: Damaged) -> None:
        """Count one."""
        self.count += 1
        if len(self.named) < MOST_NAMED:
            self.named.append(f"{damaged.key} ({damaged.reason})")

    def __str__(self) -> str:
        if not self.count:
            return "no sample was damaged"
        more = ", …" if self.count > len(self.named) else ""
        return f"{self.count} damaged: {', '.join(self.named)}{more}"


class PairSource(ABC):
    """Image–text pairs. Can be pickled, so that a loader's workers can have it.

    Attributes:
        name: what messages call it.
        classes: the names of each class; () if its samples have no labels.
        streamed: whether ``read`` can only shuffle coarsely, so that a buffer has to do the rest.
    """

    name: str
    classes: Classes = ()
    streamed: bool = False

    @abstractmethod
    def read(self, share: Share) -> Iterator[ImageTextPair | Damaged]:
        """One pass over a share; the same share gives the same samples in the same order.

        Raises:
            TrainingError: a shard or table is not what its name says, or holds nothing.
            SourceError: a file, command or address cannot be read.
        """

    @abstractmethod
    def identity(self) -> str:
        """Hex digest of what the order of samples depends on: whether a saved position still means the same."""

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Every readable sample once, in the stored order."""
        return (item for item in self.read(Share()) if isinstance(item, ImageTextPair))


class Packed:
    """Many small records in one buffer: forked workers share it, where a list of strings would be copied page by page.

    Args:
        records: JSON-like values.
    """

    def __init__(self, records: Sequence[Any]) -> None:
        encoded = [msgspec.msgpack.encode(record) for record in records]
        self._ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)
        self._buffer = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> Any:
        start = int(self._ends[row - 1]) if row else 0
        return msgspec.msgpack.decode(memoryview(self._buffer)[start : self._ends[row]])

    def digest(self) -> str:
        """Hex sha256 of all records."""
        return sha256_json([self._buffer, self._ends.tolist()])


class IndexedPairs(PairSource):
    """A source whose rows can be had in any order: shuffled whole, divided by row.

    Attributes:
        rows: the records.
    """

    rows: Packed

    @abstractmethod
    def pair(self, row: int) -> ImageTextPair | Damaged:
        """The sample of a row."""

    def read(self, share: Share) -> Iterator[ImageTextPair | Damaged]:
        """Rows ``part``, ``part + parts``, … of the epoch's permutation."""
        return map(self.pair, share.order(len(self.rows))[share.part :: share.parts])

    def identity(self) -> str:
        """Of the rows and the classes."""
        return sha256_json([self.rows.digest(), self.classes])


class Form(NamedTuple):
    """One form of pairs.

    Attributes:
        form: what its texts look like, for people.
        pattern: what all of them match from their start.
        opener: ``module:function`` below ``edgeclip.training.data``, imported when one is opened; takes the texts and
            the recipe's ``Data``.
    """

    form: str
    pattern: str
    opener: str


FORMS = (
    Form("pipe:COMMAND or http(s)://… that gives a tar", r"pipe:|https?://", "shards:open_shards"),
    Form("WebDataset shards (*.tar, *.tar.gz)", r".*\.(tar|tar\.gz|tgz)$", "shards:open_shards"),
    Form("a table (*.csv, *.tsv)", r".*\.(csv|tsv)$", "tables:open_tables"),
    Form("JSON lines (*.jsonl)", r".*\.(jsonl|ndjson)$", "tables:open_json_lines"),
)
FOLDER = Form("a folder of images, or of one folder a class", "", "folders:open_folder")


def open_pairs(data: Data) -> PairSource:
    """Open the pairs of a recipe by the form of their names (see docs/training-data.md).

    Args:
        data: ``pairs`` is one name or several of the same form.

    Raises:
        SourceError: nothing there, names of several forms, or a table without its columns.
        TrainingError: no shard matches, or class names that cannot be read.
    """
    texts = (data.pairs,) if isinstance(data.pairs, str) else data.pairs
    if not texts or not all(texts):
        raise SourceError(f"expected data.pairs as {_forms()}, got nothing")
    openers = {form_of(text, "data.pairs").opener for text in texts}
    if len(openers) > 1:
        raise SourceError(f"expected all of data.pairs in one form, got {', '.join(texts)}: convert one of them")
    module, function = openers.pop().split(":")
    opened: PairSource = getattr(import_module(f"edgeclip.training.data.{module}"), function)(texts, data)
    return opened


def form_of(text: str, what: str) -> Form:
    """The form of pairs that a name stands for.

    Args:
        what: how messages call what was given: an option, a recipe's key.

    Raises:
        SourceError: none, or there is no such file or folder.
    """
    if Path(text).is_dir():
        return FOLDER
    for form in FORMS:
        if re.match(form.pattern, text, re.IGNORECASE | re.DOTALL):
            return form
    if Path(text).exists() or glob.has_magic(text):
        raise SourceError(f"expected {what} as {_forms()}, got {text!r}, which is none of them")
    raise SourceError(f"expected {what} as {_forms()}, got {text!r}: no such file or folder")


def _forms() -> str:
    return ", ".join(form.form for form in (*FORMS, FOLDER))
