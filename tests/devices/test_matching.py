"""A machine leads to its profile: boards by their device tree and memory, cards of one name by what NVML says of them.

The device trees are those of real boards, as their owners and NVIDIA's own jetson-gpio published them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeclip.devices.catalogue.profile import Boost, GpuTold, load_profile
from edgeclip.devices.doctor.examine import examine
from edgeclip.devices.machine.machine import find_profile, match_profile
from edgeclip.devices.machine.software import _gpus_of
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.machine.try_library import _nvml

# Profile and its memory in GiB; MemTotal in KiB and what the board is compatible with, less the "nvidia," before each.
BOARDS = [
    ("orin-nano-8gb", 8, 7665664, "p3768-0000+p3767-0005-super p3767-0005 tegra234"),
    ("orin-nano-8gb", 8, 6635520, "p3768-0000+p3767-0003 p3768-0000+p3767-0005 p3767-0003 tegra234"),
    ("orin-nx-8gb", 8, 7759462, "p3768-0000+p3767-0001 p3767-0001 tegra234"),
    ("agx-orin-64gb", 32, 31981568, "p3737-0000+p3701-0000 p3701-0000 tegra234"),
    ("agx-orin-64gb", 32, 31981568, "p3737-0000+p3701-0000"),
    ("agx-orin-64gb", 64, 64335000, "p3737-0000+p3701-0005 p3701-0005 tegra234"),
    ("agx-orin-32gb", 32, 31981568, "p3737-0000+p3701-0004 p3701-0004 tegra234"),
    ("agx-orin-industrial", 64, 65011712, "p3737-0000+p3701-0008 p3701-0008 tegra234 tegra23x"),
    ("igx-orin", 64, 64335000, "p3740-0002+p3701-0008 p3701-0008 tegra234"),
    ("igx-orin", 64, 64335000, "p3740-0002+p3701-0002 p3701-0002 tegra234"),
    ("thor-t5000", 128, 128825804, "p4071-0000+p3834-0008 p3834-0008 tegra264"),
    ("agx-xavier", 32, 32686080, "galen jetson-xavier p2822-0000+p2888-0001 tegra194"),
    ("agx-xavier", 16, 16021000, "p2822-0000+p2888-0001 tegra194"),
    ("agx-xavier", 64, 64800000, "p2822-0000+p2888-0005 tegra194"),
    ("agx-xavier", 32, 32686080, "p2972-0000 tegra194"),
    ("agx-xavier", 32, 32686080, "galen tegra194"),
    ("agx-xavier-8gb", 8, 7800000, "p2972-0006 jetson-xavier tegra194"),
    ("agx-xavier-8gb", 8, 7800000, "p2822-0000+p2888-0006 tegra194"),
    ("agx-xavier-industrial", 32, 30900000, "galen-industrial jetson-xavier-industrial p2822-0000+p2888-0008"),
    ("xavier-nx-8gb", 8, 7957504, "p3509-0000-a00+p3668-0000-a01 p3509-0000-a00+p3668-0001-a01 tegra194"),
    ("xavier-nx-8gb", 8, 7018496, "p3668-0000 p3509-0000+p3668-0000 tegra194"),
    ("xavier-nx-16gb", 16, 15800000, "p3509-0000+p3668-0003 tegra194"),
    ("xavier-nx-16gb", 16, 15800000, "p3509-0000+p3668-0001 tegra194"),
    ("jetson-tx2", 8, 8047616, "p2597-0000+p3310-1000 tegra186"),
    ("jetson-tx2", 8, 8047616, "quill tegra186"),
    ("jetson-tx2", 8, 8047616, "quill p2597-0000+p3310-1000 tegra186"),
    ("jetson-tx2", 8, 8047616, "p2771-0000 tegra186"),
    ("jetson-tx2-4gb", 4, 3921920, "lightning tegra186"),
    ("jetson-tx2-4gb", 4, 3921920, "quill tegra186"),
    ("jetson-tx2-4gb", 4, 3921920, "p2597-0000+p3489-0888 tegra186"),
    ("jetson-tx2i", 8, 8047616, "storm tegra186"),
    ("jetson-tx2i", 8, 8047616, "p2597-0000+p3489-0000 tegra186"),
    ("jetson-tx2-nx", 4, 3921920, "p3509-0000+p3636-0001 tegra186"),
    ("jetson-tx1", 4, 4079616, "jetson-cv tegra210"),
    ("jetson-tx1", 4, 4079616, "p2597-0000+p2180-1000 jetson-cv tegra210"),
    ("jetson-nano", 4, 4050944, "p3449-0000-b00+p3448-0000-b00 jetson-nano tegra210"),
    ("jetson-nano", 4, 4050944, "p3449-0000-b00+p3448-0002-b00 jetson-nano tegra210"),
    ("jetson-nano", 4, 4050944, "jetson-nano tegra210"),
    ("jetson-nano-2gb", 2, 2027000, "p3542-0000+p3448-0003 jetson-nano-2gb jetson-nano tegra210"),
    (None, 0, 4050944, "odin tegra210"),
    ("agx-orin-64gb", 64, 64335000, "p3737-0000+p3701-0005-b00 tegra234"),
    # Modules that do not exist yet.
    (None, 0, 64335000, "p3737-0000+p3701-00050 p3701-00050 tegra234"),
    (None, 0, 128825804, "p4071-0000+p3834-0009 p3834-0009 tegra264"),
]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(("profile", "gib", "kib", "compatible"), BOARDS)
def test_a_board_is_known_by_its_device_tree_and_its_memory(
    profile: str | None, gib: float, kib: int, compatible: str, tmp_path: Path
) -> None:
    files = {
        "proc/device-tree/compatible": "".join(f"nvidia,{name}\0" for name in compatible.split()),
        "proc/meminfo": f"MemTotal:       {kib} kB\n",
        "proc/cpuinfo": "Features\t: fp asimd\n",
    }
    found = find_profile(write(tmp_path, files))
    assert (found.name if found else None) == profile
    if found:
        assert found.memory.gib is not None
        assert found.memory.gib.value == gib
        again = load_profile(found.asked_as)
        assert (again.name, again.title, again.memory) == (found.name, found.title, found.memory)


def test_doctor_names_a_board_with_the_memory_that_it_has(tmp_path: Path) -> None:
    for gib, name in ((32, "agx-orin-32gb-devkit"), (64, "agx-orin-64gb")):
        root = write(
            tmp_path / name,
            {
                "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0000\0",
                "proc/meminfo": f"MemTotal:       {gib * 999_000} kB\n",
            },
        )
        report = examine(root)
        assert (report.profile, report.device) == ("agx-orin-64gb", name)
        assert f"known device: {name}" in [finding.what for finding in report.findings]


RTX = "NVIDIA GeForce RTX"
CARDS: list[tuple[str, GpuTold, str | None]] = [
    (f"{RTX} 3060", GpuTold(12.0, 360.0, 170.0), "rtx-3060"),
    (f"{RTX} 3060", GpuTold(8.0, 240.0, 170.0), "rtx-3060-8gb"),
    (f"{RTX} 3060", GpuTold(8.0), "rtx-3060-8gb"),
    (f"{RTX} 3060 Ti", GpuTold(8.0, 448.1, 200.0), "rtx-3060-ti"),
    (f"{RTX} 3060 Ti", GpuTold(8.0, 608.1, 225.0), "rtx-3060-ti-gddr6x"),
    (f"{RTX} 3060 Ti", GpuTold(8.0, None, 225.0), "rtx-3060-ti-gddr6x"),
    (f"{RTX} 3060 Ti", GpuTold(8.0, 448.1, 240.0), "rtx-3060-ti"),  # a maker's card with a higher limit
    (f"{RTX} 4070", GpuTold(12.0, 504.0, 200.0), "rtx-4070"),
    (f"{RTX} 4070", GpuTold(12.0, 480.0, 200.0), "rtx-4070-gddr6"),
    (f"{RTX} 4060 Ti", GpuTold(16.0, 288.0, 165.0), "rtx-4060-ti-16gb"),
    (f"{RTX} 4060 Ti", GpuTold(), "rtx-4060-ti-8gb"),  # nothing told: what is sure to be there
    (f"{RTX} 3080", GpuTold(12.0, 912.0), "rtx-3080-12gb"),
    (f"{RTX} 3050", GpuTold(6.0, 168.0, 70.0), "rtx-3050-6gb"),
    (f"{RTX} 3050", GpuTold(8.0, 224.0, 130.0), "rtx-3050-8gb"),
    (f"{RTX} 2060", GpuTold(12.0, 336.0, 184.0), "rtx-2060-12gb"),
    (f"{RTX} 2070", GpuTold(8.0, 448.1, 175.0), "rtx-2070"),
    (f"{RTX} 2070", GpuTold(8.0, 448.1, 115.0), "rtx-2070-laptop"),
    (f"{RTX} 2070 with Max-Q Design", GpuTold(8.0, 384.0, 90.0), "rtx-2070-max-q"),
    ("NVIDIA GeForce GTX 1650", GpuTold(4.0, 128.1, 75.0), "gtx-1650"),
    ("NVIDIA GeForce GTX 1650", GpuTold(4.0, 192.0, 75.0), "gtx-1650-gddr6"),
    ("NVIDIA GeForce GTX 1650", GpuTold(4.0, 192.0, 50.0), "gtx-1650-laptop"),
    (f"{RTX} 5050", GpuTold(8.0), "rtx-5050"),
    ("Tesla V100-SXM2-32GB", GpuTold(31.7), "v100-sxm2"),
    ("NVIDIA GH200 480GB", GpuTold(95.6), "gh200-96gb"),
    ("NVIDIA B200", GpuTold(179.1), "b200"),
    ("NVIDIA RTX A2000 12GB", GpuTold(12.0), "rtx-a2000-12gb"),
    ("NVIDIA RTX 4000 Ada Generation", GpuTold(20.0), "rtx-4000-ada"),
    ("NVIDIA RTX 4000 SFF Ada Generation", GpuTold(20.0), "rtx-4000-sff-ada"),
    ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", GpuTold(95.6), "rtx-pro-6000-max-q"),
    ("NVIDIA GB10", GpuTold(), "gb10"),
    ("GeForce RTX 3090", GpuTold(24.0), "rtx-3090"),  # as drivers before 465 have it
    ("NVIDIA Tesla T4", GpuTold(14.6), "t4"),
    (f"{RTX} 9999", GpuTold(12.0), None),
]


@pytest.mark.parametrize(("name", "told", "expected"), CARDS)
def test_cards_of_one_name_are_told_apart_by_what_nvml_says(
    name: str, told: GpuTold, expected: str | None, tmp_path: Path
) -> None:
    found = match_profile(Tree(tmp_path), (name,), told)
    assert (found.name if found else None) == expected


def test_a_card_has_the_memory_that_is_there(tmp_path: Path) -> None:
    found = match_profile(Tree(tmp_path), ("Tesla V100-SXM2-32GB",), GpuTold(31.7))
    assert found is not None
    assert found.memory.gib is not None
    assert (found.memory.gib.value, found.title) == (32, "NVIDIA V100 SXM2 32 GB")


@pytest.mark.parametrize(
    ("watts", "mhz"), [(None, 2175), (20.0, 1230), (35.0, 1230), (75.0, 1702), (115.0, 2175), (140.0, 2175)]
)
def test_a_laptops_gpu_is_as_fast_as_its_power_allows(watts: float | None, mhz: int, tmp_path: Path) -> None:
    found = match_profile(Tree(tmp_path), (f"{RTX} 4070 Laptop GPU",), GpuTold(8.0, 256.0, watts))
    whole = load_profile("rtx-4070-laptop")
    assert found is not None
    assert found.gpu_mhz is not None
    assert found.gpu_mhz.value == mhz
    for mine, all_of_it in zip(found.peaks, whole.peaks, strict=True):
        assert mine.total() == pytest.approx(all_of_it.total() * mhz / 2175, rel=1e-3)
        assert mine.total(fp32_sums=True) == pytest.approx(all_of_it.total(fp32_sums=True) * mhz / 2175, rel=1e-3)
    assert (watts is None) == (found.title == whole.title)


def test_the_clock_of_a_laptop_rises_evenly_between_the_ends() -> None:
    boost = Boost(watts=(50, 100), mhz=(1000, 2000), source="made up")
    assert [boost.mhz_at(watts) for watts in (10, 50, 60, 75, 100, 175)] == [1000, 1000, 1200, 1500, 2000, 2000]


def test_a_geforce_card_sums_in_fp32_at_half_the_rate_and_a_workstation_card_at_the_same() -> None:
    for name, halved in (("rtx-4090", True), ("rtx-2080-ti", True), ("rtx-6000-ada", False), ("h100", False)):
        peak = load_profile(name).peak("fp16")
        assert peak is not None
        assert peak.total(fp32_sums=True) == pytest.approx(peak.total() / (2 if halved else 1), rel=1e-3)


def test_a_memory_that_a_device_is_sold_with_can_be_asked_for() -> None:
    devkit = load_profile("AGX Orin 32GB devkit")
    assert (devkit.name, devkit.title) == ("agx-orin-64gb", "NVIDIA Jetson AGX Orin developer kit 32 GB")
    assert devkit.memory.gib is not None
    assert devkit.memory.gib.value == 32
    assert devkit.peaks == load_profile("agx-orin").peaks


class Nvml(SimpleNamespace):
    """A stand-in for NVML on GPUs that we do not have; its functions are those of NVIDIA's reference."""

    NVMLError = RuntimeError
    NVML_CLOCK_MEM = 2

    def __getattr__(self, name: str) -> Any:
        def unsupported(*_: Any) -> Any:
            raise RuntimeError("Not Supported")

        return unsupported


