"""Plans are built by the real library without a GPU, cached under everything that decides them, and never half there.

TensorRT for RTX builds on a CPU for a GPU named ahead of time. Loading and running a plan takes a GPU: those tests are
marked ``gpu`` and skip elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeclip import Bundle, EncoderSpec
from edgeclip.devices.machine.cuda import Gpu, find_gpu, free_memory_bytes
from edgeclip.errors import EngineError, InputError
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.base import engine_class, load_engine
from edgeclip.runtime.engines.plan_cache import PlanKey
from edgeclip.runtime.engines.tensorrt import Layer, layers, parse_layers
from edgeclip.runtime.engines.tensorrt_api import load_library, network_flags, precision_flags
from edgeclip.runtime.engines.tensorrt_build import BuildResult, build
from edgeclip.runtime.engines.tensorrt_options import BuildOptions, choose_target, runs_on
from tests.conftest import SIZE, WIDTH

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.runtime")

RTX = "tensorrt-rtx"
AHEAD = BuildOptions(compute_capability="8.6")
GPU = find_gpu()
needs_gpu = pytest.mark.skipif(GPU is None, reason="needs an NVIDIA GPU")
needs_no_gpu = pytest.mark.skipif(GPU is not None, reason="is about a machine without an NVIDIA GPU")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGECLIP_CACHE", str(folder))
    return folder


@pytest.fixture
def graph(tiny_bundle: Path) -> Path:
    return Bundle.open(tiny_bundle).variant_path("fp32")


@pytest.fixture
def encoder(tiny_bundle: Path) -> EncoderSpec:
    return Bundle.open(tiny_bundle).manifest.encoder


def changed(path: Path, change: Callable[[Any], None], **options: Any) -> Path:
    """A copy of an ONNX graph after ``change`` was applied to it."""
    import onnx

    model = onnx.load(str(path))
    change(model)
    copy = path.with_name("changed.onnx")
    onnx.save(model, str(copy), **options)
    return copy


def plans(cache: Path) -> list[Path]:
    return sorted(cache.glob("engines/*/*"))


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0"])
def test_a_plan_is_built_for_a_gpu_that_is_not_here(graph: Path, encoder: EncoderSpec, capability: str) -> None:
    result = build(RTX, graph, encoder, "fp32", BuildOptions(compute_capability=capability))
    assert not result.reused
    assert result.key.device == f"sm{capability.replace('.', '')}"
    assert plan_cache.find(result.key) == result.path
    assert result.path.stat().st_size > graph.stat().st_size
    sidecar = json.loads(result.path.with_name("plan.json").read_text())
    assert sidecar["machine"]["architecture"]
    assert sidecar["build_s"] > 0


def test_one_plan_for_all_gpus_from_ampere_on(graph: Path, encoder: EncoderSpec) -> None:
    result = build(RTX, graph, encoder, "fp32", BuildOptions(hardware_compatible=True))
    library = load_library(RTX)
    assert runs_on(result.key, library, Gpu("RTX 5090", "12.0", integrated=False))
    assert not runs_on(result.key, library, Gpu("T4", "7.5", integrated=False))


def test_a_plan_for_one_kind_of_gpu_is_not_for_another(graph: Path, encoder: EncoderSpec) -> None:
    key = build(RTX, graph, encoder, "fp32", AHEAD).key
    library = load_library(RTX)
    assert runs_on(key, library, Gpu("RTX 3090", "8.6", integrated=False))
    assert not runs_on(key, library, Gpu("L4", "8.9", integrated=False))


@pytest.mark.parametrize(
    ("built_with", "version_compatible", "runs"),
    [
        ("10.3.0", False, True),
        ("10.1.0", False, False),
        ("10.1.0", True, True),
        ("10.13.0", True, False),
        ("8.6.1", True, False),
    ],
)
def test_only_a_version_compatible_plan_outlives_an_upgrade(
    built_with: str, version_compatible: bool, runs: bool
) -> None:
    key = make_key(library_version=built_with, options={"version_compatible": version_compatible})
    orin = Gpu("Orin", "8.7", integrated=True)
    assert runs_on(key, SimpleNamespace(version="10.3.0"), orin) == runs  # type: ignore[arg-type]


def test_the_second_build_is_a_look_up(graph: Path, encoder: EncoderSpec) -> None:
    first = build(RTX, graph, encoder, "fp32", AHEAD)
    second = build(RTX, graph, encoder, "fp32", AHEAD)
    assert (first.reused, second.reused) == (False, True)
    assert second.path == first.path
    assert not build(RTX, graph, encoder, "fp32", AHEAD, rebuild=True).reused


def test_another_option_or_graph_is_another_plan(graph: Path, encoder: EncoderSpec) -> None:
    def scale(model: Any) -> None:
        kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
        kernel.raw_data = (np.frombuffer(kernel.raw_data, np.float32) * 2).tobytes()

    results = [
        build(RTX, path, encoder, "fp32", options)
        for path, options in [
            (graph, AHEAD),
            (graph, BuildOptions(compute_capability="8.6", max_batch=4)),
            (graph, BuildOptions(compute_capability="8.9")),
            (changed(graph, scale), AHEAD),
        ]
    ]
    assert not any(result.reused for result in results)
    assert len({result.path for result in results}) == len(results)


def test_weights_beside_the_graph_are_found_and_count(graph: Path, encoder: EncoderSpec) -> None:
    def keep(model: Any) -> None:
        pass

    path = changed(
        graph,
        keep,
        save_as_external_data=True,
        location="changed.onnx.data",
        size_threshold=64,
        all_tensors_to_one_file=True,
    )
    before = build(RTX, path, encoder, "fp32", AHEAD)
    data = path.with_name("changed.onnx.data")
    data.write_bytes(bytes(data.stat().st_size))
    after = build(RTX, path, encoder, "fp32", AHEAD)
    assert not after.reused
    assert after.path.read_bytes() != before.path.read_bytes()


@pytest.mark.parametrize("damage", ["flip", "truncate", "sidecar", "no sidecar", "other key"])
def test_an_altered_plan_is_absent_and_built_again(graph: Path, encoder: EncoderSpec, damage: str) -> None:
    result = build(RTX, graph, encoder, "fp32", AHEAD)
    plan, sidecar = result.path, result.path.with_name("plan.json")
    content = plan.read_bytes()
    if damage == "flip":
        plan.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    elif damage == "truncate":
        plan.write_bytes(content[: len(content) // 2])
    elif damage == "sidecar":
        sidecar.write_text(sidecar.read_text()[:-20])
    elif damage == "no sidecar":
        sidecar.unlink()
    else:
        sidecar.write_text(sidecar.read_text().replace("sm86", "sm89"))
    assert plan_cache.find(result.key) is None
    again = build(RTX, graph, encoder, "fp32", AHEAD)
    assert not again.reused
    assert plan_cache.find(again.key) == plan


def test_a_build_that_is_killed_leaves_no_plan(graph: Path, encoder: EncoderSpec, cache: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_PROCESS.format(then="print('inside', flush=True); time.sleep(60)"), str(graph)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert plans(cache) == []
    assert not build(RTX, graph, encoder, "fp32", AHEAD).reused


def test_a_store_that_is_killed_leaves_no_plan(graph: Path) -> None:
    code = """
        import os, signal, pathlib, sys
        from edgeclip.runtime.engines import plan_cache
        from tests.runtime.test_tensorrt import make_key
        plan_cache.write_json = lambda path, value: os.kill(os.getpid(), signal.SIGKILL)
        plan_cache.store(make_key(), b"a plan", build_s=1.0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert plan_cache.plan_path(make_key()).is_file()
    assert plan_cache.find(make_key()) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_build_from_inside_the_library(graph: Path, cache: Path, number: int) -> None:
    then = f"os.kill(os.getpid(), {int(number)})"
    code = IN_A_PROCESS.format(then=then) + "\nprint('built')"
    code = "import signal\nsignal.signal(signal.SIGTERM, signal.default_int_handler)\n" + code
    done = subprocess.run([sys.executable, "-c", code, str(graph)], capture_output=True, text=True, check=False)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stdout == ""
    assert plans(cache) == []


def test_an_exception_in_the_callback_ends_the_build(graph: Path, encoder: EncoderSpec, cache: Path) -> None:
    def fail(phase: str, done: int, total: int) -> None:
        raise ValueError(phase)

    with pytest.raises(ValueError, match="Building engine"):
        build(RTX, graph, encoder, "fp32", AHEAD, progress=fail)
    assert plans(cache) == []


def test_progress_counts_the_steps_of_each_phase(graph: Path, encoder: EncoderSpec) -> None:
    calls: list[tuple[str, int, int]] = []
    build(RTX, graph, encoder, "fp32", AHEAD, progress=lambda *call: calls.append(call))
    assert [(done, total) for phase, done, total in calls if phase == "Building engine"] == [(n, 6) for n in range(7)]
    for name in {phase for phase, *_ in calls}:
        steps = [(done, total) for phase, done, total in calls if phase == name]
        assert steps[-1][0] == steps[-1][1] > 0
        assert steps[0][0] == 0
        assert all(after[0] == 0 or after >= before for before, after in pairwise(steps))  # a phase may come again


def test_every_node_that_is_refused_is_in_one_error(graph: Path, encoder: EncoderSpec) -> None:
    from onnx import helper

    def add_unknown(model: Any) -> None:
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        first, *rest = model.graph.node
        first.output[0] = "plain"
        unknown = [
            helper.make_node("Frobnicate", ["plain"], ["odd"], domain="com.example", name="frob"),
            helper.make_node("Zork", ["odd"], ["maps"], domain="com.example"),
        ]
        del model.graph.node[:]
        model.graph.node.extend([first, *unknown, *rest])

    with pytest.raises(EngineError, match="cannot parse") as error:
        build(RTX, changed(graph, add_unknown), encoder, "fp32", AHEAD)
    assert "Frobnicate node 'frob': " in str(error.value)
    assert "Zork node number 2: " in str(error.value)


def test_a_zero_point_other_than_zero_is_refused_with_its_node(graph: Path, encoder: EncoderSpec) -> None:
    from onnx import helper, numpy_helper

    def quantize(model: Any) -> None:
        first, *rest = model.graph.node
        first.output[0] = "plain"
        pair = [
            helper.make_node("QuantizeLinear", ["plain", "scale", "zero"], ["q"], name="quantize_maps"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["maps"]),
        ]
        del model.graph.node[:]
        model.graph.node.extend([first, *pair, *rest])
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "scale"))
        model.graph.initializer.append(numpy_helper.from_array(np.int8(5), "zero"))

    with pytest.raises(EngineError, match=r"QuantizeLinear node 'quantize_maps'.*[Nn]on-zero zero point"):
        build(RTX, changed(graph, quantize), encoder, "int8", AHEAD)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, encoder: EncoderSpec) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="cannot parse"):
        build(RTX, path, encoder, "fp32", AHEAD)


