"""Footage and a bundle in, a calibration set out: looked through, chosen, written into a folder and judged."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.candidates import Choice, choose, cover
from edgeclip.calibration.choice.chosen_set import (
    IMAGES,
    RECORD,
    CalibrationSet,
    ChosenImage,
    Counts,
    Held,
    SourceRecord,
    write_held,
)
from edgeclip.calibration.choice.coverage import Coverage, coverage_of
from edgeclip.calibration.choice.footage import Footage, Sampling
from edgeclip.calibration.choice.survey import RANDOM_SETS, Kept, Sampled, Survey, rows_of, survey
from edgeclip.errors import InputError, SourceError
from edgeclip.files import sha256_json, write_json
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.version import __version__

_SPOOL = ".pool"


@dataclass(frozen=True)
class ChooseOptions:
    """How to choose.

    Attributes:
        count: images wanted.
        sampling: which frames are looked at and which are held out; its seed is the seed of all.
        variant, engine: what embeds them.
    """

    count: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    variant: str = "fp32"
    engine: str = "onnxruntime"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"expected --count of at least 1, got {self.count}")


class Chosen(NamedTuple):
    """The set's record, and the held-out frames that it covers worst (distance, frame), the farthest first."""

    record: CalibrationSet
    worst: list[tuple[float, Sampled]]


def choose_images(
    bundle: Bundle,
    sources: Sequence[str],
    folder: Path,
    options: ChooseOptions = ChooseOptions(),
    *,
    progress: Callable[[int], None] | None = None,
) -> Chosen:
    """Choose calibration images and write them, the record and the embeddings held out into an existing folder.

    Two passes over the same files with the same options and seed, on the same machine, write the same bytes.

    Args:
        folder: empty; the caller renames it when all is there (``atomic_folder``).
        progress: called with the number of frames looked at.

    Raises:
        SourceError: a source cannot be opened, or holds nothing to choose from.
        VariantError, IntegrityError, EngineError: as the bundle and the engine say.
    """
    seed = options.sampling.seed
    spool = folder / _SPOOL
    spool.mkdir()
    with (
        Footage(sources, options.sampling) as footage,
        ImageEncoder(bundle, options.variant, engine=options.engine) as encoder,
    ):
        found = survey(footage, encoder, spool, count=options.count, seed=seed, progress=progress)
    members = found.pool.members
    if not members:
        raise SourceError(
            f"expected images to choose from, got only {found.seen} that are held out: lower --holdout or add footage"
        )
    rows = rows_of(members)
    hashes = [hashlib.sha256(f"{seed} {member.what.sha256}".encode()).hexdigest() for member in members]
    strata = [(member.what.exposure.bin, member.what.moment) for member in members]
    choice = choose(rows, strata, [member.absorbed for member in members], hashes, options.count)
    images = _write_images(found, choice, folder)
    shutil.rmtree(spool)
    held = found.held_out.items
    coverage = _coverage(found, rows[choice.taken], images, held, seed)
    record = CalibrationSet(
        edgeclip=__version__,
        options={"count": options.count, **asdict(options.sampling)},
        model_id=bundle.manifest.model.id,
        variant=options.variant,
        graph_sha256=graph_of(bundle, options.variant),
        engine=options.engine,
        sources=tuple(map(SourceRecord, footage.names, footage.failed)),
        counts=_counts(found),
        radius=round(choice.radius, 5),
        slack=round(found.pool.slack, 5),
        reserved=choice.reserved,
        edge=choice.edge,
        exposures=dict(sorted(Counter(image.stratum for image in images).items())),
        moments=dict(sorted(Counter(image.moment for image in images).items())),
        coverage=coverage,
        notes=_notes(options, images, footage, coverage),
        images=images,
    )
    write_json(folder / RECORD, record)
    write_held(folder, held_of(held, rows.shape[1]))
    distances = cover(_rows(held, rows.shape[1]), rows[choice.taken])
    worst = [(float(distances[index]), held[index]) for index in np.argsort(-distances, kind="stable")]
    return Chosen(record, worst)


