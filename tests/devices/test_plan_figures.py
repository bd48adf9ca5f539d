"""A plan's bytes, milliseconds and sentences, worked out by hand from round figures."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeclip.devices.catalogue.dla import dla_verdict
from edgeclip.devices.catalogue.jetpack import faults_by_id, load_faults, load_release
from edgeclip.devices.catalogue.profile import (
    DeviceProfile,
    Dla,
    Figure,
    Match,
    Memory,
    Peak,
    Precision,
    load_profile,
)
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.plan.advice import WITHOUT_ZRAM, notes_on, recipe, recommended, verdict
from edgeclip.devices.plan.calibration import Timed, calibrate
from edgeclip.devices.plan.cost import GraphCost, Work, load_cost
from edgeclip.devices.plan.memory import VariantMemory, build_lacks, build_workspace, free_bytes, memory_of
from edgeclip.devices.plan.plan import _refusal, demand_here, plan, profile_here, variants_for
from edgeclip.devices.plan.records import Demand, VariantPlan
from edgeclip.devices.plan.speed import (
    Device,
    Estimate,
    Range,
    Shares,
    device_of,
    engines_of,
    estimate,
    estimate_on,
    ideal_ms,
    load_shares,
    shares_of,
)
from edgeclip.errors import InputError

GIB, MIB = 2**30, 2**20
COST = GraphCost(
    image_size=(224, 224),
    macs=4_000_000_000,
    weights=80_000_000,
    activation_peak=1_000_000,
    activation_traffic=30_000_000,
    kernels=100,
    operators={"MatMul": 2},
)
FRAMES = 8 * 1920 * 1080 * 3


def device(kind: str = "gpu", *, gib: float | None = 4.0, reserved: float | None = None, **more: Any) -> DeviceProfile:
    """A device of round figures: 10 TFLOPS in FP16, 5 in FP32, 100 GB/s; BF16 is legal and does not pay."""
    memory = Memory(
        shared=kind != "gpu",
        gib=None if gib is None else Figure(gib, "s"),
        bandwidth_gb_s=Figure(100.0, "s"),
        system_reserved_gib=None if reserved is None else Figure(reserved, "s"),
    )
    given: dict[str, Any] = {
        "name": "box",
        "title": "Box",
        "kind": kind,
        "architecture": "a",
        "memory": memory,
        "peaks": (Peak("fp32", Figure(5.0, "s"), "cuda"), Peak("fp16", Figure(10.0, "s"), "tensor")),
        "precisions": (
            Precision("fp32", False, "exact"),
            Precision("fp16", True, "fast"),
            Precision("bf16", False, "b"),
        ),
        "match": Match(),
        "sources": {},
    }
    return DeviceProfile(**given | more)


def cpu(**more: Any) -> DeviceProfile:
    """Peaks for each core and GHz."""
    peaks = (
        Peak("fp32", Figure(0.05, "s"), "cpu", "core_ghz"),
        Peak("int8", Figure(0.2, "s"), "cpu", "core_ghz"),
    )
    precisions = (Precision("fp32", True, "exact"), Precision("int8", True, "fast"))
    return device("cpu", gib=None, peaks=peaks, precisions=precisions, **more)


# Memory


@pytest.mark.parametrize(
    ("precision", "bytes_of_weight", "bytes_of_activation"),
    [("fp32", 4, 4), ("fp16", 2, 2), ("bf16", 2, 2), ("int8", 1, 2)],
)
def test_bytes_are_counted_by_hand(precision: str, bytes_of_weight: int, bytes_of_activation: int) -> None:
    found = memory_of(COST, precision, device(), batch=3, cameras=2)
    activations, library = 3_000_000 * bytes_of_activation, 768 * MIB
    assert found == VariantMemory(
        weights=80_000_000 * bytes_of_weight,
        activations=activations,
        frames=2 * FRAMES,
        library=library,
        building=library + 4 * 80_000_000 * 4 + activations + 256 * MIB,
    )
    assert found.running == 80_000_000 * bytes_of_weight + activations + 2 * FRAMES + library


def test_libraries_take_what_was_measured_of_their_kind() -> None:
    kinds: tuple[tuple[DeviceProfile, int], ...] = ((device("jetson"), 768), (device(), 768), (cpu(), 300))
    assert [memory_of(COST, "fp32", each, batch=1, cameras=1).library for each, _ in kinds] == [
        mib * MIB for _, mib in kinds
    ]


@pytest.mark.parametrize(
    ("profile", "given", "free"),
    [
        (device("jetson"), 1.25, 5 * GIB // 4),
        (device("jetson"), None, 5 * GIB // 2),
        (device("gpu"), None, 7 * GIB // 2),
        (device("gpu", reserved=0.25), None, 15 * GIB // 4),
        (device("cpu"), None, 4 * GIB),
        (cpu(), None, None),
        (cpu(), 2.0, 2 * GIB),
    ],
)
def test_free_is_what_is_given_or_what_the_system_leaves(
    profile: DeviceProfile, given: float | None, free: int | None
) -> None:
    assert free_bytes(profile, given) == free


def test_a_builds_scratch_is_half_of_what_is_free_or_what_its_copies_leave() -> None:
    assert build_workspace(4 * GIB, GIB // 4, shared=False) == 2 * GIB
    assert build_workspace(4 * GIB, GIB // 4, shared=True) == 2 * GIB  # three are left
    assert build_workspace(4 * GIB, 3 * GIB // 4, shared=True) == GIB
    assert build_workspace(4 * GIB, 2 * GIB, shared=True) == 64 * MIB
    assert build_workspace(100 * MIB, 2 * GIB, shared=False) == 64 * MIB
    assert [build_lacks(free, GIB) for free in (4 * GIB, 4 * GIB + 64 * MIB, 5 * GIB)] == [64 * MIB, 0, 0]


# Speed

# Products 3e9, a third of them in convolutions, of attention 1e9, in groups 0.1e9 of an image; and 15, 5, 4, 6 and 2
# million numbers moved.
MIXED = msgspec.structs.replace(
    COST,
    work={
        "matrix": Work(kernels=30, macs=2_000_000_000, traffic=15_000_000),
        "convolution": Work(kernels=20, macs=1_000_000_000, traffic=5_000_000),
        "attention": Work(kernels=30, macs=1_000_000_000, traffic=4_000_000),
        "depthwise": Work(kernels=15, macs=100_000_000, traffic=6_000_000),
        "other": Work(kernels=5, macs=0, traffic=2_000_000),
    },
)
BOX = Device(peak_tflops=10, plain_tflops=2, bandwidth_gb_s=100)
SHARES = Shares(
    matrix=0.5,
    int8=0.8,
    depthwise=0.1,
    bandwidth=0.8,
    attention_traffic=0.25,
    depthwise_traffic=3.0,
    kernel_us=7.0,
    error=1.5,
)


def test_at_the_peaks_each_part_takes_what_it_takes_by_hand() -> None:
    """A batch of two in FP16: 16 G operations of 10 T, 0.4 G of 2 T, 160 MB, 88, 16 and 24 MB of 100 GB/s."""
    assert ideal_ms(MIXED, "fp16", BOX, 2) == pytest.approx((1.6, 0.2, 1.6, 0.88, 0.16, 0.24, 100))
    assert ideal_ms(MIXED, "fp32", BOX, 1) == pytest.approx((0.8, 0.1, 3.2, 0.88, 0.16, 0.24, 100))
    # Between convolutions numbers stay in 8 bits, between other products in 16.
    assert ideal_ms(MIXED, "int8", BOX, 1)[2:6] == pytest.approx((0.8, 0.05 + 0.34, 0.08, 0.06))
    blind = replace(BOX, bandwidth_gb_s=None)
    assert ideal_ms(MIXED, "fp16", blind, 2) == pytest.approx((1.6, 0.2, 0, 0, 0, 0, 100))


def test_a_latency_is_the_sum_of_its_parts_at_their_shares() -> None:
    parts = (1.6 / 0.5, 0.2 / 0.1, 1.6 / 0.8, 0.88 / 0.8, 0.16 * 0.25 / 0.8, 0.24 * 3 / 0.8, 100 * 0.007)
    found = estimate(MIXED, "fp16", BOX, batch=2, shares=SHARES)
    assert found.latency_ms.middle == pytest.approx(sum(parts))
    assert (found.latency_ms.low, found.latency_ms.high) == pytest.approx((sum(parts) / 1.5, sum(parts) * 1.5))
    assert (found.batch, found.bound_by) == (2, "arithmetic")
    assert found.images_per_s.low == pytest.approx(2e3 / found.latency_ms.high)
    assert found.images_per_s.high == pytest.approx(2e3 / found.latency_ms.low)
    slower = estimate(MIXED, "fp16", replace(BOX, slowness=1.25), batch=2, shares=SHARES)
    assert slower.latency_ms.middle == pytest.approx(1.25 * sum(parts))
    int8 = estimate(MIXED, "int8", BOX, batch=2, shares=SHARES)
    halved = (0.8 + 0.1 + 0.12 * 3) / 0.8  # weights, and what convolutions move
    assert int8.latency_ms.middle == pytest.approx(sum(parts) + 1.6 / 0.5 * (1 / 0.8 - 1) - halved)


def test_a_cost_of_before_kinds_were_told_apart_is_taken_as_products_with_weights() -> None:
    assert COST.work == {}
    assert COST.by_kind == {"matrix": Work(kernels=100, macs=4_000_000_000, traffic=30_000_000)}
    assert ideal_ms(COST, "fp16", BOX, 2) == pytest.approx((1.6, 0, 1.6, 1.2, 0, 0, 100))


@pytest.mark.parametrize(
    ("changed", "batch", "bound_by"),
    [
        ({"bandwidth_gb_s": 10.0}, 1, "reading weights"),
        ({"peak_tflops": 1.0}, 2, "arithmetic"),
        ({"peak_tflops": 1e6, "plain_tflops": 0.1}, 2, "arithmetic"),
        ({"peak_tflops": 1e6, "plain_tflops": 1e6, "bandwidth_gb_s": None}, 2, "starting kernels"),
        ({"peak_tflops": 1e6, "plain_tflops": 1e6}, 16, "moving activations"),
    ],
)
def test_what_takes_longest_bounds(changed: dict[str, Any], batch: int, bound_by: str) -> None:
    found = estimate(MIXED, "fp16", replace(BOX, **changed), batch=batch, shares=SHARES)
    assert found.bound_by == bound_by


def test_engines_meet_a_devices_peaks_as_they_add_and_round() -> None:
    """A GeForce sums FP16 products in FP32 at half the rate; only TensorRT sums in FP16."""
    card = load_profile("rtx-4090")
    peaks = {engine: device_of(card, "fp16", engine) for engine in engines_of(card)}
    assert {engine for engine, found in peaks.items() if found and found.peak_tflops == 330.3} == {
        *("tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx")
    }
    assert {found.peak_tflops for found in peaks.values() if found} == {330.3, 165.2}
    fp32 = device_of(card, "fp32", "onnxruntime-cuda")  # TF32 is off in edgeclip's engines
    assert fp32 is not None
    assert (fp32.peak_tflops, fp32.plain_tflops, fp32.bandwidth_gb_s) == (82.58, 82.58, 1008)
    assert fp32.slowness == load_shares().architectures["Ada Lovelace"]
    unseen = device_of(device(architecture="Kepler"), "fp16", "tensorrt")
    assert unseen == Device(peak_tflops=10, plain_tflops=5, bandwidth_gb_s=100, slowness=1.0)
    tensor = device(peaks=(Peak("fp16", Figure(16.0, "s"), "tensor"),))
    plain = device(peaks=(Peak("fp16", Figure(16.0, "s"), "cuda"),))
    assert [
        found.plain_tflops for each in (tensor, plain) if (found := device_of(each, "fp16", "tensorrt")) is not None
    ] == [2, 8]
    assert device_of(card, "fp64", "tensorrt") is None
    in_int8 = {engine for engine in engines_of(card) if device_of(card, "int8", engine)}
    assert in_int8 == {"tensorrt", "tensorrt-rtx", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"}


def test_a_card_holds_what_its_power_limit_allows() -> None:
    """L4's boost clock promises 30.3 TFLOPS within 72 W; it has 14.4 of them under load."""
    found = device_of(load_profile("l4"), "fp16", "tensorrt")
    assert found is not None
    assert (found.plain_tflops, found.peak_tflops) == (pytest.approx(14.4), pytest.approx(121 * 14.4 / 30.3))
    assert found.bandwidth_gb_s == 300
    for watts, plain in ((None, 5.0), (24.0, 4.8), (25.0, 5.0), (26.0, 5.0)):
        limited = device(power_w=watts and Figure(watts, "s"))
        found = device_of(limited, "fp16", "tensorrt")
        assert found is not None
        assert (found.plain_tflops, found.peak_tflops) == (pytest.approx(plain), pytest.approx(2 * plain))


