"""A source of pairs in, its decoded images out, once and in the stored order: for features and validation.

With labels, for the names of the classes too: ``read_class_names`` reads them from a file.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgeclip.class_names import read_classes
from edgeclip.documents import read_json
from edgeclip.errors import PromptError, SourceError, TrainingError
from edgeclip.runtime.images import Image, decode_image, read_image, read_image_bytes
from edgeclip.training.data.pairs import Damaged, ImageTextPair, PairSource, Share, Tally


@dataclass(frozen=True)
class LabelledImage:
    """One labelled image: its key in the source, (H, W, 3) uint8 RGB, and the index of its class."""

    key: str
    image: Image
    label: int


class LabelledSamples:
    """Every labelled image of a source that can be read.

    Attributes:
        source: where they come from.
        skipped: what the last pass left out because its image or label is missing or damaged.
    """

    def __init__(self, source: PairSource) -> None:
        self.source = source
        self.skipped = Tally()

    def __iter__(self) -> Iterator[LabelledImage]:
        """One pass.

        Raises:
            TrainingError: nothing that can be read.
        """
        self.skipped, count = Tally(), 0
        for pair, image in decoded_pairs(self.source, self.skipped):
            if pair.label < 0:
                self.skipped.add(Damaged(pair.key, "label missing"))
                continue
            count += 1
            yield LabelledImage(pair.key, image, pair.label)
        if not count:
            raise TrainingError(f"no sample in {self.source.name} could be read ({self.skipped})")


def decoded_pairs(source: PairSource, skipped: Tally) -> Iterator[tuple[ImageTextPair, Image]]:
    """Every pair whose image can be read, with that image, (H, W, 3) uint8 RGB; the others are added to ``skipped``."""
    for item in source.read(Share()):
        if isinstance(item, Damaged):
            skipped.add(item)
            continue
        try:
            image = decoded(item)
        except SourceError as error:
            skipped.add(Damaged(item.key, str(error)))
            continue
        yield item, image


def decoded(pair: ImageTextPair) -> Image:
    """The image of a pair, (H, W, 3) uint8 RGB.

    Raises:
        SourceError: missing, damaged or not an image.
    """
    return read_image(pair.image) if isinstance(pair.image, Path) else decode_image(pair.image, name=pair.key)


def content_digest(source: PairSource) -> str:
    """Hex sha256 of all that a source holds, whatever its form: keys, images, captions, labels. Reads it all."""
    digest = hashlib.sha256()
    for item in source.read(Share()):
        digest.update(repr(item if isinstance(item, Damaged) else (item.key, item.captions, item.label)).encode())
        if isinstance(item, ImageTextPair):
            try:
                digest.update(item.image if isinstance(item.image, bytes) else read_image_bytes(item.image))
            except SourceError as error:  # a missing image is part of what it holds
                digest.update(str(getattr(error.__cause__, "strerror", None)).encode())
    return digest.hexdigest()


def read_class_names(path: Path, *, folders: Sequence[str] = ()) -> list[list[str]]:
    """Names of each class, in label order.

    The file is a JSON list of names, of lists of names or of ``{"names": [...]}``; or, where classes are folders, an
    object of folder name → name or names; or any other file that ``parse_classes`` reads: one class a line, say.

    Args:
        folders: the class folders in label order, if classes are folders.

    Raises:
        TrainingError: absent, malformed, a class without a name, or another number of classes than folders.
    """
    try:
        if path.suffix == ".json":
            names = _from_json(read_json(path, _Names, error=TrainingError), folders)
        else:
            names = [list(item.names) for item in read_classes(path)]
    except (KeyError, PromptError) as error:
        raise TrainingError(f"expected class names at {path} ({error})") from error
    if not names or not all(all(each) and each for each in names):
        raise TrainingError(f"expected a name for every class in {path}, got {len(names)} classes")
    if folders and len(names) != len(folders):
        raise TrainingError(f"expected names for {len(folders)} class folders in {path}, got {len(names)}")
    return names


class _Named(msgspec.Struct, frozen=True):
    """A class with more said of it than its names."""

    names: str | list[str]


_Names: Any = dict[str, str | list[str]] | list[str | list[str] | _Named]


def _from_json(loaded: Any, folders: Sequence[str]) -> list[list[str]]:
    given = loaded
    if isinstance(loaded, dict):
        spelled = {unicodedata.normalize("NFC", name): value for name, value in loaded.items()}
        given = [spelled[folder] for folder in folders]
    names = [item.names if isinstance(item, _Named) else item for item in given]
    return [[each] if isinstance(each, str) else each for each in names]
