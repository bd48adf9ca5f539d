"""Texts that name sources in; their frames, thinned out in time, out: each with what the encoder makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeclip.calibration.choice.bins import Exposure, exposure_of, image_time, of_the_day, of_the_video, video_start
from edgeclip.calibration.choice.chosen_set import FootageSample
from edgeclip.calibration.images import find_images
from edgeclip.errors import InputError, SourceError
from edgeclip.printable import path_text
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.gate import DEFAULT_THRESHOLD, Cells, average, difference
from edgeclip.runtime.images import decode_image, read_image_bytes
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.address import without_password
from edgeclip.runtime.sources.base import Source
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.sources.stills import ImageSource, ImagesSource

_log = logging.getLogger("edgeclip")

SAMPLED = 1024  # frames that footage is compared by
_SLACK_S = 1e-6
_NAMED = 20  # files of a source that cannot be decoded, in the log
_LIVE_S = 60.0  # how long a camera is read unless it is said
_SAME_LIGHT = 4.0  # grey levels that the whole picture may change by and still count as unchanged


class FootageFrame(NamedTuple):
    """One frame of the footage.

    Attributes:
        source: number of its source.
        frame, time_s: index and time of a ``Frame``; a file's position, and 0.
        pixels: decoded.
        moment: bin of the time at which it was taken.
        path, sha256: an image file's place and the digest of its bytes; None and empty for a video frame.
    """

    source: int
    frame: int
    time_s: float
    pixels: Pixels
    moment: str
    path: Path | None = None
    sha256: str = ""


class Footage:
    """Sources, all opened at once so that a wrong one is refused before anything is read; inside a ``with`` block.

    Args:
        texts: as ``open_source`` takes them; a folder is searched recursively, and of a folder that
            ``edgeclip calibrate images`` wrote only its images are taken.
        every_s: of a video or camera, a frame every so many seconds.
        duration_s: read so many seconds of each; None for all of a file, 60 s of a camera.

    Attributes:
        names: of the sources, without passwords.
        failed: for each source, files and frames that could not be decoded.

    Raises:
        InputError: a number of seconds is out of range.
        SourceError: one cannot be opened, or none is given.
    """

    def __init__(self, texts: Sequence[str], *, every_s: float = 0.2, duration_s: float | None = None) -> None:
        if not (math.isfinite(every_s) and every_s >= 0):
            raise InputError(f"expected every of at least 0 seconds, got {every_s}")
        if duration_s is not None and not duration_s > 0:
            raise InputError(f"expected duration above 0 seconds, got {duration_s}")
        if not texts:
            raise SourceError("expected at least one source of images, got none: name a folder, a video or a camera")
        self.names = [without_password(path_text(text)) for text in texts]
        self.failed = [0] * len(texts)
        self._texts, self._every_s, self._duration_s = list(texts), every_s, duration_s
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

    def __iter__(self) -> Iterator[FootageFrame]:
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

    def _files(self, number: int, paths: Sequence[Path]) -> Iterator[FootageFrame]:
        for index, path in enumerate(paths):
            try:
                content = read_image_bytes(path)
                pixels = decode_image(content, name=path_text(path))
            except SourceError as error:
                self.failed[number] += 1
                if self.failed[number] <= _NAMED:
                    _log.warning("passed over: %s", error)
                continue
            digest = hashlib.sha256(content).hexdigest()
            yield FootageFrame(number, index, 0.0, pixels, of_the_day(image_time(path, content)), path, digest)

    def _frames(self, number: int, source: Source) -> Iterator[FootageFrame]:
        text = self._texts[number]
        limit_s = self._duration_s or (_LIVE_S if source.live else math.inf)
        began = datetime.now(timezone.utc) if source.live else video_start(Path(text)) if Path(text).is_file() else None
        length_s = source.total / source.fps if source.total and source.fps else None
        due_s = -math.inf
        for frame in source:
            if frame.time_s >= limit_s:
                break
            if frame.time_s < due_s - _SLACK_S:
                continue
            due_s = frame.time_s + self._every_s
            moment = (
                of_the_day(began + timedelta(seconds=frame.time_s)) if began else of_the_video(frame.time_s, length_s)
            )
            yield FootageFrame(number, frame.index, frame.time_s, frame.pixels, moment)
        self.failed[number] = source.failed


class EmbeddedFrame(NamedTuple):
    """What the encoder makes of a frame.

    Attributes:
        row: unit embedding (D,).
        cells: luma of what it saw, averaged over cells, float32.
        exposure: of what it saw.
        changed: False if the frame does not differ from the one before: it was not encoded, and has that one's row.
    """

    shot: FootageFrame
    row: FloatArray
    cells: Cells
    exposure: Exposure
    changed: bool


def embedded(
    footage: Footage, encoder: ImageEncoder, *, progress: Callable[[int], None] | None = None
) -> Iterator[EmbeddedFrame]:
    """Go through the footage once, one frame held at a time.

    Args:
        progress: called with the number of frames looked at.

    Raises:
        SourceError: no frame can be read.
        EngineError: the encoder failed.
    """
    count = 0
    before: EmbeddedFrame | None = None
    for count, shot in enumerate(footage, 1):
        small = encoder.preprocess.resize(shot.pixels)
        look = EmbeddedFrame(shot, np.empty(0, np.float32), average(small), exposure_of(small), changed=True)
        if before and not _differs(look, before):
            # The cells stay those of the frame that was encoded, so that a slow change adds up.
            look = look._replace(row=before.row, cells=before.cells, changed=False)
        else:
            rows = encoder.encode_preprocessed(encoder.preprocess.normalise_batch(small[None]))
            look = look._replace(row=rows[0])
        if progress and count % 32 == 0:
            progress(count)
        yield look
        before = look
    if not count:
        raise SourceError(
            f"expected images in {', '.join(footage.names)}, got none that can be read ({sum(footage.failed)} are "
            "damaged): check one by hand"
        )


def _differs(look: EmbeddedFrame, before: EmbeddedFrame) -> bool:
    """Whether a frame shows something else than the last one of its source that was encoded."""
    return (
        look.shot.source != before.shot.source
        or look.shot.path is not None
        or difference(look.cells, before.cells) > DEFAULT_THRESHOLD
        or abs(float(np.median(look.cells - before.cells))) > _SAME_LIGHT
    )


class FootageSampler:
    """Of a stream of any length a uniform sample: the frames that drew the highest of random numbers.

    Args:
        seed: of the numbers.
        size: most frames kept.
    """

    def __init__(self, seed: int, size: int = SAMPLED) -> None:
        self._kept: list[tuple[float, int, FloatArray, Exposure]] = []  # a heap; numbers of frames are never equal
        self._offered = 0
        self._size, self._random = size, random.Random(f"{seed} sample")

    def offer(self, look: EmbeddedFrame) -> None:
        """Show it one more frame."""
        heapq.heappush(self._kept, (self._random.random(), self._offered, look.row, look.exposure))
        self._offered += 1
        if len(self._kept) > self._size:
            heapq.heappop(self._kept)

    def sample(self) -> FootageSample:
        """What was kept, in the order of the footage."""
        kept = sorted(self._kept, key=lambda item: item[1])
        exposures = [(found.luma, found.contrast, found.saturation) for *_, found in kept]
        return FootageSample(np.stack([row for _, _, row, _ in kept]), np.array(exposures, np.float32))
