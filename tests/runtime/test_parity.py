"""How well two encoders' embeddings agree is counted as it is defined, and what damages an encoder passes no limit."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from edgeclip.errors import InputError, ParityError
from edgeclip.prompts import unit_rows
from edgeclip.runtime.proof.parity import (
    LIMITS,
    ParityLimits,
    ParityReport,
    compare_decisions,
    compare_embeddings,
    worst_of,
)
from edgeclip.spec import Precision


def test_cosines_and_their_first_percentile_are_those_of_their_definition() -> None:
    angles = np.linspace(0, 1, 101)  # radians between the rows
    reference = np.tile(np.array([[3.0, 0.0]], np.float32), (101, 1))
    candidate = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    report = compare_embeddings(reference, candidate, [str(n) for n in range(101)], batch_size=1)
    assert report.min_cosine == pytest.approx(np.cos(1.0), abs=1e-6)
    assert report.p01_cosine == pytest.approx(np.cos(0.99), abs=1e-6)  # of 101 values, one lies below it
    assert report.mean_cosine == pytest.approx(np.cos(angles).mean(), abs=1e-6)


# Similarities of images (rows) to classes; gaps of the reference are 0.2, 0.4 and 0.6 or as said.
THREE = [[0.5, 0.3, 0.1], [0.1, 0.6, 0.2], [0.0, 0.1, 0.7]]


@pytest.mark.parametrize(
    ("reference", "candidate", "agreement", "losses"),
    [
        pytest.param(THREE, THREE, 1, [0, 0, 0], id="the same"),
        pytest.param(
            THREE,
            [[0.5, 0.4, 0.1], [0.1, 0.6, 0.2], [0.0, 0.1, 0.7]],
            1,
            [0.25, 0, 0],  # of 0.2 there is 0.1 left, and the median gap is 0.4
            id="smaller gap",
        ),
        pytest.param(
            THREE,
            [[0.3, 0.5, 0.1], [0.1, 0.6, 0.2], [0.0, 0.1, 0.7]],
            2 / 3,
            [1, 0, 0],  # from 0.2 above to 0.2 below
            id="another best class",
        ),
        pytest.param(THREE, [[0.9, 0.3, 0.1], [0.1, 0.6, 0.2], [0.0, 0.1, 0.7]], 1, [-1, 0, 0], id="a wider gap"),
        pytest.param([[0.6, 0.4], [0.1, 0.3]], [[0.5, 0.5], [0.2, 0.1]], 0.5, [1, 1.5], id="two classes"),
        pytest.param([[0.5, 0.5], [0.9, 0.1]], [[0.5, 0.5], [0.9, 0.1]], 1, [0, 0], id="a tie stays a tie"),
        pytest.param([[0.5, 0.5], [0.8, 0.4]], [[0.4, 0.5], [0.8, 0.4]], 0.5, [0.5, 0], id="a tie is broken"),
    ],
)
def test_margin_loss_is_counted_in_the_references_median_gap(
    reference: list[list[float]], candidate: list[list[float]], agreement: float, losses: list[float]
) -> None:
    found = compare_decisions(np.array(reference, np.float32), np.array(candidate, np.float32))
    assert found.agreement == pytest.approx(agreement)
    assert found.mean_margin_loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert found.p95_margin_loss == pytest.approx(np.percentile(losses, 95), abs=1e-5)


def test_agreement_and_margin_are_taken_on_the_classes_and_not_on_the_lengths() -> None:
    classes = np.eye(2, dtype=np.float32)
    reference = np.array([[4.0, 3.0], [0.0, 2.0]], np.float32)  # unit rows (.8, .6) and (0, 1): gaps .2 and 1
    candidate = np.array([[3.0, 4.0], [0.0, 9.0]], np.float32)  # (.6, .8) and (0, 1): gaps -.2 and 1
    report = compare_embeddings(reference, candidate, ("a", "b"), batch_size=1, classes=classes)
    assert (report.classes, report.agreement) == (2, 0.5)
    # The median gap is .6, and half of that parts what is clearly decided from what is not.
    assert (report.decided, report.decided_agreement) == (1, 1.0)
    assert report.mean_margin_loss == pytest.approx(0.4 / 0.6 / 2)
    assert report.p95_margin_loss == pytest.approx(0.95 * 0.4 / 0.6)


def test_a_decision_that_was_clear_and_is_lost_is_told_apart_from_one_that_was_close() -> None:
    sure, close = [0.9, 0.1], [0.5, 0.45]
    reference = np.array([sure, sure, close, close], np.float32)  # median gap .425
    for changed, expected in ((0, (3 / 4, 1 / 2)), (2, (3 / 4, 1.0))):
        candidate = reference.copy()
        candidate[changed] = candidate[changed, ::-1]
        found = compare_decisions(reference, candidate)
        assert found.decided == 2
        assert (found.agreement, found.decided_agreement) == expected
    level = np.full((2, 2), 0.5, np.float32)  # nothing is decided: then all that there is counts
    assert (compare_decisions(level, level[:, ::-1]).decided, compare_decisions(level, level).decided_agreement) == (
        0,
        1,
    )


@pytest.mark.parametrize("classes", [None, np.zeros((0, 2), np.float32), np.ones((1, 2), np.float32)])
def test_without_two_classes_there_is_no_agreement_and_no_limit_on_it(classes: np.ndarray | None) -> None:
    rows = np.eye(2, dtype=np.float32)
    report = compare_embeddings(rows, rows, ("a", "b"), batch_size=1, classes=classes)
    assert (report.classes, report.agreement, report.mean_margin_loss, report.p95_margin_loss) == (0, None, None, None)
    assert not report.failures(LIMITS["fp32"])


GOOD = ParityReport(
    images=10,
    batch_sizes=(1,),
    mean_cosine=1.0,
    p01_cosine=1.0,
    min_cosine=1.0,
    mean_centred_cosine=1.0,
    min_centred_cosine=1.0,
    max_relative_error=0.0,
    max_abs_difference=0.0,
    classes=3,
    agreement=1.0,
    decided=8,
    decided_agreement=1.0,
    mean_margin_loss=0.0,
    p95_margin_loss=0.0,
    worst=("a", "b", "c"),
)
EXACT = ParityLimits(
    min_cosine=0.9,
    min_centred_cosine=0.9,
    mean_centred_cosine=0.9,
    agreement=0.9,
    decided_agreement=0.9,
    mean_margin_loss=0.1,
    margin_loss=0.1,
)


@pytest.mark.parametrize("value", [0.5, np.nan])
@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ("min_cosine", "a cosine of at least 0.9, got"),
        ("min_centred_cosine", "a mean-centred cosine of at least 0.9"),
        ("mean_centred_cosine", "a mean of the mean-centred cosine of at least 0.9"),
        ("agreement", "a top-1 agreement of at least 0.9"),
        ("decided_agreement", "a top-1 agreement where FP32 decides clearly of at least 0.9"),
        ("mean_margin_loss", "a mean margin loss of at most 0.1 gaps"),
        ("p95_margin_loss", "a margin loss of at most 0.1 gaps"),
    ],
)
def test_every_limit_counts_and_what_is_not_a_number_reaches_none(figure: str, said: str, value: float) -> None:
    assert GOOD.require(EXACT, what="x") is GOOD
    failures = msgspec.structs.replace(GOOD, **{figure: value}).failures(EXACT)
    assert len(failures) == 1
    assert failures[0].startswith(said)


def of_photographs() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (64, 48) with a large part in common, as those of models have, and ten classes: (10, 48) unit rows."""
    random = np.random.default_rng(5)
    common, own = random.standard_normal(48), random.standard_normal((64, 48))
    return (2 * common + own).astype(np.float32), unit_rows(random.standard_normal((10, 48)).astype(np.float32))


