"""An ONNX graph in, OpenVINO's compiled blob of it in this device's cache out."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from edgeclip.runtime import plan_cache
from edgeclip.runtime.openvino_engine import OpenVinoEngine
from edgeclip.runtime.openvino_gpu_engine import OpenVinoGpuEngine
from edgeclip.spec import EncoderSpec, Precision


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
