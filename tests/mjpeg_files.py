"""JPEGs in, a video file with them as its frames, byte by byte as they are, out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av


def avi_of(pictures: Sequence[bytes], *, height: int, width: int, pixel_format: str) -> bytes:
    """An AVI of ten pictures a second, of which the header says size and pixel format."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        for index, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.pts = packet.dts = index
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 10), stream, True
            container.mux(packet)
    return file.getvalue()
