"""Times of rounds in; intervals, and whether two differ beyond their noise, out.

Times within a round hang together (caches, clocks, other programs), so they are not N independent samples; rounds,
minutes apart and interleaved with others, nearly are. Intervals and comparisons are over rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from edgeclip.devices.sensors.energy import t95
from edgeclip.errors import InputError

LEAST_ROUNDS = 3


class Interval(msgspec.Struct, frozen=True):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f}–{self.high:.2f})"


class Ratio(msgspec.Struct, frozen=True):
    """How many times as long the second takes as the first, with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether 1 lies outside the interval."""
        return not self.low <= 1.0 <= self.high

    def __str__(self) -> str:
        if not self.differs:
            return f"no difference beyond noise ({self.ratio:.2f} times, 95 % {self.low:.2f}–{self.high:.2f})"
        slower, times = self.ratio > 1, max(self.ratio, 1 / self.ratio)
        bounds = (self.low, self.high) if slower else (1 / self.high, 1 / self.low)
        return f"{times:.2f} times as {'slow' if slower else 'fast'} (95 % {bounds[0]:.2f}–{bounds[1]:.2f})"


def interval_of_rounds(values: Sequence[float]) -> Interval:
    """Mean of the rounds' values and Student's 95 % interval; without width where there is one round."""
    rounds = np.asarray(values, np.float64)
    mean = float(rounds.mean())
    half = _half_width(rounds)
    return Interval(mean, mean - half, mean + half)


def compare_rounds(first: Sequence[float], second: Sequence[float], *, paired: bool) -> Ratio:
    """How the second's times stand to the first's, by the logarithms of their rounds' values.

    Args:
        paired: the rounds of both were run in turns, one after the other, so that what slows the machine slows both.
            Otherwise Welch's interval of two independent sets.

    Raises:
        InputError: a single round, which has no interval; or ``paired`` rounds that are not as many.
    """
    if min(len(first), len(second)) < 2:
        raise InputError(f"expected two rounds or more to compare, got {len(first)} and {len(second)}: measure again")
    if paired and len(first) != len(second):
        raise InputError(f"expected as many rounds of both, run in turns, got {len(first)} and {len(second)}")
    a, b = np.log(np.asarray(first, np.float64)), np.log(np.asarray(second, np.float64))
    if paired:
        difference = b - a
        centre, half = float(difference.mean()), _half_width(difference)
    else:
        centre = float(b.mean() - a.mean())
        half = _welch(a, b)
    return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half))


def _welch(a: np.typing.NDArray[np.float64], b: np.typing.NDArray[np.float64]) -> float:
    """Half of Welch's 95 % interval of the difference of two means."""
    va, vb = (float(values.var(ddof=1)) / len(values) for values in (a, b))
    if va + vb == 0.0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return t95(freedom) * math.sqrt(va + vb)


def _half_width(values: np.typing.NDArray[np.float64]) -> float:
    if len(values) < 2:
        return 0.0
    return t95(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
