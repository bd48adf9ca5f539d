"""Probabilities of being right, and who was, in; a threshold that promises a precision out, or none.

Among frames whose label has at least some probability, the precision is a share, and Clopper and Pearson's (1934) lower
bound on it holds for any number of images. As several thresholds are looked at, they are tested in an order that is
fixed before a label is seen (fixed-sequence testing; Angelopoulos et al. 2021, Learn then Test): from a tenth of the
images on, with room for one more error each time, until the first that fails. The last that passes keeps the promise,
with the confidence of a single test.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.decisions import Doubles
from edgeclip.extras import require

_FIRST = 0.1  # share of the images that the sequence begins with: one error spoils few, many may hold more
_SLACK = 1e-6  # the device computes in float32
Bools = npt.NDArray[np.bool_]


class Threshold(NamedTuple):
    """A threshold on the probability, and of the images: how many reach it, and how many of these are right."""

    value: float
    accepted: int
    right: int


def promised_threshold(probability: Doubles, right: Bools, *, target: float, confidence: float) -> Threshold | None:
    """The lowest threshold found for which the precision above it is at least ``target``.

    Args:
        probability: (N,) of images that the probabilities were not fitted on.
        right: (N,) whether the label was right.
        target: precision in (0, 1).
        confidence: how sure the promise is, in (0, 1).

    Returns:
        None if the images cannot show it: too few, or too many of them wrong.
    """
    order = np.argsort(-probability, kind="stable")
    best: Threshold | None = None
    for count in _sequence(len(order), target, confidence):
        value = float(probability[order[count - 1]])
        reached = probability >= value
        accepted, correct = int(reached.sum()), int(right[reached].sum())
        if lower_bound(correct, accepted, confidence) < target:
            break
        best = Threshold(max(value - _SLACK, _SLACK), accepted, correct)
    return best


def likely_threshold(probability: Doubles, right: Bools, *, target: float) -> Threshold | None:
    """The lowest threshold above which the probabilities themselves are ``target`` on average; promises nothing.

    Returns:
        None if not even the most probable label reaches it.
    """
    order = np.argsort(-probability, kind="stable")
    means = np.cumsum(probability[order]) / np.arange(1, len(order) + 1)
    reached = np.flatnonzero(means >= target)
    if not len(reached):
        return None
    value = float(probability[order[reached[-1]]])
    above = probability >= value
    return Threshold(max(value - _SLACK, _SLACK), int(above.sum()), int(right[above].sum()))


def lower_bound(right: int, n: int, confidence: float) -> float:
    """Clopper and Pearson's lower bound on a share of which ``right`` of ``n`` were seen."""
    if right == 0:
        return 0.0
    stats: Any = require("scipy.stats", purpose="promise a precision")
    return float(stats.beta.ppf(1 - confidence, right, n - right + 1))


def fewest_images(target: float, confidence: float) -> int:
    """How many images without an error a promise takes."""
    return int(np.ceil(np.log(1 - confidence) / np.log(target)))


def _sequence(n: int, target: float, confidence: float) -> Iterator[int]:
    """Numbers of images from a tenth of n to n: the fewest that pass with 0, 1, 2, … errors; at least the last."""
    errors, counts = 0, []
    while (count := _fewest(errors, target, confidence)) <= n:
        counts.append(count)
        errors += 1
    yield from [count for count in counts if count >= _FIRST * n] or counts[-1:]


@lru_cache(maxsize=4096)
def _fewest(errors: int, target: float, confidence: float) -> int:
    """The fewest images that pass with so many errors."""
    low, high = errors + 1, errors + 2
    while lower_bound(high - errors, high, confidence) < target:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if lower_bound(middle - errors, middle, confidence) >= target:
            high = middle
        else:
            low = middle + 1
    return high
