"""Frames of one source in; whether each differs enough from the last encoded one to be encoded again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import av
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError
from edgeclip.runtime.images import opencv
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.spec import PreprocessSpec

Cells: TypeAlias = npt.NDArray[np.float32]

DEFAULT_THRESHOLD = 14.0
_CELLS = 32
_SAMPLES = 4  # a side of a cell
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_PLANAR = frozenset(f"yuv{j}{chroma}p" for j in ("", "j") for chroma in (420, 422, 440, 444)) | {"nv12", "nv21", "gray"}


@dataclass(frozen=True)
class GateOptions:
    """When a frame counts as unchanged.

    Attributes:
        threshold: grey levels; see ``SceneGate``.
        max_skip_s: encode at least so often, seconds; None for no such limit.

    Raises:
        InputError: a value out of range.
    """

    threshold: float = DEFAULT_THRESHOLD
    max_skip_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and 0 < self.threshold <= 255):
            raise InputError(f"expected a gate threshold above 0 and up to 255 grey levels, got {self.threshold}")
        if self.max_skip_s is not None and not self.max_skip_s > 0:
            raise InputError(f"expected max_skip_s above 0 seconds, got {self.max_skip_s}")


class SceneGate:
    """Compares each frame with the last one that was let through, so that a slow drift adds up.

    Both are averaged over square cells, 32 to the shorter side of what the encoder sees. The change of brightness that
    is common to all cells (their median) is taken off; the largest change that remains decides, so that a small thing
    counts as much as a large one.

    Args:
        threshold: a frame is let through when a cell has changed by more than so many grey levels of luma.
        max_skip_s: let a frame through at least so often, by the times given to ``changed``.
        spec: the encoder's, if it sees the whole frame: what its centre crop cuts off is then not looked at.
    """

    def __init__(
        self,
        threshold: float = DEFAULT_THRESHOLD,
        max_skip_s: float | None = None,
        *,
        spec: PreprocessSpec | None = None,
    ) -> None:
        options = GateOptions(threshold, max_skip_s)
        self.threshold, self.max_skip_s = options.threshold, options.max_skip_s
        self._crops = spec is not None and spec.resize == "shortest"
        self._aspect = spec.width / spec.height if spec else 1.0
        self._scale = min(spec.height, spec.width) / spec.resize_to if spec and self._crops else 1.0
        self._reference: Cells | None = None
        self._size: tuple[int, int] | None = None
        self._time_s = -math.inf

    def changed(self, pixels: Pixels, time_s: float | None = None) -> bool:
        """Whether the frame is to be encoded; if so it becomes what later frames are compared with.

        Args:
            pixels: (H, W, 3) uint8 RGB, or a decoded video frame.
            time_s: presentation time, for ``max_skip_s``; a step back lets the frame through.
        """
        size, cells = self._cells(pixels)
        due = self.max_skip_s is not None and time_s is not None and not 0 <= time_s - self._time_s < self.max_skip_s
        reference = self._reference if size == self._size and not due else None
        if reference is not None and difference(cells, reference) <= self.threshold:
            return False
        self._reference, self._size = cells, size
        self._time_s = self._time_s if time_s is None else time_s
        return True

    def forget(self) -> None:
        """Compare the next frame with none: the one that was let through last has come to nothing."""
        self._reference = None

    def _cells(self, pixels: Pixels) -> tuple[tuple[int, int], Cells]:
        """(height, width) of the frame; luma of its cells, float32 grey levels."""
        image = _luma(pixels) if isinstance(pixels, av.VideoFrame) else pixels
        size = height, width = image.shape[:2]
        if self._crops:
            side = min(height, width) * self._scale
            seen_h, seen_w = _fit(side / min(self._aspect, 1.0), height), _fit(side * max(self._aspect, 1.0), width)
            top, left = (height - seen_h) // 2, (width - seen_w) // 2
            image = image[top : top + seen_h, left : left + seen_w]
        return size, average(image)


def average(image: npt.NDArray[np.uint8]) -> Cells:
    """Luma (H, W) or RGB (H, W, 3) averaged over square cells, 32 to the shorter side; fewer in a small image."""
    height, width = image.shape[:2]
    cell = max(1.0, min(height, width) / _CELLS)
    rows, columns = round(height / cell), round(width / cell)
    cv2 = opencv()
    # Averaging every pixel took 2 ms at 1080p; 4 x 4 bilinear samples a cell, 64 pixels, average noise away as well.
    sampled = cv2.resize(image, (columns * _SAMPLES, rows * _SAMPLES), interpolation=cv2.INTER_LINEAR)
    small = cv2.resize(sampled, (columns, rows), interpolation=cv2.INTER_AREA)
    cells: Cells = small.astype(np.float32)
    return cells if cells.ndim == 2 else cells @ _LUMA


def difference(a: Cells, b: Cells) -> float:
    """The largest change of a cell beside the change that is common to all, grey levels."""
    change = a - b
    middle = np.median(change) if change.size > 1 else 0.0
    return float(np.abs(change - middle).max())


def _fit(side: float, available: int) -> int:
    return max(1, min(round(side), available))


def _luma(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """The Y plane (H, W) without a copy, where there is one of 8 bits."""
    name, plane = frame.format.name, frame.planes[0]
    if name not in _PLANAR or plane.line_size < frame.width:
        converted: npt.NDArray[np.uint8] = frame.to_ndarray(format="gray")
        return converted
    rows = np.frombuffer(plane, np.uint8)[: plane.line_size * frame.height]
    return rows.reshape(frame.height, plane.line_size)[:, : frame.width]
