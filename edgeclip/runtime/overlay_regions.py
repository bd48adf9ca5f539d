"""A frame, its regions and what is said of each in, the frame with outlines and tags drawn on it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.records import View
from edgeclip.runtime.regions import Region

_DARK = (18, 18, 18)
_LIGHT = (255, 255, 255)
_MIN_TEXT = 0.3  # of OpenCV's fonts; smaller cannot be read


def draw_regions(image: Image, regions: Sequence[Region], views: Mapping[str, View]) -> Image:
    """Draw the outline of each region and, at its upper left inside it, a tag such as ``door: cat 0.93``.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        regions: in fractions of the frame that the whole image shows.
        views: what is said of a region, by the region's name; one without a view gets its name alone.

    Returns:
        A new (H, W, 3) uint8 RGB image.
    """
    cv2 = opencv()
    out: Image = image.copy()
    height, width = out.shape[:2]
    thin = max(1, round(min(height, width) / 360))
    outlines = [_outline(region, width, height, thin) for region in regions]
    # A light line on a wider dark one stands out from any ground; lines of all first, so that none crosses a tag.
    for colour, thickness in ((_DARK, 3 * thin), (_LIGHT, thin)):
        cv2.polylines(out, outlines, True, colour, thickness, cv2.LINE_AA)
    for region, outline in zip(regions, outlines, strict=True):
        _tag(out, region, outline, _words(region, views.get(region.name)))
    return out


def _outline(region: Region, width: int, height: int, thin: int) -> npt.NDArray[np.int32]:
    """Corners in pixels, (N, 2); at the frame's edge they move in, where the whole line can be seen."""
    corners = np.asarray(region.polygon) * (width, height)
    inner = np.clip(corners, thin, np.maximum((width - 1 - thin, height - 1 - thin), 0))
    rounded: npt.NDArray[np.int32] = np.round(inner).astype(np.int32)
    return rounded


def _words(region: Region, view: View | None) -> tuple[str, str]:
    """What a tag says, and what it says where there is little room."""
    if view is None:
        return printable(region.name), printable(region.name)
    brief = f"{view.label} {view.score:.2f}"
    return printable(f"{region.name}: {brief}"), printable(brief)


def _tag(out: Image, region: Region, outline: npt.NDArray[np.int32], words: tuple[str, str]) -> None:
    cv2 = opencv()
    height, width = out.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    corner_x, top = (int(value) for value in _upper_left(region, outline))
    x0, x1 = int(outline[:, 0].min()), int(outline[:, 0].max())
    leftward = corner_x > (x0 + x1) / 2  # of a shape that leans that way, such as a triangle at the right edge
    room = max(corner_x - x0 if leftward else x1 - corner_x, 1)
    wanted = min(max(min(height, width) / 480.0 * 0.5, 0.35), 1.5)
    pad = max(2, round(6 * wanted))
    text, scale = words[0], wanted
    for text in words:
        widest = cv2.getTextSize(text, font, wanted, 1)[0][0]
        scale = min(wanted, wanted * max(room - 2 * pad, 1) / max(widest, 1))
        if scale >= _MIN_TEXT:
            break
    scale = max(scale, _MIN_TEXT)
    thickness = max(1, round(1.6 * scale))
    (text_width, text_height), below = cv2.getTextSize(text, font, scale, thickness)
    while len(text) > 1 and text_width + 2 * pad > room:
        text = text[:-3] + ".." if len(text) > 3 else text[:-1]
        text_width = cv2.getTextSize(text, font, scale, thickness)[0][0]
    left = max(corner_x - text_width - 2 * pad, 0) if leftward else corner_x
    right, bottom = min(left + text_width + 2 * pad, width), min(top + text_height + below + 2 * pad, height)
    ground = out[top:bottom, left:right]
    ground[:] = (ground * 0.25 + np.asarray(_DARK) * 0.75).astype(np.uint8)
    # Drawn into the tag alone, so that no letter leaves it, nor the frame.
    words_only = np.ascontiguousarray(ground)
    cv2.putText(words_only, text, (pad, pad + text_height), font, scale, _LIGHT, thickness, cv2.LINE_AA)
    ground[:] = words_only


def _upper_left(region: Region, outline: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Where a tag starts: the corner of a box; of other polygons the corner nearest to that of their box."""
    if region.is_box:
        corner: npt.NDArray[np.int32] = outline.min(axis=0)
        return corner
    nearest: npt.NDArray[np.int32] = outline[np.argmin((outline - outline.min(axis=0)).sum(axis=1))]
    return nearest


def printable(text: str) -> str:
    """Text as OpenCV's built-in fonts can write it: they have ASCII only."""
    return text.encode("ascii", "replace").decode()
