"""Similarities, or true and predicted classes, in; accuracies, confusions and recalls with their intervals out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.hits import Z95, Hits
from edgeclip.prompts import FloatArray

_RESAMPLES, _BATCH = 2000, 16  # draws of a bootstrap, and how many of them are in memory at once
_CHUNK = 1024
Ranks = npt.NDArray[np.intp]
Indices = npt.NDArray[np.integer]


class Interval95(NamedTuple):
    """A share in [0, 1] and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


class ClassAccuracy(msgspec.Struct, frozen=True):
    """Of one class: images, those labelled right, their share (None without images) and its Wilson interval."""

    label: str
    n: int
    hits: int
    accuracy: float | None
    ci95: tuple[float, float] | None


class Confusion(msgspec.Struct, frozen=True):
    """A class taken for another: how many images, and which share of the true class's."""

    truth: str
    predicted: str
    count: int
    share: float


class Recall(msgspec.Struct, frozen=True):
    """Share of N queries that find what belongs to them among the first 1, 5 and 10, each with a 95 % interval."""

    n: int
    r1: float
    r5: float
    r10: float
    r1_ci95: tuple[float, float]
    r5_ci95: tuple[float, float]
    r10_ci95: tuple[float, float]


class Predictions(NamedTuple):
    """Of N images: how many classes score above the true one, and the best class; both (N,)."""

    ranks: Ranks
    predicted: Ranks


def predictions(images: FloatArray, classes: FloatArray, truth: Indices) -> Predictions:
    """Score unit embeddings (N, D) against unit rows (C, D), a chunk at a time. A tie counts against the true class."""
    ranks, best = np.empty(len(images), np.intp), np.empty(len(images), np.intp)
    for start in range(0, len(images), _CHUNK):
        part = slice(start, start + _CHUNK)
        similarities = images[part] @ classes.T
        ranks[part] = true_class_ranks(similarities, truth[part])
        own = (np.arange(len(similarities)), truth[part])
        similarities[own] = np.nextafter(similarities[own], np.float32(-np.inf))  # of a tie, the other class
        best[part] = similarities.argmax(axis=1)
    return Predictions(ranks, best)


def true_class_ranks(similarities: FloatArray, true_class: Indices) -> Ranks:
    """How many classes score above the true one, for each row of (N, C); a tie counts against the true class."""
    own = similarities[np.arange(len(true_class)), true_class][:, None]
    ranks: Ranks = (similarities >= own).sum(axis=1) - 1
    return ranks


