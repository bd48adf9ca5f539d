"""What a trade-off recommends, and what it says of it, worked out by hand from points whose verdicts are given."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edgeclip.evaluation.statistics.paired import PairedDifference
from edgeclip.evaluation.statistics.rounds import Interval, Ratio
from edgeclip.evaluation.tradeoff.decide import Standings, answers, decide, misses
from edgeclip.evaluation.tradeoff.records import Comparison, SetAccuracy, TradeoffLimits, TradeoffPoint, Verdict

NO_LIMIT = TradeoffLimits()


def point(label: str, ms: float, top1: float, mb: float | None = 100.0) -> TradeoffPoint:
    """Its time ± 10 %, its accuracy ± 0.05."""
    return TradeoffPoint(
        label=label,
        bundle="b",
        model="m",
        size=(8, 16),
        variant=label,
        engine="e",
        latency_ms=Interval(ms, 0.9 * ms, 1.1 * ms),
        p99_ms=ms,
        images_per_s=1e3 / ms,
        memory_mb=mb,
        energy_j=None,
        accuracies=(SetAccuracy(data="made", top1=top1, ci95=(top1 - 0.05, top1 + 0.05), n=1200),),
    )


def pair(first: TradeoffPoint, second: TradeoffPoint, **verdicts: Verdict) -> Comparison:
    """The second to the first: as their figures have it, beyond noise unless a verdict says otherwise."""
    ratio = second.latency_ms.mean / first.latency_ms.mean
    known: dict[str, Verdict] = {
        "latency": "same" if ratio == 1 else "worse" if ratio > 1 else "better",
        "accuracy": "same" if second.top1 == first.top1 else "better" if second.top1 > first.top1 else "worse",
    }
    if first.memory_mb is not None and second.memory_mb is not None:
        more = second.memory_mb - first.memory_mb
        known["memory"] = "same" if not more else "worse" if more > 0 else "better"
    known |= verdicts
    width = 2.0 if known["latency"] == "same" else 1.01
    points = 100 * (second.top1 - first.top1)
    return Comparison(
        first=first.label,
        second=second.label,
        latency=Ratio(ratio, ratio / width, ratio * width),
        accuracy=PairedDifference(points, (points - 1, points + 1), 1200, 0, 0),
        verdicts=known,
    )


def all_pairs(points: list[TradeoffPoint], **level: set[tuple[str, str]]) -> list[Comparison]:
    """Of each two points; ``latency={("a", "b")}`` names two that are level there."""
    return [
        pair(one, other, **{axis: "same" for axis, two in level.items() if (one.label, other.label) in two})
        for one, other in itertools.combinations(points, 2)
    ]


def test_standings_are_those_of_the_first_named_in_either_order() -> None:
    fast, slow = point("fast", 10, 0.6, 50), point("slow", 20, 0.6, None)
    for pairs in ([pair(fast, slow)], [pair(slow, fast)]):
        found = Standings(pairs)
        assert found.verdict(fast, slow, "latency") == "better"
        assert found.verdict(slow, fast, "latency") == "worse"
        assert found.verdict(slow, fast, "accuracy") == found.verdict(fast, slow, "accuracy") == "same"
        assert found.verdict(fast, slow, "memory") is None
        assert (found.beats(fast, slow), found.beats(slow, fast)) == (True, False)
        assert found.level_with(fast, [slow, fast], "latency") == [fast]
        assert found.level_with(slow, [slow, fast], "latency") == [slow, fast]
        assert found.level_with(fast, [slow, fast], "memory") == [slow, fast]  # what is not known drops nobody


@pytest.mark.parametrize(
    ("ms", "top1", "verdicts", "said"),
    [
        (20, 0.60, {}, "2.00 times as slow, as accurate"),
        (10, 0.57, {}, "1.00 times as fast (within noise), 3.00 points less accurate"),
        (5, 0.60, {}, "2.00 times as fast, as accurate"),
        (12.5, 0.62, {}, "1.25 times as slow, 2.00 points more accurate"),
        (8, 0.57, {}, "1.25 times as fast, 3.00 points less accurate"),
        (10.1, 0.57, {"latency": "same"}, "1.01 times as slow (within noise), 3.00 points less accurate"),
        (5, 0.601, {"accuracy": "same"}, "2.00 times as fast, 0.10 points more accurate (within noise)"),
    ],
)
def test_a_point_beside_another_is_told_in_words(ms: float, top1: float, verdicts: dict[str, Any], said: str) -> None:
    this, other = point("this", ms, top1), point("other", 10, 0.6)
    assert Standings([pair(other, this, **verdicts)]).beside(this, other) == said


def test_the_whole_answer_of_a_case_by_hand() -> None:
    """Five points, the most accurate not measurably so; one is beaten twice, one beats nobody and is beaten by none."""
    points = [
        point("fp32", 20, 0.701, 400),
        point("fp16", 12, 0.700, 200),
        point("int8", 8, 0.650, 100),
        point("slow", 21, 0.640, 300),
        point("tiny", 4, 0.400, None),
    ]
    pairs = all_pairs(points, accuracy={("fp32", "fp16")})
    found = decide(points, pairs, TradeoffLimits(max_latency_ms=20.5, max_memory_mb=350))
    assert found.label == "fp16"
    assert found.beaten_by == {"fp32": ("fp16",), "slow": ("int8", "fp16")}  # the fastest first
    assert found.misses == {
        "fp32": ("400 MB, above 350",),
        "slow": ("21.00 ms, above 20.5",),
        "tiny": ("memory could not be measured",),
    }
    assert found.why == (
        "Ship fp16 (16×8): 12.00 ms (95 % 10.80–13.20), top-1 0.700 (95 % 0.650–0.750, 1,200 images), 200 MB.",
        "The most accurate other, fp32, outside the limits: 1.67 times as slow, 0.10 points more accurate (within "
        "noise).",
        "The fastest other, tiny, outside the limits: 3.00 times as fast, 30.00 points less accurate.",
    )


def test_a_single_other_that_is_fastest_and_most_accurate_is_named_once() -> None:
    points = [point("a", 10, 0.6, None), point("b", 5, 0.7, 500)]
    found = decide(points, all_pairs(points), TradeoffLimits(max_latency_ms=11, min_accuracy=0.5))
    assert found.label == "b"
    assert found.why[1:] == (
        "The most accurate and the fastest other, a: 2.00 times as slow, 10.00 points less accurate.",
    )
    points[1] = point("b", 5, 0.7, None)
    found = decide(points, all_pairs(points), TradeoffLimits(max_latency_ms=10.5))
    assert found.why[0].endswith("1,200 images).")  # nothing is said of memory that is not known
    points = [point("a", 10, 0.6), point("b", 5, 0.7, 500)]
    found = decide(points, all_pairs(points), TradeoffLimits(max_memory_mb=200))
    assert found.why[1] == (
        "The most accurate and the fastest other, b, outside the limits: 2.00 times as fast, 10.00 points more "
        "accurate."
    )


def test_nothing_within_the_limits_names_the_fastest_and_the_most_accurate() -> None:
    points = [point("a", 10, 0.6), point("b", 5, 0.5), point("c", 30, 0.8)]
    found = decide(points, all_pairs(points), TradeoffLimits(max_latency_ms=4, min_accuracy=0.9, max_memory_mb=1500))
    assert found.label is None
    assert found.why == (
        "Nothing measured is within the limits (max latency ms 4, min accuracy 0.9, max memory mb 1500).",
        "The fastest is b with 5.00 ms and top-1 0.500, the most accurate c with 0.800 in 30.00 ms.",
    )
    assert found.misses["b"] == ("5.00 ms, above 4", "top-1 0.500, below 0.9")


def test_a_limit_holds_what_is_just_at_it_and_says_where_the_interval_reaches_across() -> None:
    this = point("this", 10, 0.6, 100)
    assert misses(this, TradeoffLimits(max_latency_ms=10, min_accuracy=0.6, max_memory_mb=100)) == []
    (_, *more) = decide([this], [], TradeoffLimits(max_latency_ms=10, min_accuracy=0.6)).why
    assert more == [
        "Its time is within noise of the limit of 10 ms.",
        "Its accuracy is within noise of the limit of 0.6: more images would tell.",
    ]
    edge = TradeoffLimits(max_latency_ms=this.latency_ms.high, min_accuracy=this.accuracies[0].ci95[0])
    assert len(decide([this], [], edge).why) == 1
    assert len(decide([this], [], NO_LIMIT).why) == 1


def test_a_circle_of_points_is_kept_whole() -> None:
    """Each beats the next on what is known of both; nobody may be dropped by somebody that is dropped as well."""
    a, b, c = point("a", 10, 0.6), point("b", 11, 0.6), point("c", 12, 0.6)
    same: dict[str, Verdict] = {"latency": "same", "accuracy": "same", "memory": "same"}
    pairs = [
        pair(a, b, **(same | {"memory": "worse"})),
        pair(b, c, **(same | {"memory": "worse"})),
        pair(c, a, **(same | {"memory": "worse"})),
    ]
    assert decide([c, a, b], pairs, NO_LIMIT).beaten_by == {}


def test_what_the_front_does_not_drop_is_looked_at_again() -> None:
    """``best`` drops ``middle`` alone, and ``last`` beats nobody: it stays, for only ``middle`` beats it."""
    best, middle, last = point("best", 10, 0.6), point("middle", 11, 0.6), point("last", 12, 0.6)
    level: dict[str, Verdict] = {"latency": "same", "accuracy": "same", "memory": "same"}
    pairs = [
        pair(best, middle, **(level | {"memory": "worse"})),
        pair(middle, last, **(level | {"memory": "worse"})),
        pair(best, last, **level),
    ]
    assert decide([last, middle, best], pairs, NO_LIMIT).beaten_by == {"middle": ("best",)}


def test_of_points_that_are_level_accuracy_then_memory_then_accuracy_decide() -> None:
    small, large, good = point("small", 10.2, 0.70, 50), point("large", 10, 0.70, 90), point("good", 10.4, 0.71, 90)
    points = [small, large, good]
    every = {(one.label, other.label) for one, other in itertools.combinations(points, 2)}
    assert decide(points, all_pairs(points, latency=every, accuracy=every), NO_LIMIT).label == "small"
    assert decide(points, all_pairs(points, latency=every, accuracy=every, memory=every), NO_LIMIT).label == "good"
    assert decide(points, all_pairs(points, latency=every), NO_LIMIT).label == "good"
    assert decide(points, all_pairs(points), NO_LIMIT).label == "good"
    assert decide(points, all_pairs(points), TradeoffLimits(min_accuracy=0.6)).label == "large"
    assert decide(points, all_pairs(points, latency=every), TradeoffLimits(min_accuracy=0.6)).label == "good"
    unknown = [point("unknown", 10.1, 0.70, None), small, large]
    every = {(one.label, other.label) for one, other in itertools.combinations(unknown, 2)}
    # The large one is dropped for the small one's sake; of what is not known nothing is held against it.
    assert decide(unknown, all_pairs(unknown, latency=every, accuracy=every), NO_LIMIT).label == "unknown"
    twins = [point("slower", 11, 0.7), point("faster", 10, 0.7)]
    two = {("slower", "faster")}
    assert decide(twins, all_pairs(twins, latency=two), NO_LIMIT).label == "faster"


def test_the_answers_for_a_page_are_those_of_the_rule_for_every_setting() -> None:
    random = np.random.default_rng(3)
    points = [
        point(f"p{n}", float(random.integers(5, 12)), float(random.integers(0, 6)) / 10, float(random.integers(1, 5)))
        for n in range(9)
    ]
    points.append(point("unknown", 7, 0.5, None))
    points.append(point("nothing", 3, 0.2, 0.0))
    level = {
        axis: {two for two in itertools.combinations([each.label for each in points], 2) if random.random() < 0.4}
        for axis in ("latency", "accuracy", "memory")
    }
    pairs = all_pairs(points, **level)
    found = answers(points, pairs)
    assert found.latencies_ms == sorted({each.latency_ms.mean for each in points})
    assert found.memories_mb == sorted({each.memory_mb for each in points if each.memory_mb})
    assert found.accuracies == sorted({each.top1 for each in points if each.top1})
    told = set()
    for i, latency in enumerate(found.latencies_ms):
        for j, memory in enumerate([*found.memories_mb, None]):
            changes = found.picks[i][j]
            assert changes[0][0] == 0
            assert all(one[1] != other[1] for one, other in itertools.pairwise(changes))
            for k, accuracy in enumerate([*found.accuracies, None]):
                number = [value for at, value in changes if at <= k][-1]
                asked = TradeoffLimits(max_latency_ms=latency, max_memory_mb=memory, min_accuracy=accuracy)
                assert decide(points, pairs, asked).label == (None if number == -1 else points[number].label)
                told.add(number)
    assert len(found.picks) == len(found.latencies_ms)
    assert {len(row) for row in found.picks} == {len(found.memories_mb) + 1}
    assert len(told) > 4
