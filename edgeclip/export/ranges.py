"""An FP32 ONNX graph and images in, the largest magnitude of every value that it computes out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from edgeclip.errors import InputError, ModelError
from edgeclip.export.onnx_export import save_graph
from edgeclip.extras import require
from edgeclip.prompts import FloatArray

_BATCH = 8


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """What a value was over all images.

    Attributes:
        largest: the largest magnitude; inf or NaN if the graph itself overflows.
        elements: numbers for one image, at least 1.
    """

    largest: float
    elements: int


def measure_ranges(path: Path, images: FloatArray) -> dict[str, Range]:
    """Run the graph on ONNX Runtime's CPU provider and look at every float32 value by its name.

    Each value is reduced to its largest magnitude inside the graph, so memory does not grow with the number of values.

    Args:
        path: a graph with the input ``image``.
        images: (N, 3, H, W) float32, preprocessed.

    Raises:
        InputError: no images, or not of the graph's shape.
        ModelError: the graph does not run, or its embedding is not finite.
    """
    if images.ndim != 4 or not len(images):
        raise InputError(f"expected preprocessed images (N, 3, H, W) to measure ranges on, got shape {images.shape}")
    with tempfile.TemporaryDirectory(prefix="edgeclip-") as folder:
        names = _write_probe(path, Path(folder) / "probe.onnx")
        try:
            session = ort.InferenceSession(str(Path(folder) / "probe.onnx"), providers=["CPUExecutionProvider"])
            rows = [session.run(None, {"image": images[at : at + _BATCH]}) for at in range(0, len(images), _BATCH)]
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"onnxruntime cannot run {path.name} to measure its ranges ({error})") from error
    if not all(np.isfinite(row[-1]).all() for row in rows):
        raise ModelError(f"expected finite embeddings from {path.name}, got some that are not: it cannot be converted")
    first = min(_BATCH, len(images))
    largest = np.max([row[: len(names)] for row in rows], axis=0)
    sizes = rows[0][len(names) : 2 * len(names)]
    return {
        name: Range(largest=float(largest[index]), elements=max(1, int(sizes[index]) // first))
        for index, name in enumerate(names)
    }


def _write_probe(path: Path, probe: Path) -> list[str]:
    """Write the graph with, as outputs, each float value's largest magnitude, then each one's size, then its own."""
    ir = require("onnx_ir", purpose="measure ranges", extra="export")
    model = ir.load(path)
    infer_types(model)
    values = _float_values(model)
    graph = model.graph
    largest: list[Any] = []
    sizes: list[Any] = []
    for index, value in enumerate(values):
        nodes = [ir.node("Abs", [value]), ir.node("Size", [value])]
        nodes.append(ir.node("ReduceMax", [nodes[0].outputs[0]], attributes={"keepdims": 0}))
        for kind, node, dtype, outputs in (
            ("largest", nodes[2], ir.DataType.FLOAT, largest),
            ("size", nodes[1], ir.DataType.INT64, sizes),
        ):
            output = node.outputs[0]
            output.name, output.dtype, output.shape = f"edgeclip.{kind}.{index}", dtype, ir.Shape([])
            outputs.append(output)
        graph.extend(nodes)
    graph.outputs[:] = [*largest, *sizes, *graph.outputs]
    save_graph(model, probe)
    return [value.name for value in values]


def infer_types(model: Any) -> None:
    """Give an onnx_ir model's values types and shapes where the file lacks them and ONNX can tell."""
    common = require("onnx_ir.passes.common", purpose="infer types", extra="export")
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _float_values(model: Any) -> list[Any]:
    made = (value for node in model.graph for value in node.outputs)
    return [value for value in (*model.graph.inputs, *made) if value.dtype is not None and value.dtype.name == "FLOAT"]
