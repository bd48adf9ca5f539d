"""A strongly typed FP16 or BF16 graph in, an FP32 graph that rounds wherever the first would out, to run on any CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeclip.export.half.ranges import infer_types
from edgeclip.export.lint.graph import LAYOUT
from edgeclip.export.onnx import save_graph
from edgeclip.extras import require


def emulate(path: Path, target: Path) -> tuple[Path, ...]:
    """Write a float32 graph that gives, on a CPU, the numbers of a GPU which computes ``path`` node by node.

    ONNX Runtime's CPU provider runs most FP16 nodes in FP32 and drops the roundings between them, so an overflow stays
    unseen, and it has no BF16 kernels. Here every result of a low node goes through a cast to its type and back, which
    ONNX Runtime keeps; values beyond FP16 become inf. Sums inside a node are kept in FP32, as tensor cores keep them. A
    fused kernel on a device may round less often.

    Args:
        path: as ``convert_precision`` writes it; other graphs come back as they are.

    Returns:
        The files written, the graph first.

    Raises:
        InputError: ``target`` cannot be written.
    """
    ir = require("onnx_ir", purpose="emulate precision", extra="export")
    model = ir.load(path)
    infer_types(model)
    low_types = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    for value in model.graph.initializers.values():
        if value.dtype in low_types:
            exact = value.const_value.numpy().astype("float32")
            value.const_value, value.dtype = ir.tensor(exact, name=value.name), ir.DataType.FLOAT
    for node in list(model.graph):
        if node.op_type == "Cast" and node.outputs[0].dtype in low_types:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for index, value in enumerate(node.outputs):
            if value.dtype in low_types:
                _round(model, node, index, through=None if node.op_type in LAYOUT else value.dtype)
    return save_graph(model, target)


def _round(model: Any, node: Any, index: int, through: Any) -> None:
    """Make one output of ``node`` float32, and send it through the type ``through`` and back to all its readers."""
    ir = require("onnx_ir", purpose="emulate precision", extra="export")
    value = node.outputs[index]
    value.dtype = ir.DataType.FLOAT
    if through is None:
        return
    uses = list(value.uses())
    down = ir.node("Cast", [value], attributes={"to": int(through)})
    up = ir.node("Cast", down.outputs, attributes={"to": int(ir.DataType.FLOAT)})
    for made, dtype, suffix in ((down.outputs[0], through, "rounding"), (up.outputs[0], value.dtype, "rounded")):
        made.name, made.dtype, made.shape = f"{value.name}.{suffix}", dtype, value.shape
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])
    model.graph.insert_after(node, [down, up])
