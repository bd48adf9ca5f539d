"""A photograph, a corruption's name and a severity in; the photograph as a worse camera would have given it out.

The idea of named corruptions in five severities is that of Hendrycks and Dietterich ("Benchmarking neural network
robustness to common corruptions and perturbations", 2019); the kinds here are those of fixed cameras. Another one is
one function and one row of ``SUITE``.

What is drawn is drawn from (image key, corruption, severity) alone, by a generator whose numbers NumPy has frozen.
Pixels are the same wherever the same OpenCV, FFmpeg and x264 run; other builds may round a level up or down.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgeclip.errors import InputError
from edgeclip.evaluation.robustness import optics, sensor
from edgeclip.evaluation.robustness.sensor import Random
from edgeclip.runtime.images import Image

SEVERITIES = (1, 2, 3, 4, 5)
SUITE_VERSION = 1  # raised when the pixels of any corruption change


@dataclass(frozen=True)
class Corruption:
    """One kind.

    Attributes:
        name: as it is asked for.
        apply: (H, W, 3) uint8 RGB, level and seeded generator to an image of the same shape.
        levels: of the severities 1 to 5.
        unit: of the levels.
    """

    name: str
    apply: Callable[[Image, float, Random], Image]
    levels: tuple[float, float, float, float, float]
    unit: str


SUITE: Mapping[str, Corruption] = {
    row.name: row
    for row in (
        Corruption("over-exposure", sensor.exposure, (0.7, 1.2, 1.8, 2.5, 3.2), "stops"),
        Corruption("under-exposure", sensor.exposure, (-1.0, -2.0, -3.0, -4.0, -5.0), "stops"),
        Corruption("low-light", sensor.low_light, (300, 120, 50, 22, 10), "electrons at white"),
        Corruption("motion-blur", optics.motion_blur, (0.02, 0.04, 0.07, 0.10, 0.15), "way / shorter side"),
        Corruption("defocus-blur", optics.defocus_blur, (0.006, 0.011, 0.018, 0.027, 0.040), "radius / shorter side"),
        Corruption("jpeg", sensor.jpeg, (40, 22, 14, 10, 6), "quality"),
        Corruption("h264", sensor.h264, (32, 37, 41, 45, 49), "x264 rate factor"),
        Corruption("rolling-bands", sensor.rolling_bands, (0.4, 0.6, 0.75, 0.88, 0.97), "depth"),
        Corruption("rain", optics.rain, (0.1, 0.3, 0.5, 0.75, 1.0), "amount"),
        Corruption("fog", optics.fog, (0.12, 0.25, 0.45, 0.75, 1.2), "optical depth"),
        Corruption("lens-dirt", optics.lens_dirt, (0.06, 0.14, 0.25, 0.38, 0.52), "share covered"),
        Corruption("rotation", optics.rotation, (7, 15, 25, 40, 60), "degrees"),
        Corruption("distance", optics.distance, (0.75, 0.55, 0.4, 0.28, 0.2), "size that is left"),
    )
}  # fmt: skip


def corrupt(image: Image, name: str, severity: int, *, key: str) -> Image:
    """Corrupt one image.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        name: of ``SUITE``.
        severity: 1 (mild) to 5 (hard).
        key: names the image; the same key draws the same streaks, noise and directions on every machine.

    Returns:
        (H, W, 3) uint8 RGB of the same size.

    Raises:
        InputError: an unknown name or severity, or not such an image.
    """
    (corruption,) = corruptions_called([name])
    check_severities([severity])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"expected an (H, W, 3) uint8 RGB image, got {image.dtype} of shape {image.shape}")
    return corruption.apply(image, corruption.levels[severity - 1], _generator(key, name, severity))


def corruptions_called(names: Iterable[str]) -> tuple[Corruption, ...]:
    """Rows of ``SUITE`` by their names, in the order given.

    Raises:
        InputError: an unknown name (the nearest is told), or one given twice.
    """
    chosen: dict[str, Corruption] = {}
    for name in names:
        if name not in SUITE:
            near = difflib.get_close_matches(name, SUITE, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"expected corruptions of {', '.join(SUITE)}, got {name!r}{hint}")
        if name in chosen:
            raise InputError(f"expected each corruption once, got {name} twice")
        chosen[name] = SUITE[name]
    return tuple(chosen.values())


def check_severities(severities: Iterable[int]) -> tuple[int, ...]:
    """Severities, sorted.

    Raises:
        InputError: one outside 1 to 5, or given twice.
    """
    given = list(severities)
    if wrong := [severity for severity in given if severity not in SEVERITIES]:
        raise InputError(f"expected severities of 1 (mild) to 5 (hard), got {wrong[0]}")
    if len(set(given)) != len(given):
        raise InputError(f"expected each severity once, got {', '.join(map(str, given))}")
    return tuple(sorted(given))


def _generator(key: str, name: str, severity: int) -> Random:
    digest = hashlib.sha256(f"{key}\0{name}\0{severity}".encode()).digest()
    # RandomState, not default_rng: NumPy promises that its streams never change (NEP 19).
    return np.random.RandomState(np.frombuffer(digest, np.uint32))
