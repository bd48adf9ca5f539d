"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np

from edgeclip.devices.probe import cpu_flags
from edgeclip.errors import EngineError, VariantError
from edgeclip.extras import require
from edgeclip.runtime.engine import Engine, FloatArray
from edgeclip.spec import EncoderSpec, Precision


class OrtEngine(Engine):
    """An ONNX graph on ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def __init__(
        self, path: Path, encoder: EncoderSpec, *, precision: Precision = "fp32", threads: int | None = None
    ) -> None:
        super().__init__(path, encoder, precision=precision, threads=threads)
        if precision == "int8" and not adds_int8_exactly(platform.machine(), cpu_flags()):
            raise VariantError(
                f"{path.name} needs a CPU with VNNI: without it x86 adds INT8 products in 16 bits, which overflow "
                "silently; use --variant fp32"
            )
        ort = require("onnxruntime", purpose="run ONNX encoders", extra="all")
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; what fails is raised, not printed
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        if precision != "int8":
            # Weights that are stored as INT8 but computed with in floating point are unpacked once, at load.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding raises a dozen unrelated types
            raise EngineError(f"onnxruntime {ort.__version__} cannot load {path} ({_first_line(error)})") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [i.name for i in inputs] != ["image"] or [o.name for o in outputs] != ["embedding"]:
            raise EngineError(
                f"{path.name}: expected input image and output embedding, got {[i.name for i in inputs]} and "
                f"{[o.name for o in outputs]}: export it with edgeclip"
            )

    def _infer(self, images: FloatArray) -> FloatArray:
        try:
            (embeddings,) = self._session.run(["embedding"], {"image": images})
        except Exception as error:
            raise EngineError(f"{self.path.name} failed on onnxruntime ({_first_line(error)})") from error
        return np.asarray(embeddings, np.float32)

    def close(self) -> None:
        """Release the session."""
        del self._session


def adds_int8_exactly(machine: str, flags: frozenset[str]) -> bool:
    """Whether products of unsigned and signed bytes are added in 32 bits here (x86: only with VNNI; Arm: always).

    Source: ONNX Runtime's documentation of quantization, on ``reduce_range`` and U8S8.
    """
    return machine not in {"x86_64", "AMD64"} or bool(flags & {"avx512_vnni", "avx_vnni"})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
