"""Embeddings held out, chosen and drawn at random in; how well the choice covers what it was not chosen from, out.

Frames of a video that lie near in time are alike, so intervals are of whole blocks of time drawn again (a block
bootstrap), and not of frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.calibration.choice.candidates import cover
from edgeclip.prompts import FloatArray

_RESAMPLES = 1000
_LEAST_BLOCKS = 8


class Distances(msgspec.Struct, frozen=True):
    """From held-out frames to the nearest image of a set: 0 is the same direction, 2 the opposite one."""

    mean: float
    p50: float
    p95: float
    largest: float


class StratumCoverage(msgspec.Struct, frozen=True):
    """One exposure: held-out frames and chosen images in it, and the held-out frames' distances to both sets."""

    name: str
    held_out: int
    chosen: int
    to_chosen: Distances | None
    to_random: Distances | None


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How well a set covers footage held out.

    Attributes:
        held_out, blocks: frames, and blocks of time or files that they come from.
        to_chosen, to_random: distances; random ones are means over ``random_sets`` sets of ``random_count`` frames.
        deciles_chosen, deciles_random: 11 distances each, from the nearest frame to the farthest.
        mean_gain, p95_gain: how much nearer the choice is than a random set, and the 95 % interval; above 0 is better.
        p99: of the distances to the choice, what drift is judged by.
        strata: by exposure.
        verdict: in plain words.
    """

    held_out: int
    blocks: int
    random_sets: int
    random_count: int
    to_chosen: Distances
    to_random: Distances
    deciles_chosen: tuple[float, ...]
    deciles_random: tuple[float, ...]
    mean_gain: tuple[float, float, float]
    p95_gain: tuple[float, float, float]
    p99: float
    strata: tuple[StratumCoverage, ...]
    verdict: str


def coverage_of(
    held_out: FloatArray,
    exposures: Sequence[str],
    blocks: Sequence[str],
    chosen: FloatArray,
    chosen_exposures: Sequence[str],
    random_sets: Sequence[FloatArray],
    *,
    seed: int = 0,
) -> Coverage:
    """Compare a choice (K, D) with random sets of the same footage, on N frames held out (N, D).

    Args:
        exposures, blocks: of the held-out frames (N).
        chosen_exposures: of the choice (K).
    """
    near = cover(held_out, chosen)
    others = np.stack([cover(held_out, rows) for rows in random_sets])
    gains = {
        "mean": _gain(near, others, blocks, lambda values: values.mean(axis=-1), seed),
        "p95": _gain(near, others, blocks, lambda values: np.percentile(values, 95, axis=-1), seed),
    }
    strata = []
    for name in sorted(set(exposures) | set(chosen_exposures)):
        of_it = np.array([exposure == name for exposure in exposures], np.bool_)
        strata.append(
            StratumCoverage(
                name,
                int(of_it.sum()),
                sum(exposure == name for exposure in chosen_exposures),
                _distances(near[None, of_it]) if of_it.any() else None,
                _distances(others[:, of_it]) if of_it.any() else None,
            )
        )
    to_chosen, to_random = _distances(near[None]), _distances(others)
    count = len(set(blocks))
    return Coverage(
        held_out=len(held_out),
        blocks=count,
        random_sets=len(random_sets),
        random_count=len(random_sets[0]),
        to_chosen=to_chosen,
        to_random=to_random,
        deciles_chosen=_deciles(near[None]),
        deciles_random=_deciles(others),
        mean_gain=gains["mean"],
        p95_gain=gains["p95"],
        p99=_rounded(np.percentile(near, 99)),
        strata=tuple(strata),
        verdict=_verdict(to_chosen, to_random, gains["mean"], gains["p95"], count, strata),
    )


def block_draws(blocks: Sequence[str], seed: int, resamples: int = _RESAMPLES) -> list[npt.NDArray[np.intp]]:
    """For each resample the indices of the frames of as many blocks, drawn with replacement."""
    members: dict[str, list[int]] = {}
    for index, block in enumerate(blocks):
        members.setdefault(block, []).append(index)
    groups = [np.array(group, np.intp) for group in members.values()]
    generator = np.random.default_rng(seed)
    return [
        np.concatenate([groups[number] for number in generator.integers(0, len(groups), len(groups))])
        for _ in range(resamples)
    ]


def _gain(
    near: FloatArray,
    others: FloatArray,
    blocks: Sequence[str],
    figure: Callable[[FloatArray], FloatArray],
    seed: int,
) -> tuple[float, float, float]:
    def gain(at: npt.NDArray[np.intp] | slice) -> float:
        return float(figure(others[:, at]).mean() - figure(near[at]))

    drawn = [gain(indices) for indices in block_draws(blocks, seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return _rounded(gain(slice(None))), _rounded(low), _rounded(high)


def _distances(values: FloatArray) -> Distances:
    """Of (sets, N): each figure is the mean over the sets."""
    figures = (
        values.mean(axis=1),
        *(np.percentile(values, share, axis=1) for share in (50, 95)),
        values.max(axis=1),
    )
    return Distances(*(_rounded(figure.mean()) for figure in figures))


def _deciles(values: FloatArray) -> tuple[float, ...]:
    """Of (sets, N), means over the sets."""
    return tuple(_rounded(value) for value in np.percentile(values, range(0, 101, 10), axis=1).mean(axis=1))


def _verdict(
    chosen: Distances,
    random: Distances,
    mean: tuple[float, float, float],
    p95: tuple[float, float, float],
    blocks: int,
    strata: Sequence[StratumCoverage],
) -> str:
    said = (
        f"95 % of the held-out frames lie within {chosen.p95:.3f} of the set, within {random.p95:.3f} of random sets "
        f"of that size; on average at {chosen.mean:.3f} against {random.mean:.3f}: "
    )
    if blocks < _LEAST_BLOCKS:
        said += f"only {blocks} blocks were held out, too few to tell the two apart."
    else:
        edge, middle = _word(p95), _word(mean)
        said += (
            f"{edge} than random ones."
            if edge == middle
            else f"{edge} than random ones at the edge, {middle} on average."
        )
    bare = [item.name for item in strata if item.held_out and not item.chosen]
    if bare:
        said += f" No image was chosen of: {'; '.join(bare)}."
    return said


def _word(gain: tuple[float, float, float]) -> str:
    return "better" if gain[1] > 0 else "worse" if gain[2] < 0 else "not measurably better"


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 5)
