"""Promises, probabilities and what is said of them, each against SciPy, scikit-learn or a case worked by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import optimize, special, stats
from sklearn import metrics
from threadpoolctl import threadpool_limits

from edgeclip import EncoderSpec, PreprocessSpec, PromptTable, make_classes
from edgeclip.calibration.decisions.background import (
    FootageOptions,
    best_scores,
    describe_site,
    fit_footage,
    footage_notes,
    require_frames,
    vocabulary,
)
from edgeclip.calibration.decisions.confidence import NONE, Labelled, _logistic, _Regression, fit_confidence
from edgeclip.calibration.decisions.confidence import fit_temperature as temperature_of
from edgeclip.calibration.decisions.fit import (
    Bin,
    FitOptions,
    Reported,
    _curve,
    _figures,
    _notes,
    _out_of_fold,
    _thresholds,
    calibration_error,
    fit_decisions,
    reliability,
)
from edgeclip.calibration.decisions.precision_bound import (
    Threshold,
    fewest_images,
    likely_threshold,
    lower_bound,
    promised_threshold,
)
from edgeclip.decisions import (
    FEATURES,
    ClassDecision,
    Confidence,
    DecisionFacts,
    Decisions,
    Sure,
    current_decisions,
    look_at,
    read_decisions,
    second_opinion,
    sigmoid,
    stored_decisions,
)
from edgeclip.errors import InputError, TableError
from edgeclip.key_cache import LARGEST
from edgeclip.prompts import unit_rows
from edgeclip.runtime.scoring import Scorer
from edgeclip.tensors import open_tensors


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The matrices are small, as in a fit: threads would wait for each other."""
    with threadpool_limits(1):
        yield


