"""Footage that a calibration set was chosen from, and other footage, in; whether the two differ, out.

One two-sample test: the energy distance of the embeddings (Székely and Rizzo, 2013), and how often it is as large when
parts of the footage are dealt out anew between the two (``scipy.stats.permutation_test``). Each footage is cut into
eight parts of equal length, and frames of one part stay together, for frames that lie near in time are alike.

What is assumed: that without drift the parts of both footages could stand in each other's place. It is so where one
part sees all that the camera sees. Where a change lasts longer than a part (people who come at noon, dusk), later
footage of the same camera differs too, and so does B where it is only one camera or hour of what A has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.bundle import Bundle
from edgeclip.calibration.choice.choose import ChooseOptions, distances
from edgeclip.calibration.choice.chosen_set import FootageSample, is_chosen_set, read_record, read_sample
from edgeclip.calibration.choice.footage import Footage, FootageSampler, embedded
from edgeclip.errors import InputError, SourceError
from edgeclip.extras import require
from edgeclip.prompts import FloatArray
from edgeclip.runtime.encoder import ImageEncoder

LEVEL = 0.01
PARTS = 8
_FIGURES = ("luma", "contrast", "saturation")
_LEAST_FRAMES = 20
_RESAMPLES = 999


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of B against A.

    Attributes:
        a, b: names.
        frames_a, frames_b: frames compared.
        energy: energy distance of both footages; 0 if they are the same.
        p_value: chance of one so large if parts could stand in each other's place.
        drifted: whether that is at most 0.01.
        exposure: means of luma, contrast and saturation over the frames of A and of B, grey levels; said, not tested.
        verdict: in plain words.
    """

    a: str
    b: str
    frames_a: int
    frames_b: int
    energy: float
    p_value: float
    drifted: bool
    exposure: dict[str, tuple[float, float]]
    verdict: str


def measure_drift(a: str, sample: FootageSample, b: str, other: FootageSample, *, seed: int = 0) -> Drift:
    """Hold the footage ``other`` of B against the footage ``sample`` of A.

    Raises:
        InputError: fewer than 20 frames on a side.
        MissingExtraError: SciPy is not installed.
    """
    for name, side in ((a, sample), (b, other)):
        if len(side.rows) < _LEAST_FRAMES:
            raise InputError(
                f"expected at least {_LEAST_FRAMES} frames of {name} to compare, got {len(side.rows)}: give more "
                "footage, or look at more of it with a lower `every`"
            )
    energy, p_value = energy_test(sample.rows, other.rows, seed=seed)
    drifted = p_value <= LEVEL
    verdict = (
        f"The footage of {b} differs from that of {a} (energy distance {energy:.3f}, p = {p_value:.4f}). "
        f"If nothing like it is in the set, calibrate with footage of {b} too."
        if drifted
        else f"No drift was found: the footage of {b} cannot be told from that of {a} (energy distance {energy:.3f}, "
        f"p = {p_value:.4f})."
    )
    means = [side.exposures.mean(axis=0) for side in (sample, other)]
    return Drift(
        a=a,
        b=b,
        frames_a=len(sample.rows),
        frames_b=len(other.rows),
        energy=round(energy, 5),
        p_value=round(p_value, 5),
        drifted=drifted,
        exposure={name: (round(float(x), 2), round(float(y), 2)) for name, x, y in zip(_FIGURES, *means, strict=True)},
        verdict=verdict,
    )


def energy_test(a: FloatArray, b: FloatArray, *, seed: int = 0) -> tuple[float, float]:
    """Energy distance of unit rows (N, D) and (M, D), each in the order of its footage, and its p value.

    Of 12,870 ways to deal the parts out 999 are drawn.
    """
    stats = require("scipy.stats", purpose="compare footage", extra="eval")
    rows = np.concatenate([a, b])
    of_part = np.eye(2 * PARTS)[[*_parts(len(a)), *(PARTS + _parts(len(b)))]]  # (N + M, 16), one 1 a row
    apart = of_part.T @ distances(rows @ rows.T) @ of_part  # (16, 16): sums of distances between two parts
    frames = of_part.sum(axis=0)

    def energy(one: npt.NDArray[np.intp], two: npt.NDArray[np.intp]) -> float:
        def mean(left: npt.NDArray[np.intp], right: npt.NDArray[np.intp]) -> float:
            return float(apart[np.ix_(left, right)].sum() / (frames[left].sum() * frames[right].sum()))

        return 2 * mean(one, two) - mean(one, one) - mean(two, two)

    found = stats.permutation_test(
        (np.arange(PARTS), np.arange(PARTS, 2 * PARTS)),
        lambda one, two: energy(one.astype(np.intp), two.astype(np.intp)),
        vectorized=False,
        n_resamples=_RESAMPLES,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(found.statistic), float(found.pvalue)


def sample_footage(
    bundle: Bundle, source: str, options: ChooseOptions, *, progress: Callable[[int], None] | None = None
) -> FootageSample:
    """The sample in a folder that ``edgeclip calibrate images`` wrote; of any other source, one that is drawn here.

    Raises:
        InputError: the set was chosen with another variant or other weights.
        SourceError, EngineError: as for ``choose_images``.
    """
    if not is_chosen_set(Path(source)):
        sampler = FootageSampler(options.seed)
        with (
            Footage([source], every_s=options.every_s, duration_s=options.duration_s) as footage,
            ImageEncoder(bundle, options.variant, engine=options.engine) as encoder,
        ):
            for look in embedded(footage, encoder, progress=progress):
                sampler.offer(look)
        return sampler.sample()
    sample, record, graph = read_sample(Path(source)), read_record(Path(source)), bundle.graph_sha256(options.variant)
    if record.graph_sha256 != graph:
        raise InputError(
            f"expected {source} to be chosen with {options.variant} of model {bundle.manifest.model.id}, got "
            f"{record.variant} of {record.model_id} (graph {record.graph_sha256[:12]}…, not {graph[:12]}…): pass the "
            "`bundle` and `variant` that it was chosen with, or choose again"
        )
    if sample.rows.shape[1] != (width := bundle.manifest.encoder.embedding_dim):
        raise SourceError(
            f"expected embeddings of width {width} in {source}, got {sample.rows.shape[1]}: choose the images again"
        )
    return sample


def _parts(count: int) -> npt.NDArray[np.intp]:
    return np.arange(count) * PARTS // count
