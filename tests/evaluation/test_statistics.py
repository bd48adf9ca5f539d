"""Each figure's interval is SciPy's or statsmodels', or where these have none, what its paper says, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from edgeclip.devices.sensors.energy import t95
from edgeclip.errors import InputError
from edgeclip.evaluation.statistics.effective_robustness import effective_robustness, fit_line, logit
from edgeclip.evaluation.statistics.metrics import (
    ClassAccuracy,
    Confusion,
    balanced_accuracy,
    confusions,
    image_to_text_ranks,
    per_class_accuracy,
    predictions,
    recall,
    text_to_image_ranks,
    top_k,
    wilson_interval,
)
from edgeclip.evaluation.statistics.paired import (
    ExtraLoss,
    PairedDifference,
    difference_between_sets,
    difference_of_differences,
    holm,
    mcnemar_p,
    paired_difference,
)
from edgeclip.evaluation.statistics.rounds import Interval, Ratio, compare_rounds, interval_of_rounds
from edgeclip.prompts import unit_rows

Z = float(stats.norm.ppf(0.975))


# Rounds


def test_students_t_without_scipy_is_scipys() -> None:
    for freedom in np.concatenate([np.linspace(1, 20, 400), [30, 45, 100, 1000, 1e9]]):
        assert t95(float(freedom)) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.003)


def test_an_interval_of_rounds_is_scipys() -> None:
    for rounds in ([2.0, 3.0, 5.0], [2.0, 3.5], [1.0, 4.0, 2.0, 8.0, 5.0, 7.0]):
        found = interval_of_rounds(rounds)
        expected = stats.ttest_1samp(rounds, 0.0).confidence_interval()
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.004)
        assert found.mean == pytest.approx(np.mean(rounds))
    assert interval_of_rounds([3.0]) == Interval(3.0, 3.0, 3.0)


def test_an_interval_holds_its_ends_and_is_printed_with_them() -> None:
    interval = Interval(2.0, 1.5, 2.5)
    assert [value in interval for value in (1.49, 1.5, 2.0, 2.5, 2.51)] == [False, True, True, True, False]
    assert str(interval) == "2.00 (1.50–2.50)"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([10.0, 11.0, 10.5, 10.2], [14.0, 15.5, 14.2, 13.9]),
        ([10.0, 10.1, 10.05], [9.0, 12.0, 10.5, 11.0, 8.0, 13.0]),  # Welch's freedom lies between that of the two
        ([3.0, 4.0], [3.1, 3.9, 3.5]),
        ([5.0, 5.001, 5.0], [5.0, 5.2, 5.4]),  # one next to without spread
        ([5.0, 5.2, 5.4, 5.1], [5.0, 5.0001]),
    ],
)
def test_rounds_of_two_runs_are_compared_as_scipy_does(first: list[float], second: list[float]) -> None:
    welch = stats.ttest_ind(np.log(second), np.log(first), equal_var=False).confidence_interval()
    found = compare_rounds(first, second, paired=False)
    middle = np.log(second).mean() - np.log(first).mean()
    assert math.log(found.ratio) == pytest.approx(middle)
    assert math.log(found.low) - middle == pytest.approx(welch.low - middle, rel=0.004)
    assert math.log(found.high) - middle == pytest.approx(welch.high - middle, rel=0.004)


def test_rounds_in_turns_are_compared_as_scipy_does() -> None:
    first, second = [10.0, 20.0, 15.0, 12.0], [11.0, 21.0, 17.0, 13.5]
    found = compare_rounds(first, second, paired=True)
    expected = stats.ttest_rel(np.log(second), np.log(first)).confidence_interval()
    assert (found.low, found.high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)), rel=0.001)
    assert found.ratio == pytest.approx(math.exp(np.log(np.divide(second, first)).mean()))


def test_one_round_or_unequal_turns_cannot_be_compared() -> None:
    assert compare_rounds([1.0, 2.0], [1.0, 2.0], paired=True).ratio == 1
    for pair in (([1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [1.0]), ([], [1.0, 2.0])):
        with pytest.raises(InputError, match="two rounds or more to compare, got"):
            compare_rounds(*pair, paired=False)
    with pytest.raises(InputError, match="as many rounds of both, run in turns, got 3 and 2"):
        compare_rounds([1.0, 2.0, 3.0], [1.0, 2.0], paired=True)
    assert compare_rounds([1.0, 2.0, 3.0], [1.0, 2.0], paired=False).ratio > 0


def test_a_ratio_says_which_is_slower_and_by_how_much() -> None:
    assert str(Ratio(2.0, 1.6, 2.5)) == "2.00 times as slow (95 % 1.60–2.50)"
    assert str(Ratio(0.5, 0.4, 0.8)) == "2.00 times as fast (95 % 1.25–2.50)"
    assert str(Ratio(1.1, 0.9, 1.3)) == "no difference beyond noise (1.10 times, 95 % 0.90–1.30)"
    ends = (Ratio(1.1, 1.0, 1.3), Ratio(0.9, 0.8, 1.0), Ratio(1.1, 1.01, 1.3), Ratio(0.9, 0.8, 0.99))
    assert [each.differs for each in ends] == [False, False, True, True]


# Shares of images


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (3, 7), (57, 60), (400, 1000), (1000, 1000)])
def test_wilsons_interval_is_scipys(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high))


def test_top_k_counts_ranks_below_k() -> None:
    ranks = np.array([0, 0, 1, 4, 5])
    for k, hits in ((1, 2), (2, 3), (5, 4), (6, 5)):
        found = top_k(ranks, k)
        assert (found.value, found.ci95) == (hits / 5, wilson_interval(hits, 5))


def test_each_class_has_its_own_share_and_interval() -> None:
    truth, right = np.array([0, 0, 0, 2]), np.array([True, False, True, False])
    assert per_class_accuracy(truth, right, ["a", "b", "c", "d"]) == [
        ClassAccuracy("a", 3, 2, 2 / 3, wilson_interval(2, 3)),
        ClassAccuracy("b", 0, 0, None, None),
        ClassAccuracy("c", 1, 0, 0.0, wilson_interval(0, 1)),
        ClassAccuracy("d", 0, 0, None, None),
    ]


def test_a_balanced_accuracy_is_that_of_a_case_by_hand() -> None:
    """Classes 0 (3 of 4), 1 (none there), 2 (all of 2), 3 (1 of 2), 4 (none of 3)."""
    truth = np.array([0, 0, 0, 0, 2, 2, 3, 3, 4, 4, 4])
    right = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0], np.bool_)
    sure = [stats.beta(2.5, 0.5).var(), stats.beta(0.5, 3.5).var()]
    half = Z * math.sqrt(0.75 * 0.25 / 3 + 0.5 * 0.5 / 1 + sum(sure)) / 4
    found = balanced_accuracy(truth, right)
    assert found.value == pytest.approx((0.75 + 1 + 0.5 + 0) / 4)
    assert found.ci95 == pytest.approx((found.value - half, found.value + half))
    assert 0 < found.ci95[0] < found.ci95[1] < 1


@pytest.mark.parametrize("right", [True, False])
def test_a_balanced_interval_stays_within_0_and_1_and_has_a_width(right: bool) -> None:
    low, high = balanced_accuracy(np.array([0, 1, 1]), np.full(3, right)).ci95
    assert (low, high)[right] == right
    assert 0.3 < high - low < 1


def test_confusions_are_counted_by_pair() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 1])
    predicted = np.array([1, 1, 0, 0, 2, 0, 0, 0, 2, 1])
    labels = ["a", "b", "c"]
    expected = [
        Confusion("c", "a", 3, 3 / 4),
        Confusion("a", "b", 2, 2 / 3),
        Confusion("b", "a", 1, 1 / 3),
        Confusion("b", "c", 1, 1 / 3),
    ]
    assert confusions(truth, predicted, labels) == expected
    assert confusions(truth, predicted, labels, most=2) == expected[:2]
    assert confusions(truth, truth, labels) == []
    many = np.arange(30)
    assert len(confusions(many, (many + 1) % 30, [str(each) for each in many])) == 20


# Retrieval


def test_ranks_of_many_images_are_those_of_all_at_once() -> None:
    """Beyond a chunk of 1,024; images have one caption or more."""
    rng = np.random.default_rng(0)
    images = unit_rows(rng.standard_normal((2100, 4)).astype(np.float32))
    own = np.concatenate([np.arange(2100), rng.integers(0, 2100, 900)])
    captions = unit_rows(images[own] + 0.1 * rng.standard_normal((3000, 4)).astype(np.float32))
    similar = images @ captions.T
    mine = own[None, :] == np.arange(2100)[:, None]
    best = np.where(mine, similar, -9).max(axis=1)
    back = ((similar >= best[:, None]) & ~mine).sum(axis=1)
    forward = (similar >= similar[own, np.arange(3000)]).sum(axis=0) - 1
    found = predictions(captions, images, own)
    # A chunk's products may be rounded otherwise than those of all at once, which moves a rank here and there.
    assert (image_to_text_ranks(captions, images, own) == back).mean() > 0.99
    assert (text_to_image_ranks(captions, images, own) == forward).mean() > 0.99
    assert (found.predicted == similar.argmax(axis=0)).mean() > 0.99


def test_of_a_tie_the_other_class_is_taken() -> None:
    rows = np.eye(3, dtype=np.float32)
    found = predictions(np.ones((2, 3), np.float32), rows, np.array([0, 2]))
    assert (found.ranks.tolist(), found.predicted.tolist()) == ([2, 2], [1, 0])


def test_rounds_without_any_spread_differ_for_sure() -> None:
    assert compare_rounds([1.0, 1.0], [2.0, 2.0], paired=False) == Ratio(2.0, 2.0, 2.0)


def test_a_caption_of_another_image_that_is_as_near_counts_against() -> None:
    images = np.eye(3, dtype=np.float32)
    captions = images[[0, 0, 1, 2, 2]]
    assert image_to_text_ranks(captions, images, np.array([0, 1, 1, 2, 0])).tolist() == [1, 0, 1]


def test_a_recall_without_groups_has_wilsons_intervals() -> None:
    ranks = np.array([0, 0, 3, 4, 5, 9, 10, 20])
    found = recall(ranks)
    assert (found.n, found.r1, found.r5, found.r10) == (8, 2 / 8, 4 / 8, 6 / 8)
    intervals = (found.r1_ci95, found.r5_ci95, found.r10_ci95)
    assert intervals == tuple(wilson_interval(hits, 8) for hits in (2, 4, 6))


def test_a_recalls_bootstrap_is_over_images_that_weigh_by_their_captions() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 120, 400) * 2  # odd numbers have no caption
    ranks = rng.integers(0, 30, 120)[groups // 2] + rng.integers(0, 3, 400)
    found = recall(ranks, groups)
    sizes = np.bincount(groups, minlength=240)
    for k, share, interval in (
        (1, found.r1, found.r1_ci95),
        (5, found.r5, found.r5_ci95),
        (10, found.r10, found.r10_ci95),
    ):
        won = np.bincount(groups[ranks < k], minlength=240)
        draws = rng.multinomial((sizes > 0).sum(), (sizes > 0) / (sizes > 0).sum(), 4000)  # how often each is drawn
        expected = np.percentile((draws @ won) / (draws @ sizes), [2.5, 97.5])
        assert interval[0] < share < interval[1]
        assert interval == pytest.approx(expected, abs=0.015)
    assert recall(ranks, groups, seed=1) != found
    assert recall(ranks, groups) == found


@pytest.mark.parametrize("found", [True, False])
def test_a_recall_of_all_or_nothing_is_not_certain(found: bool) -> None:
    """A hundred captions of four images say no more than four images."""
    ranks = np.zeros(100, np.intp) if found else np.full(100, 50)
    told = recall(ranks, np.repeat(np.arange(4), 25))
    assert told.r1_ci95 == told.r10_ci95 == wilson_interval(4 * found, 4)


def test_a_recall_on_one_image_is_as_unsure_as_one_image() -> None:
    told = recall(np.array([0, 0, 0, 20]), np.full(4, 7))
    assert told.r1_ci95 == pytest.approx(wilson_interval(0.75, 1))
    assert told.r1_ci95[1] - told.r1_ci95[0] > 0.7


# Two on the same images


def hits(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    reference = [True] * both + [True] * lost + [False] * won + [False] * neither
    candidate = [True] * both + [False] * lost + [True] * won + [False] * neither
    order = np.random.default_rng(0).permutation(len(reference))
    return np.array(reference)[order], np.array(candidate)[order]


TABLES = [(70, 10, 5, 15), (794, 150, 86, 570), (50, 0, 0, 50), (0, 3, 0, 0), (1, 0, 0, 0), (0, 20, 20, 0)]


@pytest.mark.parametrize("table", TABLES)
def test_a_paired_difference_is_that_of_its_counts(table: tuple[int, int, int, int]) -> None:
    _, lost, won, _ = table
    reference, candidate = hits(*table)
    got = paired_difference(reference, candidate)
    assert (got.n, got.only_reference, got.only_candidate) == (sum(table), lost, won)
    assert got.points == pytest.approx(100 * (candidate.mean() - reference.mean()))
    # Agresti and Min (2005): half an observation in each cell of the 2 x 2 table, then Wald's interval, here from the
    # covariance of a multinomial instead of the formula that follows from it.
    cells = np.array(table) + 0.5
    p, contrast = cells / cells.sum(), np.array([0, -1, 1, 0])
    covariance = (np.diag(p) - np.outer(p, p)) / cells.sum()
    half = 1.959964 * np.sqrt(contrast @ covariance @ contrast)
    assert got.ci95 == pytest.approx((100 * (contrast @ p - half), 100 * (contrast @ p + half)))
    assert got.ci95[0] < got.ci95[1]


def test_a_paired_difference_turned_round_changes_its_sign() -> None:
    reference, candidate = hits(*TABLES[0])
    one, other = paired_difference(reference, candidate), paired_difference(candidate, reference)
    assert one.points == -other.points == -5.0
    assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    assert str(one).startswith("-5.00 points (95 % ")
    assert "100 images" in str(one)


@pytest.mark.parametrize(
    "shares", [(0.7, 0.1, 0.05, 0.15), (0.9, 0.02, 0.02, 0.06), (0.6, 0.02, 0.0, 0.38), (0.5, 0.2, 0.2, 0.1)]
)
@pytest.mark.parametrize("n", [50, 400])
def test_the_interval_holds_the_truth_at_least_93_times_in_100(shares: tuple[float, ...], n: int) -> None:
    truth = 100 * (shares[2] - shares[1])
    counts = np.random.default_rng(0).multinomial(n, shares, size=1500)
    within = 0
    for both, lost, won, neither in counts:
        low, high = paired_difference(*hits(both, lost, won, neither)).ci95
        within += low <= truth <= high
    assert within / len(counts) >= 0.93


@pytest.mark.parametrize(("reference", "candidate"), [(0, 0), (3, 4)])
def test_hits_that_do_not_match_are_refused(reference: int, candidate: int) -> None:
    with pytest.raises(InputError, match="expected the same images from both"):
        paired_difference(np.ones(reference, bool), np.ones(candidate, bool))


def right(*values: int) -> np.ndarray:
    return np.array(values, np.bool_)


def test_the_difference_of_differences_is_that_of_a_case_by_hand() -> None:
    """Four images, two shifts; images give 0, -1/2, -1 and +1, so -12.5 points on average."""
    found = difference_of_differences(
        right(1, 1, 1, 1), right(1, 1, 1, 0),
        np.array([[1, 1, 1, 0], [0, 1, 1, 0]], np.bool_), np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.bool_),
    )  # fmt: skip
    assert found.points == pytest.approx(-12.5)
    assert found.n == 4
    # Six images with the two that are added: sum -1/2, sum of squares 1/4 + 1 + 1 + 1 (half of +1, half of -1).
    centre = -0.5 / 6
    half = 1.959964 * math.sqrt((3.25 / 6 - centre**2) / 6)
    assert found.ci95 == pytest.approx((100 * (centre - half), 100 * (centre + half)))


def test_with_equal_clean_hits_it_is_the_paired_difference() -> None:
    rng = np.random.default_rng(0)
    clean, reference, candidate = rng.random((3, 200)) < 0.6
    plain = paired_difference(reference, candidate)
    found = difference_of_differences(clean, clean, reference, candidate)
    assert (found.points, *found.ci95) == pytest.approx((plain.points, *plain.ci95))


def test_images_and_shifts_that_do_not_fit_are_refused() -> None:
    one, two = right(1), right(1, 0)
    for arguments in [(one, one, two, two), (two, two, two, one), (two, one, two, two)]:
        with pytest.raises(InputError, match="expected"):
            difference_of_differences(*arguments)
    with pytest.raises(InputError):
        difference_of_differences(right(), right(), right(), right())


def test_holms_values_grow_with_the_claims_that_are_made_at_once() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize(("lost", "won"), [(0, 4), (3, 9), (9, 3), (21, 40), (6, 6)])
def test_mcnemars_test_is_that_of_statsmodels(lost: int, won: int) -> None:
    difference = PairedDifference(0.0, (0.0, 0.0), 100, lost, won)
    assert mcnemar_p(difference) == pytest.approx(mcnemar([[50, lost], [won, 20]], exact=True).pvalue)


def test_a_difference_between_sets_joins_intervals_that_are_not_symmetric() -> None:
    clean = PairedDifference(-1.0, (-3.0, 0.5), 100, 0, 0)
    shift = PairedDifference(-6.0, (-10.0, -5.0), 40, 0, 0)
    found = difference_between_sets(clean, shift)
    assert (found.points, found.n) == (-5.0, 40)
    assert found.ci95 == pytest.approx((-5 - math.hypot(4, 1.5), -5 + math.hypot(1, 2)))


def test_an_extra_loss_says_its_interval_and_images() -> None:
    said = "-7.00 points (95 % -10.50 to +0.25, 1,200 images)"
    assert str(ExtraLoss(-7.0, (-10.5, 0.25), 1200)) == said
    assert str(PairedDifference(-7.0, (-10.5, 0.25), 1200, 0, 0)) == said


def test_clean_images_of_another_number_are_refused() -> None:
    three, two = np.ones(3, np.bool_), np.ones(2, np.bool_)
    with pytest.raises(InputError, match="the same 3 images and shifts from both"):
        difference_of_differences(three, two, three, three)
    with pytest.raises(InputError, match="shifts of the 3 clean images"):
        difference_of_differences(three, three, two, two)
    with pytest.raises(InputError, match="the same 3 images and shifts from both"):
        difference_of_differences(three, three, np.ones((0, 3), np.bool_), np.ones((0, 3), np.bool_))
    assert difference_of_differences(three, three, np.ones((4, 3), np.bool_), np.ones((4, 3), np.bool_)).points == 0


# Effective robustness


def test_log_odds_stay_finite_half_an_image_away_from_none_and_all() -> None:
    assert logit(0.0, 100) == pytest.approx(math.log(0.005 / 0.995))
    assert logit(1.0, 100) == pytest.approx(math.log(0.995 / 0.005))
    assert logit(0.25, 100) == pytest.approx(math.log(1 / 3))


def test_a_line_through_models_is_scipys() -> None:
    clean, shift = [0.4, 0.6, 0.7, 0.9], [0.3, 0.35, 0.6, 0.7]
    x, y = ([logit(value, 400) for value in values] for values in (clean, shift))
    expected = stats.linregress(x, y)
    line = fit_line(clean, shift, n=400)
    assert (line.slope, line.intercept, line.n) == pytest.approx((expected.slope, expected.intercept, 4))
    found = effective_robustness(line, 0.8, 0.65, n=400)
    middle = expected.intercept + expected.slope * logit(0.8, 400)
    assert found.predicted == pytest.approx(1 / (1 + math.exp(-middle)))
    assert (found.points, found.models) == (pytest.approx(100 * (0.65 - found.predicted)), 4)
    residual = np.array(y) - expected.intercept - expected.slope * np.array(x)
    spread = math.sqrt((residual @ residual) / 2)
    away = (logit(0.8, 400) - np.mean(x)) ** 2 / np.square(np.array(x) - np.mean(x)).sum()
    half = stats.t.ppf(0.975, 2) * spread * math.sqrt(1 + 1 / 4 + away)
    ends = [100 * (0.65 - 1 / (1 + math.exp(-(middle + step)))) for step in (half, -half)]
    assert found.ci95 == pytest.approx(ends)


def test_an_interval_far_beyond_what_floats_hold_is_all_that_there_is() -> None:
    line = fit_line([0.4, 0.5, 0.6], [1e-6, 1 - 1e-6, 1e-6], n=10_000_000)
    found = effective_robustness(line, 1 - 1e-7, 0.5, n=10_000_000)
    assert found.ci95 == pytest.approx((-50, 50))


def test_a_line_needs_three_models_with_both_figures_and_some_spread() -> None:
    for clean, shift in (([0.3, 0.5], [0.2, 0.4]), ([0.3, 0.5, 0.7], [0.2, 0.4]), ([0.3, 0.5], [0.2, 0.4, 0.5])):
        with pytest.raises(InputError, match="the results of 3 models or more"):
            fit_line(clean, shift, n=100)
    assert fit_line([0.3, 0.5, 0.7], [0.2, 0.4, 0.6], n=100).n == 3
    narrow, enough = ([0.5 - step, 0.5, 0.5 + step] for step in (0.029, 0.032))  # log odds of ±0.116 and ±0.128
    with pytest.raises(InputError, match=r"of different accuracy, got 0.471 to 0.529"):
        fit_line(narrow, narrow, n=100)
    assert fit_line(enough, enough, n=100).slope == pytest.approx(1)