def every_second_the_next_ones(rows: np.ndarray) -> np.ndarray:
    changed = rows.copy()
    changed[::2] = rows[1::2]
    return changed


DAMAGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one embedding for all": lambda rows: np.tile(rows.mean(axis=0), (len(rows), 1)),
    "what tells images apart turned round": lambda rows: 2 * rows.mean(axis=0) - rows,
    "each second image's is its neighbour's": every_second_the_next_ones,
    "one image's is another's": lambda rows: np.concatenate([rows[1:2], rows[1:]]),
    "channels shuffled": lambda rows: rows[:, ::-1].copy(),
    "half of the channels dead": lambda rows: np.where(np.arange(rows.shape[1]) % 2 == 0, rows, 0).astype(np.float32),
    "clipped at a third of the range": lambda rows: np.clip(rows, -np.abs(rows).max() / 3, np.abs(rows).max() / 3),
    "unsigned read as signed": lambda rows: (rows - 256 * (rows > rows.max() / 2)).astype(np.float32),
    "noise as large as what tells images apart": lambda rows: (
        rows + np.random.default_rng(6).standard_normal(rows.shape)
    ).astype(np.float32),
    "nothing": np.zeros_like,
}


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_no_precision_lets_an_encoder_pass_that_is_broken(
    damage: Callable[[np.ndarray], np.ndarray], precision: Precision
) -> None:
    rows, classes = of_photographs()
    names = [str(number) for number in range(len(rows))]
    report = compare_embeddings(rows, damage(rows), names, batch_size=1, classes=classes)
    with pytest.raises(ParityError, match="x: expected a "):
        report.require(LIMITS[precision], what="x")


