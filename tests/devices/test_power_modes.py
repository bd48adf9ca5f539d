"""Power modes: what NVIDIA's nvpmodel files cap, the peaks that follow, and plans for a mode.

``nvpmodel.tsv`` holds rows of NVIDIA's own files and of public reports, each with its source; nobody here wrote them.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from edgeclip.cli.devices import as_values, present_here, print_profile
from edgeclip.devices.catalogue.profile import DeviceProfile, PowerMode, load_profile, load_profiles
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.plan.plan import demand_here, plan, present_mode, profile_here
from edgeclip.devices.plan.records import Demand
from edgeclip.errors import InputError
from tests.command_line import edgeclip, refused
from tests.devices.published import published_latencies
from tests.machines import make

VIT_B_32 = next(each.cost for each in published_latencies() if each.model == "ViT-B-32")
JETSONS = [each for each in load_profiles() if each.power_modes]

with Path(__file__).with_name("nvpmodel.tsv").open(encoding="utf-8", newline="") as _stream:
    ROWS = list(csv.DictReader(_stream, delimiter="\t", quoting=csv.QUOTE_NONE))

# Board → profiles, bits of its TPC mask, TPCs that there are; at the highest clocks, MHz: GPU, memory; FP16 TFLOP/s,
# INT8 TOP/s, GB/s there, all of them of data sheets.
BOARDS: dict[str, tuple[tuple[str, ...], int, int, float, float, float, float, float]] = {
    "Orin NX 16GB": (("orin-nx-16gb",), 8, 4, 918, 3200, 15.05, 30.1, 102.4),
    "Orin NX 16GB (Super)": (("orin-nx-16gb",), 8, 4, 1173, 3200, 19.23, 38.46, 102.4),
    "Orin NX 8GB": (("orin-nx-8gb",), 8, 4, 765, 3200, 12.55, 25.1, 102.4),
    "Orin NX 8GB (Super)": (("orin-nx-8gb",), 8, 4, 1173, 3200, 19.24, 38.49, 102.4),
    "Orin Nano 8GB": (("orin-nano-8gb",), 8, 4, 625, 2133, 10, 20, 68),
    "Orin Nano 8GB (Super)": (("orin-nano-8gb",), 8, 4, 1020, 3199, 16.7, 33.4, 102),
    "Orin Nano 4GB": (("orin-nano-4gb",), 8, 2, 625, 2133, 5, 10, 34),
    "Orin Nano 4GB (Super)": (("orin-nano-4gb",), 8, 2, 1020, 3199, 8.35, 16.7, 51),
    "AGX Orin devkit/64GB class": (("agx-orin-64gb",), 8, 8, 1300, 3200, 42.5, 85, 204.8),
    "AGX Orin 32GB": (("agx-orin-32gb",), 8, 7, 930, 3200, 27, 54, 204.8),
    "AGX Xavier": (("agx-xavier",), 4, 4, 1377, 2133, 11, 22, 136.5),
    "Xavier NX": (("xavier-nx-8gb", "xavier-nx-16gb"), 4, 3, 1109.25, 1866, 6, 12, 59.7),
    "Jetson TX2": (("jetson-tx2",), 0, 0, 1300, 1866, 1.33, 0, 59.7),
    "Jetson Nano": (("jetson-nano",), 0, 0, 921.6, 1600, 0.472, 0, 25.6),
}


def figures(profile: DeviceProfile) -> tuple[float, float, float]:
    """FP16 and INT8 peaks, 0 where there is none, and bandwidth."""
    fp16, int8, bandwidth = profile.peak("fp16"), profile.peak("int8"), profile.memory.bandwidth_gb_s
    return (fp16.total() if fp16 else 0, int8.total() if int8 else 0, bandwidth.value if bandwidth else 0)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row["file"] != "-"], ids=lambda row: f"{row['board']} {row['name']}"
)
def test_each_mode_of_nvidias_files_has_the_peaks_of_its_clocks_and_mask(row: dict[str, str]) -> None:
    names, bits, tpcs, gpu_mhz, emc_mhz, fp16, int8, bandwidth = BOARDS[row["board"]]
    boosted = "(Super)" in row["board"]
    for name in names:
        profile = load_profile(name)
        mode = profile.power_mode(row["name"], boosted=boosted)
        assert mode.id == int(row["id"])
        hz, mask, cap = (int(row[key] or 0) for key in ("gpu_max_hz", "tpc_pg_mask(bit=gated)", "emc_max_hz"))
        part = (gpu_mhz if hz <= 0 else hz / 1e6) / gpu_mhz
        if tpcs:
            assert mode.tpcs == bits - mask.bit_count()
            part *= mode.tpcs / tpcs
        there = figures(profile.at(mode))
        assert there[:2] == pytest.approx((fp16 * part, int8 * part), rel=0.03 if boosted else 0.002)
        if row["emc_max_hz"]:
            assert there[2] == pytest.approx(bandwidth * (cap / 1e6 / emc_mhz if cap else 1), rel=0.002)
        if row["cpus_online"]:
            assert mode.cpus == int(row["cpus_online"])
        if int(row["cpu_max_khz"] or 0) > 0:
            assert mode.cpu_mhz == pytest.approx(int(row["cpu_max_khz"]) / 1e3, rel=0.001)
        if row["board"] != "Jetson TX2":  # the row's source is not sure of it; NVIDIA's file says PM_CONFIG DEFAULT=3
            default = mode.default and mode.super_only == boosted
            assert default == (row["default"] == "yes")


def test_modes_that_people_report_are_there() -> None:
    reported = [row for row in ROWS if row["file"] == "-"]
    assert [(row["board"], row["name"]) for row in reported] == [
        ("Orin Nano 8GB (Super), L4T R36.4.7", "7W"),
        ("Orin Nano 8GB, L4T R36.4.7", "MAXN_SUPER"),
    ]
    nano = load_profile("orin-nano-8gb")
    assert {mode.name for mode in nano.power_modes if mode.super_only} == {"7W", "15W", "25W", "MAXN_SUPER"}
    assert nano.power_mode("MAXN_SUPER").id == 2
    assert len(ROWS) == 58


@pytest.mark.parametrize(
    ("device", "mode", "fp16", "int8", "bandwidth"),
    [
        ("orin-nx-16gb", "10W", 5.0, 10.0, 68.3),
        ("orin-nx-16gb", "15W", 5.0, 10.0, 102.4),
        ("orin-nx-8gb", "10W", 5.0, 10.0, 68.3),
        ("orin-nx-8gb", "15W", 5.0, 10.0, 102.4),
        ("agx-orin-64gb", "MODE_30W", 10.0, 20.0, 204.8),
        ("agx-orin-64gb", "MODE_15W", 5.0, 10.0, 136.5),
        ("agx-orin-32gb", "MODE_30W", 10.2, 20.3, 204.8),
        ("agx-orin-32gb", "MODE_15W", 5.1, 10.2, 136.5),
        ("orin-nano-8gb", "7W", 3.3, 6.5, 68.0),
        ("agx-xavier", "MODE_10W", 2.1, 4.2, 68.2),
        ("agx-xavier", "MODE_15W", 5.4, 10.7, 85.2),
        ("agx-xavier", "MODE_30W_ALL", 7.2, 14.4, 102.4),
        ("xavier-nx-8gb", "MODE_15W_6CORE", 6.0, 12.0, 51.2),
        ("xavier-nx-8gb", "MODE_20W_6CORE", 6.0, 12.0, 59.7),
        ("thor-t5000", "90W", 150.8, 0, 273),
        ("thor-t5000", "70W", 150.8, 0, 273),
    ],
)
def test_a_mode_that_gates_tpcs_is_slower_by_them(
    device: str, mode: str, fp16: float, int8: float, bandwidth: float
) -> None:
    assert figures(load_profile(device).at(mode))[::2] == pytest.approx((fp16, bandwidth), abs=0.051)
    if int8:
        assert figures(load_profile(device).at(mode))[1] == pytest.approx(int8, abs=0.051)


@pytest.mark.parametrize("profile", JETSONS, ids=lambda profile: profile.name)
def test_modes_are_whole(profile: DeviceProfile) -> None:
    """A mode that forgot its clock or its TPCs would be planned for as not known, or worse."""
    modes = profile.power_modes
    assert len({(mode.name, mode.super_only) for mode in modes}) == len(modes)
    assert len({(mode.id, mode.super_only) for mode in modes if mode.id is not None}) == sum(
        mode.id is not None for mode in modes
    )
    assert set(profile.alias_modes.values()) <= {mode.name for mode in modes}
    assert {mode.jetpack for mode in modes} - {None} <= set(profile.jetpacks)
    assert profile.gpu_mhz
    assert profile.default_mode
    backwards = msgspec.structs.replace(profile, power_modes=modes[::-1])
    assert backwards.default_mode == profile.default_mode
    for boosted in {mode.super_only for mode in modes}:
        assert sum(mode.default for mode in modes if mode.super_only == boosted) == 1
    for mode in modes:
        assert bool(profile.at(mode).peaks) == (mode.gpu_mhz is not None)
        if mode.gpu_mhz is not None:
            assert (mode.tpcs is None) == (profile.tpcs is None)
            assert mode.super_only or mode.jetpack or mode.gpu_mhz <= profile.gpu_mhz.value
            assert mode.tpcs is None or profile.tpcs is None or mode.tpcs <= profile.tpcs.value
        assert mode.emc_mhz is None or profile.emc_mhz


def test_agx_orin_gained_maxn_super_with_jetpack_7() -> None:
    assert figures(load_profile("agx-orin-32gb").at("MAXN_SUPER")) == pytest.approx((37.7, 75.5, 204.8), rel=0.01)
    whole = load_profile("agx-orin-64gb")
    assert figures(whole.at("MAXN_SUPER")) == figures(whole.at("MAXN"))
    with pytest.raises(InputError, match=r"expected JetPack 7\.2 or later for MAXN_SUPER of agx-orin-64gb, got 6\.2"):
        plan(VIT_B_32, whole, Demand(mode="MAXN_SUPER", jetpack="6.2"))


def test_what_super_reaches_agrees_with_what_nvidia_publishes() -> None:
    for name, fp16, int8, bandwidth in (("orin-nano-super", 17, 33, 102), ("orin-nano-4gb-super", 8.5, 17, 51)):
        assert figures(load_profile(name)) == pytest.approx((fp16, int8, bandwidth), rel=0.05)


def test_a_mode_goes_by_its_name_however_it_is_written() -> None:
    agx, nano = load_profile("agx-orin"), load_profile("orin-nano")
    for name in ("MODE_30W", "mode_30w", "30W", "mode 30w", "30w"):
        assert agx.power_mode(name).name == "MODE_30W"
    assert nano.power_mode("maxn super").name == nano.power_mode("MAXN-SUPER").name == "MAXN_SUPER"
    with pytest.raises(InputError, match="got '60W': known are MAXN, MODE_15W, MODE_30W, MODE_50W, MAXN_SUPER"):
        agx.at("60W")
    with pytest.raises(InputError, match="got '30W': known are MAXN, MODE_10W, MODE_15W, MODE_30W_ALL, "):
        load_profile("agx-xavier").at("30W")
    with pytest.raises(InputError, match="expected a power mode of l4, got 'MAXN': known are none"):
        load_profile("l4").at("MAXN")


def test_a_name_that_two_configurations_share_means_the_one_that_was_named() -> None:
    """An Orin Nano's 15W runs its GPU at 625 MHz, and at 612 in the Super configuration."""
    plain, boosted = load_profile("orin-nano"), load_profile("orin-nano-super")
    clocks = [each.at("15W").gpu_mhz for each in (plain, boosted)]
    assert [clock.value for clock in clocks if clock] == [625, 612]
    assert boosted.mode == plain.power_mode("MAXN_SUPER")
    # A mode after a mode starts from the board's own figures.
    assert plain.at("7W").at("MAXN_SUPER").at("15W") == boosted.at("15W")
    assert plain.at("7W").at("25W") == plain.at("25W")
    assert load_profile("t4000").at("70W").at("MAXN").peaks == load_profile("t4000").peaks


