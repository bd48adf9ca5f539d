"""A prompt table and labelled embeddings in; temperature, probabilities and thresholds with their promises out.

What is said of the fit (calibration error, precision, recall) and the thresholds come from images that the
probabilities in question were not fitted on: 25 folds, each told by a fit to all others. The decisions themselves
are then fitted to all images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from edgeclip.calibration.decisions.confidence import NONE, Labelled, Labels, fit_confidence, fit_temperature
from edgeclip.calibration.decisions.precision_bound import (
    Bools,
    Threshold,
    fewest_images,
    likely_threshold,
    promised_threshold,
)
from edgeclip.decisions import ClassDecision, DecisionFacts, Decisions, Doubles, Promise, Sure, look_at, sigmoid
from edgeclip.errors import InputError
from edgeclip.extras import require
from edgeclip.key_cache import FloatArray
from edgeclip.printable import counted
from edgeclip.prompts import PromptTable
from edgeclip.runtime.scoring import Scorer
from edgeclip.spec import EncoderSpec

_FOLDS = 25
_FEWEST = 10  # images whose label may be reported
_CURVE = 60  # points of precision by acceptance
_BINS = 15  # of reliability


@dataclass(frozen=True)
class FitOptions:
    """What is asked of the decisions.

    Attributes:
        target: precision that thresholds are to keep, in (0, 1).
        confidence: how sure each promise is by itself, in (0, 1).
        seed: of the folds.

    Raises:
        InputError: a value out of range.
    """

    target: float = 0.95
    confidence: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("precision target", self.target), ("confidence", self.confidence)):
            if not 0 < value < 1:
                raise InputError(f"expected a {name} above 0 and below 1, got {value}")


class Bin(msgspec.Struct, frozen=True):
    """Images whose probability lies in one bin: how many, their mean probability, and the share that is right."""

    n: int
    probability: float
    right: float


class Reported(msgspec.Struct, frozen=True):
    """Precision and share of all images at one threshold."""

    share: float
    precision: float


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a fit showed, on images that were not fitted on.

    Attributes:
        variant, table: what was fitted.
        images, known: labelled images, and those of a class of the table.
        figures: ``top1`` of known images; calibration errors ``ece_before``, ``ece_temperature`` and ``ece_after``;
            ``auroc_cosine``, of the largest cosine, and ``auroc_after``, of the probability of any class, by which
            known images are told from others (absent without others); ``precision``, ``recall`` and ``abstention`` at
            the thresholds.
        before, after: reliability of the best class's score and of its calibrated probability.
        curve: precision by the share of images that is reported, by falling probability.
        classes: by label.
        notes: what cannot be promised, and what follows from how the data are.
    """

    variant: str
    table: str
    images: int
    known: int
    figures: dict[str, float]
    before: list[Bin]
    after: list[Bin]
    curve: list[Reported]
    classes: dict[str, ClassDecision]
    notes: list[str]


@dataclass(frozen=True)
class Fitted:
    """Decisions, and what was seen when they were fitted."""

    decisions: Decisions
    report: FitReport


def fit_decisions(
    table: PromptTable,
    encoder: EncoderSpec,
    embeddings: FloatArray,
    truth: Labels,
    options: FitOptions,
    *,
    variant: str,
    graph: str,
    engine: str = "",
    data: str = "",
) -> Fitted:
    """Fit the decisions of one variant.

    Args:
        table: whose rows are scored; decisions that it has already do not matter.
        encoder: scale, bias and kind of score.
        embeddings: (N, D) float32 of unit length, made by that variant.
        truth: (N,) row of the table, or ``NONE`` for images of none of its classes; background rows count as none.
        variant, graph, engine, data: what the decisions are bound to, see ``DecisionFacts``.

    Raises:
        InputError: too few images, only unknown ones, or none that the table labels rightly.
    """
    scorer = Scorer(table, encoder)
    background = np.array(sorted(scorer.background), np.int64)
    truth = np.where(np.isin(truth, background), NONE, truth)
    images = Labelled(embeddings, scorer.logits(embeddings), truth)
    best = look_at(images.logits).best
    counts = np.bincount(truth[truth != NONE], minlength=len(scorer.labels))
    judged = ~np.isin(best, background) & (counts[best] > 0)
    _require_enough(table, images, judged, best)

    # Of images that were not fitted on. The matrices are small: threads would wait for each other.
    with threadpool_limits(1):
        known, probability = _out_of_fold(images, judged, options.seed)
        confidence = fit_confidence(images, judged)
    right = best == truth
    thresholds = _thresholds(scorer, best, probability, right, judged, counts, options)
    values = np.array([thresholds[label].threshold if label in thresholds else 1.0 for label in scorer.labels])
    reported = judged & (probability >= values[best])

    # Of all.
    temperature = fit_temperature(images, sigmoid_scores=encoder.score == "sigmoid")
    report = FitReport(
        variant=variant,
        table=table.name,
        images=len(truth),
        known=int((truth != NONE).sum()),
        figures=_figures(scorer, encoder, images, judged, Sure(known, probability), reported, temperature),
        before=reliability(_best_score(images.logits, encoder)[judged], right[judged]),
        after=reliability(probability[judged], right[judged]),
        curve=_curve(probability, right & judged),
        classes=thresholds,
        notes=_notes(thresholds, truth, options),
    )
    facts = DecisionFacts(
        variant=variant,
        graph=graph,
        rows=table.rows_hash,
        temperature=temperature,
        classes=thresholds,
        target=options.target,
        confidence=options.confidence,
        data=data,
        figures={"images": float(len(truth)), "known": float(report.known), **report.figures},
        engine=engine,
    )
    return Fitted(Decisions(facts, confidence), report)


