"""An opened OpenCV capture in; its frames as a connection out."""

from __future__ import annotations

import time
from typing import Any

from edgeclip.runtime.frames import picture_text
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.live import BadFrame, Connection, Lost, Shot
from edgeclip.runtime.preprocess import Pixels


class Capture(Connection):
    """What OpenCV reads (USB cameras, GStreamer pipelines); BGR becomes RGB only for frames that are taken.

    Args:
        capture: an opened ``cv2.VideoCapture``; released here.
        about: what stands behind it, for people.
        first: a frame that was read to try it.
    """

    def __init__(self, capture: Any, about: str, first: Image) -> None:
        cv2 = opencv()
        self._capture = capture
        self._first: Image | None = first
        self.fps = capture.get(cv2.CAP_PROP_FPS) or None
        self.about = f"{picture_text(first.shape[1], first.shape[0], self.fps)}, {about}"

    def read(self) -> Shot:
        """The next frame, as OpenCV gives it; it has a time limit of its own."""
        first, self._first = self._first, None
        if first is not None:
            return Shot(first, time.perf_counter())
        ok, image = self._capture.read()
        if not ok:
            raise Lost("no frame")
        return Shot(image, time.perf_counter())

    def finish(self, raw: Any) -> Pixels:
        """(H, W, 3) uint8 BGR, or (H, W) grey, to RGB."""
        cv2 = opencv()
        if raw.ndim == 2 or raw.shape[2] == 1:
            grey: Image = cv2.cvtColor(raw, cv2.COLOR_GRAY2RGB)
            return grey
        if raw.shape[2] != 3:
            raise BadFrame
        image: Image = cv2.cvtColor(raw, cv2.COLOR_BGR2RGB)
        return image

    def close(self) -> None:
        """Release the device."""
        self._capture.release()