def test_clocks_that_are_not_known_leave_no_peaks() -> None:
    unknown = load_profile("t4000").at("70W")
    assert unknown.peaks == ()
    assert unknown.gpu_mhz is None
    made = plan(VIT_B_32, load_profile("t4000"))
    assert made.mode is not None
    assert (made.mode.name, made.mode.peak_tflops) == ("70W", {})
    assert made.verdict == "fp16 can run; how fast is not known: measure with edgeclip build"
    assert [each.name for each in made.beside] == ["MAXN"]
    # As a profile would be that somebody wrote without the TPCs of its modes.
    orin = load_profile("orin-nx")
    bare = PowerMode(name="8W", source="guide", gpu_mhz=500)
    assert orin.at(bare).peaks == ()


@pytest.mark.parametrize(
    ("device", "asked", "mode", "why", "fp16", "beside"),
    [
        ("agx-orin", None, "MODE_30W", "the factory default", 10.0, ["MAXN", "MAXN_SUPER"]),
        ("agx-orin", "MODE_30W", "MODE_30W", "as asked", 10.0, ["MAXN", "MAXN_SUPER"]),
        ("agx-orin", "maxn", "MAXN", "as asked", 42.5, []),
        ("agx-orin-32gb", None, "MODE_30W", "the factory default", 10.15, ["MAXN", "MAXN_SUPER"]),
        ("agx-orin-32gb", "MAXN", "MAXN", "as asked", 27, ["MAXN_SUPER"]),
        ("orin-nx", None, "15W", "the factory default (40W in the Super configuration)", 5.017, ["MAXN", "MAXN_SUPER"]),
        ("orin-nano", None, "15W", "the factory default (25W in the Super configuration)", 10.0, ["MAXN_SUPER"]),
        ("orin-nano", "25W", "25W", "as asked, in the Super configuration", 14.69, ["MAXN_SUPER"]),
        ("orin-nano", "7W", "7W", "as asked", 3.264, ["MAXN_SUPER"]),
        ("orin-nano-super", None, "MAXN_SUPER", "as asked, in the Super configuration", 16.32, []),
        ("orin-nano-super", "15W", "15W", "as asked, in the Super configuration", 9.792, ["MAXN_SUPER"]),
        ("thor", None, "120W", "the factory default", 227.7, ["MAXN"]),
        ("xavier-nx", None, "MODE_10W_DESKTOP", "the factory default", 2.759, ["MODE_20W_6CORE"]),
        ("nano", None, "MAXN", "the factory default", 0.472, []),
        ("tx2", None, "MAXP_CORE_ARM", "the factory default", 1.146, ["MAXN"]),
        ("tx2-nx", None, "MAXP_CORE_ARM", "the factory default", 1.146, ["MAXN"]),
    ],
)
def test_a_plan_is_for_the_mode_asked_for_or_the_factory_default(
    device: str, asked: str | None, mode: str, why: str, fp16: float, beside: list[str]
) -> None:
    made = plan(VIT_B_32, load_profile(device), Demand(mode=asked))
    assert made.mode is not None
    assert (made.mode.name, made.mode.why) == (mode, why)
    assert made.mode.peak_tflops["fp16"] == fp16
    assert [each.name for each in made.beside] == beside
    for each in made.beside:
        assert each.peak_tflops["fp16"] > fp16
        for name, speed in each.images_per_s.items():
            assert speed.low > made.mode.images_per_s[name].low