WIDTH = 8
PREPROCESS = PreprocessSpec(height=8, width=8, resize_to=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SPEC = EncoderSpec(preprocess=PREPROCESS, embedding_dim=WIDTH, logit_scale=12.0)
SIGMOID = EncoderSpec(preprocess=PREPROCESS, embedding_dim=WIDTH, logit_scale=12.0, logit_bias=-5.0, score="sigmoid")


def table_of(classes: int, *, background: tuple[int, ...] = (), seed: int = 0) -> PromptTable:
    rows = unit_rows(np.random.default_rng(seed).standard_normal((classes, WIDTH)).astype(np.float32))
    labels = [f"c{row}" for row in range(classes)]
    named = make_classes(labels)
    return PromptTable("t", named, rows, ("{}",), "m", background=tuple(labels[row] for row in background))


def images_of(table: PromptTable, count: int, *, seed: int = 0, encoder: EncoderSpec = SPEC) -> Labelled:
    """Images near a class, and one in six near none."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(table.classes), count)
    truth[::6] = NONE
    centre = np.where((truth == NONE)[:, None], rng.standard_normal((count, WIDTH)) / 3, table.embeddings[truth])
    embeddings = unit_rows((centre + 0.3 * rng.standard_normal((count, WIDTH))).astype(np.float32))
    return Labelled(embeddings, Scorer(table, encoder).logits(embeddings), truth)


# Promises


@pytest.mark.parametrize(("target", "confidence"), [(0.9, 0.9), (0.95, 0.9), (0.8, 0.6), (0.5, 0.5), (0.99, 0.2)])
def test_the_fewest_images_that_pass_are_those_of_scipys_exact_bound(target: float, confidence: float) -> None:
    """A run of probabilities of which the last few of every size are wrong is promised just where SciPy's bound is."""
    for errors in range(4):
        sizes = np.arange(errors + 1, 3000)
        n = int(sizes[stats.beta.ppf(1 - confidence, sizes - errors, errors + 1) >= target][0])
        if not errors:
            assert fewest_images(target, confidence) == n
        probability, right = np.linspace(0.9, 0.1, n), np.arange(n) < n - errors
        found = promised_threshold(probability, right, target=target, confidence=confidence)
        assert found == Threshold(pytest.approx(probability[-1] - 1e-6), n, n - errors)
        some = promised_threshold(probability[1:], right[1:], target=target, confidence=confidence)
        assert some is None or some.accepted < n - 1


def test_the_sequence_stops_at_the_first_that_fails() -> None:
    """Counts to look at: 22 without an error, 38 with one, 52, 65, … with one more each; 3 errors of 52 fail.

    All 100 with these 3 would pass: who does not stop promises what was looked for until it was found.
    """
    probability, right = np.linspace(0.99, 0.5, 100), np.ones(100, np.bool_)
    assert lower_bound(97, 100, 0.9) >= 0.9
    assert promised_threshold(probability, right, target=0.9, confidence=0.9) == Threshold(
        pytest.approx(probability[90] - 1e-6), 91, 91
    )
    right[[30, 45, 50]] = False
    found = promised_threshold(probability, right, target=0.9, confidence=0.9)
    assert found == Threshold(pytest.approx(probability[37] - 1e-6, abs=1e-9), 38, 37)
    right[[0, 1]] = False  # two errors of the first 22: nothing at all
    assert promised_threshold(probability, right, target=0.9, confidence=0.9) is None


def test_the_sequence_begins_at_a_tenth_of_the_images() -> None:
    probability, right = np.linspace(0.99, 0.1, 600), np.ones(600, np.bool_)
    right[:4] = False  # four of the first 65, which is the first count from 60 on; 3 errors may be among them
    assert promised_threshold(probability, right, target=0.9, confidence=0.9) is None
    right[0] = True
    found = promised_threshold(probability, right, target=0.9, confidence=0.9)
    assert found is not None
    assert found.accepted > 500
    # Of 220 images 22 are a tenth, which is enough to begin with; of 221 they are not.
    right = np.arange(220) < 22
    assert promised_threshold(np.linspace(0.9, 0.1, 220), right, target=0.9, confidence=0.9) is not None
    more = promised_threshold(np.linspace(0.9, 0.1, 221), np.arange(221) < 22, target=0.9, confidence=0.9)
    assert more is None
    # Of 20 images the only count that can be looked at is one, less than a tenth.
    few = promised_threshold(np.linspace(0.9, 0.1, 20), np.ones(20, np.bool_), target=0.999, confidence=0.001)
    assert few == Threshold(pytest.approx(0.9 - 1e-6), 1, 1)
    # Of 1000 that are 1, with no error, and 46, with one: only the last of them.
    right = np.arange(1000) > 0
    last = promised_threshold(np.linspace(0.9, 0.1, 1000), right, target=1 - 1e-6, confidence=1e-9)
    assert last is not None
    assert (last.accepted, last.right) == (46, 45)


def test_images_that_are_level_with_the_last_are_counted_too() -> None:
    probability = np.repeat([0.9, 0.6, 0.3], [20, 10, 5])
    right = np.ones(35, np.bool_)
    found = promised_threshold(probability, right, target=0.9, confidence=0.9)  # 22 lie within the second step
    assert found == Threshold(pytest.approx(0.6 - 1e-6), 30, 30)
    at_zero = promised_threshold(np.zeros(30), right[:30], target=0.9, confidence=0.9)
    assert at_zero == Threshold(1e-6, 30, 30)


def test_a_likely_threshold_is_where_the_mean_is_the_target() -> None:
    probability, right = np.array([0.8, 0.99, 0.2, 0.9, 0.95]), np.array([True, True, False, False, True])
    assert likely_threshold(probability, right, target=0.909) == Threshold(pytest.approx(0.8 - 1e-6), 4, 3)
    assert likely_threshold(probability, right, target=0.985) == Threshold(pytest.approx(0.99 - 1e-6), 1, 1)
    assert likely_threshold(probability, right, target=0.991) is None
    assert likely_threshold(np.full(4, 0.5), right[:4], target=0.5) == Threshold(pytest.approx(0.5 - 1e-6), 4, 2)
    assert likely_threshold(np.zeros(3), right[:3], target=0.0) == Threshold(1e-6, 3, 2)


def decide(
    classes: dict[str, tuple[int, int]], *, unseen: int = 0, **asked: float
) -> tuple[dict[str, ClassDecision], PromptTable]:
    """Of each class so many images of 0.9 down to 0.5, and so many after them of 0.4 that are wrong."""
    table = table_of(len(classes) + unseen + 1, background=(len(classes) + unseen,))
    best = np.concatenate([np.full(sum(both), row) for row, both in enumerate(classes.values())])
    probability = np.concatenate([[*np.linspace(0.9, 0.5, good), *np.full(bad, 0.4)] for good, bad in classes.values()])
    right = np.concatenate([[True] * good + [False] * bad for good, bad in classes.values()])
    counts = np.bincount(best, minlength=len(table.classes))
    judged = np.ones(len(best), np.bool_)
    return _thresholds(Scorer(table, SPEC), best, probability, right, judged, counts, FitOptions(**asked)), table


def test_a_class_is_promised_by_itself_together_or_not_at_all() -> None:
    found, _ = decide({"many": (40, 0), "some": (12, 0), "few": (11, 0)}, unseen=1, target=0.9)
    assert {label: each.promise for label, each in found.items()} == {
        "c0": "own", "c1": "together", "c2": "together", "c3": "none"
    }  # fmt: skip
    assert found["c0"].threshold == pytest.approx(
        0.9 - 0.4 / 39 * 37 - 1e-6
    )  # the 38th: with one error 38 are looked at
    assert found["c1"].threshold == found["c2"].threshold == found["c3"].threshold
    assert (found["c0"].images, found["c0"].accepted, found["c0"].right) == (40, 38, 38)
    assert sum(found[label].accepted for label in ("c1", "c2")) == 23  # two are level at the 22nd
    assert found["c3"] == ClassDecision(threshold=found["c3"].threshold)


def test_classes_that_fall_short_alone_are_promised_with_the_better_ones() -> None:
    found, _ = decide({"many": (60, 0), "few": (5, 1)}, target=0.9)
    assert (found["c0"].promise, found["c1"].promise) == ("own", "together")
    assert found["c1"].threshold == pytest.approx(0.5 - 1e-6)  # 65 of all 66, with none wrong
    assert (found["c1"].images, found["c1"].accepted, found["c1"].right) == (6, 5, 5)


def test_where_nothing_can_be_promised_the_threshold_is_likely_or_lets_nothing_pass() -> None:
    found, _ = decide({"few": (9, 3)}, target=0.8)
    assert found["c0"].promise == "none"
    wanted = likely_threshold(np.array([*np.linspace(0.9, 0.5, 9), 0.4, 0.4, 0.4]), np.arange(12) < 9, target=0.8)
    assert wanted is not None
    assert (found["c0"].threshold, found["c0"].accepted, found["c0"].right) == (wanted.value, wanted.accepted, 5)
    found, _ = decide({"few": (9, 3)}, target=0.95)
    assert found["c0"] == ClassDecision(threshold=1.0, images=12)


# Probabilities


def test_offsets_and_weights_are_those_of_penalised_likelihood() -> None:
    """Against SciPy: half the squares of weights and of the groups' offsets, a hundredth of that of their constant."""
    rng = np.random.default_rng(0)
    features, group = rng.standard_normal((60, FEATURES)), rng.integers(0, 3, 60)
    true = rng.random(60) < sigmoid(features[:, 0] + 0.5 * group)

    def loss(parameters: np.ndarray) -> float:
        weights, constant, offsets = parameters[:FEATURES], parameters[FEATURES], parameters[FEATURES + 1 :]
        values = features @ weights + constant + offsets[group]
        shrunk = (weights @ weights + offsets @ offsets + 0.01 * constant**2) / 2
        return float(np.logaddexp(0, np.where(true, -values, values)).sum() + shrunk)

    best = optimize.minimize(loss, np.zeros(FEATURES + 4), options={"gtol": 1e-6}).x
    weights, offsets = _logistic(features, group, true, 3)
    np.testing.assert_allclose(weights, best[:FEATURES], atol=2e-3)
    np.testing.assert_allclose(offsets, best[FEATURES] + best[FEATURES + 1 :], atol=2e-3)


def test_confidence_is_fitted_to_what_is_judged_and_scaled_alike() -> None:
    """Shifting and stretching of features is undone in what is kept, so that raw features are what it takes."""
    table = table_of(4)
    images = images_of(table, 80)
    judged = np.arange(80) % 5 > 0
    found = fit_confidence(images, judged)
    regression = _Regression(images)
    seen = look_at(images.logits)
    said = second_opinion(regression.left_out, seen.best, regression.verified)
    features = np.concatenate([seen.features, said], axis=1)
    scaled = (features - features[judged].mean(axis=0)) / features[judged].std(axis=0)
    known, right = images.truth != NONE, seen.best == images.truth
    both = judged & known
    weights, bias = _logistic(scaled[both], seen.best[both], right[both], 4)
    np.testing.assert_allclose(
        features @ found.weights + found.class_bias[seen.best], scaled @ weights + bias[seen.best], atol=1e-4
    )
    weights, bias = _logistic(scaled[judged], np.zeros(judged.sum(), np.intp), known[judged], 1)
    np.testing.assert_allclose(features @ found.known[:-1] + found.known[-1], scaled @ weights + bias[0], atol=1e-4)
    # A frame is judged by the regression's own answer, which is that of all images.
    target = np.eye(5)[np.where(images.truth == NONE, 4, images.truth)]
    mean = images.embeddings.mean(axis=0, dtype=np.float64)
    inputs = np.c_[images.embeddings - mean, np.full(80, 0.3)]
    strength = 0.1 * np.square(images.embeddings - mean).sum() / WIDTH
    solution = np.linalg.solve(inputs.T @ inputs + strength * np.eye(WIDTH + 1), inputs.T @ target)
    np.testing.assert_allclose(images.embeddings @ found.rows.T + found.offsets, inputs @ solution, atol=1e-5)
    assert found.verified.tolist() == [0, 1, 2, 3]
    found.check(4, WIDTH)  # of the types and shapes in which it is stored


@pytest.mark.parametrize("encoder", [SPEC, SIGMOID], ids=["softmax", "sigmoid"])
def test_a_temperature_is_where_the_likelihood_of_known_images_is_largest(encoder: EncoderSpec) -> None:
    images = images_of(table_of(5), 300, encoder=encoder)
    known = images.truth != NONE
    logits, truth = images.logits[known].astype(np.float64), images.truth[known]
    one_hot = np.eye(5)[truth]

    def loss(temperature: float) -> float:
        if encoder.score == "sigmoid":
            return float(metrics.log_loss(one_hot.ravel(), special.expit(logits / temperature).ravel()))
        return float(metrics.log_loss(truth, special.softmax(logits / temperature, axis=1), labels=range(5)))

    found = temperature_of(images, sigmoid_scores=encoder.score == "sigmoid")
    assert found != pytest.approx(1, abs=0.02)
    assert loss(found) < min(loss(0.98 * found), loss(1.02 * found))
    grid = np.exp(np.linspace(-3.5, 3.5, 57))
    assert loss(found) <= min(map(loss, grid)) + 1e-9


def test_each_image_is_told_by_a_fit_to_the_others() -> None:
    """Of fewer images than folds each is a fold."""
    table = table_of(3)
    images = images_of(table, 14)
    judged = np.arange(14) != 5
    found = _out_of_fold(images, judged, 0)
    assert (found.known[5], found.right[5]) == (0, 0)
    for left in (0, 7, 13):
        others = np.arange(14) != left
        model = fit_confidence(images.take(others), judged[others])
        alone = images.take(~others)
        expected = model.of(look_at(alone.logits), alone.embeddings)
        assert found.known[left] == pytest.approx(expected.known[0], abs=1e-5)
        assert found.right[left] == pytest.approx(expected.right[0], abs=1e-5)


def test_many_images_are_told_in_folds_by_fits_that_did_not_see_them() -> None:
    images = images_of(table_of(3), 60)
    everyone = np.ones(60, np.bool_)
    one = _out_of_fold(images, everyone, 1)
    inside = fit_confidence(images, everyone).of(look_at(images.logits), images.embeddings)
    assert np.abs(inside.right - one.right).mean() > 1e-3  # not those of a fit to the images themselves
    assert np.corrcoef(inside.right, one.right)[0, 1] > 0.8


def test_bins_hold_their_upper_ends() -> None:
    probability = np.array([0.0, 1 / 15, 1 / 15 + 1e-6, 0.5, 0.53, 1.0])
    right = np.array([0, 1, 0, 1, 0, 1], np.bool_)
    assert reliability(probability, right) == [
        Bin(2, pytest.approx(1 / 30), 0.5),
        Bin(1, pytest.approx(1 / 15, abs=1e-5), 0.0),
        Bin(2, pytest.approx(0.515), 0.5),
        Bin(1, 1.0, 1.0),
    ]
    errors = [2 * (0.5 - 1 / 30), 1 / 15 + 1e-6, 2 * 0.015, 0]
    assert calibration_error(probability, right) == pytest.approx(sum(errors) / 6)
    assert calibration_error(np.array([]), np.array([], np.bool_)) == 0


def test_a_curve_is_precision_among_the_most_probable() -> None:
    found = _curve(np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, True, False]))
    assert found == [Reported(0.25, 1.0), Reported(0.5, 0.5), Reported(0.75, pytest.approx(2 / 3)), Reported(1.0, 0.5)]
    many = _curve(np.linspace(0, 1, 1000), np.ones(1000, np.bool_))
    assert len(many) == 60
    assert (many[0].share, many[-1].share) == (0.001, 1.0)