def graph_of(bundle: Bundle, variant: str) -> str:
    """Hex sha256 that stands for a variant's graph with its weights."""
    digests = bundle.graph_digests(variant)
    return digests[0] if len(digests) == 1 else sha256_json(digests)


def held_of(frames: Sequence[Sampled], width: int) -> Held:
    """A uniform sample as what is written and compared."""
    numbers: dict[str, int] = {}
    return Held(
        _rows(frames, width),
        np.array([[f.exposure.luma, f.exposure.contrast, f.exposure.saturation] for f in frames], np.float32).reshape(
            -1, 3
        ),
        np.array([numbers.setdefault(frame.block, len(numbers)) for frame in frames], np.int32),
    )


def _rows(frames: Sequence[Sampled], width: int) -> FloatArray:
    return np.stack([frame.row for frame in frames]) if frames else np.zeros((0, width), np.float32)


def _write_images(found: Survey, choice: Choice, folder: Path) -> tuple[ChosenImage, ...]:
    (folder / IMAGES).mkdir()
    images = []
    for number, (taken, distance) in enumerate(zip(choice.taken, choice.distances, strict=True)):
        member = found.pool.members[taken]
        kept: Kept = member.what
        file = f"{IMAGES}/{number:04}-{kept.sha256[:8]}{kept.place.suffix.lower()}"
        _copy(kept, folder / file)
        images.append(
            ChosenImage(
                file=file,
                sha256=kept.sha256,
                source=kept.source,
                frame=kept.frame,
                time_s=kept.time_s,
                name=kept.name,
                exposure=kept.exposure,
                stratum=kept.exposure.bin,
                moment=kept.moment,
                distance=round(distance, 5),
                stands_for=member.absorbed,
            )
        )
    return tuple(images)


def _copy(kept: Kept, target: Path) -> None:
    try:
        content = kept.place.read_bytes()
    except OSError as error:
        raise SourceError(f"expected {kept.place} to stay until it is copied, got: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != kept.sha256:
        raise SourceError(f"{kept.place} changed while images were chosen: choose again when nothing writes there")
    target.write_bytes(content)


def _coverage(
    found: Survey, chosen: FloatArray, images: Sequence[ChosenImage], held: Sequence[Sampled], seed: int
) -> Coverage | None:
    if not held:
        return None
    count = min(len(chosen), len(found.random_sets[0].items))
    return coverage_of(
        _rows(held, chosen.shape[1]),
        [frame.exposure.bin for frame in held],
        [frame.block for frame in held],
        chosen,
        [image.stratum for image in images],
        [np.stack(sample.items[:count]) for sample in found.random_sets[:RANDOM_SETS]],
        seed=seed,
    )


def _counts(found: Survey) -> Counts:
    pool = found.pool
    return Counts(
        seen=found.seen,
        candidates=found.candidates,
        gap=found.gap,
        held_out=found.held_out.offered,
        unchanged=found.unchanged,
        near_duplicates=pool.near_duplicates,
        absorbed=pool.absorbed,
        pool=pool.largest,
        pool_size=pool.size,
    )


def _notes(
    options: ChooseOptions, images: Sequence[ChosenImage], footage: Footage, coverage: Coverage | None
) -> tuple[str, ...]:
    notes = []
    if len(images) < options.count:
        notes.append(
            f"{options.count} images were asked for and only {len(images)} different ones were there: all are taken; "
            "add footage, or look at more of it with a lower --every"
        )
    if failed := sum(footage.failed):
        notes.append(f"{failed} files or frames could not be decoded and were passed over")
    if coverage is None:
        notes.append("nothing was held out, so that coverage is not known: pass --holdout above 0, or more footage")
    return tuple(notes)
