"""A clean image in, what lies before the sensor makes of it out: blur, rain, fog, dirt on the lens, a tilt, distance.

Every function takes (H, W, 3) uint8 RGB, one level (its unit stands in ``SUITE``)
and a seeded generator, and returns an image of the same shape. Lengths are shares of the shorter side, so a level means
the same for images of all sizes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgeclip.evaluation.robustness.sensor import Light, Random, to_levels, to_light
from edgeclip.runtime.images import Image, opencv

_SUBPIXELS = 16  # fraction of a pixel that OpenCV's drawing is given, as a power of two: 4 bits
_BITS = 4
_AIRLIGHT = 0.8  # of fog, linear light
_LONGEST = 8  # sides of a square that streaks are drawn for; a longer strip gets no more of them
_STREAK_LIGHT = 0.75  # of a drop, which shows the bright sky
_SOOT = 0.25  # what dirt sends on of the scene's mean light


def motion_blur(image: Image, length: float, random: Random) -> Image:
    """The camera or the object moved in a straight line while the shutter was open; the direction is drawn.

    A line as kernel, on linear light (Hendrycks and Dietterich 2019 use the same on levels).

    Args:
        length: of the way, share of the shorter side.
    """
    way = length * min(image.shape[:2])
    angle = random.uniform(0, math.pi)
    half = math.ceil(way / 2) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.uint8)
    dx, dy = way / 2 * math.cos(angle), way / 2 * math.sin(angle)
    _line(kernel, (half - dx, half - dy), (half + dx, half + dy), 255, 1)
    return _filtered(image, kernel.astype(np.float32))


def defocus_blur(image: Image, radius: float, _random: Random) -> Image:
    """Out of focus: a point becomes a disc (Hendrycks and Dietterich 2019), on linear light.

    Args:
        radius: of the disc, share of the shorter side.
    """
    pixels = radius * min(image.shape[:2])
    half = math.ceil(pixels) + 1
    away = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1])
    return _filtered(image, np.clip(pixels + 0.5 - away, 0, 1).astype(np.float32))  # a soft rim of one pixel


def rain(image: Image, amount: float, random: Random) -> Image:
    """Streaks of drops in one drawn direction, near ones longer and wider, and the grey veil of those far away.

    Streaks are bright and half transparent, as Garg and Nayar ("Vision and rain", 2007) find them to be.

    Args:
        amount: 0 (none) to 1 (a cloudburst): streaks, their length and the veil grow with it.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    slant = random.uniform(-0.35, 0.35)
    streaks = np.zeros((height, width), np.uint8)
    count = round((80 + 620 * amount) * min(max(height, width) / side, _LONGEST))
    for x, y, near, strength in random.uniform(size=(count, 4)):
        length = (0.05 + 0.25 * near**2) * (0.4 + 0.6 * amount) * side
        start = (x * width * 1.4 - 0.2 * width, y * height * 1.2 - 0.2 * height)
        end = (start[0] + slant * length, start[1] + length)
        _line(streaks, start, end, round(255 * (0.35 + 0.65 * strength)), max(1, round(0.010 * near**2 * side)))
    soft = _blurred(streaks, 0.003 * side)
    opacity = (0.30 + 0.35 * amount) * soft[..., None]
    veil = np.float32(0.3 * amount)
    light = to_light(image)
    light = light * (1 - veil) + veil * np.float32(0.4)
    return to_levels(light * (1 - opacity) + opacity * np.float32(_STREAK_LIGHT))


def fog(image: Image, density: float, random: Random) -> Image:
    """Koschmieder's law: light falls off as exp(-density × depth), and airlight takes its place.

    A still has no depth: it is taken to grow towards the top of the frame and to vary in drifts (a sum of octaves of
    smooth noise, in the place of the plasma fractal of Hendrycks and Dietterich 2019). Its mean is about 1.

    Args:
        density: optical depth at depth 1.
    """
    height, width = image.shape[:2]
    drifts = _smooth_noise(height, width, random)
    above = np.linspace(1.25, 0.75, height, dtype=np.float32)[:, None]
    passed = np.exp(-np.float32(density) * above * (0.6 + 0.8 * drifts))[..., None]  # (H, W, 1)
    return to_levels(to_light(image) * passed + (1 - passed) * np.float32(_AIRLIGHT))


