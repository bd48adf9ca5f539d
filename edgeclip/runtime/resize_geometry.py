"""A frame's size and the encoder's spec in; sizes after the resize, and which part of the frame to resize at all, out.

Resizing 1920x1080 to a shorter side of 224 makes 398x224, of which a crop keeps 224 columns. Cutting the source first
saves the rest, if the sampling phase stays: the cut has to begin and end where an output column begins, and on a whole
source pixel (an even one where chroma is subsampled). :func:`window` looks for such places near the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeclip.spec import PreprocessSpec

# Output pixels kept on either side of the crop: the filter of an antialiased cubic reaches two of them.
_MARGIN = 3
# Largest shift of an edge of the cut, output pixels; 0.04 changes a photograph by about 0.03/255 on average.
_SHIFT = 0.04


@dataclass(frozen=True)
class Window:
    """One axis of a cut, pixels.

    Attributes:
        start, stop: of the source.
        scaled: what ``stop - start`` becomes.
        crop: where the encoder's input begins in ``scaled``.
    """

    start: int
    stop: int
    scaled: int
    crop: int


def resized_size(spec: PreprocessSpec, height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels after the resize and before the crop, rounded down as torchvision does."""
    if spec.resize == "squash":
        return spec.height, spec.width
    if height <= width:
        return spec.resize_to, spec.resize_to * width // height
    return spec.resize_to * height // width, spec.resize_to


def whole(source: int, scaled: int, kept: int) -> Window:
    """No cut: all of ``source`` is resized, then cropped in its centre as torchvision does."""
    return Window(0, source, scaled, round((scaled - kept) / 2))


def window(source: int, scaled: int, kept: int, step: int) -> Window:
    """The shortest cut of one axis that keeps the phase, with edges on multiples of ``step``; all of it if none does.

    Args:
        source: length of the axis, pixels.
        scaled: what it becomes.
        kept: how much of that the crop keeps.
    """
    everything = whole(source, scaled, kept)
    left = everything.crop
    if scaled == kept or source < scaled:  # a filter that enlarges reaches further, and there is little to save
        return everything
    ratio = source / scaled

    def edges(positions: range) -> list[tuple[int, int]]:
        """(output position, source position), where the two fall together."""
        nearest = ((x, step * round(x * ratio / step)) for x in positions)
        return [(x, at) for x, at in nearest if abs(at / ratio - x) <= _SHIFT and 0 <= at <= source]

    starts = [*edges(range(1, left - _MARGIN + 1)), (0, 0)]
    stops = [*edges(range(left + kept + _MARGIN, scaled)), (scaled, source)]
    first, start = max(starts)
    last, stop = min(stops)
    return Window(start, stop, last - first, left - first)
