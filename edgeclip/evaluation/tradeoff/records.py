"""What a trade-off is, as data: measured points, which of them are beaten, limits, and what is recommended."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from edgeclip.devices.machine.probe import Description
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.documents import read_json
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.records import Stage
from edgeclip.evaluation.statistics.paired import PairedDifference
from edgeclip.evaluation.statistics.rounds import Interval, Ratio

SCHEMA = 1
Verdict = Literal["better", "worse", "same"]


class SetAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """Of one set: images labelled right, as a share of ``n``, with Wilson's 95 % interval."""

    data: str
    top1: float
    ci95: tuple[float, float]
    n: int


class TradeoffPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One model, variant and engine.

    Attributes:
        label: what it is called, in no other way in the same report.
        bundle: name of its model, whose id is ``model``; ``size`` is its input (height, width).
        latency_ms: median of a batch of one, mean over rounds with its 95 % interval.
        p99_ms, images_per_s: over all rounds.
        memory_mb: most memory of a process that only loads and runs it, less that of one that loads no engine.
        energy_j: of one image, and its 95 % bound; None where the machine does not tell.
        accuracies: of the set that decides, then of the others.
    """

    label: str
    bundle: str
    model: str
    size: tuple[int, int]
    variant: str
    engine: str
    latency_ms: Interval
    p99_ms: float
    images_per_s: float
    memory_mb: float | None
    energy_j: tuple[float, float] | None
    accuracies: tuple[SetAccuracy, ...]

    @property
    def top1(self) -> float:
        """Share of the images labelled right in the set that decides."""
        return self.accuracies[0].top1


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How the second of two points stands to the first.

    Attributes:
        latency: of the second, in times of the first, from rounds that were run in turns.
        accuracy: of the second less the first's, on the same images of the set that decides.
        verdicts: of the second by axis: ``latency``, ``accuracy``, ``memory``, ``energy``. ``same`` is within noise; an
            axis that is not known of both is left out.
    """

    first: str
    second: str
    latency: Ratio
    accuracy: PairedDifference
    verdicts: dict[str, Verdict]

    def turned(self) -> Comparison:
        """The same with the two the other way round."""
        ratio, change = self.latency, self.accuracy
        opposite: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "same": "same"}
        return Comparison(
            first=self.second,
            second=self.first,
            latency=Ratio(1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low),
            accuracy=PairedDifference(
                -change.points,
                (-change.ci95[1], -change.ci95[0]),
                change.n,
                change.only_candidate,
                change.only_reference,
            ),
            verdicts={axis: opposite[verdict] for axis, verdict in self.verdicts.items()},
        )

    @property
    def second_wins(self) -> bool:
        """Whether the second is worse in nothing and better in something, each beyond noise."""
        found = set(self.verdicts.values())
        return "worse" not in found and "better" in found


class TradeoffLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was asked for; estimates are held against it, and it is said where their intervals reach across.

    Raises:
        InputError: a limit that no point can be held against.
    """

    max_latency_ms: float | None = None
    min_accuracy: float | None = None
    max_memory_mb: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_latency_ms", self.max_latency_ms), ("max_memory_mb", self.max_memory_mb)):
            if value is not None and not value > 0:
                raise InputError(f"expected {name} above 0, got {value:g}")
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise InputError(f"expected min_accuracy as a share such as 0.6, got {self.min_accuracy:g}")

    def given(self) -> dict[str, float]:
        """The limits that were given, by name."""
        named = {
            "max_latency_ms": self.max_latency_ms,
            "min_accuracy": self.min_accuracy,
            "max_memory_mb": self.max_memory_mb,
        }
        return {name: value for name, value in named.items() if value is not None}


class ShipDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What to run.

    Attributes:
        label: of the recommended point; None where no point is within the limits.
        why: sentences, the first says what to do.
        misses: of each point that is not within the limits, which it misses.
        beaten_by: of each point that is dominated, the points of the front that beat it; all others are the front.
    """

    label: str | None
    why: tuple[str, ...]
    misses: dict[str, tuple[str, ...]]
    beaten_by: dict[str, tuple[str, ...]]


class Tradeoff(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report.

    Attributes:
        stage: what was timed, as ``edgeclip bench`` calls it; ``frame`` (height, width) of its frames.
        data: sets, the one that decides first.
        points: as measured.
        pairs: of each two points, once.
        refused: what could not run, and why.
        machine, conditions: of the timing.
    """

    schema_version: int = SCHEMA
    stage: Stage
    frame: tuple[int, int] | None
    data: tuple[str, ...]
    templates: tuple[str, ...]
    points: tuple[TradeoffPoint, ...]
    pairs: tuple[Comparison, ...]
    limits: TradeoffLimits
    decision: ShipDecision
    refused: tuple[tuple[str, str], ...]
    machine: Description
    conditions: MeasurementConditions

    def point(self, label: str) -> TradeoffPoint:
        """The point of that label."""
        return next(point for point in self.points if point.label == label)


def load_tradeoff(path: Path) -> Tradeoff:
    """Read what ``edgeclip tradeoff`` wrote as ``tradeoff.json``.

    Raises:
        InputError: it is not that.
    """
    try:
        return read_json(path, Tradeoff)
    except InputError as error:
        raise InputError(f"expected a tradeoff.json of edgeclip tradeoff at {path} ({error})") from error
