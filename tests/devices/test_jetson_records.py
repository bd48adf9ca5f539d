"""What real Jetsons print and say is read for what it is: every recorded line, machine and release."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from edgeclip.devices.catalogue.jetpack import release_for_l4t
from edgeclip.devices.doctor.examine import Report, examine
from edgeclip.devices.doctor.finding import Finding
from edgeclip.devices.machine.temperatures import hottest
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.sensors.base import Found
from edgeclip.devices.sensors.energy import sum_of
from edgeclip.devices.sensors.find import find_sources
from edgeclip.devices.sensors.jetson import doubt_of, part_of_rail, parts_of_rail
from edgeclip.devices.sensors.tegrastats import channels_of, parse_tegrastats, tegrastats_sources, values_of
from edgeclip.devices.sensors.telemetry import Telemetry
from tests.device_trees import write_tree
from tests.devices.test_sensors import script
from tests.jetson_records import machines, make, misses, releases, rows

LINES = rows("tegrastats.tsv")
MACHINES = machines()


def line_of(board: str, l4t: str) -> str:
    """The first recorded line of a board and release."""
    return next(row["line"] for row in LINES if row["board"] == board and row["l4t"] == l4t)


THOR_IDLE = line_of("AGX Thor devkit", "R38.x")
THOR_BUSY = line_of("AGX Thor devkit", "R38.4.0 (JetPack 7.1), sudo")
ORIN_JP5 = line_of("AGX Orin 64GB devkit", "R35.2/35.3 (JetPack 5.1), sudo")
SWAPPED = line_of("Nano 4GB (AI-Blox MODULE-X)", "R32.6 (JetPack 4.6)")


def finding(report: Report, name: str) -> Finding:
    (one,) = (finding for finding in report.findings if finding.id == name)
    return one


# Lines of tegrastats -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", LINES, ids=lambda row: f"{row['board']}, {row['l4t']}")
def test_a_real_line_is_read_and_gives_its_channels(row: dict[str, str]) -> None:
    line = parse_tegrastats(row["line"])
    assert line.ram_mib
    assert line.cpus
    assert line.cpu_clock_mhz
    assert all(-60 < celsius < 110 for celsius in line.temperatures_c.values())
    values = values_of(line)
    channels = channels_of(tuple(values))
    assert not [channel.name for channel in channels if "PMIC" in channel.name]
    # A rail that is the whole is the total alone; without rails there is none.
    total = [channel.name for channel in channels if channel.in_total]
    assert bool(total) == bool(line.powers_w)
    assert not {"VIN", "VDD_IN", "POM_5V_IN"} & set(total) or len(total) == 1
    assert ("GPU", "load") in values or not any(f"GR3D_FREQ {load}%" in row["line"] for load in range(101))


@pytest.mark.parametrize("names", rows("sensor-names.tsv"), ids=lambda row: f"{row['board']}, {row['l4t']}")
def test_no_sensor_and_no_rail_of_a_board_is_passed_over(names: dict[str, str]) -> None:
    for row in LINES:
        if (row["board"], row["l4t"]) != (names["board"], names["l4t"]):
            continue
        line = parse_tegrastats(row["line"])
        shown = {name for name in names["temperatures"].split() if f" {name}@" in row["line"]}
        off = {name for name in shown if f" {name}@-256C" in row["line"]}
        assert set(line.temperatures_c) >= shown - off
        assert not off & set(line.temperatures_c)
        rails = {name for name in (names["rails"] or "").split() if f" {name} " in row["line"]}
        assert set(line.powers_w) == rails - {"NC"}


@pytest.mark.parametrize(
    ("line", "unit", "load", "mhz"),
    [
        (ORIN_JP5, "APE", None, 174),
        (ORIN_JP5, "VIC", None, 729),
        (line_of("TX2 (cold chamber, codec running)", "R28/31"), "NVENC", None, 716),
        (line_of("AGX Orin 32GB devkit", "R34 (JetPack 5.0 DP)"), "NVJPG1", None, 729),
        (line_of("AGX Xavier (JetPack 5)", "R35"), "VIC", None, 115),
        (THOR_BUSY, "OFA", None, 315),
        (line_of("Jetson T5000", "R39.2.0 (JetPack 7.2), sudo"), "VIC", 0.59, 423),
        ("RAM 1/2MB CPU [0%@100] NVDLA0_FREQ 600", "NVDLA0", None, 600),
        ("RAM 1/2MB CPU [0%@100] SE 44 APE 174", "SE", None, 44),
    ],
)
def test_a_clock_is_read_with_a_load_after_an_at_or_bare(line: str, unit: str, load: float | None, mhz: float) -> None:
    read = parse_tegrastats(line).engines[unit]
    assert (read.load, read.clock_mhz) == (load, mhz)


def test_nothing_else_of_a_line_is_taken_for_a_clock_or_a_rail() -> None:
    read = parse_tegrastats(line_of("TX2 8GB", "R32 (JetPack 4.6), sudo"))
    assert set(read.engines) == {"EMC", "GR3D", "APE"}  # not MTS, RAM, SWAP or a rail
    read = parse_tegrastats(
        "RAM 9/10MB (lfb 1x2MB) SWAP 0/9MB IRAM 0/252kB(lfb 252kB) CPU [off] VBUS 5100mW MTS fg 1% bg 9%"
    )
    assert (read.engines, read.powers_w) == ({}, {"VBUS": 5.1})


@pytest.mark.parametrize("celsius", ["-256", "-256.0", "-127.5"])
def test_a_sensor_that_is_switched_off_has_no_temperature(celsius: str) -> None:
    read = parse_tegrastats(f"RAM 1/2MB CPU [0%@729] CV0@{celsius}C GPU@-51C cpu@0C")
    assert read.temperatures_c == {"GPU": -51.0, "cpu": 0.0}  # a cold chamber's are real


@pytest.mark.parametrize(
    ("rail", "feeds", "part"),
    [
        ("VDD_CPU_SOC_MSS", ("CPU", "SOC", "MSS"), "board"),
        ("VDD_GPU_SOC", ("GPU", "SOC"), "board"),
        ("VDD_CPU_CV", ("CPU", "CV"), "board"),
        ("VDD_CPU_GPU_CV", ("CPU", "GPU", "CV"), "board"),
        ("VDD_GPU", ("GPU",), "gpu"),
        ("VDD_SYS_CPU", ("CPU",), "cpu"),
        ("POM_5V_GPU", ("GPU",), "gpu"),
        ("GPU", ("GPU",), "gpu"),
        ("VDD_SOC", ("SOC",), "board"),
        ("VDD_4V0_WIFI", ("WIFI",), "board"),
        ("VIN_SYS_5V0", (), "board"),
        ("VDDQ_VDD2_1V8AO", (), "board"),
        ("VDD_IN", (), "board"),
    ],
)
def test_a_rail_that_feeds_several_parts_is_no_parts_own(rail: str, feeds: tuple[str, ...], part: str) -> None:
    assert parts_of_rail(rail) == feeds
    assert part_of_rail(rail) == part


def test_an_input_is_doubted_on_the_one_carrier_that_names_its_rails_wrongly() -> None:
    doubted = [row["line"] for row in LINES if doubt_of(parse_tegrastats(row["line"]).powers_w)]
    assert doubted == [SWAPPED]
    assert doubt_of({"VDD_IN": 3.0, "VDD_CPU_GPU_CV": 3.1}).startswith("VDD_IN reads 3.00 W, less than VDD_CPU_GPU_CV")
    assert not doubt_of({"VDD_IN": 3.1, "VDD_CPU_GPU_CV": 3.1, "VDD_SOC": 1.0})
    assert not doubt_of({"VDD_GPU_SOC": 3.1, "VDD_CPU_CV": 9.0})  # none of them feeds the others
    assert doubt_of({"VIN": 5.0, "VIN_SYS_5V0": 6.0, "VDD_GPU": 1.0})
    assert not doubt_of({"VDD_IN": 3.0, "VDD_MUX": 9.0, "VDD_SYS_GPU": 1.0})  # the carrier's, above the module
    assert not doubt_of({})


# A running tegrastats ------------------------------------------------------------------------------------------------


def printing(path: Path, first: str, then: str) -> Found:
    """What is found of a tegrastats that prints one line again and again, and another once ``load`` called for it."""
    lines = f"while echo '{first}'; do [ -e '{path}/load' ] && break; sleep 0.02; done"
    return tegrastats_sources(script(path / "tegrastats", f"{lines}\nwhile echo '{then}'; do sleep 0.02; done"))


def load(path: Path, telemetry: Telemetry, name: str) -> None:
    """Have the other line printed, and wait until a channel of it is known."""
    (path / "load").touch()
    deadline = time.perf_counter() + 20
    while name not in {channel.name for channel in telemetry.channels}:
        assert time.perf_counter() < deadline
        time.sleep(0.01)


def test_what_a_thor_names_only_under_load_comes_to_be_known(tmp_path: Path) -> None:
    idle = THOR_IDLE.partition(" VIN 16802")[0]  # a line without the board's own monitor, as some are
    found = printing(tmp_path, idle, THOR_BUSY)
    (source,) = found.sources
    assert {channel.name for channel in source.channels if channel.in_total} == {
        "VDD_GPU",
        "VDD_CPU_SOC_MSS",
        "VIN_SYS_5V0",
    }
    with Telemetry(sources=found, interval_s=0.02) as telemetry:
        load(tmp_path, telemetry, "VIN")
        start = telemetry.mark()
        time.sleep(0.3)
        energy = telemetry.energy(start, telemetry.mark())
    assert not isinstance(energy, str)
    assert energy.covers == ("VIN",)
    assert energy.watts == pytest.approx(19.78)
    conditions = telemetry.conditions()
    (clock,) = conditions.of("clock_mhz", "gpu")
    assert (clock.before, clock.after, clock.source) == (314, 314, "tegrastats")
    assert 0 < clock.missed < 1
    gpu = next(reading for reading in conditions.of("temperature_c", "gpu") if reading.name == "gpu")
    assert gpu.after == 38.875
    rails = {reading.name: reading for reading in conditions.of("power_w")}
    assert rails["VDD_GPU"].before == 0.0  # columns that were there before have kept their readings
    assert rails["VDD_GPU"].after == 1.962
    assert rails["VDD_CPU_SOC_MSS"].feeds == ("CPU", "SOC", "MSS")
    assert rails["VIN"].missed == clock.missed


def test_a_channel_that_comes_late_moves_no_other(tmp_path: Path) -> None:
    """The sources behind tegrastats' keep their own readings, before and after."""
    found = printing(tmp_path, THOR_IDLE, THOR_BUSY)
    root = write_tree(tmp_path / "root", {"sys/class/thermal/thermal_zone0/type": "wifi\n"})
    write_tree(root, {"sys/class/thermal/thermal_zone0/temp": "77000\n"})
    found.add(find_sources(root))
    with Telemetry(root=root, sources=found, interval_s=0.02) as telemetry:
        load(tmp_path, telemetry, "gpu")
    (wifi,) = (reading for reading in telemetry.conditions().readings if reading.name == "wifi")
    assert (wifi.least, wifi.most, wifi.missed, wifi.source) == (77.0, 77.0, 0.0, "thermal zones")


