"""Texts that name sources in; frames of all of them, one source after another and thinned out in time, out: each with
what the encoder makes of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeclip.calibration.choice.bins import (
    Exposure,
    exposure_of,
    image_time,
    of_the_day,
    of_the_video,
    video_start,
)
from edgeclip.calibration.choice.chosen_set import FootageSample
from edgeclip.calibration.images import find_images
from edgeclip.errors import InputError, SourceError
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.gate import DEFAULT_THRESHOLD, Cells, average, difference
from edgeclip.runtime.images import decode_image
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.address import without_password
from edgeclip.runtime.sources.base import Source
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.sources.stills import ImageSource, ImagesSource

_SLACK_S = 1e-6
SAMPLED = 1024  # frames that footage is compared by
_LIVE_S = 60.0  # how long a camera is read unless it is said
_SAME_LIGHT = 4.0  # grey levels that the whole picture may change by and still count as unchanged


@dataclass(frozen=True)
class Sampling:
    """Which frames are looked at.

    Attributes:
        every_s: of a video or camera, a frame every so many seconds.
        duration_s: read so many seconds of each; None for all of a file, 60 s of a camera.
    """

    every_s: float = 0.2
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.every_s) and self.every_s >= 0):
            raise InputError(f"expected --every of at least 0 seconds, got {self.every_s}")
        if self.duration_s is not None and not self.duration_s > 0:
            raise InputError(f"expected --duration above 0 seconds, got {self.duration_s}")


class Shot(NamedTuple):
    """One frame of the footage.

    Attributes:
        source: number of its source.
        frame, time_s: index and time of a ``Frame``; a file's position, and 0.
        pixels: decoded.
        moment: bin of the time at which it was taken.
        content, path: an image file's bytes and place; None for a video frame.
        sha256: of the bytes; empty for a video frame.
    """

    source: int
    frame: int
    time_s: float
    pixels: Pixels
    moment: str
    content: bytes | None = None
    path: Path | None = None
    sha256: str = ""


class Footage:
    """Sources, all opened at once so that a wrong one is refused before anything is read; inside a ``with`` block.

    Args:
        texts: as ``open_source`` takes them; a folder is searched recursively, and of a
            folder that ``edgeclip calibrate images`` wrote only its images are taken.

    Attributes:
        names: of the sources, without passwords.
        failed: for each source, files and frames that could not be decoded.

    Raises:
        SourceError: one cannot be opened, or none is given.
    """

    def __init__(self, texts: Sequence[str], sampling: Sampling) -> None:
        if not texts:
            raise SourceError("expected at least one source of images, got none: name a folder, a video or a camera")
        self.names = [without_password(text) for text in texts]
        self.failed = [0] * len(texts)
        self._texts, self._sampling = list(texts), sampling
        self._stack = contextlib.ExitStack()
        self._opened: list[Source | list[Path]] = []
        try:
            for text in texts:
                self._opened.append(self._open(text))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Footage:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Shot]:
        for number, opened in enumerate(self._opened):
            yield from self._files(number, opened) if isinstance(opened, list) else self._frames(number, opened)

    def _open(self, text: str) -> Source | list[Path]:
        if Path(text).is_dir():
            return find_images(Path(text))
        source = open_source(text)
        if isinstance(source, ImagesSource):
            return source.paths
        if isinstance(source, ImageSource):
            return [Path(text)]
        return self._stack.enter_context(source)

    def _files(self, number: int, paths: Sequence[Path]) -> Iterator[Shot]:
        for index, path in enumerate(paths):
            try:
                content = path.read_bytes()
                pixels = decode_image(content, name=str(path))
            except (OSError, SourceError):
                self.failed[number] += 1
                continue
            digest = hashlib.sha256(content).hexdigest()
            yield Shot(number, index, 0.0, pixels, of_the_day(image_time(path, content)), content, path, digest)

    def _frames(self, number: int, source: Source) -> Iterator[Shot]:
        sampling, text = self._sampling, self._texts[number]
        limit_s = sampling.duration_s or (_LIVE_S if source.live else math.inf)
        began = datetime.now(timezone.utc) if source.live else video_start(Path(text)) if Path(text).is_file() else None
        length_s = source.total / source.fps if source.total and source.fps else None
        due_s = -math.inf
        for frame in source:
            if frame.time_s >= limit_s:
                break
            if frame.time_s < due_s - _SLACK_S:
                continue
            due_s = frame.time_s + sampling.every_s
            moment = (
                of_the_day(began + timedelta(seconds=frame.time_s)) if began else of_the_video(frame.time_s, length_s)
            )
            yield Shot(number, frame.index, frame.time_s, frame.pixels, moment)
        self.failed[number] = source.failed


class Look(NamedTuple):
    """What the encoder makes of a frame.

    Attributes:
        row: unit embedding (D,).
        cells: luma of what it saw, averaged over cells, float32.
        exposure: of what it saw.
        changed: False if the frame does not differ from the one before: it was not encoded, and has that one's row.
    """

    shot: Shot
    row: FloatArray
    cells: Cells
    exposure: Exposure
    changed: bool


def embedded(
    footage: Footage, encoder: ImageEncoder, *, progress: Callable[[int], None] | None = None
) -> Iterator[Look]:
    """Go through the footage once, one frame held at a time.

    Args:
        progress: called with the number of frames looked at.

    Raises:
        SourceError: no frame can be read.
        EngineError: the encoder failed.
    """
    before: Look | None = None
    count = 0
    for shot in footage:
        small = encoder.preprocess.resize(shot.pixels)
        cells = average(small)
        row = before.row if before and not _differs(shot, cells, before) else None
        look = Look(
            shot,
            encoder.encode_preprocessed(encoder.preprocess.normalise_batch(small[None]))[0] if row is None else row,
            cells if before is None or row is None else before.cells,  # so that a slow change adds up
            exposure_of(small),
            row is None,
        )
        before = look
        count += 1
        if progress and count % 32 == 0:
            progress(count)
        yield look
    if not count:
        raise SourceError(
            f"expected images in {', '.join(footage.names)}, got none that can be read ({sum(footage.failed)} are "
            "damaged): check one by hand"
        )


def _differs(shot: Shot, cells: Cells, before: Look) -> bool:
    """Whether a frame shows something else than the last one of its source that was encoded."""
    return (
        shot.source != before.shot.source
        or shot.path is not None
        or difference(cells, before.cells) > DEFAULT_THRESHOLD
        or abs(float(np.median(cells - before.cells))) > _SAME_LIGHT
    )


class FootageSampler:
    """Every frame offered is in the sample with the same chance (Vitter's algorithm R, 1985).

    Args:
        seed: decides which.
        size: most frames kept.
    """

    def __init__(self, seed: int, size: int = SAMPLED) -> None:
        self._kept: list[tuple[int, FloatArray, Exposure]] = []
        self._offered = 0
        self._size, self._random = size, random.Random(f"{seed} sample")

    def offer(self, look: Look) -> None:
        """Show it one more frame."""
        item = self._offered, look.row, look.exposure
        self._offered += 1
        if len(self._kept) < self._size:
            self._kept.append(item)
        elif (place := self._random.randrange(self._offered)) < self._size:
            self._kept[place] = item

    def sample(self) -> FootageSample:
        """What was kept, in the order of the footage."""
        kept = sorted(self._kept, key=lambda item: item[0])
        exposures = [(exposure.luma, exposure.contrast, exposure.saturation) for _, _, exposure in kept]
        return FootageSample(np.stack([row for _, row, _ in kept]), np.array(exposures, np.float32))
