"""An INT8 graph for device compilers in, the same weights and ranges laid out for ONNX Runtime's CPU kernels out.

ONNX Runtime fuses Q/DQ only where it has a kernel for the whole; elsewhere it unpacks weights and rounds activations at
every inference, which made such a graph several times slower than FP32. What has a kernel on a CPU:

- MatMul of an unsigned 8-bit activation with a signed 8-bit weight, float32 out;
- Conv the same, if what comes out (after ReLU or a clip) is quantized again; so Add and pooling between them.

So here signed activations become unsigned ones (the same levels, 128 higher; where a value cannot be negative, all 256
levels from 0 up to the same largest value), Gemm becomes MatMul and Add, and what has no kernel is computed in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeclip.export.int8.qdq import (
    Model,
    Node,
    Value,
    array,
    bypass,
    constant,
    never_negative,
    pair_of,
    pairs,
    prune,
    requantize,
    weight_of,
    widen,
)
from edgeclip.export.onnx import save_graph
from edgeclip.extras import require

_CLIPS = {"Relu", "Clip"}
_QUANTIZED_THROUGH = {"Add", "GlobalAveragePool", "AveragePool", "Concat", "Mul", "MaxPool"}


def lay_out_for_cpu(int8: Path, target: Path) -> tuple[Path, ...]:
    """Rewrite ``int8`` as ``target``; the calibrated ranges and the INT8 weights are those of ``int8``.

    Returns:
        The files written, the graph first.
    """
    ir = require("onnx_ir", purpose="rewrite ONNX graphs")
    model = ir.load(str(int8))
    _compute_in_float_what_has_no_kernel(model)
    prune(model)
    for quantize, _ in list(pairs(model)):
        _make_unsigned(model, quantize)
        _drop_clip(quantize)
    for node in list(model.graph):
        if node.op_type in {"Conv", "Gemm"}:
            _quantize_bias(model, node)
    prune(model)
    model.metadata_props["edgeclip.variant"] = "int8-cpu"
    return save_graph(model, target)


def _quantize_bias(model: Model, node: Node) -> None:
    """Store the bias of a Gemm or Conv as INT32 in units of (input scale × weight scale), as its kernel adds it."""
    ir = require("onnx_ir", purpose="rewrite ONNX graphs")
    bias = array(node.inputs[2]) if len(node.inputs) > 2 else None
    pair, weight = pair_of(node.inputs[0]), weight_of(node.inputs[1])
    if bias is None or pair is None or weight is None:
        return
    scales = array(pair[1].inputs[1]), array(weight.inputs[1])
    assert scales[0] is not None
    assert scales[1] is not None
    unit = np.broadcast_to((scales[0] * scales[1]).astype(np.float32).reshape(-1), bias.shape)
    levels = np.rint(bias.astype(np.float64) / unit)
    if np.abs(levels).max(initial=0) >= 2**30:  # half of INT32 is left for the sum of products
        return
    name = node.inputs[2].name
    stored = ir.node(
        "DequantizeLinear",
        [
            constant(model, f"{name}.levels", levels.astype(np.int32)),
            constant(model, f"{name}.scale", unit.copy()),
            constant(model, f"{name}.zero", np.zeros(unit.shape, np.int32)),
        ],
        attributes={"axis": 0},
        name=f"{node.name}.bias",
    )
    stored.outputs[0].name, stored.outputs[0].dtype = f"{node.name}.bias.out", ir.DataType.FLOAT
    model.graph.insert_before(node, [stored])
    node.replace_input_with(2, stored.outputs[0])


def _drop_clip(quantize: Node) -> None:
    """Leave ReLU and clip at 0 to the rounding to unsigned levels, which ends at the same values."""
    value = quantize.inputs[0]
    clip = value.producer()
    if clip is None or clip.op_type not in _CLIPS or len(value.consumers()) > 1 or not never_negative(value):
        return
    scale = array(quantize.inputs[1])
    assert scale is not None
    if scale * 255 <= _highest(value):
        quantize.replace_input_with(0, clip.inputs[0])


def _compute_in_float_what_has_no_kernel(model: Model) -> None:
    """Give operators without a kernel float32 weights, and float32 inputs where those need not be rounded anyway."""
    computed = [node for node in model.graph if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}]
    fused = {node for node in computed if _has_kernel(node)}
    for node in computed:
        if node in fused:
            continue
        for index, value in enumerate(node.inputs):
            pair = pair_of(value)
            if pair and _producer(pair[0].inputs[0]) not in fused:
                bypass(node, index)
            widen(model, node, index)


def _producer(value: Value) -> Node | None:
    """What computes a value, looking through one ReLU or clip."""
    node = value.producer()
    return node.inputs[0].producer() if node is not None and node.op_type in _CLIPS else node


def _has_kernel(node: Node) -> bool:
    """Whether ONNX Runtime's CPU provider has one kernel for ``node`` and the Q/DQ around it."""
    if node.op_type in {"MatMul", "Gemm", "Conv"}:
        inputs = pair_of(node.inputs[0]) is not None and weight_of(node.inputs[1]) is not None
        return inputs and (node.op_type != "Conv" or _is_quantized_again(node.outputs[0]))
    if node.op_type in _QUANTIZED_THROUGH:
        return all(pair_of(value) is not None for value in node.inputs) and _is_quantized_again(node.outputs[0])
    return False


def _is_quantized_again(value: Value) -> bool:
    """Whether all that use a value, perhaps through one ReLU or clip, quantize it."""
    users = value.consumers()
    if len(users) == 1 and users[0].op_type in _CLIPS:
        users = users[0].outputs[0].consumers()
    return bool(users) and not value.is_graph_output() and all(user.op_type == "QuantizeLinear" for user in users)


def _make_unsigned(model: Model, quantize: Node) -> None:
    scale, zero = array(quantize.inputs[1]), array(quantize.inputs[2])
    assert scale is not None
    assert zero is not None
    if zero.dtype != np.int8:
        return
    if not never_negative(quantize.inputs[0]):
        requantize(model, quantize, scale=scale, zero=np.full(zero.shape, 128, np.uint8))
        return
    # A step below the bound of the clip, so that the clip can be left to the rounding.
    bound = np.nextafter(np.float32(_highest(quantize.inputs[0]) / 255), np.float32(0))
    requantize(model, quantize, scale=np.minimum(scale * (127 / 255), bound), zero=np.zeros(zero.shape, np.uint8))


def _highest(value: Value) -> float:
    """The bound of the clip that gives a value; infinite if there is none."""
    node = value.producer()
    if node is None or node.op_type != "Clip" or len(node.inputs) < 3 or (bound := array(node.inputs[2])) is None:
        return float("inf")
    return float(bound)
