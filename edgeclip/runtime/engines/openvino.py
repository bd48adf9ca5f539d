"""An ONNX graph and a batch in, embeddings out: OpenVINO on an Intel, AMD or Arm CPU, or on Intel's GPUs.

What it compiled is kept in this device's cache: by ``edgeclip build`` for one frame at a time, by a stream for its own
batches. What decides speed and exactness on a CPU was measured on ViT-B/32 and on the starter (2 cores with AVX512-BF16
and VNNI):

- Numeric types live in the graph, so the hint is f32 on a CPU also for bf16 and INT8 graphs: their typed products keep
  their type. Without the hint OpenVINO takes bf16 for everything on such CPUs. With it the rest of a bf16 graph is in
  FP32, which cost no time and was closer to the FP32 variant (least cosine 0.99999 against 0.99995); an INT8 graph
  likewise (mean cosine 0.99983 against 0.99979).
- Weights stored as INT8 for FP32 products make OpenVINO round activations too, unless dynamic quantization is off.
- A graph compiled for one frame ran 1.5 times as fast in FP32 as one with a free N; from 8 frames on there was no
  difference. So one frame has a compiled model of its own, and all other batches share one with a free N.
- Two streams of one thread each got a third more frames through than one of two threads (INT8, one frame at a time),
  and batches of 8 a fifth more again; a frame alone takes half as long again that way.
- Threads are not pinned: two pinned processes with one thread each share one core.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import platform
import time
from collections import Counter, deque
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from edgeclip.devices.machine.cpu import adds_int8_exactly, cpu_flags, usable_cores
from edgeclip.errors import EngineError, InputError, VariantError
from edgeclip.extras import require
from edgeclip.runtime.engines import plan_cache
from edgeclip.runtime.engines.base import CPU_LAYOUT, ByteArray, Engine, FloatArray, Pending
from edgeclip.spec import EncoderSpec, Precision

if TYPE_CHECKING:
    from edgeclip.runtime.engines.tensorrt_api import Progress
    from edgeclip.runtime.engines.tensorrt_options import BuildOptions

Properties = dict[str, str | int | bool]

_log = logging.getLogger("edgeclip")

_PRODUCTS = {"Convolution", "FullyConnected", "Gemm", "MatMul"}
_FLOATS, _BYTES = "float32", "uint8"
_INTEL = "0x8086"


@functools.cache
def _core() -> Any:
    """The one core of this process, which stays.

    A core's CPU plugin gives the thread an alternate signal stack of its own and, when it goes, puts the one before
    back. Of two cores, if the first goes first, that one is freed memory: the next signal with a Python handler,
    Ctrl-C say, then ends the process (OpenVINO 2026.4).
    """
    return require("openvino", purpose="run the engine openvino").Core()


class OpenVinoEngine(Engine):
    """An ONNX graph on OpenVINO's CPU plugin; a blob that ``edgeclip build`` made is loaded instead of compiling.

    Attributes:
        device: OpenVINO's name of it.
        types: precision of a variant → what is computed in where the graph does not say otherwise.
        blob: the blob that was loaded, or None if the graph was compiled here.
    """

    name = "openvino"
    on_cpu = True
    device: ClassVar[str] = "CPU"
    types: ClassVar[dict[str, str]] = {"fp32": "f32", "fp16": "f16", "bf16": "f32", "int8": "f32"}

    def _load(self) -> None:
        self._ov = require("openvino", purpose=f"run the engine {self.name}")
        self._core = _core()
        self._graph_sha256 = plan_cache.graph_sha256(self.path)
        devices = [name.partition(".")[0] for name in self._core.available_devices]
        if self.device not in devices:
            raise EngineError(
                f"expected a {self.device} that OpenVINO can use, got {', '.join(devices)}: install its driver, or "
                "choose another `engine`"
            )
        self._properties = self._choose_properties()
        self.key = self._plan_key(_FLOATS, single=True)
        self.blob = plan_cache.find(self.key)
        # By numeric type of the input, and whether it is the one for a single frame.
        self._compiled: dict[tuple[str, bool], Any] = {}
        self._idle: dict[tuple[str, bool], deque[Any]] = {}
        if self.blob:
            self._get(_FLOATS, single=True)
        elif not plan_cache.records(self._stream_name, self._graph_sha256):
            self._read()  # what is no encoder is refused here; compiling waits until it is known what for

    @classmethod
    def best_parallel(cls, precision: Precision) -> int:
        """One for all but INT8: with several streams OpenVINO 2026.4 gets FP32 convolutions wrong."""
        return super().best_parallel(precision) if precision == "int8" else 1

    @classmethod
    def available(cls) -> bool:
        """Whether OpenVINO is installed."""
        return importlib.util.find_spec("openvino") is not None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The builds of OpenVINO and of the device's plug-in, as both name them."""
        openvino = require("openvino", purpose=f"run the engine {cls.name}")
        found = {**super().versions(), "openvino as loaded": str(openvino.get_version())}
        try:
            plugins = _core().get_versions(cls.device)
        except RuntimeError:
            return found  # there is no such device here, which loading a graph says
        return found | {f"{name} plug-in": str(version.build_number) for name, version in plugins.items()}

    def describe(self) -> str:
        """``openvino 2026.4.1, CPU, int8 (50/50 products), 2 threads``: the types of Conv, MatMul, … as compiled."""
        compiled = next(iter(self._compiled.values()), None) or self._get(_FLOATS, single=True)
        types = Counter[str]()
        for node in compiled.get_runtime_model().get_ops():
            if node.get_rt_info()["layerType"].astype(str) in _PRODUCTS:
                # Of what goes in: runtimePrecision says i8 also where only the weights are stored as such.
                kind = node.input(0).get_element_type().get_type_name()
                types["int8" if kind in {"i8", "u8"} else kind] += 1
        said = " and ".join(f"{kind} ({count}/{types.total()} products)" for kind, count in types.most_common())
        parts = [f"openvino {self._ov.__version__.partition('-')[0]}", self._device_name(), said or "types unknown"]
        if self.device == "CPU":
            threads = compiled.get_property("INFERENCE_NUM_THREADS")
            parts.append(f"{threads} thread{'s' if threads > 1 else ''}")
        return ", ".join(parts)

    def close(self) -> None:
        """Release the compiled models; what is under way is waited for."""
        super().close()
        self._idle.clear()
        self._compiled.clear()

    def export_blob(self) -> bytes:
        """The model compiled for one frame, as ``compile_variant`` keeps it."""
        return _exported(self._get(_FLOATS, single=True))

    def _infer(self, images: FloatArray) -> FloatArray:
        # OpenVINO shares an array only if it is contiguous and writable; np.require copies others.
        return self._begin(_FLOATS, np.require(images, requirements=["C", "W"])).result()[0]

    def prepare(self, batch: int) -> None:
        """Compile, or load what was compiled before."""
        self._get(_BYTES, single=self._takes_single(_BYTES, batch))

    def _start(self, frames: ByteArray) -> Pending:
        return self._begin(_BYTES, np.require(frames, requirements=["C", "W"]))

    def _takes_single(self, kind: str, count: int) -> bool:
        # Where several batches are under way, a lone frame is a rest, not worth a compiled model of its own.
        return count == 1 and (kind == _FLOATS or self.parallel == 1)

    def _begin(self, kind: str, batch: Any) -> _Request:
        single = self._takes_single(kind, len(batch))
        request = self._request(kind, single=single)
        try:
            request.set_input_tensor(self._ov.Tensor(batch, shared_memory=True))
            request.start_async()
        except RuntimeError as error:
            raise self._failure(error) from error
        return _Request(self, request, batch, self._idle[kind, single])

    def _request(self, kind: str, *, single: bool) -> Any:
        """A request that is not under way."""
        compiled, idle = self._get(kind, single=single), self._idle[kind, single]
        return idle.pop() if idle else compiled.create_infer_request()

    def _get(self, kind: str, *, single: bool) -> Any:
        """The model for this kind of batch, loaded or compiled when it is first needed."""
        if (kind, single) not in self._compiled:
            key = self._plan_key(kind, single=single)
            built = kind == _FLOATS and single  # what `edgeclip build` makes; looked for and checked already
            blob = self.blob if built else plan_cache.find(key)
            compiled = self._imported(key, blob) if blob else None
            if compiled is None:
                self.blob = None if built else self.blob
                start = time.perf_counter()
                compiled = self._compile(kind, 1 if single else -1)
                if kind == _BYTES:  # a stream's own; the others are kept when somebody asks for it by `edgeclip build`
                    _keep(key, compiled, time.perf_counter() - start)
            self._compiled[kind, single], self._idle[kind, single] = compiled, deque()
        return self._compiled[kind, single]

    def _failure(self, error: Exception) -> EngineError:
        return EngineError(f"{self.path.name} failed on {self.name} ({_last_line(error)})")

    def _choose_properties(self) -> Properties:
        capabilities = self._core.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        if self.precision == "bf16" and "BF16" not in capabilities:
            raise VariantError(
                f"{self.path.name} needs bf16, but OpenVINO computes only in {', '.join(capabilities)} on "
                f"{self._device_name()}: use `variant` fp32"
            )
        kind = self.types[self.precision]
        return {
            "INFERENCE_PRECISION_HINT": kind if kind != "f16" or "FP16" in capabilities else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "PERFORMANCE_HINT": "LATENCY" if self.parallel == 1 else "THROUGHPUT",
            "NUM_STREAMS": self.parallel,
            **self._device_properties(),
        }

    def _device_properties(self) -> Properties:
        _refuse_inexact_int8(self.path, self.precision)
        threads = self.threads * self.parallel if self.threads else usable_cores()
        return {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}

    def _device_name(self) -> str:
        return self.device

    @property
    def _stream_name(self) -> str:
        return f"{self.name} stream"

    def _plan_key(self, kind: str, *, single: bool) -> plan_cache.PlanKey:
        instructions = sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx")))
        return plan_cache.PlanKey(
            # A name of their own: what `edgeclip build` made, and was proved, does not change when a stream is run.
            engine=self.name if kind == _FLOATS else self._stream_name,
            library_version=self._ov.__version__,
            variant_sha256=self._graph_sha256,
            device=self._core.get_property(self.device, "FULL_DEVICE_NAME"),
            options={
                "batch": 1 if single else None,
                "input": kind,
                "normalisation": "" if kind == _FLOATS else msgspec.json.encode(self.encoder.preprocess).decode(),
                "precision_hint": self._properties["INFERENCE_PRECISION_HINT"],
                "streams": 1 if kind == _FLOATS else self.parallel,
                # One name stands for several CPUs on rented machines.
                "instructions": " ".join(instructions) if self.device == "CPU" else None,
            },
        )

    def _imported(self, key: plan_cache.PlanKey, blob: Path) -> Any:
        """The compiled model that the cache has under ``key``, or None if OpenVINO does not take it."""
        try:
            return self._core.import_model(blob.read_bytes(), self.device, self._properties)
        except RuntimeError:  # a blob is a cache: what OpenVINO does not take is compiled again
            plan_cache.remove(key)
            return None

    def _compile(self, kind: str, batch: int) -> Any:
        """Compile for ``batch`` frames (-1 leaves N free): normalised floats, or bytes that the graph normalises."""
        spec = self.encoder.preprocess
        model = self._read()
        try:
            model.reshape({"image": [batch, 3, spec.height, spec.width]})
            if kind == _BYTES:
                model = self._taking_bytes(model)
            return self._core.compile_model(model, self.device, self._properties)
        except RuntimeError as error:
            count = "one frame" if batch == 1 else "several frames"
            raise self._unloadable(error, f" for {count}") from error

    def _read(self) -> Any:
        """The graph, whose inputs and outputs are an image encoder's."""
        try:
            model = self._core.read_model(self.path)
        except RuntimeError as error:
            raise self._unloadable(error) from error
        self._check_names(_names(model.inputs, "image"), _names(model.outputs, "embedding"))
        return model

    def _unloadable(self, error: Exception, purpose: str = "") -> EngineError:
        version = self._ov.__version__
        return EngineError(f"openvino {version} cannot load {self.path}{purpose} ({_last_line(error)})")

    def _taking_bytes(self, model: Any) -> Any:
        """The graph with normalisation before it: (N, H, W, 3) uint8 in."""
        spec, preprocess = self.encoder.preprocess, self._ov.preprocess
        processor = preprocess.PrePostProcessor(model)
        processor.input().tensor().set_element_type(self._ov.Type.u8).set_layout(self._ov.Layout("NHWC"))
        processor.input().model().set_layout(self._ov.Layout("NCHW"))
        steps = processor.input().preprocess().convert_element_type(self._ov.Type.f32)
        steps.mean([255.0 * mean for mean in spec.mean]).scale([255.0 * std for std in spec.std])
        return processor.build()


