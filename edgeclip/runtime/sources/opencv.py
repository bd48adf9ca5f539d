"""A camera's index or device path, with the format wanted, in; a live source out.

OpenCV reads it: the wheels of PyAV have no V4L2 input.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.runtime.sources.address import RATE, SIDE, one_of, read_options
from edgeclip.runtime.sources.base import Source, SourceOptions, picture_text
from edgeclip.runtime.sources.live import BadFrame, Connection, LiveSource, Lost, Received

_log = logging.getLogger("edgeclip")

OPTIONS = {
    "width": SIDE,
    "height": SIDE,
    "fps": RATE,
    "format": one_of({"mjpeg": "MJPG", "yuyv": "YUYV", "uyvy": "UYVY", "nv12": "NV12", "h264": "H264", "grey": "GREY"}),
}


def open_camera(text: str, realtime: bool, options: SourceOptions) -> Source:
    """Open a USB or V4L2 camera: ``0`` or ``/dev/video0``, and after ``?`` what is wanted of it.

    Raises:
        SourceError: there is no such camera, it gives no frame, or an option is wrong.
    """
    del realtime  # it always is
    device, _, query = text.partition("?")
    wanted = read_options(text, query, OPTIONS)
    name = f"camera {device}" if device.isdigit() else device

    def connect(stopping: threading.Event) -> Connection:
        del stopping
        return _connect(name, int(device) if device.isdigit() else device, wanted)

    return LiveSource(name, connect, options=options, reconnect=options.reconnect is not False)


def _connect(name: str, device: int | str, wanted: dict[str, Any]) -> Capture:
    cv2 = opencv()
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    properties = {"width": cv2.CAP_PROP_FRAME_WIDTH, "height": cv2.CAP_PROP_FRAME_HEIGHT, "fps": cv2.CAP_PROP_FPS}
    if "format" in wanted:  # first, as it decides which sizes there are
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*wanted["format"]))
    for key, which in properties.items():
        if key in wanted:
            capture.set(which, wanted[key])
    first: Any = capture.read()[1] if capture.isOpened() else None
    if first is None:
        capture.release()
        seen = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
        raise SourceError(
            f"{name} cannot be opened (devices seen: {seen}): check the index, that nobody else uses it, and that you "
            "may read it (group video)"
        )
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    fourcc = code.to_bytes(4, "little").decode("ascii", "replace").strip("\0 ")
    given = {key: capture.get(which) for key, which in properties.items()} | {"format": fourcc}
    other = [f"{key} {given[key]} for {want}" for key, want in wanted.items() if given[key] != want]
    if other:
        _log.warning("%s does not do what was asked: it gives %s", name, ", ".join(other))
    return Capture(capture, f"{fourcc or 'camera'} over V4L2", first)


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

    def read(self) -> Received:
        """The next frame, as OpenCV gives it; it has a time limit of its own."""
        first, self._first = self._first, None
        if first is not None:
            return Received(first, time.perf_counter())
        ok, image = self._capture.read()
        if not ok:
            raise Lost("no frame")
        return Received(image, time.perf_counter())

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
