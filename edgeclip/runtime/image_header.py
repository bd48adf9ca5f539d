"""The bytes of an image file in; what it is, how large and which way up out. Nothing is decoded, all of it is walked.

So a picture of too many pixels, or one that was cut, is refused before memory is taken for it, whatever decodes it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.errors import SourceError

Image = npt.NDArray[np.uint8]

_HEAD = 64  # bytes that tell every kind
_ORIENTATION, _WIDTH, _HEIGHT = 274, 256, 257  # tags of TIFF, and so of EXIF
_EXIF = b"Exif\x00\x00"
# Markers of JPEG that begin a segment, a picture or its end.
_IS_MARKER = np.zeros(256, np.bool_)
_IS_MARKER[[*range(0xC0, 0xD0), *range(0xD8, 0xF0), 0xFE]] = True
_BLOCK = 1 << 20
_START, _END, _SCAN, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_COEFFICIENTS = 64  # of a block
_SPACE = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P[1-6]%s(\d{1,9})%s(\d{1,9})\s" % (_SPACE, _SPACE))
_PAM = re.compile(rb"^(WIDTH|HEIGHT)\s+(\d{1,9})\s*$", re.MULTILINE)


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        kind: one of ``KINDS``, by name.
        width, height: pixels, as stored.
        orientation: how it is turned upright, 1 to 8 as EXIF counts them; 1 where its decoder does that.
    """

    kind: str
    width: int
    height: int
    orientation: int = 1


class JpegWalk(NamedTuple):
    """What the markers of a JPEG say.

    Attributes:
        width, height, orientation: as in ``Header``.
        frame: the marker of its frame, which tells how it is coded; 0 where there is none.
        bits: of a sample.
        end: where its end marker stands.
    """

    width: int
    height: int
    orientation: int
    frame: int
    bits: int
    end: int


class ImageKind(NamedTuple):
    """A format of image files.

    Attributes:
        name: for people.
        suffixes: of its files, in small letters.
        start: what its bytes match from their start.
        read: bytes to (width, height, orientation); struct.error or IndexError where they end too early.
    """

    name: str
    suffixes: frozenset[str]
    start: re.Pattern[bytes]
    read: Callable[[bytes], tuple[int, int, int]]


def kind_of(head: bytes) -> ImageKind | None:
    """The format of a file by its first bytes (64 will do); None if it is none of ``KINDS``."""
    return next((kind for kind in KINDS if kind.start.match(head)), None)


