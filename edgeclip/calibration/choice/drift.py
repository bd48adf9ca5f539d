"""A calibration set with footage of its site held out, and footage of another site, in; whether the set covers it, out.

Three looks at it. *Coverage*: how many frames of B lie farther from A's set than 99 %, or 90 %, of A's own held-out
frames do. *Distribution*: the energy distance of the embeddings of both footages (Székely and Rizzo, 2013), and how
often it is as large when blocks of time are dealt out anew between the two; frames of one block are alike, so they stay
together. *Exposure*: how bright, contrasty and colourful both are.

A chosen set, or footage, in; one side of a drift report out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.bins import Exposure
from edgeclip.calibration.choice.candidates import chords, cover
from edgeclip.calibration.choice.choose import ChooseOptions, choose_images, graph_of, held_of
from edgeclip.calibration.choice.chosen_set import ChosenImages, Held, is_chosen_set, read_held, read_record
from edgeclip.calibration.choice.coverage import block_draws
from edgeclip.calibration.choice.footage import Footage, Sampling
from edgeclip.calibration.choice.survey import survey
from edgeclip.errors import InputError
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.sources.address import short_name

# Share of A's own held-out frames beyond a limit -> share of B's that is tolerated there. The second is for footage
# that lies as a whole where only A's oddest frames do.
TOLERATED = {0.01: 0.05, 0.10: 0.30}
_LEAST_FRAMES = 20
_DIFFERENT = 0.05
_UNSEEN = 0.05  # share that is mentioned
_PERMUTATIONS = 999
_MOST = 1024  # frames of each side in the energy distance


class Site(NamedTuple):
    """One side: a name, the set's embeddings (K, D) with the bins of its exposures, and footage that it lacks."""

    name: str
    chosen: FloatArray
    strata: Sequence[str]
    held: Held


class ExposureShift(msgspec.Struct, frozen=True):
    """Mean and standard deviation of one figure of exposure over the frames of each side, grey levels."""

    name: str
    a: tuple[float, float]
    b: tuple[float, float]


