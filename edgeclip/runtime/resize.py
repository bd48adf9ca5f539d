"""One frame geometry in, a scaler for it out: what every preprocessing backend fills, and the filter graphs they use.

To add a backend: subclass :class:`Scaler` in a file of its own and add a line to ``BACKENDS`` in
:mod:`edgeclip.runtime.preprocess`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import av
import av.filter
import numpy as np

from edgeclip.runtime.images import Image
from edgeclip.runtime.resize_geometry import resized_size, whole
from edgeclip.spec import PreprocessSpec

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
        """As :meth:`frame`, of an (H, W, 3) uint8 RGB array, which need not be contiguous."""
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


def pull(graph: av.filter.Graph, frame: av.VideoFrame) -> Image:
    """One frame through a graph that ends in RGB: (h, w, 3) uint8, a copy."""
    pts = frame.pts
    frame.pts = None  # the graph has a time base of its own; frames are not sorted by it
    try:
        graph.push(frame)
    finally:
        frame.pts = pts  # the caller's
    pulled = graph.pull()
    assert isinstance(pulled, av.VideoFrame)
    small: Image = pulled.to_ndarray()
    return small


def wrap(image: Image) -> av.VideoFrame:
    """(H, W, 3) uint8 RGB as a frame; a view of it where its rows are contiguous, good until the array changes."""
    if image.strides[1:] != (3, 1) or image.strides[0] < image.shape[1] * 3:
        image = np.ascontiguousarray(image)
    return av.VideoFrame.from_numpy_buffer(image, format="rgb24")
