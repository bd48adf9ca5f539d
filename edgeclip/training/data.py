"""WebDataset shards or class folders in, labelled images out."""

from __future__ import annotations

import glob
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeclip.errors import SourceError, TrainingError
from edgeclip.runtime.images import IMAGE_SUFFIXES, Image, decode_image


@dataclass(frozen=True)
class Sample:
    """One labelled image: its key in the shard, (H, W, 3) uint8 RGB, and the index of its class."""

    key: str
    image: Image
    label: int


class Shards:
    """Labelled images of WebDataset tars: each sample an image and a ``.cls`` file of the same stem.

    Args:
        pattern: glob of the tars, relative to the working directory.

    Attributes:
        paths: the tars, sorted.
        skipped: samples passed over so far because their image or label is missing or damaged.

    Raises:
        TrainingError: no shard matches.
    """

    def __init__(self, pattern: str) -> None:
        self.paths = sorted(Path(path) for path in glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute
        self.skipped = 0
        if not self.paths:
            raise TrainingError(f"expected shards at {pattern}, got none: check the path and the working directory")

    def __iter__(self) -> Iterator[Sample]:
        count = 0
        for path in self.paths:
            for sample in self._read(path):
                count += 1
                yield sample
        if not count:
            raise TrainingError(f"no sample in {len(self.paths)} shards could be read ({self.skipped} were damaged)")

    def _read(self, path: Path) -> Iterator[Sample]:
        key, image, label = "", None, None
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = PurePosixPath(member.name)
                    if not member.isfile():
                        continue
                    if str(name.with_suffix("")) != key:
                        yield from self._complete(path, key, image, label)
                        key, image, label = str(name.with_suffix("")), None, None
                    stream = archive.extractfile(member)
                    data = stream.read() if stream else b""
                    if name.suffix in IMAGE_SUFFIXES:
                        image = data
                    elif name.suffix == ".cls":
                        label = data
        except tarfile.TarError as error:
            raise TrainingError(f"{path} is not a readable tar ({error}): copy it again") from error
        yield from self._complete(path, key, image, label)

    def _complete(self, path: Path, key: str, image: bytes | None, label: bytes | None) -> Iterator[Sample]:
        if not key:
            return
        try:
            if image is None or label is None:
                raise ValueError("image or label missing")
            yield Sample(key, decode_image(image, name=f"{path.name}:{key}"), int(label))
        except (SourceError, ValueError):
            self.skipped += 1


def read_class_names(path: Path) -> list[list[str]]:
    """Names of each class, in label order, from a JSON list of names, of lists of names, or of ``{"names": [...]}``.

    Raises:
        TrainingError: absent, malformed, or a class without a name.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"expected a JSON list of class names at {path} ({error})") from error
    names: list[list[str]] = []
    for item in loaded if isinstance(loaded, list) else []:
        given = item.get("names", []) if isinstance(item, dict) else item
        names.append([given] if isinstance(given, str) else [str(name) for name in given])
    if not names or not all(names):
        raise TrainingError(f"expected a name for every class in {path}, got {len(names)} classes")
    return names