def test_a_cpus_engines_are_not_a_gpus() -> None:
    assert engines_of(cpu()) == ("openvino", "pytorch", "onnxruntime")
    assert engines_of(device())[0] == "tensorrt"
    with pytest.raises(InputError, match=r"an engine of box out of openvino, pytorch, onnxruntime, got 'tensorrt'"):
        shares_of("tensorrt", cpu())
    with pytest.raises(InputError, match=r"out of tensorrt, tensorrt-rtx, .* got 'openvino-gpu'"):
        plan(COST, device(), Demand(engine="openvino-gpu"))
    # TensorRT-RTX knows the GPUs of PCs alone: no Jetson, and none of the data centres' own.
    for name in ("orin-nano", "thor", "jetson-nano", "a100-40gb", "h200", "v100-pcie", "b200"):
        with pytest.raises(InputError, match=r"out of tensorrt, onnxruntime-tensorrt, onnxruntime-cuda, .* got "):
            plan(COST, load_profile(name), Demand(engine="tensorrt-rtx"))
        assert not any(engine.endswith("rtx") for engine in engines_of(load_profile(name)))
    with pytest.raises(InputError, match="got 'pytorch-eager'"):
        plan(COST, load_profile("thor"), Demand(engine="pytorch-eager"))
    noted = plan(COST, load_profile("thor"), Demand(engine="onnxruntime-cuda")).notes
    assert any(note.startswith("no latency of onnxruntime-cuda on a Jetson") for note in noted)
    assert not any("fit to" in note for note in plan(COST, load_profile("thor")).notes)
    for name in ("t4", "a10", "l4", "rtx-5090", "gb10", "gtx-1650"):
        assert "tensorrt-rtx" in engines_of(load_profile(name))
        assert "--engine tensorrt-rtx" in plan(COST, load_profile(name), Demand(engine="tensorrt-rtx")).recipe[-1]
        assert "--engine" not in plan(COST, load_profile(name)).recipe[-1]
    found = device_of(cpu(), "int8", "openvino", cores=4, ghz=2.5)
    assert found == Device(peak_tflops=2.0, plain_tflops=0.5, bandwidth_gb_s=100)
    assert device_of(cpu(), "int8", "openvino", cores=4) is None
    nameless = cpu(memory=Memory(shared=True))
    assert device_of(nameless, "fp32", "openvino", cores=1, ghz=1) == Device(0.05, 0.05, 40.0)


