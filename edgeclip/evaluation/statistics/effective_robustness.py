"""Accuracies of several models, clean and under shift, in; what one keeps beyond what its clean accuracy predicts out.

Effective robustness is that of Taori and others ("Measuring robustness to natural distribution shifts in image
classification", 2020): a line is fitted to logit(shift accuracy) over logit(clean accuracy) of ordinary models, and a
model's effective robustness is its shift accuracy less what the line predicts for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from edgeclip.errors import InputError
from edgeclip.extras import require

LEAST_MODELS = 3
_LEAST_SPREAD = 0.1  # of clean logits, standard deviation; below it a slope is noise


class Effective(msgspec.Struct, frozen=True):
    """A model's effective robustness.

    Attributes:
        points: shift accuracy less the line's prediction, percentage points.
        ci95: from the line's 95 % prediction interval for one more model (Student's t): with few models it is wide.
        predicted: shift accuracy that the line gives a model of this clean accuracy.
        models: that the line was fitted to.
    """

    points: float
    ci95: tuple[float, float]
    predicted: float
    models: int


class Line(msgspec.Struct, frozen=True):
    """A fit of logit(shift) = ``intercept`` + ``slope`` · logit(clean).

    Attributes:
        n: models.
        mean, spread: mean of the clean logits, and the sum of their squared distances from it.
        residual: standard deviation of what the line leaves, n - 2 degrees of freedom.
    """

    slope: float
    intercept: float
    n: int
    mean: float
    spread: float
    residual: float


def logit(accuracy: float, n: int) -> float:
    """Log odds of an accuracy over ``n`` images; none and all right are taken as half an image away from it."""
    held = min(max(accuracy, 0.5 / n), 1 - 0.5 / n)
    return math.log(held / (1 - held))


def fit_line(clean: Sequence[float], shift: Sequence[float], *, n: int) -> Line:
    """Fit the baseline by least squares.

    Args:
        clean, shift: accuracies in [0, 1], one a model.
        n: images that they were measured on.

    Raises:
        InputError: fewer than three models, or clean accuracies that lie too close together for a slope.
    """
    if len(clean) != len(shift) or len(clean) < LEAST_MODELS:
        raise InputError(
            f"expected the results of {LEAST_MODELS} models or more for a baseline, got {len(clean)}: a line through "
            "fewer says nothing"
        )
    x = np.array([logit(value, n) for value in clean])
    y = np.array([logit(value, n) for value in shift])
    if x.std() < _LEAST_SPREAD:
        raise InputError(
            f"expected baseline models of different accuracy, got {min(clean):.3f} to {max(clean):.3f} on clean images"
            ": a line needs some that are clearly better than others"
        )
    slope, intercept = np.polyfit(x, y, 1)
    left = y - (intercept + slope * x)
    spread = float(((x - x.mean()) ** 2).sum())
    return Line(
        float(slope), float(intercept), len(x), float(x.mean()), spread, math.sqrt(float(left @ left) / (len(x) - 2))
    )


def effective_robustness(line: Line, clean: float, shift: float, *, n: int) -> Effective:
    """Hold one model against the line.

    Args:
        clean, shift: its accuracies in [0, 1]; it should not be among the models of the line.
        n: images that they were measured on.

    Raises:
        MissingExtraError: SciPy, for Student's t, is not installed.
    """
    stats = require("scipy.stats", purpose="give a prediction interval", extra="train")
    x = logit(clean, n)
    predicted = line.intercept + line.slope * x
    width = line.residual * math.sqrt(1 + 1 / line.n + (x - line.mean) ** 2 / line.spread)
    half = float(stats.t.ppf(0.975, line.n - 2)) * width
    low, middle, high = (_accuracy(value) for value in (predicted - half, predicted, predicted + half))
    return Effective(100 * (shift - middle), (100 * (shift - high), 100 * (shift - low)), middle, line.n)


def _accuracy(log_odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(log_odds, -700), 700)))
