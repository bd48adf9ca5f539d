"""Doctor says what a machine is, what its libraries do and how to mend what is wrong; what it cannot read is absent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeclip.devices.doctor.examine import RECORD, Report, examine
from edgeclip.devices.doctor.finding import Finding
from edgeclip.devices.machine import software
from edgeclip.devices.machine.jetson import Mode, fastest_mode, l4t_release, power_modes
from edgeclip.devices.machine.machine import find_profile
from edgeclip.devices.machine.software import try_libraries
from edgeclip.devices.machine.try_library import trials
from edgeclip.errors import InputError
from tests.machines import NAMES, files, make


def found(report: Report) -> dict[str, str]:
    """What was found to be other than in order: level by rule."""
    return {finding.id: finding.level for finding in report.findings if finding.level != "ok"}


def finding(report: Report, name: str) -> Finding:
    (one,) = (finding for finding in report.findings if finding.id == name)
    return one


def with_software(name: str, **changed: Any) -> dict[str, str | None]:
    """A machine's record of its software, changed."""
    return {RECORD: json.dumps(json.loads(files(name)[RECORD]) | changed)}


def with_library(name: str, library: str, **changed: Any) -> dict[str, str | None]:
    """A machine's record of its software in which one library did otherwise."""
    libraries = json.loads(files(name)[RECORD])["libraries"]
    others = [tried for tried in libraries if tried["name"] != library]
    return with_software(name, libraries=[*others, {"name": library, **changed}])


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeclip", "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("name", "profile", "expected"),
    [
        (
            "nano-jp46",
            "jetson-nano",
            {"jetpack": "problem", "clocks": "note", "swap": "note", "cpu-int8": "note"},
        ),
        (
            "xavier-nx-jp51",
            "xavier-nx-8gb",
            {"jetpack": "problem", "power-mode": "note", "clocks": "note", "swap": "note", "cpu-int8": "note"},
        ),
        (
            "orin-nano-jp62",
            "orin-nano-8gb",
            {
                "tensorrt": "problem",
                "cuda-bindings": "problem",
                "opencv": "problem",
                "trt-10.3-transformers": "note",
                "power-mode": "note",
                "clocks": "note",
                "swap": "note",
                "memory": "note",
                "disk": "note",
                "groups": "note",
            },
        ),
        ("agx-orin-jp62", "agx-orin-64gb", {"trt-10.3-transformers": "note"}),
        ("thor-jp70", "thor-t5000", {"power-mode": "note", "clocks": "note"}),
        (
            "pc-rtx-4090",
            "rtx-4090",
            {"cuda-bindings": "problem", "tensorrt-rtx-builder": "problem", "clash": "note"},
        ),
        (
            "pc-no-vnni",
            "x86-avx2",
            {
                "cpu-int8": "note",
                "governor": "note",
                "cpu-quota": "note",
                "memory-limit": "note",
                "intel-gpu": "note",
                "memory": "problem",
                "disk": "problem",
                "temperature": "problem",
                "av": "problem",
                "nvidia-driver": "problem",
                "camera-access": "problem",
            },
        ),
        ("raspberry-pi-5", "raspberry-pi-5", {"csi": "note"}),
    ],
)
def test_on_a_recorded_machine_this_is_found(name: str, profile: str, expected: dict[str, str], tmp_path: Path) -> None:
    report = examine(make(name, tmp_path))
    assert report.recorded
    assert not report.stops
    assert report.profile == profile
    assert found(report) == expected
    found_profile = find_profile(tmp_path)
    assert found_profile is not None
    assert found_profile.name == profile


def test_every_machine_that_is_written_down_is_looked_at() -> None:
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_each_problem_comes_with_the_command_that_mends_it(name: str, tmp_path: Path) -> None:
    report = examine(make(name, tmp_path))
    assert all(one.fix and one.why for one in report.of("problem"))
    ids = [one.id for one in report.findings]
    assert len(ids) == len(set(ids))


