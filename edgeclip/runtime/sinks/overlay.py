"""A frame, its regions and what is said of each in; the frame with labels, outlines and tags drawn on it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgeclip.printable import printable
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.records import LabelledFrame, Scored, View
from edgeclip.runtime.regions import Region
from edgeclip.runtime.sinks.lettering import text_size, write_text_on

_DARK = (18, 18, 18)
_LIGHT = (255, 255, 255)
_MIN_TEXT = 0.3  # of OpenCV's fonts; smaller cannot be read
_PANEL = (18, 18, 18)
_BAR = (70, 160, 110)
_BEST = (255, 255, 255)
_OTHER = (190, 190, 190)
_VIEWS_DRAWN = 8
_BARS_DRAWN = 5


def draw_record(image: Image, labelled: LabelledFrame, regions: Sequence[Region] = ()) -> Image:
    """Draw what is said of a frame: bars of the first view, its present labels, and a line for each other view.

    Regions with a name are drawn in place: their outline with what the first table says. The bars are left out then,
    for they would cover regions; lines remain for what has no place of its own.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        labelled: the record of this frame.
        regions: what was labelled of it, in the order of the record's views.

    Returns:
        A new (H, W, 3) uint8 RGB image.
    """
    named = [region for region in regions if region.name]
    if named:
        return _draw_named(image, labelled, named)
    lines = [] if labelled.top and labelled.label == labelled.top[0].label else [f"label: {labelled.label}"]
    if labelled.present:
        lines.append(f"present: {', '.join(labelled.present)}")
    return _draw(image, labelled.top[:_BARS_DRAWN], lines + _lines(labelled.views[1:]))


def draw_labels(image: Image, top: Sequence[Scored], *, caption: str = "") -> Image:
    """Draw the best labels with a bar as long as their score, and an optional caption below.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        top: labels to draw, best first.
        caption: small text under the bars.

    Returns:
        A new (H, W, 3) uint8 RGB image.
    """
    return _draw(image, top, [caption] if caption else [])


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


def fit(image: Image, height: int, width: int) -> Image:
    """The image scaled to fit inside (height, width), centred on black; untouched where it has that size already."""
    if image.shape[:2] == (height, width):
        return image
    cv2 = opencv()
    scale = min(height / image.shape[0], width / image.shape[1])
    inner_height = max(1, min(height, round(image.shape[0] * scale)))
    inner_width = max(1, min(width, round(image.shape[1] * scale)))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + inner_height, left : left + inner_width] = cv2.resize(
        image, (inner_width, inner_height), interpolation=interpolation
    )
    return canvas


def _draw_named(image: Image, labelled: LabelledFrame, named: Sequence[Region]) -> Image:
    # A record of one view names neither its table nor its region.
    views = labelled.views or [View("", named[0].name, labelled.label, labelled.score, labelled.top, labelled.present)]
    placed = {view.region: view for view in views if view.region and view.table == views[0].table}
    others = [view for view in views if placed.get(view.region) is not view]
    drawn = draw_regions(image, named, placed)
    return _draw(drawn, [], _lines(others), at_foot=True) if others else drawn


def _draw(image: Image, top: Sequence[Scored], small: Sequence[str], *, at_foot: bool = False) -> Image:
    cv2 = opencv()
    out: Image = image.copy()
    height, width = out.shape[:2]
    scale = min(max(min(height, width) / 480.0, 0.35), 3.0)
    line = max(int(26 * scale), 8)
    panel_width = min(width, int(300 * scale))
    panel_height = min(height, line * (len(top) + len(small)) + line // 2)
    first = height - panel_height if at_foot else 0
    panel = out[first : first + panel_height, :panel_width]
    panel[:] = (panel * 0.35 + np.asarray(_PANEL) * 0.65).astype(np.uint8)
    thickness = max(1, round(1.2 * scale))
    for row, (label, score) in enumerate(top):
        y = first + line * row + line // 4
        cv2.rectangle(out, (0, y), (int(panel_width * min(score, 1.0)), y + line - 3), _BAR, -1)
        text, at = f"{_one_line(label)} {score:.2f}", (line // 3, y + int(line * 0.68))
        write_text_on(out, text, at, 0.6 * scale, _OTHER if row else _BEST, thickness)
    for row, text in enumerate(small, start=len(top)):
        at = (line // 3, first + line * row + line // 4 + int(line * 0.65))
        write_text_on(out, _one_line(text), at, 0.45 * scale, _OTHER, 1)
    return out


def _lines(views: Sequence[View]) -> list[str]:
    lines = [_line(view) for view in views[:_VIEWS_DRAWN]]
    return [*lines, f"and {len(views) - _VIEWS_DRAWN} more"] if len(views) > _VIEWS_DRAWN else lines


def _line(view: View) -> str:
    where = " ".join(part for part in (view.table, view.region) if part)
    return f"{where}: {view.label} {view.score:.2f}"


def _outline(region: Region, width: int, height: int, thin: int) -> npt.NDArray[np.int32]:
    """Corners in pixels, (N, 2); at the frame's edge they move in, where the whole line can be seen."""
    corners = np.asarray(region.polygon) * (width, height)
    inner = np.clip(corners, thin, np.maximum((width - 1 - thin, height - 1 - thin), 0))
    rounded: npt.NDArray[np.int32] = np.round(inner).astype(np.int32)
    return rounded


