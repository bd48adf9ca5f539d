"""A frame and its labels in, the frame with the labels drawn on it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.overlay_regions import draw_regions, printable
from edgeclip.runtime.records import LabelledFrame, Scored, View
from edgeclip.runtime.regions import Region

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


def _draw_named(image: Image, labelled: LabelledFrame, named: Sequence[Region]) -> Image:
    # A record of one view names neither its table nor its region.
    views = labelled.views or [View("", named[0].name, labelled.label, labelled.score, labelled.top, labelled.present)]
    placed = {view.region: view for view in views if view.region and view.table == views[0].table}
    others = [view for view in views if placed.get(view.region) is not view]
    drawn = draw_regions(image, named, placed)
    return _draw(drawn, [], _lines(others), at_foot=True) if others else drawn


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
    font = cv2.FONT_HERSHEY_SIMPLEX
    for row, (label, score) in enumerate(top):
        y = first + line * row + line // 4
        cv2.rectangle(out, (0, y), (int(panel_width * min(score, 1.0)), y + line - 3), _BAR, -1)
        text, at = f"{printable(label)} {score:.2f}", (line // 3, y + int(line * 0.68))
        cv2.putText(out, text, at, font, 0.6 * scale, _OTHER if row else _BEST, thickness, cv2.LINE_AA)
    for row, text in enumerate(small, start=len(top)):
        at = (line // 3, first + line * row + line // 4 + int(line * 0.65))
        cv2.putText(out, printable(text), at, font, 0.45 * scale, _OTHER, 1, cv2.LINE_AA)
    return out


def _lines(views: Sequence[View]) -> list[str]:
    lines = [_line(view) for view in views[:_VIEWS_DRAWN]]
    return [*lines, f"and {len(views) - _VIEWS_DRAWN} more"] if len(views) > _VIEWS_DRAWN else lines


def _line(view: View) -> str:
    where = " ".join(part for part in (view.table, view.region) if part)
    return f"{where}: {view.label} {view.score:.2f}"
