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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.bins import Exposure
from edgeclip.calibration.choice.chosen_set import (
    IMAGES,
    RECORD,
    CalibrationSet,
    ChosenImage,
    Counts,
    SourceRecord,
    write_sample,
)
from edgeclip.calibration.choice.footage import Footage, FootageSampler, Look, Sampling, embedded
from edgeclip.errors import InputError, SourceError
from edgeclip.files import atomic_file, write_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import opencv
from edgeclip.runtime.preprocess.preprocess import Pixels
from edgeclip.version import __version__

Stratum: TypeAlias = tuple[str, str]  # bins of exposure and time

LEAST_POOL = 1200
NEAR_COSINE = 0.985
NEAR_LEVELS = 4.0
_POOL = ".pool"


@dataclass(frozen=True)
class ChooseOptions:
    """How to choose.

    Attributes:
        count: images wanted.
        sampling: which frames are looked at.
        seed: of all that is drawn.
        variant, engine: what embeds them.
    """

    count: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    variant: str = "fp32"
    engine: str = "onnxruntime"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"expected --count of at least 1, got {self.count}")


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
        Footage(sources, options.sampling) as footage,
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
    record = CalibrationSet(
        edgeclip=__version__,
        options={"count": options.count, "seed": options.seed, **asdict(options.sampling)},
        model_id=bundle.manifest.model.id,
        variant=options.variant,
        graph_sha256=bundle.graph_sha256(options.variant),
        engine=options.engine,
        sources=tuple(map(SourceRecord, footage.names, footage.failed)),
        counts=Counts(seen=seen, unchanged=unchanged, near_duplicates=pool.near_duplicates, pool=len(pool.members)),
        exposures=dict(sorted(Counter(image.stratum for image in images).items())),
        moments=dict(sorted(Counter(image.moment for image in images).items())),
        notes=_notes(options, len(images), sum(footage.failed)),
        images=images,
    )
    write_json(folder / RECORD, record)
    write_sample(folder, sampler.sample())
    return record


class Candidate(NamedTuple):
    """A frame of the pool: its unit embedding (D,), where it came from, and where its file lies."""

    row: FloatArray
    exposure: Exposure
    moment: str
    source: int
    frame: int
    time_s: float
    priority: float
    sha256: str
    place: Path
    name: str

    @property
    def stratum(self) -> Stratum:
        """Its exposure and time."""
        return self.exposure.bin, self.moment


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

    def offer(self, look: Look) -> None:
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
        self.members[place:] = [self._keep(look, priority), *self.members[place + 1 :]]

    def choose(self, count: int) -> list[tuple[Candidate, float]]:
        """What ``choose`` takes of the members, each with its distance to the nearest one taken before it."""
        taken = choose(
            np.stack([member.row for member in self.members]),
            [member.stratum for member in self.members],
            [hashlib.sha256(f"{self._seed} {member.sha256}".encode()).hexdigest() for member in self.members],
            count,
        )
        return [(self.members[index], distance) for index, distance in taken]

    def _make_room(self, stratum: Stratum, priority: float) -> int | None:
        """The place of the member that goes; None if it is the new one."""
        sizes = Counter([stratum, *(member.stratum for member in self.members)])
        fullest = max(sizes, key=lambda name: (sizes[name], name))
        crowd = [(member.priority, at) for at, member in enumerate(self.members) if member.stratum == fullest]
        highest, place = max(crowd)
        if fullest == stratum and priority > highest:
            return None
        if (old := self.members[place].place).parent == self._folder:
            old.unlink()
        return place

    def _keep(self, look: Look, priority: float) -> Candidate:
        shot = look.shot
        origin = look.row, look.exposure, shot.moment, shot.source, shot.frame, round(shot.time_s, 3), priority
        if shot.path is not None:
            return Candidate(*origin, shot.sha256, shot.path, shot.path.name)
        content = _png(shot.pixels)
        name = f"frame{shot.frame:07}.png"
        place = self._folder / f"{shot.source}-{name}"
        with atomic_file(place) as temporary:
            temporary.write_bytes(content)
        return Candidate(*origin, hashlib.sha256(content).hexdigest(), place, name)


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
    members = {name: np.array([group == name for group in groups]) for name in left}
    while any(left.values()):
        open_ = free & np.any([members[name] for name, share in left.items() if share], axis=0)
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
    return ChosenImage(
        file=file,
        sha256=found.sha256,
        source=found.source,
        frame=found.frame,
        time_s=found.time_s,
        name=found.name,
        exposure=found.exposure,
        stratum=found.exposure.bin,
        moment=found.moment,
        distance=round(distance, 5),
    )


def _png(pixels: Pixels) -> bytes:
    """A frame without loss."""
    cv2 = opencv()
    image = pixels if isinstance(pixels, np.ndarray) else pixels.to_ndarray(format="rgb24")
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return bytes(data.tobytes())


def _notes(options: ChooseOptions, found: int, failed: int) -> tuple[str, ...]:
    notes = []
    if found < options.count:
        notes.append(
            f"{options.count} images were asked for and only {found} different ones were there: all are taken; "
            "add footage, or look at more of it with a lower --every"
        )
    if failed:
        notes.append(f"{failed} files or frames could not be decoded and were passed over")
    return tuple(notes)