def is_image_name(path: PurePath) -> bool:
    """Whether a file name ends like an image's."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_header(data: bytes, *, name: str) -> Header:
    """Walk an image file.

    Args:
        name: of the file, for messages.

    Raises:
        SourceError: no image, of a format that is not read, or cut.
    """
    kind = kind_of(data[:_HEAD])
    if kind is None:
        known = ", ".join(each.name for each in KINDS)
        raise SourceError(
            f"expected an image, got {name} ({len(data):,} bytes that do not begin as one): known are {known}"
        )
    try:
        return Header(kind.name, *kind.read(data))
    except (struct.error, IndexError):
        raise SourceError(
            f"{name} is a truncated or damaged {kind.name} ({len(data):,} bytes): copy it again"
        ) from None


def turned(image: Image, orientation: int) -> Image:
    """An image turned upright.

    Args:
        image: (H, W, …).
        orientation: 1 to 8 as EXIF counts them; anything else leaves it as it is.

    Returns:
        (H, W, …) or, transposed, (W, H, …); ``image`` itself where nothing is turned.
    """
    if not 2 <= orientation <= 8:
        return image
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def exif_orientation(exif: bytes) -> int:
    """The orientation that a block of EXIF names, 1 to 8; 1 where it names none, or is damaged."""
    try:
        value = _tags(exif.removeprefix(_EXIF)).get(_ORIENTATION, 1)
    except struct.error:
        return 1
    return value if 1 <= value <= 8 else 1


class Box(NamedTuple):
    """A box of an ISO media file: its four letters, and where its content lies."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes that lie one after the other in ``data[start:end]``.

    Raises:
        struct.error: one is longer than that.
    """
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        size = size or end - start  # 0: to the end
        if size < head or start + size > end:
            raise struct.error(f"a box of {size} bytes")
        yield Box(kind, start + head, start + size)
        start += size


# One function a format --------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> tuple[int, int, int]:
    walk = walk_jpeg(data)
    return walk.width, walk.height, walk.orientation


def walk_jpeg(data: bytes) -> JpegWalk:
    """Walk a JPEG from its start to its end marker; what follows is no part of it: padding, or a phone's film.

    Raises:
        struct.error, IndexError: it does not come to its end, another picture begins before, or scans are missing.
    """
    width = height = frame = bits = 0
    orientation, at = 1, 2
    missing: dict[int, set[int]] = {}  # by component: the coefficients that no scan has given to their last bit
    for place, marker in _markers(data):
        if place < at:  # within a segment, such as a thumbnail's
            continue
        at = place + 2
        if marker == _START:
            raise struct.error("another picture begins")
        if marker == _END:
            if any(missing.values()):
                raise struct.error("scans are missing")
            return JpegWalk(width, height, orientation, frame, bits, place)
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _FRAMES:
            frame = marker
            bits, height, width, count = struct.unpack_from(">BHHB", data, at + 2)
            missing = {data[at + 8 + 3 * each]: set(range(_COEFFICIENTS)) for each in range(count)}
        elif marker == _SCAN:
            after = at + 3 + 2 * data[at + 2]
            first, last, approximation = struct.unpack_from("BBB", data, after)
            if frame not in _PROGRESSIVE:
                first, last, approximation = 0, _COEFFICIENTS - 1, 0
            if not approximation & 15:  # how many bits later scans refine
                for component in data[at + 3 : after : 2]:
                    missing.get(component, set()).difference_update(range(first, last + 1))
        elif marker == _APP1 and orientation == 1 and data.startswith(_EXIF, at + 2):
            orientation = exif_orientation(data[at + 2 : at + length])
        at += length
    raise struct.error("no end marker")


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Where 0xFF and a marker stand, anywhere; in a scan 0xFF is followed by 0, or by the number of a restart."""
    raw = np.frombuffer(data, np.uint8)
    for start in range(0, len(raw) - 1, _BLOCK):
        block = raw[start : start + _BLOCK + 1]
        places = np.flatnonzero(block[:-1] == 0xFF)
        markers = block[places + 1]
        known = _IS_MARKER[markers]
        yield from zip((places[known] + start).tolist(), markers[known].tolist(), strict=True)


def _png(data: bytes) -> tuple[int, int, int]:
    width = height = 0
    orientation, at = 1, 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, at + 8)
        elif kind == b"eXIf":
            orientation = exif_orientation(data[at + 8 : at + 8 + length])
        elif kind == b"IEND":
            return width, height, orientation
        at += 12 + length


def _webp(data: bytes) -> tuple[int, int, int]:
    width = height = 0
    orientation, at = 1, 12
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        start = at + 8
        if start + length > len(data):
            raise struct.error("a chunk goes on")
        if kind == b"VP8X":
            low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, start + 4)
            width, height = (high_w << 16 | low_w) + 1, (high_h << 16 | low_h) + 1
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, start + 1)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF":
            orientation = exif_orientation(data[start : start + length])
        at = start + length + length % 2
    return width, height, orientation


def _bmp(data: bytes) -> tuple[int, int, int]:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return abs(width), abs(height), 1  # a height below 0: from its upper edge down


def _gif(data: bytes) -> tuple[int, int, int]:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette(flags)
    while (mark := data[at]) == 0x21:  # an extension
        at = _after_blocks(data, at + 2)
    if mark != 0x2C:
        raise struct.error("no picture")
    _after_blocks(data, at + 11 + _palette(data[at + 9]))  # the first picture is the one that is read
    return width, height, 1


