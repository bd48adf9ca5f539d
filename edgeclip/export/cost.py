"""An ONNX image encoder in; what one image costs it out: products, weights, activations.

A bundle or the name of a model in, what one image costs its encoder out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from edgeclip.bundle import Bundle
from edgeclip.devices.plan.cost import GraphCost, Work, WorkKind, load_cost
from edgeclip.errors import ModelError
from edgeclip.export.half.ranges import infer_types
from edgeclip.extras import require
from edgeclip.files import workshop
from edgeclip.onnx_graph import check_graph

Node = Any  # onnx_ir.Node
Value = Any  # onnx_ir.Value

# The same memory under another shape.
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
# What an engine runs as a kernel of its own; element-wise operators and casts join the one before them.
_KERNELS = {
    *("Conv", "Gemm", "MatMul", "Softmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "AveragePool", "GlobalAveragePool", "MaxPool"),
    *("GlobalMaxPool", "ArgMax", "Transpose", "Concat", "Gather", "GatherElements", "Resize"),
}
# Of those, the ones without weights that an engine does not merge into a neighbour.
_OF_ATTENTION = {"Softmax"}
_OF_MEMORY = {
    *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "ReduceMean", "ReduceSum", "ReduceMax"),
    *("ReduceL2", "AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool"),
}
_WEIGHT_TYPES = {"FLOAT", "FLOAT16", "BFLOAT16", "INT8", "UINT8"}


def graph_cost(path: Path) -> GraphCost:
    """Count what a graph asks for one image; shapes are inferred for a batch of 1, nothing is run.

    A convolution takes output elements × input channels / groups × kernel area products, a matrix product takes
    output elements × inner width; nothing else is counted as products. What is alive is told by the graph's own order.

    Args:
        path: an image encoder: ``image`` (N, 3, H, W) in, ``embedding`` (N, D) out. External data is not read.

    Raises:
        ModelError: not a readable ONNX file, or a shape that cannot be inferred.
        IntegrityError: it asks for more than ``check_graph`` allows.
    """
    ir = require("onnx_ir", purpose="read ONNX graphs", extra="export")
    check_graph(path, error=ModelError)
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's and onnx_ir's exceptions share no base class
        raise ModelError(f"expected an ONNX file, got {path} ({error})") from error
    graph = model.graph
    image = graph.inputs[0]
    image.shape = ir.Shape([1, *list(image.shape)[1:]])
    for node in graph:
        for value in node.outputs:
            value.shape = None  # the exporter's own hold the batch as a symbol
    infer_types(model)
    constant = _constants(graph)
    nodes = [node for node in graph if not constant.issuperset(node.outputs) and node.op_type != "Shape"]
    kernels = [node for node in nodes if node.op_type in _KERNELS]
    try:
        return GraphCost(
            image_size=(int(image.shape[2]), int(image.shape[3])),
            macs=sum(_macs(node) for node in nodes),
            weights=_weights(graph),
            activation_peak=_peak(nodes, constant),
            activation_traffic=sum(
                _size(value) for node in kernels for value in _computed((*node.inputs, *node.outputs), constant)
            ),
            kernels=len(kernels),
            operators=dict(sorted(Counter(node.op_type for node in nodes).items())),
            work=_work(kernels, constant),
        )
    except TypeError as error:  # a dimension that is no number
        raise ModelError(f"{path}: expected shapes that can be inferred, got one that cannot ({error})") from error


def _work(kernels: list[Node], constant: set[Value]) -> dict[WorkKind, Work]:
    """What each kind of operators asks for, kinds that are not there left out."""
    of_kind: dict[WorkKind, list[Node]] = {kind: [] for kind in get_args(WorkKind)}
    for node in kernels:
        if (kind := _kind(node, constant)) is not None:
            of_kind[kind].append(node)
    return {
        kind: Work(
            kernels=len(nodes),
            macs=sum(_macs(node) for node in nodes),
            traffic=sum(_size(value) for node in nodes for value in _computed((*node.inputs, *node.outputs), constant)),
        )
        for kind, nodes in of_kind.items()
        if nodes
    }


def _kind(node: Node, constant: set[Value]) -> WorkKind | None:
    """None for what only moves numbers: engines merge that into the operators around it."""
    if node.op_type == "Conv":
        return "depthwise" if "group" in node.attributes and node.attributes["group"].value > 1 else "convolution"
    if node.op_type in {"MatMul", "Gemm"}:
        return "matrix" if constant.intersection(node.inputs[:2]) else "attention"
    if node.op_type in _OF_ATTENTION:
        return "attention"
    return "other" if node.op_type in _OF_MEMORY else None


def _constants(graph: Any) -> set[Value]:
    """Values that do not depend on the image's content: initializers, shapes, and what is computed of them alone."""
    found = set(graph.initializers.values())
    for node in graph:  # in the order of computation
        if node.op_type == "Shape" or all(value is None or value in found for value in node.inputs):
            found.update(node.outputs)
    return found


