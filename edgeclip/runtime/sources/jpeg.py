"""A JPEG of a camera in; its decoded frame and the way to lay it out; half pictures are refused."""

from __future__ import annotations

import struct
from typing import Any

import av
import av.error

from edgeclip.runtime.sources.upright import AS_IT_IS, EXIF_TURNS, Turn

START, END = b"\xff\xd8", b"\xff\xd9"
_APP1, _SCAN = 0xE1, 0xDA
_ORIENTATION = 0x0112
# Some cameras' pictures end a few bits early, every one of them; so much may be missing.
_PADDING = bytes(16)


class JpegDecoder:
    """Decodes JPEGs one by one; FFmpeg itself would paint grey what is missing of one.

    Args:
        codec: the context to decode with, not opened yet; one of its own by default.
    """

    def __init__(self, codec: Any | None = None) -> None:
        self.codec = av.CodecContext.create("mjpeg", "r") if codec is None else codec
        self.codec.options = {"err_detect": "explode"}

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


def exif_turn(jpeg: bytes) -> Turn:
    """What the orientation in a JPEG's EXIF block asks for; as it is where there is none that can be read."""
    at = len(START)
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and (kind := jpeg[at + 1]) != _SCAN:
        (length,) = struct.unpack_from(">H", jpeg, at + 2)
        block = jpeg[at + 4 : at + 2 + length]
        if kind == _APP1 and block.startswith(b"Exif\0\0"):
            try:
                return EXIF_TURNS.get(_orientation(block[6:]), AS_IT_IS)
            except struct.error:  # cut, or offsets that lead outside
                return AS_IT_IS
        at += 2 + length
    return AS_IT_IS


def _orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    if not order:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for at in range(first + 2, first + 2 + 12 * count, 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, at)
        if tag == _ORIENTATION:
            return int(value) if kind == 3 else 1
    return 1