@pytest.mark.parametrize("encoder", [SPEC, SIGMOID], ids=["softmax", "sigmoid"])
def test_the_figures_of_a_fit_are_scikit_learns(encoder: EncoderSpec) -> None:
    """Six classes, one of them background."""
    table = table_of(6, background=(5,), seed=3)
    images = images_of(table, 300, encoder=encoder)
    images = images._replace(truth=np.where(images.truth == 5, NONE, images.truth))
    rng = np.random.default_rng(0)
    sure = Sure(rng.random(300), rng.random(300))
    known, best = images.truth != NONE, images.logits.argmax(axis=1)
    right, judged, reported = best == images.truth, best < 5, (best < 5) & (rng.random(300) < 0.5)

    def best_score(temperature: float) -> np.ndarray:
        logits = images.logits.astype(np.float64) / temperature
        scores = special.expit(logits) if encoder.score == "sigmoid" else special.softmax(logits, axis=1)
        return np.asarray(scores.max(axis=1))

    expected = {
        "top1": metrics.accuracy_score(images.truth[known], best[known]),
        "ece_before": calibration_error(best_score(1.0)[judged], right[judged]),
        "ece_temperature": calibration_error(best_score(3.0)[judged], right[judged]),
        "ece_after": calibration_error(sure.right[judged], right[judged]),
        "auroc_cosine": metrics.roc_auc_score(known, (images.embeddings @ table.embeddings[:5].T).max(axis=1)),
        "auroc_after": metrics.roc_auc_score(known, sure.known),
        "precision": metrics.precision_score(right, reported),
        "recall": (reported & right).sum() / known.sum(),
        "abstention": (~reported).mean(),
    }
    scorer = Scorer(table, encoder)
    found = _figures(scorer, encoder, images, judged, sure, reported, 3.0)
    assert found == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}
    nothing = _figures(scorer, encoder, images.take(known), judged[known], sure_of(sure, known), ~known[known], 3.0)
    assert set(found) - set(nothing) == {"auroc_cosine", "auroc_after", "precision"}


