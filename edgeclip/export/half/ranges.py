"""An FP32 ONNX graph and images in, the largest magnitude of every value that it computes out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from edgeclip.errors import InputError, ModelError
from edgeclip.export.onnx import save_graph
from edgeclip.export.result_cache import find_result, keep_result, result_key
from edgeclip.extras import require
from edgeclip.files import workshop
from edgeclip.prompts import FloatArray


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
    The result is kept in the cache: for the same graph and images nothing is run again.

    Args:
        path: a graph with the input ``image``.
        images: (N, 3, H, W) float32, preprocessed.

    Raises:
        InputError: no images, or not of the graph's shape.
        ModelError: the graph does not run, or its embedding is not finite.
    """
    if images.ndim != 4 or not len(images):
        raise InputError(f"expected preprocessed images (N, 3, H, W) to measure ranges on, got shape {images.shape}")
    key = result_key((Path(__file__),), path, images, "ranges", ("onnx", "onnx-ir"))
    if kept := find_result(key):
        return msgspec.msgpack.decode(kept, type=dict[str, Range])
    ir = require("onnx_ir", purpose="measure ranges", extra="export")
    model = ir.load(path)
    infer_types(model)
    names = [value.name for value in _float_values(model)]
    largest, sizes = _run_probe(path, model, images, len(names))
    found = {
        name: Range(largest=float(magnitude), elements=max(1, int(size)))
        for name, magnitude, size in zip(names, largest, sizes, strict=True)
    }
    keep_result(key, msgspec.msgpack.encode(found))
    return found


def _run_probe(path: Path, model: Any, images: FloatArray, count: int) -> tuple[FloatArray, Sequence[int]]:
    """Of each of ``count`` values the largest magnitude over all images, and its elements for one image."""
    largest = np.zeros(count, np.float32)
    sizes: Sequence[int] = ()
    with contextlib.ExitStack() as stack:
        try:
            session = _load_probe(model, stack)
            for image in images:
                *measured, embedding = session.run(None, {"image": image[None]})
                largest, sizes = np.maximum(largest, measured[:count]), measured[count:]
                if not np.isfinite(embedding).all():
                    break
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"onnxruntime cannot run {path.name} to measure its ranges ({error})") from error
    if not np.isfinite(embedding).all():
        raise ModelError(f"expected finite embeddings from {path.name}, got some that are not: it cannot be converted")
    return largest, sizes


def _load_probe(model: Any, stack: contextlib.ExitStack) -> ort.InferenceSession:
    """The graph with, as outputs, each float value's largest magnitude, then each one's size, then its own."""
    ir = require("onnx_ir", purpose="measure ranges", extra="export")
    graph = model.graph
    largest: list[Any] = []
    sizes: list[Any] = []
    for index, value in enumerate(_float_values(model)):
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
    probe = stack.enter_context(workshop()) / "probe.onnx"
    save_graph(model, probe)
    return ort.InferenceSession(str(probe), providers=["CPUExecutionProvider"])


def infer_types(model: Any) -> None:
    """Give an onnx_ir model's values types and shapes where the file lacks them and ONNX can tell."""
    common = require("onnx_ir.passes.common", purpose="infer types", extra="export")
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _float_values(model: Any) -> list[Any]:
    made = (value for node in model.graph for value in node.outputs)
    return [value for value in (*model.graph.inputs, *made) if value.dtype is not None and value.dtype.name == "FLOAT"]
