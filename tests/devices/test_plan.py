"""Planning: what a graph costs, what a device makes of it, and what is said of devices that are not here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeclip.bundle import Bundle
from edgeclip.devices.catalogue.profile import DeviceProfile, load_profile, load_profiles, profile_names
from edgeclip.devices.machine.tree import Tree
from edgeclip.devices.plan.cost import FILE, GraphCost, Work, load_cost
from edgeclip.devices.plan.memory import build_lacks, build_workspace, free_bytes, memory_of
from edgeclip.devices.plan.plan import demand_here, plan, profile_here, variants_for
from edgeclip.devices.plan.records import Demand
from edgeclip.devices.plan.speed import Device, estimate, load_shares
from edgeclip.devices.sensors.measurement_conditions import MeasurementConditions
from edgeclip.errors import BundleError, InputError, ModelError
from edgeclip.evaluation.bench.calibrate import calibration_of
from edgeclip.evaluation.bench.records import BenchResult, BenchSetting, Measured
from edgeclip.export.cost import cost_of_bundle, cost_of_model, graph_cost
from edgeclip.files import write_json
from tests.command_line import edgeclip, refused
from tests.devices.published import Latency, published_latencies
from tests.machines import make

onnx = pytest.importorskip("onnx", reason="counting needs edgeclip[export]")

VIT_B_32 = next(each.cost for each in published_latencies() if each.model == "ViT-B-32")


def graph(tmp_path: Path, text: str, **weights: tuple[int, ...]) -> Path:
    """An ONNX file of ``text``, with weights of these shapes."""
    path = tmp_path / "graph.onnx"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{text}')
    for name, shape in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, path)
    return path


def test_products_are_counted_by_hand(tmp_path: Path) -> None:
    path = graph(
        tmp_path,
        """encoder (float[N,3,8,8] image) => (float[N,5] embedding) {
            c = Conv <pads = [1,1,1,1], strides = [2,2]> (image, w)
            r = Relu (c)
            g = GlobalAveragePool (r)
            f = Flatten (g)
            embedding = MatMul (f, p)
        }""",
        w=(4, 3, 3, 3),
        p=(4, 5),
    )
    cost = graph_cost(path)
    assert cost.macs == 4 * 4 * 4 * 27 + 4 * 5
    assert cost.weights == 4 * 27 + 20
    assert cost.activation_peak == 3 * 64 + 64  # the image and what the convolution makes of it
    assert cost.kernels == 3
    assert cost.image_size == (8, 8)


def test_work_is_told_apart_by_what_it_runs_on(tmp_path: Path) -> None:
    path = graph(
        tmp_path,
        """encoder (float[N,4,2,2] image) => (float[N,6] embedding)
        <int64[3] rows = {0, 4, 4}> {
            c = Conv <group = 4> (image, w)
            d = Conv <pads = [1,1,1,1]> (image, v)
            r = Relu (d)
            a = Reshape (r, rows)
            b = Transpose <perm = [0, 2, 1]> (a)
            s = MatMul (a, b)
            t = Softmax (s)
            o = MatMul (t, a)
            n = LayerNormalization (o, g)
            m = ReduceMean <keepdims = 0> (n, last)
            f = Flatten (c)
            x = Add (m, f)
            embedding = Gemm (x, p)
        }""",
        w=(4, 1, 2, 2),
        v=(4, 4, 3, 3),
        g=(4,),
        p=(4, 6),
    )
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), "last"))
    onnx.save(model, path)
    assert graph_cost(path).work == {
        "matrix": Work(kernels=1, macs=4 * 6, traffic=10),
        "convolution": Work(kernels=1, macs=16 * 36, traffic=32),
        "attention": Work(kernels=3, macs=2 * 64, traffic=3 * 16 + 2 * 16 + 3 * 16),
        "depthwise": Work(kernels=1, macs=16, traffic=16 + 4),
        "other": Work(kernels=2, macs=0, traffic=32 + 16 + 4),
    }


def test_a_grouped_convolution_and_a_transposed_product_are_counted_by_hand(tmp_path: Path) -> None:
    path = graph(
        tmp_path,
        """encoder (float[N,4,2,2] image) => (float[N,6] embedding) {
            c = Conv <group = 4> (image, w)
            f = Flatten (c)
            embedding = Gemm <transB = 1> (f, p)
        }""",
        w=(4, 1, 2, 2),
        p=(6, 4),
    )
    assert graph_cost(path).macs == 4 * 4 + 4 * 6


def test_a_batch_folded_into_another_dimension_is_one_image(tmp_path: Path) -> None:
    path = graph(
        tmp_path,
        """encoder (float[N,4,2,2] image) => (float[N,16] embedding)
        <int64[2] rows = {-1, 4}, int64[2] flat = {-1, 16}> {
            r = Reshape (image, rows)
            m = MatMul (r, p)
            embedding = Reshape (m, flat)
        }""",
        p=(4, 4),
    )
    cost = graph_cost(path)
    assert (cost.macs, cost.activation_peak) == (4 * 4 * 4, 32)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="expected an ONNX file"):
        graph_cost(tmp_path / "x.onnx")


def test_the_starters_cost_is_in_its_bundle_and_is_what_its_graph_gives() -> None:
    bundle = Bundle.open("starter")
    written = load_cost(bundle.path)
    assert written == graph_cost(bundle.variant_path("fp32")) == cost_of_bundle(bundle)
    # Weights in 8 bits are counted as weights once, their scales not at all: EfficientNet-Lite0 has 4.65 M with its
    # classifier, the projections to 200 dimensions the rest.
    assert written is not None
    assert 5.0e6 < written.weights < 5.3e6
    assert 0.38e9 < written.macs < 0.41e9


def test_a_cost_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / FILE).write_text('{"macs": 1}')
    with pytest.raises(BundleError, match="export the bundle again"):
        load_cost(tmp_path)


@pytest.mark.slow
def test_vit_b_32_is_planned_by_its_name_alone() -> None:
    cost = cost_of_model("ViT-B-32")
    assert cost == msgspec.structs.replace(VIT_B_32, operators=cost.operators)
    assert set(VIT_B_32.operators) < set(cost.operators)


@pytest.mark.parametrize("published", published_latencies(), ids=str)
def test_a_published_latency_is_estimated_and_its_range_says_something(published: Latency) -> None:
    """Four of five lie within their range: tests/tools/test_fit_latency.py counts them."""
    estimated = published.estimated()
    assert estimated is not None
    assert published.ms / 3 <= estimated.latency_ms.middle <= published.ms * 3
    assert estimated.latency_ms.high <= 3 * estimated.latency_ms.low


NANO = Device(peak_tflops=10, plain_tflops=1.28, bandwidth_gb_s=68)


def test_a_larger_batch_takes_longer_and_gets_more_done() -> None:
    shares = load_shares().gpu["tensorrt"]
    one, eight = (estimate(VIT_B_32, "fp16", NANO, batch=batch, shares=shares) for batch in (1, 8))
    assert one.latency_ms.low < eight.latency_ms.low < 8 * one.latency_ms.low
    assert one.images_per_s.high < eight.images_per_s.high


def test_at_batch_one_a_jetson_waits_for_weights_and_at_32_for_arithmetic() -> None:
    shares = load_shares().gpu["tensorrt"]
    bound = [estimate(VIT_B_32, "fp16", NANO, batch=batch, shares=shares).bound_by for batch in (1, 32)]
    assert bound == ["reading weights", "arithmetic"]


@pytest.mark.parametrize("profile", load_profiles(), ids=lambda profile: profile.name)
def test_every_device_can_be_planned_for(profile: DeviceProfile) -> None:
    made = plan(VIT_B_32, profile, Demand(cameras=4, fps=30))
    assert made.verdict
    for each in made.variants:
        assert (each.refused is None) == (each.memory is not None)
    if made.recommended:
        assert made.variant(made.recommended).usable
        assert made.recipe


def test_the_demand_decides() -> None:
    orin = load_profile("orin-nano-8gb")
    assert plan(VIT_B_32, orin, Demand(fps=5)).variant("fp16").reach == "yes"
    assert plan(VIT_B_32, orin, Demand(cameras=40, fps=30)).variant("fp16").reach == "no"
    assert "out of reach" in plan(VIT_B_32, orin, Demand(cameras=40, fps=500)).verdict


def test_the_most_exact_variant_that_surely_meets_the_demand_is_recommended() -> None:
    made = plan(VIT_B_32, load_profile("orin-nano-8gb"), Demand(fps=5))
    assert made.recommended == "fp16"


SMALL = GraphCost(
    image_size=(8, 8),
    macs=10,
    weights=1_000_000,
    activation_peak=200_000,
    activation_traffic=1,
    kernels=1,
    operators={},
)
FRAMES = 24 * 1920 * 1080 * 3  # of three cameras


@pytest.mark.parametrize(
    ("precision", "weights", "activations"),
    [("fp32", 4_000_000, 4_000_000), ("fp16", 2_000_000, 2_000_000), ("int8", 1_000_000, 2_000_000)],
)
def test_memory_is_counted_by_hand(precision: str, weights: int, activations: int) -> None:
    """Of five images at once; 768 MiB for CUDA and TensorRT, which keeps four FP32 copies of the weights to build."""
    found = memory_of(SMALL, precision, load_profile("orin-nano-8gb"), batch=5, cameras=3)
    assert (found.weights, found.activations, found.frames, found.library) == (weights, activations, FRAMES, 768 << 20)
    assert found.running == weights + activations + FRAMES + (768 << 20)
    assert found.building == (768 << 20) + 16_000_000 + activations + (256 << 20)


def test_a_variant_fits_to_the_byte() -> None:
    device = load_profile("orin-nano-8gb")
    needed = plan(VIT_B_32, device, Demand()).variant("fp16").memory
    assert needed is not None
    assert needed.running > 2 * 87_000_000 + 8 * 1920 * 1080 * 3 + (768 << 20)  # ViT-B/32 has 87 million weights
    for more, fits in ((0, True), (-1, False)):
        made = plan(VIT_B_32, device, Demand(memory_gib=(needed.running + more) / 2**30))
        assert made.variant("fp16").fits is fits
        assert (made.variant("fp16").memory, made.free_bytes) == (needed, needed.running + more)


def test_what_is_free_is_what_was_given_or_what_is_sold_less_the_systems() -> None:
    device = load_profile("orin-nano-8gb")
    assert device.memory.gib is not None
    assert free_bytes(device, 1.5) == 3 << 29
    reserved = device.memory.system_reserved_gib
    assert free_bytes(device, None) == int((device.memory.gib.value - (reserved.value if reserved else 1.5)) * 2**30)


def test_what_is_reached_for_sure_perhaps_and_not_at_all() -> None:
    device = load_profile("orin-nano-8gb")
    found = plan(VIT_B_32, device, Demand()).variant("fp16").estimate
    assert found is not None
    low, high = found.images_per_s.low, found.images_per_s.high
    assert low < high
    for fps, reach in ((0.99 * low, "yes"), (1.01 * low, "perhaps"), (0.99 * high, "perhaps"), (1.01 * high, "no")):
        assert plan(VIT_B_32, device, Demand(fps=fps)).variant("fp16").reach == reach


def test_what_does_not_fit_is_said_and_not_recommended() -> None:
    huge = msgspec.structs.replace(VIT_B_32, weights=20_000_000_000)
    made = plan(huge, load_profile("orin-nano-8gb"), Demand())
    assert made.variant("fp32").fits is False
    assert made.recommended is None
    assert "memory" in made.verdict


def test_an_old_jetson_is_refused_with_the_reason() -> None:
    made = plan(VIT_B_32, load_profile("jetson-nano"), Demand())
    assert made.recommended is None
    assert "Python 3.6" in made.verdict


def test_a_build_that_lacks_memory_begins_with_swap() -> None:
    made = plan(VIT_B_32, load_profile("orin-nano-8gb"), Demand(memory_gib=1.5))
    assert any("swapon" in command for command in made.recipe)
    assert not any("swapon" in c for c in plan(VIT_B_32, load_profile("orin-nano-8gb"), Demand()).recipe)


def test_a_cpus_speed_takes_its_cores_and_clock() -> None:
    profile = load_profile("x86-avx512-vnni")
    assert plan(VIT_B_32, profile, Demand()).variant("int8-cpu").estimate is None
    made = plan(VIT_B_32, profile, Demand(cores=2, ghz=2.6))
    assert made.variant("int8-cpu").estimate is not None


@pytest.mark.parametrize("wrong", [{"cameras": 0}, {"fps": -1.0}, {"batch": 0}, {"memory_gib": float("nan")}])
def test_a_demand_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="above 0"):
        Demand(**wrong)  # type: ignore[arg-type]


def test_a_jetpack_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="known are"):
        plan(VIT_B_32, load_profile("orin-nano-8gb"), Demand(jetpack="4.6"))


def test_a_target_makes_the_variants_that_pay_there() -> None:
    assert variants_for(load_profile("orin-nano-8gb")) == ["fp16", "bf16", "int8"]
    assert variants_for(load_profile("x86-avx512-vnni")) == ["int8-cpu"]
    with pytest.raises(InputError, match="int8-cpu"):
        variants_for(load_profile("orin-nano-8gb"), ["int8-cpu"])


def test_a_build_leaves_room_for_its_own_copies_where_memory_is_shared() -> None:
    free, graph_bytes = 4 << 30, 900 << 20
    assert build_workspace(free, graph_bytes, shared=False) == free // 2
    assert build_workspace(free, graph_bytes, shared=True) == free - 4 * graph_bytes
    assert build_workspace(1 << 30, graph_bytes, shared=True) == 64 << 20
    assert build_lacks(4 << 30, graph_bytes) == 0
    assert build_lacks(1 << 30, graph_bytes) == 4 * graph_bytes + (64 << 20) - (1 << 30)


def test_the_command_takes_an_engine_and_a_benchmark_to_calibrate_it(tmp_path: Path) -> None:
    asked = ("plan", "starter", "--device", "x86-avx512-vnni", "--cores", 4, "--ghz", 2.5, "--json")
    before = json.loads(edgeclip(*asked, "--engine", "onnxruntime"))
    assert (before["engine"], json.loads(edgeclip(*asked))["engine"]) == ("onnxruntime", "openvino")
    assert "out of openvino, pytorch, onnxruntime, got 'tensorrt'" in refused(*asked, "--engine", "tensorrt")
    (latency,) = (each["estimate"]["latency_ms"] for each in before["variants"] if each["name"] == "fp32")
    setting = BenchSetting(
        model="m", variant="fp32", engine="onnxruntime", stage="engine", batch=1, threads=4, size=(224, 224)
    )
    ms = 2 * (latency["low"] * latency["high"]) ** 0.5
    measured = Measured(setting=setting, ran_on="CPU", rounds_ms=((ms,),) * 3, warm_up_s=0.0, stable=True)
    cost = load_cost(Bundle.open("starter").path)
    assert cost is not None
    bench = BenchResult(
        bundles={"m": "starter"},
        measured=(measured,),
        refused=(),
        machine={},
        conditions=MeasurementConditions(seconds=1.0, rate_hz=1.0, cost=0.0, power_mode=None, throttled=None),
        device="x86-avx512-vnni",
        ghz=2.5,
        costs={"m": cost},
    )
    path = tmp_path / "bench.json"
    write_json(path, bench)
    after = json.loads(edgeclip(*asked, "--measured", path))
    assert after["engine"] == "onnxruntime"
    (found,) = (each["estimate"]["latency_ms"] for each in after["variants"] if each["name"] == "fp32")
    assert (found["low"] * found["high"]) ** 0.5 == pytest.approx(ms, rel=1e-3)
    assert after["notes"][-1] == "calibrated by 1 measurement of onnxruntime there: times the estimate, fp32 2.00"
    assert "expected an engine of t4" in refused("plan", "starter", "--device", "t4", "--measured", path)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        (
            {"machine": {}},
            "a benchmark that tells the power mode of the NVIDIA Jetson AGX Orin 64 GB, got one that does",
        ),
        ({"machine": {"power_mode": "MY_OWN_22W"}}, "expected a power mode of agx-orin-64gb, got 'MY_OWN_22W'"),
        ({"device": "agx-orin-1tb"}, "expected the name of a device, got 'agx-orin-1tb'"),
        ({"device": None}, "expected a benchmark that names its device"),
        ({"costs": {}}, "expected measurements of tensorrt on NVIDIA Jetson AGX Orin 64 GB, got none that can be"),
        ({"measured": ()}, "expected measurements of tensorrt on NVIDIA Jetson AGX Orin 64 GB, got none that can be"),
    ],
)
def test_a_benchmark_that_cannot_be_compared_calibrates_nothing(changed: dict[str, Any], expected: str | None) -> None:
    setting = BenchSetting(
        model="m", variant="fp16", engine="tensorrt", stage="engine", batch=1, threads=None, size=(224, 224)
    )
    measured = Measured(setting=setting, ran_on="GPU", rounds_ms=((2.0,),) * 3, warm_up_s=0.0, stable=True)
    given: dict[str, Any] = {
        "bundles": {"m": "shop"},
        "measured": (measured,),
        "refused": (),
        "machine": {"power_mode": "MODE_30W"},
        "conditions": MeasurementConditions(seconds=1.0, rate_hz=1.0, cost=0.0, power_mode=None, throttled=None),
        "device": "agx-orin-64gb",
        "costs": {"m": VIT_B_32},
    }
    result = BenchResult(**given | changed)
    if expected is None:
        assert list(calibration_of(result).ratios) == ["fp16"]
        return
    with pytest.raises(InputError, match=re.escape(expected)):
        calibration_of(result)


def test_the_command_prints_the_plan_and_the_same_as_json() -> None:
    asked = ("plan", "starter", "--device", "orin-nano-8gb", "--cameras", 4, "--fps", 30)
    printed = edgeclip(*asked)
    found = json.loads(edgeclip(*asked, "--json"))
    assert found["device"] == "orin-nano-8gb"
    assert found["demand"]["cameras"] == 4
    assert found["verdict"].split(":")[0] == found["recommended"]
    assert found["verdict"] in " ".join(printed.split())
    assert {each["name"] for each in found["variants"]} == {"fp32", "fp16", "bf16", "int8"}


def test_the_command_names_the_nearest_device_and_refuses_a_model_that_is_not_there() -> None:
    assert "orin-nano" in refused("plan", "starter", "--device", "orin-nanno")
    assert "missing.edgeclip" in refused("plan", "missing.edgeclip", "--device", "orin-nano-8gb")


def test_a_plan_for_this_machine_takes_its_free_memory_cores_and_clock() -> None:
    found = json.loads(edgeclip("plan", "starter", "--json"))
    assert found["device"] in profile_names()
    if load_profile(found["device"]).kind == "cpu":
        assert found["demand"]["cores"] >= 1
        assert found["free_bytes"] > 0


def test_a_plan_for_a_recorded_jetson_takes_the_memory_that_linux_can_give(tmp_path: Path) -> None:
    tree = Tree(make("orin-nano-jp62", tmp_path))
    profile = profile_here(tree)
    assert profile.name == "orin-nano-8gb"
    demand = demand_here(Demand(fps=5), profile, tree)
    assert demand.memory_gib is not None
    assert 0 < demand.memory_gib < 8
    assert demand_here(Demand(memory_gib=1.0), profile, tree).memory_gib == 1.0


def test_a_machine_without_a_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with `device`"):
        profile_here(Tree(tmp_path))
