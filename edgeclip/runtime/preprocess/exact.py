"""One frame geometry in, a scaler for it out: what every preprocessing backend fills, and the filter graphs they use.

To add a backend: subclass ``Scaler`` in a file of its own and add a line to ``BACKENDS`` in
``runtime/preprocess/preprocess.py``.

A backend need not resize the whole frame. Resizing 1920x1080 to a shorter side of 224 makes 398x224, of which a crop
keeps 224 columns. Cutting the source first saves the rest, if the sampling phase stays: the cut has to begin and end
where an output column begins, and on a whole source pixel (an even one where chroma is subsampled). ``window`` looks
for such places near the crop.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import av
import av.filter
import numpy as np

from edgeclip.runtime.images import Image
from edgeclip.spec import PreprocessSpec

# Output pixels kept on either side of the crop: the filter of an antialiased cubic reaches two of them.
_MARGIN = 3
# Largest shift of an edge of the cut, output pixels; 0.04 changes a photograph by about 0.03/255 on average.
_SHIFT = 0.04
# In swscale's general cubic, param0 = B and param1 = C of Mitchell and Netravali (1988): Catmull-Rom, which is
# Pillow's cubic, is (0, 1/2); FFmpeg's own default is (0, 0.6).
CATMULL_ROM = ":param0=0:param1=0.5"
_EXACT = {
    "bicubic": f"flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp{CATMULL_ROM}",
    "bilinear": "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp",
}
Step = tuple[str, str]


class Scaler(ABC):
    """Resizes and crops frames of one geometry; of one thread at a time.

    Args:
        spec: what the encoder expects.
        height, width: of the frames, pixels.
        pixel_format: FFmpeg's name of it; ``rgb24`` for arrays.
    """

    def __init__(self, spec: PreprocessSpec, height: int, width: int, pixel_format: str) -> None:
        self.spec = spec
        self.height, self.width, self.pixel_format = height, width, pixel_format

    @abstractmethod
    def frame(self, frame: av.VideoFrame) -> Image:
        """(height, width, 3) uint8 RGB of the encoder's size, owning its memory."""

    def array(self, image: Image) -> Image:
        """As ``frame``, of an (H, W, 3) uint8 RGB array, which need not be contiguous."""
        return self.frame(wrap(image))


class ExactScaler(Scaler):
    """One pass of swscale over the whole frame, with all of its flags for accuracy: nearest to Pillow."""

    def __init__(self, spec: PreprocessSpec, height: int, width: int, pixel_format: str) -> None:
        super().__init__(spec, height, width, pixel_format)
        scaled_height, scaled_width = resized_size(spec, height, width)
        steps: list[Step] = [("scale", f"{scaled_width}:{scaled_height}:{_EXACT[spec.interpolation]}")]
        steps.append(("format", "rgb24"))
        if (scaled_height, scaled_width) != (spec.height, spec.width):
            top = whole(height, scaled_height, spec.height).crop
            left = whole(width, scaled_width, spec.width).crop
            steps.append(("crop", f"{spec.width}:{spec.height}:{left}:{top}:exact=1"))
        self._graph = build_graph(height, width, pixel_format, steps)

    def frame(self, frame: av.VideoFrame) -> Image:
        """One frame through the graph."""
        return pull(self._graph, frame)


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


def whole(source: int, scaled: int, kept: int) -> Window:
    """No cut: all of ``source`` is resized, then cropped in its centre as torchvision does."""
    return Window(0, source, scaled, round((scaled - kept) / 2))


def resized_size(spec: PreprocessSpec, height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels after the resize and before the crop, rounded down as torchvision does."""
    if spec.resize == "squash":
        return spec.height, spec.width
    if height <= width:
        return spec.resize_to, spec.resize_to * width // height
    return spec.resize_to * height // width, spec.resize_to


def build_graph(height: int, width: int, pixel_format: str, steps: Sequence[Step]) -> av.filter.Graph:
    """A chain of FFmpeg filters, on the caller's thread, for frames of one geometry."""
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(width=width, height=height, format=pixel_format, time_base="1/1000")]
    nodes += [graph.add(name, arguments) for name, arguments in steps]
    nodes.append(graph.add("buffersink"))
    for node, following in itertools.pairwise(nodes):
        node.link_to(following)
    graph.configure()
    return graph


def through(graph: av.filter.Graph, frame: av.VideoFrame) -> av.VideoFrame:
    """One frame through a graph; what comes out has no presentation time."""
    pts = frame.pts
    frame.pts = None  # the graph has a time base of its own; frames are not sorted by it
    try:
        graph.push(frame)
    finally:
        frame.pts = pts  # the caller's
    pulled = graph.pull()
    assert isinstance(pulled, av.VideoFrame)
    return pulled


def pull(graph: av.filter.Graph, frame: av.VideoFrame) -> Image:
    """One frame through a graph that ends in RGB: (h, w, 3) uint8, a copy."""
    small: Image = through(graph, frame).to_ndarray()
    return small


def wrap(image: Image) -> av.VideoFrame:
    """(H, W, 3) uint8 RGB as a frame; a view of it where its rows are contiguous, good until the array changes."""
    if image.strides[1:] != (3, 1) or image.strides[0] < image.shape[1] * 3:
        image = np.ascontiguousarray(image)
    return av.VideoFrame.from_numpy_buffer(image, format="rgb24")
