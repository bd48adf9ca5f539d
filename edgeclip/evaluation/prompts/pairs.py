"""Class rows and labelled embeddings in, pairs of classes whose names are closer than their images out.

Two classes are told apart by their text where an image of either has the higher cosine with its own class's row; by
their images where it has the higher cosine with the mean of its own class's other images. Both are counted over the
same images, so their difference has a paired interval. Text that tells fewer apart is to blame on the names; where the
images do no better, no name can help.
"""

from __future__ import annotations

import msgspec
import numpy as np

from edgeclip.evaluation.prompts.rows import IntArray
from edgeclip.evaluation.statistics.metrics import predictions
from edgeclip.evaluation.statistics.paired import Hits, PairedDifference, paired_difference
from edgeclip.evaluation.statistics.significance import binomial_tail, holm, mcnemar_p
from edgeclip.prompts import FloatArray, unit_rows

SEPARABLE = 0.8  # of a pair's images: below it, two classes count as alike
CONFUSED = 0.05  # of a pair's images: if fewer get the other's label, other classes are what they are taken for
_FEWEST = 3  # images a class: fewer say nothing of what lies between them
_LEAST_PAIRS = 3

NAMES, ALIKE, APART, TEXT_ONLY = "names", "alike", "apart", "text only"


class Pair(msgspec.Struct, frozen=True):
    """Two classes.

    Attributes:
        text_cosine: between their rows.
        closer_than: share of all pairs of classes whose rows are further apart.
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
    closer_than: float
    images: tuple[int, int]
    confusions: tuple[int, int]
    text_right: float | None = None
    images_right: float | None = None
    gap: PairedDifference | None = None
    verdict: str = TEXT_ONLY


class PairStudy(msgspec.Struct, frozen=True):
    """Pairs that were looked at.

    Attributes:
        nearest: pairs of a class and the one whose row is nearest, of them the closest, half as many as classes. No
            image chose them, so what is said of them holds.
        confused: pairs with most confusions. They were chosen for that: their gap flatters the images.
    """

    nearest: list[Pair]
    confused: list[Pair]


def study_pairs(
    rows: FloatArray,
    names: tuple[str, ...],
    images: FloatArray,
    labels: IntArray,
    *,
    alpha: float,
    most_confused: int = 10,
) -> PairStudy:
    """Compare how well text and images tell classes apart.

    Args:
        rows: (C, D) unit rows of the classes.
        names: C labels.
        images, labels: (N, D) unit embeddings and (N,) their classes; N may be 0.
        alpha: chance of any wrong verdict ``names`` or ``alike`` among all nearest pairs.
    """
    cosines = rows @ rows.T  # (C, C)
    every = np.sort(cosines[np.triu_indices(len(rows), 1)])
    np.fill_diagonal(cosines, -1)
    said = predictions(images, rows, labels).predicted
    confusion = np.zeros((len(rows), len(rows)), np.int64)
    np.add.at(confusion, (labels, said), 1)
    sums = np.stack([images[labels == index].sum(axis=0) for index in range(len(rows))])  # (C, D)

    def pair(first: int, second: int) -> Pair:
        own = [int((labels == index).sum()) for index in (first, second)]
        plain = Pair(
            names[first],
            names[second],
            text_cosine=float(cosines[first, second]),
            closer_than=float((every < cosines[first, second]).mean()),
            images=(own[0], own[1]),
            confusions=(int(confusion[first, second]), int(confusion[second, first])),
        )
        if min(own) < _FEWEST:
            return plain
        text, nearest = _told_apart(rows, sums, images, labels, first, second)
        return msgspec.structs.replace(
            plain,
            text_right=float(text.mean()),
            images_right=float(nearest.mean()),
            gap=paired_difference(text, nearest),
            verdict=APART,
        )

    neighbours = {(min(a, b), max(a, b)) for a, b in enumerate(cosines.argmax(axis=1).tolist())}
    closest = sorted(neighbours, key=lambda both: (-cosines[both], both))[: max(_LEAST_PAIRS, (len(rows) + 1) // 2)]
    found = _judge([pair(*both) for both in closest], alpha)
    both_ways = np.triu(confusion + confusion.T, 1)
    order = np.argsort(-both_ways, axis=None, kind="stable")[:most_confused]
    worst = [divmod(int(flat), len(rows)) for flat in order if both_ways.flat[flat]]
    known = {(item.first, item.second): item for item in found}
    return PairStudy(found, [known.get((names[a], names[b])) or pair(a, b) for a, b in worst])


def _told_apart(
    rows: FloatArray, sums: FloatArray, images: FloatArray, labels: IntArray, first: int, second: int
) -> tuple[Hits, Hits]:
    """Which of the two classes' images their text rows label right, and which the means of the other images do."""
    text: list[Hits] = []
    centroid: list[Hits] = []
    for own, other in ((first, second), (second, first)):
        mine = images[labels == own]  # (M, D)
        text.append(mine @ rows[own] > mine @ rows[other])
        rest = unit_rows(sums[own] - mine)  # each image has no say in its own mean
        centroid.append((mine * rest).sum(axis=1) > mine @ unit_rows(sums[other][None])[0])
    return np.concatenate(text), np.concatenate(centroid)


def _judge(pairs: list[Pair], alpha: float) -> list[Pair]:
    """Verdicts of which, together, any is wrong with probability ``alpha`` at most."""
    tested = [item for item in pairs if item.gap]
    p_values: list[float] = []
    for item in tested:
        assert item.gap is not None
        assert item.images_right is not None
        # Only one direction is ever claimed, and it is fixed beforehand: half of the two-sided value.
        better = item.gap.only_candidate > item.gap.only_reference
        p_names = mcnemar_p(item.gap.only_reference, item.gap.only_candidate) / 2 if better else 1.0
        p_values += [p_names, binomial_tail(round(item.images_right * item.gap.n), item.gap.n, SEPARABLE)]
    adjusted = iter(holm(p_values))
    verdict: dict[tuple[str, str], str] = {}
    for item in tested:
        names, alike = next(adjusted) <= alpha, next(adjusted) <= alpha
        if sum(item.confusions) >= CONFUSED * sum(item.images):
            verdict[item.first, item.second] = ALIKE if alike else NAMES if names else APART
    return [
        msgspec.structs.replace(item, verdict=verdict.get((item.first, item.second), item.verdict)) for item in pairs
    ]
