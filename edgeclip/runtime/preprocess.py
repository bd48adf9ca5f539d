"""A frame in, the encoder's normalised float32 input out, as Pillow's antialiased resize would have made it.

The work is done by FFmpeg's swscale, which widens its filter when it shrinks an image just as Pillow does. Given
Pillow's cubic (a = -1/2; FFmpeg's own default is -0.6) and accurate rounding, the two differ by less than 1/255 on
average on real photographs (tested), and a decoded video frame goes from YUV to the encoder's size in one pass.
"""

from __future__ import annotations

import itertools
from typing import TypeAlias

import av
import av.filter
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError
from edgeclip.runtime.images import Image
from edgeclip.spec import PreprocessSpec

Pixels: TypeAlias = Image | av.VideoFrame

_FLAGS = {
    # In swscale's general cubic, param0 = B and param1 = C of Mitchell and Netravali (1988): Catmull-Rom is (0, 1/2).
    "bicubic": "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp:param0=0:param1=0.5",
    "bilinear": "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp",
}
# A side longer than this after the resize (a 1x5000 strip, say) is cropped before it, to bound memory.
_LONGEST_RESIZED = 8192


class Preprocessor:
    """Frames of any size to (3, H, W) float32; keeps one scaler for the last frame geometry seen.

    Args:
        spec: what the encoder expects.
    """

    def __init__(self, spec: PreprocessSpec) -> None:
        self.spec = spec
        std = np.asarray(spec.std, np.float32)
        self._gain = (1.0 / (255.0 * std)).reshape(3, 1, 1)
        self._offset = (np.asarray(spec.mean, np.float32) / std).reshape(3, 1, 1)
        self._geometry: tuple[int, int, str] | None = None
        self._graph: av.filter.Graph | None = None

    def __call__(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Resize, crop and normalise one frame.

        Args:
            pixels: (H, W, 3) uint8 RGB, or a decoded video frame.

        Returns:
            (3, height, width) float32.

        Raises:
            InputError: not an HWC uint8 RGB array with pixels in it.
        """
        return self.normalise(self.resize(pixels))

    def resize(self, pixels: Pixels) -> Image:
        """The resized and cropped frame, (height, width, 3) uint8 RGB, before normalisation."""
        frame = pixels if isinstance(pixels, av.VideoFrame) else self._wrap(pixels)
        geometry = (frame.width, frame.height, frame.format.name)
        if self._graph is None or geometry != self._geometry:
            self._graph, self._geometry = self._build(frame), geometry
        frame.pts = None
        self._graph.push(frame)
        small: Image = self._graph.pull().to_ndarray()
        return small

    def normalise(self, small: Image) -> npt.NDArray[np.float32]:
        """What :meth:`resize` gave, as (3, height, width) float32."""
        normalised: npt.NDArray[np.float32] = small.transpose(2, 0, 1) * self._gain - self._offset
        return normalised

    def _wrap(self, image: Image) -> av.VideoFrame:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"expected an (H, W, 3) uint8 RGB image, got {image.dtype} of shape {image.shape}: convert it first"
            )
        height, width = image.shape[:2]
        resized_height, resized_width = resized_size(self.spec, height, width)
        if max(resized_height, resized_width) > _LONGEST_RESIZED:
            image = _centre(
                image, 1 + height * _LONGEST_RESIZED // resized_height, 1 + width * _LONGEST_RESIZED // resized_width
            )
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        spec = self.spec
        height, width = resized_size(spec, frame.height, frame.width)
        graph = av.filter.Graph()
        graph.threads = 1
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base="1/1000"),
            graph.add("scale", f"{width}:{height}:{_FLAGS[spec.interpolation]}"),
            graph.add("format", "rgb24"),
        ]
        if (height, width) != (spec.height, spec.width):
            top, left = round((height - spec.height) / 2), round((width - spec.width) / 2)
            nodes.append(graph.add("crop", f"{spec.width}:{spec.height}:{left}:{top}:exact=1"))
        nodes.append(graph.add("buffersink"))
        for node, following in itertools.pairwise(nodes):
            node.link_to(following)
        graph.configure()
        return graph


def resized_size(spec: PreprocessSpec, height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels after the resize and before the crop, rounded down as torchvision does."""
    if spec.resize == "squash":
        return spec.height, spec.width
    if height <= width:
        return spec.resize_to, spec.resize_to * width // height
    return spec.resize_to * height // width, spec.resize_to


def _centre(image: Image, height: int, width: int) -> Image:
    height, width = min(height, image.shape[0]), min(width, image.shape[1])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
