"""An image, a folder of images, a video file or a camera index in; a stream of frames out.

Files are read losslessly and in order. A camera is read by a thread of its own that keeps only the latest frame, so
that a slow consumer sees the present and not a growing past; the frames it never saw are counted as dropped.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import av
import av.error
import numpy as np

from edgeclip.errors import InputError, SourceError
from edgeclip.runtime.images import Image, is_image_name, list_images, opencv, read_image
from edgeclip.runtime.preprocess import Pixels


@dataclass(frozen=True)
class Frame:
    """One frame of a source.

    Attributes:
        index: position in the source, from 0; dropped frames have their number too.
        time_s: presentation time in a video, seconds since the start for a camera, 0 for an image.
        pixels: (H, W, 3) uint8 RGB, or the decoder's frame, which is converted only where that is asked for.
        file: name of the image file, in a folder of images.
        captured: ``time.perf_counter()`` when the frame was there: decoded, or delivered by a camera.
    """

    index: int
    time_s: float
    pixels: Pixels
    file: str | None = None
    captured: float = field(default_factory=time.perf_counter)

    def rgb(self) -> Image:
        """The frame as (H, W, 3) uint8 RGB."""
        if isinstance(self.pixels, av.VideoFrame):
            image: Image = self.pixels.to_ndarray(format="rgb24")
            return image
        return self.pixels


class Source(ABC):
    """Frames to iterate over once, inside a ``with`` block.

    Attributes:
        name: for people.
        live: whether frames come at their own pace.
        fps: nominal frames a second, or None.
        total: number of frames, where it is known.
        dropped: frames that a live source had and nobody took.
        failed: frames or files that could not be decoded.
    """

    live = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.fps: float | None = None
        self.total: int | None = None
        self.dropped = 0
        self.failed = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    def ready(self) -> None:  # noqa: B027 - only a live source has to be waited for
        """Wait until the next frame can be taken without waiting, or the stream has ended.

        The loop calls it before it asks for a place in the encoder, so that a silent camera holds no place.
        """

    def close(self) -> None:  # noqa: B027 - most sources hold nothing
        """Release files and devices; a live source stops its thread."""

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(source: str) -> Source:
    """Open an image, a folder of images, a video file or a camera index.

    Raises:
        SourceError: nothing there, nothing readable in it, or no such camera.
    """
    if source.isascii() and source.isdigit():
        return CameraSource.open(int(source))
    path = Path(source)
    if not source.strip():
        raise SourceError("expected an image, a folder, a video file or a camera index, got an empty name")
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise SourceError(f"expected an image, a folder, a video file or a camera index, got {source!r}: no such file")
    if is_image_name(path):
        return ImageSource(path)
    return VideoSource(path)


class ImageSource(Source):
    """One image as a stream of one frame; it is decoded when the source is opened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self.total = 1
        self._image = read_image(path)

    def __iter__(self) -> Iterator[Frame]:
        yield Frame(0, 0.0, self._image)


