"""Named boxes and polygons of a frame in; the crops that are encoded out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.documents import decode_json, read_bytes
from edgeclip.errors import InputError
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess.preprocess import Pixels

Point = tuple[float, float]
Box = tuple[float, float, float, float]

_SMALLEST = 8  # pixels a side of a crop
_MOST = 256


@dataclass(frozen=True)
class Region:
    """A part of a frame.

    Attributes:
        name: for people and records; empty for the whole frame.
        polygon: at least three corners (x, y) in fractions of the frame, from its upper left.
    """

    name: str
    polygon: tuple[Point, ...]

    @property
    def box(self) -> Box:
        """The smallest box (x0, y0, x1, y1) around the polygon, in fractions of the frame."""
        xs, ys = zip(*self.polygon, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def is_box(self) -> bool:
        """Whether the region fills its box, so that nothing has to be masked."""
        x0, y0, x1, y1 = self.box
        return len(self.polygon) == 4 and set(self.polygon) == {(x0, y0), (x1, y0), (x1, y1), (x0, y1)}


def whole(name: str = "") -> Region:
    """The whole frame."""
    return _boxed(name, (0.0, 0.0, 1.0, 1.0))


def parse_tiles(text: str) -> tuple[Region, ...]:
    """``"3x2"`` as three columns of two tiles, named ``tile 1,1`` (column, row) and so on, row by row.

    Raises:
        InputError: not of that form, or more than 256 tiles.
    """
    match = re.fullmatch(r"([1-9]\d{0,2})[x×]([1-9]\d{0,2})", text.strip())
    if not match:
        raise InputError(f"expected tiles as columns x rows, such as 3x2, got {text!r}")
    columns, rows = int(match[1]), int(match[2])
    if columns * rows > _MOST:
        raise InputError(f"expected at most {_MOST} tiles, got {columns * rows}: use fewer")
    return tuple(
        _boxed(f"tile {x + 1},{y + 1}", (x / columns, y / rows, (x + 1) / columns, (y + 1) / rows))
        for y in range(rows)
        for x in range(columns)
    )


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    box: Box | None = None
    polygon: list[Point] | None = None
    width: float | None = None
    height: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    regions: list[_Entry]
    width: float | None = None
    height: float | None = None


def load_regions(path: Path) -> tuple[Region, ...]:
    """Regions from JSON: a list of ``{"name", "box": [x0, y0, x1, y1]}`` or ``{"name", "polygon": [[x, y], …]}``.

    Values are fractions of the frame; or pixels of a reference frame whose ``width`` and ``height`` are given, either
    with the region or once for all: ``{"width": 1920, "height": 1080, "regions": [...]}``.

    Raises:
        InputError: no such file, not of this form, or a region that lies outside the frame, is flat or has no name.
    """
    try:
        raw = read_bytes(path)
    except InputError as error:
        raise InputError(f"expected a file of regions, {error}") from error
    try:
        given: _File | list[_Entry] = decode_json(raw, _File | list[_Entry], where=str(path))  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(
            f'{path} is no list of regions ({error}): write [{{"name": "door", "box": [0.1, 0.2, 0.5, 0.9]}}, …]'
        ) from error
    file = _File(given) if isinstance(given, list) else given
    if not 1 <= len(file.regions) <= _MOST:
        raise InputError(f"expected 1 to {_MOST} regions in {path}, got {len(file.regions)}")
    regions = tuple(_region(entry, file, f"{path}, region {i}") for i, entry in enumerate(file.regions, start=1))
    names = [region.name for region in regions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} names {', '.join(map(repr, twice))} twice: give every region its own name")
    return regions


def crop(pixels: Pixels, region: Region) -> Pixels:
    """The region's box cut out of a frame.

    Args:
        pixels: (H, W, 3) uint8 RGB, of which a view is returned, or a decoded video frame.

    Raises:
        InputError: the crop is smaller than 8 by 8 pixels.
    """
    if isinstance(pixels, av.VideoFrame):
        return _crop_frame(pixels, region)
    height, width = pixels.shape[:2]
    left, top, right, bottom = _pixel_box(region, width, height)
    return pixels[top:bottom, left:right]


def mask(small: Image, region: Region, fill: tuple[int, int, int] = (128, 128, 128)) -> Image:
    """What lies outside of the region's polygon filled.

    Args:
        small: (h, w, 3) uint8, showing the whole box of the region, at any size.
        fill: RGB.

    Returns:
        (h, w, 3) uint8; ``small`` itself where the region is a box.
    """
    if region.is_box:
        return small
    inside = _inside(region, small.shape[0], small.shape[1])
    return np.where(inside[..., None], small, np.asarray(fill, np.uint8))


@lru_cache(maxsize=1024)
def _inside(region: Region, height: int, width: int) -> npt.NDArray[np.bool_]:
    x0, y0, x1, y1 = region.box
    points = [
        ((x - x0) / (x1 - x0) * width * 16 - 8, (y - y0) / (y1 - y0) * height * 16 - 8) for x, y in region.polygon
    ]
    canvas = np.zeros((height, width), np.uint8)
    opencv().fillPoly(canvas, [np.round(points).astype(np.int32)], 1, shift=4)
    return canvas.astype(bool)


def _boxed(name: str, box: Box) -> Region:
    x0, y0, x1, y1 = box
    return Region(name, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))


def _region(entry: _Entry, file: _File, where: str) -> Region:
    if not entry.name.strip():
        raise InputError(f"{where}: expected a name, got none")
    where = f"{where} ({entry.name})"
    width = file.width if entry.width is None else entry.width
    height = file.height if entry.height is None else entry.height
    if (width is None) != (height is None) or not all(side is None or side > 0 for side in (width, height)):
        raise InputError(f"{where}: expected width and height of the reference frame above 0, got {width} and {height}")
    if (entry.box is None) == (entry.polygon is None):
        raise InputError(f"{where}: expected either a box or a polygon, got {'both' if entry.box else 'neither'}")
    scale_x, scale_y = 1 / (width or 1), 1 / (height or 1)
    if entry.box is not None:
        x0, y0, x1, y1 = entry.box
        if not (x0 < x1 and y0 < y1):
            raise InputError(
                f"{where}: expected a box [x0, y0, x1, y1] with x0 < x1 and y0 < y1, got {list(entry.box)}"
            )
        region = _boxed(entry.name.strip(), (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y))
    else:
        points = tuple((x * scale_x, y * scale_y) for x, y in entry.polygon or [])
        if len(set(points)) < 3 or _area(points) == 0:
            raise InputError(f"{where}: expected a polygon of at least 3 corners and some area, got {entry.polygon}")
        region = Region(entry.name.strip(), points)
    if not all(0 <= value <= 1 for point in region.polygon for value in point):
        unit = "from 0 to 1" if width is None else f"inside of {width:g}x{height:g} pixels"
        hint = " (for pixels give width and height too)" if width is None else ""
        raise InputError(f"{where}: expected values {unit}{hint}, got {entry.box or entry.polygon}")
    return region


def _area(points: tuple[Point, ...]) -> float:
    following = points[1:] + points[:1]
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, following, strict=True))) / 2


def _pixel_box(region: Region, width: int, height: int, step_x: int = 1, step_y: int = 1) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels; left and top are multiples of the steps, for subsampled chroma."""
    x0, y0, x1, y1 = region.box
    left, top = round(x0 * width) // step_x * step_x, round(y0 * height) // step_y * step_y
    right, bottom = min(round(x1 * width), width), min(round(y1 * height), height)
    if right - left < _SMALLEST or bottom - top < _SMALLEST:
        found, least = f"{right - left}x{bottom - top} pixels", f"{_SMALLEST}x{_SMALLEST}"
        if not region.name:
            raise InputError(f"expected at least {least} pixels, got {found}: too small to be labelled")
        raise InputError(
            f"region {region.name!r} is {found} of this {width}x{height} frame, expected at least {least}: "
            "make it larger"
        )
    return left, top, right, bottom


