"""What sampling costs: CPU time of the sampler's thread, and the speed of an engine's loop with and without it.

    python benchmarks/telemetry.py [--bundle starter] [--engine NAME] [--rounds 20] [--seconds 2] [--json FILE]

The same loop of single inferences runs alone, with edgeclip's sampler, with that sampler reading 24 files of one number
more (as many as a Jetson's rails, zones and counters are), and with a peer: a thread that asks psutil (and, where there
is a GPU, pynvml) for the same quantities as often, as monitors written on these libraries do. All are interleaved in
turn, their order rotates. The cost is the thread's own CPU time (``time.thread_time``). Files in a temporary folder
cost no I2C traffic, so that row is Python's part of a Jetson's cost and not a board's. Prints the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import msgspec
import numpy as np

from edgeclip import Bundle
from edgeclip.devices.machine.probe import describe_machine, installed_versions, summary
from edgeclip.devices.sensors.base import Channel, FileSource, ValueFile
from edgeclip.devices.sensors.find import find_sources
from edgeclip.devices.sensors.telemetry import INTERVAL_S, Telemetry
from edgeclip.extras import require
from edgeclip.files import write_json
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.proof.choose import choose

_FILES = 24


class Sampler(Protocol):
    """Something that samples while it is entered, and knows what its thread cost."""

    cpu_s: float
    count: int

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way to sample.

    Attributes:
        rate_hz: readings a second.
        core: CPU time of the thread, in parts of one core: least, median and most of the rounds.
        a_reading_us: median CPU time of one reading, microseconds.
        speed: of the loop beside it, in parts of the loop alone in the same round: the median and its 95 % interval.
    """

    what: str
    rate_hz: float
    core: tuple[float, float, float]
    a_reading_us: float
    speed: tuple[float, float, float]


class Ours:
    """edgeclip's sampler."""

    def __init__(self, extra: Path | None = None) -> None:
        found = find_sources()
        if extra:
            files = sorted(extra.iterdir())
            channels = [(Channel(path.name, "temperature_c", "board"), ValueFile(path)) for path in files]
            found.sources.append(FileSource("files", channels))
        self._telemetry = Telemetry(sources=found)
        self.cpu_s, self.count = 0.0, 0

    def __enter__(self) -> Ours:
        self._telemetry.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._telemetry.__exit__(kind, error, trace)
        self.cpu_s, self.count = self._telemetry.cpu_s, len(self._telemetry.samples()[0]) - 2


class Peer:
    """A loop over psutil and pynvml."""

    def __init__(self) -> None:
        self._psutil = require("psutil", purpose="compare with", extra="dev")
        self._handle: Any = None
        with contextlib.suppress(Exception):  # no GPU, no driver, no module: psutil alone
            self._nvml = require("pynvml", purpose="compare with")
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
        self._process = self._psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.cpu_s, self.count = 0.0, 0

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            ask = self._psutil
            with self._process.oneshot():
                self._process.cpu_percent()
                self._process.memory_info()
            ask.cpu_percent()
            ask.virtual_memory()
            ask.cpu_freq()
            ask.sensors_temperatures()
            if self._handle is not None:
                self._nvml.nvmlDeviceGetPowerUsage(self._handle)
                self._nvml.nvmlDeviceGetTemperature(self._handle, self._nvml.NVML_TEMPERATURE_GPU)
                self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
                self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            self.count += 1
            self.cpu_s = time.thread_time()


