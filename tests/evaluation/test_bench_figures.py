"""What a benchmark claims of times that are given: two results beside each other, warming up, and what is refused."""

from __future__ import annotations

import io
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from edgeclip import Bundle
from edgeclip.devices.catalogue.profile import load_profile
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.plan.speed import estimate_on
from edgeclip.devices.sensors.energy import Energy
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.engine_list import ENGINES
from edgeclip.errors import EdgeclipError, InputError, IntegrityError
from edgeclip.evaluation.bench import bench as measuring
from edgeclip.evaluation.bench.bench import (
    BenchOptions,
    _enlarged,
    _label,
    _memory_mb,
    _peak_kib,
    _pipeline,
    _refusal,
    _Round,
    _round,
    _runner,
    _together,
    _warm_up,
    bench,
    settings_of,
)
from edgeclip.evaluation.bench.calibrate import calibration_of
from edgeclip.evaluation.bench.card import compare, print_comparison
from edgeclip.evaluation.bench.records import BenchResult, BenchSetting, Measured, load_result
from edgeclip.files import write_json
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.engines.base import engine_class
from edgeclip.runtime.proof.golden import decoded_images
from edgeclip.runtime.proof.proof import prove
from edgeclip.runtime.proof.site import golden_here
from edgeclip.runtime.scoring import Scorer
from tests.conftest import SIZE, add_variant, edit_weight, without_golden

SETTING = BenchSetting(
    model="m", variant="fp32", engine="onnxruntime", stage="engine", batch=1, threads=None, size=(8, 8)
)
OTHER = msgspec.structs.replace(SETTING, batch=2, threads=3)


def result(*measured: tuple[BenchSetting, list[float]], **machine: Any) -> BenchResult:
    """Of each setting rounds of three times around a median."""
    conditions = MeasurementConditions(seconds=1.0, rate_hz=1.0, cost=0.0, power_mode=None, throttled=None)
    return BenchResult(
        bundles={"m": "m"},
        measured=tuple(
            Measured(
                setting=setting,
                ran_on="CPU",
                rounds_ms=tuple((0.5 * median, median, 3 * median) for median in medians),
                warm_up_s=0.0,
                stable=True,
            )
            for setting, medians in measured
        ),
        refused=(),
        machine=machine,
        conditions=conditions,
    )


def test_two_results_are_compared_as_scipy_compares_independent_rounds() -> None:
    """Their rounds were not run in turns: neither as many, nor in an order that pairs them."""
    before, after = [10.0, 10.4, 9.9, 10.1], [12.0, 12.9, 12.1]
    first, second = result((SETTING, before), (OTHER, before)), result((SETTING, after))
    ((setting, found),) = compare(first, second)
    welch = stats.ttest_ind(np.log(after), np.log(before), equal_var=False).confidence_interval()
    assert setting == SETTING
    assert found.ratio == pytest.approx(math.exp(np.log(after).mean() - np.log(before).mean()))
    assert (found.low, found.high) == pytest.approx((math.exp(welch.low), math.exp(welch.high)), rel=0.002)
    assert found.differs
    assert {each.differs for _, each in compare(first, first)} == {False}
    with pytest.raises(InputError, match="a setting in common, got none"):
        compare(result((OTHER, after)), second)


def test_a_comparison_is_printed_with_what_differs_of_the_machines() -> None:
    out = io.StringIO()
    here = describe_machine()
    first, second = (result((SETTING, [ms, ms + 0.1]), **here | {"cpu": cpu}) for ms, cpu in ((10.0, "A"), (20.0, "B")))
    print_comparison(first, second, Console(file=out, width=300))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("fp32 on onnxruntime, engine, batch 1: 2.00 times as slow (95 % ")
    assert lines[1] == "the machines differ in cpu"
    out.truncate(0)
    print_comparison(first, first, Console(file=out, width=300))
    assert "no difference beyond noise" in out.getvalue()
    assert "the machines differ" not in out.getvalue()


def test_a_setting_is_named_with_its_threads() -> None:
    assert str(SETTING) == "fp32 on onnxruntime, engine, batch 1"
    assert str(OTHER) == "fp32 on onnxruntime, engine, batch 2, 3 threads"


def energy(joules: float) -> Energy:
    return Energy(
        joules=joules, error_j=1.0, sampling_j=0.6, sensor_j=0.8, seconds=1.0, covers=("GPU",), method="m", readings=9
    )