def test_a_release_without_super_is_not_promised_it() -> None:
    made = plan(VIT_B_32, load_profile("orin-nano"), Demand(jetpack="6.0"))
    assert made.beside == ()
    assert made.mode is not None
    assert made.mode.why == "the factory default"
    with pytest.raises(InputError, match=r"expected JetPack 6\.2 or later for 25W of orin-nano-8gb, got 6\.1"):
        plan(VIT_B_32, load_profile("orin-nano"), Demand(jetpack="6.1", mode="25W"))
    with pytest.raises(InputError, match=r"for MAXN_SUPER of orin-nano-8gb, got 6\.0"):
        plan(VIT_B_32, load_profile("orin-nano-super"), Demand(jetpack="6.0"))


def test_a_device_without_modes_is_planned_for_as_it_is() -> None:
    made = plan(VIT_B_32, load_profile("l4"))
    assert made.mode is None
    assert made.beside == ()
    with pytest.raises(InputError, match="got 'MAXN': known are none: it is no Jetson"):
        plan(VIT_B_32, load_profile("l4"), Demand(mode="MAXN"))
    with pytest.raises(InputError, match="got 'MAXN': known are none, plan without one"):
        plan(VIT_B_32, load_profile("igx-orin"), Demand(mode="MAXN"))
    # A Jetson whose nvpmodel file nobody published.
    unknown = plan(VIT_B_32, load_profile("agx-orin-industrial"))
    assert unknown.mode is None
    assert unknown.notes[0].startswith("its power modes are not known here: ")
    # A board of which it is not known which mode it starts in: its own figures, and no word of a mode.
    orin = load_profile("agx-orin")
    modes = tuple(msgspec.structs.replace(mode, default=False) for mode in orin.power_modes)
    made = plan(VIT_B_32, msgspec.structs.replace(orin, power_modes=modes))
    assert made.mode is None
    assert made.notes[0].startswith("its power modes are not known here: all figures are those of its highest clocks")
    assert made.variant("fp16") == plan(VIT_B_32, orin, Demand(mode="MAXN")).variant("fp16")