def test_what_was_measured_calibrates_its_engine_there_and_by_half_elsewhere() -> None:
    """Measured 1.44 times as slow in FP16 and twice as slow in FP32, each as a geometric mean."""
    here = device()
    expected = {
        name: found.latency_ms.middle
        for name in ("fp16", "fp32")
        if (found := estimate_on(here, MIXED, name, "tensorrt", batch=2)) is not None
    }
    timed = [
        Timed(MIXED, "fp16", 2, expected["fp16"] * 1.2),
        Timed(MIXED, "fp16", 2, expected["fp16"] * 1.728),
        Timed(MIXED, "fp32", 2, expected["fp32"] * 2.0),
        Timed(MIXED, "bf16", 2, 1.0),  # without a peak
    ]
    found = calibrate("tensorrt", here, timed)
    assert found.ratios == pytest.approx({"fp16": 1.44, "fp32": 2.0})
    assert (found.engine, found.device, found.count) == ("tensorrt", "box", 3)
    there = plan(MIXED, here, Demand(batch=2), calibration=found)
    wide, narrow = shares_of("tensorrt", here).error, shares_of("tensorrt", here).calibrated_error
    assert narrow < wide
    for name, ratio in (("fp16", 1.44), ("fp32", 2.0)):
        latency = there.variant(name).estimate
        assert latency is not None
        assert latency.latency_ms.middle == pytest.approx(expected[name] * ratio)
        assert latency.latency_ms.high == pytest.approx(expected[name] * ratio * narrow)
    assert there.notes[-1] == "calibrated by 3 measurements of tensorrt there: times the estimate, fp16 1.44, fp32 2.00"
    elsewhere = plan(MIXED, device(name="other"), Demand(batch=2), calibration=found)
    latency = elsewhere.variant("fp16").estimate
    assert latency is not None
    assert latency.latency_ms.middle == pytest.approx(expected["fp16"] * 1.2)
    assert latency.latency_ms.high == pytest.approx(expected["fp16"] * 1.2 * wide)
    assert "on Box, of which half counts here" in elsewhere.notes[-1]
    unmeasured = replace(found, ratios={"fp32": 2.0}).applied(here, "fp16", BOX, SHARES)
    assert unmeasured == (replace(BOX, slowness=2.0), SHARES)
    with pytest.raises(InputError, match="in a precision whose peak on Box is known"):
        calibrate("tensorrt", here, timed[3:])


