"""Rules on QuantizeLinear and DequantizeLinear: TensorRT's symmetric explicit quantization.

Sources: the ONNX-TensorRT parser (``QuantDequantLinearHelper``), its list of operators, and NVIDIA's "Working with
Quantized Types". Where TensorRT-RTX 1.7's parser takes what these exclude for the full TensorRT, the rule says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeclip.export.lint.graph import LAYOUT, Graph, Node, Problem, Value, attribute, dtype, error, rank, warning

_QUANTIZED = {"INT8", "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1"}
_WEIGHTS_ONLY = {"INT4", "FLOAT4E2M1"}
_TILE = 16  # INT8 tensor cores multiply tiles of 16 numbers along K
_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def _pairs(graph: Graph) -> Iterator[Node]:
    return graph.nodes("QuantizeLinear", "DequantizeLinear")


def _input(node: Node, index: int) -> Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def node_name(graph: Graph) -> Iterator[Problem]:
    """No Q/DQ node has the name of a node before it: the parser renames others, and fails at these."""
    taken = set()
    for node in graph.nodes():
        if node.name and node.name in taken and node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            yield error(node, f"a node before this {node.op_type} has its name: rename one")
        taken.add(node.name)


def zero_point(graph: Graph) -> Iterator[Problem]:
    """Zero-points are constant zeros."""
    for node in _pairs(graph):
        value = _input(node, 2)
        if value is None:
            continue
        points = graph.array(value)
        if not graph.is_constant(value):
            yield error(node, "the zero-point is computed: TensorRT needs a constant 0; quantize symmetrically")
        elif points is not None and points.astype(np.float32).any():
            worst = int(points.astype(np.float32).ravel()[np.argmax(points.ravel() != 0)])
            yield error(node, f"expected zero-points of 0, got {worst}: quantize symmetrically")


def quantized_type(graph: Graph) -> Iterator[Problem]:
    """Quantized values are INT8 (or FP8); 4-bit types only for weights.

    UINT8 is for DLA alone; on a GPU the parser takes a UINT8 zero-point of 0 for INT8 and clips at 127.
    """
    for node in _pairs(graph):
        kind = dtype(node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0])
        if kind is None:
            continue
        if kind not in _QUANTIZED:
            remedy = "quantize to signed INT8" if _input(node, 2) is not None else "give a zero-point of type INT8"
            yield error(node, f"expected INT8, got {kind}: {remedy}")
        elif kind in _WEIGHTS_ONLY and not graph.is_constant(node.inputs[0]):
            yield error(node, f"{kind} is for weights only, got it on a computed value: use INT8")


def scale(graph: Graph) -> Iterator[Problem]:
    """Scales are positive constants, as many as there are channels and zero-points."""
    for node in _pairs(graph):
        numbers = graph.array(node.inputs[1])
        if numbers is None:
            if not graph.is_constant(node.inputs[1]):
                yield warning(node, "the scale is computed: TensorRT before 8 refuses it, and it hinders fusion")
            continue
        numbers = numbers.astype(np.float32)
        if not numbers.size or np.isnan(numbers).any() or (numbers <= 0).any():
            yield error(node, f"expected scales above 0, got {numbers.min() if numbers.size else 'none'}")
        elif not np.isfinite(numbers).all() or numbers.min() < _SMALLEST_NORMAL:
            yield warning(node, f"a scale of {numbers.max():.3g} or {numbers.min():.3g} is not a normal FP32 number")
        yield from _counts(graph, node, numbers.size)


def _counts(graph: Graph, node: Node, count: int) -> Iterator[Problem]:
    points = graph.array(_input(node, 2))
    if points is not None and points.size != count:
        yield error(node, f"expected as many zero-points as scales, got {points.size} and {count}")
    shape, axis = node.inputs[0].shape, _axis(node)
    if count > 1 and rank(node.inputs[1]) == 1 and shape is not None and axis is not None:
        channels = shape[axis] if axis < len(shape) else 0
        if isinstance(channels, int) and channels != count:
            yield error(node, f"expected {channels} scales for axis {axis} of {tuple(shape)}, got {count}")


def per_channel_activation(graph: Graph) -> Iterator[Problem]:
    """Activations have one scale: the parser's source says so, though TensorRT-RTX 1.7 takes more."""
    for node in _pairs(graph):
        numbers = graph.array(node.inputs[1])
        if numbers is not None and numbers.size > 1 and not graph.is_constant(node.inputs[0]):
            yield error(node, f"expected one scale for an activation, got {numbers.size}: only weights are per channel")


