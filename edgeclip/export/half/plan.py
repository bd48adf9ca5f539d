"""An FP32 graph and its values' ranges in; which nodes compute in FP16 or BF16, and why others do not, out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgeclip.errors import ModelError
from edgeclip.export.half.ranges import Range
from edgeclip.extras import require

LowPrecision = Literal["fp16", "bf16"]
Reason = Literal["named", "sensitive", "unsupported", "range", "weight", "casts"]
Node = Any  # onnx_ir.Node
Value = Any  # onnx_ir.Value

ONNX_NAME = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}

# Where the time goes, and what tensor cores do.
_HEAVY = {"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"}
# They sum many terms, or their result is far more sensitive than their input.
_SENSITIVE = {
    *("LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization"),
    *("MeanVarianceNormalization", "Softmax", "LogSoftmax", "GlobalAveragePool", "GlobalLpPool", "CumSum"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
    *("ReduceSumSquare", "Exp", "Log", "Pow", "Reciprocal", "Sqrt"),
}
ANY_TYPE = {"Shape", "Size"}  # they read whatever type is there

_SUMS = {"Add", "Sub", "Sum"}

_CAST = 1000  # what casting a number costs; 1 is what a number costs on the side where its node would rather not be
_FP16_LARGEST, _FP16_SMALLEST_NORMAL = 65504.0, 2.0**-14
_HEADROOM = 4  # images to come may be wilder than those measured
_FP16_UNIT = 2.0**-11  # the largest relative error of rounding to a normal number


@dataclass(frozen=True)
class Slots:
    """Which inputs and outputs of a node change type with its precision."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The precision of each node.

    Attributes:
        low: nodes that compute in the low precision, with the inputs and outputs that change type.
        kept: nodes on float32 values that stay FP32, each with the reason and, for a range or weight, which and how.
    """

    low: Mapping[Node, Slots]
    kept: Mapping[Node, tuple[Reason, str]]


def plan_precision(
    model: Any, ranges: Mapping[str, Range], precision: LowPrecision, *, keep: Collection[str] = ()
) -> Plan:
    """Choose the precision of each node.

    Convolutions and matrix products go low; sums, normalisations, softmax and powers stay FP32. So does, for FP16,
    whatever meets a value beyond a quarter of FP16's largest number or wholly below its smallest normal one, or a
    constant that rounding would change by more than rounding must. What is left (pointwise operators, layout) goes
    where the fewest numbers are cast: a minimum cut between the two sides. Where that leaves a choice, sums of two
    computed values (a transformer's residual stream) stay FP32 and the others go low.

    Args:
        model: an onnx_ir model, types inferred.
        ranges: of every float32 value by name (``measure_ranges``).
        keep: names of nodes that stay FP32.

    Raises:
        ModelError: a node holds a subgraph, a value has no type, or ``keep`` names a node that is not there.
    """
    nodes = list(model.graph)
    if unknown := set(keep) - {node.name for node in nodes}:
        raise ModelError(f"expected names of nodes of the graph to keep in FP32, got {sorted(unknown)}")
    slots: dict[Node, Slots] = {}
    kept: dict[Node, tuple[Reason, str]] = {}
    for node in nodes:
        if any(attribute.type.name in {"GRAPH", "GRAPHS"} for attribute in node.attributes.values()):
            raise ModelError(f"{node.op_type} {node.name} holds a subgraph: graphs with control flow are not converted")
        if untyped := [value.name for value in node.outputs if value.name and value.dtype is None]:
            raise ModelError(f"expected every value to have a type, got none for {untyped} of {node.op_type}")
        if node.op_type in ANY_TYPE or not any(is_float(value) for value in (*node.inputs, *node.outputs)):
            continue
        found = _slots(node, model.opset_imports, ONNX_NAME[precision])
        if node.name in keep:
            kept[node] = ("named", "")
        elif node.op_type in _SENSITIVE:
            kept[node] = ("sensitive", "")
        elif found is None:
            kept[node] = ("unsupported", f"ONNX has no {precision} form of it in this opset")
        elif precision == "fp16" and (reason := next(_out_of_range(node, found, ranges), None)):
            kept[node] = reason
        else:
            slots[node] = found
    free = [node for node in slots if node.op_type not in _HEAVY]
    for node in _nearer_to_fp32(free, slots, model, ranges):
        kept[node] = ("casts", "")
        del slots[node]
    return Plan(low=slots, kept=kept)


def is_float(value: Value | None) -> bool:
    """Whether a value is there and float32."""
    return value is not None and value.dtype is not None and value.dtype.name == "FLOAT"


def _slots(node: Node, opsets: Mapping[str, int], low: str) -> Slots | None:
    """Slots that ONNX allows in the low type, or None if an output is not among them or depends on no such input."""
    onnx = require("onnx", purpose="convert precision")
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except (onnx.defs.SchemaError, KeyError):
        return None
    allowed = {
        item.type_param_str for item in schema.type_constraints if f"tensor({low.lower()})" in item.allowed_type_strs
    }

    def types(values: Any, formal: Any) -> dict[int, str]:
        last = len(formal) - 1  # the last parameter may stand for any number of them
        return {index: formal[min(index, last)].type_str for index, value in enumerate(values) if is_float(value)}

    inputs, outputs = types(node.inputs, schema.inputs), types(node.outputs, schema.outputs)
    changing = {index: name for index, name in inputs.items() if name in allowed}
    if not outputs or not set(outputs.values()) <= set(changing.values()):
        return None
    return Slots(tuple(changing), tuple(outputs))


def _out_of_range(node: Node, slots: Slots, ranges: Mapping[str, Range]) -> Iterator[tuple[Reason, str]]:
    """Reasons why FP16 cannot hold what the node reads or gives."""
    for value in (*(node.inputs[index] for index in slots.inputs), *(node.outputs[index] for index in slots.outputs)):
        if value.const_value is not None:
            weight = value.const_value.numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                error = np.linalg.norm((weight.astype(np.float16) - weight).astype(np.float64).ravel())
            if not error <= _FP16_UNIT * np.linalg.norm(weight.astype(np.float64).ravel()):  # inf and NaN too
                yield "weight", f"{value.name} cannot be stored in FP16 (largest {np.abs(weight).max():.3g})"
        elif value.name in ranges:
            largest = ranges[value.name].largest
            if not largest <= _FP16_LARGEST / _HEADROOM:
                yield "range", f"{value.name} reaches {largest:.3g}, beyond a quarter of FP16's range"
            elif 0 < largest < _FP16_SMALLEST_NORMAL:
                yield "range", f"{value.name} never exceeds {largest:.3g}, below FP16's normal numbers"


def _nearer_to_fp32(
    free: list[Node], slots: Mapping[Node, Slots], model: Any, ranges: Mapping[str, Range]
) -> list[Node]:
    """Those of ``free`` that a minimum cut leaves with FP32. One cast of a value serves all its readers."""
    networkx = require("networkx", purpose="place casts", extra="export")
    network = networkx.DiGraph()
    network.add_nodes_from(["fp32", "low"])
    for node in free:
        elements = sum(_elements(node.outputs[index], ranges) for index in slots[node].outputs)
        is_sum = node.op_type in _SUMS and all(value.const_value is None for value in node.inputs)
        network.add_edge(*(("fp32", node) if is_sum else (node, "low")), capacity=elements)
    movable = set(free)

    def side(node: Node | None) -> Any:
        return node if node in movable else "low" if node in slots else "fp32"

    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if not is_float(value):
            continue
        producer, cost = side(value.producer()), _CAST * _elements(value, ranges)
        readers = {
            side(use.node) if use.node in slots and use.idx in slots[use.node].inputs else "fp32"
            for use in value.uses()
            if use.node.op_type not in ANY_TYPE
        }
        if value.is_graph_output():
            readers.add("fp32")
        down, up = ("down", value), ("up", value)
        network.add_edge(producer, down, capacity=cost)  # cut if the producer is FP32 and a reader low
        network.add_edge(up, producer, capacity=cost)  # cut if the producer is low and a reader FP32
        for reader in readers:
            network.add_edge(down, reader)
            network.add_edge(reader, up)
    _, (fp32, _) = networkx.minimum_cut(network, "fp32", "low")
    return [node for node in free if node in fp32]


def _elements(value: Value, ranges: Mapping[str, Range]) -> int:
    return ranges[value.name].elements if value.name in ranges else 1
