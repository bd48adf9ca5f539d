"""Every engine gives the same embeddings, says truthfully what runs, and refuses what it cannot run."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import textwrap
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeclip import Bundle, EncoderSpec, Variant
from edgeclip.engine_list import ENGINES
from edgeclip.errors import EdgeclipError, EngineError, VariantError
from edgeclip.export.photographs import COLOUR, photograph
from edgeclip.runtime.engines import onnxruntime as ort_engine
from edgeclip.runtime.engines import openvino as openvino_engine
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.base import CPU_LAYOUT, Engine, FloatArray, engine_class, load_engine
from edgeclip.runtime.engines.onnxruntime import OrtCudaEngine, OrtEngine, adds_int8_exactly
from edgeclip.runtime.engines.tensorrt_options import BuildOptions
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from tests import CORES
from tests.conftest import SIZE, WIDTH

pytestmark = pytest.mark.usefixtures("all_cores")  # threads run beside each other here

CPU_ENGINES = ["onnxruntime", "openvino"]
KINDS = {
    "onnxruntime": {"fp32", CPU_LAYOUT},
    "onnxruntime-cuda": {"fp32", "fp16"},
    "onnxruntime-tensorrt": {"fp32", "fp16", "int8"},
    "onnxruntime-tensorrt-rtx": {"fp32", "fp16", "bf16", "int8"},
    "openvino": {"fp32", "fp16", "bf16", "int8", CPU_LAYOUT},
    "openvino-gpu": {"fp32", "fp16", "int8", CPU_LAYOUT},
}


@pytest.fixture
def encoder(tiny_bundle: Path) -> EncoderSpec:
    return Bundle.open(tiny_bundle).manifest.encoder


@pytest.fixture
def graph(tiny_bundle: Path) -> Path:
    return Bundle.open(tiny_bundle).variant_path("fp32")


@pytest.fixture
def load(graph: Path, encoder: EncoderSpec) -> Callable[..., Any]:
    """Load the tiny graph, or another of its shape, with an engine that has to be installed."""

    def _load(name: str, path: Path = graph, **options: Any) -> Any:
        pytest.importorskip(name.partition("-")[0])
        return load_engine(name, path, encoder, **options)

    return _load


@pytest.fixture(scope="module")
def images() -> FloatArray:
    return np.random.default_rng(0).standard_normal((5, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def starter_images() -> FloatArray:
    preprocess = Preprocessor(Bundle.open("starter").manifest.encoder.preprocess)
    return np.stack([preprocess(photograph(name)) for name in COLOUR])


def least_cosine(a: FloatArray, b: FloatArray) -> float:
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def rewritten(graph: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(str(graph))
    change(model)
    onnx.save(model, str(target))
    return target


def in_bf16(model: onnx.ModelProto) -> None:
    """The tiny graph, strongly typed: a cast, bf16 products, a cast."""
    (conv, *_, matmul) = model.graph.node
    conv.input[0], matmul.output[0] = "image_bf16", "embedding_bf16"
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["image_bf16"], to=TensorProto.BFLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["embedding_bf16"], ["embedding"], to=TensorProto.FLOAT))
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    model.opset_import[0].version = 22


# What an engine is for


@pytest.mark.parametrize("name", KINDS)
def test_an_engine_says_which_variants_it_is_for(name: str) -> None:
    variants = [
        *(Variant(name=precision, file="x", precision=precision, opset=18) for precision in ("fp32", "fp16", "bf16")),
        *(Variant(name=layout, file="x", precision="int8", opset=18) for layout in ("int8", CPU_LAYOUT)),
    ]
    assert {variant.name for variant in variants if engine_class(name).suits(variant)} == KINDS[name]


@pytest.mark.parametrize("name", ENGINES)
def test_every_listed_engine_has_its_name(name: str) -> None:
    assert engine_class(name).name == name


@pytest.mark.parametrize("name", KINDS)
def test_an_engine_that_is_not_available_does_not_load(name: str, graph: Path, encoder: EncoderSpec) -> None:
    if engine_class(name).available():
        pytest.skip(f"{name} is available here")
    with pytest.raises(EdgeclipError):
        load_engine(name, graph, encoder)


def test_asking_what_is_available_loads_no_openvino() -> None:
    code = (
        "import sys; from edgeclip.runtime.engines.base import engine_class; "
        "[engine_class(name).available() for name in ('openvino', 'openvino-gpu')]; print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"openvino", "onnxruntime"} & set(loaded)


# The same embeddings


@pytest.mark.parametrize("count", [1, 2, 5])
def test_openvino_in_fp32_equals_onnxruntime(load: Callable[..., Engine], images: FloatArray, count: int) -> None:
    with load("onnxruntime") as reference, load("openvino") as engine:
        np.testing.assert_allclose(engine.infer(images[:count]), reference.infer(images[:count]), atol=1e-4, rtol=1e-4)


def test_weights_stored_in_8_bits_are_computed_with_in_fp32(starter_images: FloatArray) -> None:
    pytest.importorskip("openvino")
    bundle = Bundle.open("starter")
    rows = []
    for name in CPU_ENGINES:
        with load_engine(name, bundle.variant_path("fp32"), bundle.manifest.encoder) as engine:
            rows.append(engine.infer(starter_images))
            rows.append(np.concatenate([engine.infer(image[None]) for image in starter_images]))
            assert name == "onnxruntime" or "f32 (52/52 products)" in engine.describe()
    for other in rows[1:]:
        np.testing.assert_allclose(other, rows[0], atol=1e-5)


def test_the_cpu_layout_of_int8_runs_on_both(starter_images: FloatArray) -> None:
    pytest.importorskip("openvino")
    bundle = Bundle.open("starter")
    with load_engine("onnxruntime", bundle.variant_path("fp32"), bundle.manifest.encoder) as engine:
        reference = engine.infer(starter_images)
    exact = adds_int8_exactly(ort_engine.platform.machine(), ort_engine.cpu_flags())
    for name in CPU_ENGINES if exact else ("onnxruntime",):
        path = bundle.variant_path(CPU_LAYOUT)
        with load_engine(name, path, bundle.manifest.encoder, precision="int8") as engine:
            assert least_cosine(engine.infer(starter_images), reference) > 0.99
            assert name == "onnxruntime" or ", int8 (" in engine.describe()


def test_a_bf16_graph_is_computed_in_bf16_or_refused(
    load: Callable[..., Engine], graph: Path, tmp_path: Path, images: FloatArray
) -> None:
    openvino = pytest.importorskip("openvino")
    path = rewritten(graph, tmp_path / "bf16.onnx", in_bf16)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(VariantError, match="needs bf16"):
            load("openvino", path, precision="bf16")
        return
    with load("onnxruntime") as reference, load("openvino", path, precision="bf16") as engine:
        assert least_cosine(engine.infer(images), reference.infer(images)) > 0.999
        assert least_cosine(engine.infer(images[:1]), reference.infer(images[:1])) > 0.999
        assert "bf16 (" in engine.describe()


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_any_layout_of_the_input_is_taken_and_results_stay(
    load: Callable[..., Engine], images: FloatArray, name: str
) -> None:
    with load(name) as engine:
        first = engine.infer(images[:1])
        kept = first.copy()
        read_only = images.copy()
        read_only.flags.writeable = False
        backwards = np.ascontiguousarray(images[..., ::-1])[..., ::-1]
        np.testing.assert_allclose(engine.infer(read_only), engine.infer(backwards), atol=1e-6)
        engine.infer(images[1:2])
        np.testing.assert_array_equal(first, kept)


# The truth about what runs


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_describe_tells_library_device_and_threads(tiny_bundle: Path, name: str, threads: int) -> None:
    """Asked of a program of its own: OpenVINO keeps to the cores that it saw when loaded, here a worker's share."""
    library = pytest.importorskip(name)
    code = f"""
        from pathlib import Path
        from edgeclip.bundle import Bundle
        from edgeclip.runtime.engines.base import load_engine

        bundle = Bundle.open({str(tiny_bundle)!r})
        with load_engine({name!r}, bundle.variant_path("fp32"), bundle.manifest.encoder, threads={threads}) as engine:
            print(engine.describe())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
    assert said.startswith(f"{name} {library.__version__.partition('-')[0]}, CPU")
    told = min(threads, len(CORES)) if name == "openvino" else threads
    assert said.endswith(f", {told} thread{'s' if told > 1 else ''}")


# What a CPU may do is capped, so that one machine stands for lesser ones; a cap above what it can do changes nothing.
CAPS = ["DEFAULT", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16"]


@pytest.mark.parametrize("cap", CAPS)
def test_a_precision_is_claimed_only_where_the_cpu_computes_in_it(graph: Path, cap: str) -> None:
    """An FP32 graph loaded as FP16: a CPU that has f16 computes in it, any other in f32; what is said is what runs.

    OpenVINO names the type at the end of each kernel's name, ``brgconv_avx2_f32``; the results' rounding shows it too.
    """
    pytest.importorskip("openvino")
    code = f"""
        import json
        from pathlib import Path
        import numpy as np
        from edgeclip import EncoderSpec, PreprocessSpec
        from edgeclip.runtime.engines.base import load_engine

        spec = PreprocessSpec(height={SIZE}, width={SIZE}, resize_to={SIZE}, mean=(0.5,) * 3, std=(0.5,) * 3)
        encoder = EncoderSpec(preprocess=spec, embedding_dim={WIDTH}, logit_scale=50.0)
        images = np.random.default_rng(0).standard_normal((1, 3, {SIZE}, {SIZE})).astype(np.float32)
        expected = load_engine("onnxruntime", Path({str(graph)!r}), encoder).infer(images)
        engine = load_engine("openvino", Path({str(graph)!r}), encoder, precision="fp16")
        found = engine.infer(images)
        (compiled,) = engine._compiled.values()
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        kernels = [info["primitiveType"].astype(str) for info in infos
                   if info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")]
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        capabilities = engine._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        print(json.dumps([engine.describe(), kernels, error, capabilities]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": cap},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, kernels, error, capabilities = json.loads(done.stdout.splitlines()[-1])
    computed = Counter(kernel.rpartition("_")[2].lower() for kernel in kernels)
    claimed = dict(re.findall(r"(\w+) \((\d+)/2 products\)", said))
    assert claimed == {kind: str(count) for kind, count in computed.items()}
    assert set(computed) <= ({"f32", "f16"} if "FP16" in capabilities else {"f32"})
    assert (error > 1e-5) == ("f16" in computed)


@pytest.mark.parametrize("name", CPU_ENGINES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.graph.node[0].input.__setitem__(0, "pixels"), "got pixels and embedding"),
        (lambda model: model.graph.node[-1].output.__setitem__(0, "features"), "got image and features"),
    ],
    ids=["input", "output"],
)
def test_a_graph_with_other_inputs_or_outputs_is_refused(
    load: Callable[..., Engine],
    graph: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[onnx.ModelProto], None],
    message: str,
) -> None:
    def rename(model: onnx.ModelProto) -> None:
        change(model)
        model.graph.input[0].name = model.graph.node[0].input[0]
        model.graph.output[0].name = model.graph.node[-1].output[0]

    path = rewritten(graph, tmp_path / "other.onnx", rename)
    with pytest.raises(EngineError, match=message) as caught:
        load(name, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_what_is_no_graph_is_refused_in_one_line(load: Callable[..., Engine], tmp_path: Path, name: str) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="cannot load") as caught:
        load(name, path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def _without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ort_engine, openvino_engine):
        monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx2", "avx512f"}))
        monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("_without_vnni")