def wilson_interval(hits: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion of n ≥ 1 (Wilson 1927): stays inside [0, 1] and holds for few samples."""
    proportion: Any = require("statsmodels.stats.proportion", purpose="give an interval")
    # SciPy's binomtest has it too, but takes milliseconds for a p value that nobody asked for.
    low, high = proportion.proportion_confint(hits, n, method="wilson")
    return float(low), float(high)


def top_k(ranks: Ranks, k: int) -> Interval95:
    """Share of the ranks (N,) below ``k``, with Wilson's interval."""
    hits = int((ranks < k).sum())
    return Interval95(hits / len(ranks), wilson_interval(hits, len(ranks)))


def per_class_accuracy(truth: Indices, right: Hits, labels: Sequence[str]) -> list[ClassAccuracy]:
    """Of each of the C classes, how many of its images are labelled right; ``right`` (N,) says which are."""
    counts = np.bincount(truth, minlength=len(labels)).tolist()
    hits = np.bincount(truth[right], minlength=len(labels)).tolist()
    return [
        ClassAccuracy(label, n, hit, hit / n if n else None, wilson_interval(hit, n) if n else None)
        for label, n, hit in zip(labels, counts, hits, strict=True)
    ]


def balanced_accuracy(truth: Indices, right: Hits) -> Interval95:
    """Mean over the classes that have images of each one's accuracy.

    The interval is for other images of the same classes in the same numbers: the normal one, from the variance within
    each class, p (1 − p) / (n − 1); of a class that is all right or all wrong, which shows none, Jeffreys' prior's.
    """
    counts = np.bincount(truth)
    hits = np.bincount(truth[right], minlength=len(counts))[counts > 0]
    counts = counts[counts > 0]
    shares = hits / counts
    a, b = hits + 0.5, counts - hits + 0.5
    unseen = a * b / ((counts + 1) ** 2 * (counts + 2))
    variances = np.where(shares * (1 - shares) > 0, shares * (1 - shares) / np.maximum(counts - 1, 1), unseen)
    value, half = float(shares.mean()), Z95 * math.sqrt(variances.sum()) / len(counts)
    return Interval95(value, (max(0.0, value - half), min(1.0, value + half)))


def confusions(truth: Indices, predicted: Indices, labels: Sequence[str], *, most: int = 20) -> list[Confusion]:
    """The pairs of classes that are confused most often, by count."""
    wrong = truth != predicted
    pairs, counts = np.unique(truth[wrong] * np.int64(len(labels)) + predicted[wrong], return_counts=True)
    totals = np.bincount(truth, minlength=len(labels))
    found = []
    for at in np.lexsort((pairs, -counts))[:most]:
        true, other = divmod(int(pairs[at]), len(labels))
        found.append(Confusion(labels[true], labels[other], int(counts[at]), int(counts[at]) / int(totals[true])))
    return found


def text_to_image_ranks(captions: FloatArray, images: FloatArray, own: Indices) -> Ranks:
    """Of each of M captions, how many of N images are at least as near as its own, which ``own`` (M,) names.

    Args:
        captions, images: unit rows (M, D) and (N, D).
    """
    return predictions(captions, images, own).ranks


def image_to_text_ranks(captions: FloatArray, images: FloatArray, own: Indices) -> Ranks:
    """Of each of N images, how many captions of others are at least as near as the nearest of its own.

    Raises:
        InputError: an image has no caption.
    """
    if len(without := np.setdiff1d(np.arange(len(images)), own)):
        raise InputError(f"expected a caption of every image, got none of {len(without)} of them: leave these out")
    ranks = np.empty(len(images), np.intp)
    for start in range(0, len(images), _CHUNK):
        mine = np.arange(start, min(start + _CHUNK, len(images)))
        similarities = images[mine] @ captions.T
        theirs = own[None, :] == mine[:, None]
        best = np.where(theirs, similarities, -np.inf).max(axis=1, keepdims=True)
        ranks[mine] = ((similarities >= best) & ~theirs).sum(axis=1)
    return ranks


def recall(ranks: Ranks, groups: Indices | None = None, *, seed: int = 0) -> Recall:
    """R@1, R@5 and R@10 of the ranks (N,) of what was looked for.

    Args:
        groups: (N,) number of the image that a query belongs to. Captions of one image succeed and fail together, so
            with groups the interval is a bootstrap's over images (percentiles of 2,000), or, where all or none are
            found, Wilson's over as many images; without, Wilson's over the queries.
    """
    shares, intervals = zip(*(top_k(ranks, k) for k in (1, 5, 10)), strict=True)
    if groups is not None:
        intervals = tuple(_grouped(ranks < k, groups, seed) for k in (1, 5, 10))
    return Recall(len(ranks), *shares, *intervals)


def _grouped(hits: Hits, groups: Indices, seed: int) -> tuple[float, float]:
    sizes = np.bincount(groups)
    won = np.bincount(groups[hits], minlength=len(sizes))[sizes > 0]
    sizes = sizes[sizes > 0]
    count, share = len(sizes), won.sum() / sizes.sum()
    if count == 1 or share in {0, 1}:  # draws from these are all alike, and would say that nothing is uncertain
        return wilson_interval(share * count, count)
    stats: Any = require("scipy.stats", purpose="give an interval")
    drawn = stats.bootstrap(
        (won, sizes),
        lambda won, sizes, axis: won.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=seed,
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
