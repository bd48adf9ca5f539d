"""What the encoder sees of a frame in; how bright, contrasty and colourful it is, and its bin, out."""

from __future__ import annotations

import msgspec
import numpy as np

from edgeclip.runtime.images import Image

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Where a bin ends. Footage is exposed for a mean near 118 (18 % grey in sRGB): a stop around it is ordinary.
_BRIGHTNESS = ((55.0, "dark"), (95.0, "dim"), (160.0, "ordinary"), (256.0, "bright"))
_FLAT = 35.0
_GREY = 25.0


class Exposure(msgspec.Struct, frozen=True):
    """Of one frame, all in grey levels of [0, 255].

    Attributes:
        luma: mean of the luma (BT.601).
        contrast: standard deviation of the luma.
        saturation: mean of the largest less the smallest of a pixel's three channels.
    """

    luma: float
    contrast: float
    saturation: float

    @property
    def bin(self) -> str:
        """One of 16 bins, such as ``dark, flat, grey``: four of brightness, two of contrast, two of colour."""
        brightness = next(name for end, name in _BRIGHTNESS if self.luma < end)
        contrast = "flat" if self.contrast < _FLAT else "contrasty"
        return f"{brightness}, {contrast}, {'grey' if self.saturation < _GREY else 'colour'}"


def exposure_of(image: Image) -> Exposure:
    """Measure an (H, W, 3) uint8 RGB image; every second pixel of every second row is looked at."""
    pixels = image[::2, ::2].astype(np.float32)
    luma = pixels @ _LUMA
    saturation = pixels.max(axis=2) - pixels.min(axis=2)
    return Exposure(*(round(float(value), 2) for value in (luma.mean(), luma.std(), saturation.mean())))
