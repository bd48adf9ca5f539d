"""A float32 graph in, the same graph damaged as tools, devices and mistakes damage it, out: still in float32.

Rounding to levels is written out as multiplication, rounding and clipping, so that every engine computes the same
numbers whatever kernels it has. ``gate.py`` asks what each damage costs and whether the gate sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from edgeclip.export.half.ranges import infer_types
from edgeclip.export.int8.qdq import Model, Node, Value, array, constant, dequantized, is_weight, pairs, prune
from edgeclip.files import atomic_file
from edgeclip.prompts import FloatArray

_SAMPLED = 1024  # numbers kept of each value of each image
_QUANTIZERS = {"QuantizeLinear", "DequantizeLinear"}


class Seen:
    """What every value of a graph was on some images.

    Attributes:
        samples: name → (N, up to 1024) numbers drawn evenly from each image's value.
        extremes: name → (N, 2), each image's least and largest number.
    """

    def __init__(self, samples: dict[str, FloatArray], extremes: dict[str, FloatArray]) -> None:
        self.samples, self.extremes = samples, extremes

    def save(self, path: Path) -> None:
        """Write all to one file, atomically."""
        arrays = {f"samples {key}": rows for key, rows in self.samples.items()}
        arrays |= {f"extremes {key}": rows for key, rows in self.extremes.items()}
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, names=np.array(list(arrays)), **_numbered(arrays))

    @classmethod
    def load(cls, path: Path) -> Seen:
        """Read what ``save`` wrote."""
        kinds: dict[str, dict[str, FloatArray]] = {"samples": {}, "extremes": {}}
        with np.load(path) as found:
            for number, text in enumerate(found["names"]):
                kind, _, name = str(text).partition(" ")
                kinds[kind][name] = found[f"rows{number}"]
        return cls(**kinds)

    def range(self, name: str, percentile: float = 100.0, images: int | None = None) -> tuple[float, float]:
        """The range of a value over the first ``images`` of them: extremes, or what so many percent lie within."""
        if percentile >= 100:
            found = self.extremes[name][:images]
            return float(found[:, 0].min()), float(found[:, 1].max())
        drawn = self.samples[name][:images]
        low, high = np.percentile(drawn, [100 - percentile, percentile])
        return float(low), float(high)


def look(path: Path, inputs: FloatArray) -> Seen:
    """Run a graph on images (N, 3, H, W), one by one, and keep what every float value was."""
    model = ir.load(path)
    infer_types(model)
    names = [
        value.name
        for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
        if value.dtype == ir.DataType.FLOAT
    ]
    made = [name for name in names if name != "image"]
    known = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs[:] = [known[name] for name in made]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    drawn: dict[str, list[FloatArray]] = {name: [] for name in names}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for image in inputs:
        for name, value in zip(["image", *made], [image, *session.run(None, {"image": image[None]})], strict=True):
            flat = np.asarray(value, np.float32).reshape(-1)
            drawn[name].append(flat[:: max(1, flat.size // _SAMPLED)][:_SAMPLED])
            ends[name].append((float(flat.min()), float(flat.max())))
    return Seen(
        {name: np.stack(rows) for name, rows in drawn.items()},
        {name: np.array(rows, np.float32) for name, rows in ends.items()},
    )


def _numbered(arrays: dict[str, FloatArray]) -> dict[str, Any]:
    """By numbers: the names of an archive's members may not be those of a graph's values."""
    return {f"rows{number}": rows for number, rows in enumerate(arrays.values())}


# Rounding to levels


def products(model: Model) -> list[Node]:
    """Convolutions and matrix products with a weight, in the order of computation."""
    return [
        node for node in model.graph if node.op_type in {"Conv", "MatMul", "Gemm"} and array(node.inputs[1]) is not None
    ]


def round_weights(model: Model, bits: int, nodes: Iterable[Node], *, per_tensor: bool = False) -> None:
    """Weights on 2^bits - 1 symmetric levels, of each output channel or of the whole tensor."""
    for node in nodes:
        weight = array(node.inputs[1])
        assert weight is not None
        channel = 0 if node.op_type == "Conv" or _is_transposed(node) else weight.ndim - 1
        others = tuple(axis for axis in range(weight.ndim) if axis != channel)
        largest = np.abs(weight).max() if per_tensor else np.abs(weight).max(axis=others, keepdims=True)
        step = np.maximum(largest / (2 ** (bits - 1) - 1), 1e-12)
        rounded = (np.rint(weight / step) * step).astype(np.float32)
        node.replace_input_with(1, constant(model, f"{node.inputs[1].name}.rounded", rounded))


def _is_transposed(node: Node) -> bool:
    return node.op_type == "Gemm" and "transB" in node.attributes and bool(node.attributes["transB"].as_int())


def round_values(
    model: Model,
    ranges: Mapping[str, tuple[float, float]],
    bits: int,
    nodes: Iterable[Node],
    *,
    every_input: bool = False,
    asymmetric: bool = False,
    signed_as_unsigned: bool = False,
) -> None:
    """What ``nodes`` read, on the levels of a whole tensor: 2^bits - 1 symmetric ones, or 2^bits from end to end.

    Args:
        ranges: of values by their names; what has none is left alone.
        every_input: also what is not the first input.
        signed_as_unsigned: levels 0 … 2^bits - 1, of which a reader takes the upper half for negative ones.
    """
    wanted: dict[Value, list[tuple[Node, int]]] = {}
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in ranges and (index == 0 or every_input):
                wanted.setdefault(value, []).append((node, index))
    for value, readers in wanted.items():
        low, high = ranges[value.name]
        if signed_as_unsigned:
            rounded = _levels(model, value, max(high, 1e-12) / (2**bits - 1), 0, 2**bits - 1, wrapped=True)
        elif asymmetric:
            step = max(max(high, 0.0) - min(low, 0.0), 1e-12) / (2**bits - 1)
            lowest = round(min(low, 0.0) / step)
            rounded = _levels(model, value, step, lowest, lowest + 2**bits - 1)
        else:
            most = 2 ** (bits - 1) - 1
            rounded = _levels(model, value, max(abs(low), abs(high), 1e-12) / most, -most, most)
        for node, index in readers:
            node.replace_input_with(index, rounded)


def _levels(model: Model, value: Value, step: Any, low: float, high: float, *, wrapped: bool = False) -> Value:
    """``value`` on whole multiples, from ``low`` to ``high``, of ``step``: a number, or one for each channel."""
    scale = np.asarray(step, np.float32)
    parts = {"inverse": 1 / scale, "step": scale, "low": np.float32(low), "high": np.float32(high)}
    known = {key: constant(model, f"{value.name}.{key}", np.asarray(part, np.float32)) for key, part in parts.items()}
    nodes = [ir.node("Mul", [value, known["inverse"]])]
    nodes.append(ir.node("Round", nodes[-1].outputs))
    nodes.append(ir.node("Clip", [nodes[-1].outputs[0], known["low"], known["high"]]))
    if wrapped:
        half, whole = (constant(model, f"{value.name}.{n}", np.float32(n)) for n in ((high + 1) / 2, high + 1))
        nodes.append(ir.node("Div", [nodes[-1].outputs[0], half]))
        nodes.append(ir.node("Floor", nodes[-1].outputs))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], whole]))
        nodes.append(ir.node("Sub", [nodes[2].outputs[0], nodes[-1].outputs[0]]))
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], known["step"]]))
    _insert(model, value, nodes, "levels")
    return nodes[-1].outputs[0]


def _insert(model: Model, value: Value, nodes: Sequence[Node], suffix: str) -> None:
    taken = sum(1 for node in model.graph)  # a value may be rounded twice
    for number, node in enumerate(nodes):
        name = f"{value.name}.{suffix}.{taken}.{number}"
        for output in node.outputs:
            output.name, output.dtype, output.shape = name, value.dtype or ir.DataType.FLOAT, value.shape
        node.name = f"{name}.node"
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], list(nodes))
    else:
        model.graph.insert_after(producer, list(nodes))


def unfold(model: Model) -> None:
    """Write a Q/DQ graph's rounding out, exact in float32: what a device with 32-bit sums computes."""
    for node in list(model.graph):
        for index, value in enumerate(node.inputs):
            producer = value.producer() if value is not None else None
            if producer is not None and is_weight(producer):
                node.replace_input_with(index, constant(model, f"{value.name}.float", dequantized(producer)))
    for quantize, dequantize in list(pairs(model)):
        step, zero = array(quantize.inputs[1]), array(quantize.inputs[2])
        assert step is not None
        assert zero is not None
        limits = np.iinfo(zero.dtype)
        offset = int(zero.reshape(-1)[0])
        rounded = _levels(model, quantize.inputs[0], step, limits.min - offset, limits.max - offset)
        _take_over(dequantize.outputs[0], rounded)
    prune(model)
    left = [node.name for node in model.graph if node.op_type in _QUANTIZERS]
    assert not left, left


