"""Footage and an encoder in; a bounded pool to choose from, and uniform samples to judge the choice by, out.

One pass; how much is held does not depend on how long the footage is. What does not differ from the frame before is not
encoded again: it counts with that frame's embedding.

A stream of any length in, a uniform sample of bounded size out (Vitter's algorithm R, 1985).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from edgeclip.calibration.choice.bins import Exposure, exposure_of
from edgeclip.calibration.choice.candidates import Candidates, Member, Thumbnail
from edgeclip.calibration.choice.footage import Footage, Shot
from edgeclip.errors import SourceError
from edgeclip.files import atomic_file
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.gate import DEFAULT_THRESHOLD, average, difference
from edgeclip.runtime.images import Image, opencv
from edgeclip.runtime.preprocess.preprocess import Pixels

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Every item offered is in the sample with the same chance.

    Args:
        size: most items kept.
        seed: decides which.
    """

    def __init__(self, size: int, seed: str) -> None:
        self.items: list[T] = []
        self.offered = 0
        self._size, self._random = size, random.Random(seed)

    def offer(self, item: T) -> None:
        """Show it one more item."""
        self.offered += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (place := self._random.randrange(self.offered)) < self._size:
            self.items[place] = item


LEAST_POOL = 1200  # four times the strata that there can be: 16 of exposure, 17 of time
HELD_OUT = 2048
RANDOM_SETS = 5
_BATCH = 8
_SAME_LIGHT = 4.0  # grey levels that the whole picture may change by and still count as unchanged


class Kept(NamedTuple):
    """A frame of the pool: where it came from, and where its pixels lie."""

    source: int
    frame: int
    time_s: float
    exposure: Exposure
    moment: str
    sha256: str
    place: Path
    name: str


class Sampled(NamedTuple):
    """A frame of a uniform sample: its unit embedding (D,), how it was exposed and when, and what it looks like.

    ``look`` is what the encoder saw as JPEG; empty where it is not shown.
    """

    row: FloatArray
    exposure: Exposure
    moment: str
    block: str
    label: str
    look: bytes


@dataclass
class Survey:
    """What one pass over the footage found.

    Attributes:
        pool: see ``Candidates``.
        held_out: at most ``HELD_OUT`` of the frames held out.
        random_sets: uniform samples of the frames to choose from, as large as the choice: what it is compared with.
        seen: frames looked at, held out or to choose from.
        candidates: of these, the ones to choose from.
        unchanged: of these, the ones that did not differ from the one before.
        gap: others, not looked at for being near held-out ones.
        strata: number of each exposure and time.
    """

    pool: Candidates[Kept]
    held_out: Reservoir[Sampled]
    random_sets: list[Reservoir[FloatArray]]
    seen: int = 0
    candidates: int = 0
    unchanged: int = 0
    gap: int = 0
    strata: dict[tuple[str, str], int] = field(default_factory=dict)


class _Look(NamedTuple):
    shot: Shot
    small: Image
    cells: Thumbnail
    exposure: Exposure


