"""A decoded frame in, the picture as it is meant to be seen out: square pixels, upright, not mirrored."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np

from edgeclip.runtime.image_header import turned
from edgeclip.runtime.preprocess.exact import build_graph, through
from edgeclip.runtime.preprocess.preprocess import Pixels

_log = logging.getLogger("edgeclip")

_MOST_STRETCHED = 8
_SQUARE = 0.01  # pixels that are this near to square are
# The scale filter knows each frame's own ratio; the shorter side grows, so that nothing is lost.
_TAKEN = f"between(sar,1/{_MOST_STRETCHED},{_MOST_STRETCHED})*gt(abs(sar-1),{_SQUARE})"
_TO_SQUARE = (
    f"w='if({_TAKEN}*gt(sar,1),round(iw*sar),iw)':h='if({_TAKEN}*lt(sar,1),round(ih/sar),ih)'"
    ":eval=frame:flags=bicubic+accurate_rnd"
)


# Orientations as EXIF counts them: by quarter turns counter-clockwise, and by (sides swapped, mirrored, upside down).
_QUARTERS = (1, 8, 3, 6)
_ORIENTATIONS = {
    (False, False, False): 1,
    (False, True, False): 2,
    (False, True, True): 3,
    (False, False, True): 4,
    (True, False, False): 5,
    (True, True, False): 6,
    (True, True, True): 7,
    (True, False, True): 8,
}


class Upright:
    """Shows the frames of one stream as they are meant to be seen.

    A ratio of the pixels' sides that the container states is taken where it differs from the codec's at the start, as
    players do; else the codec's, frame by frame. One beyond 8:1 is told and not taken.

    Args:
        name: for people.
        stream: the opened video stream; None where all that is known comes with the frames.
    """

    def __init__(self, name: str, stream: Any | None = None) -> None:
        self._name = name
        self._container: Fraction | None = None
        self._seen: Fraction | None = None
        self._stretched = False
        self._graph: av.filter.Graph | None = None
        self._graph_of: tuple[int, int, str] | None = None
        if stream is not None:
            stated, own = stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio
            self._container = stated if stated != own else None
            self.note(stream.codec_context)

    def note(self, codec: Any) -> None:
        """Look at the ratio in a codec's context: after each packet, in the thread that decodes."""
        ratio = self._container or codec.sample_aspect_ratio
        if ratio is None or ratio == self._seen:
            return
        self._seen = ratio
        if not 1 / _MOST_STRETCHED <= ratio <= _MOST_STRETCHED:
            _log.warning(
                "%s states pixels of %d:%d, which is taken for a mistake: they are shown as square",
                *(self._name, ratio.numerator, ratio.denominator),
            )
        elif abs(ratio - 1) > _SQUARE:
            self._stretched = True  # and stays so: frames that were decoded before a change are still to come

    def __call__(self, decoded: av.VideoFrame, orientation: int = 1) -> Pixels:
        """The frame itself where nothing is to be done.

        Args:
            orientation: what the picture's own EXIF says, from 1 to 8; it goes before the display matrix.
        """
        orientation = orientation if orientation != 1 else orientation_of(decoded)
        if self._stretched:
            decoded = self._square(decoded)
        return decoded if orientation == 1 else turned(decoded.to_ndarray(format="rgb24"), orientation)

    def _square(self, decoded: av.VideoFrame) -> av.VideoFrame:
        geometry = (decoded.height, decoded.width, decoded.format.name)
        if self._graph is None or geometry != self._graph_of:
            stated = [("setsar", f"sar={self._container}")] if self._container else []
            self._graph, self._graph_of = build_graph(*geometry, [*stated, ("scale", _TO_SQUARE)]), geometry
        return through(self._graph, decoded)


def orientation_of(decoded: av.VideoFrame) -> int:
    """What a frame's display matrix asks for, to the nearest quarter turn, as EXIF counts it."""
    try:
        matrix = decoded.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that this PyAV has no name for
        return _QUARTERS[round(getattr(decoded, "rotation", 0) / 90) % 4]
    if matrix is None:
        return 1
    # Rows (a, b, u), (c, d, v), (x, y, w): a point (p, q) goes to (a p + c q, b p + d q).
    a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _ORIENTATIONS[False, a < 0, d < 0]
    return _ORIENTATIONS[True, c < 0, b < 0]
