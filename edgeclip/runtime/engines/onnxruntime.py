"""An ONNX graph and a batch in, embeddings out: ONNX Runtime on the provider that was asked for, or an error.

ONNX Runtime by itself moves to the CPU when a provider is missing or does not load, with a warning at most. Here that
is an error. Inside a session a GPU provider may leave small operators on shapes to the CPU, where they are faster; the
option ``session.disable_cpu_ep_fallback`` would refuse those graphs too, so it is not set. Instead the placement of the
nodes is read back: products (Conv, MatMul, …) on the CPU are an error, the rest is said by ``describe``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import platform
import sys
from collections import Counter
from typing import Any, ClassVar

import numpy as np

from edgeclip.devices.machine.cpu import adds_int8_exactly, cpu_flags, usable_cores
from edgeclip.devices.machine.cuda import driver_loads
from edgeclip.errors import EngineError
from edgeclip.extras import require
from edgeclip.runtime.engines.base import CPU_LAYOUT, Engine, FloatArray, module_stamp

_CPU = "CPUExecutionProvider"
_PRODUCTS = {"Attention", "Conv", "ConvInteger", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"}
_PRODUCTS |= {"MatMulInteger", "MultiHeadAttention", "QLinearConv", "QLinearMatMul"}


def _end_past_its_handlers() -> None:
    """Let a forked process end: what ONNX Runtime does at an exit waits for a thread that only the parent has.

    glibc calls what is registered last first, here the end of the process with the status that it was to have. By then
    Python has done all that it does at its own end.
    """
    libc = ctypes.CDLL(None)
    if "onnxruntime" in sys.modules and hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)


os.register_at_fork(after_in_child=_end_past_its_handlers)


class OrtEngine(Engine):
    """An ONNX graph on ONNX Runtime's CPU provider; subclasses name another.

    Attributes:
        provider: ONNX Runtime's name of it.
        install: what brings it, to complete "… or choose another --engine".
        beneath: providers that take, in this order, what ``provider`` leaves.
    """

    name = "onnxruntime"
    kinds = frozenset({"fp32", CPU_LAYOUT})  # it has few CPU kernels for the other types and unpacks at every run
    on_cpu = True
    concurrent = True  # a session may be run by several threads
    provider: ClassVar[str] = _CPU
    install: ClassVar[str] = "run pip install onnxruntime"
    beneath: ClassVar[tuple[str, ...]] = ()

    def _load(self) -> None:
        ort = require("onnxruntime", purpose="run ONNX encoders", extra="all")
        self._version: str = ort.__version__
        self._cpu_threads = self.threads or max(1, usable_cores() // self.parallel)
        try:
            self._session: Any = self._open(ort, self._options(ort))
        except EngineError:
            raise
        except Exception as error:  # the binding raises a dozen unrelated types
            raise EngineError(f"onnxruntime {self._version} cannot load {self.path} ({_first_line(error)})") from error
        self._check_names(
            [node.name for node in self._session.get_inputs()], [node.name for node in self._session.get_outputs()]
        )
        self._placed = self._placement()
        self._check_provider()

    @classmethod
    def available(cls) -> bool:
        """Whether this build of ONNX Runtime has the provider and, for a GPU's, this machine has NVIDIA's driver."""
        if importlib.util.find_spec("onnxruntime") is None:
            return False
        if cls.provider == _CPU:
            return True
        import onnxruntime as ort

        return cls._installed(ort) and driver_loads()

    @classmethod
    def versions(cls) -> dict[str, str]:
        """As the loaded library names itself and its build, beside the packages that providers bring."""
        ort = require("onnxruntime", purpose="run ONNX encoders", extra="all")
        build = {"onnxruntime build": ort.get_build_info()} if hasattr(ort, "get_build_info") else {}
        return {**super().versions(), "onnxruntime as loaded": str(ort.__version__), **build}

    def describe(self) -> str:
        """``onnxruntime 1.32.0, CPUExecutionProvider, 2 threads``; for another provider, where the nodes went."""
        said = f"onnxruntime {self._version}, {self.provider}"
        if self.provider == _CPU:
            threads = f"{said}, {self._cpu_threads} thread{'s' if self._cpu_threads > 1 else ''}"
            return f"{threads}, int8 computed in float32 (no VNNI)" if self._int8_in_float() else threads
        counts = [f"{nodes.total()} nodes on {provider}" for provider, nodes in self._placed.items()]
        return ", ".join([said, *counts]) if counts else f"{said}, placement of nodes unknown"

    def close(self) -> None:
        """Release the session."""
        super().close()
        self._session = None

    def _infer(self, images: FloatArray) -> FloatArray:
        try:
            (embeddings,) = self._session.run(["embedding"], {"image": images})
        except Exception as error:
            raise EngineError(f"{self.path.name} failed on {self.name} ({_first_line(error)})") from error
        return np.asarray(embeddings, np.float32)

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; what fails is raised, not printed
        options.intra_op_num_threads = self._cpu_threads
        options.inter_op_num_threads = 1
        if self.precision != "int8" or self._int8_in_float():
            # Weights that are stored as INT8 but computed with in floating point are unpacked once, at load; and INT8
            # products that this CPU would add in 16 bits are rounded as Q/DQ say and computed in float32.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self.provider != _CPU:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def _int8_in_float(self) -> bool:
        """Whether an INT8 graph is computed in float32, since this CPU would add its products wrongly."""
        on_cpu = self.provider == _CPU and self.precision == "int8"
        return on_cpu and not adds_int8_exactly(platform.machine(), cpu_flags())

    @classmethod
    def _installed(cls, ort: Any) -> bool:
        """Whether the provider is built in or comes as an installed plugin."""
        return cls.provider in ort.get_available_providers()

    def _provider_options(self) -> dict[str, str]:
        return {}

    def _open(self, ort: Any, options: Any) -> Any:
        """A session on the provider: built in, or a plugin that offers devices."""
        available = ort.get_available_providers()
        if self.provider in available:
            beneath = [name for name in (*self.beneath, _CPU) if name in available and name != self.provider]
            providers = [(self.provider, self._provider_options()), *beneath]
            return ort.InferenceSession(str(self.path), options, providers=providers, enable_fallback=0)
        devices = self._devices(ort)
        if not devices:
            raise self._absent(f"the providers {', '.join(available)}")
        options.add_provider_for_devices(devices[:1], self._provider_options())
        return ort.InferenceSession(str(self.path), options, enable_fallback=0)

    def _devices(self, ort: Any) -> list[Any]:
        """Devices of the provider's plugin; plugins came with ONNX Runtime 1.23."""
        return [device for device in getattr(ort, "get_ep_devices", list)() if device.ep_name == self.provider]

    def _absent(self, got: str) -> EngineError:
        return EngineError(
            f"expected {self.provider} in onnxruntime {self._version}, got {got}: {self.install}, or choose another "
            "`engine`"
        )

    def _placement(self) -> dict[str, Counter[str]]:
        """Provider → operator type → number of nodes; empty for the CPU and before ONNX Runtime 1.24."""
        if self.provider == _CPU or not hasattr(self._session, "get_provider_graph_assignment_info"):
            return {}
        placed: dict[str, Counter[str]] = {}
        for part in self._session.get_provider_graph_assignment_info():
            placed.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
        return placed

    def _check_provider(self) -> None:
        """Refuse a session that runs elsewhere than it was asked to."""
        loaded = self._session.get_providers()
        if loaded[0] != self.provider:
            raise self._absent(f"a session on {', '.join(loaded)} because its libraries did not load")
        on_cpu = {op: n for op, n in self._placed.get(_CPU, Counter()).items() if op in _PRODUCTS}
        if self.provider != _CPU and on_cpu:
            raise EngineError(
                f"expected the products of {self.path.name} on {self.provider}, got "
                f"{', '.join(f'{n} {op}' for op, n in sorted(on_cpu.items()))} on the CPU: use another `variant`"
            )