def test_notes_say_what_a_mode_takes() -> None:
    gated = plan(VIT_B_32, load_profile("agx-orin")).notes
    assert "MODE_30W leaves 4 of 8 TPCs of the GPU on: entering and leaving it takes a reboot" in gated
    boosted = plan(VIT_B_32, load_profile("orin-nano-super")).notes
    assert "the Super configuration is chosen when the module is flashed" in boosted
    assert any(note.startswith("MAXN_SUPER: no budget") for note in boosted)
    for device, mode in (("agx-orin", "MODE_50W"), ("agx-orin-32gb", "MAXN"), ("orin-nano-4gb", "7W_AI")):
        assert not any("reboot" in note for note in plan(VIT_B_32, load_profile(device), Demand(mode=mode)).notes)


# The machine itself


def test_on_the_device_the_present_mode_is_planned_for(tmp_path: Path) -> None:
    for machine, gpu_mhz, name in (
        ("orin-nano-jp62", 612, "15W"),
        ("agx-orin-jp62", 1300, "MAXN"),
        ("thor-jp70", 1386, "120W"),
    ):
        tree = Tree(make(machine, tmp_path / machine))
        profile = profile_here(tree)
        assert profile.gpu_mhz
        assert profile.gpu_mhz.value == gpu_mhz
        made = plan(VIT_B_32, profile, demand_here(Demand(), profile, tree))
        assert made.mode is not None
        assert made.mode.name == name
        assert made.mode.why.removesuffix(", in the Super configuration") == "the present one"


