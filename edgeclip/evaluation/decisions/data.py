"""Images and what people say is on them in; pictures with a table's labels out, and a record to fit again from.

Labels come as folders, shards, CSV, TSV or JSONL (``open_labelled``), or as lines that ``edgeclip label --jsonl`` wrote
and somebody reviewed. The record names images by digest, so that decisions are fitted again from cached embeddings with
no image at hand.

A reviewed line has a key ``reviewed``: the label that is right, ``"unknown"`` for none of the
classes, ``true`` where the line's own label is right, or ``false`` where it is not and the right one is not said, which
counts as unknown. Lines without it, or with ``null``, are passed over. A line is of a frame of a video (its ``frame``),
which its ``source`` or the option ``source`` names, or of an image (its ``file``, beside the lines or in the folder
that ``source`` is).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeclip.calibration.decisions.confidence import NONE, Labels
from edgeclip.calibration.hashed_images import HashedImage, HashedImages, Item
from edgeclip.documents import decode_json, read_bytes
from edgeclip.errors import InputError, SourceError
from edgeclip.evaluation.data.class_sets import plain_name
from edgeclip.evaluation.data.dataset import open_labelled
from edgeclip.files import cache_dir, keep_json, kept_json, sha256_file, sha256_json
from edgeclip.prompts import PromptTable
from edgeclip.runtime.images import Image
from edgeclip.runtime.records import UNKNOWN
from edgeclip.runtime.sources.address import without_password
from edgeclip.runtime.sources.base import Frame
from edgeclip.runtime.sources.open import open_source

KEY = "reviewed"


class _Line(msgspec.Struct):
    frame: int | None = None
    label: str | None = None
    file: str | None = None
    source: str = ""
    reviewed: str | bool | None = None


def is_reviewed(path: str) -> bool:
    """Whether a file is JSONL in which some line has a verdict."""
    file = Path(path)
    if file.suffix.lower() not in {".jsonl", ".ndjson"} or not file.is_file():
        return False
    with file.open("rb") as lines:
        return any(b'"reviewed"' in line for line in lines)


class Reviewed:
    """Reviewed frames, by source and in the order of their numbers, so that each video is decoded once.

    Attributes:
        labels: of each picture.
    """

    def __init__(self, pictures: list[tuple[HashedImage, str]]) -> None:
        self._pictures = [picture for picture, _ in pictures]
        self.labels = tuple(label for _, label in pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __iter__(self) -> Iterator[HashedImage]:
        return iter(self._pictures)


def open_reviewed(path: Path, source: str = "") -> Reviewed:
    """Read reviewed lines; videos are opened when a frame of theirs is asked for.

    Args:
        path: the lines.
        source: the video or folder of images that lines without a source are of.

    Raises:
        InputError: a line that cannot be understood, or none that was reviewed.
        SourceError: a video or image that is not there.
    """
    frames: list[tuple[Path, int, str]] = []
    images: list[tuple[HashedImage, str]] = []
    for number, raw in enumerate(read_bytes(path).splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            line = decode_json(raw, _Line, where="it")
        except InputError as error:
            raise InputError(f"{path}:{number} is not a reviewed line ({error}): see docs/calibration.md") from error
        if line.reviewed is None:
            continue
        label = _label(line, path, number)
        if line.file:
            images.append((Item(line.file, _beside(path, source, line.file)), label))
        elif line.frame is None:
            raise InputError(f"{path}:{number} names no frame and no file: expected a line of edgeclip label --jsonl")
        else:
            frames.append((_video(path, line.source or source, number), line.frame, label))
    if not frames and not images:
        raise InputError(f'expected lines with "{KEY}" in {path}, got none: add the right label to some')
    decoders = {video: _Decoder(video) for video, _, _ in frames}
    ordered = sorted(frames, key=lambda each: (str(each[0]), each[1]))
    return Reviewed([*images, *((_VideoFrame(decoders[video], at), label) for video, at, label in ordered)])


def _label(line: _Line, path: Path, number: int) -> str:
    if isinstance(line.reviewed, str):
        return line.reviewed
    if line.reviewed is False:
        return UNKNOWN
    if not line.label:
        raise InputError(f'{path}:{number} is reviewed as true, but has no "label": write the label itself')
    return line.label


def _beside(path: Path, source: str, file: str) -> Path:
    places = [path.parent / file, *([Path(source) / file] if source else [])]
    return next((place for place in places if place.is_file()), places[-1])


def _video(path: Path, source: str, number: int) -> Path:
    if not source:
        raise InputError(f"{path}:{number} does not say which video it is of: pass `source`, a file")
    places = [Path(source), path.parent / source]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SourceError(
            f"expected the video {without_password(source)!r} of {path}:{number}, got no such file: pass `source`, a "
            "file"
        )
    return found


class _Decoder:
    """Frames of one video by number; asked for in rising order it is decoded once."""

    def __init__(self, video: Path) -> None:
        self.video = video
        self._stream: Iterator[Frame] | None = None
        self._at = -1

    def read(self, index: int) -> Image:
        if self._stream is None or index <= self._at:
            self._stream = iter(open_source(str(self.video)))
        for frame in self._stream:
            self._at = frame.index
            if frame.index == index:
                return frame.rgb()
            if frame.index > index:
                break
        self._stream = None
        raise SourceError(f"expected a frame {index} in {self.video}, got none: are the lines of this video?")


class _VideoFrame:
    def __init__(self, decoder: _Decoder, index: int) -> None:
        self._decoder, self._index = decoder, index

    def digest(self) -> str:
        """Of the video and the frame's number: no frame is decoded whose embedding is known."""
        content: Any = f"{sha256_file(self._decoder.video)}:{self._index}"
        return hashlib.sha256(content.encode()).hexdigest()

    def read(self) -> Image:
        """The frame, (H, W, 3) uint8 RGB."""
        return self._decoder.read(self._index)


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

    items: HashedImages
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
            keep_json(path, record)
        return name


