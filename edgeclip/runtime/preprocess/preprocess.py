"""A frame in, the encoder's normalised float32 input out, near what Pillow's antialiased resize would have made of it.

The work is done by FFmpeg's swscale, which widens its filter when it shrinks an image just as Pillow does. Backends
differ in how they get to the encoder's size (see ``docs/preprocess.md`` for their measured differences):

- ``exact``: one accurate pass over the whole frame; within 0.51/255 of Pillow on average, on all pictures tried. The
  reference on a device.
- ``fast``: several times cheaper; within 1/255. Whether a bundle may use it is measured by
  ``runtime/preprocess/choose.py``.

Normalisation can be left to the engine's graph: then only ``Preprocessor.resize`` is used.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal, TypeAlias

import av
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError
from edgeclip.runtime.engines.base import normalise
from edgeclip.runtime.images import Image
from edgeclip.runtime.preprocess.exact import ExactScaler, Scaler
from edgeclip.runtime.preprocess.exact import resized_size as resized_size  # part of this module's interface
from edgeclip.runtime.preprocess.fast import FastScaler
from edgeclip.spec import PreprocessSpec

Pixels: TypeAlias = Image | av.VideoFrame
Backend = Literal["exact", "fast"]

BACKENDS: dict[str, type[Scaler]] = {"exact": ExactScaler, "fast": FastScaler}

# A side longer than this after the resize (a 1x5000 strip, say) is cropped before it, to bound memory.
_LONGEST_RESIZED = 8192
# Regions of one frame alternate between geometries; building a scaler takes about a millisecond.
_MOST_SCALERS = 32


class Preprocessor:
    """Frames of any size to (3, H, W) float32; keeps a scaler for each of the last frame geometries.

    Not to be shared between threads: its scalers have buffers of their own; give each thread one. What it returns
    owns its memory.

    Args:
        spec: what the encoder expects.
        backend: a name in ``BACKENDS``.

    Raises:
        InputError: no such backend.
    """

    def __init__(self, spec: PreprocessSpec, backend: str = "exact") -> None:
        if backend not in BACKENDS:
            raise InputError(f"expected a preprocessing backend of {', '.join(BACKENDS)}, got {backend!r}")
        self.spec = spec
        self.backend = backend
        self._scalers: OrderedDict[tuple[object, ...], Scaler] = OrderedDict()

    def __call__(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Resize, crop and normalise one frame.

        Args:
            pixels: (H, W, 3) uint8 RGB, a view or whole, or a decoded video frame.

        Returns:
            (3, height, width) float32.

        Raises:
            InputError: not an HWC uint8 RGB array with pixels in it.
        """
        return self.normalise(self.resize(pixels))

    def resize(self, pixels: Pixels) -> Image:
        """The resized and cropped frame, (height, width, 3) uint8 RGB, before normalisation."""
        if isinstance(pixels, av.VideoFrame):
            return self._scaler(
                pixels.height, pixels.width, pixels.format.name, pixels.colorspace, pixels.color_range
            ).frame(pixels)
        image = self._checked(pixels)
        return self._scaler(*image.shape[:2], "rgb24").array(image)

    def normalise(self, small: Image) -> npt.NDArray[np.float32]:
        """What ``resize`` gave, as (3, height, width) float32."""
        normalised: npt.NDArray[np.float32] = self.normalise_batch(small[None])[0]
        return normalised

    def normalise_batch(self, small: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Several resized frames (N, height, width, 3) uint8 as one batch (N, 3, height, width) float32."""
        return normalise(self.spec, small)

    def _scaler(self, height: int, width: int, pixel_format: str, *colour: object) -> Scaler:
        key = (height, width, pixel_format, *colour)
        scaler = self._scalers.get(key)
        if scaler is None:
            scaler = self._scalers[key] = BACKENDS[self.backend](self.spec, height, width, pixel_format)
            if len(self._scalers) > _MOST_SCALERS:
                self._scalers.popitem(last=False)
        else:
            self._scalers.move_to_end(key)
        return scaler

    def _checked(self, image: Image) -> Image:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f"expected an (H, W, 3) uint8 RGB image, got {image.dtype} of shape {image.shape}: convert it first"
            )
        height, width = image.shape[:2]
        resized_height, resized_width = resized_size(self.spec, height, width)
        if max(resized_height, resized_width) <= _LONGEST_RESIZED:
            return image
        return _centre(
            image, 1 + height * _LONGEST_RESIZED // resized_height, 1 + width * _LONGEST_RESIZED // resized_width
        )


def _centre(image: Image, height: int, width: int) -> Image:
    height, width = min(height, image.shape[0]), min(width, image.shape[1])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