def _require_enough(table: PromptTable, images: Labelled, judged: Bools, best: npt.NDArray[np.intp]) -> None:
    known = images.truth != NONE
    if not known.any():
        raise InputError(
            f"expected labelled images of classes of table {table.name!r}, got {len(known)} of none of them: add some, "
            "or fit without labels with `footage`"
        )
    if judged.sum() < _FEWEST:
        raise InputError(
            f"expected at least {_FEWEST} labelled images that the table puts into a class which has some, got "
            f"{int(judged.sum())} of {len(known)}: label more, five a class to begin with"
        )
    if not (best == images.truth)[judged].any():
        raise InputError(
            f"expected table {table.name!r} to be right about some of {int(known.sum())} images, got none: check that "
            "the labels are those of this table, and what edgeclip eval says"
        )


def _out_of_fold(images: Labelled, judged: Bools, seed: int) -> Sure:
    """How sure a fit to the other folds is of each image; 0 where it is not judged."""
    count = len(images.truth)
    fold = np.empty(count, np.int64)
    fold[np.random.default_rng(seed).permutation(count)] = np.arange(count) % min(_FOLDS, count)
    sure = Sure(np.zeros(count), np.zeros(count))
    for number in range(fold.max() + 1):
        own = (fold == number) & judged
        others = fold != number
        if own.any():
            model = fit_confidence(images.take(others), judged[others])
            part = images.take(own)
            sure.known[own], sure.right[own] = model.of(look_at(part.logits), part.embeddings)
    return sure


def _thresholds(
    scorer: Scorer,
    best: npt.NDArray[np.intp],
    probability: Doubles,
    right: Bools,
    judged: Bools,
    counts: npt.NDArray[np.intp],
    options: FitOptions,
) -> dict[str, ClassDecision]:
    """A class's own threshold where its images can show the target; one for all others together; else a likely one."""
    rows = [row for row in range(len(scorer.labels)) if not scorer.is_background(row)]
    asked = {"target": options.target, "confidence": options.confidence}
    own: dict[int, Threshold] = {}
    for row in rows:
        mine = judged & (best == row)
        if found := promised_threshold(probability[mine], right[mine], **asked):
            own[row] = found
    rest = judged & ~np.isin(best, list(own))
    shared: Threshold | None = promised_threshold(probability[rest], right[rest], **asked)
    promise: Promise = "together"
    if not shared and own:  # with the better classes among them they may reach it
        shared = promised_threshold(probability[judged], right[judged], **asked)
    if not shared:
        promise = "none"
        shared = likely_threshold(probability[rest], right[rest], target=options.target)
    decided = {}
    for row in rows:
        value = own[row].value if row in own else shared.value if shared else 1.0
        reached = judged & (best == row) & (probability >= value)
        decided[scorer.labels[row]] = ClassDecision(
            threshold=value,
            promise="own" if row in own else promise if counts[row] else "none",
            images=int(counts[row]),
            accepted=int(reached.sum()),
            right=int(right[reached].sum()),
        )
    return decided