def test_an_orin_is_described_as_its_files_say(tmp_path: Path) -> None:
    machine = examine(make("orin-nano-jp62", tmp_path)).machine
    assert machine.jetson is not None
    assert machine.jetson.l4t == "36.4.3"
    assert machine.jetson.mode == Mode(0, "15W")
    assert machine.jetson.tensorrt is not None
    assert machine.jetson.tensorrt.version == "10.3.0"
    assert machine.cpu.name == "6 × Cortex-A78AE"
    assert machine.cpu.architecture == "aarch64"
    assert machine.memory.swaps is not None
    assert all(area.compressed for area in machine.memory.swaps)
    gpu = machine.clocks[-1]
    assert (gpu.name, gpu.min_mhz, gpu.max_mhz, gpu.pinned) == ("gpu", 306.0, 612.0, False)
    (camera,) = machine.cameras
    assert (camera.kind, camera.sensor) == ("csi", "imx219")
    switched_off = next(zone for zone in machine.temperatures if zone.name == "cv0-thermal")
    assert switched_off.celsius is None


def test_the_fixes_are_those_of_the_board_and_the_release(tmp_path: Path) -> None:
    orin = examine(make("orin-nano-jp62", tmp_path / "orin"))
    assert finding(orin, "power-mode").fix == ("sudo nvpmodel -m 2",)
    assert finding(orin, "cuda-bindings").fix == ("pip install 'cuda-bindings==12.*'",)
    assert finding(orin, "opencv").fix[0] == "pip uninstall -y opencv-python"
    assert "pyvenv.cfg" in finding(orin, "tensorrt").fix[0]
    xavier = examine(make("xavier-nx-jp51", tmp_path / "xavier"))
    assert finding(xavier, "power-mode").fix == ("sudo nvpmodel -m 8",)
    assert "No later JetPack" in finding(xavier, "jetpack").why


@pytest.mark.parametrize(
    ("changed", "fix"),
    [
        (with_software("orin-nano-jp62", python="3.12.4"), "/usr/bin/python3 -m venv --system-site-packages"),
        (with_software("orin-nano-jp62", system_python=False), "/usr/bin/python3 -m venv --system-site-packages"),
        ({"usr/lib/python3.10/dist-packages/tensorrt/__init__.py": None}, "sudo apt install python3-libnvinfer"),
        ({"usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": None}, "sudo apt update"),
    ],
)
def test_a_tensorrt_out_of_sight_is_mended_where_it_is_missing(
    changed: dict[str, str | None], fix: str, tmp_path: Path
) -> None:
    report = examine(make("orin-nano-jp62", tmp_path, changed))
    assert finding(report, "tensorrt").level == "problem"
    assert finding(report, "tensorrt").fix[0].startswith(fix)


@pytest.mark.parametrize(
    ("machine", "did", "packages", "fix"),
    [
        ("agx-orin-jp62", {"error": "OSError: libcudart.so.13"}, ("tensorrt-cu13", "tensorrt-cu13-libs"), True),
        ("agx-orin-jp62", {"version": "10.16.1", "facts": {"builder": "no"}}, ("tensorrt-cu12",), True),
        ("agx-orin-jp62", {"error": "OSError: libnvinfer.so.10"}, (), False),
        ("xavier-nx-jp51", {"error": "OSError: libnvinfer.so.10"}, ("tensorrt-cu12",), True),
    ],
)
def test_a_tensorrt_of_pips_that_does_not_run_on_a_jetson_is_removed(
    machine: str, did: dict[str, Any], packages: tuple[str, ...], fix: bool, tmp_path: Path
) -> None:
    recorded = json.loads(files(machine).get(RECORD) or files("agx-orin-jp62")[RECORD])
    others = [tried for tried in recorded["libraries"] if tried["name"] != "tensorrt"]
    recorded |= {"libraries": [*others, {"name": "tensorrt", **did}], "packages": dict.fromkeys(packages, "1")}
    report = examine(make(machine, tmp_path, {RECORD: json.dumps(recorded)}))
    (one,) = (each for each in report.of("problem") if each.id.startswith("tensorrt-"))
    if fix:
        assert one.fix == (f"pip uninstall -y tensorrt {' '.join(packages)}",)
    else:
        assert one.fix == ("sudo apt install --reinstall python3-libnvinfer",)


def test_an_engine_is_missed_where_a_gpu_has_none(tmp_path: Path) -> None:
    name = "pc-rtx-4090"
    report = examine(make(name, tmp_path, with_library(name, "tensorrt-rtx", installed=False)))
    assert finding(report, "gpu-engine").level == "problem"


