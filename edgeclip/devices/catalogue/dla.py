"""The ONNX operations of a model in, whether it is fit for NVIDIA's DLA out, and what would fall back to the GPU.

The DLA is made for convolutional networks in FP16 and INT8. What it does not take falls back to the GPU; each crossing
costs a copy and a change of layout, so a network that crosses in every block is slower there than on the GPU alone.

What it takes: NVIDIA, TensorRT documentation, DLA Supported Layers and Restrictions,
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/dla-layer-restrictions.html
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgeclip.devices.catalogue.jetpack import load_faults

# ONNX operation -> what the DLA asks of it.
DLA_OPERATIONS = {
    "Conv": "2D; kernel 1 to 32, stride 1 to 8, at most 8192 channels",
    "ConvTranspose": "2D; no groups, no dilation, no padding",
    "MaxPool": "2D; window 1 to 8",
    "AveragePool": "2D; window 1 to 8",
    "Relu": "",
    "LeakyRelu": "",
    "PRelu": "the slope is a constant",
    "Clip": "as ReLU6: from 0 to a positive number",
    "Sigmoid": "",
    "Tanh": "",
    "Add": "2D",
    "Sub": "2D",
    "Mul": "2D",
    "Div": "2D",
    "Max": "2D",
    "Min": "2D",
    "Pow": "2D; the exponent is a constant",
    "Concat": "along channels",
    "BatchNormalization": "folded into the convolution before it, or a scale for each channel",
    "LRN": "window 3, 5, 7 or 9, across channels",
    "ReduceMax": "",
    "Resize": "nearest or linear, of height and width",
    "Slice": "of channels, height and width",
}
# The first DLA has no softmax; Orin's has one.
_SECOND_GENERATION = {"Softmax": "along one axis; in FP16"}

# Constants, their unpacking and fixed shapes are folded before the DLA sees the graph.
_FOLDED = {"Constant", "Identity", "Dropout", "Cast", "Shape"}

# What a convolutional encoder ends in: it falls back once, behind the last convolution, and costs one crossing.
_TAIL = {"GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "Squeeze", "Gemm", "MatMul", "Softmax"}
_TAIL_AT_MOST = 8

_QDQ = "Q/DQ in the graph is not taken before TensorRT 11.4; INT8 there needs ranges from a calibration"

_WHY = {
    "LayerNormalization": "no normalisation over a token's features",
    "GroupNormalization": "no normalisation whose statistics are of the input",
    "InstanceNormalization": "no normalisation whose statistics are of the input",
    "RMSNormalization": "no normalisation over a token's features",
    "Attention": "no product of two activations",
    "MatMul": "no product of two activations; a product with weights has to be written as a 1×1 convolution",
    "Einsum": "no product of two activations",
    "Gemm": "has to be written as a 1×1 convolution",
    "Gelu": "not among its activations",
    "Erf": "not among its activations (GELU)",
    "HardSigmoid": "not among its activations",
    "HardSwish": "not among its activations",
    "Softmax": "in Orin's DLA only",
    "Sqrt": "no square root (a layer normalisation spelt out, say)",
    "ReduceMean": "of the reductions only the maximum",
    "GlobalAveragePool": "a reduction; an AveragePool with a window of at most 8 would be taken",
    "Transpose": "taken in four dimensions alone; the heads of attention have five",
    "Reshape": "taken in four dimensions alone",
    "Gather": "no indexing",
    "QuantizeLinear": _QDQ,
    "DequantizeLinear": _QDQ,
}


@dataclass(frozen=True)
class Fallback:
    """An operation that the DLA does not take.

    Attributes:
        count: how often it was named.
    """

    operation: str
    count: int
    why: str


@dataclass(frozen=True)
class DlaVerdict:
    """Whether a model should be built for the DLA.

    Attributes:
        fit: that all but an encoder's last few nodes run there; a build has the last word, as sizes count too.
        on_dla: operations that it takes, with what it asks of them.
        fallback: operations that run on the GPU.
        reasons: why it is not fit, one sentence each; empty where it is.
    """

    fit: bool
    on_dla: dict[str, str]
    fallback: tuple[Fallback, ...]
    reasons: tuple[str, ...]


def dla_verdict(
    operations: Iterable[str], *, version: Literal["1.0", "2.0"] = "2.0", tensorrt: str | None = None
) -> DlaVerdict:
    """Whether a graph of these operations is fit for a DLA.

    Args:
        operations: ONNX operation of every node (``node.op_type``), repeated as often as it is there; a set tells less,
            as a network that falls back in every block looks like one that does so once.
        version: of the DLA, ``"1.0"`` on Xavier, ``"2.0"`` on Orin.
        tensorrt: the TensorRT that would build it, as some have no DLA at all.
    """
    counts = Counter(operations)
    taken = DLA_OPERATIONS | (_SECOND_GENERATION if version == "2.0" else {})
    folded = _FOLDED | ({"DequantizeLinear"} if "QuantizeLinear" not in counts else set())
    fallback = tuple(
        Fallback(name, count, _WHY.get(name, "not among what it takes"))
        for name, count in sorted(counts.items())
        if name not in taken and name not in folded
    )
    reasons = [
        f"{each.operation} ({each.count}) falls back to the GPU: {each.why}"
        for each in fallback
        if each.operation not in _TAIL
    ]
    tail = {each.operation: each.count for each in fallback if each.operation in _TAIL}
    if sum(tail.values()) > _TAIL_AT_MOST:
        reasons.append(
            f"{sum(tail.values())} nodes ({', '.join(tail)}) fall back that a convolutional encoder has only at its "
            "end: the graph is cut again and again"
        )
    if "Conv" not in counts:
        reasons.append("it has no convolution, which is what the DLA is for")
    if tensorrt is not None:
        reasons += [
            f"{fault.what}, and this is {tensorrt}: {fault.advice}"
            for fault in load_faults()
            if fault.component == "dla" and fault.affects(tensorrt)
        ]
    on_dla = {name: taken[name] for name in sorted(counts) if name in taken}
    return DlaVerdict(fit=not reasons, on_dla=on_dla, fallback=fallback, reasons=tuple(reasons))
