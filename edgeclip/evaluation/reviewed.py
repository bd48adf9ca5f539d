"""Lines that ``edgeclip label --jsonl`` wrote, with a verdict added, in; the frames that they are of, and labels, out.

A line that somebody has looked at has a key ``reviewed``: the label that is right, ``"unknown"`` for none of the
classes, ``true`` where the line's own label is right, or ``false`` where it is not and the right one is not said, which
counts as unknown. Lines without it, or with ``null``, are passed over. A line is of a frame of a video (its ``frame``),
which its ``source`` or ``--source`` names, or of an image (its ``file``, beside the lines or in the folder of
``--source``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgeclip.calibration.pictures import Item, Picture
from edgeclip.errors import InputError, SourceError
from edgeclip.files import sha256_file
from edgeclip.runtime.frames import Frame
from edgeclip.runtime.images import Image
from edgeclip.runtime.records import UNKNOWN
from edgeclip.runtime.source import open_source

KEY = "reviewed"


class _Line(msgspec.Struct):
    frame: int | None = None
    label: str | None = None
    file: str | None = None
    source: str = ""
    reviewed: str | bool | None = None


def is_reviewed(path: str) -> bool:
    """Whether a file is JSONL in which some line has a verdict."""
    file = Path(path)
    if file.suffix.lower() not in {".jsonl", ".ndjson"} or not file.is_file():
        return False
    with file.open("rb") as lines:
        return any(b'"reviewed"' in line for line in lines)


class Reviewed:
    """Reviewed frames, by source and in the order of their numbers, so that each video is decoded once.

    Attributes:
        labels: of each picture.
    """

    def __init__(self, pictures: list[tuple[Picture, str]]) -> None:
        self._pictures = [picture for picture, _ in pictures]
        self.labels = tuple(label for _, label in pictures)

    def __len__(self) -> int:
        return len(self._pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self._pictures)


def open_reviewed(path: Path, source: str = "") -> Reviewed:
    """Read reviewed lines; videos are opened when a frame of theirs is asked for.

    Args:
        path: the lines.
        source: the video or folder of images that lines without a source are of.

    Raises:
        InputError: a line that cannot be understood, or none that was reviewed.
        SourceError: a video or image that is not there.
    """
    frames: list[tuple[Path, int, str]] = []
    images: list[tuple[Picture, str]] = []
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        try:
            line = msgspec.json.decode(raw, type=_Line)
        except msgspec.MsgspecError as error:
            raise InputError(f"{path}:{number} is not a reviewed line ({error}): see docs/calibration.md") from error
        if line.reviewed is None:
            continue
        label = _label(line, path, number)
        if line.file:
            images.append((Item(line.file, _beside(path, source, line.file)), label))
        elif line.frame is None:
            raise InputError(f"{path}:{number} names no frame and no file: expected a line of edgeclip label --jsonl")
        else:
            frames.append((_video(path, line.source or source, number), line.frame, label))
    if not frames and not images:
        raise InputError(f'expected lines with "{KEY}" in {path}, got none: add the right label to some')
    decoders = {video: _Decoder(video) for video, _, _ in frames}
    ordered = sorted(frames, key=lambda each: (str(each[0]), each[1]))
    return Reviewed([*images, *((_VideoFrame(decoders[video], at), label) for video, at, label in ordered)])


def _label(line: _Line, path: Path, number: int) -> str:
    if isinstance(line.reviewed, str):
        return line.reviewed
    if line.reviewed is False:
        return UNKNOWN
    if not line.label:
        raise InputError(f'{path}:{number} is reviewed as true, but has no "label": write the label itself')
    return line.label


def _beside(path: Path, source: str, file: str) -> Path:
    places = [path.parent / file, *([Path(source) / file] if source else [])]
    return next((place for place in places if place.is_file()), places[-1])


def _video(path: Path, source: str, number: int) -> Path:
    if not source:
        raise InputError(f"{path}:{number} does not say which video it is of: pass --source FILE")
    places = [Path(source), path.parent / source]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise SourceError(f"expected the video {source!r} of {path}:{number}, got no such file: pass --source FILE")
    return found


class _Decoder:
    """Frames of one video by number; asked for in rising order it is decoded once."""

    def __init__(self, video: Path) -> None:
        self.video = video
        self._stream: Iterator[Frame] | None = None
        self._at = -1

    def read(self, index: int) -> Image:
        if self._stream is None or index <= self._at:
            self._stream = iter(open_source(str(self.video)))
        for frame in self._stream:
            self._at = frame.index
            if frame.index == index:
                return frame.rgb()
            if frame.index > index:
                break
        self._stream = None
        raise SourceError(f"expected a frame {index} in {self.video}, got none: are the lines of this video?")


class _VideoFrame:
    def __init__(self, decoder: _Decoder, index: int) -> None:
        self._decoder, self._index = decoder, index

    def digest(self) -> str:
        """Of the video and the frame's number: no frame is decoded whose embedding is known."""
        content: Any = f"{sha256_file(self._decoder.video)}:{self._index}"
        return hashlib.sha256(content.encode()).hexdigest()

    def read(self) -> Image:
        """The frame, (H, W, 3) uint8 RGB."""
        return self._decoder.read(self._index)