def test_energy_is_known_only_where_it_is_known_of_every_round() -> None:
    both = _together([energy(2.0), energy(3.0)])
    assert both is not None
    assert both.joules == 5.0
    assert _together([energy(2.0), None]) is None
    assert _together([]) is None


def runs(*windows: float) -> Iterator[float]:
    """Eight times of each window, whose median is as given."""
    for median in windows:
        yield from (median, 0.1, 9.0, median, median, 0.2, 8.0, median)


@pytest.mark.parametrize(
    ("windows", "stable", "taken"),
    [
        ((1.0, 1.0), True, 16),
        ((2.0, 1.5, 1.46), True, 24),  # within 3 % of the window before
        ((2.0, 1.5, 1.45, 1.44), True, 32),
        ((1.0, 1.029), True, 16),
        ((1.0, 1.031, 1.031), True, 24),
    ],
)
def test_it_is_warm_when_two_windows_agree(windows: tuple[float, ...], stable: bool, taken: int) -> None:
    times, called = runs(*windows), 0

    def run() -> float:
        nonlocal called
        called += 1
        return next(times)

    assert _warm_up(run, 100.0) == stable
    assert called == taken


def test_it_gives_up_warming_up_at_its_limit() -> None:
    times = iter(np.geomspace(1, 1e9, 100_000))
    assert _warm_up(lambda: float(next(times)) ** 9, 0.0) is False


def test_frames_are_enlarged_to_height_and_width() -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert [frame.shape for frame in _enlarged(images, (90, 160))] == [(90, 160, 3)] * 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"variants": "fp32"}, "expected variants as a tuple, got 'fp32'"),
        ({"engines": "onnxruntime"}, "expected engines as a tuple"),
        ({"stages": "engine"}, "expected stages as a tuple"),
        ({"stages": ()}, "expected a stage and a frame of 1 × 1"),
        ({"frame": (0, 5)}, "expected a stage and a frame of 1 × 1"),
        ({"stages": ("engine", "none")}, "got none"),
        ({"rounds": 2}, "at least 3 rounds for an interval and at most 10,000, got 2"),
        ({"rounds": 10_001}, "at most 10,000"),
        ({"batches": ()}, "at least 1 and at most 4096"),
        ({"batches": (1, 0)}, "at least 1 and at most 4096"),
        ({"batches": (1, 4097)}, "at least 1 and at most 4096"),
        ({"seconds": 0.0}, "expected seconds above 0"),
        ({"seconds": 3601.0}, "expected seconds above 0"),
        ({"seconds": math.nan}, "expected seconds above 0"),
        ({"warm_up_s": -0.1}, "expected seconds above 0"),
        ({"warm_up_s": 3601.0}, "expected seconds above 0"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    BenchOptions(rounds=3, batches=(1, 4096), seconds=3600.0, warm_up_s=0.0, frame=(1, 1))
    BenchOptions(rounds=10_000, warm_up_s=3600.0)
    with pytest.raises(InputError, match=says):
        BenchOptions(**wrong)


# What is measured, and what is not


QUICK = BenchOptions(engines=("onnxruntime",), stages=("engine",), rounds=3, seconds=1e-9, warm_up_s=0.0)


def setting_of(bundle: Bundle, **changed: Any) -> BenchSetting:
    return msgspec.structs.replace(SETTING, model=bundle.manifest.model.id, size=(SIZE, SIZE), **changed)


def test_settings_are_every_combination_that_suits_and_runs_here(tiny_bundle: Path) -> None:
    bundle = add_variant(tiny_bundle, "half", lambda _: None)
    options = BenchOptions(stages=("end-to-end", "pipelined"), batches=(4, 1), threads=(None, 2), frame=(90, 160))
    of_cpu = [
        setting_of(
            bundle, stage=stage, batch=batch, threads=threads, frame=(90, 160) if stage == "end-to-end" else None
        )
        for stage in ("end-to-end", "pipelined")
        for batch in (4, 1)
        for threads in (None, 2)
    ]
    found = list(settings_of(bundle, options))
    assert [each for each in found if each.engine == "onnxruntime"] == of_cpu  # fp32 alone: it has few kernels for fp16
    for name in ENGINES:
        engine = engine_class(name)
        suited = {each for each in ("fp32", "half") if engine.available() and engine.suits(bundle.variant(each))}
        assert {each.variant for each in found if each.engine == name} == suited
    # What is asked for by name is tried; a GPU's engine has no threads to choose.
    asked = BenchOptions(("half",), ("onnxruntime", "onnxruntime-cuda"), ("engine",), threads=(1, 2))
    assert list(settings_of(bundle, asked)) == [setting_of(bundle, variant="half", engine="onnxruntime-cuda")]


def test_a_setting_that_cannot_run_says_why(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = add_variant(tiny_bundle, "spoilt", edit_weight("projection", lambda weight: weight[::-1]))
    fine = setting_of(bundle)
    spoilt = msgspec.structs.replace(fine, variant="spoilt", batch=2)
    golden = golden_here(bundle)
    assert golden is not None
    assert _refusal(bundle, fine, golden) == _refusal(bundle, msgspec.structs.replace(fine, batch=2), golden) == ""
    failures = prove(bundle, "spoilt", "onnxruntime", golden).failures
    assert len(failures) > 1
    assert _refusal(bundle, spoilt, golden) == f"disagrees with fp32 here: {'; '.join(failures)}"
    gpu = msgspec.structs.replace(fine, engine="onnxruntime-cuda")
    with pytest.raises(EdgeclipError) as error:
        prove(bundle, "fp32", "onnxruntime-cuda", golden)
    assert _refusal(bundle, gpu, golden) == str(error.value)

    manifest = read_manifest(tiny_bundle)
    single = tuple(msgspec.structs.replace(variant, dynamic_batch=False) for variant in manifest.variants)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, variants=single, tables=()))
    bundle = Bundle.open(tiny_bundle)
    assert _refusal(bundle, fine, golden) == ""
    assert _refusal(bundle, msgspec.structs.replace(fine, batch=2), golden) == "the variant takes one image at a time"
    labelling = msgspec.structs.replace(fine, stage="end-to-end", frame=(9, 9))
    assert _refusal(bundle, labelling, golden) == "the bundle has no prompt table to label with"
    assert _refusal(without_golden(tiny_bundle), fine, None).startswith(
        "the bundle has no golden images to prove it on"
    )
    (tiny_bundle / "image_encoder" / "fp32.onnx").write_bytes(b"altered")
    with pytest.raises(IntegrityError):
        _refusal(bundle, fine, golden)


