"""Labels hold still, abstain and turn into events, for softmax and sigmoid tables of any size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgeclip import EncoderSpec, PreprocessSpec, PromptTable, make_classes
from edgeclip.errors import InputError
from edgeclip.prompts import unit_rows
from edgeclip.runtime.decision import Decider, DecisionOptions, EmbeddingSmoother, LabelDecision
from edgeclip.runtime.scoring import Scorer

SPEC = EncoderSpec(
    preprocess=PreprocessSpec(height=8, width=8, resize_to=8, mean=(0.5,) * 3, std=(0.5,) * 3),
    embedding_dim=8,
    logit_scale=10.0,
)

HYSTERESIS = {"enter": 0.5, "leave": 0.35}


def scorer(*labels: str, **said: Any) -> Scorer:
    rows = np.random.default_rng(0).standard_normal((len(labels), 8)).astype(np.float32)
    return Scorer(PromptTable("t", make_classes(list(labels)), unit_rows(rows), ("{}",), "m", **said), SPEC)


def play(
    decider: Decider, table: Scorer, rows: list[list[float]], *, fps: float = 10.0, start: int = 0
) -> list[LabelDecision]:
    return [
        decider.update(table, np.array(row, np.float32), frame=i, time_s=i / fps, top_k=2)
        for i, row in enumerate(rows, start)
    ]


def said(decisions: list[LabelDecision]) -> list[tuple[str, str, int]]:
    return [(event.kind, event.label, event.frame) for decision in decisions for event in decision.events]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth_s": -1.0}, "smooth_s of 0 or more"),
        ({"smooth_s": math.nan}, "smooth_s of 0 or more"),
        ({"smooth": "labels"}, "scores or embeddings"),
        ({"enter": 0.0}, "enter above 0"),
        ({"enter": 1.5}, "enter above 0"),
        ({"enter": 0.4, "leave": 0.6}, "lower leave"),
        ({"dwell_s": math.inf}, "dwell_s"),
        ({"unknown_below": 2.0}, "unknown_below"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecisionOptions(**options)


def test_by_default_the_label_is_the_frames_best() -> None:
    decisions = play(Decider(DecisionOptions()), scorer("a", "b"), [[0.9, 0.1], [0.2, 0.8]])
    assert [(d.label, round(d.score, 3)) for d in decisions] == [("a", 0.9), ("b", 0.8)]
    assert [scored.label for scored in decisions[1].top] == ["b", "a"]


@pytest.mark.parametrize("fps", [5.0, 50.0])
def test_smoothing_does_not_depend_on_the_frame_rate(fps: float) -> None:
    decider, table = Decider(DecisionOptions(smooth_s=1.0)), scorer("a", "b")
    frames = int(fps) + 1
    decisions = play(decider, table, [[1.0, 0.0]] + [[0.0, 1.0]] * (frames - 1), fps=fps)
    assert dict(decisions[-1].top)["a"] == pytest.approx(math.exp(-1.0), rel=1e-4)


def test_smoothing_leaves_the_callers_scores_alone() -> None:
    decider, table = Decider(DecisionOptions(smooth_s=1.0)), scorer("a", "b")
    given = np.array([1.0, 0.0], np.float32)
    for frame in range(3):
        decider.update(table, given, frame=frame, time_s=frame, top_k=1)
        decider.update(table, given[::-1].copy(), frame=frame, time_s=frame + 0.5, top_k=1)
    assert given.tolist() == [1.0, 0.0]


def test_a_label_enters_after_its_dwell_and_leaves_after_it() -> None:
    options = DecisionOptions(dwell_s=0.3, **HYSTERESIS)
    rows = [[0.1, 0.9]] * 2 + [[0.8, 0.2]] * 6 + [[0.1, 0.2]] * 5
    decisions = play(Decider(options, source="s", region="r", table="t"), scorer("a", "b"), rows)
    assert said(decisions) == [("enter", "a", 5), ("leave", "a", 10)]
    enter, leave = (event for decision in decisions for event in decision.events)
    assert (enter.start_s, enter.end_s, enter.source, enter.region, enter.table) == (0.2, None, "s", "r", "t")
    assert (leave.start_s, leave.end_s, leave.time_s) == (0.2, 0.7, 1.0)
    assert leave.peak == pytest.approx(0.8)
    assert [d.present for d in decisions[4:6]] == [[], ["a"]]


def test_flicker_neither_enters_nor_leaves() -> None:
    decider, table = Decider(DecisionOptions(dwell_s=0.3, **HYSTERESIS)), scorer("a", "b")
    assert said(play(decider, table, [[0.9, 0.1], [0.2, 0.8]] * 8)) == []
    held = play(decider, table, [[0.9, 0.1]] * 5 + [[0.4, 0.6], [0.1, 0.9], [0.9, 0.1]] * 4, start=16)
    assert said(held) == [("enter", "a", 19)]


def test_between_leave_and_enter_a_present_label_stays_and_an_absent_one_does_not_come() -> None:
    decider, table = Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS)), scorer("a", "b")
    assert said(play(decider, table, [[0.6, 0.4]] + [[0.4, 0.45]] * 20)) == [("enter", "a", 0)]


def test_several_labels_of_a_sigmoid_table_are_present_at_once() -> None:
    decisions = play(Decider(DecisionOptions(dwell_s=0.1, **HYSTERESIS)), scorer("a", "b", "c"), [[0.9, 0.7, 0.1]] * 3)
    assert sorted(decisions[-1].present) == ["a", "b"]


def test_what_is_present_leaves_at_the_end_once() -> None:
    decider, table = Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS)), scorer("a", "b")
    play(decider, table, [[0.9, 0.1]] * 2)
    assert [(e.kind, e.label, e.end_s) for e in decider.finish(frame=1, time_s=0.1)] == [("leave", "a", 0.1)]
    assert decider.finish(frame=1, time_s=0.1) == []


def test_a_background_row_means_unknown_and_never_enters() -> None:
    table = scorer("a", "empty room", background=("empty room",))
    decisions = play(Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS)), table, [[0.1, 0.9], [0.8, 0.2]])
    assert [d.label for d in decisions] == ["unknown", "a"]
    assert decisions[0].score == pytest.approx(0.9)
    assert said(decisions) == [("enter", "a", 1)]


def test_abstention_below_the_option_or_else_the_tables_own_threshold() -> None:
    table = scorer("a", "b", thresholds={"a": 0.7})
    rows = [[0.6, 0.4], [0.4, 0.6]]
    assert [d.label for d in play(Decider(DecisionOptions()), table, rows)] == ["unknown", "b"]
    assert [d.label for d in play(Decider(DecisionOptions(unknown_below=0.5)), table, rows)] == ["a", "b"]


def test_a_class_enters_at_its_own_threshold() -> None:
    table = scorer("a", "b", thresholds={"a": 0.2, "b": 0.95})
    decisions = play(
        Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS)), table, [[0.25, 0.75], [0.15, 0.85], [0.1, 0.9]]
    )
    assert said(decisions) == [("enter", "a", 0), ("leave", "a", 2)]


def test_another_table_continues_the_stays_of_the_classes_that_it_has_too() -> None:
    decider = Decider(DecisionOptions(dwell_s=0.0, smooth_s=5.0, **HYSTERESIS))
    play(decider, scorer("a", "b", "c"), [[0.9, 0.6, 0.0]] * 2)
    (after,) = play(decider, scorer("x", "a"), [[0.0, 0.9]], start=2)
    assert said([after]) == [("leave", "b", 2)]
    assert after.present == ["a"]
    assert after.score == pytest.approx(0.9)
    assert [(e.label, e.start_s) for e in decider.finish(frame=3, time_s=0.3)] == [("a", 0.0)]


def test_a_step_back_in_time_ends_the_stays() -> None:
    decider, table = Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS)), scorer("a", "b")
    play(decider, table, [[0.9, 0.1]] * 5)
    assert said(play(decider, table, [[0.1, 0.2]])) == [("leave", "a", 0)]


def test_images_without_a_time_are_each_their_own() -> None:
    decider, table = Decider(DecisionOptions(smooth_s=1.0)), scorer("a", "b")
    labels = [
        decider.update(table, np.array(row, np.float32), frame=i, time_s=0.0, top_k=1).label
        for i, row in enumerate([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]])
    ]
    assert labels == ["a", "b", "a"]


def test_a_table_of_100000_classes_follows_its_few_stays_only() -> None:
    table = scorer(*(f"class {i}" for i in range(100_000)), background=("class 7",))
    decider = Decider(DecisionOptions(dwell_s=0.0, smooth_s=0.1, **HYSTERESIS))
    scores = np.zeros(100_000, np.float32)
    scores[[7, 99_999]] = 0.9, 0.8
    decision = decider.update(table, scores, frame=0, time_s=0.0, top_k=3)
    assert (decision.label, decision.present) == ("unknown", ["class 99999"])
    assert len(decider._stays) == 1


def test_embeddings_are_smoothed_to_unit_length() -> None:
    smoother = EmbeddingSmoother(1.0)
    first, second = np.eye(2, dtype=np.float32)
    np.testing.assert_array_equal(smoother.update(first, 0.0), first)
    blended = smoother.update(second, math.log(2.0))  # half the weight each
    np.testing.assert_allclose(blended, [math.sqrt(0.5)] * 2, atol=1e-6)
    np.testing.assert_array_equal(smoother.update(second, 0.0), second)
    np.testing.assert_array_equal(EmbeddingSmoother(0.0).update(second, 5.0), second)


def test_by_default_a_class_is_there_while_it_is_the_label() -> None:
    """Whatever its score: that depends on how many classes there are."""
    a, b, nothing = [0.12, 0.1, 0.05], [0.1, 0.12, 0.05], [0.1, 0.1, 0.3]
    table = scorer("a", "b", "empty", background=("empty",))
    frames = [a] * 8 + [b] * 2 + [a] * 2 + [b] * 8 + [nothing] * 8
    decisions = play(Decider(DecisionOptions(dwell_s=0.5)), table, frames)
    assert [(kind, label) for kind, label, _ in said(decisions)] == [
        ("enter", "a"),
        ("leave", "a"),
        ("enter", "b"),
        ("leave", "b"),
    ]
    assert decisions[9].present == ["a"], "a flicker is shorter than the dwell"
    assert decisions[-1].present == []


def test_leave_needs_enter_and_is_seven_tenths_of_it() -> None:
    with pytest.raises(InputError, match="expected enter beside leave"):
        DecisionOptions(leave=0.2)
    decisions = play(
        Decider(DecisionOptions(enter=0.5, dwell_s=0.0)), scorer("a", "b"), [[0.5, 0.1], [0.36, 0], [0.34, 0]]
    )
    assert [d.present for d in decisions] == [["a"], ["a"], []]