class Beyond(msgspec.Struct, frozen=True):
    """How many of B's frames lie farther from A's set than most of A's own do.

    Attributes:
        expected: share of A's held-out frames beyond the limit; those exposed as no image of the set are not counted.
        limit: distance to the set.
        share, ci95: of B's frames beyond it, and the interval over blocks.
        tolerated: largest share that counts as covered.
        covered: yes up to that; no if the whole interval is above it; or else unclear.
    """

    expected: float
    limit: float
    share: float
    ci95: tuple[float, float]
    tolerated: float
    covered: str


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of B against A.

    Attributes:
        a, b: names.
        chosen, frames_a, frames_b, blocks_a, blocks_b: images of A's set; frames compared, and their blocks.
        beyond: for each limit, how many of B's frames lie beyond it.
        median_a, median_b: of the distances to A's set.
        energy: energy distance of both footages.
        p_value: chance of one so large if both were one; of 1,000 ways, so at least 0.001.
        exposure: how both are exposed.
        unseen_exposure: share of B's frames in exposures of which A's set has no image.
        covered: no if it is so at one of the limits and the footages differ (p at most 0.05); yes if it is so at both.
        verdict: in plain words.
    """

    a: str
    b: str
    chosen: int
    frames_a: int
    frames_b: int
    blocks_a: int
    blocks_b: int
    beyond: tuple[Beyond, ...]
    median_a: float
    median_b: float
    energy: float
    p_value: float
    exposure: tuple[ExposureShift, ...]
    unseen_exposure: float
    covered: str
    verdict: str


def measure_drift(site: Site, other: Site, *, seed: int = 0) -> Drift:
    """Hold B's footage against A's set and A's footage.

    Raises:
        InputError: fewer than 20 frames on a side, or embeddings of different widths.
    """
    for side in (site, other):
        if len(side.held.rows) < _LEAST_FRAMES:
            raise InputError(
                f"expected at least {_LEAST_FRAMES} frames of {side.name} to compare, got {len(side.held.rows)}: "
                "choose A with a higher --holdout, or give more footage"
            )
    known = set(site.strata)
    # Frames of A that are exposed as none of its own images would make any limit wide.
    like = np.array([name in known for name in _bins(site.held)], np.bool_)
    own = cover(site.held.rows[like] if like.sum() >= _LEAST_FRAMES else site.held.rows, site.chosen)
    far = cover(other.held.rows, site.chosen)
    draws = block_draws([str(block) for block in other.held.blocks], seed)
    found = tuple(_beyond(expected, own, far, draws) for expected in TOLERATED)
    energy, p_value = energy_test(site.held, other.held, seed=seed)
    unseen = float(np.mean([name not in known for name in _bins(other.held)]))
    words = {item.covered for item in found}
    # Later footage of one camera shows other people; that alone is no other site.
    covered = "no" if "no" in words and p_value <= _DIFFERENT else "yes" if words == {"yes"} else "unclear"
    return Drift(
        a=site.name,
        b=other.name,
        chosen=len(site.chosen),
        frames_a=len(site.held.rows),
        frames_b=len(far),
        blocks_a=len(np.unique(site.held.blocks)),
        blocks_b=len(np.unique(other.held.blocks)),
        beyond=found,
        median_a=round(float(np.median(own)), 5),
        median_b=round(float(np.median(far)), 5),
        energy=round(energy, 5),
        p_value=round(p_value, 4),
        exposure=tuple(
            ExposureShift(name, _moments(site.held.exposures[:, column]), _moments(other.held.exposures[:, column]))
            for column, name in enumerate(("luma", "contrast", "saturation"))
        ),
        unseen_exposure=round(unseen, 4),
        covered=covered,
        verdict=_verdict(site.name, other.name, covered, found, p_value, unseen),
    )


def _beyond(expected: float, own: FloatArray, far: FloatArray, draws: Sequence[npt.NDArray[np.intp]]) -> Beyond:
    limit = float(np.percentile(own, 100 * (1 - expected)))
    outside = (far > limit).astype(np.float64)
    low, high = np.percentile([float(outside[at].mean()) for at in draws], [2.5, 97.5])
    share, tolerated = float(outside.mean()), TOLERATED[expected]
    return Beyond(
        expected,
        round(limit, 5),
        round(share, 4),
        (round(float(low), 4), round(float(high), 4)),
        tolerated,
        "no" if low > tolerated else "yes" if share <= tolerated else "unclear",
    )


def energy_test(a: Held, b: Held, *, seed: int = 0) -> tuple[float, float]:
    """Energy distance of the rows of both, and its p value under exchange of whole blocks.

    Blocks are dealt out so that as many as before lie on each side. Of more than 1,024 frames a side, a seeded sample
    is compared.
    """
    generator = np.random.default_rng(seed)
    first, second = _at_most(a, generator), _at_most(b, generator)
    rows = np.concatenate([first.rows, second.rows]).astype(np.float32)
    blocks = np.concatenate([first.blocks, second.blocks + 1 + first.blocks.max()])
    names, of_frame = np.unique(blocks, return_inverse=True)
    counts = np.bincount(of_frame).astype(np.float64)
    apart = chords(rows @ rows.T).astype(np.float64)
    summed = np.zeros((len(names), len(rows)))
    np.add.at(summed, of_frame, apart)
    between = np.zeros((len(names), len(names)))  # sums of distances between two blocks
    np.add.at(between.T, of_frame, summed.T)
    side = np.zeros(len(names))
    side[np.unique(of_frame[: len(first.rows)])] = 1.0
    found = _energy(between, counts, side)
    as_large = sum(_energy(between, counts, generator.permutation(side)) >= found - 1e-12 for _ in range(_PERMUTATIONS))
    return found, (1 + as_large) / (1 + _PERMUTATIONS)


def _energy(between: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], side: npt.NDArray[np.float64]) -> float:
    other = 1.0 - side
    a, b = side @ counts, other @ counts
    across = side @ between @ other / (a * b)
    return float(2 * across - side @ between @ side / a**2 - other @ between @ other / b**2)


def _at_most(held: Held, generator: np.random.Generator) -> Held:
    if len(held.rows) <= _MOST:
        return held
    some = np.sort(generator.choice(len(held.rows), _MOST, replace=False))
    return Held(held.rows[some], held.exposures[some], held.blocks[some])


def _bins(held: Held) -> list[str]:
    return [Exposure(*(float(value) for value in row)).bin for row in held.exposures]


def _moments(values: FloatArray) -> tuple[float, float]:
    return round(float(values.mean()), 2), round(float(values.std()), 2)


def _verdict(a: str, b: str, covered: str, beyond: Sequence[Beyond], p_value: float, unseen: float) -> str:
    words = [item.covered for item in beyond]
    item = beyond[words.index("no" if "no" in words else covered)]
    share = (
        f"{item.share:.0%} of its frames (95 % {item.ci95[0]:.0%} to {item.ci95[1]:.0%}) lie farther from the set than "
        f"{1 - item.expected:.0%} of {a}'s own held-out frames"
    )
    if covered == "no":
        said = f"{b} is not covered by {a}'s set: {share}. Calibrate with footage of {b} too."
    elif covered == "unclear":
        alike = f", though their footage cannot be told apart (p = {p_value:.3f})" if p_value > _DIFFERENT else ""
        said = f"Whether {a}'s set covers {b} is unclear: {share}{alike}. Give more footage, or calibrate with both."
    elif p_value < 0.01:
        said = f"{a}'s set covers {b}: {share}. Their footage differs all the same (p = {p_value:.3f})."
    else:
        said = f"{a}'s set covers {b}: {share}. No drift beyond noise (p = {p_value:.3f})."
    if unseen > _UNSEEN:
        said += f" {unseen:.0%} of its frames are exposed as no image of the set is."
    return said


_BATCH = 32


def site_of(
    bundle: Bundle,
    source: str,
    options: ChooseOptions,
    *,
    progress: Callable[[int], None] | None = None,
) -> Site:
    """What is compared with: a set that was chosen before, or one that is chosen here from footage.

    Raises:
        InputError: the set was chosen with another model, variant or weights.
        SourceError, EngineError: as for ``choose_images``.
    """
    if not is_chosen_set(Path(source)):
        with tempfile.TemporaryDirectory() as scratch:
            choose_images(bundle, [source], Path(scratch), options, progress=progress)
            return _read(bundle, Path(scratch), options, _name(source))
    return _read(bundle, Path(source), options, _name(source))


def footage_of(
    bundle: Bundle,
    source: str,
    options: ChooseOptions,
    sampling: Sampling,
    *,
    progress: Callable[[int], None] | None = None,
) -> Site:
    """What is held against a set: a uniform sample of footage, all of it counting as held out.

    Of a chosen set it is the footage that was held out when it was chosen.

    Raises:
        InputError, SourceError, EngineError: as for ``site_of``.
    """
    if is_chosen_set(Path(source)):
        return _read(bundle, Path(source), options, _name(source))
    with (
        tempfile.TemporaryDirectory() as scratch,
        Footage([source], sampling) as footage,
        ImageEncoder(bundle, options.variant, engine=options.engine) as encoder,
    ):
        found = survey(footage, encoder, Path(scratch), count=1, seed=sampling.seed, progress=progress)
    width = bundle.manifest.encoder.embedding_dim
    return Site(_name(source), np.zeros((0, width), np.float32), (), held_of(found.held_out.items, width))


def _read(bundle: Bundle, folder: Path, options: ChooseOptions, name: str) -> Site:
    record, graph = read_record(folder), graph_of(bundle, options.variant)
    if record.graph_sha256 != graph:
        raise InputError(
            f"expected {folder} to be chosen with {options.variant} of model {bundle.manifest.model.id}, got "
            f"{record.variant} of {record.model_id} (graph {record.graph_sha256[:12]}…, not {graph[:12]}…): pass the "
            "--bundle and --variant that it was chosen with, or choose again"
        )
    with ImageEncoder(bundle, options.variant, engine=options.engine) as encoder:
        rows = _embed(encoder, folder)
    held: Held = read_held(folder)
    return Site(name, rows, [image.stratum for image in record.images], held)


def _embed(encoder: ImageEncoder, folder: Path) -> FloatArray:
    images = ChosenImages(folder)
    parts = [encoder.encode(images[at : at + _BATCH]) for at in range(0, len(images), _BATCH)]
    rows: FloatArray = np.concatenate(parts)
    return rows


def _name(source: str) -> str:
    if "://" in source:
        return short_name(source)
    return Path(source).name or source