def sure_of(sure: Sure, which: np.ndarray) -> Sure:
    return Sure(sure.known[which], sure.right[which])


def test_a_fit_says_what_was_seen_on_images_that_it_was_not_fitted_on() -> None:
    """A background row, which is nobody's class, and a class without images."""
    table = table_of(6, background=(5,), seed=3)
    images = images_of(table, 150)
    truth = np.where(images.truth == 4, NONE, images.truth)
    fitted = fit_decisions(
        table, SPEC, images.embeddings, truth, FitOptions(0.8), variant="v", graph="g", engine="e", data="d"
    )
    report, facts = fitted.report, fitted.decisions.facts
    labelled = images._replace(truth=np.where(truth == 5, NONE, truth))
    known, best = labelled.truth != NONE, images.logits.argmax(axis=1)
    right, judged = best == labelled.truth, best < 4
    plain = special.softmax(images.logits.astype(np.float64), axis=1).max(axis=1)
    assert (report.variant, report.table, report.images, report.known) == ("v", "t", 150, known.sum())
    accepted, rightly = (sum(getattr(each, kind) for each in report.classes.values()) for kind in ("accepted", "right"))
    assert 0 < rightly < accepted < judged.sum()
    assert report.figures["abstention"] == pytest.approx(1 - accepted / 150)
    assert report.figures["precision"] == pytest.approx(rightly / accepted)
    assert report.figures["recall"] == pytest.approx(rightly / known.sum())
    assert [each.n for each in report.before] == [each.n for each in reliability(plain[judged], right[judged])]
    assert sum(each.n for each in report.after) == judged.sum()
    assert sum(each.n * each.right for each in report.after) == pytest.approx(right[judged].sum())
    assert report.curve[-1] == Reported(1.0, pytest.approx((right & judged).mean()))
    assert facts.temperature == pytest.approx(temperature_of(labelled, sigmoid_scores=False), rel=1e-4)
    assert facts == DecisionFacts(
        variant="v",
        graph="g",
        rows=table.rows_hash,
        temperature=facts.temperature,
        classes=report.classes,
        target=0.8,
        confidence=0.9,
        data="d",
        figures={"images": 150.0, "known": float(known.sum()), **report.figures},
        engine="e",
    )
    assert set(report.classes) == {f"c{row}" for row in range(5)}
    assert (report.classes["c4"].promise, report.classes["c4"].accepted) == ("none", 0)
    assert report.notes == _notes(report.classes, labelled.truth, FitOptions(0.8))


