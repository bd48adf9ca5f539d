"""A loaded encoder and a wish in; the preprocessing backend that it may use out, with the difference that was measured.

``fast`` is allowed where, on every test picture, it is within 1/255 of ``exact`` on average over the pixels, and the
encoder's embeddings of the two have a cosine of at least 0.999. The pictures are the kinds of frames that streams
bring. What they show is made here: noise with the 1/f amplitude spectrum of natural images (Field 1987) and discs with
sharp edges over it; and, where the bundle has golden images, those photographs side by side at their own size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import av
import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.devices.machine.probe import describe_machine, installed_versions
from edgeclip.errors import InputError
from edgeclip.files import cache_dir, keep_json, kept_json, sha256_json
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import Image, decode_image
from edgeclip.runtime.preprocess.preprocess import BACKENDS, Pixels, Preprocessor
from edgeclip.runtime.proof.golden import FILE, golden_of
from edgeclip.version import __version__

MAX_DIFFERENCE = 1.0
MIN_COSINE = 0.999
_VERSION = 3  # of the pictures and the backends: raise it when either changes
_HEIGHT, _WIDTH = 1080, 1920
_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python")


class BackendChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which backend is used, and what was measured.

    Attributes:
        backend: ``exact`` or ``fast``.
        difference: largest mean absolute difference of a picture's pixels from ``exact``, of 255; None if not measured.
        cosine: lowest cosine between embeddings of the two; None if not measured.
    """

    backend: str
    difference: float | None = None
    cosine: float | None = None

    @property
    def passed(self) -> bool:
        """Whether ``fast`` is within the limits."""
        return (
            self.difference is not None
            and self.cosine is not None
            and self.difference <= MAX_DIFFERENCE
            and self.cosine >= MIN_COSINE
        )

    def __str__(self) -> str:
        if self.difference is None or self.cosine is None:
            return f"preprocess {self.backend}"
        measured = f"{self.difference:.2f}/255 from exact at most, cosine {self.cosine:.4f} at least"
        if self.backend == "fast":
            return f"preprocess fast: {measured}"
        return f"preprocess {self.backend}: fast is {measured}, beyond the limits"


def choose_backend(encoder: ImageEncoder, wanted: Literal["auto", "exact", "fast"] | str = "auto") -> BackendChoice:
    """Measure whether the encoder may use ``fast``; taken from the cache if nothing that matters has changed.

    Args:
        encoder: nothing else is under way in it.
        wanted: ``exact`` needs no measurement; ``fast`` is refused beyond the limits, where ``auto`` takes ``exact``.

    Raises:
        InputError: ``fast`` is wanted and not allowed, or there is no such backend.
        EngineError: the encoder fails.
    """
    if wanted == "exact":
        return BackendChoice(backend="exact")
    if wanted != "auto" and wanted not in BACKENDS:
        raise InputError(f"expected a preprocessing backend of auto, {', '.join(BACKENDS)}, got {wanted!r}")
    path = _kept(encoder)
    choice = kept_json(path, BackendChoice)
    if choice is None:
        choice = measure(encoder)
        keep_json(path, choice)
    if wanted == "fast" and choice.backend != "fast":
        raise InputError(f"{choice} of {MAX_DIFFERENCE:.0f}/255 and {MIN_COSINE}: use auto or exact")
    return choice


def measure(encoder: ImageEncoder) -> BackendChoice:
    """Both backends on every test picture, the worst of each figure."""
    spec = encoder.preprocess.spec
    exact, fast = Preprocessor(spec, "exact"), Preprocessor(spec, "fast")
    pictures = [*synthetic_frames(), *_golden_wall(encoder.bundle)]
    expected = np.stack([exact.resize(picture) for picture in pictures])
    got = np.stack([fast.resize(picture) for picture in pictures])
    difference = np.abs(expected.astype(np.int16) - got).mean(axis=(1, 2, 3)).max()
    # One at a time, as a camera's frames come: an engine may have to compile something for several.
    pairs = zip(*([encoder.start(one[None]).result()[0][0] for one in small] for small in (expected, got)), strict=True)
    cosine = min(float(left @ right) for left, right in pairs)
    measured = BackendChoice(backend="fast", difference=round(float(difference), 4), cosine=round(cosine, 6))
    return measured if measured.passed else msgspec.structs.replace(measured, backend="exact")


