"""A camera's index or device path, with the format wanted, in; a live source out.

OpenCV reads it: the wheels of PyAV have no V4L2 input.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

from edgeclip.errors import SourceError
from edgeclip.runtime.address import RATE, SIDE, one_of, read_options
from edgeclip.runtime.capture import Capture
from edgeclip.runtime.frames import Source, SourceOptions
from edgeclip.runtime.images import opencv
from edgeclip.runtime.live import Connection, LiveSource

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
