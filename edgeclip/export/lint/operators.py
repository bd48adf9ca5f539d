"""Rules on versions, operators and types: what TensorRT's ONNX parser takes outside of quantization.

Sources: the ONNX-TensorRT list of operators (``docs/operators.md`` of 8.5, 10.0 and 10.15) and its change log; what
TensorRT-RTX 1.7's parser does with a small graph for each rule is in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from edgeclip.export.lint.graph import Graph, Problem, attribute, dtype, error, warning
from edgeclip.extras import require

_OLDEST_OPSET = 9


class _Release(NamedTuple):
    """What the ONNX release holds that a parser was built with, and the first TensorRT with it."""

    opset: int
    ir_version: int
    tensorrt: tuple[int, int]


_RELEASES = (
    _Release(17, 8, (8, 5)),
    _Release(18, 8, (8, 6)),
    _Release(19, 9, (9, 0)),
    _Release(20, 9, (10, 0)),
    _Release(22, 10, (10, 6)),
    _Release(24, 12, (10, 15)),
    _Release(25, 13, (11, 0)),
)

_UNSUPPORTED = {  # marked N in operators.md of TensorRT 10.15
    *("AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad"),
    *("Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det", "DynamicQuantizeLinear", "ImageDecoder"),
    *("MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss"),
    *("Optional", "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch"),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit"),
    *("TfIdfVectorizer", "Unique"),
}
_SINCE = {"GroupNormalization": (8, 6), "LayerNormalization": (8, 6), "Hardmax": (9, 2), "DeformConv": (10, 1)}
_DATA_DEPENDENT = {"NonZero", "NonMaxSuppression", "If", "Loop", "Scan"}
_TYPES_SINCE = {"BFLOAT16": (9, 0), "FLOAT8E4M3FN": (9, 0), "INT4": (10, 0), "FLOAT4E2M1": (10, 8)}
_TYPES = {"FLOAT", "FLOAT16", "INT8", "INT32", "INT64", "UINT8", "BOOL", "DOUBLE", *_TYPES_SINCE}
_COORDINATES = {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}
_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def opset(graph: Graph) -> Iterator[Problem]:
    """The opset lies in what the parser declares; newer ones are tried, and their new operators fail."""
    if graph.opset < _OLDEST_OPSET:
        yield _graph(f"expected opset {_OLDEST_OPSET} or later, got {graph.opset}: no parser declares it")
    yield from _too_new(graph, f"opset {graph.opset}", [graph.opset <= row.opset for row in _RELEASES])


def ir_version(graph: Graph) -> Iterator[Problem]:
    """The file's IR version is known to the parser."""
    version = int(graph.model.ir_version)
    yield from _too_new(graph, f"IR version {version}", [version <= row.ir_version for row in _RELEASES])


def _too_new(graph: Graph, what: str, holds: list[bool]) -> Iterator[Problem]:
    if not any(holds):
        yield _graph(f"{what} is beyond what TensorRT {_text(_RELEASES[-1].tensorrt)} declares")
    elif (needed := _RELEASES[holds.index(True)].tensorrt) > graph.tensorrt:
        yield _graph(f"{what} needs TensorRT {_text(needed)} or later, asked for {_text(graph.tensorrt)}")


def _graph(message: str) -> Problem:
    return "graph", message, "warning"


def operator(graph: Graph) -> Iterator[Problem]:
    """Every operator is one that the parser knows."""
    for node in graph.nodes():
        if node.domain in {"", "ai.onnx"}:
            if node.op_type in _UNSUPPORTED:
                yield error(node, f"TensorRT has no {node.op_type}: export or quantize without it (use Q/DQ for INT8)")
            elif _SINCE.get(node.op_type, (0, 0)) > graph.tensorrt:
                yield error(node, f"{node.op_type} needs TensorRT {_text(_SINCE[node.op_type])} or later")


def domain(graph: Graph) -> Iterator[Problem]:
    """No operators outside ONNX: they need a plugin. The parser takes one named as ONNX's for ONNX's."""
    onnx = require("onnx", purpose="lint a graph")
    functions = {(function.domain, function.name) for function in graph.model.functions.values()}
    for node in graph.nodes():
        if node.domain in {"", "ai.onnx"} or (node.domain, node.op_type) in functions:
            continue
        name = f"{node.domain}.{node.op_type}"
        if onnx.defs.has(node.op_type):
            yield warning(node, f"{name} is taken for ONNX's {node.op_type}, whatever its domain says: write ONNX's")
        else:
            yield error(node, f"{name} is not an ONNX operator: TensorRT looks for a plugin of that name and fails")


def data_dependent_shape(graph: Graph) -> Iterator[Problem]:
    """No control flow and no shapes that depend on values: they hinder fusion, or need a plugin."""
    for node in graph.nodes(*_DATA_DEPENDENT):
        yield warning(node, f"{node.op_type} makes shapes or flow depend on data: TensorRT may refuse or run it slowly")


