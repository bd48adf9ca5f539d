"""A choice of calibration images in, a folder that says how it was made out; and back, every image checked by its hash.

::

    calib/
      calibration.json         how it was chosen, the images in the order in which they were taken, coverage
      images/0000-….png        frames of videos without loss, image files as they were
      held_out.safetensors     embeddings of footage held out, for comparisons (float32, unit rows)
      coverage.html, .png      for people
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, overload

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from edgeclip.calibration.choice.bins import Exposure
from edgeclip.calibration.choice.coverage import Coverage
from edgeclip.errors import IntegrityError, SourceError
from edgeclip.prompts import FloatArray
from edgeclip.runtime.images import Image, decode_image

RECORD = "calibration.json"
IMAGES = "images"
HELD_OUT = "held_out.safetensors"
SCHEMA = "edgeclip.calibration/1"


class ChosenImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image of the set.

    Attributes:
        file: below the folder.
        sha256: of the file.
        source: number of its source.
        frame, time_s: of a video; the file's position in its folder, and 0.
        name: the image file's, or the frame's.
        exposure: as measured, and its bin.
        moment: bin of when it was taken.
        distance: to the nearest image taken before it; 2 for the first.
        stands_for: frames that were absorbed by it, itself included.
    """

    file: str
    sha256: str
    source: int
    frame: int
    time_s: float
    name: str
    exposure: Exposure
    stratum: str
    moment: str
    distance: float
    stands_for: int


class SourceRecord(msgspec.Struct, frozen=True):
    """One source: its address without a password, and how many of its files or frames could not be decoded."""

    name: str
    unreadable: int


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the frames that were looked at.

    Attributes:
        seen: all; candidates: those to choose from; gap: left out for being near held-out ones.
        held_out: frames held out, of which at most 2,048 are kept.
        unchanged: like the frame before, not encoded again.
        near_duplicates: like one already in the pool, in embedding and luma.
        absorbed: so near to one in the pool that the full pool had no place for both.
        pool, pool_size: most candidates held at once, and most that could be.
    """

    seen: int
    candidates: int
    gap: int
    held_out: int
    unchanged: int
    near_duplicates: int
    absorbed: int
    pool: int
    pool_size: int


class CalibrationSet(msgspec.Struct, frozen=True, kw_only=True):
    """What ``calibration.json`` holds.

    Attributes:
        options: as given, with defaults.
        model_id, variant, graph_sha256, engine: what the embeddings were made with.
        radius: no member of the pool lies farther from the choice.
        slack: no frame lay farther from the pool (near-duplicates: cosine 0.985), so radius + slack covers all.
        reserved, edge: how many were taken for their exposure or time, and farthest first.
        coverage: None if nothing was held out.
        notes: what a reader should know, in sentences.
    """

    schema: str = SCHEMA
    edgeclip: str
    options: dict[str, str | int | float | None]
    model_id: str
    variant: str
    graph_sha256: str
    engine: str
    sources: tuple[SourceRecord, ...]
    counts: Counts
    radius: float
    slack: float
    reserved: int
    edge: int
    exposures: dict[str, int]
    moments: dict[str, int]
    coverage: Coverage | None
    notes: tuple[str, ...]
    images: tuple[ChosenImage, ...]


class Held(NamedTuple):
    """Footage held out: unit embeddings (N, D), exposures (N, 3) as in ``Exposure``, block of each (N,)."""

    rows: FloatArray
    exposures: FloatArray
    blocks: np.typing.NDArray[np.int32]


def is_chosen_set(folder: Path) -> bool:
    """Whether ``edgeclip calibrate images`` wrote this folder."""
    return (folder / RECORD).is_file() and (folder / IMAGES).is_dir()


def read_record(folder: Path) -> CalibrationSet:
    """Read ``calibration.json``.

    Raises:
        SourceError: absent, or not of this schema.
    """
    path = folder / RECORD
    try:
        record = msgspec.json.decode(path.read_bytes(), type=CalibrationSet)
    except (OSError, msgspec.DecodeError) as error:
        raise SourceError(f"expected the record of a calibration set in {path}, got: {error}") from error
    if record.schema != SCHEMA:
        raise SourceError(f"expected {path} of schema {SCHEMA}, got {record.schema}: choose the images again")
    return record


class ChosenImages(Sequence[Image]):
    """All images of a set, in the order in which they were taken, each (H, W, 3) uint8 RGB.

    All are checked here; each is decoded when it is asked for, so that a set of large frames does not fill the memory.

    Raises:
        SourceError: the record is damaged; when one is asked for: it cannot be decoded.
        IntegrityError: an image is missing or is not the one that was chosen.
    """

    def __init__(self, folder: Path) -> None:
        self._items = [(folder / item.file, item.sha256) for item in read_record(folder).images]
        for path, sha256 in self._items:
            _content(path, sha256)

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        path, sha256 = self._items[index]
        return decode_image(_content(path, sha256), name=str(path))


def _content(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"expected {path} of {RECORD}, got: {error.strerror}: choose again") from error
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise IntegrityError(
            f"expected {path} with sha256 {sha256[:12]}…, got {digest[:12]}…: it is not the image that was chosen; "
            "copy the folder again or choose again"
        )
    return content


def write_held(folder: Path, held: Held) -> None:
    """Write ``held_out.safetensors``; the caller's folder is temporary."""
    save_file({name: np.ascontiguousarray(value) for name, value in held._asdict().items()}, folder / HELD_OUT)
    (folder / HELD_OUT).chmod(0o644)  # the library makes files that only their owner can read


def read_held(folder: Path) -> Held:
    """Read what ``write_held`` wrote.

    Raises:
        SourceError: absent or damaged.
    """
    path = folder / HELD_OUT
    try:
        found = load_file(path)
        return Held(found["rows"], found["exposures"], found["blocks"])
    except (OSError, KeyError, SafetensorError) as error:
        raise SourceError(f"expected footage held out in {path}, got: {error}: choose the images again") from error