@pytest.mark.parametrize(
    ("library", "stops"), [("opencv", True), ("av", False), ("onnxruntime", True), ("cuda-bindings", False)]
)
def test_a_library_that_does_not_load_stops_edgeclip_only_if_nothing_runs_without_it(
    library: str, stops: bool, tmp_path: Path
) -> None:
    changed = with_library("orin-nano-jp62", library, error="crashes (SIGILL)")
    report = examine(make("orin-nano-jp62", tmp_path, changed))
    assert report.stops is stops
    assert any("crashes (SIGILL)" in one.why for one in report.of("problem"))


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_whose_files_are_cut_short_is_still_described(name: str, tmp_path: Path) -> None:
    cut: dict[str, str | None] = {path: text[: len(text) // 2] for path, text in files(name).items() if path != RECORD}
    report = examine(make(name, tmp_path, cut))
    assert all(one.what for one in report.findings)


def test_what_cannot_be_read_is_absent_and_not_zero(tmp_path: Path) -> None:
    report = examine(tmp_path)
    machine = report.machine
    assert machine.board is None
    assert machine.cpu.cores is machine.cpu.architecture is machine.memory.total_gib is None
    assert machine.memory.swaps is machine.jetson is machine.nvidia is report.profile is report.software is None
    assert machine.clocks == machine.cameras == machine.temperatures == ()
    assert found(report) == {"profile": "note", "memory": "note"}


@pytest.mark.parametrize("text", [None, "garbage", "# R36 (release), REVISION: x.y"])
def test_a_release_file_that_names_none_is_not_denied(text: str | None, tmp_path: Path) -> None:
    report = examine(make("agx-orin-jp62", tmp_path, {"etc/nv_tegra_release": text}))
    assert finding(report, "jetpack").what == "no release named by /etc/nv_tegra_release"


def test_a_jetson_that_tells_little_is_asked_for_the_rest(tmp_path: Path) -> None:
    hidden = {path: None for path in files("thor-jp70") if path.startswith(("sys/", "etc/nv", "var/"))}
    report = examine(make("thor-jp70", tmp_path, {**hidden, "run/.containerenv": ""}))
    assert "container" in finding(report, "jetpack").what
    assert finding(report, "power-mode").fix == ("sudo nvpmodel -q",)
    assert finding(report, "clocks").fix == ("sudo jetson_clocks --show",)


@pytest.mark.parametrize(
    ("names", "fastest"),
    [
        (["15W", "25W", "MAXN_SUPER", "7W"], "MAXN_SUPER"),
        (["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"], "MAXN"),
        (["MODE_15W_2CORE", "MODE_15W_6CORE", "MODE_10W_4CORE", "MODE_20W_2CORE", "MODE_20W_6CORE"], "MODE_20W_6CORE"),
        (["15W", "7W"], "15W"),
    ],
)
def test_the_fastest_mode_goes_by_name_and_not_by_id(names: list[str], fastest: str) -> None:
    text = "# < POWER_MODEL ID=id_num NAME=mode_name >\n"
    text += "".join(
        f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for number, name in enumerate(names)
    )
    modes = power_modes(text)
    assert [mode.name for mode in modes] == names
    best = fastest_mode(modes)
    assert best is not None
    assert best.name == fastest


def test_a_release_is_read_or_absent() -> None:
    assert l4t_release("# R35 (release), REVISION: 6.1, GCID: 39721438, BOARD: generic") == "35.6.1"
    assert l4t_release("no release at all") is None


def test_a_library_that_crashes_hangs_or_prints_takes_nobody_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    (tmp_path / "openvino.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "tensorrt.py").write_text("raise RuntimeError('libnvinfer.so.10:\\n cannot open')\n")
    (tmp_path / "av.py").write_text(
        "import os\nos.write(1, b'hello\\n')\nprint('{}')\n__version__ = '1.2'\n"
        "library_versions = {'libavcodec': (6, 0)}\n"
    )
    (tmp_path / "pynvml.py").write_text("import a_module_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = {trial.name: trial for trial in trials()}
    crashed, raised, printed, lacking = try_libraries(known[name] for name in ("onnxruntime", "tensorrt", "av", "nvml"))
    assert crashed.error == "crashes (SIGSEGV)"
    monkeypatch.setattr(software, "_PATIENCE_S", 0.5)  # for this one alone: a busy machine starts the others late
    (hung,) = try_libraries([known["openvino"]])
    assert hung.error == "hangs: nothing for 0.5 s"
    assert raised.error == "RuntimeError: libnvinfer.so.10: cannot open"
    assert (printed.version, printed.error) == ("1.2", None)
    assert lacking.error == "needs a_module_that_is_nowhere, which is not installed"
    assert lacking.installed


def test_this_machine_is_looked_at_recorded_and_read_again(tmp_path: Path) -> None:
    done = run("--json", "--record", tmp_path / "machine.tar")
    assert done.returncode == 0, done.stderr
    report = msgspec.json.decode(done.stdout, type=Report)
    assert not report.recorded
    assert report.software is not None
    assert report.software.library("onnxruntime").version == metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in report.software.library("onnxruntime").facts["works"]
    assert report.software.loads("opencv")
    assert report.software.loads("av")
    assert report.machine.memory.total_gib
    assert report.machine.cpu.cores == os.cpu_count()

    again = examine(tmp_path / "machine.tar")
    assert again.recorded
    assert again.software == report.software
    assert again.machine.title == report.machine.title
    assert again.profile == report.profile
    ids = [one.id for one in report.findings]
    assert [one.id for one in again.findings] == ids
    with tarfile.open(tmp_path / "machine.tar") as tar:
        names = tar.getnames()
    assert all(
        name.startswith(("etc/", "proc/", "sys/", "var/lib/nvpmodel", "usr/lib/", ".dockerenv", "run/", RECORD))
        for name in names
    )


def test_a_recording_holds_nothing_that_names_its_owner(tmp_path: Path) -> None:
    for name in ("raspberry-pi-5", "pc-rtx-4090"):
        swap = "Filename Type Size Used Priority\n/home/alice/swapfile file 8388604 0 -2\n"
        examine(make(name, tmp_path / name, {"proc/swaps": swap}), record=tmp_path / f"{name}.tar")
    told = (tmp_path / "raspberry-pi-5.tar").read_bytes() + (tmp_path / "pc-rtx-4090.tar").read_bytes()
    assert b"0123456789abcdef" in (tmp_path / "raspberry-pi-5/proc/cpuinfo").read_bytes()
    assert b"0123456789abcdef" not in told
    assert b"GPU-00000000" not in told
    assert b"alice" not in told
    assert b"NVIDIA GeForce RTX 4090" in told


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_says_what_its_folder_said(name: str, tmp_path: Path) -> None:
    report = examine(make(name, tmp_path / "files"), record=tmp_path / "machine.tar")
    assert examine(tmp_path / "machine.tar").findings == report.findings


def test_what_stops_edgeclip_is_said_and_is_the_exit_code(tmp_path: Path) -> None:
    """A cache that cannot be written does not: what it would keep is made anew."""
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1 is missing')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(EDGECLIP_CACHE="/proc/nothing", PYTHONPATH=path)
    assert done.returncode == 1
    assert "edgeclip cannot run here" in done.stdout
    assert "libGL.so.1 is missing" in done.stdout
    assert "export EDGECLIP_CACHE=" in done.stdout


def test_another_machines_report_is_readable_and_says_what_was_not_tried(tmp_path: Path) -> None:
    done = run("--root", make("xavier-nx-jp51", tmp_path), COLUMNS="100")
    assert done.returncode == 0
    assert "NVIDIA Jetson Xavier NX Developer Kit  xavier-nx-8gb  (recorded files)" in done.stdout
    assert "not looked at" in done.stdout
    assert "    $ sudo nvpmodel -m 8" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("text", "message"), [(None, "expected a folder"), ("no tar", "expected a tar written by edgeclip doctor --record")]
)
def test_what_is_no_machine_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    root = tmp_path / "machine.tar"
    if text is not None:
        root.write_text(text)
    with pytest.raises(InputError, match=message):
        examine(root)


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="record the machine again"):
        examine(make("agx-orin-jp62", tmp_path, {RECORD: '{"python": 3}'}))


def test_a_recording_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    root = make("thor-jp70", tmp_path / "files")
    with pytest.raises(InputError, match="expected a file name"):
        examine(root, record=tmp_path / "files")
    assert [path.name for path in tmp_path.iterdir()] == ["files"]