def lens_dirt(image: Image, cover: float, random: Random) -> Image:
    """Specks and smears on the glass, far out of focus: they take light away and send on some of the scene's mean.

    After Gu and others ("Removing image artifacts due to dirty camera lenses and thin occluders", 2009): an image
    times a smooth attenuation, plus smooth scattered light.

    Args:
        cover: share of the frame that dirt lies on, as it is drawn (its soft rim is wider).
    """
    height, width = image.shape[:2]
    side = min(height, width)
    cv2 = opencv()
    dirt = np.zeros((height, width), np.uint8)
    for _ in range(400):  # a bound; the cover is reached long before
        if (dirt > 0).mean() >= cover:
            break
        x, y, size, flat, turn, dark = random.uniform(size=6)
        axes = (0.02 + 0.12 * size**2) * side
        cv2.ellipse(
            dirt,
            _fixed((x * width, y * height)),
            _fixed((axes, axes * (0.4 + 0.6 * flat))),
            180 * turn, 0, 360, round(255 * (0.6 + 0.4 * dark)), -1, cv2.LINE_AA, _BITS,
        )  # fmt: skip
    opacity = _blurred(dirt, 0.012 * side)[..., None]
    light = to_light(image)
    scattered = light.mean(axis=(0, 1)) * np.float32(_SOOT)
    return to_levels(light * (1 - opacity) + opacity * scattered)


def rotation(image: Image, degrees: float, random: Random) -> Image:
    """A camera that hangs askew: turned about the middle, to either side; what comes in from outside is mirrored.

    Args:
        degrees: of the turn.
    """
    cv2 = opencv()
    height, width = image.shape[:2]
    turn = degrees if random.uniform() < 0.5 else -degrees
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, 1)
    # OpenCV 5.0 never returns when it mirrors a single row or column.
    border = cv2.BORDER_REFLECT_101 if min(height, width) > 1 else cv2.BORDER_REPLICATE
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=border)
    return np.asarray(turned, dtype=np.uint8)


def distance(image: Image, size: float, random: Random) -> Image:
    """Far away: the image shrunk, at a drawn place about the middle of a frame of the mean colour of its border.

    Args:
        size: of what is left, share of each side.
    """
    cv2 = opencv()
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, round(width * size)), max(1, round(height * size))), interpolation=cv2.INTER_AREA)
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    frame = np.empty_like(image)
    frame[:] = np.rint(edge.mean(axis=0)).astype(np.uint8)
    # Half of the free room: the middle square, which most encoders crop to, still holds the whole of a square image.
    room_y, room_x = height - small.shape[0], width - small.shape[1]
    free = min(room_y, room_x) / 2
    top, left = (round(room / 2 + free * random.uniform(-0.5, 0.5)) for room in (room_y, room_x))
    frame[top : top + small.shape[0], left : left + small.shape[1]] = small
    return frame


def _filtered(image: Image, kernel: Light) -> Image:
    cv2 = opencv()
    return to_levels(cv2.filter2D(to_light(image), -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101))


def _blurred(drawn: Image, sigma: float) -> Light:
    """What was drawn (H, W) uint8, smoothed, in [0, 1]."""
    cv2 = opencv()
    layer: Light = np.multiply(drawn, np.float32(1 / 255), dtype=np.float32)
    if sigma < 0.3:  # nothing that a pixel could show
        return layer
    return np.asarray(cv2.GaussianBlur(layer, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)


def _smooth_noise(height: int, width: int, random: Random) -> Light:
    """(H, W) in [0, 1]: four octaves of bicubic noise, each half as strong and twice as fine."""
    cv2 = opencv()
    noise = np.zeros((height, width), np.float32)
    for octave in range(4):
        grid = random.uniform(size=(3 * 2**octave, 3 * 2**octave)).astype(np.float32)
        noise += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.asarray(np.clip(noise / 1.875, 0, 1), dtype=np.float32)


def _line(canvas: Image, start: tuple[float, float], end: tuple[float, float], value: int, thickness: int) -> None:
    cv2 = opencv()
    cv2.line(canvas, _fixed(start), _fixed(end), value, thickness, cv2.LINE_AA, _BITS)


def _fixed(point: tuple[float, float]) -> tuple[Any, Any]:
    """A point in the fixed-point numbers of OpenCV's drawing."""
    return round(point[0] * _SUBPIXELS), round(point[1] * _SUBPIXELS)
