"""A folder, shards or a table in, its labelled or captioned images out, read one at a time and as often as needed.

The forms are those that training reads (``training/data/pairs.py``), by the same readers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from edgeclip.calibration.hashed_images import Item
from edgeclip.errors import SourceError
from edgeclip.evaluation.data.class_sets import class_prompts, names_beside, set_prompts
from edgeclip.printable import path_text
from edgeclip.prompts import PromptClass
from edgeclip.runtime.sources.address import without_password
from edgeclip.training.data.folders import FolderPairs
from edgeclip.training.data.pairs import (
    FOLDER,
    Damaged,
    ImageTextPair,
    IndexedPairs,
    PairSource,
    Share,
    Tally,
    form_of,
    open_pairs,
)
from edgeclip.training.data.patterns import expand
from edgeclip.training.data.shards import ShardPairs
from edgeclip.training.data.streams import is_local
from edgeclip.training.data.tables import LABELS, open_json_lines, open_tables
from edgeclip.training.recipe import Data

Labels = npt.NDArray[np.int64]


class Items(Sequence[Item]):
    """The usable samples of a source. Nothing is held but where each lies and its label.

    To iterate reads the source once, from front to back. A single item of shards is found by reading up to it: iterate,
    or ``take`` what is needed, where there are many.

    Args:
        source: where they come from.
        places: (N,) number of each in the source's stored order, rising.
        labels: (N,) index of each one's class.
    """

    def __init__(self, source: PairSource, places: Labels, labels: Labels) -> None:
        self._source, self._places, self.labels = source, places, labels

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Item]:
        pairs = self._indexed() if isinstance(self._source, IndexedPairs) else self._streamed()
        for pair, label in zip(pairs, self.labels.tolist(), strict=True):
            yield Item(pair.key, pair.image, label)

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> Items: ...
    def __getitem__(self, row: int | slice) -> Item | Items:
        if isinstance(row, slice):
            return self.take(range(len(self))[row])
        return next(iter(self.take([range(len(self))[row]])))

    def take(self, rows: Sequence[int] | npt.NDArray[np.intp]) -> Items:
        """Some of them, in the stored order."""
        chosen = np.unique(np.asarray(rows, np.int64))
        return Items(self._source, self._places[chosen], self.labels[chosen])

    def _indexed(self) -> Iterator[ImageTextPair]:
        assert isinstance(self._source, IndexedPairs)
        return (_still(self._source.pair(place)) for place in self._places.tolist())

    def _streamed(self) -> Iterator[ImageTextPair]:
        stored = enumerate(self._source.read(Share()))
        for wanted in self._places.tolist():
            found = next((sample for place, sample in stored if place == wanted), None)
            yield _still(found)


@dataclass(frozen=True)
class LabelledSet:
    """Images of known class.

    Attributes:
        name: what reports call it.
        items: the images.
        classes: by label: the class's own name in the set (a folder's, say), and the names that prompts are made of.
        damaged: samples that were left out because an image or label is missing. What cannot be decoded shows later.
    """

    name: str
    items: Items
    classes: tuple[PromptClass, ...]
    damaged: Tally

    @property
    def labels(self) -> Labels:
        """Index (N,) of each image's class."""
        return self.items.labels

    @property
    def folders(self) -> tuple[str, ...]:
        """The classes' own names, in the order of labels."""
        return tuple(item.label for item in self.classes)


@dataclass(frozen=True)
class CaptionedSet:
    """Images and what is said of them.

    Attributes:
        name: what reports call it.
        items: N images.
        captions: M texts.
        own: (M,) which image each text is of.
        damaged: samples that were left out because an image or caption is missing.
    """

    name: str
    items: Items
    captions: tuple[str, ...]
    own: Labels
    damaged: Tally