def _take_over(value: Value, other: Value) -> None:
    """``other`` in place of ``value``, also as the graph's output."""
    if value.is_graph_output():
        value.name, other.name = f"{value.name}.before", value.name
    value.replace_all_uses_with(other, replace_graph_outputs=True)


# Low precision


def low_precision(model: Model, kind: str, *, only: Callable[[Node], bool] = lambda _: True) -> None:
    """Every result of the nodes chosen, and their weights, rounded to float16 or bfloat16; larger ones become inf."""
    infer_types(model)
    dtype = ir.DataType[kind]
    for node in [node for node in model.graph if only(node)]:
        for index, value in enumerate(node.inputs):
            weight = array(value)
            if weight is not None and weight.dtype == np.float32:
                rounded = weight.astype(dtype.numpy()).astype(np.float32)
                node.replace_input_with(index, constant(model, f"{value.name}.{kind}", rounded))
        for value in list(node.outputs):
            if value.dtype != ir.DataType.FLOAT or value.is_graph_output():
                continue
            readers = list(value.uses())
            down = ir.node("Cast", [value], attributes={"to": int(dtype)})
            up = ir.node("Cast", down.outputs, attributes={"to": int(ir.DataType.FLOAT)})
            _insert(model, value, [down, up], kind)
            down.outputs[0].dtype = dtype
            for use in readers:
                use.node.replace_input_with(use.idx, up.outputs[0])