def test_notes_say_what_is_not_promised() -> None:
    fine, none = ClassDecision(0.5, "own", 40), ClassDecision(0.7, "none", 5)
    told = "precision 0.9 is promised, each time with confidence 0.8 (Clopper–Pearson), for "
    asked, known = FitOptions(0.9, 0.8), np.zeros(4, np.int64)
    unknown = "no image is of none of the classes, so what precision is among unknown frames is not known"
    assert _notes({"a": fine, "b": ClassDecision(0.4, "together", 6)}, known, asked) == [
        told + "1 class each by itself and for 1 together", unknown
    ]  # fmt: skip
    without = {f"n{number}": ClassDecision(1.0) for number in range(6)}
    assert _notes({"a": fine, "b": none, **without}, np.array([0, 0, NONE, 0]), asked) == [
        told + "1 class each by itself and for 0 together",
        "6 classes without a labelled image, promised nothing: n0, n1, n2, n3, n4, …",
        "nothing is promised for 1 class with labelled images: it takes 16 reported ones without an error, or "
        "more with some; their threshold is where the probabilities are the target on average",
        "no threshold reaches the target for some classes: these are never reported",
        "25% of the images are of no class of the table: with more of such frames precision is lower",
    ]
    few = {f"f{number}": ClassDecision(0.9, "together", 4 - number % 4) for number in range(6)}
    five = {f"n{number}": ClassDecision(0.9) for number in range(5)}
    assert _notes({**few, **five}, known, asked)[1:] == [
        "5 classes without a labelled image, promised nothing: n0, n1, n2, n3, n4",
        "6 classes with fewer than five labelled images: f0, f1, f2, f3, f4",
        unknown,
    ]


def test_the_fewest_images_are_ten_that_are_judged() -> None:
    table = table_of(2)
    images = images_of(table, 60)
    good = np.flatnonzero((images.truth != NONE) & (images.logits.argmax(axis=1) == images.truth))

    def fit(count: int) -> int:
        some = np.sort(good[:count])
        fitted = fit_decisions(
            table, SPEC, images.embeddings[some], images.truth[some], FitOptions(), variant="v", graph="g"
        )
        return fitted.report.images

    assert fit(10) == 10
    with pytest.raises(InputError, match=r"at least 10 labelled .*, got 9 of 9: label more"):
        fit(9)


# What the device makes of it


def test_what_is_seen_in_logits_is_scipys() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32) * 8
    seen = look_at(logits)
    in_order = np.sort(logits.astype(np.float64), axis=1)
    chance = special.softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_array_equal(seen.best, logits.argmax(axis=1))
    expected = [
        in_order[:, -1], in_order[:, -1] - in_order[:, -2], special.logsumexp(logits, axis=1), -stats.entropy(chance.T)
    ]  # fmt: skip
    np.testing.assert_allclose(seen.features, np.stack(expected, axis=1), atol=1e-5)
    np.testing.assert_allclose(look_at(logits[:, :2]).features[:, 1], np.abs(np.diff(logits[:, :2]))[:, 0], atol=1e-5)
    alone = look_at(logits[:, :1])
    np.testing.assert_allclose(alone.features, np.stack([logits[:, 0], 0 * logits[:, 0], logits[:, 0], 0 * logits[:, 0]], 1), atol=1e-6)  # fmt: skip  # noqa: E501


def test_a_second_opinion_is_that_of_a_case_by_hand() -> None:
    """Rows 1 and 3 of the table have images; the regression speaks of these and of none."""
    said = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.4], [0.5, 0.1, 0.9]])
    found = second_opinion(said, np.array([1, 3, 2]), np.array([1, 3]))
    np.testing.assert_allclose(
        found,
        [
            [0.7, 0.5, 0.1, 0.7, 0.6],
            [0.6, 0.3, 0.4, 0.6, 0.2],
            [0.0, -0.5, 0.9, 0.5, -0.4],  # nothing is known of row 2: 0, and behind the likeliest
        ],
    )
    alone = second_opinion(np.array([[0.7, 0.1]]), np.array([0]), np.array([0]))
    np.testing.assert_allclose(alone, [[0.7, 0.7, 0.1, 0.7, 0.6]])  # no other to be ahead of
    np.testing.assert_allclose(sigmoid(np.array([-800.0, 0.0, 1.0, 800.0])), special.expit([-800.0, 0.0, 1.0, 800.0]))


def confidence(classes: int = 3, width: int = 2, **changed: Any) -> Confidence:
    made = Confidence(
        weights=np.zeros(FEATURES),
        class_bias=np.zeros(classes),
        known=np.zeros(FEATURES + 1),
        rows=np.zeros((3, width), np.float32),
        offsets=np.zeros(3),
        verified=np.array([0, 2]),
    )
    return dataclasses.replace(made, **changed)


