"""Energy agrees with closed forms and its error covers the truth; the sampler reads this machine, and says what not."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip.devices.sensors.base import Channel, Found, SensorAccuracy
from edgeclip.devices.sensors.energy import Array, Energy, energy_of, trapezoid, unwrapped, with_error
from edgeclip.devices.sensors.find import find_sources
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.devices.sensors.telemetry import Telemetry
from edgeclip.errors import InputError
from tests.device_trees import AGX_ORIN, ORIN_NANO, XEON, write_tree

POWER = Channel("VDD_IN", "power_w", "board", in_total=True)
COUNTER = Channel("package-0", "energy_j", "cpu", in_total=True, wraps_j=100.0, period_s=1e-3)


def moments(seconds: float, seed: int = 0, interval_s: float = 0.1) -> Array:
    """Times of readings as the sampler takes them: the interval varies by a fifth; the last is at the end."""
    steps = np.random.default_rng(seed).uniform(0.8, 1.2, int(seconds / interval_s * 1.3) + 2) * interval_s
    times = np.concatenate(([0.0], np.cumsum(steps)))
    return np.append(times[times < seconds], seconds)


def measured(channel: Channel, times: Array, values: Array, start: float, end: float) -> Energy:
    energy = energy_of([channel], times, values[:, None], start, end)
    assert isinstance(energy, Energy), energy
    return energy


# Energy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power", "integral", "tolerance"),
    [
        (lambda t: np.full_like(t, 12.0), lambda t: 12.0 * t, 1e-12),
        (lambda t: 3.0 + 2.0 * t, lambda t: 3.0 * t + t**2, 1e-12),
        (lambda t: 10 + 4 * np.sin(t), lambda t: 10 * t - 4 * np.cos(t), 1e-3),
    ],
    ids=["constant", "ramp", "sine"],
)
@pytest.mark.parametrize(("start", "end"), [(0.0, 10.0), (1.234, 7.891), (0.05, 9.99)])
def test_energy_is_that_of_the_closed_form(
    power: Callable[[Array], Array], integral: Callable[[float], float], tolerance: float, start: float, end: float
) -> None:
    times = moments(10.0)
    truth = integral(end) - integral(start)
    energy = measured(POWER, times, power(times), start, end)
    assert energy.joules == pytest.approx(truth, rel=tolerance)
    assert abs(energy.joules - truth) <= energy.error_j + 1e-9
    assert energy.seconds == pytest.approx(end - start)
    assert energy.error_j < 0.01 * truth


def test_a_sharp_edge_of_a_window_is_interpolated() -> None:
    times = np.arange(0.0, 10.1, 0.1)
    assert trapezoid(times, times, 0.25, 0.75) == pytest.approx((0.75**2 - 0.25**2) / 2)
    assert trapezoid(times, times, 0.21, 0.29) == pytest.approx((0.29**2 - 0.21**2) / 2)


def test_a_counter_that_starts_again_from_zero() -> None:
    times = moments(10.0)
    energy = measured(COUNTER, times, (45.0 * times + 30) % 100.0, 0.0, 10.0)
    assert energy.joules == pytest.approx(450.0)
    assert energy.method == "counter"
    assert energy.error_j == pytest.approx(45.0 * 1e-3)  # as much as a millisecond takes
    np.testing.assert_allclose(unwrapped(np.array([90.0, 99.0, 4.0, 50.0, 1.0]), 100.0), [90, 99, 104, 150, 201])


def test_a_counter_read_between_its_readings_is_known_less_well() -> None:
    times = np.arange(0.0, 10.1, 0.1)
    energy = measured(COUNTER, times, 2.0 * times, 0.25, 7.75)
    assert energy.joules == pytest.approx(15.0)
    assert energy.error_j == pytest.approx(2.0 * (1e-3 + 2 * 0.05), rel=1e-6)


def test_a_counter_that_does_not_move_gives_no_energy() -> None:
    times = moments(2.0)
    assert energy_of([COUNTER], times, np.full((len(times), 1), 7.0), 0.0, 2.0) == (
        "package-0: the counter did not move"
    )


def scattered(t: Array, random: np.random.Generator) -> tuple[Array, float]:
    """A reading that scatters about 20 W."""
    return 20 + random.normal(0, 4, len(t)), 20.0 * 10


def scattered_ramp(t: Array, random: np.random.Generator) -> tuple[Array, float]:
    """A machine that warms up, and scatter in proportion to the power."""
    power = 10 + t
    return power * random.normal(1, 0.1, len(t)), 150.0


def bursts(t: Array, random: np.random.Generator) -> tuple[Array, float]:
    """Inferences of 11 ms every 33 ms, far faster than the sampler: 30 W and 6 W."""
    phase = random.uniform(0, 1)
    return np.where((t / 0.033 + phase) % 1 < 1 / 3, 30.0, 6.0) + random.normal(0, 0.1, len(t)), 140.0


def slow_sensor(t: Array, random: np.random.Generator) -> tuple[Array, float]:
    """A sensor that has a new reading only every half second."""
    return (20 + random.normal(0, 4, 40))[(t / 0.5 + random.uniform(0, 1)).astype(int)], 200.0


@pytest.mark.parametrize("load", [scattered, scattered_ramp, bursts, slow_sensor], ids=lambda load: load.__name__)
def test_the_error_from_sampling_covers_the_truth(load: Callable[..., tuple[Array, float]]) -> None:
    hits, errors = 0, []
    for seed in range(400):
        times = moments(10.0, seed)
        powers, truth = load(times, np.random.default_rng(seed + 1000))
        energy = measured(POWER, times, powers, 0.0, 10.0)
        hits += abs(energy.joules - truth) <= energy.sampling_j
        errors.append(abs(energy.joules - truth) / energy.sampling_j)
    assert hits / 400 >= 0.92  # promised: 0.95
    assert np.sqrt(np.mean(np.square(errors))) > 0.25  # and not by being far too wide


def test_a_sensors_own_error_does_not_shrink_with_readings() -> None:
    channel = Channel("GPU board", "power_w", "gpu", in_total=True, accuracy=SensorAccuracy(5.0, 0.05, "its maker"))
    for seconds in (10.0, 100.0):
        times = moments(seconds)
        energy = measured(channel, times, np.full_like(times, 100.0), 0.0, seconds)
        assert energy.sensor_j == pytest.approx(math.hypot(5.0, 5.0) * seconds)
        assert energy.error_j == pytest.approx(energy.sensor_j)


def test_a_sensor_that_lags_is_unsure_where_power_changes() -> None:
    times = moments(10.0)
    powers = np.where(times < 5, 20.0, 80.0) + np.random.default_rng(0).normal(0, 0.1, len(times))
    lagging = Channel("GPU", "power_w", "gpu", in_total=True, accuracy=SensorAccuracy(0.0, 0.0, "its maker", lag_s=1.0))
    assert measured(lagging, times, powers, 0.0, 10.0).sampling_j > 25  # half a second of what changed, at each edge
    assert measured(POWER, times, powers, 0.0, 10.0).sampling_j < 15


def test_an_undocumented_sensor_says_so() -> None:
    times = moments(10.0)
    energy = measured(POWER, times, np.full_like(times, 12.0), 0.0, 10.0)
    assert energy.sensor_j is None
    assert str(energy) == "12 W (VDD_IN, sensor's own error not documented)"


def test_sensors_of_one_kind_err_alike() -> None:
    times = moments(10.0)
    rails = [Channel(name, "power_w", "board", in_total=True, accuracy=SensorAccuracy(1.0, 0.0, "")) for name in "ab"]
    energy = energy_of(rails, times, np.full((len(times), 2), 5.0), 0.0, 10.0)
    assert isinstance(energy, Energy)
    assert (energy.joules, energy.sensor_j) == (pytest.approx(100.0), pytest.approx(20.0))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (lambda t: (t > 4) & (t < 6), "VDD_IN: no readings for"),
        (lambda t: t > 7, "VDD_IN: no readings for"),
        (lambda t: t < 3, "VDD_IN: no readings for"),
        (lambda t: t >= 0, "VDD_IN: 0 readings in 10.00 s"),
    ],
    ids=["a gap", "the end", "the start", "all"],
)
def test_a_sensor_that_was_gone_for_a_while_gives_no_energy(lost: Callable[[Array], Array], said: str) -> None:
    times = moments(10.0)
    powers = np.where(lost(times), np.nan, 12.0)
    energy = energy_of([POWER], times, powers[:, None], 0.0, 10.0)
    assert isinstance(energy, str)
    assert energy.startswith(said)


def test_single_readings_may_be_missing() -> None:
    times = moments(10.0)
    powers = np.full_like(times, 12.0)
    powers[10::20] = np.nan
    assert measured(POWER, times, powers, 0.0, 10.0).joules == pytest.approx(120.0)


def test_a_window_of_few_readings_gives_no_energy() -> None:
    times = moments(10.0)
    assert energy_of([POWER], times, np.ones((len(times), 1)), 1.0, 1.2) == (
        "VDD_IN: 2 readings in 0.20 s, at least 4 are needed"
    )
    assert energy_of([POWER], times, np.ones((len(times), 1)), 1.0, 1.0) == "the window is empty"
    assert energy_of([], times, np.ones((len(times), 0)), 0.0, 1.0) == "no sensor of power"


def test_idle_power_is_taken_off_with_its_error() -> None:
    times = moments(10.0)
    load = measured(POWER, times, 20 + np.random.default_rng(0).normal(0, 1, len(times)), 0.0, 10.0)
    idle = measured(POWER, times, 5 + np.random.default_rng(1).normal(0, 1, len(times)), 2.0, 7.0)
    net = load.less_idle(idle)
    assert net.joules == pytest.approx(load.joules - 2 * idle.joules)
    assert net.error_j == pytest.approx(math.hypot(load.error_j, 2 * idle.error_j))
    with pytest.raises(InputError, match="measure it with the same"):
        load.less_idle(msgspec.structs.replace(idle, covers=("VIN",)))


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [(0.31234, 0.0112, "0.312 ± 0.011"), (23.14, 0.62, "23.14 ± 0.62"), (512.3, 31.0, "512 ± 31"), (12.0, 0.0, "12")],
)
def test_a_value_is_shown_to_the_place_of_its_error(value: float, error: float, shown: str) -> None:
    assert with_error(value, error) == shown


# The sampler, on this machine -------------------------------------------------------------------------------------


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(1000))


def test_this_machine_is_sampled_five_times_a_second_and_more() -> None:
    with Telemetry():  # NVIDIA's library keeps its device files open once it has been used
        pass
    files = len(list(Path("/proc/self/fd").iterdir()))
    with Telemetry() as telemetry:
        begin = time.perf_counter(), time.process_time()
        busy(2.0)
        wall, used = time.perf_counter() - begin[0], time.process_time() - begin[1]
    conditions = telemetry.conditions(inferences=10)
    assert conditions.rate_hz >= 5
    assert conditions.seconds >= 2.0
    assert conditions.cost < 0.05  # under 0.01 on a machine that does nothing else: benchmarks/telemetry.py
    (cpu,) = conditions.of("load", "cpu")
    assert cpu.source == "/proc"
    (process,) = conditions.of("load", "process")
    assert process.mean == pytest.approx(used / wall / (os.cpu_count() or 1), rel=0.25)
    assert process.mean / 2 < cpu.mean <= 1  # what all processes took is no less, but for ticks of the clock
    (resident,) = conditions.of("memory_mb", "process")
    assert 20 < resident.mean < 20_000
    assert conditions.energy is not None or conditions.absent["power"]
    assert ("throttling" in conditions.absent) == (conditions.throttled is None)
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_what_it_says_is_json_and_comes_back(tmp_path: Path) -> None:
    with Telemetry(root=write_tree(tmp_path, ORIN_NANO), interval_s=0.02) as telemetry:
        time.sleep(0.2)
    conditions = telemetry.conditions(inferences=7)
    written = msgspec.json.encode(conditions)
    assert msgspec.json.decode(written, type=MeasurementConditions) == conditions
    assert json.loads(written)["energy_per_inference_j"] > 0


def test_a_failing_measurement_ends_the_thread_and_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), Telemetry(interval_s=0.02):
        _ = 1 / 0
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


@pytest.mark.parametrize("interval_s", [0.0, -1.0, 0.001, 61.0, math.nan])
def test_an_interval_that_cannot_be_kept_is_refused(interval_s: float) -> None:
    with pytest.raises(InputError, match="expected an interval"):
        Telemetry(interval_s=interval_s)


def test_it_is_read_only_once_it_ran() -> None:
    with pytest.raises(InputError, match="enter the telemetry"):
        Telemetry().conditions()
    with Telemetry(sources=Found()) as telemetry, pytest.raises(InputError, match="at least one inference"):
        telemetry.conditions(inferences=0)


# The sampler, on recorded machines --------------------------------------------------------------------------------


def test_a_line_says_what_a_jetson_was_doing(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ORIN_NANO)
    with Telemetry(root=root, interval_s=0.02) as telemetry:
        time.sleep(0.15)
        write_tree(root, {"sys/class/thermal/thermal_zone0/temp": "61000\n"})
        time.sleep(0.15)
    conditions = telemetry.conditions()
    line = str(conditions)
    assert line.startswith("25W, CPU clocks pinned; CPU 1.51 GHz, ")
    assert "54→61 °C" in line
    assert "GPU 0.92 GHz, 84 % busy, 56→56 °C" in line
    assert "throttled: no" in line
    assert "power 12.00 ± 0.13 W (VDD_IN)" in line
    assert conditions.absent["cv0-thermal temperature"] == "not a number"
    assert not conditions.of("temperature_c", "board")  # cv0 is absent, not 0 °C


def test_throttling_during_a_measurement_is_flagged_with_its_reason(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ORIN_NANO)
    with Telemetry(root=root, interval_s=0.02) as telemetry:
        time.sleep(0.1)
        write_tree(root, {"sys/class/hwmon/hwmon2/oc3_event_cnt": "41\n"})
        write_tree(root, {"sys/class/thermal/cooling_device1/cur_state": "2\n"})
        time.sleep(0.1)
    conditions = telemetry.conditions()
    assert conditions.throttled
    assert conditions.reasons == ("instantaneous over-current", "cooling by cpufreq-cpu0")
    assert "throttled: yes (instantaneous over-current, cooling by cpufreq-cpu0)" in str(conditions)


def test_a_window_counts_what_happened_in_it_only(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ORIN_NANO)
    current = "sys/class/hwmon/hwmon1/curr1_input"
    with Telemetry(root=root, interval_s=0.02) as telemetry:
        start = telemetry.mark()
        time.sleep(0.2)
        idle = telemetry.energy(start, telemetry.mark())
        write_tree(root, {current: "4800\n"})
        start = telemetry.mark()
        time.sleep(0.2)
        conditions = telemetry.conditions(inferences=4, idle=idle, start=start, end=telemetry.mark())
    assert isinstance(idle, Energy)
    assert idle.watts == pytest.approx(12.0)
    assert conditions.energy is not None
    assert conditions.energy.watts == pytest.approx(24.0)
    assert conditions.energy_per_inference_j == pytest.approx(12.0 * conditions.seconds / 4, rel=1e-3)
    assert conditions.energy_per_inference_error_j
    assert "J an inference above idle" in str(conditions)
    assert not conditions.throttled


def test_a_sensor_that_dies_midway_is_told_and_gives_no_energy(tmp_path: Path) -> None:
    root = write_tree(tmp_path, AGX_ORIN)
    with Telemetry(root=root, interval_s=0.02) as telemetry:
        time.sleep(0.3)
        write_tree(root, {"sys/class/hwmon/hwmon3/curr2_input": ""})  # a read that gives nothing
        time.sleep(0.7)
    conditions = telemetry.conditions(inferences=10)
    assert conditions.energy is None
    assert conditions.energy_per_inference_j is None
    assert conditions.absent["power"].startswith("VDD_CPU_CV: no readings for 0.")
    rails = {reading.name: reading for reading in conditions.of("power_w")}
    assert rails["VDD_CPU_CV"].mean == pytest.approx(2.0)
    assert 0.4 < rails["VDD_CPU_CV"].missed < 0.9
    assert rails["VDD_CPU_CV"].fault == "not a number"
    assert rails["VDD_GPU_SOC"].missed == 0
    assert rails["VDD_GPU_SOC"].source == "INA power monitors"
    assert "power: absent (VDD_CPU_CV" in str(conditions)


def test_a_thread_is_not_ended_by_sensors_that_fail(tmp_path: Path) -> None:
    root = write_tree(tmp_path, ORIN_NANO)
    found = find_sources(root)
    for path in root.rglob("*_input"):
        path.write_text("")
    with Telemetry(root=root, sources=found, interval_s=0.02) as telemetry:
        time.sleep(0.2)
    conditions = telemetry.conditions()
    assert conditions.rate_hz >= 5
    assert conditions.absent["VDD_IN power"] == "not a number"


def test_energy_of_a_pc_is_counted_by_rapl(tmp_path: Path) -> None:
    root = write_tree(tmp_path, XEON)
    with Telemetry(root=root, interval_s=0.02) as telemetry:
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < 0.5:
            write_tree(root, {"sys/class/powercap/intel-rapl:0/energy_uj": f"{int(1e6 + 50e6 * elapsed)}\n"})
            write_tree(root, {"sys/class/powercap/intel-rapl:0:1/energy_uj": f"{int(2e5 + 5e6 * elapsed)}\n"})
            write_tree(root, {"sys/class/powercap/intel-rapl:1/energy_uj": f"{int(9e5 + 20e6 * elapsed)}\n"})
            counted = 75.0 * elapsed
            time.sleep(0.002)
    conditions = telemetry.conditions()
    assert conditions.energy is not None
    assert conditions.energy.covers == ("package-0", "dram-0", "package-1")
    assert conditions.energy.method == "counter"
    assert conditions.energy.joules == pytest.approx(counted, rel=1e-3)