def test_on_the_device_another_mode_can_be_asked_for(tmp_path: Path) -> None:
    """The machine has the files of the Super configuration, so its modes are meant where names are shared."""
    tree = Tree(make("orin-nano-jp62", tmp_path))
    profile = profile_here(tree)
    made = plan(VIT_B_32, profile, demand_here(Demand(mode="25W"), profile, tree))
    assert made.mode is not None
    assert (made.mode.name, made.mode.why) == ("25W", "as asked, in the Super configuration")
    assert (profile.power_mode("7W").id, load_profile("orin-nano").power_mode("7W").id) == (3, 1)


@pytest.mark.parametrize(
    ("said", "release", "newest"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1", "6.2", False),
        ("# R36 (release), REVISION: 4.7", "6.2.1", False),
        ("# R99 (release), REVISION: 1.0", None, True),  # of no release that is known, so the newest
        (None, None, True),
    ],
)
def test_on_the_device_its_own_jetpack_is_planned_for(
    said: str | None, release: str | None, newest: bool, tmp_path: Path
) -> None:
    tree = Tree(make("orin-nano-jp62", tmp_path, {"etc/nv_tegra_release": said}))
    profile = profile_here(tree)
    demand = demand_here(Demand(), profile, tree)
    assert demand.jetpack == release
    assert (plan(VIT_B_32, profile, demand).release == plan(VIT_B_32, load_profile("orin-nano")).release) is newest
    assert demand_here(Demand(jetpack="6.1"), profile, tree).jetpack == "6.1"


