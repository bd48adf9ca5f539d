"""What a benchmark claims of times that are given: two results beside each other, warming up, and what is refused."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from edgeclip.devices.catalogue.profile import load_profile
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.devices.plan.cost import GraphCost
from edgeclip.devices.plan.speed import estimate_on
from edgeclip.devices.sensors.energy import Energy
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.bench import BenchOptions, _enlarged, _together, _warm_up
from edgeclip.evaluation.bench.calibrate import calibration_of
from edgeclip.evaluation.bench.card import compare, print_comparison
from edgeclip.evaluation.bench.records import BenchResult, BenchSetting, Measured, load_result
from edgeclip.files import write_json

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
