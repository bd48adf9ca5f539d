"""Resized frames as bytes in; what an encoder's graph takes out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeclip.spec import PreprocessSpec

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]


def normalise(spec: PreprocessSpec, frames: ByteArray, out: FloatArray | None = None) -> FloatArray:
    """Resized frames (N, H, W, 3) uint8 RGB as (N, 3, H, W) float32, each channel ``(x / 255 - mean) / std``.

    Args:
        out: where to write them; by default a new array.
    """
    std = np.asarray(spec.std, np.float32)
    gain, offset = 1.0 / (255.0 * std), np.asarray(spec.mean, np.float32) / std
    normalised = np.empty((len(frames), 3, *frames.shape[1:3]), np.float32) if out is None else out
    for channel in range(3):
        # Plane by plane and in place: a third of the time of one expression over the transposed array.
        plane = normalised[:, channel]
        np.multiply(frames[..., channel], gain[channel], out=plane)
        plane -= offset[channel]
    return normalised
