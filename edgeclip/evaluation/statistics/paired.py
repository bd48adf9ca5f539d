"""Which images two variants label right in; by how much their accuracies differ, with its interval, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.hits import Z95, Hits, lost_and_won
from edgeclip.printable import counted


class PairedDifference(msgspec.Struct, frozen=True):
    """Accuracy of a candidate less that of a reference on the same images, in percentage points.

    Attributes:
        points: the difference; negative if the candidate is worse.
        ci95: its 95 % interval.
        n: images.
        only_reference, only_candidate: images that only one of the two labels right.
    """

    points: float
    ci95: tuple[float, float]
    n: int
    only_reference: int
    only_candidate: int

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.points:+.2f} points (95 % {low:+.2f} to {high:+.2f}, {counted(self.n, 'image')})"


def paired_difference(reference: Hits, candidate: Hits) -> PairedDifference:
    """Compare hits (N,) of the same images in the same order.

    The interval is that of Agresti and Min ("Simple improved confidence intervals for comparing matched proportions",
    2005): Wald's on counts with half a discordant pair added to each cell, which holds where few images change.

    Raises:
        InputError: no image, or numbers that differ.
    """
    n, lost, won = lost_and_won(reference, candidate)
    adjusted_n, adjusted_lost, adjusted_won = n + 2, lost + 0.5, won + 0.5
    centre = (adjusted_won - adjusted_lost) / adjusted_n
    variance = (adjusted_won + adjusted_lost - (adjusted_won - adjusted_lost) ** 2 / adjusted_n) / adjusted_n**2
    half = Z95 * math.sqrt(max(variance, 0.0))
    return PairedDifference(
        points=100 * (won - lost) / n,
        ci95=(100 * (centre - half), 100 * (centre + half)),
        n=n,
        only_reference=lost,
        only_candidate=won,
    )


def mcnemar_p(difference: PairedDifference, *, alternative: str = "two-sided") -> float:
    """p value of the exact test of McNemar (1947): if both are equally good, an image that only one of the two labels
    right is as likely the candidate's as the reference's.

    Args:
        alternative: ``greater`` to ask only whether the candidate is better.
    """
    stats: Any = require("scipy.stats", purpose="test a difference")
    won, changed = difference.only_candidate, difference.only_candidate + difference.only_reference
    return float(stats.binomtest(won, changed, alternative=alternative).pvalue) if changed else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979), in the order given.

    If every claim with an adjusted value of at most α is made, the chance of any false one among them is at most α,
    however the tests depend on each other.
    """
    if not p_values:
        return []
    tests: Any = require("statsmodels.stats.multitest", purpose="judge several tests at once")
    return [float(value) for value in tests.multipletests(p_values, method="holm")[1]]


class ExtraLoss(msgspec.Struct, frozen=True):
    """How much more a candidate loses against a reference under shift than on clean images, in percentage points.

    Attributes:
        points: (candidate - reference) under shift less (candidate - reference) on clean images; negative if the
            candidate suffers more from the shift than the reference does.
        ci95: its 95 % interval.
        n: images.
    """

    points: float
    ci95: tuple[float, float]
    n: int

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.points:+.2f} points (95 % {low:+.2f} to {high:+.2f}, {counted(self.n, 'image')})"


def difference_of_differences(
    clean_reference: Hits, clean_candidate: Hits, shift_reference: Hits, shift_candidate: Hits
) -> ExtraLoss:
    """Compare two models' losses on the same N images, clean and shifted.

    Each image gives one number, the candidate's extra hits under shift (averaged over the shifts it went through) less
    its extra hits clean; the interval is that of their mean. So images are what varies, and the shifts of one image are
    not taken for independent. As in ``paired_difference`` half an image of +1, half of -1 and one of 0 is added
    (Agresti and Min 2005): where no image changes, the interval still has a width; with equal clean hits and one shift
    the two functions agree.

    Args:
        clean_reference, clean_candidate: (N,) bool.
        shift_reference, shift_candidate: (N,) or (K, N) bool, K shifts of the same images in the same order.

    Raises:
        InputError: no image, no shift, or shapes that do not fit.
    """
    n = len(clean_reference)
    shapes = {np.atleast_2d(shift_reference).shape, np.atleast_2d(shift_candidate).shape}
    if not n or clean_candidate.shape != (n,) or len(shapes) > 1 or not shift_reference.size:
        raise InputError(f"expected the same {n} images and shifts from both, got {sorted(shapes)}")
    if np.atleast_2d(shift_reference).shape[1] != n:
        raise InputError(f"expected shifts of the {n} clean images, got {sorted(shapes)}")
    shifted = np.atleast_2d(shift_candidate).mean(axis=0) - np.atleast_2d(shift_reference).mean(axis=0)
    extra = shifted - (clean_candidate.astype(np.float64) - clean_reference)  # (N,) in [-2, 2]
    centre = float(extra.sum()) / (n + 2)
    variance = (float((extra**2).sum()) + 1) / (n + 2) - centre**2
    half = Z95 * math.sqrt(max(variance, 0.0) / (n + 2))
    return ExtraLoss(100 * float(extra.mean()), (100 * (centre - half), 100 * (centre + half)), n)


def difference_between_sets(clean: PairedDifference, shift: PairedDifference) -> ExtraLoss:
    """The same question where the shifted images are others than the clean ones, so that the two are independent.

    The interval is put together from theirs (MOVER, Zou and Donner 2008): distances from the estimate add as squares.
    """
    points = shift.points - clean.points
    below = math.hypot(shift.points - shift.ci95[0], clean.ci95[1] - clean.points)
    above = math.hypot(shift.ci95[1] - shift.points, clean.points - clean.ci95[0])
    return ExtraLoss(points, (points - below, points + above), shift.n)