def test_int8_is_refused_where_openvinos_sums_overflow(load: Callable[..., Engine]) -> None:
    with pytest.raises(VariantError, match="VNNI"):
        load("openvino", precision="int8")


@pytest.mark.usefixtures("_without_vnni")
def test_without_vnni_onnxruntime_computes_int8_in_float_and_says_so(starter_images: FloatArray) -> None:
    """The reference is the graph run node by node, as Q/DQ are defined, with no kernel that fuses them."""
    import onnxruntime

    bundle = Bundle.open("starter")
    path = bundle.variant_path(CPU_LAYOUT)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": starter_images})
    with load_engine("onnxruntime", path, bundle.manifest.encoder, precision="int8") as engine:
        assert engine.describe().endswith("int8 computed in float32 (no VNNI)")
        # What lies on an edge between two levels may fall to either side; sums that overflow gave 0.92.
        assert least_cosine(engine.infer(starter_images), np.asarray(expected)) > 0.999


def test_bf16_is_refused_where_openvino_has_none(load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    real = openvino.Core.get_property

    def without_bf16(core: Any, *args: Any) -> Any:
        value = real(core, *args)
        return [item for item in value if item != "BF16"] if args[-1] == "OPTIMIZATION_CAPABILITIES" else value

    monkeypatch.setattr(openvino.Core, "get_property", without_bf16)
    with pytest.raises(VariantError, match="needs bf16"):
        load("openvino", precision="bf16")


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_close_releases_what_was_loaded(load: Callable[..., Any], images: FloatArray, name: str) -> None:
    engine = load(name)
    engine.infer(images)
    held = [engine._session] if name == "onnxruntime" else list(engine._compiled.values())
    references = [weakref.ref(item) for item in held]
    del held
    engine.close()
    engine.close()
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


# Providers of ONNX Runtime


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("onnxruntime-cuda", "onnxruntime-gpu"),
        ("onnxruntime-tensorrt", "tensorrt"),
        ("onnxruntime-tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_a_provider_that_is_not_there_is_an_error_that_names_its_package(
    load: Callable[..., Engine], name: str, package: str
) -> None:
    if engine_class(name).available():
        pytest.skip(f"{name} is available here")
    with pytest.raises(EngineError, match=rf"expected \w+ExecutionProvider in .*, got .*pip install.*{package}"):
        load(name)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_listed_but_does_not_load_is_an_error(
    load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = onnxruntime.get_available_providers()
    if OrtCudaEngine.provider in listed:
        pytest.skip("CUDA's provider is here")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [OrtCudaEngine.provider, *listed])
    with pytest.raises(EngineError, match="got a session on CPUExecutionProvider because its libraries did not load"):
        load("onnxruntime-cuda")


def test_tensorrts_provider_without_tensorrt_names_what_to_install(
    load: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's GPU build lists the provider always, and raises this where TensorRT is not installed."""

    def raises(*_: object, **__: object) -> None:
        raise RuntimeError("onnxruntime_pybind_state.cc:729 Please install TensorRT libraries as mentioned in the docs")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", raises)
    with pytest.raises(EngineError, match=r"got TensorRT's libraries not found: .*pip install tensorrt, or choose"):
        load("onnxruntime-tensorrt")


def test_products_that_fall_to_the_cpu_are_an_error(graph: Path, encoder: EncoderSpec) -> None:
    class Takes(OrtEngine):
        provider = "AzureExecutionProvider"  # it is in the CPU's package and takes no node of this graph

    if Takes.provider not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes nothing")
    with pytest.raises(EngineError, match=r"got 1 Conv, 1 MatMul on the CPU"):
        Takes(graph, encoder)


def test_a_provider_may_come_as_a_plugin(
    graph: Path, encoder: EncoderSpec, images: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OrtEngine(graph, encoder) as reference:
        expected = reference.infer(images)
    monkeypatch.setattr(onnxruntime, "get_available_providers", list)
    with OrtEngine(graph, encoder) as engine:
        np.testing.assert_array_equal(engine.infer(images), expected)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu_and_says_where_its_nodes_are(load: Callable[..., Engine], images: FloatArray) -> None:
    if not engine_class("onnxruntime-cuda").available():
        pytest.skip("needs onnxruntime-gpu and an NVIDIA GPU")
    with load("onnxruntime") as reference, load("onnxruntime-cuda") as engine:
        np.testing.assert_allclose(engine.infer(images), reference.infer(images), atol=1e-4, rtol=1e-4)
        assert "nodes on CUDAExecutionProvider" in engine.describe()


# Batches of bytes, several under way


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_bytes_encode_as_their_normalised_floats_whatever_is_under_way(
    load: Callable[..., Any], encoder: EncoderSpec, name: str, parallel: int
) -> None:
    rng = np.random.default_rng(1)
    batches = [rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8) for count in (1, 5, 1, 3, 8, 1)]
    with load("onnxruntime") as reference, load(name, parallel=parallel) as engine:
        results = []
        for first in range(0, len(batches), parallel):
            pending = [engine.start(batch) for batch in batches[first : first + parallel]]
            results += [each.result() for each in pending]
        for batch, (embeddings, took_ms) in zip(batches, results, strict=True):
            exact = (batch / 255.0 - np.array(encoder.preprocess.mean)) / np.array(encoder.preprocess.std)
            expected = reference.infer(exact.transpose(0, 3, 1, 2).astype(np.float32))
            np.testing.assert_allclose(embeddings, expected, atol=1e-4, rtol=1e-4)
            assert took_ms > 0


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("shape", "dtype"), [((1, 3, SIZE, SIZE), np.uint8), ((1, SIZE, SIZE, 3), np.float32)])
def test_what_is_not_resized_bytes_is_refused(
    load: Callable[..., Any], name: str, shape: tuple[int, ...], dtype: type
) -> None:
    with load(name) as engine, pytest.raises(EngineError, match="expected uint8"):
        engine.start(np.zeros(shape, dtype))


def test_a_signal_finds_its_handler_after_engines_came_and_went(graph: Path) -> None:
    """The first of two OpenVINO cores to go would leave the thread's signal stack freed: Ctrl-C ended the process."""
    pytest.importorskip("openvino")
    code = f"""
        import faulthandler, gc, signal
        from pathlib import Path
        from edgeclip import EncoderSpec, PreprocessSpec
        from edgeclip.runtime.engines.base import load_engine

        faulthandler.enable()
        signal.signal(signal.SIGINT, lambda *_: print("handled"))
        spec = PreprocessSpec(height={SIZE}, width={SIZE}, resize_to={SIZE}, mean=(0.5,) * 3, std=(0.5,) * 3)
        encoder = EncoderSpec(preprocess=spec, embedding_dim={WIDTH}, logit_scale=50.0)
        engines = [load_engine("openvino", Path({str(graph)!r}), encoder) for _ in range(2)]
        print(len([engine.describe() for engine in engines]), "compiled")
        while engines:
            engines.pop(0).close()
            gc.collect()
        signal.raise_signal(signal.SIGINT)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2 compiled\nhandled\n"), done.stderr


def test_a_stream_compiles_once_and_loads_the_next_time(
    load: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    from edgeclip.runtime.engines.openvino import OpenVinoEngine

    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    frames = np.random.default_rng(2).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    with load("openvino") as engine:
        first = [engine.start(frames).result()[0], engine.start(frames[:1]).result()[0]]
    monkeypatch.setattr(OpenVinoEngine, "_compile", lambda *_: pytest.fail("it compiled again"))
    with load("openvino") as engine:
        second = [engine.start(frames).result()[0], engine.start(frames[:1]).result()[0]]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


# OpenVINO's blobs


@pytest.fixture
def blob(graph: Path, encoder: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny graph's blob, in a cache of this test."""
    pytest.importorskip("openvino")
    from edgeclip.runtime.engines.openvino import compile_variant

    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    path, reused, _ = compile_variant("openvino", graph, encoder, "fp32", BuildOptions())
    assert not reused
    return path


def test_a_blob_is_loaded_instead_of_compiling(
    load: Callable[..., Any], blob: Path, images: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeclip.runtime.engines.openvino import OpenVinoEngine, compile_variant

    written = blob.stat().st_mtime_ns
    with load("onnxruntime") as reference, load("openvino") as engine:
        assert engine.blob == blob
        np.testing.assert_allclose(engine.infer(images), reference.infer(images), atol=1e-4, rtol=1e-4)
        monkeypatch.setattr(OpenVinoEngine, "_compile", lambda *_: pytest.fail("it compiled again"))
        with load("openvino", threads=1) as again:
            np.testing.assert_allclose(again.infer(images[:1]), reference.infer(images[:1]), atol=1e-4, rtol=1e-4)
            assert again.describe().endswith(", 1 thread")
        assert compile_variant("openvino", engine.path, engine.encoder, "fp32", BuildOptions()) == (blob, True, ())
    assert blob.stat().st_mtime_ns == written


def test_an_altered_blob_is_not_used(load: Callable[..., Any], blob: Path, images: FloatArray) -> None:
    damaged = bytearray(blob.read_bytes())
    damaged[-64:] = bytes(64)
    blob.write_bytes(damaged)
    with load("onnxruntime") as reference, load("openvino") as engine:
        assert engine.blob is None
        np.testing.assert_allclose(engine.infer(images[:1]), reference.infer(images[:1]), atol=1e-4, rtol=1e-4)
    assert not blob.exists()


def test_a_blob_that_openvino_does_not_take_is_compiled_again(
    load: Callable[..., Any], blob: Path, images: FloatArray
) -> None:
    with load("openvino") as engine:
        key = engine.key
    plan_cache.store(key, b"of another openvino", build_s=0.0)
    with load("openvino") as engine:
        assert engine.blob is None
        assert engine.infer(images[:1]).shape == (1, WIDTH)
    assert plan_cache.find(key) is None


def test_a_blob_belongs_to_one_graph_and_precision(
    load: Callable[..., Any], blob: Path, graph: Path, tmp_path: Path
) -> None:
    def scale(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))

    with load("openvino", rewritten(graph, tmp_path / graph.name, scale)) as engine:
        assert engine.blob is None