class FolderSource(Source):
    """The images of one folder, sorted by name; unreadable ones are counted and passed over."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name or str(path))
        self._paths = list_images(path)
        if not self._paths:
            raise SourceError(f"expected images in {path}, got none: put .jpg or .png files directly in it")
        self.total = len(self._paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            try:
                image = read_image(path)
            except SourceError:
                self.failed += 1
                continue
            yield Frame(index, 0.0, image, file=path.name)
        if self.failed == self.total:
            raise SourceError(f"none of the {self.total} images in {self.name} can be decoded: check one by hand")


class VideoSource(Source):
    """A video file, decoded by FFmpeg on several threads; packets that do not decode are counted and passed over."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        try:
            self._container = av.open(str(path))
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SourceError(f"expected an image or a video, got {path} ({reason})") from error
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"expected a video, got {path}, which has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.fps = float(self._stream.average_rate) if self._stream.average_rate else None
        self.total = self._stream.frames or None

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for decoded in self._decode():
            time_s = decoded.time if decoded.time is not None else index / (self.fps or 25.0)
            pixels: Pixels = decoded
            if quarter_turns := round(getattr(decoded, "rotation", 0) / 90) % 4:
                pixels = np.ascontiguousarray(np.rot90(decoded.to_ndarray(format="rgb24"), quarter_turns))
            yield Frame(index, round(float(time_s), 6), pixels)
            index += 1
        if index == 0:
            raise SourceError(f"{self.name} holds no frame that can be decoded: play it with ffplay to see why")

    def _decode(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.failed += 1
                continue
            yield from frames

    def close(self) -> None:
        """Close the file."""
        self._container.close()


class LatestFrame:
    """A slot for one frame between two threads: putting replaces, taking waits for one that was not yet taken."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._ended = False
        self.dropped = 0

    def put(self, frame: Frame) -> None:
        """Offer a frame; one that nobody took is dropped and counted."""
        with self._changed:
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def end(self) -> None:
        """No more frames will come; a frame still in the slot can be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def take(self) -> Frame | None:
        """The latest frame, waiting for it if need be; None once the stream has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._ended)
            frame, self._frame = self._frame, None
            return frame


class CameraSource(Source):
    """A live source: a thread reads as fast as frames come, the consumer gets the latest.

    Args:
        name: for people.
        read: returns the next frame (H, W, 3) uint8 RGB, waiting for it, or None when the stream ends.
        release: called once, after the last read.
        fps: nominal rate.
    """

    live = True

    def __init__(
        self,
        name: str,
        read: Callable[[], Image | None],
        release: Callable[[], None],
        *,
        fps: float | None = None,
    ) -> None:
        super().__init__(name)
        self.fps = fps
        self._read = read
        self._release = release
        self._slot = LatestFrame()
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"edgeclip-{name}", daemon=True)

    @classmethod
    def open(cls, index: int) -> CameraSource:
        """Open a USB or V4L2 camera by its index with OpenCV.

        Raises:
            SourceError: there is no such camera, or it gives no frame.
        """
        cv2 = opencv()
        capture = cv2.VideoCapture(index)
        ok, _ = capture.read() if capture.isOpened() else (False, None)
        if not ok:
            capture.release()
            seen = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
            raise SourceError(
                f"camera {index} cannot be opened (devices seen: {seen}): check the index and permissions"
            )

        def read() -> Image | None:
            ok, bgr = capture.read()
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB) if ok else None

        return cls(f"camera {index}", read, capture.release, fps=capture.get(cv2.CAP_PROP_FPS) or None)

    def __iter__(self) -> Iterator[Frame]:
        self._thread.start()
        while (frame := self._slot.take()) is not None:
            self.dropped = self._slot.dropped
            yield frame
        self.dropped = self._slot.dropped
        if self._failure is not None:
            raise SourceError(f"{self.name} stopped giving frames ({self._failure})") from self._failure

    def _run(self) -> None:
        start = time.perf_counter()
        index = 0
        try:
            while not self._stopping.is_set() and (image := self._read()) is not None:
                self._slot.put(Frame(index, round(time.perf_counter() - start, 6), image))
                index += 1
        except Exception as error:  # noqa: BLE001 - handed to the consumer, who raises it
            self._failure = error
        finally:
            self._release()
            self._slot.end()

    def close(self) -> None:
        """Stop the reading thread and release the camera."""
        self._stopping.set()
        if self._thread.ident is None:
            self._release()
        else:
            self._thread.join(timeout=5.0)


def limited(source: Source, limit: int | None) -> Iterator[Frame]:
    """The first ``limit`` frames of a source, or all of them.

    Raises:
        InputError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"expected --limit of at least 1, got {limit}")
    for taken, frame in enumerate(source, start=1):
        yield frame
        if taken == limit:
            return
