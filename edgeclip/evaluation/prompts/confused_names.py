"""Class rows and labelled embeddings in, pairs of classes whose names are closer than their images out.

Two classes are told apart by their text where an image of either has the higher cosine with its own class's row; by
their images where it has the higher cosine with the mean of its own class's other images. Both are counted over the
same images, so their difference has a paired interval. Text that tells fewer apart is to blame on the names; where the
images do no better, no name can help.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgeclip.evaluation.prompts.rows import IntArray
from edgeclip.evaluation.statistics.metrics import predictions
from edgeclip.evaluation.statistics.paired import PairedDifference, holm, mcnemar_p, paired_difference
from edgeclip.extras import require
from edgeclip.hits import Hits
from edgeclip.prompts import FloatArray, unit_rows

SEPARABLE = 0.8  # of a pair's images: below it, two classes count as alike
CONFUSED = 0.05  # of a pair's images: if fewer get the other's label, other classes are what they are taken for
_FEWEST = 3  # images a class: fewer say nothing of what lies between them
_LEAST_PAIRS = 3
_MOST_CONFUSED = 10

NAMES, ALIKE, APART, TEXT_ONLY = "names", "alike", "apart", "text only"


class ConfusedNames(msgspec.Struct, frozen=True):
    """Two classes that may be taken for each other.

    Attributes:
        text_cosine: between their rows.
        images: of each; the text alone speaks where one has fewer than three.
        confusions: images of the first labelled as the second, and the other way round, out of all classes.
        text_right, images_right: share of the pair's images that text, and that the other images, tell apart.
        gap: the latter less the former.
        verdict: ``names`` (names closer than images), ``alike`` (the images are no further apart), ``apart`` (neither
            is shown) or ``text only`` (too few images). The first two need confusions of one image in 20.
    """

    first: str
    second: str
    text_cosine: float
    images: tuple[int, int]
    confusions: tuple[int, int]
    text_right: float | None = None
    images_right: float | None = None
    gap: PairedDifference | None = None
    verdict: str = TEXT_ONLY


def confused_names(
    rows: FloatArray, names: tuple[str, ...], images: FloatArray, labels: IntArray, *, alpha: float
) -> tuple[list[ConfusedNames], list[ConfusedNames]]:
    """Compare how well text and images tell classes apart.

    Args:
        rows: (C, D) unit rows of the classes.
        names: C labels.
        images, labels: (N, D) unit embeddings and (N,) their classes.
        alpha: chance of any wrong verdict ``names`` or ``alike`` among the nearest pairs.

    Returns:
        The nearest: pairs of a class and the one whose row is nearest, of them the closest, half as many as classes; no
        image chose them, so what is said of them holds. And the most confused: their gap flatters the images.
    """
    cosines = rows @ rows.T  # (C, C)
    np.fill_diagonal(cosines, -1)
    confusion = np.zeros((len(rows), len(rows)), np.int64)
    np.add.at(confusion, (labels, predictions(images, rows, labels).predicted), 1)

    def pair(first: int, second: int) -> ConfusedNames:
        own = (int((labels == first).sum()), int((labels == second).sum()))
        plain = ConfusedNames(
            names[first],
            names[second],
            text_cosine=float(cosines[first, second]),
            images=own,
            confusions=(int(confusion[first, second]), int(confusion[second, first])),
        )
        if min(own) < _FEWEST:
            return plain
        text, nearest = _told_apart(rows, images, labels, first, second)
        return msgspec.structs.replace(
            plain,
            text_right=float(text.mean()),
            images_right=float(nearest.mean()),
            gap=paired_difference(text, nearest),
            verdict=APART,
        )

    neighbours = {(min(a, b), max(a, b)) for a, b in enumerate(cosines.argmax(axis=1).tolist())}
    closest = sorted(neighbours, key=lambda both: (-cosines[both], both))[: max(_LEAST_PAIRS, (len(rows) + 1) // 2)]
    nearest = _judge([pair(*both) for both in closest], alpha)
    both_ways = np.triu(confusion + confusion.T, 1)
    order = np.argsort(-both_ways, axis=None, kind="stable")[:_MOST_CONFUSED]
    worst = [divmod(int(flat), len(rows)) for flat in order if both_ways.flat[flat]]
    known = {(item.first, item.second): item for item in nearest}
    return nearest, [known.get((names[a], names[b])) or pair(a, b) for a, b in worst]


def _told_apart(rows: FloatArray, images: FloatArray, labels: IntArray, first: int, second: int) -> tuple[Hits, Hits]:
    """Which of the two classes' images their text rows label right, and which the means of the other images do."""
    text: list[Hits] = []
    centroid: list[Hits] = []
    for own, other in ((first, second), (second, first)):
        mine, theirs = images[labels == own], images[labels == other]  # (M, D), (L, D)
        text.append(mine @ rows[own] > mine @ rows[other])
        rest = unit_rows(mine.sum(axis=0) - mine)  # each image has no say in its own mean
        centroid.append((mine * rest).sum(axis=1) > mine @ unit_rows(theirs.sum(axis=0)[None])[0])
    return np.concatenate(text), np.concatenate(centroid)


def _judge(pairs: list[ConfusedNames], alpha: float) -> list[ConfusedNames]:
    """Verdicts of which, together, any is wrong with probability ``alpha`` at most."""
    stats: Any = require("scipy.stats", purpose="judge class names")
    p_values: list[float] = []
    for item in pairs:
        if item.gap and item.images_right is not None:
            right = round(item.images_right * item.gap.n)
            alike = stats.binomtest(right, item.gap.n, SEPARABLE, alternative="less").pvalue
            p_values += [mcnemar_p(item.gap, alternative="greater"), float(alike)]
    adjusted = iter(holm(p_values))
    judged = []
    for item in pairs:
        verdict = item.verdict
        if item.gap:
            closer, alike = next(adjusted) <= alpha, next(adjusted) <= alpha
            if sum(item.confusions) >= CONFUSED * sum(item.images):
                verdict = ALIKE if alike else NAMES if closer else APART
        judged.append(msgspec.structs.replace(item, verdict=verdict))
    return judged
