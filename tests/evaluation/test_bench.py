"""Benchmarks: intervals hold what they promise, comparisons claim no noise, and every time that was taken is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip import Bundle
from edgeclip.devices.sensors.energy import Energy, sum_of, t95
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.errors import InputError
from edgeclip.evaluation.bench.bench import BenchOptions, bench
from edgeclip.evaluation.bench.card import compare
from edgeclip.evaluation.bench.records import BenchResult, BenchSetting, Measured, load_result
from edgeclip.evaluation.statistics.rounds import compare_rounds, interval_of_rounds
from tests.command_line import edgeclip, refused
from tests.conftest import add_variant, edit_weight, without_golden

QUICK = BenchOptions(engines=("onnxruntime",), rounds=3, seconds=0.02, warm_up_s=0.1, frame=(90, 160))


def test_students_t_is_the_tables() -> None:
    for freedom, value in ((1, 12.706), (2, 4.303), (4, 2.776), (7, 2.365), (12, 2.179), (1e9, 1.960)):
        assert t95(freedom) == pytest.approx(value, rel=0.004)


def test_an_interval_over_rounds_holds_the_truth_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    held = sum(10.0 in interval_of_rounds(10.0 + random.normal(size=5)) for _ in range(2000))
    assert 0.93 < held / 2000 < 0.97


@pytest.mark.parametrize("paired", [True, False])
def test_no_difference_is_claimed_of_noise_more_than_once_in_20(paired: bool) -> None:
    random = np.random.default_rng(1)
    drift = random.normal(scale=0.1, size=(2000, 5)) if paired else np.zeros((2000, 5))
    claimed = sum(
        compare_rounds(
            np.exp(slow + random.normal(scale=0.05, size=5)),
            np.exp(slow + random.normal(scale=0.05, size=5)),
            paired=paired,
        ).differs
        for slow in drift
    )
    assert 0.03 < claimed / 2000 < 0.065


@pytest.mark.parametrize("paired", [True, False])
def test_two_sets_of_rounds_differ_by_scipys_interval(paired: bool) -> None:
    """Student's of the differences, or Welch's, of the logarithms."""
    from scipy import stats

    first, second = [4.0, 5.0, 4.4, 4.8, 5.2], [6.1, 6.0, 7.5, 6.6, 7.0]
    logs = np.log(second), np.log(first)
    test = stats.ttest_rel(*logs) if paired else stats.ttest_ind(*logs, equal_var=False)
    expected = test.confidence_interval(0.95)
    ratio = compare_rounds(first, second, paired=paired)
    assert ratio.ratio == pytest.approx(stats.gmean(second) / stats.gmean(first))
    assert np.log([ratio.low, ratio.high]) == pytest.approx([expected.low, expected.high], rel=0.01)
    if not paired:  # as many rounds of each are not needed
        test = stats.ttest_ind(np.log(second[:3]), np.log(first), equal_var=False)
        low, high = test.confidence_interval(0.95)
        shorter = compare_rounds(first, second[:3], paired=False)
        assert np.log([shorter.low, shorter.high]) == pytest.approx([low, high], rel=0.01)


def test_a_difference_is_measured_through_drift_that_both_see() -> None:
    random = np.random.default_rng(2)
    slow = np.exp(random.normal(scale=0.3, size=8))
    ratio = compare_rounds(10 * slow, 13 * slow * np.exp(random.normal(scale=0.01, size=8)), paired=True)
    assert ratio.low < 1.3 < ratio.high
    assert ratio.differs
    assert "as slow" in str(ratio)
    assert "1.3" in str(ratio)


@pytest.mark.parametrize("paired", [True, False])
def test_rounds_that_are_all_alike_are_compared_without_an_interval(paired: bool) -> None:
    same = compare_rounds([2.0] * 3, [2.0] * 3, paired=paired)
    assert (same.low, same.ratio, same.high) == (1.0, 1.0, 1.0)
    assert not same.differs
    assert compare_rounds([2.0] * 3, [4.0] * 3, paired=paired).differs


def test_energies_of_windows_add_up_and_a_sensors_own_error_does_not_average_out() -> None:
    one = Energy(
        joules=10.0,
        error_j=0.5,
        sampling_j=0.3,
        sensor_j=0.4,
        seconds=1.0,
        covers=("VDD_IN",),
        method="trapezoid",
        readings=10,
    )
    four = sum_of([one] * 4)
    assert (four.joules, four.seconds) == (40.0, 4.0)
    assert four.sampling_j == pytest.approx(0.6)
    assert four.sensor_j == pytest.approx(1.6)
    assert four.error_j == pytest.approx(np.hypot(0.6, 1.6))
    with pytest.raises(InputError, match="same sensors"):
        sum_of([one, msgspec.structs.replace(one, covers=("GPU",))])


SETTING = BenchSetting(model="m", variant="fp32", engine="onnxruntime", stage="engine", batch=2, threads=1, size=(8, 8))


def test_figures_of_two_rounds_are_those_by_hand() -> None:
    energy = Energy(
        joules=6.0, error_j=0.6, sampling_j=0.0, sensor_j=0.6, seconds=1.0, covers=("GPU",), method="m", readings=2
    )
    measured = Measured(
        setting=SETTING,
        ran_on="CPU",
        rounds_ms=((1.0, 2.0, 3.0), (4.0, 5.0, 3.0)),
        warm_up_s=0.0,
        stable=True,
        energy=energy,
    )
    assert measured.medians_ms == [2.0, 4.0]
    assert measured.p50.mean == 3.0
    assert measured.p50.high == pytest.approx(3 + 12.706, abs=0.01)  # Student's t of two rounds, standard error 1
    assert measured.images == 12
    assert measured.images_per_s == pytest.approx(2 / 0.003)  # two images in 3 ms on average
    assert measured.jitter_ms == 1.25  # steps of 1, 1, 1 and 2
    assert measured.percentile_ms(100) == 5.0
    assert measured.energy_per_image_j == pytest.approx((0.5, 0.05))


def test_an_even_number_of_times_has_its_median_between_the_middle_two() -> None:
    before, after = (result_of(times) for times in ((1.0, 3.0), (2.0, 2.0)))
    ((_, ratio),) = compare(before, after)
    assert ratio.ratio == pytest.approx(1.0)


def result_of(times: tuple[float, ...]) -> BenchResult:
    """Three rounds that are all alike."""
    measured = Measured(setting=SETTING, ran_on="CPU", rounds_ms=(times,) * 3, warm_up_s=0.0, stable=True)
    conditions = MeasurementConditions(seconds=1.0, rate_hz=1.0, cost=0.0, power_mode=None, throttled=None)
    return BenchResult(bundles={"m": "m"}, measured=(measured,), refused=(), machine={}, conditions=conditions)


def test_every_stage_batch_and_thread_is_measured_and_no_time_left_out(golden_bundle: Path, tmp_path: Path) -> None:
    every = ("engine", "end-to-end", "pipelined")
    options = dataclasses.replace(QUICK, stages=every, batches=(1, 2), threads=(1, 2))
    result = bench([Bundle.open(golden_bundle)], options)
    assert len(result.measured) == 3 * 2 * 2
    assert {each.setting.threads for each in result.measured} == {1, 2}
    for each in result.measured:
        assert len(each.rounds_ms) == 3
        assert all(len(times) >= 2 for times in each.rounds_ms)
        assert each.percentile_ms(50) <= each.percentile_ms(90) <= each.percentile_ms(99)
        assert each.p50.low <= each.p50.mean <= each.p50.high
        assert each.memory_mb is not None
        assert each.memory_mb > 0
    assert result.machine["cores_usable"]
    assert "power" in result.conditions.absent or result.conditions.energy
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(result))
    assert load_result(tmp_path / "result.json") == result


@pytest.mark.parametrize("times", [(), (0.0,), (-1.0,), (1e308,), (1e-300,)])
def test_a_kept_result_of_times_that_none_takes_is_refused(tmp_path: Path, times: tuple[float, ...]) -> None:
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(result_of(times)))
    with pytest.raises(InputError, match="bench --json"):
        load_result(tmp_path / "result.json")


def test_results_are_compared_setting_by_setting_whatever_their_order() -> None:
    before, after = result_of((2.0, 2.0)), result_of((3.0, 3.0))
    other = msgspec.structs.replace(SETTING, batch=1)
    alone = msgspec.structs.replace(SETTING, variant="fp16")

    def with_others(result: BenchResult, *settings: tuple[BenchSetting, float]) -> BenchResult:
        (own,) = result.measured
        more = [
            msgspec.structs.replace(own, setting=setting, rounds_ms=((ms, 1.1 * ms), (ms,), (0.9 * ms, ms, ms)))
            for setting, ms in settings
        ]
        return msgspec.structs.replace(result, measured=(*more, own))

    found = compare(with_others(before, (other, 8.0), (alone, 1.0)), with_others(after, (other, 4.0)))
    ratios = dict(found)
    assert ratios.keys() == {SETTING, other}
    assert (ratios[SETTING].ratio, ratios[SETTING].differs) == (pytest.approx(1.5), True)
    assert ratios[other].ratio == pytest.approx(0.5)
    with pytest.raises(InputError, match="a setting in common"):
        compare(msgspec.structs.replace(before, measured=with_others(before, (alone, 1.0)).measured[:1]), after)


def test_what_cannot_run_is_told_with_its_reason(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    with pytest.raises(InputError, match=r"nothing to measure.*GPU|nothing to measure.*onnxruntime"):
        bench([bundle], dataclasses.replace(QUICK, engines=("onnxruntime-cuda",)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 2}, "at least 3 rounds"),
        ({"stages": ("whole",)}, "engine, end-to-end, pipelined"),
        ({"batches": (0,)}, "at least 1"),
        ({"seconds": 0.0}, "above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchOptions(**wrong)  # type: ignore[arg-type]


def test_a_variant_that_disagrees_with_fp32_is_not_timed(golden_bundle: Path) -> None:
    reverse = edit_weight("projection", lambda weight: weight[::-1])
    spoilt = add_variant(golden_bundle, "spoilt", reverse, precision="fp32")
    result = bench([spoilt], QUICK)
    assert {each.setting.variant for each in result.measured} == {"fp32"}
    assert {setting.variant for setting, why in result.refused if "disagrees" in why} == {"spoilt"}


def test_a_bundle_without_golden_images_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="golden images"):
        bench([without_golden(tiny_bundle)], QUICK)


def test_one_bundle_twice_is_refused(golden_bundle: Path) -> None:
    bundle = Bundle.open(golden_bundle)
    with pytest.raises(InputError, match="once"):
        bench([bundle, bundle], QUICK)


def test_the_command_measures_writes_and_compares(golden_bundle: Path, tmp_path: Path) -> None:
    quick = ("--engines", "onnxruntime", "--rounds", 3, "--seconds", 0.02, "--frame", "160x90")
    printed = edgeclip("bench", golden_bundle, *quick, "--json", tmp_path / "a.json")
    assert "p50" in printed
    found = json.loads((tmp_path / "a.json").read_text())
    assert {each["setting"]["stage"] for each in found["measured"]} == {"engine", "end-to-end"}
    (tmp_path / "b.json").write_bytes(msgspec.json.encode(result_of((1.0, 1.0))))
    (tmp_path / "d.json").write_bytes(msgspec.json.encode(result_of((4.0, 4.0))))
    assert "4.00 times as slow (95 % 4.00" in edgeclip("bench", "--compare", tmp_path / "b.json", tmp_path / "d.json")
    assert "4.00 times as fast (95 % 4.00" in edgeclip("bench", "--compare", tmp_path / "d.json", tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{}")
    assert "edgeclip bench --json" in refused("bench", "--compare", tmp_path / "a.json", tmp_path / "c.json")
    for size in ("large", "²x3", "9" * 5000 + "x1", "1920x1080x"):
        assert "WxH" in refused("bench", golden_bundle, "--frame", size)
    assert "100,000,000 pixels" in refused("bench", golden_bundle, "--frame", "99999x99999").replace("\n", " ")
    assert "starter" in refused("bench")