class OpenVinoGpuEngine(OpenVinoEngine):
    """An ONNX graph on OpenVINO's plugin for Intel's GPUs: integrated, Arc and Flex."""

    name = "openvino-gpu"
    on_cpu = False
    kinds = frozenset({"fp32", "fp16", "int8", CPU_LAYOUT})
    device = "GPU"
    types: ClassVar[dict[str, str]] = {"fp32": "f32", "fp16": "f16", "bf16": "f32", "int8": "f16"}

    @classmethod
    def available(cls) -> bool:
        """Whether OpenVINO is installed and this machine shows a GPU of Intel's."""
        vendors = Path("/sys/class/drm").glob("renderD*/device/vendor")
        return super().available() and any(vendor.read_text().strip() == _INTEL for vendor in vendors)

    def _device_properties(self) -> Properties:
        return {}

    def _device_name(self) -> str:
        return str(self._core.get_property(self.device, "FULL_DEVICE_NAME"))


def _refuse_inexact_int8(path: Path, precision: Precision) -> None:
    """Refuse an INT8 graph on an x86 CPU that would add its products in 16 bits.

    Raises:
        VariantError: this CPU has no VNNI.
    """
    if precision == "int8" and not adds_int8_exactly(platform.machine(), cpu_flags()):
        raise VariantError(
            f"{path.name} needs a CPU with VNNI: without it x86 adds INT8 products in 16 bits, which overflow "
            "silently; use `variant` fp32, or `engine` onnxruntime"
        )


