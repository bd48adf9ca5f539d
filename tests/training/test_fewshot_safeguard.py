"""A setting that loses to zero-shot by more than chance is not taken, and what few shots are worth is said rightly."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from edgeclip import EncoderSpec, PreprocessSpec, PromptTable, make_classes
from edgeclip.prompts import unit_rows
from edgeclip.runtime.scoring import Scorer

pytest.importorskip("torch")

from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation.fewshot import CurveReport, adapted_lines, curve_lines
from edgeclip.training.adapt.curve import Curve, CurveOptions, CurvePoint, draw_curve
from edgeclip.training.adapt.fewshot import (
    METHODS,
    Adapted,
    Method,
    MethodSetting,
    _loss_and_hits,
    _spread,
    adapt,
    cross_validate,
)
from edgeclip.training.adapt.linear_probe import Shots

WIDTH = 8
_PREPROCESS = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SOFTMAX = EncoderSpec(preprocess=_PREPROCESS, embedding_dim=WIDTH, logit_scale=20.0)
AXES = np.eye(WIDTH, dtype=np.float32)


def table_of(rows: np.ndarray) -> PromptTable:
    classes = make_classes([f"class {index}" for index in range(len(rows))])
    return PromptTable("shelf", classes, rows, ("{}",), "m" * 16)


TEXT, OTHER = table_of(AXES[[0, 1, 6]]), table_of(AXES[[2, 3, 6]])


def shots_of(*, lost: int, won: int, both: int) -> Shots:
    """Shots of two classes in turn, and one of a third. Zero-shot, by the first two axes, is right about all but those
    ``won`` by a little; another table, by the next two, about all but those ``lost``, and is surer where it is right.
    """
    kinds = [(0.52, 0.48, 0.48, 0.52)] * lost + [(0.48, 0.52, 0.6, 0.0)] * won + [(0.52, 0.48, 0.6, 0.0)] * both
    rows, labels = [AXES[6]], [2]
    for number, (text, text_other, own, own_other) in enumerate(kinds):
        label = number % 2
        row = np.zeros(WIDTH, np.float32)
        row[[label, 1 - label, 2 + label, 3 - label]] = (text, text_other, own, own_other)
        row[5] = math.sqrt(max(0.0, 1 - float(row @ row)))
        rows.append(row)
        labels.append(label)
    return Shots(unit_rows(np.stack(rows)), np.array(labels))


def method(*, from_text: bool = True, seen: list[Shots] | None = None) -> Method:
    """Two settings: the text rows, and another table, whatever the shots."""

    def fit(
        _table: PromptTable, shots: Shots, _encoder: EncoderSpec, settings: Sequence[MethodSetting]
    ) -> list[PromptTable]:
        if seen is not None:
            seen.append(shots)
        return [TEXT, OTHER][: len(settings)]

    two = (MethodSetting(), MethodSetting(1.0))
    return Method(fit, lambda *_: two, lambda _: two[0], from_text=from_text)


@pytest.mark.parametrize(
    ("lost", "won", "taken"),
    [
        (0, 0, True),
        (1, 0, True),  # of one answer that differs, one may be wrong by chance
        (2, 0, False),  # of two, √2
        (3, 0, False),
        (3, 1, True),  # two more of four
        (4, 1, False),  # three more of five
        (0, 3, True),
        (5, 4, True),
    ],
)
def test_a_setting_with_less_loss_is_taken_only_if_it_is_not_more_often_wrong(lost: int, won: int, taken: bool) -> None:
    both = 40 - lost - won
    shots = shots_of(lost=lost, won=won, both=both)
    settings = (MethodSetting(), MethodSetting(1.0))
    best, top1, zero_shot = cross_validate(method(), TEXT, shots, SOFTMAX, settings)
    assert best == int(taken)
    assert zero_shot == pytest.approx((40 - won) / 40)  # the one shot of the third class is not asked about
    assert top1 == pytest.approx((40 - lost) / 40 if taken else zero_shot)
    # A method that does not begin at zero-shot has nothing to fall back to: the least loss is taken.
    best, top1, _ = cross_validate(method(from_text=False), TEXT, shots, SOFTMAX, settings)
    assert (best, top1) == (1, pytest.approx((40 - lost) / 40))


def test_each_shot_is_asked_about_once_by_a_fit_that_did_not_see_it() -> None:
    seen: list[Shots] = []
    shots = shots_of(lost=0, won=0, both=12)
    cross_validate(method(seen=seen), TEXT, shots, SOFTMAX, (MethodSetting(), MethodSetting(1.0)))
    assert len(seen) == 4
    assert [np.bincount(each.labels).tolist() for each in seen] != [[6, 6, 1]] * 4
    assert all((each.labels == 2).sum() == 1 for each in seen)  # a class's only shot helps every fit
    left_out = sum(len(shots.labels) - len(each.labels) for each in seen)
    assert left_out == 12


def test_shots_are_spread_over_the_folds() -> None:
    labels = np.repeat(np.arange(6), 2)
    folds = _spread(labels, 0)
    assert np.bincount(folds).tolist() == [3, 3, 3, 3]
    assert all(len(set(folds[labels == label])) == 2 for label in range(6))
    many = _spread(np.array([0] * 9 + [3] * 4), 1)
    assert sorted(np.bincount(many[:9])) == [2, 2, 2, 3]
    assert sorted(many[9:]) == [0, 1, 2, 3]
    assert (_spread(labels, 0) == folds).all()
    assert any((_spread(labels, seed) != folds).any() for seed in range(1, 4))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_loss_is_scikit_learns(kind: Literal["softmax", "sigmoid"]) -> None:
    """At a scale at which no score lies where logarithms are cut off."""
    bias = -1.0 if kind == "sigmoid" else 0.0
    encoder = EncoderSpec(preprocess=_PREPROCESS, embedding_dim=WIDTH, logit_scale=4.0, logit_bias=bias, score=kind)
    rng = np.random.default_rng(0)
    shots = Shots(unit_rows(rng.standard_normal((30, WIDTH)).astype(np.float32)), rng.integers(0, 3, 30))
    loss, hits = _loss_and_hits(TEXT, shots, encoder)
    scores = Scorer(TEXT, encoder).scores(shots.embeddings).astype(np.float64)
    if kind == "sigmoid":
        expected = metrics.log_loss(np.eye(3)[shots.labels].ravel(), scores.ravel(), normalize=False)
    else:
        shares = scores / scores.sum(axis=1, keepdims=True)  # to the last bit, as scikit-learn wants them
        expected = metrics.log_loss(shots.labels, shares, normalize=False, labels=[0, 1, 2])
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (hits == (scores.argmax(axis=1) == shots.labels)).all()


def few(counts: Sequence[int]) -> Shots:
    """So many shots of each class, near its axis."""
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = 0.1 * np.random.default_rng(0).standard_normal((len(labels), WIDTH))
    return Shots(unit_rows((AXES[labels] + noise).astype(np.float32)), labels)


def test_it_is_validated_where_most_classes_have_two_shots() -> None:
    text = table_of(AXES[:5])
    assert adapt(text, few([2, 2, 1, 1]), SOFTMAX, "tip-adapter").top1 is None
    assert adapt(text, few([2, 2, 2, 1]), SOFTMAX, "tip-adapter").top1 == 1.0
    assert adapt(text, few([0, 2, 0, 0]), SOFTMAX, "tip-adapter").top1 == 1.0
    assert adapt(text, few([0, 0, 0, 0]), SOFTMAX, "tip-adapter") == Adapted(text, MethodSetting())


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("probe", MethodSetting()),
        ("zs-probe", MethodSetting(pull=1.0)),
        ("tip-adapter", MethodSetting(alpha=5.0, beta=4.0)),
        ("tip-adapter-f", MethodSetting(alpha=5.0, beta=4.0)),
    ],
)
def test_one_shot_a_class_takes_what_was_chosen_once(name: str, setting: MethodSetting) -> None:
    shots = few([1, 1, 1])
    found = adapt(table_of(AXES[:3]), shots, SOFTMAX, name)
    assert (found.setting, found.top1, found.zero_shot_top1) == (setting, None, None)
    digest = hashlib.sha256(shots.embeddings.tobytes() + shots.labels.tobytes()).hexdigest()[:12]
    figures = f"pull {setting.pull:g}, alpha {setting.alpha:g}, beta {setting.beta:g}"
    assert found.table.adapted == f"{name}, 1 shots a class, {figures}, shots {digest}"
    uneven = adapt(table_of(AXES[:4]), few([1, 0, 3, 1]), SOFTMAX, name).table.adapted
    assert uneven.startswith(f"{name}, 1 to 3 shots a class, ")


def test_settings_go_from_zero_shot_on() -> None:
    text, shots = table_of(AXES[:3]), few([4, 4, 4])
    pulls = [math.inf, 10, 3, 1, 0.3, 0.1, 0.03, 0.01]
    for name in ("probe", "zs-probe"):
        assert [each.pull for each in METHODS[name].settings(text, shots, SOFTMAX, 0)] == pulls
    grid = METHODS["tip-adapter"].settings(text, shots, SOFTMAX, 0)
    assert grid[0] == MethodSetting()
    assert [(each.alpha, each.beta) for each in grid[1:]] == [
        (20 * alpha, beta) for beta in (1, 2, 4, 8) for alpha in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
    ]
    tip = adapt(text, shots, SOFTMAX, "tip-adapter").setting
    start = tip if tip.alpha else MethodSetting(alpha=5.0, beta=4.0)
    assert METHODS["tip-adapter-f"].settings(text, shots, SOFTMAX, 0) == (
        MethodSetting(),
        *(MethodSetting(pull, start.alpha, start.beta) for pull in (math.inf, 3.0, 0.3)),
    )
    assert [name for name, each in METHODS.items() if not each.from_text] == ["probe"]


# The curve, and what is said


def point(name: str, shots: int, gain: float, **more: Any) -> CurvePoint:
    given = {"top1": 0.5, "low": 0.4, "high": 0.6, "gain_low": -0.1, "gain_high": 0.1, "by_seed": [], "settings": []}
    return CurvePoint(name, shots, gain=gain, **given | more)


def test_points_below_zero_shot_are_named() -> None:
    points = [
        point("zs-probe", 1, -0.01), point("zs-probe", 2, 0.0), point("probe", 1, -0.2), point("tip-adapter", 4, -1e-6)
    ]  # fmt: skip
    curve = Curve(points, images=1200, classes=3, tested=30, seeds=5, most_shots=16)
    assert curve.below_zero_shot() == [points[0], points[3]]
    assert curve.of("zs-probe") == points[:2]
    report = CurveReport("data", "m", "fp32", (), 0, curve, describe_machine())
    said = curve_lines(report)
    assert said[0] == (
        "data: 1,200 images in 3 classes, 30 of them tested on for each of 5 seeds; up to 16 shots a class are there"
    )
    assert said[2] == "zs-probe            1  0.500  0.400–0.600     -0.010            -0.100 to +0.100"
    assert said[-2:] == [
        "zero-shot-initialised methods below zero-shot: zs-probe at 1, tip-adapter at 4",
        f"fp32 of model m on {summary(report.machine)}",
    ]
    above = Curve(points[1:3], images=1, classes=1, tested=1, seeds=2, most_shots=1)
    assert curve_lines(CurveReport("d", "m", "fp32", (), 0, above, describe_machine()))[-2].endswith(": nowhere")


def test_a_curves_figures_are_means_over_seeds_with_students_interval() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 12)
    embeddings = unit_rows((AXES[labels] + 0.6 * rng.standard_normal((48, WIDTH))).astype(np.float32))
    text = table_of(unit_rows((AXES[:4] + 0.4 * rng.standard_normal((4, WIDTH))).astype(np.float32)))
    done: list[tuple[int, int]] = []
    options = CurveOptions(methods=("tip-adapter", "probe"), shots=(0, 99), seeds=2)
    curve = draw_curve(text, Shots(embeddings, labels), SOFTMAX, options, progress=lambda *each: done.append(each))
    assert (curve.images, curve.classes, curve.tested, curve.seeds, curve.most_shots) == (48, 4, 12, 2, 9)
    assert [(each.method, each.shots) for each in curve.points] == [
        ("tip-adapter", 0),
        ("tip-adapter", 9),
        ("probe", 9),
    ]
    assert done == [(number + 1, 6) for number in range(6)]
    zero = curve.points[0].by_seed
    for each in curve.points:
        for values, mean, low, high in (
            (each.by_seed, each.top1, each.low, each.high),
            (np.subtract(each.by_seed, zero), each.gain, each.gain_low, each.gain_high),
        ):
            assert mean == pytest.approx(np.mean(values))
            half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / math.sqrt(2)
            assert (low, high) == pytest.approx((mean - half, mean + half))
        assert len(each.settings) == 2
    assert curve.points[0].settings[0] == "pull inf, alpha 0, beta 1"
    assert curve.points[0].gain == 0


def test_what_a_table_is_worth_is_said_where_it_is_known() -> None:
    plain = adapted_lines(Adapted(TEXT, MethodSetting()))
    assert plain == ["shelf: 3 classes, as the text has it"]
    told = adapted_lines(Adapted(TEXT, MethodSetting(), 0.75, 0.5))
    assert told[1:] == ["cross-validated on these images: top-1 0.750, zero-shot 0.500"]
