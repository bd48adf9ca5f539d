"""Texts that name sources in; frames of all of them, one source after another and thinned out in time, out.

Each frame says what it is for: to choose from, or held out to see how well the choice covers what it was not chosen
from. Of a video, whole blocks of time are held out, with a gap around them; of image files, those whose hash says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

from edgeclip.calibration.choice.bins import image_time, later, of_the_day, of_the_video, video_start
from edgeclip.calibration.images import find_images
from edgeclip.errors import InputError, SourceError
from edgeclip.runtime.images import Image, decode_image
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.address import without_password
from edgeclip.runtime.sources.base import Source
from edgeclip.runtime.sources.open import open_source
from edgeclip.runtime.sources.stills import ImageSource, ImagesSource

Role = Literal["candidate", "held out", "gap"]
_SLACK_S = 1e-6
_LEAST_BLOCK_S = 1.0


@dataclass(frozen=True)
class Sampling:
    """Which frames are looked at, and which of them are held out.

    Attributes:
        every_s: of a video or camera, a frame every so many seconds.
        duration_s: read so many seconds of each; None for all of a file, 60 s of a camera.
        holdout: share that is held out, 0 to 1.
        block_s: length of the blocks of time that are held out whole, at most.
        gap_s: frames nearer than that to the border of a held-out block are not used at all.
        seed: of what is held out.
    """

    every_s: float = 0.2
    duration_s: float | None = None
    holdout: float = 0.2
    block_s: float = 5.0
    gap_s: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.every_s) and self.every_s >= 0):
            raise InputError(f"expected --every of at least 0 seconds, got {self.every_s}")
        if self.duration_s is not None and not self.duration_s > 0:
            raise InputError(f"expected --duration above 0 seconds, got {self.duration_s}")
        if not 0 <= self.holdout <= 1:
            raise InputError(f"expected --holdout from 0 to 1, got {self.holdout}")


class Shot(NamedTuple):
    """One frame of the footage.

    Attributes:
        source: number of its source.
        frame, time_s: index and time of a ``Frame``; a file's position, and 0.
        pixels: decoded.
        role: what it is for.
        block: what it was taken together with: a block of time of a video, or an image file by itself.
        moment: bin of the time at which it was taken.
        content, path: an image file's bytes and place; None for a video frame.
        sha256: of the bytes; empty for a video frame.
    """

    source: int
    frame: int
    time_s: float
    pixels: Pixels
    role: Role
    block: str
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
                pixels: Image = decode_image(content, name=str(path))
            except (OSError, SourceError):
                self.failed[number] += 1
                continue
            digest = hashlib.sha256(content).hexdigest()
            held = _share(f"{self._sampling.seed} {digest}") < self._sampling.holdout
            moment = of_the_day(image_time(path, content))
            yield Shot(
                number,
                index,
                0.0,
                pixels,
                "held out" if held else "candidate",
                f"file {digest[:16]}",
                moment,
                content,
                path,
                digest,
            )

    def _frames(self, number: int, source: Source) -> Iterator[Shot]:
        sampling, text = self._sampling, self._texts[number]
        limit_s = sampling.duration_s or (60.0 if source.live else math.inf)
        began = datetime.now(timezone.utc) if source.live else video_start(Path(text)) if Path(text).is_file() else None
        length_s = source.total / source.fps if source.total and source.fps else None
        blocks = _Blocks(number, length_s, sampling)
        due_s = -math.inf
        for frame in source:
            if frame.time_s >= limit_s:
                break
            if frame.time_s < due_s - _SLACK_S:
                continue
            due_s = frame.time_s + sampling.every_s
            moment = of_the_day(later(began, frame.time_s)) if began else of_the_video(frame.time_s, length_s)
            block, role = blocks.at(frame.time_s)
            yield Shot(number, frame.index, frame.time_s, frame.pixels, role, f"{number} block {block}", moment)
        self.failed[number] = source.failed


class _Blocks:
    """Blocks of time of one source; of every ``1 / holdout`` in a row one is held out, from a seeded start."""

    def __init__(self, number: int, length_s: float | None, sampling: Sampling) -> None:
        self._share = sampling.holdout
        # A short video has shorter blocks, so that four of them are held out.
        short_s = max(_LEAST_BLOCK_S, (length_s or math.inf) * self._share / 4) if self._share else math.inf
        self._length_s = min(sampling.block_s, short_s)
        self._gap_s = min(sampling.gap_s, self._length_s / 5)
        self._start = int(_share(f"{sampling.seed} {number}") / self._share) if self._share else 0

    def at(self, time_s: float) -> tuple[int, Role]:
        """Number of a time's block, and what a frame of that time is for."""
        block = int(time_s // self._length_s)
        if not self._held(block):
            return block, "candidate"
        near = (int(max(0.0, time_s - self._gap_s) // self._length_s), int((time_s + self._gap_s) // self._length_s))
        return block, "held out" if all(map(self._held, near)) else "gap"

    def _held(self, block: int) -> bool:
        moved = block + self._start
        return math.floor((moved + 1) * self._share) > math.floor(moved * self._share)


def _share(text: str) -> float:
    """A number in [0, 1) that a text decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
