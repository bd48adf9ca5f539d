"""A JPEG in; its decoded frame and its orientation out; half pictures are refused, of cameras and in files."""

from __future__ import annotations

from typing import Any

import av
import av.error

from edgeclip.errors import SourceError
from edgeclip.limits import limit
from edgeclip.runtime.image_header import read_header, walk_jpeg

START, END = b"\xff\xd8", b"\xff\xd9"
_EXIF_WITHIN = 4096
# Some cameras' pictures end a few bits early, every one of them; so much may be missing.
_PADDING = bytes(16)
# How files are coded of which FFmpeg says surely whether they are whole: by Huffman, eight bits a sample.
_HUFFMAN, _BITS = frozenset({0xC0, 0xC1, 0xC2}), 8
_SMALLEST = 3  # pixels are not looked at: the sides an eighth
# So many zeros before the end that decode to nothing were never written by an encoder, which pads by less.
_HOLE = bytes(256)


class JpegDecoder:
    """Decodes JPEGs one by one; FFmpeg itself would paint grey what is missing of one.

    Args:
        codec: the context to decode with, not opened yet; one of its own by default.
        lowres: how often the sides are halved, 0 to 3.
    """

    def __init__(self, codec: Any | None = None, *, lowres: int = 0) -> None:
        self.codec = av.CodecContext.create("mjpeg", "r") if codec is None else codec
        self.codec.options = {
            "err_detect": "explode",
            "max_pixels": str(limit("image_pixels")),
            "lowres": str(lowres),
        }

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


def check_whole(jpeg: bytes, *, name: str) -> None:
    """Refuse a JPEG file whose markers are all there, but not what is coded between them.

    OpenCV's decoder would paint that grey. What FFmpeg cannot decode passes: arithmetic coding, rare samplings.

    Raises:
        SourceError: coded data is missing, or there are zeros in its place.
    """
    walk = walk_jpeg(jpeg)
    if walk.frame not in _HUFFMAN or walk.bits != _BITS:
        return
    coded = jpeg[: walk.end]
    try:
        _decode_small(coded)
        if not coded.endswith(_HOLE):
            return
        try:
            _decode_small(coded.removesuffix(_HOLE))
        except av.error.InvalidDataError:  # they are data: of a plain colour, say
            return
    except av.error.InvalidDataError:
        pass
    except av.error.FFmpegError:
        return
    raise SourceError(f"{name} is a truncated or damaged JPEG ({len(jpeg):,} bytes): copy it again")


def _decode_small(coded: bytes) -> None:
    JpegDecoder(lowres=_SMALLEST).decode(av.Packet(coded + END))


def jpeg_orientation(jpeg: bytes) -> int:
    """The orientation that a JPEG's EXIF names, 1 to 8; 1 where it names none."""
    if b"Exif" not in jpeg[:_EXIF_WITHIN]:
        return 1
    try:
        return read_header(jpeg + END, name="a frame").orientation
    except SourceError:
        return 1
