"""The text that names a source in; the opened source out.

To add a kind of source: write a function like those below in a file of its own and add a ``Kind``.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from edgeclip.errors import SourceError
from edgeclip.runtime.images import is_image_name, kind_of
from edgeclip.runtime.sources.address import as_usual, without_password
from edgeclip.runtime.sources.base import Frame, Source, SourceOptions, limited

__all__ = ["Frame", "Source", "SourceOptions", "limited", "open_source"]


class Kind(NamedTuple):
    """One kind of source.

    Attributes:
        form: what its texts look like, for people.
        pattern: what they match from their start.
        opener: ``module:function`` below ``edgeclip.runtime.sources``, imported when one is opened; takes the text,
            ``realtime`` and the options.
        path_first: what is there under that name, as a file or folder, goes before it.
    """

    form: str
    pattern: str
    opener: str
    path_first: bool = True


# Read as a film: a GIF, and sequences in HEIF, have one frame or many.
_FILM = re.compile(rb"GIF8|....ftyp(?:avis|msf1|hevc|hevx)", re.DOTALL)

# The first that matches is taken; what matches none is a path.
KINDS = (
    Kind("gst:PIPELINE", r"gst:|.*\s!\s", "gstreamer:open_pipeline"),
    Kind("csi://N", r"csi://", "gstreamer:open_csi"),
    Kind("rtsp:// or rtsps://", r"rtsps?://", "network:open_network"),
    Kind("http:// or https://", r"https?://", "network:open_network"),
    Kind("a camera's index", r"[0-9]+(\?|$)", "opencv:open_camera"),
    Kind("/dev/videoN", r"/dev/video[^/]*(\?|$)", "opencv:open_camera", path_first=False),
    Kind("- or stdin?… for raw frames on standard input", r"-(\?|$)|stdin\?", "raw:open_raw", path_first=False),
)


def open_source(text: str | int, *, realtime: bool = False, options: SourceOptions | None = None) -> Source:
    """Open an image, a folder, a pattern of images, a video file, a camera or a stream (see docs/sources.md).

    Args:
        text: what to open; a number is a camera's index, whatever there is of that name.
        realtime: play a video file as a camera would give it: paced, the latest frame only. Live sources always are.
        options: rare knobs.

    Raises:
        SourceError: nothing there, nothing readable in it, or an option that it does not have.
        MissingExtraError: it needs OpenCV, which is not installed.
    """
    opener: Callable[[str, bool, SourceOptions], Source]
    if isinstance(text, int) and text >= 0:
        opener = resolve_name("edgeclip.runtime.sources.opencv:open_camera")
        return _interruptible(partial(opener, str(text), realtime, options or SourceOptions()))
    text = str(text)
    if not _names_a_path(text):
        text = as_usual(text)  # as it is pasted
    for kind in KINDS:
        if re.match(kind.pattern, text, re.DOTALL) and not (kind.path_first and _names_a_path(text)):
            opener = resolve_name(f"edgeclip.runtime.sources.{kind.opener}")
            return _interruptible(partial(opener, text, realtime, options or SourceOptions()))
    return _open_path(text, realtime, options or SourceOptions())


def _interruptible(opening: Callable[[], Source]) -> Source:
    """Open on a thread of its own: a signal ends a wait inside a library, which is left behind and ends by itself."""
    if threading.current_thread() is not threading.main_thread():
        return opening()  # only the main thread takes signals
    done, left = threading.Event(), threading.Event()
    opened: list[Source] = []
    failed: list[BaseException] = []

    def open_it() -> None:
        try:
            opened.append(opening())
        except BaseException as error:  # noqa: BLE001 - raised by who waits
            failed.append(error)
        done.set()
        if left.is_set() and opened:
            opened[0].close()

    threading.Thread(target=open_it, name="edgeclip-open", daemon=True).start()
    try:
        done.wait()
    except BaseException:
        left.set()
        raise
    if failed:
        raise failed[0]
    return opened[0]


def _names_a_path(text: str) -> bool:
    """Whether there is a file or folder of that name, or one that a pattern matches; never an error."""
    if os.path.exists(text):  # noqa: PTH110 - False where Path.exists raises: a name that is too long, a null in it
        return True
    try:
        return glob.has_magic(text) and next(glob.iglob(text, recursive=True), None) is not None  # noqa: PTH207
    except (OSError, ValueError, re.error):
        return False


def _is_picture(path: Path) -> bool:
    """Whether a file is opened as one image: by its name, or as a HEIF under any name; no film is."""
    head = b""
    with contextlib.suppress(OSError):  # it will be told when it is read
        if path.is_file():
            with path.open("rb") as stream:
                head = stream.read(64)
    if _FILM.match(head):
        return False
    kind = kind_of(head)  # of a HEIF, FFmpeg's first stream may be a tile of the picture
    return is_image_name(path) or (kind is not None and kind.name == "HEIF")


def _open_path(text: str, realtime: bool, options: SourceOptions) -> Source:
    forms = ", ".join(["an image", "a folder", "a pattern of images", "a video file", *(kind.form for kind in KINDS)])
    if not text.strip():
        raise SourceError(f"expected {forms}, got an empty name")
    there = os.path.exists(text)  # noqa: PTH110 - as above
    if not there and "://" in text:
        raise SourceError(f"expected {forms}, got {without_password(text)!r}, which is none of them")
    path = Path(text)
    pattern = not there and glob.has_magic(text)
    if not pattern and not there:
        raise SourceError(f"expected {forms}, got {without_password(text)!r}: no such file")
    if pattern or path.is_dir() or _is_picture(path):
        from edgeclip.runtime.sources.stills import ImageSource, ImagesSource

        if realtime:
            raise SourceError(f"expected a video file to play in real time, got images ({text!r}), which have no times")
        if pattern:
            return ImagesSource.matching(text)
        return ImagesSource.folder(path) if path.is_dir() else ImageSource(path)
    from edgeclip.runtime.sources.video import open_video

    return open_video(path, realtime, options)