def inferences_a_second(infer: Callable[[], object], seconds: float) -> float:
    """Speed of the loop."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        infer()
        count += 1
    return count / (time.perf_counter() - start)


def compare(
    infer: Callable[[], object], samplers: dict[str, Callable[[], Sampler]], rounds: int, seconds: float
) -> list[Row]:
    """Run all in turn, with the loop alone in every round."""
    kept: dict[str, list[tuple[float, float, float, float]]] = {what: [] for what in samplers}
    names = ["", *samplers]
    for turn in range(rounds):
        speeds: dict[str, float] = {}
        costs: dict[str, tuple[float, int]] = {}
        for what in names[turn % len(names) :] + names[: turn % len(names)]:
            if not what:
                speeds[what] = inferences_a_second(infer, seconds)
                continue
            with samplers[what]() as sampler:
                speeds[what] = inferences_a_second(infer, seconds)
            costs[what] = (sampler.cpu_s, sampler.count)
        for what, (cpu_s, count) in costs.items():
            kept[what].append((count / seconds, cpu_s / seconds, cpu_s / count, speeds[what] / speeds[""]))
    return [_row(what, np.array(values)) for what, values in kept.items()]


def _row(what: str, values: Any) -> Row:
    """(R, 4) of the rounds to medians and their spread."""
    rate, core, reading, speed = np.sort(values, axis=0).T
    # 95 % interval of a median, by the ranks of a binomial distribution.
    reach = 0.98 * np.sqrt(len(speed))
    low, high = max(0, int(len(speed) / 2 - reach)), min(len(speed) - 1, int(np.ceil(len(speed) / 2 + reach)))
    return Row(
        what=what,
        rate_hz=float(np.median(rate)),
        core=(float(core[0]), float(np.median(core)), float(core[-1])),
        a_reading_us=float(np.median(reading)) * 1e6,
        speed=(float(speed[low]), float(np.median(speed)), float(speed[high])),
    )


@contextlib.contextmanager
def numbers() -> Iterator[Path]:
    """A folder of files of one number each."""
    with tempfile.TemporaryDirectory() as folder:
        for index in range(_FILES):
            (Path(folder) / f"{index:02}").write_text(f"{40_000 + index}\n")
        yield Path(folder)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="starter")
    parser.add_argument("--engine", help="[the one that is chosen here]")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    choice = choose(bundle, engine=given.engine)
    spec = bundle.manifest.encoder.preprocess
    image = np.zeros((1, 3, spec.height, spec.width), np.float32)
    with ImageEncoder(bundle, choice.variant, engine=choice.engine) as encoder, numbers() as files:
        samplers: dict[str, Callable[[], Sampler]] = {
            "edgeclip": Ours,
            f"edgeclip, {_FILES} files more": lambda: Ours(files),
            "psutil loop": Peer,
        }
        inferences_a_second(lambda: encoder.encode_preprocessed(image), 1.0)
        rows = compare(lambda: encoder.encode_preprocessed(image), samplers, given.rounds, given.seconds)
        with Telemetry() as telemetry:
            inferences_a_second(lambda: encoder.encode_preprocessed(image), given.seconds)
    conditions = telemetry.conditions()
    print(f"{'':<26}{'rate Hz':>9}{'% of a core':>24}{'µs a reading':>14}{'speed of the loop':>26}")
    for row in rows:
        core = f"{row.core[1]:.3%} ({row.core[0]:.3%}–{row.core[2]:.3%})".replace("%", "")
        speed = f"{row.speed[1]:.3f} ({row.speed[0]:.3f}–{row.speed[2]:.3f})"
        print(f"{row.what:<26}{row.rate_hz:>9.1f}{core:>24}{row.a_reading_us:>14.0f}{speed:>26}")
    loop = f"speed 1 is the loop alone, {choice.variant} on {choice.engine}"
    print(f"medians of {given.rounds} rounds of {given.seconds:g} s (cost: least–most; speed: 95 % interval); {loop}")
    print("read here: " + ", ".join(sorted({f"{r.name} {r.kind} ({r.source})" for r in conditions.readings})))
    print("absent here: " + "; ".join(f"{name}: {reason}" for name, reason in conditions.absent.items()))
    print(
        f"{conditions}\non {summary(describe_machine())}; {installed_versions(['psutil', 'nvidia-ml-py', 'openvino'])}"
    )
    if given.json:
        write_json(given.json, {"machine": describe_machine(), "rows": rows, "conditions": conditions})


if __name__ == "__main__":
    main()
