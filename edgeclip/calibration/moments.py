"""A frame and where it came from in; when it was taken, as well as that can be known, out: one of 16 bins."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import av
import av.error

_HOURS = 3  # a bin of the day
_PARTS = 8  # bins of a video whose time of day is not known
_EXIF_TIME = re.compile(rb"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
_HEAD = 1 << 17


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
        with av.open(str(path)) as container:
            said = container.metadata.get("creation_time", "")
        return datetime.fromisoformat(said.replace("Z", "+00:00")[:19])
    except (av.error.FFmpegError, OSError, ValueError):
        return None


def later(start: datetime, seconds: float) -> datetime:
    """A time some seconds after another."""
    return start + timedelta(seconds=seconds)