def _weights(graph: Any) -> int:
    """Numbers in initializers of a weight's type, less scales and zero points of those stored in 8 bits."""
    helpers = {value for node in graph if node.op_type == "DequantizeLinear" for value in node.inputs[1:]}
    return sum(
        _size(value)
        for value in graph.initializers.values()
        if value not in helpers and value.dtype is not None and value.dtype.name in _WEIGHT_TYPES
    )


def _macs(node: Node) -> int:
    if node.op_type == "Conv":
        return _size(node.outputs[0]) * math.prod(int(size) for size in node.inputs[1].shape[1:])
    if node.op_type == "MatMul":
        return _size(node.outputs[0]) * int(node.inputs[0].shape[-1])
    if node.op_type == "Gemm":
        rows, columns = (int(size) for size in node.inputs[0].shape)
        return _size(node.outputs[0]) * (rows if _transposed(node) else columns)
    return 0


def _transposed(gemm: Node) -> bool:
    return "transA" in gemm.attributes and bool(gemm.attributes["transA"].value)


def _peak(nodes: list[Node], constant: set[Value]) -> int:
    """Most elements alive at once: a value lives until the last node that reads it, or a view of it, is done."""
    owner: dict[Value, Value] = {}
    last: dict[Value, int] = {}
    for step, node in enumerate(nodes):
        for value in _computed(node.inputs, constant):
            last[owner.get(value, value)] = step
        if node.op_type in _VIEWS and node.inputs[0] not in constant:
            owner.update({value: owner.get(node.inputs[0], node.inputs[0]) for value in node.outputs})
    alive: dict[Value, int] = {}
    peak = 0
    for step, node in enumerate(nodes):
        made = (value for value in (*node.inputs, *node.outputs) if value is not None and value not in constant)
        alive.update({root: _size(root) for root in (owner.get(value, value) for value in made)})
        peak = max(peak, sum(alive.values()))
        alive = {value: size for value, size in alive.items() if last.get(value, -1) > step}
    return peak


def _computed(values: Iterable[Value | None], constant: set[Value]) -> list[Value]:
    return [value for value in values if value is not None and value not in constant]


def _size(value: Value) -> int:
    """Elements of a value.

    Raises:
        TypeError: its shape is not known.
    """
    return math.prod(int(size) for size in value.shape)


def cost_of_bundle(bundle: Bundle) -> GraphCost:
    """The cost that the export wrote down; in a bundle of before it did, counted in the FP32 graph.

    Raises:
        BundleError: what was written down cannot be read.
        MissingExtraError: the graph has to be read, and the libraries for that are not installed.
    """
    if (written := load_cost(bundle.path)) is not None:
        return written
    return graph_cost(bundle.variant_path("fp32"))


def cost_of_model(name: str, *, progress: Callable[[str], None] | None = None) -> GraphCost:
    """Export a model's FP32 encoder to a temporary file and count there; weights do not matter, so none are fetched.

    Args:
        name: as for ``load_model``.
        progress: called with a short sentence before each step.

    Raises:
        ModelError: nothing of that name, or it cannot be exported.
    """
    from edgeclip.export.onnx import export_onnx
    from edgeclip.training.load import load_model, loader_of

    say = progress or (lambda _: None)
    say(f"building {name}")
    model = load_model(name, pretrained="none" if loader_of(name) == "open_clip" else None)
    say(f"exporting {name} to count its products")
    with workshop() as folder:
        path = folder / "fp32.onnx"
        export_onnx(model.exportable(), model.encoder, path, metadata={})
        return graph_cost(path)