@pytest.mark.parametrize("precision", LIMITS)
def test_what_all_images_have_in_common_hides_no_damage(precision: Precision) -> None:
    """One embedding for all, at a cosine of 0.99 to each image's own, and no classes by which it would be seen."""
    rows = of_photographs()[0]
    rows += 20 * rows.mean(axis=0)
    names = [str(number) for number in range(len(rows))]
    report = compare_embeddings(rows, np.tile(rows.mean(axis=0), (len(rows), 1)), names, batch_size=1)
    assert report.min_cosine > 0.99
    with pytest.raises(ParityError, match="mean-centred cosine"):
        report.require(LIMITS[precision], what="x")


@pytest.mark.parametrize(("precision", "noise"), [("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 4e-3), ("int8", 1e-2)])
def test_each_precision_lets_its_own_rounding_pass(precision: Precision, noise: float) -> None:
    rows, classes = of_photographs()
    rounded = (rows + noise * np.random.default_rng(6).standard_normal(rows.shape)).astype(np.float32)
    names = [str(number) for number in range(len(rows))]
    report = compare_embeddings(rows, rounded, names, batch_size=1, classes=classes)
    assert report.require(LIMITS[precision], what="x") is report


def test_an_image_that_is_not_a_number_is_the_worst() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    candidate = rows.copy()
    candidate[1] *= -1
    candidate[3, 0] = np.nan
    report = compare_embeddings(rows, candidate, ("a", "b", "c", "d", "e"), batch_size=1)
    assert report.worst[:2] == ("d", "b")


@pytest.mark.parametrize("order", [1, -1])
def test_the_worst_of_two_batch_sizes_counts_for_each_figure(order: int) -> None:
    other = msgspec.structs.replace(
        GOOD, batch_sizes=(8,), min_cosine=0.5, worst=("z",), agreement=0.7, p95_margin_loss=2.0, max_relative_error=0.1
    )
    best = msgspec.structs.replace(GOOD, p01_cosine=0.8, min_centred_cosine=None)
    both = worst_of([best, other][::order])
    assert (both.min_cosine, both.p01_cosine, both.agreement) == (0.5, 0.8, 0.7)
    assert (both.p95_margin_loss, both.max_relative_error, both.min_centred_cosine) == (2.0, 0.1, 1.0)
    assert both.worst == ("z",)
    assert sorted(both.batch_sizes) == [1, 8]
    assert np.isnan(worst_of([GOOD, msgspec.structs.replace(other, min_cosine=np.nan)][::order]).min_cosine)
    assert np.isnan(worst_of([GOOD, msgspec.structs.replace(other, agreement=np.nan)][::order]).agreement or 0)


def test_errors_are_each_images_own() -> None:
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    candidate = np.array([[3.0, 3.0], [0.0, 2.0]], np.float32)
    report = compare_embeddings(reference, candidate, ("a", "b"), batch_size=1)
    assert (report.max_relative_error, report.max_abs_difference) == (1.0, 3.0)  # 3 of 3 and 2 of 4


def test_one_image_has_no_mean_to_be_centred_by() -> None:
    report = compare_embeddings(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), ("a",), batch_size=1)
    assert (report.mean_centred_cosine, report.min_centred_cosine, report.worst) == (None, None, ("a",))
    assert report.min_cosine == pytest.approx(1)


def test_the_worst_image_is_so_by_either_cosine() -> None:
    # Around (10, 0), what b loses is little of its embedding, and all of what tells it from the others.
    reference = np.array([[10.0, 0.3], [10.0, -0.3], [10.0, 5.0], [10.0, -5.0]], np.float32)
    candidate = reference.copy()
    candidate[1, 1], candidate[2, 0] = 0.3, 7.0
    report = compare_embeddings(reference, candidate, ("a", "b", "c", "d"), batch_size=1)
    assert report.worst[:2] == ("b", "c")
    assert len(report.worst) == 3
    assert report.min_centred_cosine == pytest.approx(-1)
    assert report.mean_centred_cosine == pytest.approx((1 - 1 + 5 / np.hypot(3, 5) + 1) / 4)


def test_of_several_batch_sizes_the_worsts_images_are_named() -> None:
    rows = np.array([[3.0, 1.0], [1.0, 3.0]], np.float32)
    good = compare_embeddings(rows, rows, ("a", "b"), batch_size=1)
    larger, without = (
        msgspec.structs.replace(good, worst=("z",), batch_sizes=(8,), **{figure: value})
        for figure, value in (("max_relative_error", 0.5), ("min_cosine", np.nan))
    )
    assert [worst_of(two).worst for two in ([good, larger], [larger, good], [good, without], [without, good])] == (
        [("z",)] * 4
    )


def test_two_images_are_centred() -> None:
    rows = np.array([[2.0, 1.0], [2.0, -1.0]], np.float32)  # around (2, 0)
    report = compare_embeddings(rows, rows[::-1], ("a", "b"), batch_size=1)
    assert (report.images, report.mean_centred_cosine, report.min_centred_cosine) == (2, -1.0, -1.0)


def test_decided_is_what_has_more_than_half_of_the_median_gap() -> None:
    reference = np.array([[0.25, 0.0], [0.5, 0.0], [0.5, 0.0], [1.0, 0.0]], np.float32)  # the median is .5
    assert compare_decisions(reference, reference).decided == 3


def test_what_is_just_at_a_limit_keeps_it() -> None:
    at = {"min_cosine": 0.9, "min_centred_cosine": 0.9, "mean_centred_cosine": 0.9, "agreement": 0.9}
    at |= {"decided_agreement": 0.9, "mean_margin_loss": 0.1, "p95_margin_loss": 0.1}
    assert all(check.status == "checked" for check in msgspec.structs.replace(GOOD, **at).checks(EXACT))


def test_a_limit_that_could_not_be_checked_says_why() -> None:
    checks = msgspec.structs.replace(GOOD, agreement=None).checks(EXACT)
    (untaken,) = [check for check in checks if check.status == "could not be checked"]
    assert str(untaken) == "a top-1 agreement of at least 0.9, got no prompt table to take it on"


def test_limits_that_say_nothing_of_decided_images_ask_nothing_of_them() -> None:
    limits = ParityLimits(min_cosine=0, min_centred_cosine=0, mean_centred_cosine=0, agreement=0, margin_loss=0)
    assert (limits.decided_agreement, limits.mean_margin_loss) == (0.0, np.inf)
    with pytest.raises(AttributeError):
        limits.agreement = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("reference", "candidate", "names"),
    [
        pytest.param((2, 3), (2, 4), 2, id="other lengths"),
        pytest.param((2, 3), (1, 3), 2, id="other images"),
        pytest.param((2,), (2,), 2, id="no rows"),
        pytest.param((2, 3), (2, 3), 3, id="more names"),
        pytest.param((0, 3), (0, 3), 0, id="no image"),
    ],
)
def test_embeddings_that_do_not_match_are_refused(
    reference: tuple[int, ...], candidate: tuple[int, ...], names: int
) -> None:
    with pytest.raises(InputError, match=f"expected {names} rows of embeddings"):
        compare_embeddings(np.ones(reference), np.ones(candidate), ["a"] * names, batch_size=1)


def test_rows_that_are_equal_decide_nothing() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(20, 8)).astype(np.float32)
    row = unit_rows(rng.normal(size=(1, 8)).astype(np.float32))
    noisy = reference + rng.normal(size=reference.shape).astype(np.float32) * 1e-3
    report = compare_embeddings(
        reference, noisy, [str(n) for n in range(20)], batch_size=1, classes=np.repeat(row, 5, 0)
    )
    status = {check.figure: check.status for check in report.checks(LIMITS["int8"])}
    assert {figure for figure, what in status.items() if what == "could not be checked"} == {
        "top-1 agreement",
        "top-1 agreement where FP32 decides clearly",
        "mean margin loss",
        "margin loss",
    }