def test_how_sure_it_is_is_a_product_of_two_sigmoids() -> None:
    weights, known = np.zeros(FEATURES), np.zeros(FEATURES + 1)
    weights[0], weights[4], known[2], known[6], known[-1] = 0.5, 2.0, -0.25, 3.0, 1.5
    made = confidence(
        weights=weights,
        known=known,
        class_bias=np.array([0.1, 0.2, -0.3]),
        rows=np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32),
        offsets=np.array([0.1, 0.2, 0.3]),
    )
    logits, embeddings = np.array([[1.0, 2.0, 4.0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    sure = made.of(look_at(logits), embeddings)
    total = special.logsumexp([1.0, 2.0, 4.0])
    shows = special.expit(-0.25 * total + 3 * (0.5 * 0.6 + 0.5 * 0.8 + 0.3) + 1.5)
    assert sure.known[0] == pytest.approx(shows)
    assert sure.right[0] == pytest.approx(shows * special.expit(0.5 * 4 + 2 * (0.8 + 0.2) - 0.3))


def spread(known: float, right: float, scores: list[float], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Scores after the best, which is row 1, is as sure as told."""
    made = Decisions(DecisionFacts(variant="v", graph="g", rows="r", classes={}, target=0.9), confidence(len(scores)))
    monkeypatch.setattr(Confidence, "of", lambda *_: Sure(np.array([known]), np.array([right])))
    row = np.array([scores], np.float32)
    made.spread(row, look_at(row), np.zeros((1, 2), np.float32))
    return row[0]


def test_other_classes_share_what_is_left_and_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.2 is left of showing any class, to be shared as 0.3 to 0.1.
    np.testing.assert_allclose(spread(0.9, 0.7, [0.3, 0.6, 0.1], monkeypatch), [0.15, 0.7, 0.05], atol=1e-6)
    # They would get more than they had, of 0.4: they keep it.
    np.testing.assert_allclose(spread(0.95, 0.5, [0.3, 0.6, 0.1], monkeypatch), [0.3, 0.5, 0.1], atol=1e-6)
    # The best is that unsure that another would pass it: that one stays just behind.
    np.testing.assert_allclose(spread(0.9, 0.1, [0.3, 0.6, 0.1], monkeypatch), [0.0999, 0.1, 0.0333], atol=1e-6)
    np.testing.assert_allclose(spread(1.0, 1.0, [0.0, 1.0], monkeypatch), [0, 0.999999], atol=1e-7)


def test_decisions_without_labels_leave_scores_alone() -> None:
    facts = DecisionFacts(variant="v", graph="g", rows="r", classes={}, calibrated=False, label_rate=0.1)
    row = np.array([[0.3, 0.7]], np.float32)
    Decisions(facts).spread(row, look_at(row), np.zeros((1, 2), np.float32))
    assert row.tolist() == [[pytest.approx(0.3), pytest.approx(0.7)]]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"weights": np.zeros(FEATURES, np.float32)}, "decisions of shapes"),
        ({"weights": np.zeros(FEATURES + 1)}, "decisions of shapes"),
        ({"class_bias": np.zeros(2)}, "decisions of shapes"),
        ({"known": np.zeros(FEATURES)}, "decisions of shapes"),
        ({"rows": np.zeros((2, 2), np.float32)}, "decisions of shapes"),
        ({"rows": np.zeros((3, 3), np.float32)}, "decisions of shapes"),
        ({"offsets": np.zeros(2)}, "decisions of shapes"),
        ({"verified": np.array([0, 2], np.int32)}, "decisions of shapes"),
        (
            {"verified": np.array([], np.int64), "rows": np.zeros((1, 2), np.float32), "offsets": np.zeros(1)},
            "decisions of shapes",
        ),
        ({"verified": np.array([-1, 2])}, "different rows of 3"),
        ({"verified": np.array([0, 3])}, "different rows of 3"),
        ({"verified": np.array([2, 2])}, "different rows of 3"),
        ({"offsets": np.array([0, np.nan, 0])}, "finite figures"),
        ({"known": np.full(FEATURES + 1, -np.inf)}, "finite figures"),
        ({"class_bias": np.array([0, 2 * LARGEST, 0])}, "finite figures"),
    ],
)
def test_what_does_not_fit_a_table_is_refused(changed: dict[str, Any], says: str) -> None:
    confidence().check(3, 2)
    confidence(class_bias=np.full(3, float(LARGEST))).check(3, 2)
    with pytest.raises(TableError, match=says):
        confidence(**changed).check(3, 2)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"temperature": 0.9e-6}, "a temperature from 1e-06"),
        ({"temperature": 2 * LARGEST}, "a temperature from 1e-06"),
        ({"temperature": math.nan}, "a temperature from 1e-06"),
        ({"target": None}, "a target from 0 to 1, got None"),
        ({"target": 1.01}, "a target from 0 to 1"),
        ({"target": -0.1}, "a target from 0 to 1"),
        ({"calibrated": False}, "a label_rate from 0 to 1, got None"),
        ({"label_rate": 1.2}, "a label_rate from 0 to 1"),
        ({"classes": {"a": ClassDecision(0.0)}}, "thresholds above 0 and up to 1"),
        ({"classes": {"a": ClassDecision(1.01)}}, "thresholds above 0 and up to 1"),
    ],
)
def test_facts_out_of_range_are_refused(changed: dict[str, Any], says: str) -> None:
    facts = DecisionFacts(variant="v", graph="g", rows="r", target=0.9, classes={"a": ClassDecision(1.0)})
    for fine in (
        {"target": 0.0},
        {"target": 1.0},
        {"label_rate": 0.0},
        {"temperature": 1e-6},
        {"temperature": LARGEST},
    ):
        assert Decisions(msgspec.structs.replace(facts, **fine)).thresholds == {"a": 1.0}
    Decisions(msgspec.structs.replace(facts, calibrated=False, label_rate=0.5, target=None))
    with pytest.raises(TableError, match=says):
        Decisions(msgspec.structs.replace(facts, **changed))


def test_decisions_on_strange_classes_or_of_other_width_are_refused() -> None:
    facts = DecisionFacts(variant="v", graph="g", rows="r", target=0.9, classes={"a": ClassDecision(0.5)})
    made = Decisions(facts, confidence())
    made.check(["a", "b", "c"], 2)
    Decisions(facts).check(["a"], 99)
    with pytest.raises(TableError, match=r"classes of the table, got \['a'\]"):
        made.check(["b", "c", "d"], 2)
    with pytest.raises(TableError, match="decisions of shapes"):
        made.check(["a", "b", "c"], 3)


def test_a_digest_is_of_every_part() -> None:
    facts = DecisionFacts(variant="v", graph="g", rows="r", target=0.9, classes={"a": ClassDecision(0.5)})
    made = [
        Decisions(facts),
        Decisions(msgspec.structs.replace(facts, temperature=2.0)),
        Decisions(facts, confidence()),
        Decisions(facts, confidence(weights=np.ones(FEATURES))),
        Decisions(facts, confidence(verified=np.array([0, 1]))),
        Decisions(facts, confidence(width=3)),
    ]
    assert len({each.sha256 for each in made}) == len(made)
    assert Decisions(facts, confidence()).sha256 == made[2].sha256


class Stored:
    """A file's metadata and tensors, as ``Tensors`` gives them."""

    def __init__(self, decisions: list[Decisions]) -> None:
        self.metadata, self.tensors = stored_decisions(decisions)

    def save(self, path: Path, *without: str) -> None:
        save_file({name: each for name, each in self.tensors.items() if name not in without}, path, self.metadata)


def test_decisions_come_back_in_their_order_and_incomplete_ones_are_refused(tmp_path: Path) -> None:
    plain = DecisionFacts(variant="plain", graph="g", rows="r", classes={}, calibrated=False, label_rate=0.1)
    facts = DecisionFacts(variant="v", graph="g", rows="r", target=0.9, classes={"a": ClassDecision(0.5)})
    kept = [Decisions(plain), Decisions(facts, confidence()), Decisions(facts, confidence(weights=np.ones(FEATURES)))]
    assert stored_decisions([]) == ({}, {})
    stored = Stored(kept)
    stored.save(tmp_path / "all.safetensors")
    with open_tensors(tmp_path / "all.safetensors", error=TableError) as tensors:
        assert [each.sha256 for each in read_decisions(tensors)] == [each.sha256 for each in kept]
    stored.save(tmp_path / "some.safetensors", "decisions.1.offsets")
    with (
        open_tensors(tmp_path / "some.safetensors", error=TableError) as tensors,
        pytest.raises(TableError, match=r"got only decisions\.1"),
    ):
        read_decisions(tensors)


def test_what_holds_is_told_in_a_sentence() -> None:
    facts = DecisionFacts(
        variant="fp32",
        graph="g",
        rows="r",
        target=0.95,
        classes={"a": ClassDecision(0.5, "own"), "b": ClassDecision(0.5, "together"), "c": ClassDecision(0.5)},
    )
    made = Decisions(facts)

    def said(decisions: list[Decisions], **changed: Any) -> tuple[Decisions | None, str]:
        return current_decisions(decisions, **{"table": "t", "rows": "r", "variant": "fp32", "graph": "g", **changed})

    other = Decisions(msgspec.structs.replace(facts, variant="fp16"))
    assert said([other, made]) == (
        made, "table t: calibrated for fp32; precision 0.95 is promised for 2 of 3 classes"
    )  # fmt: skip
    on = Decisions(msgspec.structs.replace(facts, engine="tensorrt"))
    assert said([on])[1].startswith("table t: calibrated for fp32 (on tensorrt); ")
    footage = Decisions(msgspec.structs.replace(facts, target=None, calibrated=False, label_rate=0.05))
    assert said([footage])[1] == (
        "table t: without labels; at most 5.00% of frames like those of the footage get a label; scores are not "
        "probabilities"
    )
    assert said([]) == said([made], variant=None) == (None, "")
    refit = "edgeclip calibrate decisions --table t --refit"
    assert said([made, other], variant="int8") == (
        None,
        "table t: its decisions were fitted for fp32, fp16, not for int8: scores are not calibrated; "
        f"run {refit} --variant int8",
    )
    assert said([made], rows="s") == (None, f"table t: its decisions are stale (the prompts have changed): run {refit}")
    assert said([made], graph="h") == (
        None, f"table t: its decisions are stale (fp32 is another graph now): run {refit}"
    )  # fmt: skip


# Without labels


@pytest.mark.parametrize("wrong", [{"label_rate": 0.0}, {"label_rate": 1.0}, {"background": -1}])
def test_footage_options_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    assert FootageOptions() == FootageOptions(label_rate=0.01, background=16)
    FootageOptions(label_rate=0.5, background=0)
    with pytest.raises(InputError, match="expected"):
        FootageOptions(**wrong)


def test_footage_is_long_enough_for_its_rate() -> None:
    for rate, needed in ((0.01, 99), (0.5, 20), (0.03, 33)):
        require_frames(needed, FootageOptions(rate))
        with pytest.raises(
            InputError, match=f"at least {needed} frames for a label rate of {rate:g}, got {needed - 1}"
        ):
            require_frames(needed - 1, FootageOptions(rate))


@pytest.mark.parametrize(("count", "rate", "labelled"), [(99, 0.01, 1), (100, 0.1, 10), (99, 0.05, 5), (250, 0.03, 7)])
def test_just_the_asked_share_of_footage_lies_beyond_its_threshold(count: int, rate: float, labelled: int) -> None:
    """The k-th largest score is not reached itself: k − 1 of these frames are, k = ⌊rate · (N + 1)⌋."""
    table = table_of(4)
    frames = images_of(table, count).embeddings
    found = fit_footage(table, SPEC, frames, FootageOptions(rate), variant="v", graph="g", engine="e")
    scores = Scorer(table, SPEC).scores(frames).max(axis=1)
    (threshold,) = {each.threshold for each in found.facts.classes.values()}
    assert (scores >= threshold).sum() == labelled - 1
    assert threshold == pytest.approx(np.sort(scores)[-labelled], rel=1e-6)
    assert found.facts == DecisionFacts(
        variant="v",
        graph="g",
        rows=table.rows_hash,
        classes={f"c{row}": ClassDecision(threshold=threshold) for row in range(4)},
        calibrated=False,
        label_rate=rate,
        figures={"frames": float(count), "background_share": 0.0, "threshold": threshold},
        engine="e",
    )


def test_frames_of_the_background_reach_no_threshold() -> None:
    table = table_of(4, background=(0,))
    frames = images_of(table, 200).embeddings
    scores = Scorer(table, SPEC).scores(frames)
    nothing = scores.argmax(axis=1) == 0
    found = fit_footage(table, SPEC, frames, FootageOptions(0.1), variant="v", graph="g").facts
    assert set(found.classes) == {"c1", "c2", "c3"}
    assert found.figures["background_share"] == pytest.approx(nothing.mean())
    assert (scores[~nothing].max(axis=1) >= found.figures["threshold"]).sum() == 19
    every = fit_footage(table, SPEC, np.repeat(table.embeddings[:1], 30, axis=0), FootageOptions(0.1), variant="v", graph="g")  # fmt: skip  # noqa: E501
    assert every.facts.figures["threshold"] == 1e-6
    np.testing.assert_allclose(best_scores(Scorer(table, SPEC), frames), scores[:, 1:].max(axis=1))


def test_a_site_is_described_by_the_words_that_add_most() -> None:
    """Frames of two kinds, four to one; words for both, one that means a class, one that means nothing here."""
    axes = np.eye(5, WIDTH, dtype=np.float32)
    frames = np.concatenate([np.repeat(axes[:1], 40, axis=0), np.repeat(axes[1:2], 10, axis=0)])
    nearly_class = unit_rows((axes[4:5] + 0.74 * axes[0:1]).astype(np.float32))  # cosine 0.804 to the class
    words = np.concatenate([axes[1:2], nearly_class, axes[2:3], axes[:1]])
    asked = {"logit_scale": 20.0}
    assert describe_site(frames, words, axes[4:], count=4, **asked) == [3, 0]
    assert describe_site(frames, words, axes[4:], count=1, **asked) == [3]
    assert describe_site(frames, words, axes[4:], count=0, **asked) == []
    assert describe_site(frames, words[1:2], axes[4:], count=2, **asked) == []
    further = unit_rows((axes[4:5] + 0.76 * axes[0:1]).astype(np.float32))  # cosine 0.796
    assert describe_site(frames, further, axes[4:], count=2, **asked) == [0]


@pytest.mark.parametrize("seed", range(4))
def test_each_word_is_the_one_that_explains_the_footage_best_beside_those_before(seed: int) -> None:
    """As said by SciPy's softmax over the words chosen so far, one more, and the classes."""
    frames, words, classes = (
        unit_rows(np.random.default_rng([seed, count]).standard_normal((count, WIDTH)).astype(np.float32))
        for count in (40, 12, 5)
    )

    def explained(chosen: list[int]) -> float:
        shares = special.log_softmax(8.0 * (frames @ np.concatenate([words[chosen], classes]).T), axis=1)
        return float(special.logsumexp(shares[:, : len(chosen)], axis=1).mean())

    far = [word for word in range(12) if (words[word] @ classes.T).max() < 0.8]
    expected: list[int] = []
    while len(expected) < 6:
        expected.append(max(set(far) - set(expected), key=lambda word: explained([*expected, word])))
    assert describe_site(frames, words, classes, logit_scale=8.0, count=6) == expected


def test_the_words_that_come_with_it_are_many_and_each_once() -> None:
    words = vocabulary()
    assert len(set(words)) == len(words) > 150
    assert {"wall", "floor", "sky"} <= set(words)


def test_footage_notes_say_the_rate() -> None:
    said = footage_notes(FootageOptions(0.025))
    assert len(said) == 3
    assert said[1].startswith("at most 2.50% of frames like these get a label")