def test_a_graph_of_another_encoder_is_refused(graph: Path, encoder: EncoderSpec) -> None:
    import msgspec

    wider = msgspec.structs.replace(encoder, embedding_dim=WIDTH + 1)
    with pytest.raises(EngineError, match=rf"expected .*embedding \(N, {WIDTH + 1}\).*got .*embedding"):
        build(RTX, graph, wider, "fp32", AHEAD)


def test_a_graph_with_a_fixed_batch_needs_no_profile(graph: Path, encoder: EncoderSpec) -> None:
    def fix(model: Any) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1

    assert build(RTX, changed(graph, fix), encoder, "fp32", AHEAD).path.is_file()


def test_a_workspace_that_is_too_small_says_so(graph: Path, encoder: EncoderSpec, cache: Path) -> None:
    options = BuildOptions(compute_capability="8.6", workspace_bytes=2**20)
    with pytest.raises(EngineError, match=r"needs more than 1 MiB .*larger `workspace`\n  .*workspace limit"):
        build(RTX, graph, encoder, "fp32", options)
    assert plans(cache) == []


@pytest.mark.parametrize("recovers", [True, False])
def test_a_build_out_of_memory_is_tried_with_half_the_workspace(tmp_path: Path, recovers: bool) -> None:
    """The memory of the process is limited for real while the library builds a graph of 98 MB."""
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path / "large.onnx"), str(int(recovers))]
    for attempt in range(3):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            break
        except subprocess.TimeoutExpired:  # where a thread of the library's own finds no memory, it can hang: 1 in 30
            assert attempt < 2
    if recovers:
        assert done.stdout.split() == [str(2**29), str(2**30)], done.stderr
    else:
        assert "ran out of memory on large.onnx with 128 MiB of workspace" in done.stderr