def _figures(
    scorer: Scorer,
    encoder: EncoderSpec,
    images: Labelled,
    judged: Bools,
    sure: Sure,
    reported: Bools,
    temperature: float,
) -> dict[str, float]:
    best, known = images.logits.argmax(axis=1), images.truth != NONE
    right = best == images.truth
    of_interest = [row for row in range(len(scorer.labels)) if not scorer.is_background(row)]
    cosine = (images.embeddings @ scorer.table.embeddings[of_interest].T).max(axis=1)
    before, scaled = (_best_score(logits, encoder) for logits in (images.logits, images.logits / temperature))
    found = {
        "top1": float(right[known].mean()),
        "ece_before": calibration_error(before[judged], right[judged]),
        "ece_temperature": calibration_error(scaled[judged], right[judged]),
        "ece_after": calibration_error(sure.right[judged], right[judged]),
        "auroc_cosine": separation(cosine.astype(np.float64), known),
        "auroc_after": separation(sure.known, known),
        "precision": float(right[reported].mean()) if reported.any() else None,
        "recall": float((reported & right).sum() / known.sum()),
        "abstention": float(1 - reported.mean()),
    }
    return {name: value for name, value in found.items() if value is not None}


def _best_score(logits: FloatArray, encoder: EncoderSpec) -> Doubles:
    """The best class's softmax or sigmoid (N,) of logits (N, C)."""
    if encoder.score == "sigmoid":
        return sigmoid(logits.max(axis=1).astype(np.float64))
    special: Any = require("scipy.special", purpose="fit decisions")
    best: Doubles = special.softmax(logits.astype(np.float64), axis=1).max(axis=1)
    return best


def reliability(probability: Doubles, right: Bools) -> list[Bin]:
    """Of probabilities (N,) and what came true: the non-empty of 15 equally wide bins over (0, 1], lowest first."""
    place = np.clip(np.ceil(probability * _BINS).astype(int) - 1, 0, _BINS - 1)
    counts = np.bincount(place, minlength=_BINS)
    said = np.bincount(place, weights=probability, minlength=_BINS)
    true = np.bincount(place, weights=right, minlength=_BINS)
    return [Bin(int(n), float(p / n), float(t / n)) for n, p, t in zip(counts, said, true, strict=True) if n]


def calibration_error(probability: Doubles, right: Bools) -> float:
    """Expected calibration error (Guo et al. 2017): the mean distance of probability and share right, over images.

    With few images it is above zero for perfect probabilities too, as each bin's share is off by chance.
    """
    found = reliability(probability, right)
    return sum(each.n * abs(each.probability - each.right) for each in found) / max(1, len(probability))


def separation(score: Doubles, known: Bools) -> float | None:
    """AUROC: the chance that an image of a class scores above one of none, ties counting half; None without either."""
    if known.all() or not known.any():
        return None
    metrics: Any = require("sklearn.metrics", purpose="fit decisions")
    return float(metrics.roc_auc_score(known, score))


def _curve(probability: Doubles, right: Bools) -> list[Reported]:
    order = np.argsort(-probability, kind="stable")
    precision = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    counts = np.unique(np.linspace(1, len(order), _CURVE).round().astype(int))
    return [Reported(float(count / len(order)), float(precision[count - 1])) for count in counts]


def _notes(thresholds: dict[str, ClassDecision], truth: Labels, options: FitOptions) -> list[str]:
    promises = Counter(each.promise for each in thresholds.values())
    unknown = float((truth == NONE).mean())
    notes = [
        f"precision {options.target:g} is promised, each time with confidence {options.confidence:g} "
        f"(Clopper–Pearson), for {counted(promises['own'], 'class', 'classes')} each by itself and for "
        f"{promises['together']} together"
    ]
    if missing := [label for label, each in thresholds.items() if not each.images]:
        notes.append(
            f"{counted(len(missing), 'class', 'classes')} without a labelled image, promised nothing: "
            f"{', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}"
        )
    if promises["none"] > len(missing):
        notes.append(
            f"nothing is promised for {counted(promises['none'] - len(missing), 'class', 'classes')} with labelled "
            "images: it takes "
            f"{fewest_images(options.target, options.confidence)} reported ones without an error, or more with some; "
            "their threshold is where the probabilities are the target on average"
        )
    if any(each.threshold == 1 for each in thresholds.values()):
        notes.append("no threshold reaches the target for some classes: these are never reported")
    if few := [label for label, each in thresholds.items() if 0 < each.images < 5]:
        notes.append(
            f"{counted(len(few), 'class', 'classes')} with fewer than five labelled images: {', '.join(few[:5])}"
        )
    if unknown:
        notes.append(
            f"{unknown:.0%} of the images are of no class of the table: with more of such frames precision is lower"
        )
    else:
        notes.append("no image is of none of the classes, so what precision is among unknown frames is not known")
    return notes
