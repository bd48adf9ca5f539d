"""Embeddings, logits and true rows in; how sure a best class is to be right (``Confidence``) out.

Ridge regression of the classes on the embeddings, whose leave-one-out values are exact; and on what it and the logits
say, logistic regression of "the frame shows one of the classes", and of "then the best class is right", with an offset
for each class. All are shrunk, so that five images a class are enough to begin with, and have one optimum: nothing
depends on a seed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeclip.decisions import FEATURES, Confidence, Doubles, look_at, second_opinion
from edgeclip.extras import require
from edgeclip.key_cache import FloatArray

NONE = -1  # the true row of an image of none of the classes
Labels = npt.NDArray[np.int64]

_RIDGE = 0.1  # in units of the mean eigenvalue of the images' Gram matrix
_CONSTANT = 0.3  # of a regression's constant term beside embeddings of length 1, which are centred
_SHRINK_CONSTANT = 0.01  # of the logistic regressions' constant, beside 1 of all other parameters
_CERTAIN = 30.0  # of every frame showing a class, where no image of none was given


class Labelled(NamedTuple):
    """Images whose class is known.

    Attributes:
        embeddings: (N, D) float32 of unit length.
        logits: (N, C) float32 of the table.
        truth: (N,) the true row, or ``NONE``.
    """

    embeddings: FloatArray
    logits: FloatArray
    truth: Labels

    def take(self, which: npt.NDArray[Any]) -> Labelled:
        """Some of them."""
        return Labelled(self.embeddings[which], self.logits[which], self.truth[which])


def fit_confidence(images: Labelled, judged: npt.NDArray[np.bool_]) -> Confidence:
    """Fit to labelled images.

    Args:
        images: all of them teach what classes look like.
        judged: (N,) those whose best class may be reported; from them it is learned when it is right.
    """
    seen = look_at(images.logits)
    regression = _Regression(images)
    opinion = second_opinion(regression.left_out, seen.best, regression.verified)
    features = np.concatenate([seen.features, opinion], axis=1)
    mean, spread = features[judged].mean(axis=0), features[judged].std(axis=0) + 1e-9
    scaled = (features - mean) / spread
    known = images.truth != NONE
    sure = judged & known
    weights, bias = _logistic(scaled[sure], seen.best[sure], (seen.best == images.truth)[sure], images.logits.shape[1])
    any_weights, any_bias = np.zeros(FEATURES), np.full(1, _CERTAIN)
    if not known[judged].all():
        any_weights, any_bias = _logistic(scaled[judged], np.zeros(judged.sum(), np.intp), known[judged], 1)
    weights, any_weights = weights / spread, any_weights / spread
    return Confidence(
        weights=weights,
        class_bias=bias - weights @ mean,
        known=np.append(any_weights, any_bias - any_weights @ mean),
        rows=regression.rows,
        offsets=regression.offsets,
        verified=regression.verified,
    )


def fit_temperature(images: Labelled, *, sigmoid_scores: bool) -> float:
    """The temperature that makes the true rows of images of a class most likely (Guo et al. 2017)."""
    optimize: Any = require("scipy.optimize", purpose="fit decisions")
    special: Any = require("scipy.special", purpose="fit decisions")
    known = images.truth != NONE
    logits, truth = images.logits[known].astype(np.float64), images.truth[known]
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        scaled = logits * np.exp(-log_temperature)
        if sigmoid_scores:
            return float((np.logaddexp(0, scaled).sum(axis=1) - scaled[rows, truth]).mean())
        return -float(special.log_softmax(scaled, axis=1)[rows, truth].mean())

    found = optimize.minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded")
    return float(np.exp(found.x))


class _Regression:
    """Ridge regression of which class an image is of, with exact leave-one-out values (N, K + 1)."""

    def __init__(self, images: Labelled) -> None:
        self.verified: Labels = np.unique(images.truth[images.truth != NONE])
        place = np.searchsorted(self.verified, images.truth)
        target = np.eye(len(self.verified) + 1)[np.where(images.truth == NONE, len(self.verified), place)]  # (N, K + 1)
        mean = images.embeddings.mean(axis=0, dtype=np.float64)
        centred = images.embeddings.astype(np.float64) - mean
        count, width = centred.shape
        inputs = np.concatenate([centred, np.full((count, 1), _CONSTANT)], axis=1)  # (N, D + 1)
        strength = _RIDGE * np.square(centred).sum() / width + 1e-9
        inverse = np.linalg.inv(inputs.T @ inputs + strength * np.eye(width + 1))
        solution = inverse @ (inputs.T @ target)  # (D + 1, K + 1)
        leverage = np.einsum("nd,de,ne->n", inputs, inverse, inputs, optimize=True)
        self.left_out: Doubles = target - (target - inputs @ solution) / (1 - leverage)[:, None]
        self.rows: FloatArray = np.ascontiguousarray(solution[:-1].T, np.float32)
        self.offsets: Doubles = _CONSTANT * solution[-1] - mean @ solution[:-1]


def _logistic(
    features: Doubles, group: npt.NDArray[np.intp], true: npt.NDArray[np.bool_], groups: int
) -> tuple[Doubles, Doubles]:
    """Weights (9,) and offsets (G,) of ``true``, by penalised likelihood; offsets are drawn to each other."""
    sparse: Any = require("scipy.sparse", purpose="fit decisions")
    linear: Any = require("sklearn.linear_model", purpose="fit decisions")
    # A parameter is shrunk less the larger its column is: this one's makes it _SHRINK_CONSTANT.
    count, column = len(true), 1 / np.sqrt(_SHRINK_CONSTANT)
    group_of = sparse.csr_matrix((np.ones(count), (np.arange(count), group)), shape=(count, groups))
    inputs = sparse.hstack([sparse.csr_matrix(features), np.full((count, 1), column), group_of])
    # Two rows of no weight: scikit-learn wants to see both answers.
    inputs = sparse.vstack([inputs, sparse.csr_matrix((2, inputs.shape[1]))]).tocsr()
    weight = np.append(np.ones(count), [0, 0])
    model = linear.LogisticRegression(C=1.0, fit_intercept=False, tol=1e-6, max_iter=1000)
    found = model.fit(inputs, np.append(true, [True, False]), weight).coef_[0]
    return found[:FEATURES], column * found[FEATURES] + found[FEATURES + 1 :]