def survey(
    footage: Footage,
    encoder: ImageEncoder,
    spool: Path,
    *,
    count: int,
    seed: int = 0,
    pool_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Survey:
    """Go through the footage once.

    Args:
        spool: folder for the pool's video frames, as PNG; image files stay where they are.
        count: how many will be chosen.
        pool_size: most candidates held; four times ``count``, and at least ``LEAST_POOL``, by default.
        progress: called with the number of frames looked at.

    Raises:
        SourceError: nothing to choose from and nothing held out.
        EngineError: the encoder failed.
    """
    pool: Candidates[Kept] = Candidates(
        pool_size or max(4 * count, LEAST_POOL), encoder.bundle.manifest.encoder.embedding_dim, dropped=_forget(spool)
    )
    random_sets = [Reservoir[FloatArray](count, f"{seed} random {number}") for number in range(RANDOM_SETS)]
    found = Survey(pool, Reservoir(HELD_OUT, f"{seed} held out"), random_sets)
    for look, row in _encoded(footage, encoder, found):
        found.seen += 1
        if progress and found.seen % 32 == 0:
            progress(found.seen)
        shot = look.shot
        if shot.role == "held out":
            label = _label(shot, footage.names[shot.source])
            found.held_out.offer(Sampled(row, look.exposure, shot.moment, shot.block, label, _jpeg(look.small)))
        else:
            found.candidates += 1
            for sample in random_sets:
                sample.offer(row)
            stratum = found.strata.setdefault((look.exposure.bin, shot.moment), len(found.strata))
            if pool.offer(row, look.cells, stratum):
                pool.add(row, look.cells, stratum, _keep(look, spool))
    if not found.seen:
        failed = sum(footage.failed)
        raise SourceError(
            f"expected images in {', '.join(footage.names)}, got none that can be read ({failed} are damaged): "
            "check one by hand"
        )
    return found


def rows_of(members: list[Member[Kept]]) -> FloatArray:
    """The unit embeddings (N, D) of members."""
    return np.stack([member.row for member in members])


def _encoded(footage: Footage, encoder: ImageEncoder, found: Survey) -> Iterator[tuple[_Look, FloatArray]]:
    """Each frame with its embedding; ``_BATCH`` that differ are encoded at once, so as many decoded frames are held."""
    waiting: list[_Look] = []
    new: list[bool] = []
    row: FloatArray | None = None
    before: tuple[int, np.typing.NDArray[np.float32]] | None = None

    def flush() -> Iterator[tuple[_Look, FloatArray]]:
        nonlocal row
        batch = [look.small for look, is_new in zip(waiting, new, strict=True) if is_new]
        rows = iter(encoder.encode_preprocessed(encoder.preprocess.normalise_batch(np.stack(batch)))) if batch else None
        for look, is_new in zip(waiting, new, strict=True):
            if is_new and rows is not None:
                row = next(rows)
            assert row is not None
            yield look, row
        waiting.clear()
        new.clear()

    for shot in footage:
        if shot.role == "gap":
            found.gap += 1
            continue
        small = encoder.preprocess.resize(shot.pixels)
        cells = average(small)
        changed = before is None or before[0] != shot.source or shot.content is not None or _differ(cells, before[1])
        if changed:
            before = shot.source, cells
        else:
            found.unchanged += 1
        waiting.append(_Look(shot, small, np.rint(cells).astype(np.uint8), exposure_of(small)))
        new.append(changed)
        if len(waiting) == _BATCH:
            yield from flush()
    yield from flush()


def _differ(cells: np.typing.NDArray[np.float32], before: np.typing.NDArray[np.float32]) -> bool:
    return difference(cells, before) > DEFAULT_THRESHOLD or abs(float(np.median(cells - before))) > _SAME_LIGHT


def _keep(look: _Look, spool: Path) -> Kept:
    shot = look.shot
    if shot.path is not None:
        place, digest, name = shot.path, shot.sha256, shot.path.name
    else:
        content = png(shot.pixels)
        digest = hashlib.sha256(content).hexdigest()
        name = f"frame{shot.frame:07}.png"
        place = spool / f"{shot.source}-{name}"
        with atomic_file(place) as temporary:
            temporary.write_bytes(content)
    return Kept(shot.source, shot.frame, round(shot.time_s, 3), look.exposure, shot.moment, digest, place, name)


def png(pixels: Pixels) -> bytes:
    """A frame without loss."""
    cv2 = opencv()
    image = pixels if isinstance(pixels, np.ndarray) else pixels.to_ndarray(format="rgb24")
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return bytes(data.tobytes())


def _jpeg(small: Image) -> bytes:
    cv2 = opencv()
    reduced = cv2.resize(small, (96, 96), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(reduced, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data.tobytes())


def _label(shot: Shot, source: str) -> str:
    return shot.path.name if shot.path is not None else f"{PurePath(source).name}, {shot.time_s:.1f} s"


def _forget(spool: Path) -> Callable[[Kept], None]:
    def forget(kept: Kept) -> None:
        if kept.place.parent == spool:
            kept.place.unlink()

    return forget