# Mistakes


def branches(model: Model) -> list[tuple[Node, Value]]:
    """Additions of a block's result to what went into it, each with that."""
    order: dict[Value, int] = {}
    found = []
    for number, node in enumerate(model.graph):
        for output in node.outputs:
            order[output] = number
        first, second = (*node.inputs, None, None)[:2] if node.op_type == "Add" else (None, None)
        if first in order and second in order and abs(order[first] - order[second]) > 2:
            found.append((node, min(first, second, key=order.__getitem__)))
    return found


def drop_branch(model: Model, number: int) -> None:
    """Leave the result of one block out."""
    node, kept = branches(model)[number]
    node.outputs[0].replace_all_uses_with(kept)
    prune(model)


def shuffle_channels(model: Model, node: Node, share: float) -> None:
    """A share of a product's output channels change places."""
    weight = array(node.inputs[1])
    assert weight is not None
    axis = 0 if node.op_type == "Conv" or _is_transposed(node) else weight.ndim - 1
    count = max(2, round(share * weight.shape[axis]))
    order: npt.NDArray[np.intp] = np.arange(weight.shape[axis])
    order[:count] = np.roll(order[:count], 1)
    shuffled = np.take(weight, order, axis=axis)
    node.replace_input_with(1, constant(model, f"{node.inputs[1].name}.shuffled", shuffled))


def drop_bias(model: Model, nodes: Iterable[Node]) -> None:
    """Biases of zero."""
    for node in nodes:
        if len(node.inputs) > 2 and (bias := array(node.inputs[2])) is not None:
            node.replace_input_with(2, constant(model, f"{node.inputs[2].name}.none", np.zeros_like(bias)))


def scale_residual(model: Model, factor: float) -> None:
    """A transformer whose residual stream is ``factor`` times as large, and which computes the same.

    LayerNorm divides by the size of its input, so what is written into the stream may have any size. Pretrained towers
    differ by orders of magnitude there, and with it in where squares overflow.
    """
    into = [node for node, _ in branches(model)]
    for node in into:
        for index, value in enumerate(node.inputs):
            part = value.producer()
            if part in into or part is None:
                continue
            scaled = ir.node("Mul", [value, constant(model, f"{value.name}.factor", np.float32(factor))])
            _insert(model, value, [scaled], "scaled")
            node.replace_input_with(index, scaled.outputs[0])