def open_labelled(path: str | Path, names: Path | None = None, *, class_set: str = "") -> LabelledSet:
    """Open labelled images.

    Args:
        path: a folder with one folder of images a class, or of WebDataset tars; tars (globs, ``{000..009}``,
            ``pipe:`` commands and addresses too) with ``.cls``; CSV, TSV or JSONL with columns ``file`` and ``label``.
        names: a file of the classes' names; see ``class_prompts``. Classes that are
            numbers need one; shards may have it beside them, as ``classes.json`` or ``classnames.txt``.
        class_set: the usual name of a set whose class names to take, ``imagenet`` say.

    Raises:
        SourceError: nothing there, no labels, or labels without names.
        InputError: names that do not fit.
        TrainingError: a damaged tar, a table without rows, or an unreadable file of names.
    """
    text = str(path)
    source: PairSource
    folders: list[str] = []
    if form_of(text, "labelled images") is FOLDER:
        root = Path(text)
        if tars := sorted([*root.glob("*.tar"), *root.glob("*.tar.gz")]):
            source = ShardPairs([str(tar) for tar in tars], labels_only=True)
        else:
            if not any(item.is_dir() and not item.name.startswith(".") for item in root.iterdir()):
                raise SourceError(f"expected one folder a class in {root}, got none: sort the images, or use a CSV")
            source = folder = FolderPairs(root)
            folders = folder.folders
    elif (form := form_of(text, "labelled images")).opener.endswith(":open_shards"):
        source = ShardPairs(text, labels_only=True)
    else:
        opener = open_json_lines if form.opener.endswith(":open_json_lines") else open_tables
        source = opener((text,), Data(pairs=text), LABELS)
    samples = _labels_of(source)
    if folders:
        classes, labels = class_prompts(folders, names, class_set=class_set), [int(label) for label in samples.labels]
    elif all(label.isdecimal() for label in samples.labels):
        labels = [int(label) for label in samples.labels]
        beside = names_beside(_first_file(source, text))
        classes = set_prompts(max(labels) + 1, names, class_set=class_set, what=source.name, beside=beside)
    else:
        folders = sorted(set(samples.labels))
        index = {folder: row for row, folder in enumerate(folders)}
        labels = [index[label] for label in samples.labels]
        classes = class_prompts(folders, names, class_set=class_set)
    items = Items(source, np.array(samples.places, np.int64), np.array(labels, np.int64))
    return LabelledSet(set_name(text), items, classes, samples.damaged)


def open_captioned(path: str | Path) -> CaptionedSet:
    """Open captioned images: JSONL, CSV or TSV (an image may have several rows), or WebDataset tars with captions.

    Raises:
        SourceError: nothing there, or no captions.
        TrainingError: a damaged tar, or a table without rows that can be used.
    """
    source = open_pairs(Data(pairs=str(path)))
    damaged = Tally()
    captions: list[str] = []
    own: list[int] = []
    row_of: dict[str, int] = {}  # several rows may be of one file
    places: list[int] = []
    for place, pair in enumerate(source.read(Share())):
        if isinstance(pair, Damaged) or not pair.captions:
            damaged.add(pair if isinstance(pair, Damaged) else Damaged(pair.key, "caption missing"))
            continue
        row = row_of.setdefault(str(pair.image) if isinstance(pair.image, Path) else f"{place}", len(places))
        if row == len(places):
            places.append(place)
        captions += pair.captions
        own += [row] * len(pair.captions)
    if not captions:
        raise SourceError(f"expected captioned images in {path}, got none ({damaged})")
    items = Items(source, np.array(places, np.int64), np.full(len(places), -1, np.int64))
    return CaptionedSet(set_name(str(path)), items, tuple(captions), np.array(own, np.int64), damaged)


def set_name(path: str) -> str:
    """What reports call a set: its path, without a password."""
    return without_password(path_text(path))


@dataclass
class _Samples:
    places: list[int]
    labels: list[str]
    damaged: Tally


def _labels_of(source: PairSource) -> _Samples:
    """One pass over a source: its labels as texts, which may be numbers."""
    found = _Samples([], [], Tally())
    for place, pair in enumerate(source.read(Share())):
        if isinstance(pair, Damaged):
            found.damaged.add(pair)
        elif pair.label < 0 and not pair.captions:
            found.damaged.add(Damaged(pair.key, "label missing"))
        elif len(pair.captions) > 1:
            found.damaged.add(Damaged(pair.key, "several labels"))
        else:
            found.places.append(place)
            found.labels.append(unicodedata.normalize("NFC", pair.captions[0]) if pair.captions else str(pair.label))
    if not found.places:
        raise SourceError(f"expected labelled images in {source.name}, got none ({found.damaged})")
    return found


def _first_file(source: PairSource, text: str) -> Path | None:
    if isinstance(source, ShardPairs):
        return Path(source.shards[0]) if is_local(source.shards[0]) else None
    return Path(expand(text)[0])


def _still(found: ImageTextPair | Damaged | None) -> ImageTextPair:
    if isinstance(found, ImageTextPair):
        return found
    raise SourceError("the images changed while they were read: run it again when they are complete")
