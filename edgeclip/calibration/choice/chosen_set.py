"""A choice of calibration images in, a folder that says how it was made out; and back, every image checked by its hash.

::

    calib/
      calibration.json         how it was chosen, and the images in the order in which they were taken
      images/0000-….png        frames of videos without loss, image files as they were
      footage.safetensors      embeddings and exposures of frames of the footage, drawn at random, for ``drift``
      calibration.html         for people
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from safetensors.numpy import save_file

from edgeclip.calibration.choice.bins import Exposure
from edgeclip.calibration.lazy import Lazy
from edgeclip.documents import read_json
from edgeclip.errors import IntegrityError, SourceError, TableError
from edgeclip.key_cache import require_unit
from edgeclip.manifest import safe_path
from edgeclip.prompts import FloatArray
from edgeclip.runtime.images import Image, decode_image
from edgeclip.tensors import open_tensors

RECORD = "calibration.json"
IMAGES = "images"
SAMPLE = "footage.safetensors"
SCHEMA = "edgeclip.calibration/2"
_READABLE = (SCHEMA, "edgeclip.calibration/1")  # the first one had more in it, and another sample


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
        distance: of the unit embeddings, to the nearest image taken before it; 2 for the first.
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


class SourceRecord(msgspec.Struct, frozen=True):
    """One source: its address without a password, and how many of its files or frames could not be decoded."""

    name: str
    unreadable: int


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the frames that were looked at.

    Attributes:
        seen: all.
        unchanged: like the frame before, not encoded.
        near_duplicates: like one already in the pool, in embedding and luma.
        pool: different frames that were held at the end, to choose from.
    """

    seen: int
    unchanged: int
    near_duplicates: int
    pool: int


class CalibrationSet(msgspec.Struct, frozen=True, kw_only=True):
    """What ``calibration.json`` holds.

    Attributes:
        options: as given, with defaults.
        model_id, variant, graph_sha256, engine: what the embeddings were made with.
        exposures, moments: images of each.
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
    exposures: dict[str, int]
    moments: dict[str, int]
    notes: tuple[str, ...]
    images: tuple[ChosenImage, ...]


class FootageSample(NamedTuple):
    """Frames of footage drawn at random, in its order: unit embeddings (N, D), exposures (N, 3) as in ``Exposure``."""

    rows: FloatArray
    exposures: FloatArray


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
        record = read_json(path, CalibrationSet, error=SourceError)
    except SourceError as error:
        raise SourceError(f"expected the record of a calibration set in {path}, got: {error}") from error
    if record.schema not in _READABLE:
        raise SourceError(f"expected {path} of schema {SCHEMA}, got {record.schema}: choose the images again")
    return record


class ChosenImages(Lazy[Image]):
    """All images of a set, in the order in which they were taken, each (H, W, 3) uint8 RGB.

    All are checked here; each is decoded when it is asked for, so that a set of large frames does not fill the memory.

    Raises:
        SourceError: the record is damaged; when one is asked for: it cannot be decoded.
        IntegrityError: an image is missing or is not the one that was chosen.
    """

    def __init__(self, folder: Path) -> None:
        items = [(folder / safe_path(item.file), item.sha256) for item in read_record(folder).images]
        for path, sha256 in items:
            _content(path, sha256)
        super().__init__([partial(_decoded, path, sha256) for path, sha256 in items])


def _decoded(path: Path, sha256: str) -> Image:
    return decode_image(_content(path, sha256), name=str(path))


def _content(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null in it
        why = getattr(error, "strerror", None) or error
        raise IntegrityError(f"expected {path} of {RECORD}, got: {why}: choose again") from error
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise IntegrityError(
            f"expected {path} with sha256 {sha256[:12]}…, got {digest[:12]}…: it is not the image that was chosen; "
            "copy the folder again or choose again"
        )
    return content


def write_sample(folder: Path, sample: FootageSample) -> None:
    """Write ``footage.safetensors``; the caller's folder is temporary."""
    save_file({name: np.ascontiguousarray(value) for name, value in sample._asdict().items()}, folder / SAMPLE)
    (folder / SAMPLE).chmod(0o644)  # the library makes files that only their owner can read


def read_sample(folder: Path) -> FootageSample:
    """Read what ``write_sample`` wrote.

    Raises:
        SourceError: absent or damaged.
    """
    try:
        with open_tensors(folder / SAMPLE, error=SourceError) as stored:
            rows = stored.array("rows", "F32", (None, None))
            exposures = stored.array("exposures", "F32", (len(rows), 3))
        require_unit(rows, str(folder / SAMPLE))
        return FootageSample(rows, exposures)
    except (SourceError, TableError) as error:
        raise SourceError(f"expected a sample of the footage, got: {error}; choose the images again") from error
