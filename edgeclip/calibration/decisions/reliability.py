"""Probabilities and what came true in; reliability, calibration error and separation out."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.decisions import Doubles

BINS = 15
Bools = npt.NDArray[np.bool_]


class Bin(msgspec.Struct, frozen=True):
    """Images whose probability lies in one bin: how many, their mean probability, and the share that is right."""

    n: int
    probability: float
    right: float


def reliability(probability: Doubles, right: Bools, *, bins: int = BINS) -> list[Bin]:
    """The non-empty ones of equally wide bins over (0, 1], lowest first."""
    place = np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    said = np.bincount(place, weights=probability, minlength=bins)
    true = np.bincount(place, weights=right, minlength=bins)
    return [Bin(int(n), float(p / n), float(t / n)) for n, p, t in zip(counts, said, true, strict=True) if n]


def calibration_error(probability: Doubles, right: Bools, *, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): the mean distance of probability and share right, over images.

    With few images it is above zero for perfect probabilities too, as each bin's share is off by chance.
    """
    found = reliability(probability, right, bins=bins)
    return sum(each.n * abs(each.probability - each.right) for each in found) / max(1, sum(each.n for each in found))


def separation(score: Doubles, known: Bools) -> float | None:
    """AUROC: the chance that an image of a class scores above one of none, ties counting half; None without either."""
    positive, negative = score[known], np.sort(score[~known])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, side="left") + np.searchsorted(negative, positive, side="right")
    return float(below.sum() / 2 / len(positive) / len(negative))
