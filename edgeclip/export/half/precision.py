"""The FP32 graph and images in, a strongly typed FP16 or BF16 graph out: precision lives in the graph, as casts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from edgeclip.errors import InputError, ModelError
from edgeclip.export.half.plan import (
    ANY_TYPE,
    ONNX_NAME,
    LowPrecision,
    Plan,
    Reason,
    Value,
    is_float,
    plan_precision,
)
from edgeclip.export.half.ranges import infer_types, measure_ranges
from edgeclip.export.onnx import save_graph
from edgeclip.extras import require
from edgeclip.prompts import FloatArray

# ONNX gained bfloat16 for Conv and pooling in opset 22; TensorRT 10.6 is the first whose parser was built with it.
BF16_OPSET, _BF16_IR_VERSION = 22, 10


class KeptNode(msgspec.Struct, frozen=True):
    """A node that stays FP32, and why; ``detail`` names the value of a range or weight."""

    name: str
    op: str
    reason: Reason
    detail: str


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion did.

    Attributes:
        opset: of the graph written.
        low_nodes: how many nodes compute in the low precision.
        kept: nodes on float values that stay FP32.
        casts: how many casts the graph gained.
    """

    precision: LowPrecision
    opset: int
    low_nodes: int
    kept: tuple[KeptNode, ...]
    casts: int

    def reasons(self) -> dict[Reason, int]:
        """How many nodes stay FP32 for each reason."""
        return dict(Counter(item.reason for item in self.kept))


def convert_precision(
    fp32: Path, target: Path, precision: LowPrecision, images: FloatArray, *, keep: Collection[str] = ()
) -> tuple[tuple[Path, ...], PrecisionReport]:
    """Write ``fp32`` with its heavy nodes in FP16 or BF16; whole or not at all.

    Which nodes go low: ``plan_precision``. Input and output stay float32. A value is
    cast once for all its readers, and a weight that low nodes read is stored in the low type. A weight stored in 8 bits
    (DequantizeLinear) stays so, and is cast. The method is that of mixed-precision training (Micikevicius et al.,
    "Mixed Precision Training", 2018), with measured ranges in place of loss scaling.

    BF16 graphs have opset 22, for Conv has no bfloat16 before; FP16 graphs keep theirs. ONNX Runtime's CPU provider
    cannot run BF16, and computes FP16 in FP32 where no overflow shows: see ``emulate``.

    Args:
        fp32: a graph of opset 13 or later with float32 input ``image`` and output ``embedding``.
        images: (N, 3, H, W) float32, preprocessed real photographs: FP16 ranges are measured on them.
        keep: names of nodes that stay FP32.

    Returns:
        The files written, the graph first, and the report.

    Raises:
        InputError: ``images`` do not fit, or ``target`` cannot be written or is ``fp32`` itself.
        ModelError: the graph cannot be converted.
    """
    if target.resolve() == fp32.resolve():
        raise InputError(f"expected another file than {fp32} to write to: it is read while the new one is written")
    ir = require("onnx_ir", purpose="convert precision", extra="export")
    ranges = measure_ranges(fp32, images)
    model = ir.load(fp32)
    if precision == "bf16":
        _raise_opset(model)
    infer_types(model)
    plan = plan_precision(model, ranges, precision, keep=keep)
    casts = _apply(model, plan, precision)
    model.metadata_props["edgeclip.variant"] = precision
    report = PrecisionReport(
        precision=precision,
        opset=model.opset_imports[""],
        low_nodes=len(plan.low),
        kept=tuple(KeptNode(node.name or "", node.op_type, *why) for node, why in plan.kept.items()),
        casts=casts,
    )
    return save_graph(model, target), report


def _raise_opset(model: Any) -> None:
    if model.opset_imports[""] >= BF16_OPSET:
        return
    converter = require("onnxscript.version_converter", purpose="raise the opset", extra="export")
    converter.convert_version(model, target_version=BF16_OPSET)
    if model.opset_imports[""] != BF16_OPSET:
        got = model.opset_imports[""]
        raise ModelError(
            f"expected a graph that can be raised to opset {BF16_OPSET}, which BF16 needs, got opset {got}"
        )
    model.ir_version = max(model.ir_version, _BF16_IR_VERSION)


def _apply(model: Any, plan: Plan, precision: LowPrecision) -> int:
    """Retype the low nodes' outputs and constants, and cast every value that a reader wants otherwise."""
    ir = require("onnx_ir", purpose="convert precision", extra="export")
    low = ir.DataType[ONNX_NAME[precision]]
    computed = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    values = [value for value in computed if is_float(value)]
    for node, slots in plan.low.items():
        for index in slots.outputs:
            node.outputs[index].dtype = low
    _store_constants(model, plan, low)
    return sum(_cast(model, value, plan, low) for value in values)


def _wants_low(use: Any, plan: Plan) -> bool:
    return use.node in plan.low and use.idx in plan.low[use.node].inputs


def _store_constants(model: Any, plan: Plan, low: Any) -> None:
    """Give the low nodes constants of the low type; one that FP32 nodes read too is there twice."""
    ir = require("onnx_ir", purpose="convert precision", extra="export")
    for value in [item for item in model.graph.initializers.values() if is_float(item)]:
        uses = [use for use in value.uses() if _wants_low(use, plan)]
        if not uses:
            continue
        shared = len(uses) < len(value.uses()) or value.is_graph_output()
        name = _free_name(model, f"{value.name}.{low.name.lower()}") if shared else value.name
        tensor = ir.tensor(value.const_value.numpy().astype(low.numpy()), dtype=low, name=name)
        if not shared:
            value.const_value, value.dtype = tensor, low
            continue
        copy = ir.Value(name=name, type=ir.TensorType(low), shape=value.shape, const_value=tensor)
        model.graph.register_initializer(copy)
        for use in uses:
            use.node.replace_input_with(use.idx, copy)


def _cast(model: Any, value: Value, plan: Plan, low: Any) -> int:
    """Cast ``value`` for those of its readers that want the other type; how many casts that took: 0 or 1."""
    ir = require("onnx_ir", purpose="convert precision", extra="export")
    is_low = value.dtype == low
    uses = [use for use in value.uses() if use.node.op_type not in ANY_TYPE and _wants_low(use, plan) != is_low]
    gives = value.is_graph_output() and is_low
    if not uses and not gives:
        return 0
    wanted = ir.DataType.FLOAT if is_low else low
    node = ir.node("Cast", [value], attributes={"to": int(wanted)})
    made = node.outputs[0]
    made.dtype, made.shape = wanted, value.shape
    name = value.name
    if gives:  # the graph's output keeps its name and type
        outputs = [made if output is value else output for output in model.graph.outputs]
        model.graph.outputs[:] = outputs
        value.name, made.name = _free_name(model, f"{name}.{low.name.lower()}"), name
    else:
        made.name = _free_name(model, f"{name}.{wanted.name.lower()}")
    node.name = f"cast_{made.name}"
    for use in uses:
        use.node.replace_input_with(use.idx, made)
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], node)
    else:
        model.graph.insert_after(producer, node)
    return 1


def _free_name(model: Any, name: str) -> str:
    """``name``, with a number behind it if the graph has such a value."""
    taken = {*model.graph.initializers, *(value.name for node in model.graph for value in node.outputs)}
    number = 1
    free = name
    while free in taken:
        number += 1
        free = f"{name}.{number}"
    return free
