"""The text that names a source in; the opened source out.

To add a kind of source: write a function like those below in a file of its own and add a ``Kind``.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from edgeclip.errors import SourceError
from edgeclip.runtime.images import is_image_name
from edgeclip.runtime.sources.address import without_password
from edgeclip.runtime.sources.base import Frame, Source, SourceOptions, limited

__all__ = ["Frame", "Source", "SourceOptions", "limited", "open_source"]


class Kind(NamedTuple):
    """One kind of source.

    Attributes:
        form: what its texts look like, for people.
        pattern: what they match from their start.
        opener: ``module:function`` below ``edgeclip.runtime.sources``, imported when one is opened; takes the text,
            ``realtime`` and the options.
    """

    form: str
    pattern: str
    opener: str


# The first that matches is taken; what matches none is a path.
KINDS = (
    Kind("gst:PIPELINE", r"gst:|.*\s!\s", "gstreamer:open_pipeline"),
    Kind("csi://N", r"csi://", "gstreamer:open_csi"),
    Kind("rtsp:// or rtsps://", r"rtsps?://", "network:open_network"),
    Kind("http:// or https://", r"https?://", "network:open_network"),
    Kind("a camera's index", r"[0-9]+(\?|$)", "opencv:open_camera"),
    Kind("/dev/videoN", r"/dev/video[^/]*(\?|$)", "opencv:open_camera"),
    Kind("- or stdin?… for raw frames on standard input", r"-(\?|$)|stdin\?", "raw:open_raw"),
)


def open_source(text: str, *, realtime: bool = False, options: SourceOptions | None = None) -> Source:
    """Open an image, a folder, a pattern of images, a video file, a camera or a stream (see docs/sources.md).

    Args:
        text: what to open.
        realtime: play a video file as a camera would give it: paced, the latest frame only. Live sources always are.
        options: rare knobs.

    Raises:
        SourceError: nothing there, nothing readable in it, or an option that it does not have.
        MissingExtraError: it needs OpenCV, which is not installed.
    """
    for kind in KINDS:
        if re.match(kind.pattern, text, re.DOTALL):
            opener: Callable[[str, bool, SourceOptions], Source]
            opener = resolve_name(f"edgeclip.runtime.sources.{kind.opener}")
            return opener(text, realtime, options or SourceOptions())
    return _open_path(text, realtime, options or SourceOptions())


def _open_path(text: str, realtime: bool, options: SourceOptions) -> Source:
    forms = ", ".join(["an image", "a folder", "a pattern of images", "a video file", *(kind.form for kind in KINDS)])
    if not text.strip():
        raise SourceError(f"expected {forms}, got an empty name")
    if "://" in text:
        raise SourceError(f"expected {forms}, got {without_password(text)!r}, which is none of them")
    path = Path(text)
    pattern = not path.exists() and glob.has_magic(text)
    if not pattern and not path.exists():
        raise SourceError(f"expected {forms}, got {without_password(text)!r}: no such file")
    if pattern or path.is_dir() or is_image_name(path):
        from edgeclip.runtime.sources.stills import ImageSource, ImagesSource

        if realtime:
            raise SourceError(f"expected a video file to play in real time, got images ({text!r}), which have no times")
        if pattern:
            return ImagesSource.matching(text)
        return ImagesSource.folder(path) if path.is_dir() else ImageSource(path)
    from edgeclip.runtime.sources.video import open_video

    return open_video(path, realtime, options)