class OrtCudaEngine(OrtEngine):
    """An ONNX graph on ONNX Runtime's CUDA provider. It has no INT8 kernels that take Q/DQ."""

    name = "onnxruntime-cuda"
    on_cpu = False
    kinds = frozenset({"fp32", "fp16"})
    provider = "CUDAExecutionProvider"
    # Both packages fill the folder onnxruntime/: the CPU's one has to go first.
    install = "run pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' (Jetson: NVIDIA's wheel)"

    def _provider_options(self) -> dict[str, str]:
        # TF32 is the provider's default: 10 bits of mantissa under the name of FP32.
        return {"use_tf32": "0"}

    def _open(self, ort: Any, options: Any) -> Any:
        # Its cuDNN part prints an error for each plan that it tries in vain before it takes another (convolutions in
        # FP16). What fails for good is raised.
        ort.set_default_logger_severity(4)
        if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN from pip are on no library path
            with contextlib.redirect_stdout(io.StringIO()):  # it prints; what is missing then fails below
                ort.preload_dlls()
        return super()._open(ort, options)


class OrtTensorRtEngine(OrtCudaEngine):
    """An ONNX graph on ONNX Runtime's TensorRT provider, which compiles it at every load.

    The engine ``tensorrt`` keeps its compiled plans; this one is for machines that have ONNX Runtime's build only.
    """

    name = "onnxruntime-tensorrt"
    kinds = frozenset({"fp32", "fp16", "int8"})
    provider = "TensorrtExecutionProvider"
    install = f"{OrtCudaEngine.install} and pip install tensorrt"
    beneath = ("CUDAExecutionProvider",)

    def _open(self, ort: Any, options: Any) -> Any:
        try:
            return super()._open(ort, options)
        except Exception as error:  # where another provider falls back, this one raises
            if "install TensorRT libraries" in str(error):
                raise self._absent("TensorRT's libraries not found") from error
            raise

    def _provider_options(self) -> dict[str, str]:
        # TensorRT 10 under this provider is not strongly typed: without the flag it may widen what the graph says.
        allowed = {"fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable", "int8": "trt_int8_enable"}
        return {allowed[self.precision]: "1"} if self.precision in allowed else {}


class OrtTensorRtRtxEngine(OrtEngine):
    """An ONNX graph on the TensorRT-RTX provider: built into ONNX Runtime, or NVIDIA's plugin package."""

    name = "onnxruntime-tensorrt-rtx"
    on_cpu = False
    kinds = frozenset({"fp32", "fp16", "bf16", "int8"})
    provider = "NvTensorRTRTXExecutionProvider"
    install = "run pip install onnxruntime-ep-nv-tensorrt-rtx on a machine with an RTX GPU"
    plugin: ClassVar[str] = "onnxruntime_ep_nv_tensorrt_rtx"

    @classmethod
    def versions(cls) -> dict[str, str]:
        """With the plug-in's file, which need not come from a package."""
        return {**super().versions(), **module_stamp(cls.plugin)}

    @classmethod
    def _installed(cls, ort: Any) -> bool:
        return super()._installed(ort) or importlib.util.find_spec(cls.plugin) is not None

    def _devices(self, ort: Any) -> list[Any]:
        if importlib.util.find_spec(self.plugin) and not super()._devices(ort):
            library = importlib.import_module(self.plugin).get_library_path()
            try:
                ort.register_execution_provider_library(self.provider, library)
            except Exception as error:
                raise self._absent(f"a plugin that does not load ({_first_line(error)})") from error
        return super()._devices(ort)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
