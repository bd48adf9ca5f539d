"""Bundles in; how long each variant takes on each engine of this machine, and the memory it needs, out.

Every round loads each setting anew, warms it up until it is stable and measures it, in an order drawn for the round:
what drifts meets all settings alike, and what differs from load to load is in the interval. No time is left out.
Memory is that of a process of its own for each.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from edgeclip.bundle import Bundle, BundleLike, open_bundles
from edgeclip.devices.machine.machine import match_profile
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.plan.cost import load_cost
from edgeclip.devices.plan.plan import demand_here
from edgeclip.devices.plan.records import Demand
from edgeclip.devices.sensors.energy import Energy, sum_of
from edgeclip.devices.sensors.telemetry import Telemetry
from edgeclip.engine_list import ENGINES
from edgeclip.errors import EdgeclipError, InputError, IntegrityError
from edgeclip.evaluation.bench.records import STAGES, BenchResult, BenchSetting, Measured, Stage
from edgeclip.evaluation.statistics.rounds import LEAST_ROUNDS
from edgeclip.limits import check_limit
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import ByteArray, check_threads, engine_class
from edgeclip.runtime.images import opencv
from edgeclip.runtime.proof.golden import GoldenImages, decoded_images
from edgeclip.runtime.proof.proof import prove
from edgeclip.runtime.proof.site import golden_here
from edgeclip.runtime.scoring import Scorer

_Loaded = tuple[str, str, str, int]  # model, variant, engine, batch: what decides the memory
_WINDOW = 8  # batches whose median is compared with the last window's while warming up
_STABLE = 0.03
_MOST_ROUNDS, _LARGEST_BATCH, _LONGEST_S = 10_000, 4096, 3600.0


@dataclass(frozen=True)
class BenchOptions:
    """What to measure and how long.

    Attributes:
        variants, engines: names; empty for all that the bundle has and that run here.
        stages: of ``STAGES``.
        batches, threads: to run each with; None in ``threads`` stands for all.
        rounds: how often each is measured; intervals are over rounds.
        seconds: that each is measured in a round.
        warm_up_s: longest warm-up in a round.
        frame: (height, width) of the frames of ``end-to-end``.
        seed: of the order in which settings are measured.

    Raises:
        InputError: a value out of range.
    """

    variants: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ("engine", "end-to-end")
    batches: tuple[int, ...] = (1,)
    threads: tuple[int | None, ...] = (None,)
    rounds: int = 5
    seconds: float = 1.0
    warm_up_s: float = 5.0
    frame: tuple[int, int] = (1080, 1920)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("variants", "engines", "stages"):
            if isinstance(value := getattr(self, name), str):
                raise InputError(f"expected {name} as a tuple, got {value!r}: write ({value!r},)")
        if not self.stages or min(self.frame) < 1:
            raise InputError(f"expected a stage and a frame of 1 × 1 or more, got {self.stages} and {self.frame}")
        check_limit("image_pixels", self.frame[0] * self.frame[1], "frame")
        if unknown := [stage for stage in self.stages if stage not in STAGES]:
            raise InputError(f"expected stages of {', '.join(STAGES)}, got {', '.join(unknown)}")
        if not LEAST_ROUNDS <= self.rounds <= _MOST_ROUNDS:
            raise InputError(
                f"expected at least {LEAST_ROUNDS} rounds for an interval and at most {_MOST_ROUNDS:,}, got "
                f"{self.rounds}"
            )
        if min(self.batches, default=0) < 1 or max(self.batches) > _LARGEST_BATCH:
            raise InputError(f"expected batches of at least 1 and at most {_LARGEST_BATCH}, got {self.batches}")
        if not (0 < self.seconds <= _LONGEST_S and 0 <= self.warm_up_s <= _LONGEST_S):
            raise InputError(
                f"expected seconds above 0, and of no more than {_LONGEST_S:g}, got {self.seconds} and warm-up of "
                f"{self.warm_up_s}"
            )
        for threads in self.threads:
            check_threads(threads)
        for name in self.engines:
            engine_class(name)


def bench(
    bundles: BundleLike | Sequence[BundleLike],
    options: BenchOptions | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> BenchResult:
    """Time every setting that runs here, in turns, each variant proved first.

    A variant that disagrees with FP32 on this machine is refused, as ``edgeclip label`` would refuse it.

    Args:
        bundles: of different models, opened or as paths.
        options: what to time, and how long; by default every variant on every engine that runs here.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        InputError: no setting runs here; the first reasons are given.
        IntegrityError: a file of a bundle was altered.
    """
    say = progress or (lambda _what, _done, _all: None)
    options, bundles = options or BenchOptions(), open_bundles(bundles)
    settings, refused = [], []
    of_model = {bundle.manifest.model.id: bundle for bundle in bundles}
    if len(of_model) < len(bundles):
        raise InputError("expected bundles of different models, got one twice: give each once")
    golden = {model: golden_here(bundle) for model, bundle in of_model.items()}
    for bundle in bundles:
        for setting in settings_of(bundle, options):
            if why := _refusal(bundle, setting, golden[setting.model]):
                refused.append((setting, why))
            else:
                settings.append(setting)
    if not settings:
        reasons = "; ".join(f"{setting}: {why}" for setting, why in refused[:3])
        raise InputError(f"nothing to measure runs here: {reasons or 'no variant suits an engine that is installed'}")
    rounds: dict[BenchSetting, list[_Round]] = defaultdict(list)
    order = random.Random(options.seed)
    steps = options.rounds * len(settings)
    with Telemetry() as telemetry:
        for _ in range(options.rounds):
            for setting in order.sample(settings, len(settings)):
                say(str(setting), sum(map(len, rounds.values())), steps)
                taken = golden[setting.model]
                assert taken is not None  # _refusal saw to it
                rounds[setting].append(_round(of_model[setting.model], setting, taken, options, telemetry))
        conditions = telemetry.conditions()
    memory = _memory_mb(of_model, settings)
    measured = tuple(
        Measured(
            setting=setting,
            ran_on=done[-1].ran_on,
            rounds_ms=tuple(each.times_ms for each in done),
            warm_up_s=round(sum(each.warm_up_s for each in done), 3),
            stable=all(each.stable for each in done),
            memory_mb=memory[_memory_key(setting)],
            energy=_together([each.energy for each in done]),
        )
        for setting, done in rounds.items()
    )
    here = Tree()
    profile = match_profile(here)
    costs = {bundle.manifest.model.id: load_cost(bundle.path) for bundle in bundles}
    return BenchResult(
        bundles={bundle.manifest.model.id: bundle.manifest.model.name for bundle in bundles},
        measured=tuple(sorted(measured, key=lambda each: settings.index(each.setting))),
        refused=tuple(refused),
        machine=describe_machine(),
        conditions=conditions,
        device=profile.name if profile else None,
        ghz=demand_here(Demand(), profile, here).ghz if profile else None,
        costs={model: cost for model, cost in costs.items() if cost is not None},
    )


def settings_of(bundle: Bundle, options: BenchOptions) -> Iterator[BenchSetting]:
    """Every combination that is meant to go together, whether it runs here or not."""
    spec = bundle.manifest.encoder.preprocess
    names = options.variants or tuple(variant.name for variant in bundle.manifest.variants)
    for variant in (bundle.variant(name) for name in names):
        for engine in options.engines or tuple(ENGINES):
            suits = engine_class(engine).suits(variant)
            if not suits or not (options.engines or engine_class(engine).available()):
                continue
            for stage in options.stages:
                for batch in options.batches:
                    for threads in options.threads if engine_class(engine).on_cpu else (None,):
                        yield BenchSetting(
                            model=bundle.manifest.model.id,
                            variant=variant.name,
                            engine=engine,
                            stage=stage,
                            batch=batch,
                            threads=threads,
                            size=(spec.height, spec.width),
                            frame=options.frame if stage == "end-to-end" else None,
                        )


def _refusal(bundle: Bundle, setting: BenchSetting, golden: GoldenImages | None) -> str:
    """Why a setting is not measured, or nothing."""
    if setting.batch > 1 and not bundle.variant(setting.variant).dynamic_batch:
        return "the variant takes one image at a time"
    if setting.stage == "end-to-end" and not bundle.manifest.tables:
        return "the bundle has no prompt table to label with"
    if golden is None:
        return "the bundle has no golden images to prove it on: run edgeclip prove with photographs of the site"
    try:
        proof = prove(bundle, setting.variant, setting.engine, golden)
    except IntegrityError:
        raise  # a bundle that cannot be trusted
    except EdgeclipError as error:
        return str(error)
    return f"disagrees with fp32 here: {'; '.join(proof.failures)}" if proof.failures else ""


@dataclass(frozen=True)
class _Round:
    ran_on: str
    times_ms: tuple[float, ...]
    warm_up_s: float
    stable: bool
    energy: Energy | None


def _round(
    bundle: Bundle, setting: BenchSetting, golden: GoldenImages, options: BenchOptions, telemetry: Telemetry
) -> _Round:
    """Load a setting, warm it up, measure it."""
    with ExitStack() as stack:
        encoder, run = _runner(bundle, setting, golden, stack)
        begun = time.perf_counter()
        stable = _warm_up(run, options.warm_up_s)
        start = telemetry.mark()
        times: list[float] = []
        while len(times) < 2 or time.perf_counter() - start < options.seconds:
            times.append(run() * 1e3)
        energy = telemetry.energy(start, telemetry.mark())
        return _Round(
            ran_on=encoder.engine.describe(),
            times_ms=tuple(round(each, 4) for each in times),
            warm_up_s=start - begun,
            stable=stable,
            energy=None if isinstance(energy, str) else energy,
        )


def _runner(
    bundle: Bundle, setting: BenchSetting, golden: GoldenImages, stack: ExitStack
) -> tuple[ImageEncoder, Callable[[], float]]:
    """What is called again and again: it runs one batch and gives the seconds that it took."""
    pipelined = setting.stage == "pipelined"
    precision = bundle.variant(setting.variant).precision
    parallel = engine_class(setting.engine).best_parallel(precision) if pipelined else 1
    encoder = stack.enter_context(
        ImageEncoder(bundle, setting.variant, engine=setting.engine, threads=setting.threads, parallel=parallel)
    )
    small = decoded_images(golden.files, bundle.manifest.encoder.preprocess)  # (N, H, W, 3) uint8
    batch = small[np.arange(setting.batch) % len(small)]
    if setting.stage == "engine":
        images = encoder.preprocess.normalise_batch(batch)
        return encoder, lambda: _timed(lambda: encoder.engine.infer(images))
    if setting.frame is not None:
        frames = _enlarged(batch, setting.frame)
        scorer = Scorer(bundle.table(bundle.manifest.tables[0].name), bundle.manifest.encoder)
        return encoder, lambda: _timed(lambda: _label(encoder, scorer, frames))
    encoder.engine.prepare(setting.batch)
    return encoder, _pipeline(encoder, batch, parallel, stack)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _label(encoder: ImageEncoder, scorer: Scorer, frames: Sequence[ByteArray]) -> list[str]:
    """Frames to their labels, as the loop does it for one batch."""
    return [scorer.top(row, 1)[0].label for row in scorer.scores(encoder.encode(frames))]


def _enlarged(small: ByteArray, size: tuple[int, int]) -> list[ByteArray]:
    """Golden images as camera frames: (H, W, 3) uint8 RGB of ``size`` (height, width)."""
    return [opencv().resize(image, size[::-1]) for image in small]


def _pipeline(encoder: ImageEncoder, batch: ByteArray, parallel: int, stack: ExitStack) -> Callable[[], float]:
    """Keeps ``parallel`` batches under way; a call takes the oldest and gives the time since the one before."""
    under_way = deque(encoder.start(batch) for _ in range(parallel))
    stack.callback(lambda: [pending.result() for pending in under_way])
    last = time.perf_counter()

    def run() -> float:
        nonlocal last
        under_way.popleft().result()
        under_way.append(encoder.start(batch))
        before, last = last, time.perf_counter()
        return last - before

    return run


def _warm_up(run: Callable[[], float], limit_s: float) -> bool:
    """Run until the median of a window is within 3 % of that of the window before; whether that came in time."""
    start = time.perf_counter()
    before = np.inf
    while True:
        window = float(np.median([run() for _ in range(_WINDOW)]))
        if abs(window - before) <= _STABLE * before < np.inf:
            return True
        if time.perf_counter() - start > limit_s:
            return False
        before = window


def _together(energies: Sequence[Energy | None]) -> Energy | None:
    """The energy of several windows; None unless it is known of each, by the same sensors."""
    known = [each for each in energies if each is not None]
    alike = len({each.covers for each in known}) == 1
    return sum_of(known) if alike and len(known) == len(energies) else None


_CODE = """
import sys
import numpy as np
from edgeclip.bundle import Bundle
from edgeclip.runtime.encoder import ImageEncoder
bundle = Bundle.open(sys.argv[1])
spec = bundle.manifest.encoder.preprocess
images = np.zeros((int(sys.argv[4]), 3, spec.height, spec.width), np.float32)
if sys.argv[3] != "none":
    with ImageEncoder(bundle, sys.argv[2], engine=sys.argv[3]) as encoder:
        for _ in range(2):
            encoder.encode_preprocessed(images)
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def _memory_mb(of_model: dict[str, Bundle], settings: Sequence[BenchSetting]) -> dict[_Loaded, float | None]:
    """Peak resident memory of loading the engine and running two batches, less a process without it, MB.

    The engine's library is in it, memory of a GPU of its own is not. None where the process failed.
    """
    peak_kib = cache(_peak_kib)
    found: dict[_Loaded, float | None] = {}
    for model, variant, engine, batch in map(_memory_key, settings):
        path = of_model[model].path
        peak, without = peak_kib(path, variant, engine, batch), peak_kib(path, "", "none", batch)
        known = None if peak is None or without is None else round((peak - without) * 1024 / 1e6, 1)
        found[model, variant, engine, batch] = known
    return found


def _peak_kib(bundle: Path, variant: str, engine: str, batch: int) -> int | None:
    """What Linux calls VmHWM: unlike ``ru_maxrss``, it does not begin with what the parent had taken."""
    command = [sys.executable, "-c", _CODE, str(bundle), variant, engine, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _memory_key(setting: BenchSetting) -> _Loaded:
    return setting.model, setting.variant, setting.engine, setting.batch