class RecordedImage:
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
            f"expected the embedding of image {self._digest[:12]} in the cache, got none: pass `data` again"
        )


class _Recorded:
    def __init__(self, record: Record) -> None:
        self._digests = [digest for digest, _ in record.images]

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[HashedImage]:
        return map(RecordedImage, self._digests)


def open_decision_data(options: DataOptions, table: PromptTable) -> DecisionData:
    """Open labelled images and find their labels in a table, by label or by any of a class's names.

    Raises:
        SourceError: nothing there, or no labels.
        InputError: labels that are not in the table, all of them where ``others`` is set.
    """
    if is_reviewed(options.data):
        reviewed = open_reviewed(Path(options.data), options.source)
        found: list[tuple[str, ...]] = [(label,) for label in reviewed.labels]
        items: HashedImages = reviewed
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
    record = kept_json(_place(digest), Record)
    if record is None:
        raise InputError(
            f"expected the record of the labelled images in the cache ({digest[:12]}), got none that can be read: "
            "pass `data` again"
        )
    return DecisionData(_Recorded(record), tuple(label for _, label in record.images), record.options)


def digests_of(items: HashedImages) -> list[str | None]:
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
            f"({', '.join(sorted(names[0] for names in strange)[:5])}): correct them, give their names with `names`, "
            "or pass `others` for images of none of the classes"
        )
    background = set(table.background)
    labels = [named[names] or UNKNOWN for names in found]
    labels = [UNKNOWN if label in background else label for label in labels]
    if not Counter(labels).keys() - {UNKNOWN}:
        raise InputError(
            f"expected labelled images of classes of table {table.name!r}, got {len(labels)} of none of them: check "
            "the labels, or fit without labels with `footage`"
        )
    return tuple(labels)


def _place(digest: str) -> Path:
    return cache_dir("decision-data") / f"{digest}.json"
