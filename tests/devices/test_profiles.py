"""Device profiles and JetPack releases hold together: sources, ranges, names; and the command line shows them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import pytest

from edgeclip import Bundle
from edgeclip.cli.devices import faults_on, releases_of
from edgeclip.devices.catalogue.dla import dla_verdict
from edgeclip.devices.catalogue.jetpack import (
    faults_by_id,
    faults_of,
    load_faults,
    load_release,
    load_releases,
    release_for_l4t,
    release_sources,
    version_key,
)
from edgeclip.devices.catalogue.profile import (
    PROFILES,
    DeviceProfile,
    Figure,
    cited,
    load_profile,
    load_profiles,
    profile_names,
    read_profile,
)
from edgeclip.errors import InputError


def of_each(profiles: Sequence[DeviceProfile]) -> Callable[[Callable[[DeviceProfile], None]], Callable[[], None]]:
    """One test that checks every profile and names all that are wrong: a test for each would take longer than it."""

    def decorated(check: Callable[[DeviceProfile], None]) -> Callable[[], None]:
        def test() -> None:
            wrong = {}
            for profile in profiles:
                try:
                    check(profile)
                except AssertionError as error:
                    wrong[profile.name] = str(error)
            assert not wrong

        return test

    return decorated


ALL = of_each(load_profiles())
GPUS = of_each([each for each in load_profiles() if each.compute_capability])
RELEASES = {release.version: release for release in load_releases()}
FIRST_CAPABILITY = {"int8": "7.2", "tf32": "8.0", "bf16": "8.0", "fp8": "8.9", "fp4": "10.0"}

EXPECTED = [
    "jetson-nano",
    "jetson-tx2",
    "xavier-nx-8gb",
    "xavier-nx-16gb",
    "agx-xavier",
    "orin-nano-4gb",
    "orin-nano-8gb",
    "orin-nano-super",
    "orin-nx-8gb",
    "orin-nx-16gb",
    "agx-orin-32gb",
    "agx-orin-64gb",
    "thor",
    "t5000",
    "t4000",
    "t4",
    "a10",
    "a100-40gb",
    "a100-80gb",
    "l4",
    "l40s",
    "h100",
    "h100-pcie",
    "h200",
    "rtx-3060",
    "rtx-3070",
    "rtx-3080",
    "rtx-3090",
    "rtx-4060",
    "rtx-4070",
    "rtx-4080",
    "rtx-4090",
    "rtx-5060",
    "rtx-5070",
    "rtx-5080",
    "rtx-5090",
    "avx2",
    "avx512-vnni",
    "amx",
    "raspberry-pi-5",
]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_device_that_people_ask_for_is_there(name: str) -> None:
    assert load_profile(name).peaks


@ALL
def test_every_figure_has_its_source_and_every_source_is_used(profile: DeviceProfile) -> None:
    assert set(cited(profile)) == set(profile.sources)
    for source in profile.sources.values():
        title, _, url = source.rpartition(", ")
        assert title
        assert url.startswith("https://")


@ALL
def test_a_profile_is_complete_for_its_kind(profile: DeviceProfile) -> None:
    memory = profile.memory
    assert all(peak.tflops.value > 0 for peak in profile.peaks)
    assert {peak.precision for peak in profile.peaks} <= {each.name for each in profile.precisions}
    assert memory.shared == (profile.kind != "gpu" or profile.name == "gb10")
    if profile.kind == "cpu":
        assert profile.compute_capability is None
        assert {(peak.units, peak.per) for peak in profile.peaks} == {("cpu", "core_ghz")}
        assert bool(profile.match.cpu_flags) != bool(profile.match.cpu_models)
        return
    assert memory.gib
    assert memory.bandwidth_gb_s
    assert profile.compute_capability
    assert {peak.per for peak in profile.peaks} == {"device"}
    assert bool(profile.match.device_tree) == (profile.kind == "jetson")
    assert bool(profile.match.gpu_names) == (profile.kind == "gpu")
    if profile.kind == "jetson":
        assert profile.jetpacks or profile.name == "igx-orin"  # which has software of its own
        assert profile.wheels
        assert {camera.interface for camera in profile.cameras} == {"csi", "usb", "rtsp"}


@GPUS
def test_precisions_are_those_of_the_compute_capability(profile: DeviceProfile) -> None:
    capability = version_key(str(profile.compute_capability))
    assert profile.allows("fp32")
    assert profile.allows("fp16")
    for name, first in FIRST_CAPABILITY.items():
        assert profile.allows(name) == (capability >= version_key(first)), name
    if capability < (7, 0):
        assert not [peak for peak in profile.peaks if peak.units == "tensor"]


@GPUS
def test_peaks_are_dense_and_stand_to_one_another_as_tensor_cores_do(profile: DeviceProfile) -> None:
    # A figure that counts sparsity would be twice what it should be.
    value = {peak.precision: peak.tflops.value for peak in profile.peaks if peak.units == "tensor"}
    if "int8" in value:
        assert value["int8"] == pytest.approx(2 * value["fp16"], rel=0.02)
    if "fp8" in value:
        assert value["fp8"] == pytest.approx(2 * value["fp16"], rel=0.03)
    if "fp4" in value:
        assert value["fp4"] == pytest.approx(2 * value["fp8"], rel=0.01)
    for peak in profile.peaks:
        slower = "GeForce" in profile.title and peak.units == "tensor" and peak.precision in ("fp16", "fp8")
        assert (peak.fp32_sums is not None) == slower
        assert peak.total(fp32_sums=True) == pytest.approx(peak.total() / (2 if slower else 1), rel=2e-3)


def test_names_and_what_machines_are_known_by_mean_one_device() -> None:
    names = [
        name
        for each in load_profiles()
        for name in (each.name, *each.aliases, *each.alias_modes, *(size.name for size in each.sizes))
    ]
    assert len(names) == len(set(names))
    for one, other in combinations(load_profiles(), 2):
        for shared in ("device_tree", "boards", "gpu_names"):
            if set(getattr(one.match, shared)) & set(getattr(other.match, shared)):
                assert told_apart(one, other), (one.name, other.name)
        assert not set(one.match.cpu_models) & set(other.match.cpu_models)
        assert not one.match.cpu_flags or one.match.cpu_flags != other.match.cpu_flags


def told_apart(one: DeviceProfile, other: DeviceProfile) -> bool:
    """Whether devices of one name differ by over 4 % in what is read of a machine; a Jetson tells its memory only."""

    def figures(profile: DeviceProfile) -> list[Figure | None]:
        memory = profile.memory
        return [memory.gib] if profile.kind == "jetson" else [memory.gib, memory.bandwidth_gb_s, profile.power_w]

    pairs = list(zip(figures(one), figures(other), strict=True))
    # Where one alone has a figure, the other would seem nearer than it is.
    assert all((mine is None) == (theirs is None) for mine, theirs in pairs), (one.name, other.name)
    return any(mine and theirs and abs(mine.value / theirs.value - 1) > 0.04 for mine, theirs in pairs)


def test_a_mode_has_peaks_and_bandwidth_of_its_own() -> None:
    plain, boosted = load_profile("orin-nano"), load_profile("Orin Nano Super")
    assert plain == load_profile("ORIN_NANO_8GB")
    for profile, tops, bandwidth in ((plain, 20, 68), (boosted, 32.64, 102)):
        peak = profile.peak("int8")
        assert peak
        assert profile.memory.bandwidth_gb_s
        assert (peak.total(), profile.memory.bandwidth_gb_s.value) == (tops, bandwidth)
    # Scaled by the clock; the data sheet gives 7.096 TFLOPS at 1386 MHz itself.
    scaled = load_profile("thor").at("120W").peak("fp32")
    assert scaled
    assert scaled.tflops.value == pytest.approx(7.096, abs=0.001)
    assert "scaled to 1386 of 1575 MHz" in scaled.tflops.note


def test_a_cpus_peak_is_multiplied_by_cores_and_clock() -> None:
    peak = load_profile("amx").peak("bf16")
    assert peak
    assert peak.total(cores=8, ghz=2.5) == pytest.approx(8 * 2.5 * 1.024)
    assert load_profile("amx").peak("fp8") is None


def test_what_is_not_known_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"got 'orin-nanno': did you mean orin-nano or "):
        load_profile("orin-nanno")
    with pytest.raises(InputError, match="got 'zzz': edgeclip devices lists them all"):
        load_profile("zzz")
    with pytest.raises(InputError, match=r"got '9\.9': known are 4\.2, "):
        load_release("9.9")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "', 'titel = "', "unknown field `titel`"),
        ("shared = false", 'shared = "no"', r"Expected `bool`, got `str` - at `\$.memory.shared`"),
        ('name = "l4"', 'name = "l5"', "expected name = 'l4'"),
        ('source = "datasheet" }', 'source = "hearsay" }', r"cites \['hearsay'\], which \[sources\] does not have"),
        ("[memory]", "[memory", "is no device profile"),
    ],
)
def test_a_damaged_profile_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = (PROFILES / "l4.toml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "l4.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_profile(tmp_path / "l4.toml")


def test_releases_and_boards_name_each_other() -> None:
    for profile in load_profiles():
        assert {version for version, each in RELEASES.items() if profile.name in each.boards} == set(profile.jetpacks)
        assert [each.version for each in releases_of(profile)] == list(profile.jetpacks)
    assert {board for each in RELEASES.values() for board in each.boards} <= set(profile_names())


def test_releases_list_the_faults_of_what_they_bring() -> None:
    known = {fault.id: fault for fault in load_faults()}
    assert len(known) == len(load_faults())
    for release in RELEASES.values():
        assert release.source in release_sources()
        assert not str(release.l4t).endswith(".0")
        of_tensorrt = {each for each in release.faults if known[each].component == "tensorrt"}
        # Of a few releases of 2019 and 2020 no TensorRT is cited; it is older than all that are.
        assert of_tensorrt == {fault.id for fault in faults_of(release.tensorrt or "5")}
        old = version_key(release.python) < (3, 10)
        assert ("python-too-old" in release.faults) == old == known["python-too-old"].affects(release.python)
    assert {fault.source for fault in known.values()} <= set(release_sources())
    for profile in load_profiles():
        assert set(profile.faults) <= set(known)


@pytest.mark.parametrize(
    ("l4t", "version"),
    [
        ("32.7.1", "4.6.1"),
        ("35.3.1", "5.1.1"),
        ("36.3.0", "6.0"),
        ("36.4.0", "6.1"),
        ("36.4.3", "6.2"),
        ("36.4.7", "6.2.1"),  # a security update
        ("36.5", "6.2.2"),
        ("38.2.1", "7.0"),
        ("39.2.1", "7.2.1"),
        ("36.2", "6.0 DP"),
        ("28.2.1", None),
        ("31.1", None),
        ("40.1", None),
        ("unknown", None),
    ],
)
def test_an_l4t_version_leads_to_its_release(l4t: str, version: str | None) -> None:
    found = release_for_l4t(l4t)
    assert (found and found.version) == version


@pytest.mark.parametrize(
    ("tensorrt", "gated"),
    [("8.5.2", False), ("10.2", False), ("10.3.0", True), ("10.4.0.26", True), ("10.5", False), ("10.13", False)],
)
def test_the_gate_is_mandatory_where_transformers_come_out_wrong(tensorrt: str, gated: bool) -> None:
    assert any(fault.gate for fault in faults_of(tensorrt)) == gated


def test_a_range_of_l4t_ends_with_its_minor_version() -> None:
    (fault,) = faults_by_id(["l4t-36.4.7-nvmap"])
    assert [fault.affects(version) for version in ("36.4.4", "36.4.7", "36.4.9", "36.5")] == [False, True, True, False]


def test_an_orin_nano_is_not_told_of_a_dla_that_it_does_not_have() -> None:
    assert "trt-no-dla" in {fault.id for fault in faults_on(load_profile("agx-orin"))}
    assert "trt-no-dla" not in {fault.id for fault in faults_on(load_profile("orin-nano"))}


# Operations of open_clip's ViT-B-32 and of a MobileNetV3, as edgeclip exports them.
VIT = ["Conv", *["LayerNormalization", "MatMul", "Softmax", "Erf", "Transpose", "Reshape", "Add", "Mul"] * 12]
MOBILENET = ["Conv"] * 53 + ["HardSwish"] * 19 + ["HardSigmoid", "ReduceMean", "Mul"] * 9 + ["Relu", "Gemm"]
SQUEEZE = ["Conv"] * 80 + ["Sigmoid", "Mul", "ReduceMean"] * 16 + ["Gemm"]


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        (VIT, r"LayerNormalization \(12\) falls back to the GPU"),
        (MOBILENET, r"HardSwish \(19\)"),
        (SQUEEZE, r"17 nodes \(Gemm, ReduceMean\) fall back that a convolutional encoder has only at its end"),
        (["Conv", "QuantizeLinear", "DequantizeLinear"], "not taken before TensorRT 11.4"),
        (["Gemm", "Relu"], "no convolution"),
    ],
)
def test_a_model_that_would_leave_the_dla_in_every_block_is_not_fit(operations: list[str], why: str) -> None:
    verdict = dla_verdict(operations)
    assert not verdict.fit
    assert re.search(why, "\n".join(verdict.reasons))


def test_the_starters_network_is_fit_for_a_dla() -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(Bundle.open("starter").variant_path("fp32")).graph
    operations = [node.op_type for node in graph.node]
    verdict = dla_verdict(operations)
    assert verdict.fit
    assert {"Conv", "Clip", "Add"} <= set(verdict.on_dla)
    assert {each.operation for each in verdict.fallback} == {"Gemm", "ReduceMean"}
    assert "Softmax" in {each.operation for each in dla_verdict(operations, version="1.0").fallback}


@pytest.mark.parametrize(("tensorrt", "fit"), [("10.3", True), ("10.7", True), ("10.16", False), ("11.4.1", True)])
def test_a_tensorrt_without_dla_says_so(tensorrt: str, fit: bool) -> None:
    assert dla_verdict(["Conv", "Relu"], tensorrt=tensorrt).fit == fit


def run(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "edgeclip", "devices", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_command_line_lists_devices_and_shows_one() -> None:
    listed = run()
    assert all(name in listed for name in profile_names())
    assert [each["name"] for each in json.loads(run("--json"))] == list(profile_names())

    text = run("show", "orin-nano")
    for expected in (
        "orin-nano-8gb",
        "8.7",
        "MAXN_SUPER",
        "36.4.3",
        "the gate is mandatory",
        "[1] NVIDIA, Jetson Orin",
    ):
        assert expected in text
    values = json.loads(run("show", "orin-nano-super", "--json"))
    assert values["memory"]["bandwidth_gb_s"]["value"] == 102
    assert {"trt-10.3-transformers", "ort-gpu-aarch64"} <= {fault["id"] for fault in values["known_faults"]}
    assert {release["version"] for release in values["releases"]} == set(load_profile("orin-nano").jetpacks)


def test_the_command_line_refuses_an_unknown_device_with_the_nearest() -> None:
    message = run("show", "rtx-4091", code=2)
    assert message.startswith("error: expected the name of a device, got 'rtx-4091': did you mean rtx-4090 or ")
