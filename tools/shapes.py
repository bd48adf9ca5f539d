"""A folder in, a small image–text set out: coloured shapes with captions, some combinations held out of training.

    python -m tools.shapes shapes

Eight colours and eight shapes. The held-out combinations never occur in training, though each of their colours and
shapes does: to name them, a model must have learned colour and shape apart, from the captions alone.
"""

from __future__ import annotations

import io
import math
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.files import atomic_folder
from edgeclip.runtime.images import Image, opencv

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (50, 190, 60),
    "blue": (60, 90, 240),
    "yellow": (245, 225, 50),
    "purple": (165, 60, 205),
    "orange": (250, 145, 30),
    "white": (245, 245, 245),
    "cyan": (50, 215, 225),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "bar", "crescent")
CAPTIONS = (
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "there is a {} here",
    "a {} on a plain background",
    "one {}",
)
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SIDE = 32
_FINE = 4  # drawn this many times larger, then averaged down
_SHARD = 4096

Points = npt.NDArray[np.float64]


def held_out(label: int) -> bool:
    """Whether a combination (a row of ``CLASSES``) is kept out of training: two of each colour, two of each shape."""
    colour, shape = divmod(label, len(SHAPES))
    return (colour + shape) % 8 in (0, 3)


def write_shapes(folder: Path, *, train: int = 12_000, val: int = 1_600, seed: int = 0) -> None:
    """Write the set, whole or not at all.

    ``train-NNN.tar`` hold ``train`` pairs (``.png`` and ``.txt``) of the 48 combinations that are not held out;
    ``seen-000.tar`` and ``held-out-000.tar`` hold ``val`` labelled images each (``.png`` and ``.cls``, a row of all 64
    names in ``classes.json``), of the combinations that were trained on and of those that were not.

    Raises:
        InputError: the folder exists.
    """
    rng = np.random.default_rng(seed)
    seen = [label for label in range(len(CLASSES)) if not held_out(label)]
    unseen = [label for label in range(len(CLASSES)) if held_out(label)]
    with atomic_folder(folder) as temporary:
        for start in range(0, train, _SHARD):
            count = min(_SHARD, train - start)
            with tarfile.open(temporary / f"train-{start // _SHARD:03}.tar", "w") as archive:
                for index, label in enumerate(rng.choice(seen, count).tolist(), start):
                    caption = CAPTIONS[rng.integers(len(CAPTIONS))].replace("{}", CLASSES[label])
                    _add(archive, f"{index:06}.png", _png(draw(label, rng)))
                    _add(archive, f"{index:06}.txt", caption.encode())
        for name, labels in (("seen", seen), ("held-out", unseen)):
            with tarfile.open(temporary / f"{name}-000.tar", "w") as archive:
                for index in range(val):
                    label = labels[index % len(labels)]
                    _add(archive, f"{index:06}.png", _png(draw(label, rng)))
                    _add(archive, f"{index:06}.cls", str(label).encode())
        (temporary / "classes.json").write_bytes(msgspec.json.encode(CLASSES))


def draw(label: int, rng: np.random.Generator) -> Image:
    """(SIDE, SIDE, 3) uint8: one shape at a random place, size, angle and shade, on a noisy dark background."""
    cv2 = opencv()
    colour, shape = divmod(label, len(SHAPES))
    side = SIDE * _FINE
    radius = rng.uniform(0.38, 0.46) * side
    centre = rng.uniform(radius, side - radius, 2)
    angle = rng.uniform(-0.25, 0.25)  # radians; a square is never a diamond
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mask = np.zeros((side, side), np.uint8)
    for points, value in _outline(SHAPES[shape]):
        cv2.fillPoly(mask, [np.round(points @ turn.T * radius + centre).astype(np.int32)], value)
    paint = np.array(list(COLOURS.values())[colour]) + rng.uniform(-12, 12, 3)
    ground = np.full((side, side, 3), rng.uniform(15, 70))
    fine = np.where(mask[:, :, None] > 0, paint, ground)
    image = cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA) + rng.normal(0, 6, (SIDE, SIDE, 3))
    clipped: Image = np.clip(image, 0, 255).astype(np.uint8)
    return clipped


def _outline(shape: str) -> Iterator[tuple[Points, int]]:
    """Polygons in the unit circle, painted (1) or cut out (0) in this order."""
    if shape in ("circle", "ring", "crescent"):
        yield _circle(1.0), 1
        if shape == "ring":
            yield _circle(0.55), 0
        elif shape == "crescent":
            yield _circle(0.85) + np.array([0.5, 0.0]), 0
    elif shape == "star":
        corners = _polygon(10, start=-math.pi / 2)
        corners[1::2] *= 0.42
        yield corners, 1
    elif shape == "triangle":
        yield _polygon(3, start=-math.pi / 2), 1
    elif shape == "square":
        yield _polygon(4, start=math.pi / 4), 1
    elif shape == "bar":
        yield _box(1.0, 0.28), 1
    else:
        yield _box(1.0, 0.3), 1
        yield _box(0.3, 1.0), 1


def _circle(radius: float) -> Points:
    return _polygon(48, start=0.0) * radius


def _polygon(corners: int, *, start: float) -> Points:
    angles = start + 2 * math.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _box(width: float, height: float) -> Points:
    return np.array([[-width, -height], [width, -height], [width, height], [-width, height]])


def _png(image: Image) -> bytes:
    cv2 = opencv()
    return bytes(cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    write_shapes(Path(sys.argv[1] if len(sys.argv) > 1 else "shapes"))
