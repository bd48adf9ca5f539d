"""A frame and where it came from in; two bins out: how it is exposed, and when it was taken as far as that is known."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import av
import av.error
import msgspec
import numpy as np

from edgeclip.runtime.images import Image

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Where a bin ends. Footage is exposed for a mean near 118 (18 % grey in sRGB): a stop around it is ordinary.
_BRIGHTNESS = ((55.0, "dark"), (95.0, "dim"), (160.0, "ordinary"), (256.0, "bright"))
_FLAT = 35.0
_GREY = 25.0
_HOURS = 3  # a bin of the day
_PARTS = 8  # bins of a video whose time of day is not known
_EXIF_TIME = re.compile(rb"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
_HEAD = 1 << 17


class Exposure(msgspec.Struct, frozen=True):
    """Of one frame, all in grey levels of [0, 255].

    Attributes:
        luma: mean of the luma (BT.601).
        contrast: standard deviation of the luma.
        saturation: mean of the largest less the smallest of a pixel's three channels.
    """

    luma: float
    contrast: float
    saturation: float

    @property
    def bin(self) -> str:
        """One of 16 bins, such as ``dark, flat, grey``: four of brightness, two of contrast, two of colour."""
        brightness = next(name for end, name in _BRIGHTNESS if self.luma < end)
        contrast = "flat" if self.contrast < _FLAT else "contrasty"
        return f"{brightness}, {contrast}, {'grey' if self.saturation < _GREY else 'colour'}"


def exposure_of(image: Image) -> Exposure:
    """Measure an (H, W, 3) uint8 RGB image; every second pixel of every second row is looked at."""
    pixels = image[::2, ::2].astype(np.float32)
    luma = pixels @ _LUMA
    saturation = pixels.max(axis=2) - pixels.min(axis=2)
    return Exposure(*(round(float(value), 2) for value in (luma.mean(), luma.std(), saturation.mean())))


def of_the_day(time: datetime) -> str:
    """The bin of a time of day, such as ``06–09 h``."""
    start = time.hour // _HOURS * _HOURS
    return f"{start:02}–{start + _HOURS:02} h"


def of_the_video(time_s: float, duration_s: float | None) -> str:
    """The bin of a position in a video, such as ``part 3 of 8``; one bin for all if its length is not known."""
    if not duration_s:
        return "time unknown"
    return f"part {min(int(_PARTS * time_s / duration_s), _PARTS - 1) + 1} of {_PARTS}"


def image_time(path: Path, content: bytes) -> datetime:
    """When a photograph was taken: its EXIF time, or else the time at which the file was last written (UTC).

    The first time in the EXIF block counts; cameras write the same one into all of its fields.
    """
    head = content[:_HEAD]
    start = head.find(b"Exif\x00\x00")
    if start >= 0 and (found := _EXIF_TIME.search(head, start)):
        try:
            return datetime(*(int(part) for part in found.groups()))  # type: ignore[arg-type]
        except ValueError:  # a clock that was never set
            pass
    return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)


def video_start(path: Path) -> datetime | None:
    """When a video file says that its recording began; None if it does not."""
    try:
        with av.open(f"file:{path}") as container:
            said = container.metadata.get("creation_time", "")
        return datetime.fromisoformat(said.replace("Z", "+00:00")[:19])
    except (av.error.FFmpegError, OSError, ValueError):
        return None