def pair(graph: Graph) -> Iterator[Problem]:
    """Quantized values come from a QuantizeLinear, go to a DequantizeLinear, and only move between.

    The list of operators has INT8 in no other; TensorRT-RTX 1.7 takes pointwise ones on INT8 all the same.
    """
    for node in graph.nodes("DequantizeLinear"):
        source = node.inputs[0]
        if not graph.is_constant(source) and _origin(source) != "QuantizeLinear":
            yield error(node, f"{source.name} is not quantized by a QuantizeLinear: start from floating point")
    for node in graph.nodes("QuantizeLinear"):
        if strangers := sorted(set(_readers(node.outputs[0])) - {"DequantizeLinear"}):
            yield error(node, f"its INT8 goes to {', '.join(strangers)}, not to a DequantizeLinear: dequantize first")
    for value in graph.model.graph.initializers.values():
        readers = {use.node.op_type for use in value.uses()} - LAYOUT - {"QuantizeLinear", "DequantizeLinear"}
        if dtype(value) in _QUANTIZED and readers:
            yield value.name, f"{dtype(value)} constant read by {', '.join(sorted(readers))}: dequantize it", "error"
    for node in graph.nodes("DequantizeLinear"):
        quantize = node.inputs[0].producer()
        if quantize is not None and quantize.op_type == "QuantizeLinear":
            given, taken = graph.array(quantize.inputs[1]), graph.array(node.inputs[1])
            if given is not None and taken is not None and not np.array_equal(given, taken, equal_nan=True):
                yield warning(node, "its scale differs from that of its QuantizeLinear: values come back rescaled")


def _origin(value: Value) -> str:
    producer = value.producer()
    while producer is not None and producer.op_type in LAYOUT:
        producer = producer.inputs[0].producer()
    return "input" if producer is None else str(producer.op_type)


def _readers(value: Value) -> Iterator[str]:
    if value.is_graph_output():
        yield "the graph's output"
    for use in value.uses():
        if use.node.op_type == "Concat" or (use.node.op_type in LAYOUT and use.idx == 0):
            for moved in use.node.outputs:
                yield from _readers(moved)
        elif use.node.op_type != "Shape":
            yield str(use.node.op_type)


def _axis(node: Node) -> int | None:
    """The quantization axis counted from the front, or None if the rank is unknown and it is counted from behind."""
    axis, dims = int(attribute(node, "axis", 1)), rank(node.inputs[0])
    return axis if axis >= 0 else None if dims is None else axis + dims


def _weights(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """(product, the DequantizeLinear that gives its weight) where both sides are quantized; a Cast may lie between."""
    for node in graph.nodes("Conv", "ConvTranspose", "Gemm", "MatMul"):
        producer = node.inputs[1].producer()
        while producer is not None and producer.op_type in {"Cast", "Identity"}:
            producer = producer.inputs[0].producer()
        if producer is None or producer.op_type != "DequantizeLinear" or not graph.is_constant(producer.inputs[0]):
            continue
        if _origin(node.inputs[0]) == "DequantizeLinear":
            yield node, producer


def weight_axis(graph: Graph) -> Iterator[Problem]:
    """Weights have scales along their output channels: others cannot be taken out of the integer sum.

    TensorRT-RTX 1.7 builds such graphs; the product then cannot run on integers.
    """
    for node, dequantize in _weights(graph):
        numbers, axis = graph.array(dequantize.inputs[1]), _axis(dequantize)
        if numbers is None or numbers.size == 1 or numbers.ndim != 1 or axis is None:
            continue
        wanted = _output_axis(node)
        if wanted is not None and axis != wanted:
            yield warning(node, f"expected weight scales along axis {wanted} (outputs), got axis {axis}: INT8 is lost")


def _output_axis(node: Node) -> int | None:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        dims = rank(node.inputs[1])
        return None if dims is None else dims - 1
    return 0 if node.op_type == "Conv" else 1


def small_product(graph: Graph) -> Iterator[Problem]:
    """Quantized products whose constant sides are no multiples of 16: padded, or run on slower kernels."""
    for node, _ in _weights(graph):
        shape = node.inputs[1].shape
        if node.op_type not in {"Gemm", "MatMul"} or shape is None or len(shape) < 2:
            continue
        sides = [side for side in shape[-2:] if isinstance(side, int)]
        if any(side % _TILE for side in sides):
            yield warning(node, f"INT8 gains little for a weight of {sides}: tensor cores work on multiples of {_TILE}")
