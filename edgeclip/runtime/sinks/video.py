"""Labelled frames with their pixels in; an H.264 video of each source with the labels drawn in out."""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from edgeclip.errors import InputError
from edgeclip.files import atomic_file
from edgeclip.runtime.records import LabelledFrame
from edgeclip.runtime.regions import Region
from edgeclip.runtime.sinks.base import Run, Sink, slugs
from edgeclip.runtime.sinks.overlay import draw_record, fit
from edgeclip.runtime.sources.base import Frame, Source

_SUFFIXES = (".mp4", ".mkv", ".mov")
_FPS_LIVE = 30.0  # of a camera that does not say; also the finest step between frames
_FPS_STILLS = 5.0  # of images in a folder


class OverlaySink(Sink):
    """A video of the frames with their labels drawn in; it appears when the run is over.

    Args:
        path: the file; its suffix chooses the container. Several sources get a file each: ``out.mp4`` becomes
            ``out-yard.mp4`` and so on.

    Raises:
        InputError: the suffix names no container for a video.
    """

    name = "overlay"
    wants_pixels = True
    lossless = True
    hurried_s = 10.0  # the encoder gives its last pictures at the end

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() not in _SUFFIXES:
            raise InputError(f"expected an overlay file ending in .mp4, .mkv or .mov, got {path}")
        self.path = path
        self._films: dict[str, _Film] = {}

    def open(self, run: Run) -> None:
        """Open a file for each source.

        Raises:
            InputError: a file cannot be written.
        """
        if len(run.sources) == 1:
            # Records name their source only among several.
            self._films = {"": _Film(self.path, run.sources[0], run.regions)}
        else:
            own = slugs(source.name for source in run.sources)
            self._films = {
                source.name: _Film(self.path.with_stem(f"{self.path.stem}-{own[source.name]}"), source, run.regions)
                for source in run.sources
            }
        with ExitStack() as stack:
            for film in self._films.values():
                film.open()
                stack.callback(film.close, complete=False)
            stack.pop_all()

    def write(self, labelled: LabelledFrame, frame: Frame | None) -> None:
        """Draw and encode one frame."""
        assert frame is not None, "the loop gives pixels to whom wants_pixels"
        self._films[labelled.source].write(labelled, frame)

    def close(self, *, complete: bool) -> None:
        """Finish the files, or leave none."""
        with ExitStack() as stack:  # one that fails keeps none of the others from being closed
            for film in self._films.values():
                stack.callback(film.close, complete=complete)


class _Film:
    """One video file; frames of another size than the first are fitted to it."""

    def __init__(self, path: Path, source: Source, regions: tuple[Region, ...]) -> None:
        self.path = path
        self._regions = regions
        fps = source.fps or (_FPS_LIVE if source.live else _FPS_STILLS)
        self._rate = Fraction(min(max(fps, 1.0), 240.0)).limit_denominator(1001)
        self._resources = ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._start_s = 0.0
        self._tick = -1

    def open(self) -> None:
        target = self._resources.enter_context(atomic_file(self.path))
        try:
            self._container = av.open(f"file:{target}", "w")
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"cannot write {self.path} ({error}): choose another place") from error

    def write(self, labelled: LabelledFrame, frame: Frame) -> None:
        image = frame.rgb()
        if self._stream is None:
            self._start_s = labelled.time_s
            self._stream = self._container.add_stream(
                "libx264", rate=self._rate, options={"preset": "veryfast", "crf": "23"}
            )
            # 4:2:0 chroma needs even sides; the labels need some room.
            self._stream.width = max(image.shape[1] + image.shape[1] % 2, 160)
            self._stream.height = max(image.shape[0] + image.shape[0] % 2, 120)
            self._stream.pix_fmt = "yuv420p"
        size = self._stream.height, self._stream.width
        if any(region.name for region in self._regions):
            # On the frame itself, whose fractions the regions are in: fitting it may put a border around it.
            drawn = fit(draw_record(image, labelled, self._regions), *size)
        else:
            drawn = draw_record(fit(image, *size), labelled)
        encoded = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        # Frames that a camera lost leave a gap, so that the video runs as time did; images have no time.
        self._tick = max(self._tick + 1, round((labelled.time_s - self._start_s) * self._rate))
        encoded.pts, encoded.time_base = self._tick, 1 / self._rate
        self._container.mux(self._stream.encode(encoded))

    def close(self, *, complete: bool) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        if not complete:
            self._discard(container)
            return
        if self._stream is None:
            self._discard(container)
            raise InputError(f"{self.path} is not written: no frame came to draw on")
        with self._resources:
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()

    def _discard(self, container: Any) -> None:
        try:
            with self._resources:
                raise _DiscardError
        except _DiscardError:
            container.close()  # to a file that has no name any more


class _DiscardError(Exception):
    """Makes ``atomic_file`` throw away what it holds."""