def test_a_gpu_that_tegrastats_comes_to_name_is_no_longer_said_to_be_absent(tmp_path: Path) -> None:
    found = printing(tmp_path, THOR_IDLE, THOR_BUSY)
    found.absent["GPU"] = "no GPU in /sys/class/devfreq"
    with Telemetry(sources=found, interval_s=0.02) as telemetry:
        assert "GPU" in telemetry.absent
        load(tmp_path, telemetry, "GPU")
    assert "GPU" not in telemetry.absent


def test_a_total_in_doubt_says_so_wherever_it_goes(tmp_path: Path) -> None:
    with Telemetry(sources=printing(tmp_path, SWAPPED, SWAPPED), interval_s=0.02) as telemetry:
        time.sleep(0.3)
    conditions = telemetry.conditions(inferences=3)
    assert conditions.energy is not None
    assert "POM_5V_IN reads 3.23 W, less than POM_5V_GPU with 8.95 W" in conditions.energy.doubt
    assert f"doubtful: {conditions.energy.doubt}" in str(conditions)
    assert sum_of([conditions.energy, conditions.energy]).doubt == conditions.energy.doubt


# What the kernel shows -----------------------------------------------------------------------------------------------


def test_a_zone_of_a_part_that_is_switched_off_reads_as_nothing(tmp_path: Path) -> None:
    zones = {"CV0-therm": "-256000\n", "GPU-therm": "-51000\n", "PMIC-Die": "100000\n", "CPU-therm": "42500\n"}
    for number, (name, text) in enumerate(zones.items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        write_tree(tmp_path, {f"{zone}/type": name, f"{zone}/temp": text})
    found = find_sources(tmp_path)
    (source,) = (source for source in found.sources if source.name == "thermal zones")
    read = dict(zip([channel.name for channel in source.channels], source.read(), strict=True))
    assert math.isnan(read.pop("CV0-therm"))
    assert source.fault(0) == "switched off"
    assert read == {"GPU-therm": -51.0, "CPU-therm": 42.5}
    source.close()

    machine = examine(tmp_path).machine
    assert {zone.name: zone.celsius for zone in machine.temperatures}["CV0-therm"] is None
    zone = hottest(machine.temperatures)
    assert zone is not None
    assert zone.name == "CPU-therm"


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("tx2-jp466", "BCPU-therm"),  # PMIC-Die has 100 °C
        ("agx-xavier-jp46", "Tdiode_tegra"),  # 50 °C
        ("nano-l4t3251", "AO-therm"),
        ("thor-jp71", "soc345-thermal"),
    ],
)
def test_the_hottest_zone_is_one_that_measures(name: str, zone: str, tmp_path: Path) -> None:
    found = hottest(examine(make(MACHINES[name], tmp_path)).machine.temperatures)
    assert found is not None
    assert found.name == zone


