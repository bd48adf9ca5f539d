"""The bytes of a HEIF file (HEIC, AVIF) in; its picture out, put together from its tiles and turned upright.

FFmpeg, which decodes it here and gives each tile as a stream of its own, is told by this file which tiles make the
picture: of the boxes of ISO/IEC 23008-12 it reads what that takes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import av
import av.error
import numpy as np

from edgeclip.errors import SourceError
from edgeclip.limits import limit
from edgeclip.runtime.image_header import Box, Image, boxes, exif_orientation, turned

_PICTURES = frozenset({b"hvc1", b"hev1", b"av01", b"avc1", b"jpeg"})
Change = Callable[[Image], Image]


@dataclass(frozen=True)
class Picture:
    """The main picture of a file.

    Attributes:
        width, height: as stored, before any change.
        tiles: the items that it is made of, row by row; one for a picture without a grid.
        columns: of the grid.
        changes: what brings the stored picture into the form that is to be seen, in order.
    """

    width: int
    height: int
    tiles: tuple[int, ...]
    columns: int
    changes: tuple[Change, ...]


def read_picture(data: bytes) -> Picture:
    """Find a file's main picture.

    Raises:
        struct.error: the file is cut, or makes no sense.
    """
    meta = next((box for box in boxes(data, 0, len(data)) if box.kind == b"meta"), None)
    if meta is None:
        raise struct.error("no picture")
    file = _Meta(data, meta)
    item = file.main
    columns = 1
    tiles: tuple[int, ...] = (item,)
    width, height = file.size(item)
    if file.kinds.get(item) not in _PICTURES:  # made of others
        tiles = tuple(file.made_of.get(item, ()))
        if file.kinds.get(item) == b"grid":
            rows, columns, width, height = file.grid(item)
            if len(tiles) != rows * columns:
                raise struct.error("a grid with other tiles")
        elif file.kinds.get(item) != b"iden" or len(tiles) != 1:
            raise struct.error("a picture of an unknown kind")
    if not set(tiles) <= file.kinds.keys():
        raise struct.error("a tile that is not there")
    for each in tiles:
        file.content(each)  # or it is cut
    return Picture(width, height, tiles, columns, tuple(file.changes(item)))


def decode_heif(data: bytes, *, name: str) -> Image:
    """The picture as (H, W, 3) uint8 RGB, upright.

    Raises:
        SourceError: FFmpeg does not decode it, or does not give all of its tiles.
    """
    picture = read_picture(data)
    found = _decoded(data, set(picture.tiles), name)
    if missing := len(set(picture.tiles) - found.keys()):
        raise SourceError(
            f"{name} is a HEIF picture of {len(picture.tiles)} tiles, of which the FFmpeg of PyAV {av.__version__} "
            f"decodes {len(found)} ({missing} are missing): install a later PyAV, or convert it to JPEG"
        )
    first = found[picture.tiles[0]]
    height, width = first.shape[:2]
    if len(picture.tiles) > 1:
        rows = len(picture.tiles) // picture.columns
        if any(tile.shape != first.shape for tile in found.values()) or (
            width * picture.columns < picture.width or height * rows < picture.height
        ):
            raise SourceError(f"{name} is a HEIF picture whose tiles do not fill it: convert it to JPEG")
        grid = np.stack([found[tile] for tile in picture.tiles]).reshape(rows, picture.columns, height, width, 3)
        first = grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, picture.columns * width, 3)
    image = first[: picture.height, : picture.width]
    for change in picture.changes:
        image = change(image)
    return np.ascontiguousarray(image)


def decode_first(data: bytes, form: str, *, name: str) -> Image:
    """The first frame of what FFmpeg reads in a format, (H, W, 3) uint8 RGB; SourceError if there is none."""
    return next(iter(_decoded(data, None, name, form=form).values()))


def _decoded(data: bytes, wanted: set[int] | None, name: str, *, form: str = "mov") -> dict[int, Image]:
    """The first frame of each stream whose number is wanted, of the first stream if None."""
    # A stream may hold more than its header says. FFmpeg counts a row's padding too, so a whole picture needs more.
    most = {"max_pixels": str(2 * limit("image_pixels"))}
    found: dict[int, Image] = {}
    try:
        with av.open(io.BytesIO(data), format=form, options=most) as container:
            streams = [each for each in container.streams.video if wanted is None or each.id in wanted]
            for stream in streams:
                context: Any = stream.codec_context
                if context is None:
                    raise SourceError(_refusal(name, "no decoder for it"))
                context.options = most
                context.thread_count = 1
            for packet in container.demux(streams):
                if packet.stream.id in found:
                    continue
                for frame in packet.decode():
                    found.setdefault(packet.stream.id, frame.to_ndarray(format="rgb24"))
                if len(found) == len(streams):
                    break
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(_refusal(name, str(reason))) from error
    if not found:
        raise SourceError(_refusal(name, "no frame in it"))
    return found


def _refusal(name: str, reason: str) -> str:
    return (
        f"{name} cannot be decoded by the FFmpeg of PyAV {av.__version__} ({reason}): convert it to JPEG or PNG, or "
        "install a later PyAV"
    )


class _Meta:
    """The box that says what is in a file.

    Attributes:
        main: number of the main item.
        kinds: the four letters of each item.
        made_of: the items that an item is derived from, in order.
        about: the items that describe an item.
    """

    def __init__(self, data: bytes, meta: Box) -> None:
        self._data = data
        inside = {box.kind: box for box in boxes(data, meta.start + 4, meta.end)}
        self._inside = inside
        self.main = self._number(inside.get(b"pitm"))
        self.kinds = dict(self._items(inside.get(b"iinf")))
        self.made_of: dict[int, list[int]] = {}
        self.about: dict[int, list[int]] = {}
        if b"iref" in inside:
            self._read_references(inside[b"iref"])
        self._places = dict(self._read_places(inside[b"iloc"])) if b"iloc" in inside else {}
        self._properties: list[Box] = []
        self._of_item: dict[int, list[int]] = {}
        for box in boxes(data, *inside[b"iprp"][1:]) if b"iprp" in inside else ():
            if box.kind == b"ipco":
                self._properties = list(boxes(data, box.start, box.end))
            elif box.kind == b"ipma":
                self._read_associations(box)

    def size(self, item: int) -> tuple[int, int]:
        """(width, height) of an item."""
        for box in self._properties_of(item):
            if box.kind == b"ispe":
                width, height = self._unpack(">II", box.start + 4)
                return width, height
        raise struct.error("no size")

    def grid(self, item: int) -> tuple[int, int, int, int]:
        """(rows, columns, width, height) of a grid."""
        payload = self.content(item)
        _, wide, rows, columns = struct.unpack_from(">BBBB", payload)
        width, height = struct.unpack_from(">II" if wide & 1 else ">HH", payload, 4)
        return rows + 1, columns + 1, width, height

    def content(self, item: int) -> bytes:
        """The bytes of an item; struct.error if they are not all there."""
        if item not in self._places:
            raise struct.error("an item without a place")
        inside_meta, extents = self._places[item]
        base = self._inside[b"idat"].start if inside_meta and b"idat" in self._inside else 0
        parts = []
        for offset, length in extents:
            start = base + offset
            end = start + length if length else len(self._data)
            if end > len(self._data):
                raise struct.error("an item goes on")
            parts.append(self._data[start:end])
        return b"".join(parts)

    def changes(self, item: int) -> Iterator[Change]:
        """What is done to an item before it is seen, in order."""
        turns = False
        for box in self._properties_of(item):
            if box.kind == b"clap":
                yield _cropped(self._unpack(">8I", box.start))
            elif box.kind == b"irot":
                turns = True
                yield partial(np.rot90, k=self._data[box.start] & 3)
            elif box.kind == b"imir":
                turns = True
                yield np.fliplr if self._data[box.start] & 1 else np.flipud
        if turns:  # what its EXIF says then is what the camera's file said that it was made of
            return
        for exif in self.about.get(item, ()):
            if self.kinds.get(exif) == b"Exif":
                content = self.content(exif)
                skip = 4 + struct.unpack_from(">I", content)[0]
                yield partial(turned, orientation=exif_orientation(content[skip:]))

    def _properties_of(self, item: int) -> Iterator[Box]:
        for number in self._of_item.get(item, ()):
            if 0 < number <= len(self._properties):
                yield self._properties[number - 1]

    def _unpack(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(form, self._data, at)

    def _number(self, box: Box | None) -> int:
        if box is None:
            raise struct.error("no main item")
        number: int = self._unpack(">H" if not self._data[box.start] else ">I", box.start + 4)[0]
        return number

    def _items(self, box: Box | None) -> Iterator[tuple[int, bytes]]:
        if box is None:
            return
        short = not self._data[box.start]
        for entry in boxes(self._data, box.start + (6 if short else 8), box.end):
            version = self._data[entry.start]
            if version >= 2:
                number, _, kind = self._unpack(">HH4s" if version == 2 else ">IH4s", entry.start + 4)
                yield number, kind

    def _read_references(self, iref: Box) -> None:
        form = ">H" if not self._data[iref.start] else ">I"
        size = struct.calcsize(form)
        for box in boxes(self._data, iref.start + 4, iref.end):
            (source,) = self._unpack(form, box.start)
            (count,) = self._unpack(">H", box.start + size)
            first = box.start + size + 2
            targets = [self._unpack(form, first + size * each)[0] for each in range(count)]
            if box.kind == b"dimg":
                self.made_of.setdefault(source, []).extend(targets)
            elif box.kind == b"cdsc":
                for target in targets:
                    self.about.setdefault(target, []).append(source)

    def _read_places(self, box: Box) -> Iterator[tuple[int, tuple[bool, list[tuple[int, int]]]]]:
        version, at = self._data[box.start], box.start + 4
        sizes, more = self._unpack(">BB", at)
        at += 2
        offset_size, length_size, base_size = sizes >> 4, sizes & 15, more >> 4
        index_size = more & 15 if version else 0

        def number(size: int) -> int:
            nonlocal at
            if at + size > box.end:
                raise struct.error("the places go on")
            at += size
            return int.from_bytes(self._data[at - size : at], "big")

        for _ in range(number(4 if version == 2 else 2)):
            item = number(4 if version == 2 else 2)
            inside = bool(version and number(2) & 15)
            number(2)  # which file: this one
            base = number(base_size)
            extents = []
            for _ in range(number(2)):
                number(index_size)
                offset = number(offset_size)
                extents.append((base + offset, number(length_size)))
            yield item, (inside, extents)

    def _read_associations(self, box: Box) -> None:
        version, flags = self._data[box.start], self._data[box.start + 3]
        (count,) = self._unpack(">I", box.start + 4)
        at = box.start + 8
        for _ in range(min(count, 1 << 16)):
            form = ">I" if version else ">H"
            (item,) = self._unpack(form, at)
            at += struct.calcsize(form)
            (many,) = self._unpack(">B", at)
            at += 1
            wide, mask = (">H", 0x7FFF) if flags & 1 else (">B", 0x7F)
            step = struct.calcsize(wide)
            self._of_item[item] = [self._unpack(wide, at + step * each)[0] & mask for each in range(many)]
            at += step * many


def _cropped(fractions: tuple[int, ...]) -> Change:
    """A change that leaves the middle of an image, by the eight numbers of ``clap``."""
    numerators = [n - (n >> 31 << 32) for n in fractions[::2]]  # the offsets have a sign
    if not all(fractions[1::2]):
        raise struct.error("a division by zero")
    width, height, right, down = (n / d for n, d in zip(numerators, fractions[1::2], strict=True))

    def change(image: Image) -> Image:
        whole_h, whole_w = image.shape[:2]
        left, top = round((whole_w - width) / 2 + right), round((whole_h - height) / 2 + down)
        cut = image[max(0, top) : max(0, top + round(height)), max(0, left) : max(0, left + round(width))]
        return cut if cut.size else image

    return change
