"""What a benchmark of a bundle's variants measures, as data: what was run, every time it took, what came of it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.devices.machine.probe import Description
from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.sensors.energy import Energy
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.documents import read_json
from edgeclip.errors import InputError
from edgeclip.evaluation.statistics.rounds import Interval, interval_of_rounds

SCHEMA = 1
Stage = Literal["engine", "end-to-end", "pipelined"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class BenchSetting(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is measured.

    Attributes:
        model: id of the bundle's model, and ``size`` of its input (height, width).
        variant, engine: names.
        stage: ``engine``: a preprocessed batch to its embeddings; ``end-to-end``: frames of ``frame`` (height, width)
            to their labels, one batch after the other; ``pipelined``: resized frames to embeddings, as many batches
            under way as the engine gets most done with.
        batch: images at once.
        threads: CPU threads an inference; None for all.
    """

    model: str
    variant: str
    engine: str
    stage: Stage
    batch: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    threads: int | None
    size: tuple[int, int]
    frame: tuple[int, int] | None = None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads"
        return f"{self.variant} on {self.engine}, {self.stage}, batch {self.batch}{threads}"


_Time = Annotated[float, msgspec.Meta(gt=1e-9, lt=1e9)]  # milliseconds; beyond, no ratio of two of them is finite
_Round = Annotated[tuple[_Time, ...], msgspec.Meta(min_length=1)]


class Measured(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """What one setting took.

    Attributes:
        rounds_ms: for each round the times of its batches in their order, milliseconds; none is left out. Of
            ``pipelined`` a round is one time: that of a batch on average.
        warm_up_s: what it took until times were stable.
        stable: whether they became so before the warm-up's limit.
        memory_mb: most memory of a process that only loads and runs it, less that of one that loads no engine.
        energy: of all its rounds, and its error; None where the machine does not tell.
    """

    setting: BenchSetting
    ran_on: str
    rounds_ms: Annotated[tuple[_Round, ...], msgspec.Meta(min_length=1)]
    warm_up_s: float
    stable: bool
    memory_mb: float | None = None
    energy: Energy | None = None

    @cached_property
    def times_ms(self) -> npt.NDArray[np.float64]:
        """All times, (N,) milliseconds a batch."""
        return np.concatenate([np.asarray(times, np.float64) for times in self.rounds_ms])

    @cached_property
    def p50(self) -> Interval:
        """Median of a batch, milliseconds: mean over rounds of their medians, with its 95 % interval."""
        return interval_of_rounds(self.medians_ms)

    @property
    def medians_ms(self) -> list[float]:
        """Median of each round, milliseconds a batch."""
        return [float(np.median(times)) for times in self.rounds_ms]

    @property
    def images(self) -> int:
        """Images that were run in all rounds."""
        return self.setting.batch * len(self.times_ms)

    def percentile_ms(self, q: float) -> float:
        """Percentile over all rounds, milliseconds a batch."""
        return float(np.percentile(self.times_ms, q))

    @property
    def jitter_ms(self) -> float:
        """Mean absolute difference of neighbouring times in a round, milliseconds (RFC 3550's sense, not smoothed)."""
        steps = [np.abs(np.diff(times)) for times in self.rounds_ms if len(times) > 1]
        return float(np.concatenate(steps).mean()) if steps else 0.0

    @property
    def images_per_s(self) -> float:
        """Images a second over all rounds."""
        return self.setting.batch * 1e3 / float(self.times_ms.mean())

    @property
    def energy_per_image_j(self) -> tuple[float, float] | None:
        """Joules an image and their error, where energy is known."""
        return None if self.energy is None else (self.energy.joules / self.images, self.energy.error_j / self.images)


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A whole benchmark.

    Attributes:
        refused: settings that could not run, and why.
        conditions: what the machine was doing over all of it.
        device: name of the device profile that the machine fits; None where none does.
        ghz: clock of a CPU's cores, where the profile is a CPU's.
        costs: what an image costs each model, by its id; a bundle of before there were costs has none.
    """

    schema_version: int = SCHEMA
    bundles: dict[str, str]
    measured: tuple[Measured, ...]
    refused: tuple[tuple[BenchSetting, str], ...]
    machine: Description
    conditions: MeasurementConditions
    device: str | None = None
    ghz: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    costs: dict[str, GraphCost] = {}


def load_result(path: Path) -> BenchResult:
    """Read what ``edgeclip bench --json`` wrote.

    Raises:
        InputError: it is not that.
    """
    try:
        return read_json(path, BenchResult)
    except InputError as error:
        raise InputError(f"expected a file of edgeclip bench --json at {path} ({error})") from error
