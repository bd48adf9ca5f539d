"""What machines report is read as their documents say, and what cannot be read is absent with its reason."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from edgeclip.devices.machine.jetson import is_jetson, nvpmodel_mode, power_mode
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.sensors.base import Channel, Found
from edgeclip.devices.sensors.find import find_sources
from edgeclip.devices.sensors.nvml import nvml_sources
from edgeclip.devices.sensors.tegrastats import UnitReading, parse_tegrastats, tegrastats_sources
from edgeclip.errors import InputError
from tests.device_trees import AGX_ORIN, JETSON_RELEASE, ORIN_NANO, RYZEN, THOR, TX2, XEON, Files, write_tree


@contextmanager
def found_in(root: Path) -> Iterator[Found]:
    found = find_sources(root)
    try:
        yield found
    finally:
        for source in found.sources:
            source.close()


def values(found: Found, kind: str) -> dict[str, float]:
    return {channel.name: value for channel, value in read(found) if channel.kind == kind}


def read(found: Found) -> list[tuple[Channel, float]]:
    return [pair for source in found.sources for pair in zip(source.channels, source.read(), strict=True)]


# tegrastats -------------------------------------------------------------------------------------------------------

NANO_32 = (
    "RAM 1985/3964MB (lfb 107x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [24%@1224,14%@1224,off,off] "
    "EMC_FREQ 9%@1600 GR3D_FREQ 76%@921 APE 25 PLL@36C CPU@38.5C PMIC@100C GPU@37C AO@43.5C thermal@37.75C "
    "POM_5V_IN 4830/4311 POM_5V_GPU 1230/902 POM_5V_CPU 820/755"
)
XAVIER_32 = (
    "RAM 5000/15820MB (lfb 1x4MB) SWAP 0/7910MB (cached 0MB) CPU [8%@1190,off] EMC_FREQ 0%@2133 GR3D_FREQ 99%@1377 "
    "APE 150 MTS fg 1% bg 1% AO@35C GPU@36.5C Tboard@34C PMIC@100C GPU 12040/11000 CPU 1230/1100 SOC 2140/2000 CV 0/0 "
    "VDDRQ 600/600 SYS5V 2800/2790"
)
AGX_ORIN_35 = (
    "RAM 9210/30592MB (lfb 4x4MB) SWAP 0/15296MB (cached 0MB) CPU [1%@2201,100%@2201] EMC_FREQ 1%@2133 "
    "GR3D_FREQ 14%@[407,305] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C Tboard@62C tj@77.281C "
    "VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
ORIN_NANO_36 = (
    "05-15-2025 18:30:28 RAM 6982/7620MB (lfb 5x1MB) SWAP 2640/16384MB (cached 202MB) CPU [97%@1984,93%@247] "
    "EMC_FREQ 18%@3199 GR3D_FREQ 84%@[713] NVENC 1%@115 NVDEC 40%@115 NVJPG off VIC 31%@115 OFA off PVA0_FREQ off "
    "APE 174 cpu@65.562C soc2@64.156C gpu@63.5C tj@65.562C VDD_IN 17946mW/15710mW VDD_CPU_GPU_CV 8896mW/7585mW "
    "VDD_SOC 3923mW/3515mW"
)
THOR_38 = (
    "05-14-2026 21:36:35 RAM 26063/125772MB (lfb 35x4MB) CPU [2%@972,4%@972] cpu@49.75C tj@51.218C "
    "VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW/3835mW VIN_SYS_5V0 5064mW/5055mW VIN 15004mW/15096mW"
)
THOR_39 = (
    "08-08-2026 20:58:23 RAM 3429/125749MB (lfb 120x4MB) CPU [0%,50%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[1574,1573,1574] NVENC0_FREQ @1691 VIC off cpu@49.75C/61.75C tj@51.218C/66.625C "
    "VDD_GPU 6330mW/6330mW/37939mW VIN 28906mW/14453mW/124486mW"
)


@pytest.mark.parametrize(
    ("line", "ram", "load", "clock", "gpu", "temperatures", "powers"),
    [
        (NANO_32, 1985, 0.095, 1224, (0.76, 921), {"CPU": 38.5, "thermal": 37.75}, {"POM_5V_IN": 4.83}),
        (XAVIER_32, 5000, 0.04, 1190, (0.99, 1377), {"GPU": 36.5}, {"GPU": 12.04, "CV": 0.0, "SYS5V": 2.8}),
        (AGX_ORIN_35, 9210, 0.505, 2201, (0.14, 407), {"tj": 77.281}, {"VDD_CPU_CV": 14.312, "VIN_SYS_5V0": 4.968}),
        (ORIN_NANO_36, 6982, 0.95, 1115.5, (0.84, 713), {"soc2": 64.156}, {"VDD_IN": 17.946, "VDD_SOC": 3.923}),
        (THOR_38, 26063, 0.03, 972, None, {"cpu": 49.75}, {"VDD_GPU": -0.392, "VIN": 15.004}),
        (THOR_39, 3429, 0.5 / 3, 2601, (None, 1574), {"cpu": 49.75, "tj": 51.218}, {"VDD_GPU": 6.33, "VIN": 28.906}),
    ],
    ids=["JetPack 4 Nano", "JetPack 4 Xavier", "JetPack 5", "JetPack 6", "JetPack 7.0", "JetPack 7.2"],
)
def test_a_line_of_tegrastats_is_read(
    line: str,
    ram: float,
    load: float,
    clock: float,
    gpu: tuple[float | None, float] | None,
    temperatures: dict[str, float],
    powers: dict[str, float],
) -> None:
    read = parse_tegrastats(line)
    assert read.ram_mib == ram
    assert read.cpu_load == pytest.approx(load)
    assert read.cpu_clock_mhz == clock
    assert read.engines.get("GR3D") == (UnitReading(load=gpu[0], clock_mhz=gpu[1]) if gpu else None)
    assert temperatures.items() <= read.temperatures_c.items()
    assert powers.items() <= read.powers_w.items()


def test_what_a_line_leaves_out_is_absent_and_not_zero() -> None:
    read = parse_tegrastats(THOR_38)
    assert read.swap_mib is None
    assert read.engines == {}
    orin = parse_tegrastats(ORIN_NANO_36)
    assert "NVJPG" not in orin.engines  # "off"
    assert parse_tegrastats(NANO_32).cpus[2:] == (None, None)
    assert parse_tegrastats(AGX_ORIN_35).average_powers_w["VDD_GPU_SOC"] == 2.971


@pytest.mark.parametrize("line", ["", "tegrastats: not found", "[sudo] password for nvidia:"])
def test_what_is_no_line_of_tegrastats_is_refused(line: str) -> None:
    with pytest.raises(InputError, match="expected a line of tegrastats"):
        parse_tegrastats(line)


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_running_tegrastats_is_a_source(tmp_path: Path) -> None:
    command = script(tmp_path / "tegrastats", f'echo starting\nwhile echo "{ORIN_NANO_36}"; do sleep 0.05; done')
    found = tegrastats_sources(command)
    (source,) = found.sources
    try:
        assert values(found, "power_w")["VDD_IN"] == 17.946
        assert values(found, "load") == {"GPU": 0.84}
        assert [channel.name for channel in source.channels if channel.in_total] == ["VDD_IN"]
    finally:
        source.close()
    assert source.fault(0) == "tegrastats ended"


def test_a_line_that_ends_within_a_number_is_not_read(tmp_path: Path) -> None:
    """``GR3D_FREQ 5`` of ``GR3D_FREQ 55%`` is no clock of 5 MHz."""
    whole = "RAM 1/2MB CPU [1%@1] GR3D_FREQ 55%"
    cut = whole.removesuffix("5%")
    assert parse_tegrastats(cut).engines["GR3D"].clock_mhz == 5
    (source,) = tegrastats_sources(script(tmp_path / "tegrastats", f"echo '{whole}'; printf %s '{cut}'")).sources
    while source.fault(0) != "tegrastats ended":
        time.sleep(0.01)
    source.close()
    assert [channel.kind for channel in source.channels] == ["load"]


def test_a_load_above_all_of_the_time_is_none() -> None:
    read = parse_tegrastats("RAM 1/2MB CPU [150%@729,100%@729] GR3D_FREQ 101%@[1300] EMC_FREQ 100%")
    assert [core and core.load for core in read.cpus] == [None, 1.0]
    assert read.engines == {"GR3D": UnitReading(clock_mhz=1300), "EMC": UnitReading(load=1.0)}


def test_a_tegrastats_that_ends_or_prints_nothing_is_absent(tmp_path: Path) -> None:
    found = tegrastats_sources(script(tmp_path / "tegrastats", "echo no such board"))
    assert not found.sources
    assert "printed no line" in found.absent["board power"]
    assert "tegrastats" in tegrastats_sources(str(tmp_path / "none")).absent["board power"]


# Jetsons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "powers", "total"),
    [
        (TX2, {"VDD_IN": 5.297, "VDD_SYS_CPU": 1.917, "VDD_SYS_GPU": 0.182}, {"VDD_IN"}),
        (
            AGX_ORIN,
            {"VDD_GPU_SOC": 8.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 5.0, "VDDQ_VDD2_1V8AO": 1.0},
            {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"},
        ),
        (ORIN_NANO, {"VDD_IN": 12.0, "VDD_CPU_GPU_CV": 5.0}, {"VDD_IN"}),
        (THOR, {"VIN": 28.906, "VDD_GPU": -0.384, "VDD_CPU_SOC_MSS": 6.0}, {"VIN"}),
    ],
    ids=["L4T 32", "L4T 35", "L4T 36", "L4T 38"],
)
def test_rails_of_a_jetson_and_which_make_the_total(
    tmp_path: Path, tree: Files, powers: dict[str, float], total: set[str]
) -> None:
    with found_in(write_tree(tmp_path, tree)) as found:
        assert values(found, "power_w") == pytest.approx(powers)
        assert {channel.name for channel, _ in read(found) if channel.in_total} == total
        assert not {"board power", "CPU power"} & set(found.absent)


@pytest.mark.parametrize(
    ("tree", "clock", "load"),
    [(TX2, 1300.5, 0.76), (AGX_ORIN, 1300.5, 0.99), (ORIN_NANO, 918.0, 0.84), (THOR, 1574.0, None)],
    ids=["L4T 32", "L4T 35", "L4T 36", "L4T 38"],
)
def test_load_and_clock_of_a_jetsons_gpu(tmp_path: Path, tree: Files, clock: float, load: float | None) -> None:
    with found_in(write_tree(tmp_path, tree)) as found:
        assert values(found, "clock_mhz")["GPU"] == clock
        assert values(found, "load").get("GPU") == load
        assert "GPU" not in found.absent


def test_the_monitors_accuracy_is_its_datasheets_where_the_shunt_is_told(tmp_path: Path) -> None:
    with found_in(write_tree(tmp_path, ORIN_NANO)) as found:
        accuracy = {channel.name: channel.accuracy for channel, _ in read(found) if channel.kind == "power_w"}
    known = accuracy["VDD_IN"]
    assert known is not None
    assert known.absolute_w == pytest.approx(5.0 * 80e-6 / 5e-3)  # 5 V, 80 µV over 5 mΩ
    assert known.relative == pytest.approx(0.0025 + 0.0025 + 0.016 / 5)
    assert accuracy["VDD_CPU_GPU_CV"] is None


def test_a_constant_that_passes_for_a_temperature_is_left_out(tmp_path: Path) -> None:
    with found_in(write_tree(tmp_path, TX2)) as found:
        assert values(found, "temperature_c") == {"MCPU-therm": 42.5}


def test_a_jetson_without_monitors_says_so(tmp_path: Path) -> None:
    with found_in(write_tree(tmp_path, {JETSON_RELEASE: "# R36 (release)\n"})) as found:
        assert found.absent["board power"].startswith("no INA3221")
        assert found.absent["temperature"]
        assert not found.has_power


def test_a_jetson_is_known_by_its_device_tree_too(tmp_path: Path) -> None:
    assert not is_jetson(Tree(tmp_path))
    write_tree(tmp_path, {"proc/device-tree/compatible": "nvidia,p3767\0nvidia,tegra234\0"})
    assert is_jetson(Tree(tmp_path))


@pytest.mark.parametrize(
    ("tree", "mode"),
    [
        (AGX_ORIN, "MODE_50W"),
        (ORIN_NANO, "25W, CPU clocks pinned"),
        ({"var/lib/nvpmodel/status": "pmode:0002"}, "mode 2"),
        (XEON, "governor schedutil"),
        ({"sys/firmware/acpi/platform_profile": "balanced\n"}, "profile balanced"),
        ({}, None),
    ],
)
def test_the_power_mode_by_name(tmp_path: Path, tree: Files, mode: str | None) -> None:
    assert power_mode(Tree(write_tree(tmp_path, tree))) == mode


def test_a_jetsons_mode_belongs_to_its_description(tmp_path: Path) -> None:
    """So that a proof that was timed in one mode is not taken for one of another."""
    assert describe_machine(write_tree(tmp_path, ORIN_NANO))["power_mode"] == "25W"
    assert nvpmodel_mode(Tree(Path("/"))) is None or "power_mode" in describe_machine()


# x86 --------------------------------------------------------------------------------------------------------------


def test_rapl_adds_packages_and_memory_and_no_zone_twice(tmp_path: Path) -> None:
    with found_in(write_tree(tmp_path, XEON)) as found:
        joules = values(found, "energy_j")
        assert joules == pytest.approx({"package-0": 1, "core-0": 0.7, "dram-0": 0.2, "package-1": 0.9, "psys": 5})
        total = {channel.name: channel.wraps_j for channel, _ in read(found) if channel.in_total}
        assert total == pytest.approx({"package-0": 262143.32885, "dram-0": 65712.999613, "package-1": 262143.32885})


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder that anyone may enter, and no right to read what only its owner may."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    user = os.geteuid()
    try:
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_rapl_that_needs_root_is_absent_and_says_so() -> None:
    with unprivileged() as root:
        write_tree(root, RYZEN)
        (root / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0)
        if os.geteuid() == 0:
            os.seteuid(65534)
        with found_in(root) as found:
            assert found.absent["CPU power"] == "RAPL needs root"
            assert not found.has_power


def test_a_machine_without_rapl_says_so(tmp_path: Path) -> None:
    write_tree(tmp_path, {"proc/cpuinfo": "flags\t\t: fpu hypervisor\ncpu MHz\t\t: 2600.000\n"})
    with found_in(tmp_path) as found:
        assert found.absent["CPU power"] == "no RAPL (a virtual machine)"
        assert values(found, "clock_mhz") == {"CPU": 2600.0}
        assert "load and memory" in found.absent


@pytest.mark.parametrize(("tree", "temperatures"), [(XEON, {"Package id 0": 61.0}), (RYZEN, {"Tctl": 48.25})])
def test_the_temperature_of_an_x86_cpu(tmp_path: Path, tree: Files, temperatures: dict[str, float]) -> None:
    with found_in(write_tree(tmp_path, tree)) as found:
        assert values(found, "temperature_c") == temperatures


def test_throttle_events_of_a_package_count_once(tmp_path: Path) -> None:
    with found_in(write_tree(tmp_path, XEON)) as found:
        assert values(found, "throttle_count") == {"cpu0 package too hot": 7, "cpu0 core too hot": 3}


# NVML -------------------------------------------------------------------------------------------------------------


class NvmlError(Exception):
    pass


class Library:
    """Stands in for NVIDIA's library, which needs a driver: the functions of pynvml that are called."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_ERROR_NOT_SUPPORTED = 0, 1, 3
    calls: ClassVar[dict[str, Any]] = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetName": b"NVIDIA L4",
        "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
        "nvmlDeviceGetPowerUsage": 61_500,
        "nvmlDeviceGetFieldValues": [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=63_000))],
        "nvmlDeviceGetTemperature": 57,
        "nvmlDeviceGetClockInfo": 2040,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=98),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3_000_000_000),
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x24,
    }

    def __init__(self, **changed: Any) -> None:
        self.changed = changed

    def __getattr__(self, name: str) -> Any:
        if name not in self.calls:
            raise AttributeError(name)
        answer = self.changed.get(name, self.calls[name])

        def call(*_: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call


def test_a_gpus_sensors_by_nvml() -> None:
    found = nvml_sources(Library())
    assert {channel.kind: value for channel, value in read(found)} == pytest.approx(
        {
            "energy_j": 5000.0,
            "power_w": 63.0,
            "temperature_c": 57.0,
            "clock_mhz": 2040.0,
            "load": 0.98,
            "memory_mb": 3000.0,
            "throttle": 0x24,
        }
    )
    assert [channel.kind for channel, _ in read(found) if channel.in_total] == ["energy_j"]


def test_what_a_gpu_does_not_support_is_left_out() -> None:
    unsupported = NvmlError("Not Supported")
    older = {
        "nvmlDeviceGetTotalEnergyConsumption": unsupported,
        "nvmlDeviceGetFieldValues": [SimpleNamespace(nvmlReturn=3, value=None)],
        "nvmlDeviceGetUtilizationRates": unsupported,
    }
    found = nvml_sources(Library(**older))
    (power,) = (channel for channel, _ in read(found) if channel.kind == "power_w")
    assert power.in_total
    assert power.accuracy is not None
    assert power.accuracy.lag_s == 1.0  # the mean of the last second
    assert values(found, "power_w") == {"GPU": 61.5}
    assert not values(found, "load")


def test_a_gpu_that_is_lost_reads_as_nothing_with_its_reason() -> None:
    library = Library()
    (source,) = nvml_sources(library).sources
    library.changed = {"nvmlDeviceGetTemperature": NvmlError("GPU is lost")}
    index = [channel.kind for channel in source.channels].index("temperature_c")
    assert math.isnan(source.read()[index])
    assert source.fault(index) == "GPU is lost"


def test_a_jetsons_gpu_is_not_added_to_the_rails_that_hold_it() -> None:
    assert not nvml_sources(Library(), in_total=False).has_power


def test_a_library_that_does_not_start_is_absent() -> None:
    found = nvml_sources(Library(nvmlInit=NvmlError("Driver Not Loaded")))
    assert found.absent == {"GPU": "NVML does not start (Driver Not Loaded)"}


def test_nvidias_module_has_the_names_that_are_called() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in (*Library.calls, "NVMLError", "NVML_TEMPERATURE_GPU", "NVML_CLOCK_SM", "NVML_ERROR_NOT_SUPPORTED"):
        assert hasattr(pynvml, name)
    assert pynvml.NVML_FI_DEV_POWER_INSTANT == 186
