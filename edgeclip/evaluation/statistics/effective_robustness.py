"""Accuracies of several models, clean and under shift, in; what one keeps beyond what its clean accuracy predicts out.

Effective robustness is that of Taori and others ("Measuring robustness to natural distribution shifts in image
classification", 2020): a line is fitted to logit(shift accuracy) over logit(clean accuracy) of ordinary models, and a
model's effective robustness is its shift accuracy less what the line predicts for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Line:
    """logit(shift) = ``intercept`` + ``slope`` · logit(clean), fitted by statsmodels to ``n`` models: ``fit``."""

    intercept: float
    slope: float
    n: int
    fit: Any


def logit(accuracy: float, n: int) -> float:
    """Log odds of an accuracy over ``n`` images; none and all right are taken as half an image away from it."""
    held = min(max(accuracy, 0.5 / n), 1 - 0.5 / n)
    return math.log(held / (1 - held))


def fit_line(clean: Sequence[float], shift: Sequence[float], *, n: int) -> Line:
    """Fit the baseline.

    Args:
        clean, shift: accuracies in [0, 1], one a model.
        n: images that they were measured on.

    Raises:
        InputError: fewer than three models, or clean accuracies that lie too close together for a slope.
        MissingExtraError: statsmodels is not installed.
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
    models: Any = require("statsmodels.api", purpose="fit a line to models")
    fit = models.OLS(y, models.add_constant(x)).fit()
    return Line(float(fit.params[0]), float(fit.params[1]), len(x), fit)


def effective_robustness(line: Line, clean: float, shift: float, *, n: int) -> Effective:
    """Hold one model against the line.

    Args:
        clean, shift: its accuracies in [0, 1]; it should not be among the models of the line.
        n: images that they were measured on.
    """
    predicted = line.fit.get_prediction([[1.0, logit(clean, n)]])
    low, high = (_accuracy(end) for end in predicted.conf_int(obs=True, alpha=0.05)[0])
    middle = _accuracy(predicted.predicted_mean[0])
    return Effective(100 * (shift - middle), (100 * (shift - high), 100 * (shift - low)), middle, line.n)


def _accuracy(log_odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(log_odds, -700), 700)))
