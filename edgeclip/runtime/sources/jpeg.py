"""A JPEG of a camera in; its decoded frame and its orientation out; half pictures are refused."""

from __future__ import annotations

from typing import Any

import av
import av.error

from edgeclip.errors import SourceError
from edgeclip.limits import limit
from edgeclip.runtime.image_header import read_header

START, END = b"\xff\xd8", b"\xff\xd9"
_EXIF_WITHIN = 4096
# Some cameras' pictures end a few bits early, every one of them; so much may be missing.
_PADDING = bytes(16)


class JpegDecoder:
    """Decodes JPEGs one by one; FFmpeg itself would paint grey what is missing of one.

    Args:
        codec: the context to decode with, not opened yet; one of its own by default.
    """

    def __init__(self, codec: Any | None = None) -> None:
        self.codec = av.CodecContext.create("mjpeg", "r") if codec is None else codec
        self.codec.options = {"err_detect": "explode", "max_pixels": str(limit("image_pixels"))}

    def decode(self, packet: Any) -> list[av.VideoFrame]:
        """The frames of a packet: one, if it holds a whole picture.

        Raises:
            av.error.FFmpegError: it is no picture, or a part of one.
        """
        try:
            frames: list[av.VideoFrame] = self.codec.decode(packet)
        except av.error.InvalidDataError:
            data = bytes(packet).rstrip(b"\0")
            if not (data.startswith(START) and data.endswith(END)):
                raise
            padded = av.Packet(data.removesuffix(END) + _PADDING + END)
            padded.pts, padded.dts = packet.pts, packet.dts
            if packet.time_base is not None:
                padded.time_base = packet.time_base
            frames = self.codec.decode(padded)
        return frames


def jpeg_orientation(jpeg: bytes) -> int:
    """The orientation that a JPEG's EXIF names, 1 to 8; 1 where it names none."""
    if b"Exif" not in jpeg[:_EXIF_WITHIN]:
        return 1
    try:
        return read_header(jpeg + END, name="a frame").orientation
    except SourceError:
        return 1