def test_the_mode_that_a_device_is_in_is_not_denied(tmp_path: Path) -> None:
    """MAXN_SUPER came with JetPack 6.2, and with a patched 36.4 before it."""
    files = {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.0", "var/lib/nvpmodel/status": "pmode:0002"}
    tree = Tree(make("orin-nano-jp62", tmp_path, files))
    profile = profile_here(tree)
    made = plan(VIT_B_32, profile, demand_here(Demand(), profile, tree))
    assert made.mode is not None
    assert (made.mode.name, made.release) == ("MAXN_SUPER", "6.1")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"var/lib/nvpmodel/status": None}, "the factory default: which is the present one is not known"),
        (
            {"var/lib/nvpmodel/status": "pmode:0007"},
            "the factory default: nothing is known of the present one, mode 7",
        ),
        ({"etc/nvpmodel.conf": None}, "the factory default: nothing is known of the present one, mode 0"),
        (
            {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MY_OWN_22W >\n"},
            "the factory default: nothing is known of the present one, MY_OWN_22W",
        ),
    ],
)
def test_a_present_mode_that_is_not_known_is_told(changed: dict[str, str | None], why: str, tmp_path: Path) -> None:
    tree = Tree(make("agx-orin-jp62", tmp_path, changed))
    profile = profile_here(tree)
    made = plan(VIT_B_32, profile, demand_here(Demand(), profile, tree))
    assert made.mode is not None
    assert (made.mode.name, made.mode.why) == ("MODE_30W", why)


def test_a_mode_that_is_not_the_present_one_is_not_called_so(tmp_path: Path) -> None:
    """The machine is in MAXN; the profiles were named, not found."""
    tree = Tree(make("agx-orin-jp62", tmp_path))
    agx = load_profile("agx-orin")
    for profile, why in (
        (agx, "the factory default"),
        (agx.at("MODE_15W"), "as asked"),
        (agx.at("MAXN"), "the present one"),
    ):
        made = plan(VIT_B_32, profile, demand_here(Demand(), profile, tree))
        assert made.mode is not None
        assert made.mode.why == why


def test_a_machine_that_is_no_jetson_has_no_present_mode(tmp_path: Path) -> None:
    assert present_mode(load_profile("orin-nano"), Tree(tmp_path)) is None


# The command line


def test_devices_shows_each_mode_with_its_peaks() -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    print_profile(load_profile("agx-orin"), console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert "  2  MODE_30W   30 612     4    10   20   204.8 8×1728   default" in lines
    assert any(line.startswith("  MAXN_SUPER: from JetPack 7.2; ") for line in lines)
    modes = as_values(load_profile("xavier-nx"))["power_modes"]
    desktop = next(mode for mode in modes if mode["name"] == "MODE_10W_DESKTOP")
    assert (desktop["peaks"]["fp16"], desktop["peaks"]["int8"]) == (2.759, 5.517)
    assert (desktop["default"], desktop["present"], desktop["bandwidth_gb_s"]) == (True, False, 51.19)


@pytest.mark.parametrize("profile", JETSONS, ids=lambda profile: profile.name)
def test_what_marks_a_mode_is_read_on_a_narrow_screen(profile: DeviceProfile) -> None:
    console = Console(file=io.StringIO(), width=80, record=True)
    print_profile(profile, console, profile.default_mode)
    shown = console.export_text()
    assert shown.count("default, present") == 1
    assert all(mode.name in shown for mode in profile.power_modes)
    assert "…" not in shown


def test_devices_marks_the_mode_of_the_machine_that_it_runs_on(tmp_path: Path) -> None:
    tree = Tree(make("orin-nano-jp62", tmp_path))
    nano = load_profile("orin-nano")
    present = present_here(nano, tree)
    marked = [mode for mode in as_values(nano, present)["power_modes"] if mode["present"]]
    assert [(mode["name"], mode["gpu_mhz"]) for mode in marked] == [("15W", 612)]
    assert present_here(load_profile("agx-orin"), tree) is None  # it is another device
    assert present_here(load_profile("l4"), tree) is None


def test_plan_takes_a_mode_and_says_which() -> None:
    text = " ".join(edgeclip("plan", "starter", "--device", "agx-orin", "--mode", "MODE_30W").split())
    assert "power mode MODE_30W, as asked: fp16 10 TFLOPS, int8 20 TOPS, memory 204.8 GB/s" in text
    assert "beside MAXN: fp16 42.5 TFLOPS, int8 85 TOPS" in text
    found = json.loads(edgeclip("plan", "starter", "--device", "orin-nx", "--json"))
    assert (found["mode"]["name"], found["beside"][0]["name"]) == ("15W", "MAXN")
    assert refused("plan", "starter", "--device", "orin-nx", "--mode", "MODE_30W").startswith(
        "error: expected a power mode of orin-nx-16gb, got 'MODE_30W': known are MAXN, 10W, 15W, 25W, "
    )
