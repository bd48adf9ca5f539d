"""A frame and its labels in, the frame with the labels drawn on it out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.scoring import Scored

_PANEL = (18, 18, 18)
_BAR = (70, 160, 110)
_BEST = (255, 255, 255)
_OTHER = (190, 190, 190)


def draw_labels(image: Image, top: Sequence[Scored], *, caption: str = "") -> Image:
    """Draw the best labels with a bar as long as their score, and an optional caption below.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        top: labels to draw, best first.
        caption: small text under the bars.

    Returns:
        A new (H, W, 3) uint8 RGB image.
    """
    cv2 = opencv()
    out: Image = image.copy()
    height, width = out.shape[:2]
    scale = min(max(min(height, width) / 480.0, 0.35), 3.0)
    line = max(int(26 * scale), 8)
    panel_width = min(width, int(300 * scale))
    panel_height = min(height, line * (len(top) + bool(caption)) + line // 2)
    panel = out[:panel_height, :panel_width]
    panel[:] = (panel * 0.35 + np.asarray(_PANEL) * 0.65).astype(np.uint8)
    thickness = max(1, round(1.2 * scale))
    for row, (label, score) in enumerate(top):
        y = line * row + line // 4
        cv2.rectangle(out, (0, y), (int(panel_width * min(score, 1.0)), y + line - 3), _BAR, -1)
        text = f"{_printable(label)} {score:.2f}"
        colour = _OTHER if row else _BEST
        cv2.putText(
            out,
            text,
            (line // 3, y + int(line * 0.68)),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.6 * scale,
            colour,
            thickness,
            cv2.LINE_AA,
        )
    if caption:
        y = line * len(top) + line // 4 + int(line * 0.65)
        cv2.putText(
            out, _printable(caption), (line // 3, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45 * scale, _OTHER, 1, cv2.LINE_AA
        )
    return out


def _printable(text: str) -> str:
    # OpenCV's built-in fonts have ASCII only.
    return text.encode("ascii", "replace").decode()