@needs_no_gpu
@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        (RTX, BuildOptions(), "NVIDIA GPU is needed to build.*`compute_capability`"),
        (RTX, BuildOptions(compute_capability="8.6", strip=True), "omit `strip`"),
        (RTX, BuildOptions(compute_capability="8.7"), r"expected one of .*8\.6, 8\.9.*`engine` tensorrt"),
        (RTX, BuildOptions(version_compatible=True), "lacks the lean runtime"),
        ("tensorrt", AHEAD, r"`engine` tensorrt-rtx to build for compute capability 8\.6"),
        ("abacus", AHEAD, "expected an engine out of"),
    ],
)
def test_what_cannot_be_built_here_is_refused(
    graph: Path, encoder: EncoderSpec, engine: str, options: BuildOptions, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        build(engine, graph, encoder, "fp32", options)


@needs_no_gpu
@pytest.mark.parametrize("engine", ["tensorrt", RTX])
def test_without_a_gpu_an_engine_says_so(graph: Path, encoder: EncoderSpec, engine: str) -> None:
    assert not engine_class(engine).available()
    with pytest.raises(EngineError, match=f"an NVIDIA GPU is needed to run the engine {engine}, but "):
        load_engine(engine, graph, encoder)


@needs_no_gpu
def test_without_a_gpu_layers_cannot_be_read(graph: Path, encoder: EncoderSpec) -> None:
    result = build(RTX, graph, encoder, "fp32", BuildOptions(compute_capability="8.6", detailed_layers=True))
    with pytest.raises(EngineError, match="an NVIDIA GPU is needed to read the layers"):
        layers(RTX, result.path)


def test_layers_are_read_from_both_forms_of_the_inspectors_json() -> None:
    """As NVIDIA's documentation of the engine inspector prints them; making one takes a GPU."""
    assert parse_layers('{"Layers": ["conv + relu", "mm"], "Bindings": []}') == [Layer("conv + relu"), Layer("mm")]
    detailed = {
        "Name": "conv + relu",
        "LayerType": "CaskConvolution",
        "Outputs": [{"Name": "maps", "Dimensions": [1, 8], "Format/Datatype": "Half"}],
    }
    assert parse_layers(json.dumps({"Layers": [detailed]})) == [Layer("conv + relu", "CaskConvolution", ("Half",))]
    with pytest.raises(EngineError, match="no list of layers"):
        parse_layers('{"Layers": 3}')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "MIN <= OPT <= MAX"),
        ({"min_batch": 4}, "MIN <= OPT <= MAX"),
        ({"workspace_bytes": 0}, "at least 1 byte"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"compute_capability": "86"}, r"such as 8\.6"),
        ({"compute_capability": "8.6", "hardware_compatible": True}, "got both"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions(**options)


def members(*names: str) -> SimpleNamespace:
    return SimpleNamespace(__members__={name: index for index, name in enumerate(names)})


TENSORRT_8_6 = SimpleNamespace(
    __version__="8.6.1",
    NetworkDefinitionCreationFlag=members("EXPLICIT_BATCH", "EXPLICIT_PRECISION"),
    BuilderFlag=members("FP16", "INT8", "STRICT_TYPES", "TF32", "OBEY_PRECISION_CONSTRAINTS", "VERSION_COMPATIBLE"),
)
TENSORRT_10 = SimpleNamespace(
    NetworkDefinitionCreationFlag=members("EXPLICIT_BATCH", "STRONGLY_TYPED"),
    BuilderFlag=members("FP16", "BF16", "INT8", "OBEY_PRECISION_CONSTRAINTS"),
)


@pytest.mark.parametrize(
    ("trt", "bits", "flags"),
    [
        (TENSORRT_8_6, 1, {"fp32": (), "fp16": ("FP16", "OBEY_PRECISION_CONSTRAINTS")}),
        (TENSORRT_8_6, 1, {"int8": ("INT8", "OBEY_PRECISION_CONSTRAINTS")}),
        (TENSORRT_10, 2, {"fp32": (), "fp16": (), "bf16": (), "int8": ()}),
    ],
)
def test_precision_is_in_the_graph_or_else_in_the_flags(trt: Any, bits: int, flags: dict[Any, Any]) -> None:
    """The libraries cannot be had here; these names are those of the bindings 8.6.1 and 10.3.0."""
    assert network_flags(trt) == bits
    assert {precision: precision_flags(trt, precision) for precision in flags} == flags


def test_a_precision_that_an_old_library_lacks_is_refused() -> None:
    with pytest.raises(EngineError, match=r"8\.6\.1\) has no bf16"):
        precision_flags(TENSORRT_8_6, "bf16")


def test_the_installed_library_is_strongly_typed() -> None:
    trt = load_library(RTX).trt
    assert network_flags(trt) == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert precision_flags(trt, "int8") == ()


def make_key(**changes: Any) -> PlanKey:
    values = {
        "engine": "openvino",
        "library_version": "2026.4.1",
        "variant_sha256": "a" * 64,
        "device": "sm87",
        "options": {"streams": 2},
    }
    return PlanKey(**{**values, **changes})


def test_the_cache_serves_any_engine() -> None:
    key = make_key()
    path = plan_cache.store(key, b"a compiled blob", build_s=1.25)
    assert plan_cache.find(key) == path
    assert path.read_bytes() == b"a compiled blob"
    for other in ("engine", "library_version", "device"):
        assert plan_cache.find(make_key(**{other: "other"})) is None
    assert plan_cache.find(make_key(options={"streams": 1})) is None
    later = make_key(options={"streams": 4})
    os.utime(path.with_name("plan.json"), (1, 1))
    plan_cache.store(later, b"another", build_s=1.0)
    assert [record.key for record in plan_cache.records("openvino", "a" * 64)] == [later, key]
    assert plan_cache.records("openvino", "b" * 64) == []


def test_side_caches_are_kept_for_each_engine_version_and_device() -> None:
    place = {"engine": "tensorrt", "library_version": "10.3.0", "device": "AMD EPYC / 2"}
    assert plan_cache.load_side_cache("timing", **place) == b""
    plan_cache.save_side_cache("timing", b"times", **place)
    assert plan_cache.load_side_cache("timing", **place) == b"times"
    assert plan_cache.load_side_cache("timing", **{**place, "library_version": "10.4.0"}) == b""


def test_a_jetsons_free_memory_is_what_linux_can_give(tmp_path: Path) -> None:
    orin = Gpu("Orin", "8.7", integrated=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 7802212 kB\nMemFree: 301244 kB\nMemAvailable: 5120000 kB\n")
    assert free_memory_bytes(orin, tmp_path) == 5_120_000 * 1024
    with pytest.raises(EngineError, match="give the size with `workspace`"):
        free_memory_bytes(orin, tmp_path / "nothing")


def test_a_gpu_that_the_library_does_not_know_is_refused_before_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX 1.7 builds a plan on an H100, and then refuses to run it."""
    h100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", integrated=False)
    monkeypatch.setattr("edgeclip.runtime.engines.tensorrt_options.require_gpu", lambda _: h100)
    with pytest.raises(EngineError, match=r"cannot build for compute capability 9\.0: expected one of 7\.5, 8\.0"):
        choose_target(load_library(RTX), BuildOptions())


def skip_where_unknown(engine: str) -> None:
    assert GPU
    if (
        engine == RTX
        and f"SM{GPU.compute_capability.replace('.', '')}" not in load_library(RTX).trt.ComputeCapability.__members__
    ):
        pytest.skip(f"{engine} does not run on compute capability {GPU.compute_capability}")


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("engine", [name for name in ("tensorrt", RTX) if engine_class(name).available()])
@pytest.mark.parametrize("strip", [False, True])
def test_a_plan_on_a_gpu_agrees_with_onnx_runtime(
    graph: Path, encoder: EncoderSpec, cache: Path, engine: str, strip: bool
) -> None:
    skip_where_unknown(engine)
    images = np.random.default_rng(0).standard_normal((7, 3, SIZE, SIZE)).astype(np.float32)
    with load_engine("onnxruntime", graph, encoder) as reference:
        expected = reference.infer(images)
    result: BuildResult = build(
        engine, graph, encoder, "fp32", BuildOptions(min_batch=2, opt_batch=2, max_batch=4, strip=strip)
    )
    if strip:
        full = build(engine, graph, encoder, "fp32", BuildOptions(min_batch=2, opt_batch=2, max_batch=4))
        assert result.path.stat().st_size < full.path.stat().st_size
        plan_cache.remove(full.key)
    with load_engine(engine, graph, encoder) as loaded:
        for batch in (7, 1, 4):
            np.testing.assert_allclose(loaded.infer(images[:batch]), expected[:batch], atol=1e-3)
        assert "batches of 2 to 4" in loaded.describe()
    if engine == RTX:
        assert list(cache.glob("engines/kernels-*"))


@needs_gpu
@pytest.mark.gpu
def test_an_engine_without_a_plan_says_how_to_build_one(graph: Path, encoder: EncoderSpec) -> None:
    with pytest.raises(EngineError, match=r"run edgeclip build .* --engine tensorrt-rtx --variant fp32"):
        load_engine(RTX, graph, encoder)


IN_A_PROCESS = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from edgeclip import Bundle
    from edgeclip.runtime.engines.tensorrt_build import build
    from edgeclip.runtime.engines.tensorrt_options import BuildOptions

    def progress(phase, done, total):
        if phase == "Optimizing graph" and done == 3:
            {then}

    graph = Path(sys.argv[1])
    encoder = Bundle.open(graph.parent.parent).manifest.encoder
    build("tensorrt-rtx", graph, encoder, "fp32", BuildOptions(compute_capability="8.6"), progress=progress)
    """
)

OUT_OF_MEMORY = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    import numpy as np, onnx
    from onnx import TensorProto, helper, numpy_helper
    from edgeclip import EncoderSpec, PreprocessSpec
    from edgeclip.runtime.engines import tensorrt_build
    from edgeclip.runtime.engines.tensorrt_options import BuildOptions

    path, recovers = Path(sys.argv[1]), sys.argv[2] == "1"
    inner = 8000
    weights = [np.ones((3 * 32 * 32, inner), np.float32), np.ones((inner, 16), np.float32)]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w0"], ["hidden"]),
         helper.make_node("MatMul", ["hidden", "w1"], ["embedding"])],
        "large",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    del graph, weights
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    attempt, attempts = tensorrt_build._attempt, []

    def counted(*args):
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        attempts.append(args)
        return attempt(*args)

    tensorrt_build._attempt = counted

    def progress(phase, done, total):
        if phase == "Building engine" and done == 0 and (len(attempts) == 1 or not recovers):
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (80 << 20), resource.RLIM_INFINITY))

    spec = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    result = tensorrt_build.build(
        "tensorrt-rtx", path, EncoderSpec(preprocess=spec, embedding_dim=16, logit_scale=50.0), "fp32",
        BuildOptions(compute_capability="8.6", workspace_bytes=2**30), progress=progress,
    )
    print(result.workspace_bytes, *result.out_of_memory_at)
    """
)
