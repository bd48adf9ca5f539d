"""Images and what people say is on them in; pictures with a table's labels out, and a record to fit again from.

Labels come as folders, shards, CSV, TSV or JSONL (:func:`edgeclip.evaluation.dataset.open_labelled`), or as lines that
``edgeclip label --jsonl`` wrote and somebody reviewed (:mod:`edgeclip.evaluation.reviewed`). The record names images by
digest, so that decisions are fitted again from cached embeddings with no image at hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgeclip.calibration.confidence import NONE, Labels
from edgeclip.calibration.pictures import Picture, Pictures
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.class_sets import plain_name
from edgeclip.evaluation.dataset import open_labelled
from edgeclip.evaluation.reviewed import is_reviewed, open_reviewed
from edgeclip.files import cache_dir, sha256_json, write_json
from edgeclip.prompts import PromptTable
from edgeclip.runtime.images import Image
from edgeclip.runtime.records import UNKNOWN

_NOTHING = frozenset({UNKNOWN, "none", "other", "others", "background", "nothing"})


class DataOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where labelled images are, and how their labels are read.

    Attributes:
        data: a folder, shards, a table, or reviewed lines.
        names: a file of class names for folders, or "".
        others: labels that are not of the table are images of none of its classes; otherwise they are an error.
        source: the video or folder that reviewed lines are of, where they do not say it.
    """

    data: str
    names: str = ""
    others: bool = False
    source: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Labelled images by digest, with where they were read from."""

    options: DataOptions
    images: list[tuple[str, str]]


@dataclass(frozen=True)
class DecisionData:
    """Images with labels.

    Attributes:
        items: N pictures.
        labels: of each, a label of the table as it was, or ``unknown``.
        options: where they come from.
    """

    items: Pictures
    labels: tuple[str, ...]
    options: DataOptions

    def truth(self, table: PromptTable) -> Labels:
        """Row (N,) of each image's class in a table; ``NONE`` for unknown ones, and for classes that it lacks."""
        row_of = {label: row for row, label in enumerate(table.labels)}
        return np.array([row_of.get(label, NONE) for label in self.labels], np.int64)

    def keep(self, digests: Sequence[str | None]) -> str:
        """Write the record of the images that could be read; its digest."""
        images = [(digest, label) for digest, label in zip(digests, self.labels, strict=True) if digest]
        record = Record(options=self.options, images=images)
        name = sha256_json(record)
        path = _place(name)
        if not path.is_file():
            write_json(path, record)
        return name


class RecordedPicture:
    """An image of a record: its embedding may be known, its pixels are not."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def digest(self) -> str:
        """Hex sha256 of the image as it was."""
        return self._digest

    def read(self) -> Image:
        """Not possible.

        Raises:
            SourceError: always.
        """
        raise SourceError(
            f"expected the embedding of image {self._digest[:12]} in the cache, got none: pass --data again"
        )


class _Recorded:
    def __init__(self, record: Record) -> None:
        self._digests = [digest for digest, _ in record.images]

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[Picture]:
        return map(RecordedPicture, self._digests)


def open_decision_data(options: DataOptions, table: PromptTable) -> DecisionData:
    """Open labelled images and find their labels in a table, by label or by any of a class's names.

    Raises:
        SourceError: nothing there, or no labels.
        InputError: labels that are not in the table, all of them where ``others`` is set.
    """
    if is_reviewed(options.data):
        reviewed = open_reviewed(Path(options.data), options.source)
        found: list[tuple[str, ...]] = [(label,) for label in reviewed.labels]
        items: Pictures = reviewed
    else:
        labelled = open_labelled(options.data, Path(options.names) if options.names else None)
        names = [(item.label, *item.names) for item in labelled.classes]
        found = [names[label] for label in labelled.labels.tolist()]
        items = labelled.items
    return DecisionData(items, _labels(found, options, table), options)


def recorded_data(digest: str) -> DecisionData:
    """The labelled images that decisions were fitted on, as far as the cache has them.

    Raises:
        InputError: the record is gone.
    """
    try:
        record = msgspec.json.decode(_place(digest).read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            f"expected the record of the labelled images in the cache ({digest[:12]}), got none that can be read: "
            "pass --data again"
        ) from error
    return DecisionData(_Recorded(record), tuple(label for _, label in record.images), record.options)


def digests_of(items: Pictures) -> list[str | None]:
    """The digest of each picture; None where there is nothing to read."""
    found: list[str | None] = []
    for item in items:
        try:
            found.append(item.digest())
        except SourceError:
            found.append(None)
    return found


def _labels(found: Sequence[tuple[str, ...]], options: DataOptions, table: PromptTable) -> tuple[str, ...]:
    label_of = {plain_name(name): item.label for item in table.classes for name in (*item.names, item.label)}
    named = {names: next((label_of[n] for n in map(plain_name, names) if n in label_of), None) for names in set(found)}
    strange = {names for names, label in named.items() if label is None and plain_name(names[0]) not in _NOTHING}
    if strange and not options.others:
        raise InputError(
            f"expected labels of table {table.name!r} or {UNKNOWN}, got {len(strange)} others "
            f"({', '.join(sorted(names[0] for names in strange)[:5])}): correct them, give their names with --names, "
            "or pass --others for images of none of the classes"
        )
    background = set(table.background)
    labels = [named[names] or UNKNOWN for names in found]
    labels = [UNKNOWN if label in background else label for label in labels]
    if not Counter(labels).keys() - {UNKNOWN}:
        raise InputError(
            f"expected labelled images of classes of table {table.name!r}, got {len(labels)} of none of them: check "
            "the labels, or fit without labels with --footage"
        )
    return tuple(labels)


def _place(digest: str) -> Path:
    return cache_dir("decision-data") / f"{digest}.json"
