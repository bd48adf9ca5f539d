"""One frame geometry in, a scaler out that does only the work that shows in the encoder's input.

Three savings, none of which moves a sample: only the part that the crop keeps is resized (``window`` in ``exact.py``);
where the frame is at least four times too large, boxes of 2x2 pixels are averaged first, which OpenCV does at the
speed of memory; and colour is converted once, at the encoder's size (swscale's own path from YUV to RGB resizes three
full-size planes). A box of 2x2 lowers what lies at the new Nyquist frequency by 5 % if a factor of 2.4 remains.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import numpy.typing as npt

from edgeclip.errors import MissingExtraError
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess.exact import (
    CATMULL_ROM,
    Scaler,
    Step,
    Window,
    build_graph,
    pull,
    resized_size,
    window,
    wrap,
)
from edgeclip.spec import PreprocessSpec

Bytes = npt.NDArray[np.uint8]

# Formats whose planes can be halved: pixels a chroma sample spans across and down, and bytes a sample by plane.
_LAYOUTS = {
    "rgb24": (1, 1, (3,)),
    "yuv420p": (2, 2, (1, 1, 1)),
    "yuvj420p": (2, 2, (1, 1, 1)),
    "nv12": (2, 2, (1, 2)),
    "yuv422p": (2, 1, (1, 1, 1)),
    "yuvj422p": (2, 1, (1, 1, 1)),
    "yuv444p": (1, 1, (1, 1, 1)),
    "yuvj444p": (1, 1, (1, 1, 1)),
    "nv24": (1, 1, (1, 2)),
}
# With chroma of half the size, halving only luma makes a frame of these formats, with all the chroma there was.
_LUMA_HALVED = {"yuv420p": "yuv444p", "yuvj420p": "yuvj444p", "nv12": "nv24"}
# Other formats are cut on multiples of this, which suits all subsamplings that cameras have.
_COARSEST = 4
# Averaging leaves at least half of this for the antialiased filter to do.
_HALVE_FROM = 4.0
_FILTERS = {"bicubic": f"flags=bicubic+accurate_rnd{CATMULL_ROM}", "bilinear": "flags=bilinear+accurate_rnd"}
# To RGB in one pass, or from RGB, which swscale resizes as YUV: keep all the chroma.
_ONE_PASS = {
    "bicubic": f"flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp{CATMULL_ROM}",
    "bilinear": "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp",
}
_COLOUR = "flags=bicubic+accurate_rnd+full_chroma_int"
# OpenCV hands a resize to its own threads when it makes more pixels than this; they would take cores from the encoder.
_OPENCV_STRIPE = 1 << 16


class FastScaler(Scaler):
    """Cut, halve, resize, convert; the cheapest way that stays within 1/255 of Pillow."""

    def __init__(self, spec: PreprocessSpec, height: int, width: int, pixel_format: str) -> None:
        super().__init__(spec, height, width, pixel_format)
        self._cv2 = _opencv_if_any()
        self.halvings, self.rows, self.columns = self._plan()
        height = (self.rows.stop - self.rows.start) >> self.halvings
        width = (self.columns.stop - self.columns.start) >> self.halvings
        halved_format = _LUMA_HALVED.get(pixel_format, pixel_format) if self.halvings else pixel_format
        self._half = [
            av.VideoFrame(width << shift, height << shift, halved_format) for shift in reversed(range(self.halvings))
        ]
        # An array was cut before it became a frame, and a frame when it was halved.
        cut_here = not self.halvings and pixel_format != "rgb24"
        self._graph = self._build(height, width, halved_format, cut=cut_here)

    def frame(self, frame: av.VideoFrame) -> Image:
        """A decoded frame, straight from its planes."""
        if self.pixel_format == "rgb24":
            return self.array(_planes(frame)[0])
        if not self.halvings:
            return pull(self._graph, frame)
        half = self._halved(_planes(frame))
        half.colorspace, half.color_range = frame.colorspace, frame.color_range
        return pull(self._graph, half)

    def array(self, image: Image) -> Image:
        """An array or a view of one, which is read in place."""
        if self.halvings:
            return pull(self._graph, self._halved([image]))
        cut = image[self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]
        return pull(self._graph, wrap(cut))

    def _plan(self) -> tuple[int, Window, Window]:
        """(halvings, rows, columns)."""
        spec = self.spec
        scaled_height, scaled_width = resized_size(spec, self.height, self.width)
        halvings = 0
        if self._cv2 is not None and self.pixel_format in _LAYOUTS:
            while min(self.height / scaled_height, self.width / scaled_width) >= _HALVE_FROM * 2**halvings:
                halvings += 1
        while True:
            if halvings and self.pixel_format in _LUMA_HALVED:
                across = down = 1
            else:
                across, down, _ = _LAYOUTS.get(self.pixel_format, (_COARSEST, _COARSEST, ()))
            step_down, step_across = down << halvings, across << halvings
            rows = window(self.height, scaled_height, spec.height, step_down)
            columns = window(self.width, scaled_width, spec.width, step_across)
            # Boxes must fit; where all of an odd length is resized they do not.
            if not halvings or (rows.stop % step_down == 0 and columns.stop % step_across == 0):
                return halvings, rows, columns
            halvings -= 1

    def _build(self, height: int, width: int, pixel_format: str, *, cut: bool) -> av.filter.Graph:
        spec, rows, columns = self.spec, self.rows, self.columns
        # What was not halved would be converted to another matrix on its way to YUV 4:4:4; it is small, so one pass.
        one_pass = not self.halvings or pixel_format == "rgb24"
        steps: list[Step] = []
        source_height, source_width = height, width
        if cut and (height, width) != (self.height, self.width):
            steps.append(("crop", f"{width}:{height}:{columns.start}:{rows.start}:exact=1"))
        if cut:
            source_height, source_width = self.height, self.width
        filters = (_ONE_PASS if one_pass else _FILTERS)[spec.interpolation]
        steps.append(("scale", f"{columns.scaled}:{rows.scaled}:{filters}"))
        steps.append(("format", "rgb24" if one_pass else "yuv444p|yuvj444p"))
        if (rows.scaled, columns.scaled) != (spec.height, spec.width):
            steps.append(("crop", f"{spec.width}:{spec.height}:{columns.crop}:{rows.crop}:exact=1"))
        if not one_pass:
            steps += [("scale", _COLOUR), ("format", "rgb24")]
        return build_graph(source_height, source_width, pixel_format, steps)

    def _halved(self, planes: list[Bytes]) -> av.VideoFrame:
        """The cut of some planes, halved as often as planned; valid until the next call."""
        rows, columns = self.rows, self.columns
        across, down, _ = _LAYOUTS[self.pixel_format]
        cut = []
        for index, plane in enumerate(planes):
            x, y = (across, down) if index else (1, 1)
            cut.append(plane[rows.start // y : rows.stop // y, columns.start // x : columns.stop // x])
        for frame in self._half:
            targets = _planes(frame)
            for source, target in zip(cut, targets, strict=True):
                if source.shape == target.shape:
                    target[:] = source
                else:
                    self._halve(source, target)
            cut = targets
        return self._half[-1]

    def _halve(self, source: Bytes, target: Bytes) -> None:
        assert self._cv2 is not None  # no halvings are planned without it
        height, width = target.shape[:2]
        lines = max(1, _OPENCV_STRIPE // width)
        for top in range(0, height, lines):
            part = target[top : top + lines]
            self._cv2.resize(
                source[2 * top : 2 * (top + len(part))],
                (width, len(part)),
                dst=part,
                interpolation=self._cv2.INTER_AREA,
            )


def _planes(frame: av.VideoFrame) -> list[Bytes]:
    """Views (h, w) or (h, w, bytes a sample) of a frame's planes, writable where the frame's memory is."""
    views = []
    for plane, samples in zip(frame.planes, _LAYOUTS[frame.format.name][2], strict=True):
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width * samples]
        views.append(lines if samples == 1 else lines.reshape(plane.height, plane.width, samples))
    return views


def _opencv_if_any() -> Any:
    """OpenCV, or None: then nothing is halved, which costs time and changes nothing else."""
    try:
        return opencv()
    except MissingExtraError:
        return None
