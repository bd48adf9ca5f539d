"""Measured points and how each two of them compare in; which are dominated and which one to run, out.

A point beats another where it is worse in nothing and better in something: latency, accuracy, memory, energy. What
lies within noise is neither. So a point that is a hundredth of a millisecond slower is not dominated by chance, and
one that is half as fast is not saved by a tenth of a point that another draw of images would have taken away. Only
points of the front drop others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

import msgspec

from edgeclip.evaluation.tradeoff.records import Comparison, ShipDecision, TradeoffLimits, TradeoffPoint
from edgeclip.printable import counted


class Standings:
    """How any two points stand to each other.

    Args:
        pairs: of each two points, once, in either order.
    """

    def __init__(self, pairs: Iterable[Comparison]) -> None:
        both = (each for pair in pairs for each in (pair, pair.turned()))
        self._pairs = {(pair.first, pair.second): pair for pair in both}

    def verdict(self, point: TradeoffPoint, other: TradeoffPoint, axis: str) -> str | None:
        """``better``, ``same`` or ``worse``: ``point`` beside ``other``; None where it is not known of both."""
        return self._pairs[other.label, point.label].verdicts.get(axis)

    def level_with(self, best: TradeoffPoint, points: Sequence[TradeoffPoint], axis: str) -> list[TradeoffPoint]:
        """Those of the points that are not measurably worse than ``best``, itself among them."""
        return [point for point in points if point is best or self.verdict(point, best, axis) != "worse"]

    def beats(self, point: TradeoffPoint, other: TradeoffPoint) -> bool:
        """Whether ``point`` is worse in nothing than ``other`` and better in something."""
        return self._pairs[other.label, point.label].second_wins

    def beside(self, point: TradeoffPoint, other: TradeoffPoint) -> str:
        """``1.9 times as fast, 0.2 points more accurate (within noise)``: ``point`` beside ``other``."""
        pair = self._pairs[other.label, point.label]
        ratio, points, noise = pair.latency.ratio, pair.accuracy.points, " (within noise)"
        times = f"{max(ratio, 1 / ratio):.2f} times as {'slow' if ratio > 1 else 'fast'}"
        speed = times + ("" if pair.latency.differs else noise)
        if points == 0:
            return f"{speed}, as accurate"
        sure = noise if pair.verdicts["accuracy"] == "same" else ""
        return f"{speed}, {abs(points):.2f} points {'more' if points > 0 else 'less'} accurate{sure}"


def decide(points: Sequence[TradeoffPoint], pairs: Sequence[Comparison], limits: TradeoffLimits) -> ShipDecision:
    """Which points are dominated, which miss a limit, and which of the rest to run.

    With a least accuracy it is the fastest that has it. Otherwise it is the fastest of those that are not measurably
    less accurate than the most accurate one. Of points whose times differ by no more than noise, the more accurate; of
    those whose accuracies differ by no more than noise, the one that takes less memory.
    """
    standings = Standings(pairs)
    front = _front(points, standings)
    beaten = {
        point.label: tuple(other.label for other in front if standings.beats(other, point))
        for point in points
        if point not in front
    }
    missed = {point.label: tuple(misses(point, limits)) for point in points}
    eligible = [point for point in points if not missed[point.label]]
    picked = _pick(eligible, standings, fastest=limits.min_accuracy is not None) if eligible else None
    return ShipDecision(
        label=picked.label if picked else None,
        why=tuple(_why(picked, eligible, points, standings, limits) if picked else _why_none(points, limits)),
        misses={label: found for label, found in missed.items() if found},
        beaten_by=beaten,
    )


class Answers(msgspec.Struct, frozen=True):
    """What ``decide`` recommends for every setting of the limits: it changes only at the points' own figures.

    Attributes:
        latencies_ms, memories_mb, accuracies: the points' own, ascending, each once.
        picks: ``picks[i][j]`` is for limits that ``latencies_ms[i]`` and ``memories_mb[j]`` are the largest within; the
            last i is also for no limit on latency, and there is one j more, for none on memory. It is a list of
            (k, number of the recommended point, -1 for none), ascending: what is recommended where ``accuracies[k]``,
            or a higher one before the next k, is the lowest that is enough. One k more is for no least accuracy.
    """

    latencies_ms: list[float]
    memories_mb: list[float]
    accuracies: list[float]
    picks: list[list[list[tuple[int, int]]]]


def answers(points: Sequence[TradeoffPoint], pairs: Sequence[Comparison]) -> Answers:
    """``decide`` for every setting of the limits, for a page on which they can be changed."""
    standings = Standings(pairs)
    latencies = sorted({point.latency_ms.mean for point in points})
    # What a limit cannot be (it is above 0) asks for no setting of its own: such a point is within every one.
    memories = sorted({point.memory_mb for point in points if point.memory_mb is not None and point.memory_mb > 0})
    accuracies = sorted({point.top1 for point in points if point.top1 > 0})

    def within(**limit: float) -> frozenset[int]:
        limits = TradeoffLimits(**limit)
        return frozenset(number for number, point in enumerate(points) if not misses(point, limits))

    @cache
    def pick(numbers: frozenset[int], fastest: bool) -> int:
        eligible = {points[number].label: number for number in sorted(numbers)}
        if not eligible:
            return -1
        return eligible[_pick([points[number] for number in eligible.values()], standings, fastest=fastest).label]

    within_latency = [within(max_latency_ms=value) for value in latencies]
    within_memory = [*(within(max_memory_mb=value) for value in memories), within()]
    within_accuracy = [*((within(min_accuracy=value), True) for value in accuracies), (within(), False)]
    picks = [
        [_changes([pick(fast & small & good, fastest) for good, fastest in within_accuracy]) for small in within_memory]
        for fast in within_latency
    ]
    return Answers(latencies, memories, accuracies, picks)


def _changes(values: Sequence[int]) -> list[tuple[int, int]]:
    """(index, value) wherever a value differs from the one before."""
    return [(at, value) for at, value in enumerate(values) if at == 0 or value != values[at - 1]]


def _front(points: Sequence[TradeoffPoint], standings: Standings) -> list[TradeoffPoint]:
    """The points that no point of the front beats, the fastest first.

    What is beaten by nothing drops what it beats; then the same of the rest, so that nobody is dropped by a point that
    is dropped itself: "within noise" does not pass on from one to the next as "equal" does. A circle is kept whole.
    """
    front: list[TradeoffPoint] = []
    left = sorted(points, key=lambda point: point.latency_ms.mean)
    while left:
        kept = [p for p in left if not any(standings.beats(o, p) for o in left if o is not p)] or left
        front += kept
        left = [p for p in left if p not in kept and not any(standings.beats(o, p) for o in kept)]
    return sorted(front, key=lambda point: point.latency_ms.mean)


def misses(point: TradeoffPoint, limits: TradeoffLimits) -> list[str]:
    """The limits that a point's estimates are not within, each with the figure."""
    found = []
    if limits.max_latency_ms is not None and point.latency_ms.mean > limits.max_latency_ms:
        found.append(f"{point.latency_ms.mean:.2f} ms, above {limits.max_latency_ms:g}")
    if limits.min_accuracy is not None and point.top1 < limits.min_accuracy:
        found.append(f"top-1 {point.top1:.3f}, below {limits.min_accuracy:g}")
    if limits.max_memory_mb is not None:
        if point.memory_mb is None:
            found.append("memory could not be measured")
        elif point.memory_mb > limits.max_memory_mb:
            found.append(f"{point.memory_mb:.0f} MB, above {limits.max_memory_mb:g}")
    return found