def synthetic_frames() -> list[Pixels]:
    """Video frames (YUV 4:2:0) of common sizes, upright ones too, and an RGB array; always the same."""
    picture = _picture()
    frames: list[Pixels] = []
    for height, width in ((1080, 1920), (720, 1280), (360, 640), (1080, 608)):
        cut = np.ascontiguousarray(picture[:height, :width])
        frames.append(av.VideoFrame.from_ndarray(cut, format="rgb24").reformat(format="yuv420p"))
    return [*frames, picture[::-1, ::-1]]


def _golden_wall(bundle: Bundle) -> list[Pixels]:
    """The bundle's golden images side by side as video frames, sideways and upright; none if it has no such images."""
    golden = golden_of(bundle)
    if golden is None:
        return []
    tiles = [decode_image(file, name="a golden image") for file in golden.files]
    height, width = tiles[0].shape[:2]
    down, across = -(-_HEIGHT // height), -(-_WIDTH // width)
    chosen = [tiles[index % len(tiles)] for index in range(down * across)]
    wall = np.concatenate([np.concatenate(chosen[y * across : (y + 1) * across], axis=1) for y in range(down)])
    wall = np.ascontiguousarray(wall[:_HEIGHT, :_WIDTH])
    upright = np.ascontiguousarray(wall.transpose(1, 0, 2))
    return [av.VideoFrame.from_ndarray(one, format="rgb24").reformat(format="yuv420p") for one in (wall, upright)]


def _picture() -> Image:
    """(1080, 1920, 3) uint8 RGB."""
    rng = np.random.default_rng(7)
    rows = np.fft.fftfreq(_HEIGHT)[:, None]
    columns = np.fft.rfftfreq(_WIDTH)[None]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / _WIDTH)
    field: npt.NDArray[np.float64] = np.fft.irfft2(
        amplitude * np.exp(2j * np.pi * rng.random(amplitude.shape)), s=(_HEIGHT, _WIDTH)
    )
    field = (field / field.std()).astype(np.float32)
    # Channels of a photograph go together; the rest is the same field from elsewhere.
    colour = np.stack([field + 0.4 * np.roll(field, shift, (0, 1)) for shift in (200, 500, 800)], axis=-1)
    y, x = np.ogrid[:_HEIGHT, :_WIDTH]
    for _ in range(24):
        centre_y, centre_x, radius = rng.integers(_HEIGHT), rng.integers(_WIDTH), rng.integers(15, 120)
        top, left = max(centre_y - radius, 0), max(centre_x - radius, 0)
        box = np.s_[top : centre_y + radius, left : centre_x + radius]
        inside = (y[box[0]] - centre_y) ** 2 + (x[:, box[1]] - centre_x) ** 2 < radius**2
        colour[box][inside] += rng.normal(0, 1.5, 3).astype(np.float32)
    return np.clip(colour * 45 + 118, 0, 255).astype(np.uint8)


def _kept(encoder: ImageEncoder) -> Path:
    described = encoder.variant
    key = (
        encoder.bundle.manifest.encoder,
        described,
        encoder.bundle.manifest.files[described.file].sha256,
        encoder.bundle.manifest.files[FILE].sha256 if FILE in encoder.bundle.manifest.files else None,
        (encoder.engine.name, encoder.engine.versions()),  # asking what is loaded may compile something
        describe_machine(),
        installed_versions(("av", *_OPENCV)),
        (MAX_DIFFERENCE, MIN_COSINE, _VERSION, __version__),
    )
    return cache_dir("preprocess") / f"{sha256_json(key)}.json"
