"""What can be read as an image and named by a digest: a file's bytes, or anything else with pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeclip.printable import path_text
from edgeclip.runtime.images import Image, decode_image, read_image_bytes


class HashedImage(Protocol):
    """What is embedded: an ``Item``, or anything else with a digest and pixels."""

    def digest(self) -> str:
        """Hex sha256 that decides the pixels; SourceError if there is nothing to read."""
        ...

    def read(self) -> Image:
        """(H, W, 3) uint8 RGB; SourceError if it cannot be decoded."""
        ...


class HashedImages(Protocol):
    """Images whose number is known; they are gone through once, in order."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[HashedImage]: ...


@dataclass(frozen=True)
class Item:
    """One image of a set, not yet decoded.

    Attributes:
        key: unique within the set, for messages.
        image: an encoded image (JPEG, PNG, …), or the path of one.
        label: index of its class; -1 in a captioned set.
    """

    key: str
    image: bytes | Path
    label: int = -1

    def content(self) -> bytes:
        """The encoded image; SourceError if its file cannot be read."""
        if isinstance(self.image, bytes):
            return self.image
        return read_image_bytes(self.image)

    def digest(self) -> str:
        """Hex sha256 of the encoded image: what embeddings are kept under."""
        return hashlib.sha256(self.content()).hexdigest()

    def read(self) -> Image:
        """The image, (H, W, 3) uint8 RGB.

        Raises:
            SourceError: missing, damaged or not an image.
        """
        return decode_image(self.content(), name=path_text(self.image) if isinstance(self.image, Path) else self.key)


def files(paths: Sequence[Path]) -> list[Item]:
    """Image files as what ``image_embeddings`` takes."""
    return [Item(path_text(path), path) for path in paths]