def _words(region: Region, view: View | None) -> tuple[str, str]:
    """What a tag says, and what it says where there is little room."""
    if view is None:
        return _one_line(region.name), _one_line(region.name)
    brief = f"{view.label} {view.score:.2f}"
    return _one_line(f"{region.name}: {brief}"), _one_line(brief)


def _one_line(text: str) -> str:
    return printable(text, lines=False)


def _tag(out: Image, region: Region, outline: npt.NDArray[np.int32], words: tuple[str, str]) -> None:
    height, width = out.shape[:2]
    corner_x, top = (int(value) for value in _upper_left(region, outline))
    x0, x1 = int(outline[:, 0].min()), int(outline[:, 0].max())
    leftward = corner_x > (x0 + x1) / 2  # of a shape that leans that way, such as a triangle at the right edge
    room = max(corner_x - x0 if leftward else x1 - corner_x, 1)
    wanted = min(max(min(height, width) / 480.0 * 0.5, 0.35), 1.5)
    pad = max(2, round(6 * wanted))
    text, scale = words[0], wanted
    for text in words:
        widest = text_size(text, wanted, 1)[0]
        scale = min(wanted, wanted * max(room - 2 * pad, 1) / max(widest, 1))
        if scale >= _MIN_TEXT:
            break
    scale = max(scale, _MIN_TEXT)
    thickness = max(1, round(1.6 * scale))
    text_width, text_height, below = text_size(text, scale, thickness)
    while len(text) > 1 and text_width + 2 * pad > room:
        text = text[:-3] + ".." if len(text) > 3 else text[:-1]
        text_width = text_size(text, scale, thickness)[0]
    left = max(corner_x - text_width - 2 * pad, 0) if leftward else corner_x
    right, bottom = min(left + text_width + 2 * pad, width), min(top + text_height + below + 2 * pad, height)
    ground = out[top:bottom, left:right]
    ground[:] = (ground * 0.25 + np.asarray(_DARK) * 0.75).astype(np.uint8)
    # Drawn into the tag alone, so that no letter leaves it, nor the frame.
    words_only = np.ascontiguousarray(ground)
    write_text_on(words_only, text, (pad, pad + text_height), scale, _LIGHT, thickness)
    ground[:] = words_only


def _upper_left(region: Region, outline: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Where a tag starts: the corner of a box; of other polygons the corner nearest to that of their box."""
    if region.is_box:
        corner: npt.NDArray[np.int32] = outline.min(axis=0)
        return corner
    nearest: npt.NDArray[np.int32] = outline[np.argmin((outline - outline.min(axis=0)).sum(axis=1))]
    return nearest
