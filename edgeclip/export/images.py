"""A folder of anybody's images in; out: different ones to prove on, to calibrate on and, with labels, to evaluate on.

No photograph is in two of the three.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from edgeclip.export.photographs import Photograph
from edgeclip.runtime.images import Image


class ImageSet(Sequence[Photograph]):
    """Different photographs as (name, (H, W, 3) uint8 RGB); one of a file is decoded when it is asked for.

    Attributes:
        digests: of each, hex sha256 of its pixels.
    """

    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.digests)

    @overload
    def __getitem__(self, index: int) -> Photograph: ...
    @overload
    def __getitem__(self, index: slice) -> list[Photograph]: ...
    def __getitem__(self, index: int | slice) -> Photograph | list[Photograph]:
        raise NotImplementedError


@dataclass(frozen=True)
class ImageSplit:
    """What became of the images.

    Attributes:
        golden: to prove on.
        calibration: to measure ranges on; empty if none was asked for.
        evaluation: (file, name of its class folder) of the others; empty where the folder is not one folder a class.
        told: what was left out and why, and what there was too little of, in sentences.
    """

    golden: ImageSet
    calibration: ImageSet
    evaluation: tuple[tuple[Path, str], ...]
    told: tuple[str, ...]


def split_images(
    images: Path | Sequence[Image],
    *,
    golden: int = 64,
    calibration: int = 128,
    seed: int = 0,
    calibrated: Iterable[Image] = (),
) -> ImageSplit:
    """Split images by what is in them: the same content is in one part, whatever its files are called.

    Args:
        images: a folder, searched recursively; labelled if each image lies in a folder of its class. Or arrays.
        golden: at most so many to prove on.
        calibration: at most so many to measure ranges on; 0 for none.
        seed: another one splits otherwise.
        calibrated: images that ranges are measured on already: what is also among them is left out.

    Raises:
        SourceError: too few different images that can be decoded.
    """
    raise NotImplementedError
