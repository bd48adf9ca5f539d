"""A decoded frame in, the picture as it is meant to be seen out: square pixels, upright, not mirrored."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.filter
import numpy as np

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


class Turn(NamedTuple):
    """One of the eight ways to lay a picture: first its sides change places, if so, then it is mirrored."""

    swap: bool = False
    left_right: bool = False
    top_down: bool = False


AS_IT_IS = Turn()
# What EXIF's orientation asks for.
EXIF_TURNS = {
    1: AS_IT_IS,
    2: Turn(left_right=True),
    3: Turn(left_right=True, top_down=True),
    4: Turn(top_down=True),
    5: Turn(swap=True),
    6: Turn(swap=True, left_right=True),
    7: Turn(swap=True, left_right=True, top_down=True),
    8: Turn(swap=True, top_down=True),
}
_QUARTERS = (AS_IT_IS, EXIF_TURNS[8], EXIF_TURNS[3], EXIF_TURNS[6])  # counter-clockwise


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

    def __call__(self, decoded: av.VideoFrame, turn: Turn = AS_IT_IS) -> Pixels:
        """The frame itself where nothing is to be done.

        Args:
            turn: what the picture's own EXIF asks for; it goes before the display matrix.
        """
        turn = turn if turn != AS_IT_IS else turn_of(decoded)
        if self._stretched:
            decoded = self._square(decoded)
        if turn == AS_IT_IS:
            return decoded
        rgb = decoded.to_ndarray(format="rgb24")
        if turn.swap:
            rgb = rgb.transpose(1, 0, 2)
        return np.ascontiguousarray(rgb[:: -1 if turn.top_down else 1, :: -1 if turn.left_right else 1])

    def _square(self, decoded: av.VideoFrame) -> av.VideoFrame:
        geometry = (decoded.height, decoded.width, decoded.format.name)
        if self._graph is None or geometry != self._graph_of:
            stated = [("setsar", f"sar={self._container}")] if self._container else []
            self._graph, self._graph_of = build_graph(*geometry, [*stated, ("scale", _TO_SQUARE)]), geometry
        return through(self._graph, decoded)


def turn_of(decoded: av.VideoFrame) -> Turn:
    """What a frame's display matrix asks for, to the nearest quarter turn."""
    try:
        matrix = decoded.side_data.get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that this PyAV has no name for
        return _QUARTERS[round(getattr(decoded, "rotation", 0) / 90) % 4]
    if matrix is None:
        return AS_IT_IS
    # Rows (a, b, u), (c, d, v), (x, y, w): a point (p, q) goes to (a p + c q, b p + d q).
    a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Turn(left_right=a < 0, top_down=d < 0)
    return Turn(swap=True, left_right=c < 0, top_down=b < 0)