def _palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while length := data[at]:
        at += 1 + length
    return at + 1


def _tiff(data: bytes) -> tuple[int, int, int]:
    tags = _tags(data)
    return tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0), 1


def _pnm(data: bytes) -> tuple[int, int, int]:
    if data.startswith(b"P7"):
        sides = dict(_PAM.findall(data[:1024]))
        return int(sides.get(b"WIDTH", 0)), int(sides.get(b"HEIGHT", 0)), 1
    if (found := _PNM.match(data[:4096])) is None:
        raise struct.error("no size")
    return int(found[1]), int(found[2]), 1


def _jpeg_2000(data: bytes) -> tuple[int, int, int]:
    at = 0
    stated: tuple[int, int] | None = None
    if not data.startswith(b"\xff\x4f"):
        for box in boxes(data, 0, len(data)):
            at = box.start
            if box.kind == b"jp2c":
                break
            if box.kind == b"jp2h":
                height, width = struct.unpack_from(">II", data, box.start + 8)  # its first box says it
                stated = width, height
    right, lower, left, upper = struct.unpack_from(">IIII", data, at + 8)
    size = max(0, right - left), max(0, lower - upper)
    if stated not in (None, size):  # an OpenCV before 4.11 would read beyond the picture
        raise struct.error(f"{size} and {stated}")
    return *size, 1


def _heif(data: bytes) -> tuple[int, int, int]:
    from edgeclip.runtime.heif import read_picture

    picture = read_picture(data)
    return picture.width, picture.height, 1


def _tags(data: bytes) -> dict[int, int]:
    """The whole numbers in the first directory of a TIFF, by their tag; of several the first."""
    order = "<" if data[:1] == b"I" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    # (offset of the directory; its count; an entry: tag, type, count; bytes of its value)
    first, number, entry, room = ("Q", "Q", "HHQ", 8) if version == 43 else ("I", "H", "HHI", 4)
    (at,) = struct.unpack_from(order + first, data, 8 if version == 43 else 4)
    (count,) = struct.unpack_from(order + number, data, at)
    at += struct.calcsize("<" + number)
    found: dict[int, int] = {}
    for _ in range(min(count, 4096)):
        tag, form, _many = struct.unpack_from(order + entry, data, at)
        at += struct.calcsize("<" + entry)
        if form in (3, 4, 16):
            (found[tag],) = struct.unpack_from(order + {3: "H", 4: "I", 16: "Q"}[form], data, at)
        at += room
    return found


def _kind(name: str, suffixes: str, start: bytes, read: Callable[[bytes], tuple[int, int, int]]) -> ImageKind:
    return ImageKind(name, frozenset(f".{each}" for each in suffixes.split()), re.compile(start, re.DOTALL), read)


# What an image is, here and nowhere else: its names, its first bytes, its header.
KINDS = (
    _kind("JPEG", "jpg jpeg jpe jfif jif mpo", rb"\xff\xd8\xff", _jpeg),
    _kind("PNG", "png apng", rb"\x89PNG\r\n\x1a\n", _png),
    _kind("WebP", "webp", rb"RIFF....WEBP", _webp),
    _kind("BMP", "bmp dib", rb"BM", _bmp),
    _kind("TIFF", "tif tiff", rb"II[*+]\0|MM\0[*+]", _tiff),
    _kind("GIF", "gif", rb"GIF8[79]a", _gif),
    _kind("PNM", "ppm pgm pbm pnm pam", rb"P[1-7]\s", _pnm),
    _kind("JPEG 2000", "jp2 j2k j2c jpx", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n", _jpeg_2000),
    _kind("HEIF", "heic heif hif avif", rb"....ftyp(?:hei[cx]|hev[cx]|mif[12]|msf1|avi[fs]|avio|jpeg)", _heif),
)
IMAGE_SUFFIXES = frozenset(suffix for kind in KINDS for suffix in kind.suffixes)
