"""Counts of images that two ways of labelling differ on in, exact p values and what to make of many of them out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def binomial_tail(most: int, n: int, rate: float) -> float:
    """Probability that at most ``most`` of ``n`` trials succeed, each with probability ``rate`` in (0, 1)."""
    if most >= n:
        return 1.0
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(rate)
        + (n - k) * math.log1p(-rate)
        for k in range(most + 1)
    ]
    return min(1.0, float(np.exp(np.logaddexp.reduce(logs)))) if logs else 0.0


def mcnemar_p(lost: int, won: int) -> float:
    """Two-sided p value of the exact test of McNemar (1947).

    Args:
        lost, won: images that only the reference, and only the candidate, labels right. If both are equally good, each
            of these images is as likely to be the one as the other.
    """
    return min(1.0, 2 * binomial_tail(min(lost, won), lost + won, 0.5)) if lost + won else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979), in the order given.

    If every claim with an adjusted value of at most α is made, the chance of any false one among them is at most α,
    however the tests depend on each other.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def fewest_to_claim(tests: int, alpha: float) -> int:
    """How many images have to change for the better, and none for the worse, before one of ``tests`` can be claimed."""
    return math.ceil(math.log2(2 * max(tests, 1) / alpha))