def test_the_middle_of_a_range_is_its_geometric_mean() -> None:
    assert Range(2.0, 8.0).middle == 4.0


# The whole plan


def expected(cost: GraphCost, precision: str, batch: int) -> Estimate:
    """Of the device of round figures."""
    box = Device({"fp16": 10.0, "fp32": 5.0}[precision], 5.0, 100.0)
    return estimate(cost, precision, box, batch=batch, shares=load_shares().gpu["tensorrt"])


def test_a_plan_of_round_figures() -> None:
    made = plan(COST, device(), Demand(cameras=3, fps=30))
    fp32, fp16, bf16, int8 = made.variants
    assert [each.name for each in made.variants] == ["fp32", "fp16", "bf16", "int8"]
    assert (made.device, made.title, made.release, made.free_bytes) == ("box", "Box", None, 7 * GIB // 2)
    assert int8 == VariantPlan("int8", "int8", refused="Box has no INT8")
    assert fp16.memory == memory_of(COST, "fp16", device(), batch=3, cameras=3)
    assert fp16.estimate == expected(COST, "fp16", 3)
    assert fp32.estimate == expected(COST, "fp32", 3)
    assert (fp16.wise, fp16.why, fp16.fits, fp16.reach) == (True, "fast", True, "yes")
    assert (bf16.wise, bf16.why, bf16.estimate, bf16.reach) == (False, "b", None, None)  # no peak is published
    assert (made.recommended, made.variant("fp16")) == ("fp16", fp16)
    assert fp16.estimate is not None
    speed = fp16.estimate.images_per_s
    assert made.verdict == f"fp16: {speed.low:,.0f} to {speed.high:,.0f} images/s, 90 asked for: within reach"
    assert made.recipe == ("edgeclip build BUNDLE --variant fp16 --batch 1,3,3 --workspace 896",)
    assert made.notes == ("decoding and preprocessing 90 frames/s of 1080p H.264 on the CPU takes 0.5 to 1.6 cores",)
    assert plan(COST, device(), Demand(cameras=20)).variants[1].memory == memory_of(
        COST, "fp16", device(), batch=8, cameras=20
    )
    assert plan(COST, device(), Demand(cameras=20, batch=2)).variants[1].estimate == expected(COST, "fp16", 2)


def test_reach_and_fit_are_told_at_their_edges() -> None:
    speed = expected(COST, "fp16", 1).images_per_s
    for fps, reach in (
        (speed.low, "yes"),
        (speed.low * 1.001, "perhaps"),
        (speed.high, "perhaps"),
        (speed.high * 1.001, "no"),
        (None, None),
    ):
        made = plan(COST, device(), Demand(fps=fps))
        assert made.variant("fp16").reach == reach
    needed = memory_of(COST, "fp16", device(), batch=1, cameras=1).running / GIB
    for gib, fits in ((needed, True), (needed - 1 / GIB, False)):
        assert plan(COST, device(), Demand(memory_gib=gib)).variant("fp16").fits is fits
    unknown = plan(COST, device(gib=None), Demand()).variant("fp16")
    assert (unknown.fits, unknown.usable) == (None, True)


def test_a_cpu_needs_cores_and_clock_for_its_speed() -> None:
    for demand in (Demand(), Demand(cores=4), Demand(ghz=2.5)):
        made = plan(COST, cpu(), demand)
        assert made.variant("fp32").estimate is None
        assert made.notes[0].startswith("a CPU's peaks are those of a core and GHz")
    made = plan(COST, cpu(), Demand(cameras=4, cores=4, ghz=2.5))
    assert [each.name for each in made.variants] == ["fp32", "bf16", "int8-cpu"]
    for name, tflops in (("fp32", 0.05 * 4 * 2.5), ("int8-cpu", 2.0)):
        box, shares = Device(tflops, 0.05 * 4 * 2.5, 100), load_shares().cpu["openvino"]
        assert made.variant(name).estimate == estimate(COST, name[:4], box, batch=1, shares=shares)
    on_ort = plan(COST, cpu(), Demand(cores=4, ghz=2.5, engine="onnxruntime"))
    box, shares = Device(2.0, 0.5, 100), load_shares().cpu["onnxruntime"]
    assert on_ort.variant("int8-cpu").estimate == estimate(COST, "int8", box, batch=1, shares=shares)
    assert (made.engine, on_ort.engine) == ("openvino", "onnxruntime")
    assert on_ort.recipe == ()  # it takes the bundle as it is
    assert made.notes == ("what memory is free is not known: give `memory`, GiB",)
    assert made.recommended == "int8-cpu"  # the fastest of those that pay
    assert made.recipe == ("edgeclip build BUNDLE --variant int8-cpu --engine openvino",)


def test_a_jetpack_decides_what_is_legal() -> None:
    orin = load_profile("orin-nano-8gb")
    assert plan(COST, orin).release == "7.2.1"  # the newest
    old = plan(COST, orin, Demand(jetpack="5.1.1"))
    assert old.release == "5.1.1"
    tensorrt = load_release("5.1.1").tensorrt
    refused = {each.name: each.refused for each in old.variants}
    assert set(refused.values()) == {"JetPack 5.1.1 brings Python 3.8; edgeclip needs 3.10 or later"}
    six = {each.name: each.refused for each in plan(COST, orin, Demand(jetpack="6.0")).variants}
    assert six["fp16"] is None
    assert six["bf16"] == f"TensorRT {load_release('6.0').tensorrt} takes no BF16 from the graph: expected 10 or later"
    assert plan(COST, orin, Demand(jetpack="6.1")).variant("bf16").refused is None
    assert tensorrt is not None
    with pytest.raises(InputError, match=r"got '6.1': known are none: it is no Jetson"):
        plan(COST, device(), Demand(jetpack="6.1"))


def test_variants_to_export_are_those_that_pay_or_those_wanted() -> None:
    assert variants_for(device()) == ["fp16"]
    assert variants_for(device(), ["bf16"]) == ["bf16"]
    assert variants_for(cpu()) == ["int8-cpu"]
    with pytest.raises(InputError, match=r"run on box \(fp16, bf16\), got int8, fp32"):
        variants_for(device(), ["fp16", "int8", "fp32"])
    only = device(precisions=(Precision("fp32", True, ""),))
    assert variants_for(only) == []
    with pytest.raises(InputError, match=r"fp32 alone"):
        variants_for(only, ["fp16"])


@pytest.mark.parametrize("name", ["cameras", "fps", "batch", "memory_gib", "cores", "ghz"])
def test_each_figure_of_a_demand_is_above_0(name: str) -> None:
    assert getattr(Demand(**{name: 1}), name) == 1
    with pytest.raises(InputError, match=f"expected {name.replace('_', ' ')} above 0, got 0"):
        Demand(**{name: 0})


def write(root: Path, **files: str) -> Tree:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


def test_what_a_machine_tells_fills_in_what_was_not_asked(tmp_path: Path) -> None:
    info = "".join(f"processor\t: {n}\nmodel name\t: X\ncpu MHz\t\t: 2400.000\n\n" for n in range(4))
    memory = "MemTotal: 8388608 kB\nMemAvailable: 3145728 kB\n"
    tree = write(tmp_path, proc__cpuinfo=info, proc__meminfo=memory)
    found = demand_here(Demand(fps=5), cpu(), tree)
    assert (found.fps, found.memory_gib, found.cores, found.ghz) == (5, 3.0, 4, 2.4)
    given = Demand(memory_gib=1.0, cores=2, ghz=1.5)
    assert demand_here(given, cpu(), tree) == given
    on_gpu = demand_here(Demand(), device(), tree)
    assert (on_gpu.memory_gib, on_gpu.cores, on_gpu.ghz) == (None, None, None)
    jetson = demand_here(Demand(), device("jetson"), tree)
    assert (jetson.memory_gib, jetson.cores) == (3.0, None)
    bare = demand_here(Demand(), cpu(), write(tmp_path / "bare", proc__version="x"))
    assert (bare.memory_gib, bare.ghz) == (None, None)


def test_a_clock_is_the_highest_of_the_cores_and_a_quota_counts(tmp_path: Path) -> None:
    """Two kinds of cores at 1.8 and 2.6 GHz, one group that tells nothing, a GPU, and half a core's time."""
    for policy, khz in (("0", "1800000"), ("4", "2600000"), ("8", "")):
        folder = tmp_path / f"sys/devices/system/cpu/cpufreq/policy{policy}"
        folder.mkdir(parents=True)
        if khz:
            (folder / "scaling_max_freq").write_text(khz)
    gpu = tmp_path / "sys/class/devfreq/17000000.gpu"
    gpu.mkdir(parents=True)
    (gpu / "max_freq").write_text("9000000000")
    info = "".join(f"processor\t: {n}\nmodel name\t: X\ncpu MHz\t\t: 4000.000\n\n" for n in range(4))
    tree = write(tmp_path, proc__cpuinfo=info)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    for granted, cores in (("50000 100000", 1), ("250000 100000", 2), ("max 100000", 4), ("900000 100000", 4)):
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(granted)
        found = demand_here(Demand(), cpu(), tree)
        assert (found.cores, found.ghz) == (cores, 2.6)
    with pytest.raises(InputError, match="no device profile fits this machine"):
        profile_here(Tree(tmp_path / "nothing"))


def test_a_release_that_names_no_python_or_one_that_will_do_is_taken() -> None:
    release = load_release("6.2")
    for python, refused in (("3.9", True), ("3.10", False), ("3.12", False), ("", False)):
        told = _refusal("fp16", device(), msgspec.structs.replace(release, python=python))
        assert bool(told) == refused


# Advice


def variant(name: str, ms: float | None = 10.0, **more: Any) -> VariantPlan:
    speed = None if ms is None else Estimate(1, Range(ms / 2, ms * 2), "arithmetic")
    return VariantPlan(name, name, **{"wise": True, "estimate": speed, "fits": True} | more)


def test_the_most_exact_that_surely_reaches_is_recommended_else_the_fastest_that_pays() -> None:
    exact, middle, fast = variant("exact", 20.0), variant("middle", 10.0), variant("fast", 5.0)
    assert recommended([exact, middle, fast]) == fast
    assert recommended([exact, replace(middle, reach="yes"), replace(fast, reach="yes")]) == replace(
        middle, reach="yes"
    )
    assert recommended([replace(exact, wise=False, reach="yes"), middle]) == middle
    assert recommended([replace(exact, wise=False), replace(middle, wise=False)]) == replace(middle, wise=False)
    assert recommended([exact, replace(fast, fits=False)]) == exact
    assert recommended([exact, replace(fast, refused="no")]) == exact
    assert recommended([exact, replace(fast, estimate=None)]) == exact
    blind = replace(exact, estimate=None)
    assert recommended([blind, replace(fast, estimate=None)]) == blind
    assert recommended([replace(exact, refused="no")]) is None


def test_a_verdict_says_what_to_expect() -> None:
    asked, nothing = Demand(cameras=2, fps=12.5), Demand()
    this = variant("fp16", 1000 / 150)
    expected = "fp16: 75 to 300 images/s"
    assert verdict(this, nothing, []) == f"{expected}, bound by arithmetic"
    assert verdict(replace(this, reach="yes"), asked, []) == f"{expected}, 25 asked for: within reach"
    perhaps = f"{expected}, 25 asked for: measure on the device before promising it"
    assert verdict(replace(this, reach="perhaps"), asked, []) == perhaps
    assert verdict(replace(this, reach="no"), asked, []) == (
        f"{expected}, 25 asked for: out of reach; label fewer frames (`gate` skips still scenes) or take a smaller "
        "model"
    )
    blind = "fp16 can run; how fast is not known: measure with edgeclip build"
    assert verdict(variant("fp16", None), asked, []) == blind
    none = [variant("a", refused="no A"), variant("b", refused="no A"), variant("c", fits=False)]
    assert verdict(None, asked, none) == "nothing can run: no A; c needs more memory than is free"
    none.append(variant("d", fits=False))
    assert verdict(None, asked, none) == "nothing can run: no A; c, d need more memory than is free"


@pytest.mark.parametrize(
    ("swaps", "has_service", "expected"),
    [
        # Of an Orin Nano with JetPack 6 and a swap file; of one with Ubuntu's own image.
        (
            "/dev/zram0 partition 645632 0 5\n/dev/zram11 partition 645632 0 5\n/swapfile file 8388604 0 -2\n",
            True,
            True,
        ),
        ("/swapfile file 8388604 0 -2\n", False, False),
        ("", True, False),
    ],
)
def test_zram_is_taken_out_of_use_where_there_is_any(
    swaps: str, has_service: bool, expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "swaps").write_text(f"Filename Type Size Used Priority\n{swaps}", encoding="utf-8")
    for name, does in (
        ("sudo", f'echo "$@" >> {tmp_path}/done'),
        ("systemctl", f"exit {0 if has_service else 1}"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    for line in WITHOUT_ZRAM:
        here = line.replace("/proc/swaps", f"{tmp_path}/swaps")
        subprocess.run(
            ["bash", "-eo", "pipefail", "-c", here],
            check=True,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        )
    done = (tmp_path / "done").read_text(encoding="utf-8").splitlines() if (tmp_path / "done").exists() else []
    assert done == [
        *(["swapoff /dev/zram0 /dev/zram11"] if expected else []),
        *(["systemctl disable nvzramconfig"] if has_service else []),
    ]


def test_the_guide_takes_zram_out_of_use_as_a_plan_does() -> None:
    guide = (Path(__file__).parents[2] / "docs/jetson.md").read_text(encoding="utf-8")
    assert "\n".join(WITHOUT_ZRAM) in guide


def test_a_build_on_a_jetson_that_lacks_memory_gets_swap_first() -> None:
    memory = VariantMemory(weights=0, activations=0, frames=0, library=0, building=5 * GIB)
    this = VariantPlan("fp16", "fp16", memory=memory, estimate=Estimate(4, Range(1, 2), ""))
    command = "edgeclip build BUNDLE --variant fp16 --batch 1,4,4"
    assert recipe(this, device("jetson"), 5 * GIB) == (f"{command} --workspace 1024",)
    assert recipe(this, device("jetson"), 2 * GIB) == (
        "sudo systemctl isolate multi-user.target",
        "sudo fallocate -l 5G /swapfile && sudo chmod 600 /swapfile",
        "sudo mkswap /swapfile && sudo swapon /swapfile",
        *WITHOUT_ZRAM,
        f"{command} --workspace 512",
    )
    assert recipe(this, device("jetson"), 5 * GIB - 1)[1].startswith("sudo fallocate -l 4G ")
    assert "fallocate -l 6G" in recipe(this, device("jetson"), 2 * GIB - 1)[1]  # begun GiB count whole
    assert recipe(this, device(), 100 * MIB) == (f"{command} --workspace 64",)
    assert recipe(this, device(), None) == (command,)
    assert recipe(replace(this, memory=None, estimate=None), device(), GIB) == (command.replace("1,4,4", "1,1,1"),)


def test_faults_of_a_release_and_the_dla_are_told() -> None:
    xavier = load_profile("xavier-nx-8gb")
    release = load_release(xavier.jetpacks[0])
    said = notes_on(COST, xavier, Demand(), release, GIB)
    assert any("DLA" in each for each in said)
    without = notes_on(COST, load_profile("orin-nano-8gb"), Demand(), load_release("6.2"), GIB)
    assert not any(each.startswith(("not for the DLA", "fit for the DLA")) for each in without)
    assert any(each.startswith("prove before use: ") for each in [*said, *without])
    dla = Dla(count=1, version="2.0", precisions=("fp16",), source="s")
    ways = []
    for operators in (
        ["Conv"] * 3,
        ["Conv", "LayerNormalization"],
        ["LayerNormalization", "LayerNormalization", "Erf"],
    ):
        cost = GraphCost(
            image_size=(8, 8),
            macs=1,
            weights=1,
            activation_peak=1,
            activation_traffic=1,
            kernels=1,
            operators=dict(Counter(operators)),
        )
        reasons = dla_verdict(operators, version="2.0", tensorrt=load_release("6.2").tensorrt).reasons
        more = f", and {len(reasons) - 1} more reasons" if len(reasons) > 1 else ""
        wanted = (
            f"not for the DLA: {reasons[0]}{more}"
            if reasons
            else ("fit for the DLA by its operators (docs/dla.md); the figures here are the GPU's")
        )
        told = notes_on(cost, device(dla=dla), Demand(), load_release("6.2"), GIB)
        assert [each for each in told if each.startswith(("fit for", "not for"))] == [wanted]
        ways.append(len(reasons))
    assert ways[0] == 0
    assert ways[1] == 1
    assert ways[2] > 1


def test_faults_are_told_by_their_kind() -> None:
    """Those of the DLA only where there is one; those that a proof can catch ask for it."""
    ids = tuple(fault.id for fault in load_faults())
    faults = faults_by_id(ids)
    assert len(faults) == len(ids)
    dla = Dla(count=1, version="2.0", precisions=("fp16",), source="s")
    for profile in (device(faults=ids), device(faults=ids, dla=dla)):
        told = notes_on(COST, profile, Demand(), load_release("6.2"), GIB)
        for fault in faults:
            here = fault.component != "dla" or profile.dla is not None
            lines = [each for each in told if f"{fault.what}; {fault.advice}" in each]
            assert len(lines) == here
            assert all(each.startswith("prove before use: ") == fault.gate for each in lines)
    assert {fault.component == "dla" for fault in faults} == {fault.gate for fault in faults} == {True, False}
    assert notes_on(COST, device(faults=ids), Demand(), None, GIB) == []  # of no release nothing is known


def test_a_cost_comes_back_from_its_file_and_may_be_absent(tmp_path: Path) -> None:
    assert load_cost(tmp_path) is None
    COST.save(tmp_path)
    assert load_cost(tmp_path) == COST
