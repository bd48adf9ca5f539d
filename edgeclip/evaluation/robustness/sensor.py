"""A clean image in, what a sensor, a shutter or a codec makes of it out: exposure, noise, bands, JPEG, H.264.

Every function takes (H, W, 3) uint8 RGB, one level (its unit stands in ``SUITE``)
and a seeded generator, and returns an image of the same shape. Light is added up where light is: on linear values.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError
from edgeclip.runtime.images import Image, opencv

Light = npt.NDArray[np.float32]
Random = np.random.RandomState

_CURVE = np.arange(256, dtype=np.float64) / 255
# IEC 61966-2-1 (sRGB): level to light, both in [0, 1].
_TO_LIGHT = np.where(_CURVE <= 0.04045, _CURVE / 12.92, ((_CURVE + 0.055) / 1.055) ** 2.4).astype(np.float32)
_STEPS = 4096
_LIGHTS = np.arange(_STEPS, dtype=np.float64) / (_STEPS - 1)
_TO_LEVEL = np.rint(255 * np.where(_LIGHTS <= 0.0031308, 12.92 * _LIGHTS, 1.055 * _LIGHTS ** (1 / 2.4) - 0.055)).astype(
    np.uint8
)
_READ_NOISE = 2.0  # electrons; a common order for small CMOS sensors
_AUTO_GAIN = 0.6  # what a camera's automatic gain gives back of the light that is missing, as an exponent
_MACROBLOCK = 16
_CLIP_FRAMES = 4


def to_light(image: Image) -> Light:
    """sRGB levels (H, W, 3) as linear light in [0, 1], float32."""
    light: Light = _TO_LIGHT[image]
    return light


def to_levels(light: Light) -> Image:
    """Linear light (H, W, 3), clipped to [0, 1], as sRGB levels uint8."""
    steps = np.clip(light, 0, 1) * np.float32(_STEPS - 1)
    levels: Image = _TO_LEVEL[(steps + np.float32(0.5)).astype(np.int32)]
    return levels


def exposure(image: Image, stops: float, _random: Random) -> Image:
    """Exposed longer (``stops`` above 0) or shorter: light times two for each stop, clipped where the sensor is full.

    It works on 8-bit levels: what a darker image loses in steps stays lost, as it does after a camera's encoder.
    """
    levels: Image = to_levels(_TO_LIGHT * np.float32(2.0**stops))[image]
    return levels


def low_light(image: Image, photons: float, random: Random) -> Image:
    """Few photons: Poisson noise of the light, Gaussian noise of the readout, and part of the darkness made up by gain.

    The model is Foi and others, "Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data"
    (2008), without its clipping terms; the noise of neighbours is independent (no demosaicing).

    Args:
        photons: electrons that a white pixel collects.
    """
    collected = random.poisson(to_light(image) * photons) + random.normal(0, _READ_NOISE, image.shape)
    dimmed = (photons / 1000) ** (1 - _AUTO_GAIN) if photons < 1000 else 1.0
    return to_levels((collected / photons * dimmed).astype(np.float32))


def rolling_bands(image: Image, depth: float, random: Random) -> Image:
    """Mains light that flickers at twice 50 or 60 Hz under a rolling shutter: rows lie in darker and lighter bands.

    The light is a raised cosine of time (Poplin, "An automatic flicker detection method for embedded camera systems",
    2006, describes the artefact); number of bands and phase are drawn.

    Args:
        depth: share of the light that is missing in the middle of a dark band.
    """
    periods, phase = random.uniform(1.5, 5.0), random.uniform(0, 2 * np.pi)
    time = np.linspace(0, 2 * np.pi * periods, image.shape[0])
    gain = 1 - depth * (0.5 + 0.5 * np.cos(time + phase))  # (H,)
    return to_levels(to_light(image) * gain[:, None, None].astype(np.float32))


def jpeg(image: Image, quality: float, _random: Random) -> Image:
    """Encoded as JPEG (4:2:0) and decoded, by OpenCV.

    Args:
        quality: the Independent JPEG Group's scale, 1 to 100.
    """
    cv2 = opencv()
    options = [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return np.asarray(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def h264(image: Image, rate: float, random: Random) -> Image:
    """The last frame of a short H.264 clip in which the still slides into place, really encoded and decoded by FFmpeg.

    One thread and the preset ``veryfast``, as a camera's encoder has little time; the first frame is intra-coded, the
    others are predicted, so blocks, smear and lost chroma are all there.

    Args:
        rate: x264's constant rate factor, 0 (lossless) to 51.

    Raises:
        InputError: this build of FFmpeg has no x264.
    """
    height, width = image.shape[:2]
    # Whole macroblocks and a margin to slide in: an encoder's own padding is as wide, and sizes may be odd or tiny.
    margin = 4
    below, right = -height % _MACROBLOCK, -width % _MACROBLOCK
    padded = np.pad(image, ((margin, below + margin), (margin, right + margin), (0, 0)), mode="edge")
    step = random.randint(-1, 2, size=2)
    frames = []
    for back in range(_CLIP_FRAMES - 1, -1, -1):
        top, left = margin + back * step[0], margin + back * step[1]
        frames.append(padded[top : top + height + below, left : left + width + right])
    return np.ascontiguousarray(_through_x264(frames, rate)[:height, :width])


def _through_x264(frames: list[Image], rate: float) -> Image:
    try:
        encoder = av.CodecContext.create("libx264", "w")
    except av.error.FFmpegError as error:
        raise InputError(
            "H.264 artefacts need an FFmpeg with libx264, and this PyAV has none: leave h264 out"
        ) from error
    decoder = av.CodecContext.create("h264", "r")
    encoder.height, encoder.width = frames[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 25), Fraction(25)
    encoder.thread_count = decoder.thread_count = 1
    encoder.options = {"preset": "veryfast", "tune": "zerolatency", "crf": f"{rate:g}"}
    decoded = []
    for index, pixels in enumerate([*frames, None]):
        frame = None
        if pixels is not None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = index
        for packet in encoder.encode(frame):
            decoded.extend(decoder.decode(packet))
    decoded.extend(decoder.decode(None))
    last: Image = decoded[-1].to_ndarray(format="rgb24")
    return last
