"""Footage and a bundle in, a calibration set out: different frames, spread over exposures and times.

One pass. What is alike a frame that is held already is dropped, and what is new enters a pool of bounded size. From the
pool each exposure and time gets a share, half of it drawn at random and half farthest-first.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.chosen_set import (
    IMAGES,
    RECORD,
    CalibrationSet,
    ChosenImage,
    Counts,
    SourceRecord,
    write_sample,
)
from edgeclip.calibration.choice.footage import EmbeddedFrame, Footage, FootageSampler, embedded
from edgeclip.errors import InputError, SourceError
from edgeclip.files import write_json
from edgeclip.printable import counted
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import write_image
from edgeclip.version import __version__

Stratum: TypeAlias = tuple[str, str]  # bins of exposure and time

LEAST_POOL = 1200
NEAR_COSINE = 0.985
NEAR_LEVELS = 4.0
_POOL = ".pool"
_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class ChooseOptions:
    """How to choose.

    Attributes:
        count: images wanted.
        every_s, duration_s: which frames are looked at, as for ``Footage``.
        seed: of all that is drawn.
        variant, engine: what embeds them.
    """

    count: int = 512
    every_s: float = 0.2
    duration_s: float | None = None
    seed: int = 0
    variant: str = "fp32"
    engine: str = "onnxruntime"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"expected count of at least 1, got {self.count}")


def choose_images(
    bundle: Bundle,
    sources: Sequence[str],
    folder: Path,
    options: ChooseOptions = ChooseOptions(),
    *,
    progress: Callable[[int], None] | None = None,
) -> CalibrationSet:
    """Choose calibration images and write them, their record and a sample of the footage into an existing folder.

    Two passes over the same files with the same options, on the same machine, write the same bytes.

    Args:
        folder: empty; the caller renames it when all is there (``atomic_folder``).
        progress: called with the number of frames looked at.

    Raises:
        SourceError: a source cannot be opened, or holds nothing that can be read.
        VariantError, IntegrityError, EngineError: as the bundle and the engine say.
    """
    (folder / _POOL).mkdir()
    pool = Pool(max(4 * options.count, LEAST_POOL), folder / _POOL, options.seed)
    sampler = FootageSampler(options.seed)
    seen = unchanged = 0
    with (
        Footage(sources, every_s=options.every_s, duration_s=options.duration_s) as footage,
        ImageEncoder(bundle, options.variant, engine=options.engine) as encoder,
    ):
        for look in embedded(footage, encoder, progress=progress):
            seen += 1
            sampler.offer(look)
            if look.changed:
                pool.offer(look)
            else:
                unchanged += 1
    (folder / IMAGES).mkdir()
    images = tuple(
        _write_image(folder, number, found, distance)
        for number, (found, distance) in enumerate(pool.choose(options.count))
    )
    shutil.rmtree(folder / _POOL)
    notes = []
    if len(images) < options.count:
        notes.append(
            f"{options.count} images were asked for and only {len(images)} different ones were there: all are taken; "
            "add footage, or look at more of it with a lower `every`"
        )
    if failed := sum(footage.failed):
        notes.append(f"{counted(failed, 'file or frame', 'files or frames')} could not be decoded: passed over")
    record = CalibrationSet(
        edgeclip=__version__,
        options={name: getattr(options, name) for name in ("count", "every_s", "duration_s", "seed")},
        model_id=bundle.manifest.model.id,
        variant=options.variant,
        graph_sha256=bundle.graph_sha256(options.variant),
        engine=options.engine,
        sources=tuple(map(SourceRecord, footage.names, footage.failed)),
        counts=Counts(seen=seen, unchanged=unchanged, near_duplicates=pool.near_duplicates, pool=len(pool.members)),
        exposures=dict(sorted(Counter(image.stratum for image in images).items())),
        moments=dict(sorted(Counter(image.moment for image in images).items())),
        notes=tuple(notes),
        images=images,
    )
    write_json(folder / RECORD, record)
    write_sample(folder, sampler.sample())
    return record


class Candidate(NamedTuple):
    """A frame of the pool, without its pixels: these lie in the file ``place``, whose digest is ``sha256``."""

    look: EmbeddedFrame
    priority: float
    sha256: str
    place: Path

    @property
    def stratum(self) -> Stratum:
        """Its exposure and time."""
        return self.look.exposure.bin, self.look.shot.moment


class Pool:
    """Different frames, at most ``size``: when it is full, the fullest exposure and time gives up one at random.

    So a rare hour is kept however long the footage is, and each exposure and time is a random sample of what it had.

    Args:
        folder: for video frames, as PNG; image files stay where they are.
        seed: decides which frame goes.

    Attributes:
        members: in no order.
        near_duplicates: frames that were alike a member both in embedding and in luma, and were dropped.
    """

    def __init__(self, size: int, folder: Path, seed: int) -> None:
        self.members: list[Candidate] = []
        self.near_duplicates = 0
        self._size, self._folder = size, folder
        self._seed, self._random = seed, random.Random(f"{seed} pool")
        self._rows = np.empty((0, 0), np.float32)  # (size, D), made when the first frame tells D
        self._cells = np.empty((0, 0, 0), np.float32)

    def offer(self, look: EmbeddedFrame) -> None:
        """Take a frame, or leave it."""
        if not self.members:
            self._rows = np.zeros((self._size, *look.row.shape), np.float32)
            self._cells = np.zeros((self._size, *look.cells.shape), np.float32)
        count = len(self.members)
        alike = np.flatnonzero(self._rows[:count] @ look.row >= NEAR_COSINE)
        if np.any(np.abs(self._cells[alike] - look.cells).mean(axis=(1, 2)) <= NEAR_LEVELS):
            self.near_duplicates += 1
            return
        priority = self._random.random()
        place = count if count < self._size else self._make_room((look.exposure.bin, look.shot.moment), priority)
        if place is None:
            return
        self._rows[place], self._cells[place] = look.row, look.cells
        del self.members[place : place + 1]
        self.members.insert(place, self._keep(look, priority))

    def choose(self, count: int) -> list[tuple[Candidate, float]]:
        """What ``choose`` takes of the members, each with its distance to the nearest one taken before it."""
        taken = choose(
            np.stack([member.look.row for member in self.members]),
            [member.stratum for member in self.members],
            [hashlib.sha256(f"{self._seed} {member.sha256}".encode()).hexdigest() for member in self.members],
            count,
        )
        return [(self.members[index], distance) for index, distance in taken]

    def _make_room(self, stratum: Stratum, priority: float) -> int | None:
        """The place of the member that goes; None if it is the new one."""
        everyone = [(stratum, priority, -1)]
        everyone += [(member.stratum, member.priority, at) for at, member in enumerate(self.members)]
        sizes = Counter(name for name, _, _ in everyone)
        fullest = max(sizes, key=lambda name: (sizes[name], name))
        _, place = max((drawn, at) for name, drawn, at in everyone if name == fullest)
        if place < 0:
            return None
        if self.members[place].look.shot.path is None:
            self.members[place].place.unlink()
        return place

    def _keep(self, look: EmbeddedFrame, priority: float) -> Candidate:
        shot = look.shot
        look = look._replace(shot=shot._replace(pixels=_NO_PIXELS))
        if shot.path is not None:
            return Candidate(look, priority, shot.sha256, shot.path)
        place = self._folder / str(shot.source) / f"frame{shot.frame:07}.png"
        place.parent.mkdir(exist_ok=True)
        image = shot.pixels if isinstance(shot.pixels, np.ndarray) else shot.pixels.to_ndarray(format="rgb24")
        write_image(place, image)
        return Candidate(look, priority, hashlib.sha256(place.read_bytes()).hexdigest(), place)


def choose(rows: FloatArray, strata: Sequence[Stratum], names: Sequence[str], count: int) -> list[tuple[int, float]]:
    """Take ``count`` of N, or all if there are no more.

    Each stratum gets one, the fullest first, and what remains is shared out by how many each has. Half of a share is
    drawn at random. The other half is taken farthest-first (k-center; Gonzalez, 1985): the next one is that which lies
    farthest from all taken. Farthest-first alone takes what is odd, and one image of what the camera sees all day.

    Args:
        rows: (N, D) unit embeddings.
        strata: the one that each belongs to.
        names: hashes, which decide what is drawn and which of equals is taken.

    Returns:
        (index, distance to the nearest one taken before it, 2 for the first) in the order in which they were taken.
    """
    order = np.argsort(np.asarray(names))  # the first ones of a stratum are a random draw; argmax takes the first
    rows, groups = rows[order], [strata[index] for index in order]
    left = _shares(Counter(groups), min(count, len(rows)))
    nearest = np.full(len(rows), 2.0, np.float32)
    free = np.ones(len(rows), np.bool_)
    taken: list[tuple[int, float]] = []

    def take(index: int) -> None:
        taken.append((int(order[index]), float(nearest[index])))
        free[index] = False
        left[groups[index]] -= 1
        np.minimum(nearest, distances(rows @ rows[index]), out=nearest)

    drawn = {name: share - share // 2 for name, share in left.items()}
    for index, name in enumerate(groups):
        if drawn[name]:
            drawn[name] -= 1
            take(index)
    while any(left.values()):
        open_ = free & np.array([left[name] > 0 for name in groups])
        take(int(np.where(open_, nearest, -1.0).argmax()))
    return taken


def _shares(sizes: Counter[Stratum], count: int) -> dict[Stratum, int]:
    """How many of ``count`` each stratum gets: one, and then by size (D'Hondt's rule), never more than it has."""
    shares = dict.fromkeys(sizes, 0)
    for _ in range(count):
        open_ = [name for name in sizes if shares[name] < sizes[name]]
        next_ = max(open_, key=lambda name: (not shares[name], sizes[name] / (shares[name] + 1), name))
        shares[next_] += 1
    return shares


def distances(cosines: npt.NDArray[np.float32]) -> FloatArray:
    """Of unit vectors, 0 to 2, from their cosines."""
    found: FloatArray = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * cosines)).astype(np.float32)
    return found


def _write_image(folder: Path, number: int, found: Candidate, distance: float) -> ChosenImage:
    file = f"{IMAGES}/{number:04}-{found.sha256[:8]}{found.place.suffix.lower()}"
    try:
        content = found.place.read_bytes()
    except OSError as error:
        raise SourceError(f"expected {found.place} to stay until it is copied, got: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != found.sha256:
        raise SourceError(f"{found.place} changed while images were chosen: choose again when nothing writes there")
    (folder / file).write_bytes(content)
    shot = found.look.shot
    return ChosenImage(
        file=file,
        sha256=found.sha256,
        source=shot.source,
        frame=shot.frame,
        time_s=round(shot.time_s, 3),
        name=found.place.name,
        exposure=found.look.exposure,
        stratum=found.look.exposure.bin,
        moment=shot.moment,
        distance=round(distance, 5),
    )
