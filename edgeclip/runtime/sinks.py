"""Labelled frames in; a JSONL file or an overlay video out, each whole or absent."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import av
import av.error
import msgspec
import numpy as np

from edgeclip.errors import InputError
from edgeclip.files import atomic_file
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.overlay import draw_labels
from edgeclip.runtime.scoring import Scored
from edgeclip.runtime.source import Frame


class LabelledFrame(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said of one frame; one line of the JSONL.

    Attributes:
        frame: index in the source.
        time_s: presentation time, seconds.
        label, score: the best class and its score in [0, 1].
        top: the best classes, best first.
        encode_ms: time in the inference engine, milliseconds.
        file: image file, for a folder of images only.
    """

    frame: int
    time_s: float
    label: str
    score: float
    top: list[Scored]
    encode_ms: float
    file: str | None = None


class Sink(ABC):
    """Takes labelled frames inside a ``with`` block; leaves its output whole, or none if the block fails."""

    @abstractmethod
    def write(self, frame: Frame, labelled: LabelledFrame) -> None:
        """Take one frame and what was said of it."""

    @abstractmethod
    def __enter__(self) -> Sink: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class JsonlSink(Sink):
    """One JSON object a line.

    Args:
        path: the file.
        live: write straight to ``path``, line by line, so that it can be followed; otherwise it appears when complete.
    """

    def __init__(self, path: Path, *, live: bool = False) -> None:
        self.path = path
        self._file: AbstractContextManager[Path] = contextlib.nullcontext(path) if live else atomic_file(path)
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> JsonlSink:
        target = self._file.__enter__()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._stream = target.open("wb", buffering=0 if target == self.path else -1)
        except OSError as error:
            raise InputError(f"cannot write {self.path} ({error.strerror}): choose another place") from error
        return self

    def write(self, frame: Frame, labelled: LabelledFrame) -> None:  # noqa: ARG002 - the interface of every sink
        """Append a line."""
        assert self._stream is not None
        self._stream.write(msgspec.json.encode(labelled) + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        self._file.__exit__(kind, error, trace)


class OverlaySink(Sink):
    """An H.264 video of the frames with their labels drawn in; later frames of another size are fitted to the first.

    Args:
        path: the file; its suffix chooses the container (.mp4, .mkv).
        fps: frames a second of the video; frame times of the source are kept where it has them.
    """

    def __init__(self, path: Path, *, fps: float | None) -> None:
        check_overlay_name(path)
        self.path = path
        self._rate = Fraction(fps or 5.0).limit_denominator(1001)
        self._file = atomic_file(path)
        self._container: Any = None
        self._stream: Any = None
        self._written = 0

    def __enter__(self) -> OverlaySink:
        target = self._file.__enter__()
        try:
            self._container = av.open(str(target), "w")
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"cannot write {self.path} ({error}): choose another place") from error
        return self

    def write(self, frame: Frame, labelled: LabelledFrame) -> None:
        """Draw and encode one frame."""
        image = frame.rgb()
        if self._stream is None:
            self._stream = self._container.add_stream(
                "libx264", rate=self._rate, options={"preset": "veryfast", "crf": "23"}
            )
            # 4:2:0 chroma needs even sides; the labels need some room.
            self._stream.width = max(image.shape[1] + image.shape[1] % 2, 160)
            self._stream.height = max(image.shape[0] + image.shape[0] % 2, 120)
            self._stream.pix_fmt = "yuv420p"
        drawn = draw_labels(fit(image, self._stream.height, self._stream.width), labelled.top)
        encoded = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        encoded.pts = self._written
        encoded.time_base = 1 / self._rate
        self._container.mux(self._stream.encode(encoded))
        self._written += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is not None:
            if self._stream is not None and kind is None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
        self._file.__exit__(kind, error, trace)


def check_overlay_name(path: Path) -> None:
    """Refuse a file whose suffix names no container for a video.

    Raises:
        InputError: as said.
    """
    if path.suffix.lower() not in {".mp4", ".mkv", ".mov"}:
        raise InputError(f"expected an overlay file ending in .mp4, .mkv or .mov, got {path}")


def fit(image: Image, height: int, width: int) -> Image:
    """The image scaled to fit inside (height, width), centred on black; untouched where it has that size already."""
    if image.shape[:2] == (height, width):
        return image
    cv2 = opencv()
    scale = min(height / image.shape[0], width / image.shape[1])
    inner_height = max(1, min(height, round(image.shape[0] * scale)))
    inner_width = max(1, min(width, round(image.shape[1] * scale)))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + inner_height, left : left + inner_width] = cv2.resize(
        image, (inner_width, inner_height), interpolation=interpolation
    )
    return canvas