def value_type(graph: Graph) -> Iterator[Problem]:
    """Every value has a type that TensorRT has; UINT8 only at the graph's edge."""
    edge = [*graph.model.graph.inputs, *graph.model.graph.outputs]
    made = (value for node in graph.nodes() for value in node.outputs)
    kinds: dict[str, str] = {}
    for value in dict.fromkeys((*edge, *graph.model.graph.initializers.values(), *made)):
        kind = dtype(value)
        if kind is None:
            continue
        kinds.setdefault(kind, value.name)
        if kind not in _TYPES:
            yield value.name, f"TensorRT has no {kind} tensors: use FLOAT, FLOAT16, BFLOAT16, INT32 or INT64", "error"
        elif _TYPES_SINCE.get(kind, (0, 0)) > graph.tensorrt:
            yield value.name, f"{kind} needs TensorRT {_text(_TYPES_SINCE[kind])} or later", "error"
        elif kind == "UINT8" and value not in edge and not graph.is_constant(value) and not _gives_quantized(value):
            yield value.name, "UINT8 is only for inputs and outputs of the graph: cast it at once", "error"
    if "DOUBLE" in kinds:
        yield kinds["DOUBLE"], "TensorRT casts DOUBLE to FLOAT, and clips what does not fit: export FLOAT", "warning"
    if "FLOAT8E4M3FN" in kinds:
        message = "FP8 needs a GPU of compute capability 8.9 or later: older ones cannot build this"
        yield kinds["FLOAT8E4M3FN"], message, "warning"


def _gives_quantized(value: Any) -> bool:
    return value.producer() is not None and value.producer().op_type == "QuantizeLinear"  # see the Q/DQ rules


def mixed_types(graph: Graph) -> Iterator[Problem]:
    """Inputs that ONNX wants of one type are of one type: a strongly typed network has no implicit casts."""
    onnx = require("onnx", purpose="lint a graph")
    for node in graph.nodes():
        try:
            schema = onnx.defs.get_schema(node.op_type, graph.opset, node.domain)
        except onnx.defs.SchemaError:
            continue  # the operator rules speak of it
        parameters = {item.type_param_str for item in schema.type_constraints}
        if schema.inputs and not schema.inputs[-1].is_homogeneous:
            parameters.discard(schema.inputs[-1].type_str)
        bound: dict[str, str] = {}
        for index, value in enumerate(node.inputs):
            name = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
            kind = dtype(value)
            if kind is None or name not in parameters:
                continue
            if bound.setdefault(name, kind) != kind:
                say = warning if node.op_type in {"QuantizeLinear", "DequantizeLinear", "Clip"} else error
                yield say(node, f"{node.op_type} reads {bound[name]} and {kind}, expected one type: add a Cast")
                break


def integer_product(graph: Graph) -> Iterator[Problem]:
    """Matrix products and convolutions compute on floating point; INT8 enters by Q/DQ."""
    for node in graph.nodes(*_PRODUCTS):
        kinds = [dtype(value) for value in node.inputs]
        if bad := next((kind for kind in kinds if kind and "INT" in kind), None):
            yield error(node, f"{node.op_type} on {bad}: TensorRT multiplies floating point; use Q/DQ for INT8")


def resize(graph: Graph) -> Iterator[Problem]:
    """Resize in one of the forms that the parser has."""
    for node in graph.nodes("Resize"):
        mode = attribute(node, "mode", "nearest")
        coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
        policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
        sizes = node.inputs[3] if len(node.inputs) > 3 else None
        if attribute(node, "antialias", 0):
            yield error(node, "TensorRT has no antialiased Resize: resize before the graph, or without antialias")
        if coordinates not in _COORDINATES:
            yield error(node, f"TensorRT has no coordinate mode {coordinates}: expected one of {sorted(_COORDINATES)}")
        if policy != "stretch":
            yield error(node, f"TensorRT has no aspect ratio policy {policy}: expected stretch")
        if sizes is not None and "axes" in node.attributes:
            yield error(node, "TensorRT misreads sizes given for some axes only: give the size of every axis")
        if mode == "cubic":
            yield warning(node, "expected nearest or linear, which TensorRT declares, got cubic: check the engine")


def form(graph: Graph) -> Iterator[Problem]:
    """Single parts that the parser lacks: second outputs, dilated pools, axes known only at run time."""
    for node in graph.nodes("MaxPool", "LayerNormalization"):
        if any(value.name for value in node.outputs[1:]):
            yield error(node, f"TensorRT gives only the first output of {node.op_type}: drop the others")
    for node in graph.nodes("MaxPool", "AveragePool", "LpPool"):
        if set(attribute(node, "dilations", ())) - {1}:
            yield error(node, f"TensorRT has no dilated {node.op_type}: expected dilations of 1")
    for node in graph.nodes():
        axes = node.inputs[1] if node.op_type.startswith("Reduce") and len(node.inputs) > 1 else None
        if axes is not None and not graph.is_constant(axes):
            yield error(node, f"the axes of {node.op_type} are computed: TensorRT needs them constant")


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