def _pick(eligible: Sequence[TradeoffPoint], standings: Standings, *, fastest: bool) -> TradeoffPoint:
    good = eligible
    if not fastest:
        good = standings.level_with(max(eligible, key=_most_accurate), eligible, "accuracy")
    level = standings.level_with(min(good, key=lambda point: point.latency_ms.mean), good, "latency")
    level = standings.level_with(max(level, key=_most_accurate), level, "accuracy")
    level = standings.level_with(min(level, key=_smallest), level, "memory")
    return max(level, key=_most_accurate)


def _most_accurate(point: TradeoffPoint) -> tuple[float, float]:
    return point.top1, -point.latency_ms.mean


def _smallest(point: TradeoffPoint) -> float:
    return math.inf if point.memory_mb is None else point.memory_mb


def _why(
    picked: TradeoffPoint,
    eligible: Sequence[TradeoffPoint],
    points: Sequence[TradeoffPoint],
    standings: Standings,
    limits: TradeoffLimits,
) -> list[str]:
    """What to run and its figures; what else could be run, and what that would buy; limits that are within noise."""
    accuracy = picked.accuracies[0]
    memory = "" if picked.memory_mb is None else f", {picked.memory_mb:.0f} MB"
    height, width = picked.size
    said = [
        f"Ship {picked.label} ({width}×{height}): {picked.latency_ms.mean:.2f} ms "
        f"(95 % {picked.latency_ms.low:.2f}–{picked.latency_ms.high:.2f}), top-1 {accuracy.top1:.3f} "
        f"(95 % {accuracy.ci95[0]:.3f}–{accuracy.ci95[1]:.3f}, {counted(accuracy.n, 'image')}){memory}."
    ]
    others = [point for point in points if point is not picked]
    if others:
        most = max(others, key=lambda point: point.top1)
        fastest = min(others, key=lambda point: point.latency_ms.mean)
        named = [("The most accurate other", most), ("The fastest other", fastest)]
        if most is fastest:
            named = [("The most accurate and the fastest other", most)]
        for title, other in named:
            outside = "" if other in eligible else ", outside the limits"
            said.append(f"{title}, {other.label}{outside}: {standings.beside(other, picked)}.")
    if limits.max_latency_ms is not None and picked.latency_ms.high > limits.max_latency_ms:
        said.append(f"Its time is within noise of the limit of {limits.max_latency_ms:g} ms.")
    if limits.min_accuracy is not None and accuracy.ci95[0] < limits.min_accuracy:
        said.append(f"Its accuracy is within noise of the limit of {limits.min_accuracy:g}: more images would tell.")
    return said


def _why_none(points: Sequence[TradeoffPoint], limits: TradeoffLimits) -> list[str]:
    fastest = min(points, key=lambda point: point.latency_ms.mean)
    best = max(points, key=lambda point: point.top1)
    asked = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in limits.given().items())
    return [
        f"Nothing measured is within the limits ({asked}).",
        f"The fastest is {fastest.label} with {fastest.latency_ms.mean:.2f} ms and top-1 {fastest.top1:.3f}, "
        f"the most accurate {best.label} with {best.top1:.3f} in {best.latency_ms.mean:.2f} ms.",
    ]