def round_of(setting: BenchSetting, number: int) -> _Round:
    """What a round of a test's setting gives: each its own figures."""
    ms = 10.0 * setting.batch + number
    known = energy(float(number)) if setting.batch == 1 else None
    return _Round(f"load {number}", (ms, ms + 0.5), 0.10004 * setting.batch, number != 1 or setting.batch == 1, known)


def test_every_round_has_all_settings_in_an_order_of_its_own(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []
    done: Counter[BenchSetting] = Counter()

    def a_round(bundle: Bundle, setting: BenchSetting, golden: Any, options: BenchOptions, _: object) -> _Round:
        assert len(golden.files) == 4
        assert (bundle.manifest.model.id, options.rounds) == (setting.model, 4)
        orders[-1].append(setting.batch)
        done[setting] += 1
        return round_of(setting, done[setting] - 1)

    monkeypatch.setattr(measuring, "_round", a_round)
    monkeypatch.setattr(
        measuring,
        "_memory_mb",
        lambda _, settings: {measuring._memory_key(each): 7.0 * each.batch for each in settings},
    )
    edited = add_variant(
        tiny_bundle, "spoilt", edit_weight("projection", lambda weight: weight[::-1]), precision="fp32"
    )
    batches = (2, 1, 8, 4, 3)
    results = []
    for seed in (0, 0, 1):
        orders.append([])
        done.clear()
        told: list[tuple[str, int, int]] = []
        options = BenchOptions((), ("onnxruntime",), ("engine",), batches, rounds=4, seed=seed)
        results.append(bench([edited], options, progress=lambda *each, told=told: told.append(each)))  # type: ignore[misc]
        settings = {each.batch: each for each in settings_of(edited, options) if each.variant == "fp32"}
        assert told == [(str(settings[batch]), at, 20) for at, batch in enumerate(orders[-1])]
        by_round = [orders[-1][at : at + 5] for at in range(0, 20, 5)]
        assert all(sorted(each) == sorted(batches) for each in by_round)
        assert len(set(map(tuple, by_round))) > 1
    assert orders[0] == orders[1] != orders[2]

    result = results[0]
    model = edited.manifest.model
    assert [each.setting.batch for each in result.measured] == [*batches]  # as they were asked for
    assert {setting.variant for setting, why in result.refused if why.startswith("disagrees")} == {"spoilt"}
    assert len(result.refused) == 5
    assert result.bundles == {model.id: "tiny"}
    assert result.machine == describe_machine()
    assert result.conditions.seconds >= 0
    for each in result.measured:
        batch = each.setting.batch
        assert each.rounds_ms == tuple((10.0 * batch + number, 10.0 * batch + number + 0.5) for number in range(4))
        assert (each.ran_on, each.memory_mb, each.stable) == ("load 3", 7.0 * batch, batch == 1)
        assert each.warm_up_s == round(4 * 0.10004 * batch, 3)
        assert (each.energy and each.energy.joules) == (6.0 if batch == 1 else None)


def test_where_nothing_runs_the_first_three_reasons_are_told(tiny_bundle: Path) -> None:
    bundle = without_golden(tiny_bundle)
    why = "the bundle has no golden images to prove it on: run edgeclip prove with photographs of the site"
    with pytest.raises(InputError) as error:
        bench(bundle, BenchOptions((), ("onnxruntime",), ("engine",), (1, 2, 3, 4)))
    told = "; ".join(f"{setting_of(bundle, batch=batch)}: {why}" for batch in (1, 2, 3))
    assert str(error.value) == f"nothing to measure runs here: {told}"
    add_variant(tiny_bundle, "half", lambda _: None)
    with pytest.raises(InputError, match=r"runs here: no variant suits an engine that is installed$"):
        bench(tiny_bundle, BenchOptions(("half",), ("onnxruntime",), ("engine",)))


# A round


class Meter:
    """Telemetry that keeps the windows it is asked about."""

    def __init__(self, said: Energy | str) -> None:
        self.said = said
        self.windows: list[tuple[float, float]] = []

    def mark(self) -> float:
        return time.perf_counter()

    def energy(self, start: float, end: float) -> Energy | str:
        self.windows.append((start, end))
        return self.said


@pytest.mark.parametrize(("seconds", "fewest", "most"), [(1e-9, 2, 2), (0.05, 2, 3)])
def test_a_round_keeps_each_time_until_its_seconds_are_over(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, fewest: int, most: int
) -> None:
    bundle = Bundle.open(tiny_bundle)
    called = 0

    def run() -> float:
        nonlocal called
        called += 1
        time.sleep(0.02 if called > 16 else 0)  # the first two windows warm it up
        return called * 0.001234567 if called > 16 else 1.0

    def runner(
        _: Bundle, setting: BenchSetting, golden: Any, stack: ExitStack
    ) -> tuple[ImageEncoder, Callable[[], float]]:
        assert len(golden.files) == 4
        return stack.enter_context(ImageEncoder(bundle, setting.variant, threads=1)), run

    monkeypatch.setattr(measuring, "_runner", runner)
    options = BenchOptions(seconds=seconds, warm_up_s=60.0)
    golden = golden_here(bundle)
    assert golden is not None
    meter: Any = Meter(energy(2.0))
    before = time.perf_counter()
    found = _round(bundle, setting_of(bundle), golden, options, meter)
    assert fewest <= len(found.times_ms) <= most
    assert found.times_ms == tuple(round(1.234567 * (17 + at), 4) for at in range(len(found.times_ms)))
    assert found.stable
    assert found.energy == energy(2.0)
    assert "onnxruntime" in found.ran_on.lower().replace(" ", "")
    ((start, end),) = meter.windows
    assert end - start >= 0.02 * len(found.times_ms)
    assert 0 < found.warm_up_s < start - before
    called = 16  # its next times differ: never warm
    meter = Meter("no sensor")
    told = _round(bundle, setting_of(bundle), golden, BenchOptions(seconds=1e-9, warm_up_s=0.0), meter)
    assert (told.stable, told.energy) == (False, None)


def test_what_is_timed_is_the_engine_on_golden_images(tiny_bundle: Path) -> None:
    bundle = add_variant(tiny_bundle, "other", edit_weight("projection", lambda weight: 2 * weight), precision="fp32")
    golden = golden_here(bundle)
    assert golden is not None
    small = decoded_images(golden.files, bundle.manifest.encoder.preprocess)
    given: list[Any] = []
    with ExitStack() as stack:
        encoder, run = _runner(bundle, setting_of(bundle, variant="other", batch=6, threads=2), golden, stack)
        assert (encoder.variant.name, encoder.engine.threads, encoder.engine.parallel) == ("other", 2, 1)
        assert run() > 0

        def infer(images: np.ndarray) -> None:
            given.append(images)
            time.sleep(0.03)

        encoder.engine.infer = infer  # type: ignore[method-assign, assignment]
        assert 0.03 <= run() < 5
    (batch,) = given
    np.testing.assert_array_equal(batch, encoder.preprocess.normalise_batch(small[[0, 1, 2, 3, 0, 1]]))


def test_end_to_end_is_frames_to_labels_of_the_first_table(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    golden = golden_here(bundle)
    assert golden is not None
    given: list[Any] = []
    with ExitStack() as stack:
        setting = setting_of(bundle, batch=5, stage="end-to-end", frame=(90, 160))
        encoder, run = _runner(bundle, setting, golden, stack)
        assert encoder.engine.parallel == 1
        encode = encoder.encode

        def watched(frames: Any) -> Any:
            given.append(frames)
            time.sleep(0.03)
            return encode(frames)

        encoder.encode = watched  # type: ignore[method-assign]
        assert 0.03 <= run() < 5
        assert [frame.shape for frame in given[0]] == [(90, 160, 3)] * 5
        np.testing.assert_array_equal(given[0][0], given[0][4])
        assert (given[0][0] != given[0][1]).any()
        scorer = Scorer(bundle.table("things"), bundle.manifest.encoder)
        best = scorer.scores(encode(given[0])).argmax(axis=1)
        assert _label(encoder, scorer, given[0]) == [scorer.labels[row] for row in best]


def test_pipelined_has_as_many_batches_under_way_as_the_engine_gets_most_done_with(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    golden = golden_here(bundle)
    assert golden is not None
    engine = engine_class("onnxruntime")
    prepared: list[int] = []
    monkeypatch.setattr(engine, "prepare", lambda _, batch: prepared.append(batch))
    monkeypatch.setattr(engine, "best_parallel", classmethod(lambda _, precision: {"fp32": 3}[precision]))
    with ExitStack() as stack:
        encoder, run = _runner(bundle, setting_of(bundle, batch=5, stage="pipelined"), golden, stack)
        assert (encoder.engine.parallel, prepared) == (3, [5])
        assert 0 < run() < 60
        assert 0 < run() < 60


class Queue:
    """An encoder whose batches are numbers, and which remembers what became of them."""

    def __init__(self) -> None:
        self.begun = itertools.count()
        self.waited: list[int] = []
        self.under_way: set[int] = set()
        self.most = 0

    def start(self, _batch: object) -> Any:
        number = next(self.begun)
        self.under_way.add(number)
        self.most = max(self.most, len(self.under_way))
        queue = self

        class Pending:
            def result(self) -> None:
                queue.waited.append(number)
                queue.under_way.discard(number)

        return Pending()


def test_a_call_of_the_pipeline_takes_the_oldest_and_gives_the_time_since_the_one_before() -> None:
    queue: Any = Queue()
    with ExitStack() as stack:
        run = _pipeline(queue, np.zeros((1, 8, 8, 3), np.uint8), 3, stack)
        assert queue.under_way == {0, 1, 2}
        run()
        assert (queue.waited, queue.under_way) == ([0], {1, 2, 3})
        time.sleep(0.04)
        assert 0.04 <= run() < 5
        assert run() < 0.04
        assert queue.waited == [0, 1, 2]
    assert queue.waited == [0, 1, 2, 3, 4, 5]  # nothing is left under way
    assert queue.most == 3


# Memory


def test_memory_is_what_a_process_takes_beyond_one_without_an_engine(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    peaks = {
        ("fp32", "onnxruntime", 1): 300_123,
        ("fp32", "onnxruntime", 4): 50_000_000,
        ("fp16", "onnxruntime", 1): None,
        ("", "none", 1): 200_000,
        ("", "none", 4): 250_000,
        ("fp32", "onnxruntime", 2): 500_000,
        ("", "none", 2): None,
    }
    asked: list[tuple[str, str, int]] = []

    def peak(path: Path, *which: Any) -> int | None:
        assert path == bundle.path
        asked.append(which)
        return peaks[which]

    monkeypatch.setattr(measuring, "_peak_kib", peak)
    settings = [setting_of(bundle, batch=batch, threads=threads) for batch in (1, 4, 2) for threads in (1, 2)]
    settings.append(setting_of(bundle, variant="fp16"))
    found = _memory_mb({bundle.manifest.model.id: bundle}, settings)
    assert {key[1:]: value for key, value in found.items()} == {
        ("fp32", "onnxruntime", 1): 102.5,
        ("fp32", "onnxruntime", 4): 50_944.0,
        ("fp32", "onnxruntime", 2): None,
        ("fp16", "onnxruntime", 1): None,
    }
    assert {key[0] for key in found} == {bundle.manifest.model.id}
    assert sorted(asked) == sorted(peaks)  # each once


def test_a_process_that_fails_has_no_peak(tiny_bundle: Path) -> None:
    assert _peak_kib(tiny_bundle, "none of it", "onnxruntime", 1) is None
    alone = _peak_kib(tiny_bundle, "", "none", 1)
    assert alone is not None
    assert 5_000 < alone < 1_000_000


# What a benchmark makes of estimates

COST = GraphCost(
    image_size=(8, 8),
    macs=4_000_000_000,
    weights=80_000_000,
    activation_peak=1,
    activation_traffic=30_000_000,
    kernels=100,
    operators={},
)


def of_device(name: str, *measured: tuple[BenchSetting, list[float]], **machine: Any) -> BenchResult:
    return msgspec.structs.replace(result(*measured, **machine), device=name, ghz=2.5, costs={"m": COST})


def middle(name: str, precision: str, engine: str, **more: Any) -> float:
    found = estimate_on(load_profile(name), COST, precision, engine, **more)
    assert found is not None
    return found.latency_ms.middle


def test_batches_that_an_engine_took_calibrate_it() -> None:
    """End-to-end times, other engines and forms that no plan knows do not count; threads are the cores that ran."""
    name = "x86-avx512-vnni"
    int8 = msgspec.structs.replace(SETTING, variant="int8-cpu", threads=3, batch=2)
    measured = of_device(
        name,
        (SETTING, [2 * middle(name, "fp32", "onnxruntime", cores=4, ghz=2.5)] * 3),
        (int8, [3 * middle(name, "int8", "onnxruntime", batch=2, cores=3, ghz=2.5)] * 3),
        (msgspec.structs.replace(SETTING, stage="end-to-end"), [1e6] * 3),
        (msgspec.structs.replace(SETTING, variant="pruned"), [1e6] * 3),
        (msgspec.structs.replace(SETTING, model="other"), [1e6] * 3),
        cores_usable=4,
    )
    found = calibration_of(measured)
    assert (found.engine, found.device, found.count) == ("onnxruntime", name, 2)
    assert found.ratios == pytest.approx({"fp32": 2.0, "int8": 3.0})
    assert calibration_of(measured, "onnxruntime") == found
    with pytest.raises(InputError, match=r"measurements of openvino on .*, got onnxruntime: measure it"):
        calibration_of(measured, "openvino")
    with pytest.raises(InputError, match="one of a machine that fits no profile"):
        calibration_of(result((SETTING, [1.0])))
    with pytest.raises(InputError, match="got none that can be estimated"):
        calibration_of(msgspec.structs.replace(measured, costs={}))
    for unclear in ("four", -4, 0):
        with pytest.raises(InputError, match="in a precision whose peak"):
            calibration_of(of_device(name, (SETTING, [1.0] * 3), cores_usable=unclear))


def test_a_benchmark_of_costs_that_cannot_be_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    write_json(path, of_device("t4", (SETTING, [1.0] * 3)))
    assert load_result(path).costs == {"m": COST}
    for good, bad in (('"kernels": 100', '"kernels": -1'), ("4000000000", "-1"), ('"ghz": 2.5', '"ghz": 0.0')):
        spoilt = tmp_path / "spoilt.json"
        spoilt.write_text(path.read_text().replace(good, bad))
        with pytest.raises(InputError, match="expected a file of edgeclip bench --json"):
            load_result(spoilt)


def test_a_jetson_was_measured_in_the_mode_that_it_was_in() -> None:
    setting = msgspec.structs.replace(SETTING, variant="fp16", engine="tensorrt")
    ms = middle("orin-nano-8gb", "fp16", "tensorrt")
    ratios = {
        mode: calibration_of(of_device("orin-nano-8gb", (setting, [ms] * 3), power_mode=mode)).ratios["fp16"]
        for mode in ("15W", "MAXN_SUPER")
    }
    assert ratios["15W"] == pytest.approx(1.0)
    assert 1.3 < ratios["MAXN_SUPER"] < 1.7  # what took as long at a clock 1.6 times as high is that much slower
