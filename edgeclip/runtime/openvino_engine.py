"""An ONNX graph and a batch in, embeddings out: OpenVINO on an Intel, AMD or Arm CPU, or on an Intel GPU.

What decides speed and exactness was measured on ViT-B/32 and on the starter (2 cores with AVX512-BF16 and VNNI):

- Numeric types live in the graph, so the hint is f32 on a CPU also for bf16 and INT8 graphs: their typed products keep
  their type. Without the hint OpenVINO takes bf16 for everything on such CPUs. With it the rest of a bf16 graph is in
  FP32, which cost no time and was closer to the FP32 variant (least cosine 0.99999 against 0.99995); an INT8 graph
  likewise (mean cosine 0.99983 against 0.99979).
- Weights stored as INT8 for FP32 products make OpenVINO round activations too, unless dynamic quantization is off.
- A graph compiled for one frame ran 1.5 times as fast in FP32 as one with a free N; from 8 frames on there was no
  difference. So one frame has a compiled model of its own, and all other batches share one with a free N.
- Threads are not pinned: two pinned processes with one thread each share one core.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edgeclip.devices.probe import cpu_flags
from edgeclip.errors import EngineError, VariantError
from edgeclip.extras import require
from edgeclip.runtime import plan_cache
from edgeclip.runtime.engine import CPU_LAYOUT, Engine, FloatArray, usable_cores
from edgeclip.runtime.ort_engine import refuse_inexact_int8
from edgeclip.spec import EncoderSpec, Precision

Properties = dict[str, str | int | bool]

_PRODUCTS = {"Convolution", "FullyConnected", "Gemm", "MatMul"}
_INTEL = "0x8086"


class OpenVinoEngine(Engine):
    """An ONNX graph on OpenVINO's CPU plugin; a blob that :func:`build_blob` made is loaded instead of compiling.

    Attributes:
        device: OpenVINO's name of it.
        types: precision of a variant → what is computed in where the graph does not say otherwise.
        blob: the blob that was loaded, or None if the graph was compiled here.
    """

    name = "openvino"
    device: ClassVar[str] = "CPU"
    types: ClassVar[dict[str, str]] = {"fp32": "f32", "fp16": "f16", "bf16": "f32", "int8": "f32"}

    def __init__(
        self, path: Path, encoder: EncoderSpec, *, precision: Precision = "fp32", threads: int | None = None
    ) -> None:
        super().__init__(path, encoder, precision=precision, threads=threads)
        self._ov = require("openvino", purpose=f"run the engine {self.name}")
        self._core: Any = self._ov.Core()
        devices = [name.partition(".")[0] for name in self._core.available_devices]
        if self.device not in devices:
            raise EngineError(
                f"expected a {self.device} that OpenVINO can use, got {', '.join(devices)}: install its driver, or "
                "choose another --engine"
            )
        self._properties = self._choose_properties()
        self.key = self._plan_key()
        self.blob = plan_cache.find(self.key)
        one = self._load(self.blob) if self.blob else self._compile(1)
        self._compiled: dict[bool, Any] = {True: one}  # by whether it is the one for a single frame
        self._requests: dict[bool, Any] = {True: one.create_infer_request()}

    @classmethod
    def available(cls) -> bool:
        """Whether OpenVINO is installed."""
        return importlib.util.find_spec("openvino") is not None

    def describe(self) -> str:
        """``openvino 2026.4.1, CPU, int8 (50/50 products), 2 threads``: the types of Conv, MatMul, … as compiled."""
        compiled = self._compiled[True]
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
        """Release the compiled models."""
        self._requests.clear()
        self._compiled.clear()
        self._core = None

    def export_blob(self) -> bytes:
        """The model compiled for one frame, as :func:`build_blob` keeps it."""
        exported = self._compiled[True].export_model()
        return exported if isinstance(exported, bytes) else bytes(exported.getvalue())

    def _infer(self, images: FloatArray) -> FloatArray:
        single = len(images) == 1
        if single not in self._requests:
            self._compiled[single] = self._compile(-1)
            self._requests[single] = self._compiled[single].create_infer_request()
        request = self._requests[single]
        # OpenVINO shares an array only if it is contiguous and writable; np.require copies others.
        shared = np.require(images, requirements=["C", "W"])
        try:
            request.set_input_tensor(self._ov.Tensor(shared, shared_memory=True))
            request.infer()
        except RuntimeError as error:
            raise EngineError(f"{self.path.name} failed on {self.name} ({_last_line(error)})") from error
        # A copy: the request writes its next result to the same memory.
        return np.array(request.get_output_tensor().data, np.float32)

    def _choose_properties(self) -> Properties:
        capabilities = self._core.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        if self.precision == "bf16" and "BF16" not in capabilities:
            raise VariantError(
                f"{self.path.name} needs bf16, but OpenVINO computes only in {', '.join(capabilities)} on "
                f"{self._device_name()}: use --variant fp32"
            )
        kind = self.types[self.precision]
        return {
            "INFERENCE_PRECISION_HINT": kind if kind != "f16" or "FP16" in capabilities else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            **self._device_properties(),
        }

    def _device_properties(self) -> Properties:
        refuse_inexact_int8(self.path, self.precision)
        return {"INFERENCE_NUM_THREADS": self.threads or usable_cores(), "ENABLE_CPU_PINNING": False}

    def _device_name(self) -> str:
        return self.device

    def _plan_key(self) -> plan_cache.PlanKey:
        instructions = sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx")))
        return plan_cache.PlanKey(
            engine=self.name,
            library_version=self._ov.__version__,
            variant_sha256=plan_cache.graph_sha256(self.path),
            device=self._core.get_property(self.device, "FULL_DEVICE_NAME"),
            options={
                "batch": 1,
                "precision_hint": self._properties["INFERENCE_PRECISION_HINT"],
                # One name stands for several CPUs on rented machines.
                "instructions": " ".join(instructions) if self.device == "CPU" else None,
            },
        )

    def _load(self, blob: Path) -> Any:
        try:
            return self._core.import_model(blob.read_bytes(), self.device, self._properties)
        except RuntimeError:  # a blob is a cache: what OpenVINO does not take is compiled again
            plan_cache.remove(self.key)
            self.blob = None
            return self._compile(1)

    def _compile(self, batch: int) -> Any:
        """Compile for ``batch`` frames; -1 leaves N free."""
        spec = self.encoder.preprocess
        try:
            model = self._core.read_model(self.path)
            self._check_names(_names(model.inputs, "image"), _names(model.outputs, "embedding"))
            model.reshape({"image": [batch, 3, spec.height, spec.width]})
            return self._core.compile_model(model, self.device, self._properties)
        except RuntimeError as error:
            raise EngineError(
                f"openvino {self._ov.__version__} cannot load {self.path} for "
                f"{'one frame' if batch == 1 else 'several frames'} ({_last_line(error)})"
            ) from error


class OpenVinoGpuEngine(OpenVinoEngine):
    """An ONNX graph on OpenVINO's plugin for Intel's GPUs: integrated, Arc and Flex."""

    name = "openvino-gpu"
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


def build_blob(path: Path, encoder: EncoderSpec, *, precision: Precision = "fp32", engine: str = "openvino") -> Path:
    """Compile a variant for one frame and keep it for this device, so that loading it reads no ONNX.

    Larger batches are compiled when they first come.

    Args:
        path: the checked ONNX graph.
        encoder: what it takes and returns.
        precision: of the variant.
        engine: ``"openvino"`` or ``"openvino-gpu"``.

    Returns:
        The blob's path in the cache (:mod:`edgeclip.runtime.plan_cache`).

    Raises:
        EngineError, VariantError, MissingExtraError: as the engine.
    """
    start = time.perf_counter()
    kind = OpenVinoGpuEngine if engine == OpenVinoGpuEngine.name else OpenVinoEngine
    with closing(kind(path, encoder, precision=precision)) as loaded:
        if loaded.blob:
            return loaded.blob
        return plan_cache.store(loaded.key, loaded.export_blob(), build_s=time.perf_counter() - start)


def _names(ports: list[Any], expected: str) -> list[str]:
    """One name for each port, ``expected`` if it is among its names."""
    return [expected if expected in port.get_names() else min(port.get_names(), default="unnamed") for port in ports]


def _last_line(error: Exception) -> str:
    """OpenVINO's reason: the lines before it are places in its source."""
    return str(error).strip().rpartition("\n")[2]
