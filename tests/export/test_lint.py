"""Every rule fires on a graph broken in one way, is silent on the good one, and agrees with TensorRT-RTX's parser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

from edgeclip.errors import EdgeclipError, LintError, ModelError
from edgeclip.export.lint.lint import RULES, Finding, lint, require_legal

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

node = helper.make_node
FLOAT, HALF, DOUBLE, INT8, INT64 = 1, 10, 11, 3, 7
rng = np.random.default_rng(0)

LEVELS = rng.integers(-127, 128, (32, 32)).astype(np.int8)
WEIGHT = rng.standard_normal((32, 32)).astype(np.float32)
CONSTANTS: dict[str, np.ndarray[Any, Any]] = {
    "scale": np.float32(0.05),
    "zero": np.int8(0),
    "levels": LEVELS,
    "scales": np.full(32, 0.01, np.float32),
    "weight": WEIGHT,
}
IMAGES = ("x", FLOAT, ["N", 3, 16, 16])


def graph(
    nodes: list[Any],
    constants: dict[str, Any] | None = None,
    *,
    x: tuple[str, int, list[Any]] = ("x", FLOAT, ["N", 32]),
    y: int = FLOAT,
    opset: int = 18,
    ir_version: int = 8,
    domain: str = "",
) -> Any:
    """A model from ``x`` to ``y`` with those of the constants that its nodes read."""
    read = {name for item in nodes for name in item.input}
    values = {name: value for name, value in (CONSTANTS | (constants or {})).items() if name in read}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*x)],
        [helper.make_tensor_value_info("y", y, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(made, opset_imports=imports, ir_version=ir_version)


def quantize(x: str = "x", y: str = "xd", *, zero: str = "zero", scale: str = "scale", **attributes: Any) -> list[Any]:
    """QuantizeLinear and DequantizeLinear of an activation."""
    more = [zero] if zero else []
    return [
        node("QuantizeLinear", [x, scale, *more], [f"{y}_q"], name=f"Q_{y}", **attributes),
        node("DequantizeLinear", [f"{y}_q", scale, *more], [y], name=f"DQ_{y}", **attributes),
    ]


def product(
    constants: dict[str, Any] | None = None,
    *,
    activation: list[Any] | None = None,
    op: str = "MatMul",
    axis: int = 1,
    weight_zero: str = "",
    x: tuple[str, int, list[Any]] = ("x", FLOAT, ["N", 32]),
    opset: int = 18,
    ir_version: int = 8,
    **attributes: Any,
) -> Any:
    """A quantized product: Q/DQ on the activation, a weight of 8-bit levels per channel."""
    weight = ["levels", "scales", *([weight_zero] if weight_zero else [])]
    nodes = [
        *(quantize() if activation is None else activation),
        node("DequantizeLinear", weight, ["w"], name="weight", axis=axis),
        node(op, ["xd", "w"], ["y"], name="product", **attributes),
    ]
    return graph(nodes, constants, x=x, opset=opset, ir_version=ir_version)


def convolution(op: str, axis: int, shape: tuple[int, ...]) -> Any:
    scales = np.full(shape[axis], 0.01, np.float32)
    levels = rng.integers(-127, 128, shape).astype(np.int8)
    return product({"levels": levels, "scales": scales}, op=op, axis=axis, x=IMAGES)


def resize(opset: int = 18, sizes: list[int] | None = None, **attributes: Any) -> Any:
    inputs = ["x", "", "", "sizes"] if sizes else ["x", "", "by"]
    constants = {"by": np.array([1, 1, 2, 2], np.float32), "sizes": np.array(sizes or [0])}
    return graph([node("Resize", inputs, ["y"], **attributes)], constants, x=IMAGES, opset=opset, ir_version=9)


def cast(to: int, then: str = "Add") -> Any:
    return graph(
        [node("Cast", ["x"], ["a"], to=to), node(then, ["a", "a"], ["b"]), node("Cast", ["b"], ["y"], to=FLOAT)]
    )


def half(*inner: Any) -> Any:
    return graph([node("Cast", ["x"], ["h"], to=HALF), *inner, node("Cast", ["r"], ["y"], to=FLOAT)])


def identity() -> list[Any]:
    return [node("Identity", ["x"], ["xd"])]


GOOD: dict[str, Callable[[], Any]] = {
    "a quantized product": product,
    "a weight with one scale": lambda: product({"scales": np.float32(0.01)}),
    "a transposed Gemm": lambda: product(op="Gemm", axis=0, transB=1),
    "a Gemm": lambda: product(op="Gemm"),
    "a convolution": lambda: convolution("Conv", 0, (16, 3, 3, 3)),
    "a transposed convolution": lambda: convolution("ConvTranspose", 1, (3, 16, 3, 3)),
    "8-bit weights alone": lambda: product(activation=identity()),
    "8-bit weights alone, along the other axis": lambda: product(activation=identity(), axis=0),
    "a float weight, quantized in the graph": lambda: graph(
        [
            *quantize(),
            *quantize("weight", "w", scale="scales", zero="zeros", axis=1),
            node("MatMul", ["xd", "w"], ["y"]),
        ],
        {"zeros": np.zeros(32, np.int8)},
    ),
    "moved between Q and DQ": lambda: graph(
        [
            node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            node("Reshape", ["q", "shape"], ["r"]),
            node("DequantizeLinear", ["r", "scale", "zero"], ["y"]),
        ],
        {"shape": np.array([-1, 16])},
    ),
    "a scale from a Constant node": lambda: graph(
        [node("Constant", [], ["s"], value=numpy_helper.from_array(np.float32(0.1)[None])), *quantize(y="y", scale="s")]
    ),
    "linear resize": lambda: resize(mode="linear"),
    "UINT8 images": lambda: graph([node("Cast", ["x"], ["y"], to=FLOAT)], x=("x", TensorProto.UINT8, ["N", 32])),
    "INT64 arithmetic": lambda: cast(INT64),
    "a normalisation in FP32": lambda: graph([node("LayerNormalization", ["x", "scales"], ["y"])]),
    "constant axes": lambda: graph([node("ReduceMean", ["x", "axes"], ["y"])], {"axes": np.array([1])}),
}

E, W = "error", "warning"
# name: (rule, severity, whether TensorRT-RTX 1.7 refuses it too, graph). Where it does not and the severity is error,
# the full TensorRT's documents exclude it.
BROKEN: dict[str, tuple[str, str, bool, Callable[[], Any]]] = {
    "activation zero-point": ("zero-point", E, True, lambda: product({"zero": np.int8(3)})),
    "weight zero-point": (
        "zero-point",
        E,
        True,
        lambda: product({"zeros": np.full(32, 2, np.int8)}, weight_zero="zeros"),
    ),
    "computed zero-point": (
        "zero-point",
        E,
        True,
        lambda: graph(
            [
                node("Cast", ["x"], ["i"], to=INT8),
                node("ReduceMax", ["i"], ["z"], keepdims=0),
                *quantize(y="y", zero="z"),
            ]
        ),
    ),
    "UINT8 activation": ("quantized-type", E, False, lambda: product({"zero": np.uint8(0)})),
    "no zero-point, hence UINT8": ("quantized-type", E, False, lambda: product(activation=quantize(zero=""))),
    "UINT8 weight": (
        "quantized-type",
        E,
        True,
        lambda: product({"levels": LEVELS.view(np.uint8), "zeros": np.zeros(32, np.uint8)}, weight_zero="zeros"),
    ),
    "INT16 activation": (
        "quantized-type",
        E,
        True,
        lambda: graph(quantize(y="y"), {"zero": np.int16(0)}, opset=21, ir_version=10),
    ),
    "INT32 bias": (
        "quantized-type",
        E,
        True,
        lambda: graph(
            [node("DequantizeLinear", ["bias", "scale"], ["b"]), node("Add", ["x", "b"], ["y"])],
            {"bias": np.arange(32, dtype=np.int32)},
        ),
    ),
    "INT4 activation": (
        "quantized-type",
        E,
        False,
        lambda: graph(quantize(y="y"), {"zero": np.zeros((), ml_dtypes.int4)}, opset=21, ir_version=10),
    ),
    "zero scale": ("scale", E, True, lambda: product({"scale": np.float32(0)})),
    "negative scale": ("scale", E, True, lambda: product({"scale": np.float32(-1)})),
    "NaN scale": ("scale", E, True, lambda: product({"scale": np.float32(np.nan)})),
    "one zero among a weight's scales": (
        "scale",
        E,
        True,
        lambda: product({"scales": np.array([0.0, *[0.01] * 31], np.float32)}),
    ),
    "too few scales": ("scale", E, True, lambda: product({"scales": np.full(16, 0.01, np.float32)})),
    "too few zero-points": (
        "scale",
        E,
        True,
        lambda: product({"zeros": np.zeros(16, np.int8)}, weight_zero="zeros"),
    ),
    "infinite scale": ("scale", W, False, lambda: product({"scale": np.float32(np.inf)})),
    "denormal scale": ("scale", W, False, lambda: product({"scale": np.float32(1e-42)})),
    "computed scale": (
        "scale",
        W,
        False,
        lambda: graph([node("ReduceMax", ["x"], ["s"], keepdims=0), *quantize(y="y", scale="s")]),
    ),
    "activation per channel": (
        "per-channel-activation",
        E,
        False,
        lambda: product(
            {"scale": np.full(32, 0.05, np.float32), "zero": np.zeros(32, np.int8)}, activation=quantize(axis=1)
        ),
    ),
    "DQ without Q": (
        "pair",
        E,
        False,
        lambda: product(
            activation=[node("DequantizeLinear", ["x", "scale"], ["xd"])], x=("x", TensorProto.INT8, ["N", 32])
        ),
    ),
    "Q without DQ": (
        "pair",
        E,
        False,
        lambda: graph([node("QuantizeLinear", ["x", "scale", "zero"], ["q"]), node("Cast", ["q"], ["y"], to=FLOAT)]),
    ),
    "arithmetic on INT8": (
        "pair",
        E,
        False,
        lambda: graph(
            [
                node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
                node("Add", ["q", "q"], ["r"]),
                node("DequantizeLinear", ["r", "scale", "zero"], ["y"]),
            ]
        ),
    ),
    "INT8 constant without DQ": (
        "pair",
        E,
        True,
        lambda: graph([node("Cast", ["levels"], ["l"], to=FLOAT), node("MatMul", ["x", "l"], ["y"])]),
    ),
    "Q and DQ of different scales": (
        "pair",
        W,
        False,
        lambda: graph(
            [
                node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
                node("DequantizeLinear", ["q", "other"], ["y"]),
            ],
            {"other": np.float32(0.1)},
        ),
    ),
    "Q named as a node before it": (
        "node-name",
        E,
        True,
        lambda: graph([node("Relu", ["x"], ["r"], name="Q_y"), *quantize("r", "y")]),
    ),
    "MatMul scales on inputs": ("weight-axis", W, False, lambda: product(axis=0)),
    "Gemm scales on inputs": ("weight-axis", W, False, lambda: product(op="Gemm", axis=0)),
    "transposed Gemm scales on inputs": ("weight-axis", W, False, lambda: product(op="Gemm", transB=1)),
    "Conv scales on inputs": ("weight-axis", W, False, lambda: convolution("Conv", 1, (16, 3, 3, 3))),
    "ConvTranspose scales on inputs": (
        "weight-axis",
        W,
        False,
        lambda: convolution("ConvTranspose", 0, (3, 16, 3, 3)),
    ),
    "narrow product": (
        "small-product",
        W,
        False,
        lambda: product({"levels": LEVELS[:, :8].copy(), "scales": np.full(8, 0.01, np.float32)}),
    ),
    "old opset": ("opset", W, False, lambda: graph([node("Relu", ["x"], ["y"])], opset=8, ir_version=3)),
    "opset newer than the oldest TensorRT": ("opset", W, False, lambda: graph([node("Relu", ["x"], ["y"])], opset=22)),
    "unknown opset": ("opset", W, False, lambda: graph([node("Relu", ["x"], ["y"])], opset=99)),
    "IR version": ("ir-version", W, False, lambda: graph([node("Relu", ["x"], ["y"])], ir_version=99)),
    "MatMulInteger": (
        "operator",
        E,
        True,
        lambda: graph(
            [
                node("Cast", ["x"], ["i"], to=INT8),
                node("MatMulInteger", ["i", "levels"], ["j"]),
                node("Cast", ["j"], ["y"], to=FLOAT),
            ]
        ),
    ),
    "QLinearMatMul": (
        "operator",
        E,
        True,
        lambda: graph(
            [
                node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
                node("QLinearMatMul", ["q", "scale", "zero", "levels", "scale", "zero", "scale", "zero"], ["r"]),
                node("DequantizeLinear", ["r", "scale", "zero"], ["y"]),
            ]
        ),
    ),
    "DynamicQuantizeLinear": (
        "operator",
        E,
        True,
        lambda: graph(
            [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
        ),
    ),
    "Det": ("operator", E, True, lambda: graph([node("Det", ["x"], ["y"])], x=("x", FLOAT, ["N", 4, 4]))),
    "a contributed operator": (
        "domain",
        E,
        True,
        lambda: graph([node("QuickGelu", ["x"], ["y"], domain="com.microsoft")], domain="com.microsoft"),
    ),
    "an operator of one's own": (
        "domain",
        E,
        True,
        lambda: graph([node("Foo", ["x"], ["y"], domain="mine")], domain="mine"),
    ),
    "a contributed operator named as ONNX's": (
        "domain",
        W,
        False,
        lambda: graph([node("Gelu", ["x"], ["y"], domain="com.microsoft")], domain="com.microsoft"),
    ),
    "shape from data": (  # TensorRT-RTX lacks NonZero's plugin, the full TensorRT has it
        "data-dependent-shape",
        W,
        True,
        lambda: graph([node("NonZero", ["x"], ["i"]), node("Cast", ["i"], ["y"], to=FLOAT)]),
    ),
    "INT16": ("value-type", E, True, lambda: cast(TensorProto.INT16)),
    "UINT32": ("value-type", E, True, lambda: cast(TensorProto.UINT32)),
    "UINT8 inside": ("value-type", E, True, lambda: cast(TensorProto.UINT8)),
    "DOUBLE": ("value-type", W, False, lambda: cast(DOUBLE)),
    "a string": (
        "value-type",
        E,
        True,
        lambda: graph([node("Constant", [], ["c"], value_string="a"), node("Identity", ["x"], ["y"])]),
    ),
    "FP8 on older GPUs": (
        "value-type",
        W,
        True,
        lambda: graph(quantize(y="y"), {"zero": np.zeros((), ml_dtypes.float8_e4m3fn)}, opset=19, ir_version=9),
    ),
    "FP16 plus FP32": ("mixed-types", E, True, lambda: half(node("Add", ["h", "x"], ["r"]))),
    "FP16 activation, FP32 weight": ("mixed-types", E, True, lambda: half(node("MatMul", ["h", "weight"], ["r"]))),
    "FP16 normalisation, FP32 weight": (
        "mixed-types",
        E,
        True,
        lambda: half(node("LayerNormalization", ["h", "scales"], ["r"])),
    ),
    "product of integers": ("integer-product", E, True, lambda: cast(INT64, "MatMul")),
    "antialias": ("resize", E, True, lambda: resize(mode="linear", antialias=1)),
    "symmetric half pixel": (
        "resize",
        E,
        True,
        lambda: resize(19, mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    ),
    "kept aspect ratio": (
        "resize",
        E,
        True,
        lambda: resize(sizes=[1, 3, 20, 24], mode="linear", keep_aspect_ratio_policy="not_larger"),
    ),
    "sizes of some axes": ("resize", E, True, lambda: resize(sizes=[20, 24], mode="linear", axes=[2, 3])),
    "cubic": ("resize", W, False, lambda: resize(mode="cubic")),
    "pooling with indices": (
        "form",
        E,
        True,
        lambda: graph([node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])], x=IMAGES),
    ),
    "normalisation with its mean": (
        "form",
        E,
        True,
        lambda: graph([node("LayerNormalization", ["x", "scales"], ["y", "mean"])]),
    ),
    "dilated pooling": (
        "form",
        E,
        True,
        lambda: graph([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], x=IMAGES),
    ),
    "computed axes": (
        "form",
        E,
        True,
        lambda: graph(
            [
                node("Shape", ["x"], ["shape"], start=1),
                node("Div", ["shape", "shape"], ["axes"]),
                node("ReduceSum", ["x", "axes"], ["y"]),
            ]
        ),
    ),
}


def save(model: Any, folder: Path) -> Path:
    path = folder / "graph.onnx"
    onnx.save(model, str(path))
    return path


def tensorrt_refuses(path: Path, capability: str = "SM86") -> list[str]:
    """What TensorRT-RTX has against a graph, strongly typed and built for a GPU that need not be here."""
    trt = pytest.importorskip("tensorrt_rtx")
    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(message)

    logger = Log()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return [parser.get_error(index).desc() for index in range(parser.num_errors)] or ["refused"]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    profile.set_shape(image.name, *(tuple(n if dim == -1 else dim for dim in image.shape) for n in (1, 2, 4)))
    config.add_optimization_profile(profile)
    return [] if builder.build_serialized_network(network, config) is not None else said or ["not built"]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_graph_has_no_finding_and_tensorrt_takes_it(name: str, tmp_path: Path) -> None:
    path = save(GOOD[name](), tmp_path)
    assert lint(path) == ()
    assert tensorrt_refuses(path) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_graph_broken_in_one_way_is_found_out(name: str, tmp_path: Path) -> None:
    rule, severity, refused, build = BROKEN[name]
    path = save(build(), tmp_path)
    assert (rule, severity) in {(finding.rule, finding.severity) for finding in lint(path)}
    assert bool(tensorrt_refuses(path)) == refused


def test_every_rule_is_shown_to_fire() -> None:
    assert {rule for rule, *_ in BROKEN.values()} == set(RULES)


@pytest.mark.parametrize(
    ("tensorrt", "build", "rule"),
    [
        ((8, 5), lambda: graph([node("LayerNormalization", ["x", "scales"], ["y"])], opset=17), "operator"),
        ((8, 6), lambda: cast(TensorProto.BFLOAT16), "value-type"),
        ((8, 5), lambda: graph([node("Relu", ["x"], ["y"])]), "opset"),
    ],
)
def test_an_older_tensorrt_takes_less(
    tensorrt: tuple[int, int], build: Callable[[], Any], rule: str, tmp_path: Path
) -> None:
    path = save(build(), tmp_path)
    assert lint(path) == ()
    first = lint(path, tensorrt=tensorrt)[0]
    assert first.rule == rule
    assert "needs TensorRT" in first.message


def test_findings_name_the_node_and_say_what_was_expected(tmp_path: Path) -> None:
    findings = lint(save(product({"zero": np.int8(3)}), tmp_path))
    assert {finding.node for finding in findings} == {"Q_xd", "DQ_xd"}
    assert all(finding.message.startswith("expected zero-points of 0, got 3") for finding in findings)
    assert msgspec.json.decode(msgspec.json.encode(findings), type=tuple[Finding, ...]) == findings


def test_an_illegal_graph_is_one_error_that_lists_the_first_five(tmp_path: Path) -> None:
    nodes = [item for index in range(4) for item in quantize("x" if not index else f"v{index}", f"v{index + 1}")]
    bad = graph([*nodes, node("Relu", ["v4"], ["y"])], {"zero": np.int8(1)})
    with pytest.raises(
        LintError, match=r"graph\.onnx: .* got 8 errors: \[zero-point\] Q_v1: .*; and 3 more$"
    ) as caught:
        require_legal(save(bad, tmp_path))
    assert str(caught.value).count("[zero-point]") == 5
    assert isinstance(caught.value, ModelError)
    assert caught.value.exit_code == EdgeclipError.exit_code == 2


def test_warnings_do_not_refuse_and_come_back(tmp_path: Path) -> None:
    warnings = require_legal(save(product(axis=0), tmp_path))
    assert [finding.rule for finding in warnings] == ["weight-axis"]


def test_errors_come_before_warnings(tmp_path: Path) -> None:
    findings = lint(save(product({"zero": np.int8(3)}, axis=0), tmp_path))
    assert [finding.severity for finding in findings] == [E, E, W]


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    for name in ("x.onnx", "absent.onnx"):
        with pytest.raises(ModelError, match="expected an ONNX file"):
            lint(tmp_path / name)