def test_nvml_is_asked_for_memory_bandwidth_and_power_and_may_know_none() -> None:
    common: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlSystemGetDriverVersion": lambda: "580.95",
    }
    # An RTX 4070 with GDDR6X: 10501 MHz × 2 × 192 bit are its 504 GB/s.
    _, card = _nvml(
        Nvml(
            **common,
            nvmlDeviceGetName=lambda handle: f"{RTX} 4070",
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=12282 << 20),
            nvmlDeviceGetMaxClockInfo=lambda handle, clock: 10501,
            nvmlDeviceGetMemoryBusWidth=lambda handle: 192,
            nvmlDeviceGetPowerManagementDefaultLimit=lambda handle: 200000,
        )
    )
    assert (card["memory_gib"], card["bandwidth_gb_s"], card["power_w"]) == ("12.0", "504.0", "200.0")
    _, shared = _nvml(Nvml(**common, nvmlDeviceGetName=lambda handle: "NVIDIA GB10"))
    assert shared["names"] == "NVIDIA GB10"
    assert not {"memory_gib", "bandwidth_gb_s", "power_w"} & set(shared)


def test_what_a_record_says_of_a_card_is_taken_if_it_is_a_figure() -> None:
    facts = {"names": f"{RTX} 4070", "memory_gib": "12.0", "bandwidth_gb_s": "nan", "power_w": "much"}
    assert _gpus_of(facts) == ((f"{RTX} 4070",), GpuTold(memory_gib=12.0))
    assert _gpus_of({"memory_gib": "0", "power_w": "inf", "bandwidth_gb_s": "-1"}) == ((), GpuTold())