# 8-bit formats whose planes can be cut: luma pixels a chroma sample across and down, and whether U and V share a plane.
_LAYOUTS: Mapping[str, tuple[int, int, bool]] = {
    "yuv420p": (2, 2, False),
    "yuvj420p": (2, 2, False),
    "yuv422p": (2, 1, False),
    "yuvj422p": (2, 1, False),
    "yuv444p": (1, 1, False),
    "yuvj444p": (1, 1, False),
    "nv12": (2, 2, True),
    "gray": (1, 1, False),
}


def _crop_frame(frame: av.VideoFrame, region: Region) -> Pixels:
    layout = _LAYOUTS.get(frame.format.name)
    if layout is None:
        rgb: Image = frame.to_ndarray(format="rgb24")
        left, top, right, bottom = _pixel_box(region, frame.width, frame.height)
        return rgb[top:bottom, left:right]
    step_x, step_y, interleaved = layout
    left, top, right, bottom = _pixel_box(region, frame.width, frame.height, step_x, step_y)
    if (left, top, right, bottom) == (0, 0, frame.width, frame.height):
        return frame
    cut = av.VideoFrame(right - left, bottom - top, frame.format.name)
    for index, (source, target) in enumerate(zip(frame.planes, cut.planes, strict=True)):
        across, down = (step_x, step_y) if index else (1, 1)
        samples = 2 if index and interleaved else 1
        width = target.width * samples
        x, y = left // across * samples, top // down
        rows = np.frombuffer(source, np.uint8).reshape(-1, source.line_size)
        out = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)
        out[: target.height, :width] = rows[y : y + target.height, x : x + width]
    cut.pts = frame.pts
    if frame.time_base is not None:
        cut.time_base = frame.time_base
    cut.colorspace, cut.color_range = frame.colorspace, frame.color_range
    return cut