def test_a_constant_is_neither_the_hottest_nor_too_hot(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    write_tree(tmp_path, {f"{zone}/type": "pmic-die-thermal", f"{zone}/temp": "100000"})
    write_tree(tmp_path, {f"{zone}/trip_point_0_type": "hot", f"{zone}/trip_point_0_temp": "100000"})
    report = examine(tmp_path)
    assert hottest(report.machine.temperatures) is None
    assert "temperature" not in {finding.id for finding in report.findings}


# Links in another machine's files ------------------------------------------------------------------------------------


def test_a_link_leads_below_the_root_and_never_to_this_machine(tmp_path: Path) -> None:
    root, outside = tmp_path / "machine", tmp_path / "secret"
    outside.write_text("of this machine")
    write_tree(root, {"etc/nvpmodel/nvpmodel_t194.conf": "there", "usr/lib/os-release": "ID=ubuntu"})
    write_tree(root, {"proc/1/stat": "", "sys/firmware/devicetree/base/compatible": "nvidia,tegra234\0"})
    links = {
        "etc/nvpmodel.conf": "/etc/nvpmodel/nvpmodel_t194.conf",
        "proc/device-tree": "/sys/firmware/devicetree/base",
        "etc/os-release": "../usr/lib/os-release",
        "etc/above": "../../../../usr/lib/os-release",
        "etc/chain": "/etc/nvpmodel.conf",
        "lib": "/usr/lib",
        "etc/here": str(outside),
        "etc/circle": "/etc/circle2",
        "etc/circle2": "circle",
        "self": "/",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    tree = Tree(root)
    assert tree.text("etc/nvpmodel.conf") == tree.text("etc/chain") == tree.text("self/self/etc/chain") == "there"
    assert tree.text("etc/os-release") == tree.text("etc/above") == tree.text("lib/os-release") == "ID=ubuntu"
    assert tree.strings("proc/device-tree/compatible") == ("nvidia,tegra234",)
    assert tree.text("etc/here") is None
    assert not tree.exists("etc/here")
    assert tree.text("etc/circle") is None
    assert not tree.exists("etc/circle")
    assert tree.exists("lib/os-release")
    assert tree.glob("lib/*-release") == ["lib/os-release"]
    assert tree.glob("etc/nvp*/*.conf") == ["etc/nvpmodel/nvpmodel_t194.conf"]
    assert tree.glob("etc/circle/*") == tree.glob("nowhere/*") == []


def test_the_modes_behind_a_real_boards_link_are_read(tmp_path: Path) -> None:
    root = make(MACHINES["agx-xavier-jp46"], tmp_path)
    assert os.readlink(root / "etc/nvpmodel.conf") == "/etc/nvpmodel/nvpmodel_t194.conf"  # noqa: PTH115 - as written
    jetson = examine(root).machine.jetson
    assert jetson is not None
    assert jetson.mode is not None
    assert (jetson.mode.name, len(jetson.modes)) == ("MODE_15W_DESKTOP", 8)


# Machines and releases -----------------------------------------------------------------------------------------------


# Of these the records name no device, as none was known when they were made.
NAMED_SINCE = {
    "agx-orin-industrial-jp512": "agx-orin-industrial",
    "tx2nx-jp46": "jetson-tx2-nx",
    "tx1-jp32": "jetson-tx1",
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_real_machine_is_what_it_is(name: str, tmp_path: Path) -> None:
    report = examine(make(MACHINES[name], tmp_path))
    assert misses(MACHINES[name], report) == []
    assert report.profile == (MACHINES[name]["expect"]["profile"] or NAMED_SINCE[name])
    assert all(one.fix and one.why for one in report.of("problem"))


def test_a_machine_that_is_mistaken_is_told(tmp_path: Path) -> None:
    """Else the test before says nothing."""
    record: dict[str, Any] = MACHINES["thor-jp71"]
    report = examine(make(record, tmp_path))
    other = {"profile": "thor-t4000", "jetpack": "7.2", "tensorrt": "10.13.4", "cudnn": None, "cuda": "13.1"}
    assert len(misses(record | {"expect": other, "mode": 2}, report)) == 6
    assert misses(record, report) == []


@pytest.mark.parametrize("row", releases(), ids=lambda row: row["l4t"])
def test_a_release_of_jetson_linux_leads_to_its_jetpack(row: dict[str, str]) -> None:
    found = release_for_l4t(row["l4t"])
    assert found is not None
    told = (found.version, found.cuda or "", found.tensorrt or "", found.cudnn or "")
    assert told == (row["jetpack"], row["cuda"], row["tensorrt"], row["cudnn"])


@pytest.mark.parametrize(
    ("name", "l4t", "says"),
    [
        ("agx-xavier-jp46", "32.6.1", "JetPack 5.1.6 serves this board, with TensorRT 8.5.2 for Python 3.8"),
        ("xavier-nx-jp5", "35.4.1", "No later JetPack brings this board a newer Python"),
        ("nano-l4t3251", "32.5.1", "No later JetPack brings this board a newer Python"),
        ("tx2-jp466", "32.7.6", "No later JetPack brings this board a newer Python"),
        ("orin-nano-l4t3531", "35.3.1", "serves this board: flash it with NVIDIA's SDK Manager"),
        ("agx-xavier-jp46", "31.1", "JetPack 5.1.6 serves this board"),
    ],
)
def test_a_later_jetpack_is_named_where_there_is_one(name: str, l4t: str, says: str, tmp_path: Path) -> None:
    report = examine(make(MACHINES[name] | {"l4t": l4t}, tmp_path))
    assert says in finding(report, "jetpack").why


def test_what_serves_a_board_that_is_not_known_is_not_known(tmp_path: Path) -> None:
    record = MACHINES["nano-l4t3251"] | {"compat": ["nvidia,p9999-0000", "nvidia,tegra210"]}
    report = examine(make(record, tmp_path))
    assert report.profile is None
    assert "is not known here" in finding(report, "jetpack").why


@pytest.mark.parametrize("l4t", ["28.2.1", "31.1", "32.1", "32.5.1", "32.7.6", "34.1", "35.6.4", "35.99"])
def test_a_python_that_is_too_old_is_not_mended_with_apt(l4t: str, tmp_path: Path) -> None:
    record = {key: value for key, value in MACHINES["agx-xavier-jp46"].items() if key != "trt"} | {"l4t": l4t}
    report = examine(make(record, tmp_path))
    assert "uv venv --python 3.10" in finding(report, "jetpack").fix
    assert not [fix for one in report.findings for fix in one.fix if "nvidia-jetpack" in fix or "libnvinfer" in fix]


def test_a_jetson_without_jetson_linux_is_not_sent_to_its_packages(tmp_path: Path) -> None:
    report = examine(make(MACHINES["orin-nano-stock-ubuntu"], tmp_path))
    assert (finding(report, "tensorrt").level, finding(report, "tensorrt").fix) == ("note", ())


@pytest.mark.parametrize("name", ["orin-nano-jp62-15w", "orin-nx8-jp62", "thor-jp70"])
def test_tensorrt_is_missed_where_jetpack_would_bring_it(name: str, tmp_path: Path) -> None:
    record = {key: value for key, value in MACHINES[name].items() if key != "trt"}
    assert finding(examine(make(record, tmp_path)), "tensorrt").fix[-1] == "sudo apt install nvidia-jetpack"
