"""A GStreamer pipeline's text, or a Jetson camera's ``csi://`` address, in; a live source out.

OpenCV runs the pipeline, where it was built with GStreamer; the builds on PyPI were not.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from fractions import Fraction
from typing import Any

from edgeclip.devices.machine.try_library import built_with
from edgeclip.errors import SourceError
from edgeclip.runtime.images import opencv
from edgeclip.runtime.sources.address import RATE, SIDE, read_options, whole_number, without_password
from edgeclip.runtime.sources.base import Source, SourceOptions
from edgeclip.runtime.sources.live import Connection, LiveSource
from edgeclip.runtime.sources.opencv import Capture

CSI_OPTIONS = {"width": SIDE, "height": SIDE, "fps": RATE, "flip": whole_number(0, 7)}
_STALL_S = 5.0
_APPSINK = "appsink drop=true max-buffers=1 sync=false"
_TO_BGR = "videoconvert ! video/x-raw,format=BGR"
_TO_SQUARE_BGR = "videoconvert ! videoscale ! video/x-raw,format=BGR,pixel-aspect-ratio=1/1"  # OpenCV tells no ratio


def with_appsink(pipeline: str) -> str:
    """A pipeline that ends where OpenCV takes frames from: given back as it is if it does, completed if not."""
    pipeline = pipeline.strip().removesuffix("!").rstrip()
    if re.search(r"(^|!)\s*appsink\b", pipeline):
        return pipeline
    return f"{pipeline} ! {_TO_SQUARE_BGR} ! {_APPSINK}"


def csi_pipeline(sensor: int, *, width: int = 1920, height: int = 1080, fps: float = 30.0, flip: int = 0) -> str:
    """The pipeline of a Jetson's CSI camera.

    Args:
        sensor: index of the camera.
        width, height, fps: a mode of the sensor.
        flip: nvvidconv's ``flip-method``: 0 none, 1 to 3 quarter turns, 4 to 7 mirrored.
    """
    rate = Fraction(fps).limit_denominator(1001)
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! "
        f"video/x-raw(memory:NVMM),width={width},height={height},"
        f"framerate={rate.numerator}/{rate.denominator},format=NV12 ! "
        f"nvvidconv flip-method={flip} ! video/x-raw,format=BGRx ! {_TO_BGR} ! {_APPSINK}"
    )


def open_csi(text: str, realtime: bool, options: SourceOptions) -> Source:
    """Open a Jetson's camera: ``csi://0``, with options of its mode after ``?``; it is opened again when lost.

    Raises:
        SourceError: no such camera, a wrong option, or OpenCV has no GStreamer.
    """
    del realtime  # it always is
    sensor, _, query = text.removeprefix("csi://").partition("?")
    if not (sensor.isascii() and sensor.isdigit()):
        raise SourceError(f"expected csi:// and the camera's index, as in csi://0, got {without_password(text)!r}")
    pipeline = csi_pipeline(int(sensor), **read_options(text, query, CSI_OPTIONS))
    return _open(f"csi {sensor}", pipeline, options, reconnect=True)


def open_pipeline(text: str, realtime: bool, options: SourceOptions) -> Source:
    """Open any pipeline, with or without ``gst:`` before it; its end is the end of the source.

    Raises:
        SourceError: the pipeline cannot be run, or OpenCV has no GStreamer.
    """
    del realtime  # it always is
    pipeline = text.removeprefix("gst:").strip()
    if not pipeline:
        raise SourceError(f"expected a GStreamer pipeline after gst:, as in gst:videotestsrc, got {text!r}")
    return _open(re.split(r"[\s!]", pipeline)[0], with_appsink(pipeline), options, reconnect=False)


def elements(pipeline: str) -> list[str]:
    """The elements that a pipeline is made of, each once; what is quoted, a caps or a pad is none."""
    pipeline = re.sub(r"\"[^\"]*\"|'[^']*'", "''", pipeline)
    found = re.findall(r"(?:^|!)[\s(]*([A-Za-z][\w-]*)(?=[\s!)]|$)", pipeline)
    return list(dict.fromkeys(found))


def require_elements(pipeline: str) -> None:
    """Refuse a pipeline with an element that is not installed, for which some OpenCVs would wait for ever.

    Nothing is looked up where GStreamer's ``gst-inspect-1.0`` is not installed.

    Raises:
        SourceError: names the elements.
    """
    inspect = shutil.which("gst-inspect-1.0")
    if inspect is None:
        return
    missing = [
        name for name in elements(pipeline) if subprocess.run([inspect, "--exists", name], check=False).returncode
    ]
    if missing:
        raise SourceError(
            f"expected installed GStreamer elements, got {', '.join(missing)} in: {without_password(pipeline)}; look "
            "for the plugin with gst-inspect-1.0 (nvarguscamerasrc and nvvidconv are a Jetson's own)"
        )


def _open(name: str, pipeline: str, options: SourceOptions, *, reconnect: bool) -> Source:
    require_gstreamer(opencv())
    require_elements(pipeline)

    def connect(stopping: threading.Event) -> Connection:
        del stopping
        return _connect(pipeline, options)

    again = reconnect if options.reconnect is None else options.reconnect
    return LiveSource(name, connect, options=options, reconnect=again)


def require_gstreamer(cv2: Any) -> None:
    """Refuse an OpenCV without GStreamer.

    Raises:
        SourceError: says what to install.
    """
    if not built_with(cv2.getBuildInformation(), "GStreamer"):
        raise SourceError(
            f"expected an OpenCV built with GStreamer, got {cv2.__version__} in {cv2.__file__}, which is not, as none "
            "on PyPI is: run pip uninstall opencv-python opencv-python-headless, and use the system's (on a Jetson "
            "JetPack's own, on Debian and Ubuntu apt install python3-opencv); a virtual environment sees it if made "
            "with --system-site-packages"
        )


def _connect(pipeline: str, options: SourceOptions) -> Capture:
    cv2 = opencv()
    limits: list[int] = []
    if tuple(int(part) for part in cv2.__version__.split(".")[:2]) >= (4, 7):  # older ones refuse these
        stall_ms, open_ms = (options.stall_s or _STALL_S) * 1000, options.open_timeout_s * 1000
        limits = [cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(stall_ms), cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(open_ms)]
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER, limits)
    first: Any = capture.read()[1] if capture.isOpened() else None
    if first is None:
        capture.release()
        raise SourceError(
            f"expected a pipeline that gives frames, got none from: {without_password(pipeline)}; try it with "
            "gst-launch-1.0, with autovideosink in place of appsink"
        )
    if first.ndim == 3 and first.shape[2] not in (1, 3):
        capture.release()
        raise SourceError(
            f"expected BGR or grey frames, got {first.shape} from: {without_password(pipeline)}; put "
            f"{_TO_SQUARE_BGR} before appsink"
        )
    return Capture(capture, "GStreamer", first)
