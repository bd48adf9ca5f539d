"""A Q/DQ graph in; its activation pairs and quantized weights, and ways to take them out or rewrite them, out.

An *activation pair* is QuantizeLinear → DequantizeLinear on a computed value; a *quantized weight* is a
DequantizeLinear on a constant.

A graph with per-channel multiplications (as SmoothQuant inserts them) in, the same function without them out.

SmoothQuant moves the spread of an activation's channels into the weights that follow: it multiplies the activation
by a vector and divides the weights by it (Xiao et al., "SmoothQuant", 2022). Where the activation is the output of a
LayerNormalization, the vector belongs into that operator's scale and bias, and costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclip.extras import require
from edgeclip.prompts import FloatArray

Node = Any  # onnx_ir.Node
Value = Any  # onnx_ir.Value
Model = Any  # onnx_ir.Model

_MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Split", "Gather", "Slice", "Identity", "MaxPool"}
_NEVER_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "HardSigmoid"}


def array(value: Value) -> npt.NDArray[Any] | None:
    """A value's constant as an array, or None if it is computed."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def is_weight(node: Node) -> bool:
    """Whether ``node`` is a DequantizeLinear on a constant."""
    return bool(node.op_type == "DequantizeLinear" and array(node.inputs[0]) is not None)


def pair_of(value: Value) -> tuple[Node, Node] | None:
    """The activation pair (QuantizeLinear, DequantizeLinear) that gives ``value``, or None."""
    dequantize = value.producer() if value is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = dequantize.inputs[0].producer()
    return (quantize, dequantize) if quantize is not None and quantize.op_type == "QuantizeLinear" else None


def weight_of(value: Value) -> Node | None:
    """The DequantizeLinear on a constant that gives ``value``, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and is_weight(node) else None


def pairs(model: Model) -> Iterator[tuple[Node, Node]]:
    """Every activation pair of the graph."""
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and (pair := pair_of(node.outputs[0])):
            yield pair


def axis_of(node: Node) -> int:
    """The ``axis`` of a quantized weight, counted from the front; 1 where it is left out."""
    axis = int(node.attributes["axis"].as_int()) if "axis" in node.attributes else 1
    return axis % max(1, len(node.inputs[0].const_value.shape))


def dequantized(node: Node) -> FloatArray:
    """The float32 weight that a quantized weight stands for."""
    levels, scale = array(node.inputs[0]), array(node.inputs[1])
    zero = array(node.inputs[2]) if len(node.inputs) > 2 else None
    assert levels is not None
    assert scale is not None
    shape = [1] * levels.ndim
    if scale.ndim and scale.size > 1:
        shape[axis_of(node)] = scale.size
    offset = 0.0 if zero is None else zero.astype(np.float32).reshape(shape if zero.size > 1 else [1] * levels.ndim)
    wide: FloatArray = (levels.astype(np.float32) - offset) * scale.reshape(
        shape if scale.size > 1 else [1] * levels.ndim
    )
    return wide.astype(np.float32)


def constant(model: Model, name: str, values: npt.NDArray[Any]) -> Value:
    """Register a constant under ``name`` or, if that is taken by another, a name derived from it."""
    ir = require("onnx_ir", purpose="rewrite ONNX graphs")
    taken = model.graph.initializers
    unique, count = name, 0
    while unique in taken:
        count += 1
        unique = f"{name}.{count}"
    tensor = ir.tensor(np.ascontiguousarray(values), name=unique)
    value = ir.Value(name=unique, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    model.graph.register_initializer(value)
    return value


def bypass(node: Node, index: int) -> bool:
    """Feed input ``index`` of ``node`` with what went into its activation pair; False if there is no pair."""
    pair = pair_of(node.inputs[index])
    if pair is None:
        return False
    node.replace_input_with(index, pair[0].inputs[0])
    return True


def widen(model: Model, node: Node, index: int) -> bool:
    """Feed input ``index`` of ``node`` with the float32 weight that its quantized weight stands for; False if none."""
    quantized = weight_of(node.inputs[index])
    if quantized is None:
        return False
    name = f"{quantized.inputs[0].name}.float"
    present = model.graph.initializers.get(name)
    node.replace_input_with(index, present or constant(model, name, dequantized(quantized)))
    return True


def requantize(model: Model, quantize: Node, *, scale: npt.NDArray[Any], zero: npt.NDArray[Any]) -> None:
    """Give an activation pair, and whatever else reads its levels, another scale and zero-point, and so type."""
    ir = require("onnx_ir", purpose="rewrite ONNX graphs")
    new_scale = constant(model, f"{quantize.inputs[1].name}.{zero.dtype}", scale.astype(np.float32))
    new_zero = constant(model, f"{quantize.inputs[1].name}.{zero.dtype}.zero", zero)
    quantize.outputs[0].dtype = ir.DataType.from_numpy(zero.dtype)
    for node in (quantize, *quantize.outputs[0].consumers()):
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            node.replace_input_with(1, new_scale)
            node.replace_input_with(2, new_zero)


def never_negative(value: Value) -> bool:
    """Whether a value is at least 0 by construction: it comes, perhaps moved about, out of ReLU, sigmoid or softmax."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES:
        node = node.inputs[0].producer()
    if node is None:
        return False
    if node.op_type == "Clip":
        low = array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
        return low is not None and bool(low >= 0)
    return node.op_type in _NEVER_NEGATIVE


def prune(model: Model) -> None:
    """Drop nodes and constants that nothing uses, and domains that no node is of."""
    common = require("onnx_ir.passes.common", purpose="rewrite ONNX graphs")
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def fold_scales(model: Model) -> int:
    """Fold every ``Mul`` by a vector over the last axis into the LayerNormalization that it follows, in place.

    A transposition that leaves the last axis alone may stand between the two. Multiplications whose
    LayerNormalization feeds anything else stay as they are.

    Returns:
        How many were folded.
    """
    folded = 0
    for node in list(model.graph):
        vector = _vector(node)
        if vector is None:
            continue
        norm = _normalisation(node.inputs[0])
        if norm is None or not _fits(norm, vector):
            continue
        for index in range(1, len(norm.inputs)):
            value = norm.inputs[index]
            part = array(value)
            assert part is not None  # _fits
            norm.replace_input_with(index, constant(model, f"{value.name}.smooth", (part * vector).astype(np.float32)))
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        folded += 1
    if folded:
        prune(model)
    return folded


def _vector(node: Node) -> np.typing.NDArray[np.float32] | None:
    """What a ``Mul`` multiplies the last axis by, or None."""
    if node.op_type != "Mul" or node.outputs[0].is_graph_output():
        return None
    factor = array(node.inputs[1])
    if factor is None or factor.size <= 1 or factor.size != factor.shape[-1]:
        return None
    return factor.reshape(-1)


def _normalisation(value: Value) -> Node | None:
    """The LayerNormalization whose output, used nowhere else, ``value`` is."""
    node = value.producer()
    while node is not None and len(node.outputs[0].uses()) == 1:
        if node.op_type == "LayerNormalization":
            return node
        if node.op_type != "Transpose" or not _keeps_last(node):
            return None
        node = node.inputs[0].producer()
    return None


def _keeps_last(transpose: Node) -> bool:
    if "perm" not in transpose.attributes:
        return False
    order: list[int] = list(transpose.attributes["perm"].as_ints())
    return bool(order[-1] == len(order) - 1)


def _fits(norm: Node, vector: np.typing.NDArray[np.float32]) -> bool:
    parts = [array(value) for value in norm.inputs[1:]]
    return all(part is not None and part.shape == vector.shape for part in parts)
