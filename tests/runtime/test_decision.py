"""Labels hold still, abstain and turn into events, for softmax and sigmoid tables of any size."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from edgeclip import EncoderSpec, PreprocessSpec, PromptTable, make_classes
from edgeclip.errors import InputError
from edgeclip.prompts import unit_rows
from edgeclip.runtime.decision import Decider, DecisionOptions, EmbeddingSmoother, LabelDecision, SourceState
from edgeclip.runtime.records import Event, Scored, View
from edgeclip.runtime.regions import Region, whole
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.sources.base import Frame

SPEC = EncoderSpec(
    preprocess=PreprocessSpec(height=8, width=8, resize_to=8, mean=(0.5,) * 3, std=(0.5,) * 3),
    embedding_dim=8,
    logit_scale=10.0,
)

HYSTERESIS = {"enter": 0.5, "leave": 0.35}


def scorer(*labels: str, name: str = "t", **said: Any) -> Scorer:
    rows = np.random.default_rng(0).standard_normal((len(labels), 8)).astype(np.float32)
    return Scorer(PromptTable(name, make_classes(list(labels)), unit_rows(rows), ("{}",), "m", **said), SPEC)


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
        ({"smooth_s": -1.0}, "expected smooth_s of 0 or more"),
        ({"smooth_s": -1e-9}, "smooth_s of 0 or more"),
        ({"smooth_s": math.nan}, "smooth_s of 0 or more"),
        ({"smooth": "labels"}, "scores or embeddings"),
        ({"enter": 0.0}, "enter above 0"),
        ({"enter": 1.5}, "enter above 0"),
        ({"enter": 0.4, "leave": -1e-9}, "lower leave"),
        ({"enter": 0.4, "leave": 0.6}, "lower leave"),
        ({"dwell_s": math.inf}, "expected dwell_s of 0"),
        ({"unknown_below": 2.0}, "unknown_below"),
        ({"unknown_below": -1e-9}, "unknown_below"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecisionOptions(**options)


def test_the_ends_of_each_range_are_taken() -> None:
    at_ends = DecisionOptions(smooth_s=0.0, enter=1.0, leave=1.0, dwell_s=0.0, unknown_below=1.0)
    assert at_ends.leave_ratio == 1.0
    assert DecisionOptions(enter=0.5, leave=0.0, unknown_below=0.0).leave_ratio == 0.0
    assert DecisionOptions(smooth="embeddings", enter=0.8, leave=0.2).leave_ratio == pytest.approx(0.25)


def test_by_default_half_a_second_of_dwell_and_no_smoothing() -> None:
    options = DecisionOptions()
    assert (options.smooth_s, options.smooth, options.dwell_s, options.unknown_below) == (0.0, "scores", 0.5, None)
    assert (options.enter, options.leave, options.leave_ratio) == (None, None, 0.7)


def test_by_default_the_label_is_the_frames_best() -> None:
    decisions = play(Decider(DecisionOptions()), scorer("a", "b"), [[0.9, 0.1], [0.2, 0.8]])
    assert [(d.label, round(d.score, 3)) for d in decisions] == [("a", 0.9), ("b", 0.8)]
    assert [scored.label for scored in decisions[1].top] == ["b", "a"]


@pytest.mark.parametrize("fps", [5.0, 50.0])
def test_smoothing_does_not_depend_on_the_frame_rate(fps: float) -> None:
    decider, table = Decider(DecisionOptions(smooth_s=2.0)), scorer("a", "b")
    frames = 2 * int(fps) + 1
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


@pytest.mark.parametrize("smooth_s", [1.0, 2.0])
def test_embeddings_are_smoothed_to_unit_length(smooth_s: float) -> None:
    smoother, half_s = EmbeddingSmoother(smooth_s), smooth_s * math.log(2.0)
    first, second = np.eye(2, dtype=np.float32)
    np.testing.assert_array_equal(smoother.update(first, 0.0), first)
    blended = smoother.update(second, half_s)  # half the weight each
    np.testing.assert_allclose(blended, [math.sqrt(0.5)] * 2, atol=1e-6)
    blended = smoother.update(second, 2 * half_s)  # (1/2, 1/2) and (0, 1) by half
    np.testing.assert_allclose(blended, np.array([1, 3]) / math.sqrt(10), atol=1e-6)
    np.testing.assert_array_equal(smoother.update(first, 2 * half_s), first)  # no time has passed
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


def test_an_event_says_score_and_peak_in_millionths_and_where_it_was() -> None:
    table = scorer("a", "b")
    decider = Decider(DecisionOptions(dwell_s=0.1, **HYSTERESIS))
    decisions = play(decider, table, [[0.7, 0.1], [0.87654321, 0.1], [0.61234567, 0.1], [0.1, 0.1], [0.01234567, 0.1]])
    enter, leave = (event for decision in decisions for event in decision.events)
    assert enter == Event("enter", "a", 1, 0.1, 0.0, score=0.876543, peak=0.876543)
    assert leave == Event("leave", "a", 3, 0.3, 0.0, score=0.1, peak=0.876543, end_s=0.2)
    assert (enter.source, enter.region, enter.table) == ("", "", "")


def test_a_score_at_leave_stays_and_a_dwell_short_of_a_microsecond_counts() -> None:
    options = DecisionOptions(enter=0.5, leave=0.25, dwell_s=0.5)
    decider, table = Decider(options), scorer("a", "b")
    times = {0.0: 0.5, 0.499999: 0.5, 0.6: 0.25, 1.0: 0.24, 1.1: 0.24}
    decisions = [
        decider.update(table, np.array([score, 0.1], np.float32), frame=i, time_s=time_s, top_k=1)
        for i, (time_s, score) in enumerate(times.items())
    ]
    assert [d.present for d in decisions] == [[], ["a"], ["a"], ["a"], []]
    leave = decisions[-1].events[0]
    assert (leave.time_s, leave.end_s) == (1.1, 0.6)


def test_a_class_that_left_for_just_the_dwell_is_gone() -> None:
    decider, table = Decider(DecisionOptions(dwell_s=0.5, **HYSTERESIS)), scorer("a", "b")
    frames = {-0.5: 0.9, 0.0: 0.9, 0.499999: 0.1}
    events = [
        decider.update(table, np.array([score, 0.0], np.float32), frame=i, time_s=time_s, top_k=1).events
        for i, (time_s, score) in enumerate(frames.items())
    ]
    assert [[event.kind for event in each] for each in events] == [[], ["enter"], ["leave"]]


def test_images_of_one_time_end_no_stay() -> None:
    decider, table = Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS)), scorer("a", "b")
    kinds = [
        [event.kind for event in decider.update(table, np.float32([0.9, 0.1]), frame=i, time_s=1.0, top_k=1).events]
        for i in range(3)
    ]
    assert kinds == [["enter"], [], []]


def test_what_leaves_by_a_step_back_leaves_at_the_time_that_was_reached() -> None:
    """Also where the table changes with the same frame."""
    decider = Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS))
    play(decider, scorer("a", "b"), [[0.9, 0.1]] * 5)
    (after,) = play(decider, scorer("a", "c"), [[0.9, 0.0]])
    leave, enter = after.events
    assert (leave.kind, leave.time_s, leave.end_s, leave.frame) == ("leave", 0.4, 0.4, 0)
    assert (enter.kind, enter.time_s, enter.start_s) == ("enter", 0.0, 0.0)


def test_what_leaves_with_its_table_leaves_now_and_so_does_what_became_background() -> None:
    decider = Decider(DecisionOptions(dwell_s=0.0, **HYSTERESIS))
    play(decider, scorer("a", "b", "c"), [[0.9, 0.6, 0.7]] * 2)
    (after,) = play(decider, scorer("c", "b", background=("b",)), [[0.9, 0.9]], start=2)
    assert [(event.kind, event.label, event.time_s) for event in after.events] == [
        ("leave", "a", 0.2),
        ("leave", "b", 0.2),
    ]
    assert after.present == ["c"]


def test_after_the_end_nothing_is_smoothed_with_what_was() -> None:
    decider, table = Decider(DecisionOptions(smooth_s=5.0, dwell_s=0.0, **HYSTERESIS)), scorer("a", "b")
    play(decider, table, [[0.9, 0.1]] * 2)
    (left,) = decider.finish(frame=7, time_s=0.25)
    assert (left.frame, left.time_s, left.end_s) == (7, 0.25, 0.1)
    (after,) = play(decider, table, [[0.2, 0.8]], start=9)
    assert (after.label, after.score) == ("b", pytest.approx(0.8))


def test_a_class_with_a_threshold_of_its_own_is_not_there_below_it_though_it_is_the_label() -> None:
    table = scorer("a", "b", thresholds={"a": 0.7})
    decisions = play(Decider(DecisionOptions(dwell_s=0.0, unknown_below=0.0)), table, [[0.6, 0.4], [0.8, 0.2]])
    assert [(d.label, d.present) for d in decisions] == [("a", []), ("a", ["a"])]


def test_a_score_at_the_threshold_is_known() -> None:
    (at,) = play(Decider(DecisionOptions(unknown_below=0.5)), scorer("a", "b"), [[0.5, 0.25]])
    assert (at.label, at.calibrated) == ("a", False)


def test_no_top_is_reported_where_none_is_asked_for() -> None:
    decision = Decider(DecisionOptions()).update(scorer("a", "b"), np.float32([0.3, 0.7]), frame=0, time_s=0.0, top_k=0)
    assert (decision.label, decision.top) == ("b", [])


HALVES = (Region("left", ((0, 0), (0.5, 0), (0.5, 1), (0, 1))), Region("right", ((0.5, 0), (1, 0), (1, 1), (0.5, 1))))
ROWS = np.eye(8, dtype=np.float32)[:2]  # (R, D)
PIXELS = np.zeros((2, 2, 3), np.uint8)


def state_of(options: DecisionOptions, regions: tuple[Region, ...] = HALVES, *, top_k: int = 2) -> SourceState:
    return SourceState(options, regions, source="door", top_k=top_k)


def test_an_unchanged_frame_is_scored_again_only_for_another_table() -> None:
    state, table, other = state_of(DecisionOptions()), [scorer("a", "b")], [scorer("c")]
    frame = Frame(0, 0.0, PIXELS)
    assert state.rows(frame, ROWS, table) is ROWS
    assert state.rows(Frame(1, 0.1, PIXELS), None, table) is ROWS, "what it scored before is not there yet"
    state.label(frame, [np.float32([[0.9, 0.1], [0.2, 0.8]])], table, encode_ms=1.0)
    assert state.rows(Frame(2, 0.2, PIXELS), None, table) is None
    assert state.rows(Frame(3, 0.3, PIXELS), None, other) is ROWS
    assert state.rows(Frame(4, 0.4, PIXELS), 2 * ROWS, other) is not None


def test_embeddings_are_smoothed_region_by_region() -> None:
    table = [scorer("a")]
    state = state_of(DecisionOptions(smooth="embeddings", smooth_s=0.5))
    first = state.rows(Frame(0, 0.0, PIXELS), ROWS, table)
    np.testing.assert_array_equal(first, ROWS)
    state.label(Frame(0, 0.0, PIXELS), [np.float32([[1.0], [1.0]])], table, encode_ms=1.0)
    half_s = math.log(2.0) / 2
    blended = state.rows(Frame(1, half_s, PIXELS), ROWS[::-1].copy(), table)
    expected = np.zeros((2, 8), np.float32)
    expected[:, :2] = math.sqrt(0.5)
    np.testing.assert_allclose(blended, expected, atol=1e-6)
    again = state.rows(Frame(2, 2 * half_s, PIXELS), None, table)  # unchanged, and yet nearer to what is seen
    np.testing.assert_allclose(again[:, :2], np.array([[1, 3], [3, 1]]) / math.sqrt(10), atol=1e-6)


def test_rows_that_are_not_one_a_region_are_never_paired_with_some_of_them() -> None:
    state, frame = state_of(DecisionOptions(smooth="embeddings", smooth_s=0.5)), Frame(0, 0.0, PIXELS)
    with pytest.raises(ValueError, match="shorter"):
        state.rows(frame, ROWS[:1], [scorer("a")])
    with pytest.raises(ValueError, match="shorter"):
        state.label(frame, [np.float32([[0.9], [0.2]])], [scorer("a"), scorer("b", name="u")], encode_ms=1.0)


@pytest.mark.parametrize(
    "options", [DecisionOptions(smooth="embeddings"), DecisionOptions(smooth="scores", smooth_s=2.0)]
)
def test_embeddings_are_left_as_they_are_where_they_are_not_to_be_smoothed(options: DecisionOptions) -> None:
    state = state_of(options)
    state.rows(Frame(0, 0.0, PIXELS), ROWS, [])
    turned = ROWS[::-1].copy()
    assert state.rows(Frame(1, 0.1, PIXELS), turned, []) is turned


def test_a_record_of_one_view_says_it_once() -> None:
    table = scorer("a", "b", "c")
    table.calibrated = True
    state = state_of(DecisionOptions(dwell_s=0.0, enter=0.5), (whole(),))
    frame = Frame(5, 1.25, PIXELS, file="5.jpg", captured=time.perf_counter() - 2.0)
    record = state.label(frame, [np.float32([[0.2, 0.7, 0.1]])], [table], encode_ms=1.23456)
    assert (record.frame, record.time_s, record.file, record.source) == (5, 1.25, "5.jpg", "door")
    assert (record.label, record.score) == ("b", pytest.approx(0.7))
    assert [scored.label for scored in record.top] == ["b", "a"]
    assert (record.encode_ms, record.gated, record.calibrated) == (1.235, False, True)
    assert 2000 <= record.latency_ms < 60_000
    assert isinstance(record.latency_ms, float)
    assert record.latency_ms == round(record.latency_ms, 3)
    assert (record.present, record.views) == (["b"], [])
    (event,) = record.events
    assert (event.source, event.region, event.table, event.frame) == ("door", "", "", 5)
    still = state.label(Frame(6, 1.5, PIXELS), None, [table], encode_ms=None)
    assert (still.gated, still.encode_ms, still.label, still.present, still.events) == (True, 0.0, "b", ["b"], [])


def test_a_record_of_several_tables_and_regions_says_each_and_its_label_is_the_firsts() -> None:
    things, moods = scorer("cat", "dog"), scorer("day", "night", name="moods")
    moods.calibrated = True
    state = state_of(DecisionOptions(dwell_s=0.0, enter=0.5), top_k=1)
    scores = [np.float32([[0.75, 0.25], [0.125, 0.875]]), np.float32([[0.625, 0.375], [0.25, 0.75]])]
    record = state.label(Frame(0, 0.0, PIXELS), scores, [things, moods], encode_ms=2.0)
    assert record.views == [
        View("t", "left", "cat", 0.75, [Scored("cat", 0.75)], ["cat"], False),
        View("t", "right", "dog", 0.875, [Scored("dog", 0.875)], ["dog"], False),
        View("moods", "left", "day", 0.625, [Scored("day", 0.625)], ["day"], True),
        View("moods", "right", "night", 0.75, [Scored("night", 0.75)], ["night"], True),
    ]
    assert (record.label, record.score, record.calibrated) == ("cat", 0.75, False)
    assert [(event.table, event.region, event.label) for event in record.events] == [
        ("t", "left", "cat"),
        ("t", "right", "dog"),
        ("moods", "left", "day"),
        ("moods", "right", "night"),
    ]
    state.label(Frame(4, 2.0, PIXELS), scores, [things, moods], encode_ms=2.0)
    assert {(e.kind, e.label, e.frame, e.time_s, e.source) for e in state.finish()} == {
        ("leave", label, 4, 2.0, "door") for label in ("cat", "dog", "day", "night")
    }


def test_two_regions_of_one_table_need_no_name_of_the_table_in_events() -> None:
    state = state_of(DecisionOptions(dwell_s=0.0, enter=0.5))
    scores = [np.float32([[0.75, 0.25], [0.125, 0.875]])]
    record = state.label(Frame(0, 0.0, PIXELS), scores, [scorer("cat", "dog")], encode_ms=2.0)
    assert [(event.table, event.region) for event in record.events] == [("", "left"), ("", "right")]
    assert [(view.table, view.region) for view in record.views] == [("t", "left"), ("t", "right")]


def test_a_source_that_gave_no_frame_has_nothing_to_end() -> None:
    assert state_of(DecisionOptions()).finish() == []