def compile_variant(
    engine: str,
    path: Path,
    encoder: EncoderSpec,
    precision: Precision,
    options: BuildOptions,
    progress: Progress | None = None,  # noqa: ARG001 - compiling takes a second
) -> tuple[Path, bool, tuple[str, ...]]:
    """``Builder`` of OpenVINO: a blob for one frame, so that loading it reads no ONNX.

    Larger batches are compiled when they first come.

    Raises:
        InputError: options of a TensorRT plan.
        EngineError, VariantError, MissingExtraError: as the engine.
    """
    if given := [field.name for field in fields(options) if getattr(options, field.name) != field.default]:
        raise InputError(f"{', '.join(given)}: expected no options of a TensorRT plan with `engine` {engine}")
    start = time.perf_counter()
    kind = OpenVinoGpuEngine if engine == OpenVinoGpuEngine.name else OpenVinoEngine
    with closing(kind(path, encoder, precision=precision)) as loaded:
        if loaded.blob:
            return loaded.blob, True, ()
        blob = plan_cache.store(loaded.key, loaded.export_blob(), build_s=time.perf_counter() - start)
        return blob, False, ()


class _Request:
    """An inference under way; its request goes back to the idle ones when the result has been taken."""

    def __init__(self, engine: OpenVinoEngine, request: Any, batch: Any, idle: deque[Any]) -> None:
        self._engine = engine
        self._request = request
        self._batch = batch  # OpenVINO reads this memory
        self._idle = idle

    def result(self) -> tuple[FloatArray, float]:
        engine, request = self._engine, self._request
        try:
            request.wait()
        except RuntimeError as error:
            raise engine._failure(error) from error
        # A copy: the request writes its next result to the same memory.
        embeddings = np.array(request.get_output_tensor().data, np.float32)
        latency_ms = float(request.latency)
        self._idle.append(request)
        return engine._checked(embeddings, len(self._batch)), latency_ms


def _keep(key: plan_cache.PlanKey, compiled: Any, build_s: float) -> None:
    """Keep what was compiled for the next start, which is then a second sooner."""
    try:
        plan_cache.store(key, _exported(compiled), build_s=build_s)
    except (InputError, OSError) as error:  # a full disk must not keep a camera from being labelled
        _log.info("not kept for the next start: %s", error)


def _exported(compiled: Any) -> bytes:
    exported = compiled.export_model()
    return exported if isinstance(exported, bytes) else bytes(exported.getvalue())


def _names(ports: list[Any], expected: str) -> list[str]:
    """One name for each port, ``expected`` if it is among its names."""
    return [expected if expected in port.get_names() else min(port.get_names(), default="unnamed") for port in ports]


def _last_line(error: Exception) -> str:
    """OpenVINO's reason: the lines before it are places in its source."""
    return str(error).strip().rpartition("\n")[2]
