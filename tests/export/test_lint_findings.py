"""Findings to the word: which node, what was expected, how bad; and what each rule lets pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from edgeclip.errors import LintError
from edgeclip.export.lint.graph import Graph
from edgeclip.export.lint.lint import OLDEST_TENSORRT, lint, require_legal
from edgeclip.export.lint.operators import operator
from tests.export.test_lint import (
    FLOAT,
    HALF,
    IMAGES,
    INT8,
    INT64,
    cast,
    convolution,
    graph,
    half,
    node,
    product,
    quantize,
    resize,
    save,
)

onnx = pytest.importorskip("onnx", reason="the linter needs edgeclip[export]")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

Build = Callable[[], Any]


def said(path: Path, tensorrt: tuple[int, int] = (10, 0)) -> list[str]:
    """Each finding in a line."""
    return [f"{each.severity} {each.rule} {each.node}: {each.message}" for each in lint(path, tensorrt=tensorrt)]


def through(*ops: tuple[str, list[str], dict[str, Any]], constants: dict[str, Any] | None = None) -> Any:
    """A graph that quantizes ``x``, leads its INT8 through operators, and dequantizes."""
    nodes = [node("QuantizeLinear", ["x", "scale", "zero"], ["v0"], name="Q")]
    for number, (op, more, attributes) in enumerate(ops):
        nodes.append(node(op, [f"v{number}", *more], [f"v{number + 1}"], **attributes))
    nodes.append(node("DequantizeLinear", [f"v{len(ops)}", "scale", "zero"], ["y"], name="DQ"))
    return graph(nodes, constants)


def weight_through_cast() -> Any:
    """A weight's scales on its inputs, with a Cast between it and the product."""
    return graph(
        [
            *quantize(),
            node("DequantizeLinear", ["levels", "scales"], ["w"], name="weight", axis=-2),
            node("Cast", ["w"], ["v"], to=FLOAT),
            node("Identity", ["v"], ["u"]),
            node("MatMul", ["xd", "u"], ["y"], name="product"),
        ]
    )


def branch() -> Any:
    """Det in both branches of an If."""
    inner = helper.make_graph(
        [node("Det", ["x"], ["d"], name="inner")], "b", [], [helper.make_tensor_value_info("d", FLOAT, None)]
    )
    return graph(
        [
            node("Identity", ["x"], ["kept"]),
            node("If", ["yes"], ["y"], name="if", then_branch=inner, else_branch=inner),
        ],
        {"yes": np.array(True)},
        x=("x", FLOAT, ["N", 4, 4]),
    )


def of_ai_onnx(op: str) -> Any:
    made = graph([node(op, ["x"], ["y"], domain="ai.onnx")])
    made.opset_import[0].domain = "ai.onnx"
    return made


def function() -> Any:
    """An operator that the file itself defines."""
    made = graph([node("Mine", ["x"], ["y"], domain="own")], domain="own")
    made.functions.append(
        helper.make_function("own", "Mine", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)])
    )
    return made


def pooled(op: str, dilations: list[int]) -> Any:
    return graph([node(op, ["x"], ["y"], kernel_shape=[2, 2], dilations=dilations)], x=IMAGES, opset=19, ir_version=9)


NEEDED = "expected INT8, got UINT8: give a zero-point of type INT8"
FOUND: dict[str, tuple[Build, list[str]]] = {
    # What passes
    "INT8 that is only moved": (
        lambda: through(
            ("Transpose", [], {"perm": [1, 0]}),
            ("Reshape", ["shape"], {}),
            ("Identity", [], {}),
            ("Concat", ["v3"], {"axis": 0}),
            ("Flatten", [], {}),
            constants={"shape": np.array([-1, 16])},
        ),
        [],
    ),
    "INT8 whose shape is read": (
        lambda: graph(
            [
                node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
                node("Shape", ["q"], ["s"]),
                node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
                node("Reshape", ["d", "s"], ["y"]),
            ]
        ),
        [],
    ),
    "nodes without names, and of one name": (
        lambda: graph([*(node("Relu", [a], [b], name="r") for a, b in (("x", "a"), ("a", "b"))), *quantize("b", "y")]),
        [],
    ),
    "the smallest normal scale": (lambda: graph(quantize(y="y"), {"scale": np.float32(2.0**-126)}), []),
    "zero-points as many as scales": (lambda: product({"zeros": np.zeros(32, np.int8)}, weight_zero="zeros"), []),
    "an axis counted from behind": (lambda: product(axis=-1), []),
    "every coordinate mode that the parser has": (
        lambda: resize(19, mode="linear", coordinate_transformation_mode="align_corners"),
        [],
    ),
    "sizes of every axis": (lambda: resize(sizes=[1, 3, 20, 24], mode="nearest"), []),
    "a pool without dilation": (lambda: pooled("MaxPool", [1, 1]), []),
    "an operator that the file defines": (function, []),
    "axes that are computed of constants": (
        lambda: graph(
            [node("Neg", ["one"], ["axes"]), node("ReduceSum", ["x", "axes"], ["y"])], {"one": np.array([1])}
        ),
        [],
    ),
    "INT4 weights": (
        lambda: product({"levels": np.zeros((32, 32), ml_dtypes.int4)}, opset=20, ir_version=9),
        [],
    ),
    # What does not
    "Concat of INT8 with what is not": (
        lambda: through(("Concat", ["levels"], {"axis": 0}), ("Relu", [], {})),
        [
            "error pair DQ: v2 is not quantized by a QuantizeLinear: start from floating point",
            "error pair Q: its INT8 goes to Relu, not to a DequantizeLinear: dequantize first",
        ],
    ),
    "INT8 as a graph's output": (
        lambda: graph([node("QuantizeLinear", ["x", "scale", "zero"], ["y"], name="Q")], y=INT8),
        ["error pair Q: its INT8 goes to the graph's output, not to a DequantizeLinear: dequantize first"],
    ),
    "INT8 as an index of Gather": (
        lambda: through(("Slice", ["from", "to"], {}), constants={"from": np.array([0]), "to": np.array([4])}),
        [],
    ),
    "scales behind a Cast, along inputs counted from behind": (
        weight_through_cast,
        ["warning weight-axis product: expected weight scales along axis 1 (outputs), got axis 0: INT8 is lost"],
    ),
    "an empty scale": (
        lambda: graph(quantize(y="y"), {"scale": np.zeros(0, np.float32)}),
        [
            f"error scale {name}: {told}"
            for name in ("Q_y", "DQ_y")
            for told in ("expected scales above 0, got none", "expected as many zero-points as scales, got 1 and 0")
        ],
    ),
    "a computed scale, and then one of zero": (
        lambda: graph(
            [
                node("ReduceMax", ["x"], ["s"], keepdims=0),
                *quantize(y="a", scale="s"),
                *quantize("a", "y", scale="none"),
            ],
            {"none": np.float32(0)},
        ),
        [
            "error scale Q_y: expected scales above 0, got 0.0",
            "error scale DQ_y: expected scales above 0, got 0.0",
            "warning scale Q_a: the scale is computed: TensorRT before 8 refuses it, and it hinders fusion",
            "warning scale DQ_a: the scale is computed: TensorRT before 8 refuses it, and it hinders fusion",
        ],
    ),
    "the largest denormal scale": (
        lambda: graph(quantize(y="y"), {"scale": np.float32(2.0**-126 - 2.0**-149)}),
        [
            f"warning scale {name}: a scale of 1.18e-38 or 1.18e-38 is not a normal FP32 number"
            for name in ("Q_y", "DQ_y")
        ],
    ),
    "FP16 with scales in FP32": (
        lambda: graph([node("Cast", ["x"], ["h"], to=HALF), *quantize("h", "y")], opset=19, ir_version=9),
        ["warning mixed-types Q_y: QuantizeLinear reads FLOAT16 and FLOAT, expected one type: add a Cast"],
    ),
    "a product of INT8": (
        lambda: graph(
            [
                node("Cast", ["x"], ["i"], to=TensorProto.INT32),
                node("Gemm", ["i", "k"], ["j"], name="gemm"),
                node("Cast", ["j"], ["y"], to=FLOAT),
            ],
            {"k": np.ones((32, 4), np.int32)},
        ),
        ["error integer-product gemm: Gemm on INT32: TensorRT multiplies floating point; use Q/DQ for INT8"],
    ),
    "Det within branches": (
        branch,
        [
            "error operator inner: TensorRT has no Det: export or quantize without it (use Q/DQ for INT8)",
            "error operator inner: TensorRT has no Det: export or quantize without it (use Q/DQ for INT8)",
            "warning data-dependent-shape if: If makes shapes or flow depend on data: TensorRT may refuse or run it "
            "slowly",
        ],
    ),
    "ONNX by its longer name": (
        lambda: of_ai_onnx("Det"),
        ["error operator Det giving y: TensorRT has no Det: export or quantize without it (use Q/DQ for INT8)"],
    ),
    "a dilated mean": (
        lambda: pooled("AveragePool", [1, 2]),
        ["error form AveragePool giving y: TensorRT has no dilated AveragePool: expected dilations of 1"],
    ),
    "everything that Resize can have wrong": (
        lambda: resize(
            19,
            sizes=[20, 24],
            axes=[2, 3],
            mode="cubic",
            antialias=1,
            coordinate_transformation_mode="tf_crop_and_resize",
            keep_aspect_ratio_policy="not_smaller",
        ),
        [
            "error resize Resize giving y: TensorRT has no antialiased Resize: resize before the graph, or without "
            "antialias",
            "error resize Resize giving y: TensorRT has no coordinate mode tf_crop_and_resize: expected one of "
            "['align_corners', 'asymmetric', 'half_pixel', 'pytorch_half_pixel', 'tf_half_pixel_for_nn']",
            "error resize Resize giving y: TensorRT has no aspect ratio policy not_smaller: expected stretch",
            "error resize Resize giving y: TensorRT misreads sizes given for some axes only: give the size of every "
            "axis",
            "warning resize Resize giving y: expected nearest or linear, which TensorRT declares, got cubic: check the "
            "engine",
        ],
    ),
    "an odd and a narrow side": (
        lambda: product({"levels": np.ones((32, 24), np.int8), "scales": np.full(24, 0.1, np.float32)}),
        [
            "warning small-product product: INT8 gains little for a weight of [32, 24]: tensor cores work on multiples "
            "of 16"
        ],
    ),
    "a computed zero-point and UINT8": (
        lambda: graph(
            [
                node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"),
                node("DequantizeLinear", ["q", "s", "z"], ["y"], name="DQ"),
            ]
        ),
        [
            "error operator dynamic: TensorRT has no DynamicQuantizeLinear: export or quantize without it (use Q/DQ "
            "for INT8)",
            "error value-type q: UINT8 is only for inputs and outputs of the graph: cast it at once",
            "error value-type z: UINT8 is only for inputs and outputs of the graph: cast it at once",
            "error zero-point DQ: the zero-point is computed: TensorRT needs a constant 0; quantize symmetrically",
            "error quantized-type DQ: expected INT8, got UINT8: quantize to signed INT8",
            "error pair DQ: q is not quantized by a QuantizeLinear: start from floating point",
            "warning scale DQ: the scale is computed: TensorRT before 8 refuses it, and it hinders fusion",
        ],
    ),
    "no zero-point": (
        lambda: product(activation=quantize(zero="")),
        [f"error quantized-type {name}: {NEEDED}" for name in ("Q_xd", "DQ_xd")],
    ),
    "a zero-point among others": (
        lambda: product({"zeros": np.array([0, 0, 5, *[0] * 29], np.int8)}, weight_zero="zeros"),
        ["error zero-point weight: expected zero-points of 0, got 5: quantize symmetrically"],
    ),
    "INT4 on a computed value": (
        lambda: graph(quantize(y="y"), {"zero": np.zeros((), ml_dtypes.int4)}, opset=20, ir_version=9),
        [
            f"error quantized-type {name}: INT4 is for weights only, got it on a computed value: use INT8"
            for name in ("Q_y", "DQ_y")
        ],
    ),
    "too few scales, and too few zero-points": (
        lambda: product({"scales": np.full(16, 0.1, np.float32), "zeros": np.zeros(8, np.int8)}, weight_zero="zeros"),
        [
            "error scale weight: expected as many zero-points as scales, got 8 and 16",
            "error scale weight: expected 32 scales for axis 1 of (32, 32), got 16",
        ],
    ),
    "an activation per channel": (
        lambda: graph(quantize(y="y", axis=1), {"scale": np.full(32, 0.05, np.float32), "zero": np.zeros(32, np.int8)}),
        [
            f"error per-channel-activation {name}: expected one scale for an activation, got 32: only weights are per "
            "channel"
            for name in ("Q_y", "DQ_y")
        ],
    ),
    "a product named as a Q before it": (
        lambda: graph(
            [
                *quantize("x", "a"),
                *quantize("a", "y", zero="zero")[:1],
                node("Relu", ["a"], ["z"], name="Q_a"),
                node("DequantizeLinear", ["y_q", "scale", "zero"], ["y"], name="Q_y"),
            ]
        ),
        ["error node-name Q_y: a node before this DequantizeLinear has its name: rename one"],
    ),
    "scales along neither": (
        lambda: convolution("Conv", 2, (16, 3, 3, 3)),
        ["warning weight-axis product: expected weight scales along axis 0 (outputs), got axis 2: INT8 is lost"],
    ),
    "Q and DQ of different scales": (
        lambda: graph(
            [
                node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
                node("DequantizeLinear", ["q", "other"], ["y"], name="DQ"),
            ],
            {"other": np.float32(0.1)},
        ),
        ["warning pair DQ: its scale differs from that of its QuantizeLinear: values come back rescaled"],
    ),
    "DOUBLE": (
        lambda: cast(TensorProto.DOUBLE),
        [
            "warning value-type a: TensorRT casts DOUBLE to FLOAT, and clips what does not fit: export FLOAT",
        ],
    ),
    "FP8": (
        lambda: graph(quantize(y="y"), {"zero": np.zeros((), ml_dtypes.float8_e4m3fn)}, opset=19, ir_version=9),
        ["warning value-type zero: FP8 needs a GPU of compute capability 8.9 or later: older ones cannot build this"],
    ),
    "Clip of mixed types": (
        lambda: half(node("Clip", ["h", "scale"], ["r"], name="clip")),
        ["warning mixed-types clip: Clip reads FLOAT16 and FLOAT, expected one type: add a Cast"],
    ),
    "the third of a Sum": (
        lambda: half(node("Sum", ["h", "h", "x", "x"], ["r"], name="sum")),
        ["error mixed-types sum: Sum reads FLOAT16 and FLOAT, expected one type: add a Cast"],
    ),
    "a normalisation with its mean": (
        lambda: graph([node("LayerNormalization", ["x", "scales"], ["y", "mean"], name="norm")]),
        ["error form norm: TensorRT gives only the first output of LayerNormalization: drop the others"],
    ),
    "computed axes": (
        lambda: graph(
            [
                node("Shape", ["x"], ["shape"], start=1),
                node("Div", ["shape", "shape"], ["axes"]),
                node("ReduceSum", ["x", "axes"], ["y"], name="sum"),
            ]
        ),
        ["error form sum: the axes of ReduceSum are computed: TensorRT needs them constant"],
    ),
    "contributed operators": (
        lambda: graph(
            [
                node("Gelu", ["x"], ["a"], domain="com.microsoft"),
                node("QuickGelu", ["a"], ["y"], domain="com.microsoft"),
            ],
            domain="com.microsoft",
        ),
        [
            "error domain QuickGelu giving y: com.microsoft.QuickGelu is not an ONNX operator: TensorRT looks for a "
            "plugin of that name and fails",
            "warning domain Gelu giving a: com.microsoft.Gelu is taken for ONNX's Gelu, whatever its domain says: "
            "write ONNX's",
        ],
    ),
    "INT16": (
        lambda: cast(TensorProto.INT16),
        [
            f"error value-type {name}: TensorRT has no INT16 tensors: use FLOAT, FLOAT16, BFLOAT16, INT32 or INT64"
            for name in ("a", "b")
        ],
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_findings_are_these_and_no_others(name: str, tmp_path: Path) -> None:
    build, expected = FOUND[name]
    assert said(save(build(), tmp_path)) == expected


@pytest.mark.parametrize("mode", ["half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric"])
def test_coordinate_modes_that_the_parser_has_pass(mode: str, tmp_path: Path) -> None:
    assert said(save(resize(19, mode="nearest", coordinate_transformation_mode=mode), tmp_path)) == []


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT32", "INT64", "BOOL"])
def test_types_that_tensorrt_has_pass(kind: str, tmp_path: Path) -> None:
    there = node("Cast", ["x"], ["a"], to=getattr(TensorProto, kind))
    assert said(save(graph([there, node("Cast", ["a"], ["y"], to=FLOAT)]), tmp_path)) == []


# Opset or IR version → the first TensorRT whose parser was built with an ONNX that has it.
OPSETS = {9: None, 17: None, 18: (8, 6), 19: (9, 0), 20: (10, 0), 21: (10, 6), 22: (10, 6), 23: (10, 15), 25: (11, 0)}
IR_VERSIONS = {3: None, 8: None, 9: (9, 0), 10: (10, 6), 11: (10, 15), 12: (10, 15), 13: (11, 0)}


@pytest.mark.parametrize(
    ("what", "number", "needed"),
    [
        *(("opset", number, needed) for number, needed in OPSETS.items()),
        *(("IR version", number, needed) for number, needed in IR_VERSIONS.items()),
    ],
)
def test_versions_need_the_release_that_knows_them(
    what: str, number: int, needed: tuple[int, int] | None, tmp_path: Path
) -> None:
    asked = {"opset": number} if what == "opset" else {"ir_version": number}
    path = save(graph([node("Relu", ["x"], ["y"])], **{"opset": 17, "ir_version": 8, **asked}), tmp_path)
    rule = what.lower().replace(" ", "-")
    text = "" if needed is None else ".".join(map(str, needed))
    if needed is None:
        assert said(path, (8, 5)) == []
    else:
        before = (needed[0], needed[1] - 1) if needed[1] else (needed[0] - 1, 99)
        told = f"{what} {number} needs TensorRT {text} or later, asked for {before[0]}.{before[1]}"
        assert said(path, before) == [f"warning {rule} graph: {told}"]
        assert said(path, needed) == []


@pytest.mark.parametrize(
    ("op", "needed"),
    [("GroupNormalization", (8, 6)), ("LayerNormalization", (8, 6)), ("Hardmax", (9, 2)), ("DeformConv", (10, 1))],
)
def test_operators_need_the_release_that_brought_them(op: str, needed: tuple[int, int], tmp_path: Path) -> None:
    path = save(graph([node(op, ["x"], ["y"], name="n")]), tmp_path)
    before = (needed[0], needed[1] - 1)
    told = f"{op} needs TensorRT {needed[0]}.{needed[1]} or later"
    assert list(operator(Graph(path, before))) == [("n", told, "error")]
    assert list(operator(Graph(path, needed))) == []


@pytest.mark.parametrize(
    ("kind", "needed"), [("BFLOAT16", (9, 0)), ("FLOAT8E4M3FN", (9, 0)), ("INT4", (10, 0)), ("FLOAT4E2M1", (10, 8))]
)
def test_types_need_the_release_that_brought_them(kind: str, needed: tuple[int, int], tmp_path: Path) -> None:
    there = node("Cast", ["x"], ["a"], to=getattr(TensorProto, kind))
    path = save(graph([there, node("Cast", ["a"], ["y"], to=FLOAT)]), tmp_path)
    told = f"error value-type a: {kind} needs TensorRT {needed[0]}.{needed[1]} or later"
    before = (needed[0], needed[1] - 1) if needed[1] else (needed[0] - 1, 99)
    assert told in said(path, before)
    assert told not in said(path, needed)


# "N" in the operators.md of ONNX-TensorRT 10.15.
NOT_THERE = """
AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool
MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv
QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique
"""


def test_operators_that_the_parser_lacks_are_refused_and_others_are_not(tmp_path: Path) -> None:
    names = [*NOT_THERE.split(), "Relu", "MatMul", "Conv", "Einsum", "GridSample"]
    path = save(graph([node(op, ["x"], [f"v{at}"], name=op) for at, op in enumerate(names)]), tmp_path)
    assert [name for name, *_ in operator(Graph(path, (10, 15)))] == NOT_THERE.split()


@pytest.mark.parametrize("op", ["NonZero", "NonMaxSuppression", "Scan"])
def test_what_depends_on_data_is_told(op: str, tmp_path: Path) -> None:
    path = save(graph([node(op, ["x"], ["y"], name="n")]), tmp_path)
    told = f"{op} makes shapes or flow depend on data: TensorRT may refuse or run it slowly"
    assert f"warning data-dependent-shape n: {told}" in said(path)


def test_numbers_are_found_behind_constants_casts_and_identities(tmp_path: Path) -> None:
    three = numpy_helper.from_array(np.int8(3))
    path = save(
        graph(
            [
                node("Constant", [], ["c"], value=three),
                node("Cast", ["c"], ["i"], to=INT64),
                node("Cast", ["i"], ["j"], to=INT8),
                node("Identity", ["j"], ["z"]),
                *quantize(y="y", zero="z"),
            ]
        ),
        tmp_path,
    )
    found = [
        f"error zero-point {name}: expected zero-points of 0, got 3: quantize symmetrically" for name in ("Q_y", "DQ_y")
    ]
    assert said(path) == found


@pytest.mark.parametrize(("attributes", "outputs"), [({}, 1), ({"transB": 0}, 1), ({"transB": 1}, 0)])
def test_the_outputs_of_a_gemm_lie_where_its_weight_is_turned_to(
    attributes: dict[str, int], outputs: int, tmp_path: Path
) -> None:
    right = product(op="Gemm", axis=outputs, **attributes)
    assert [line for line in said(save(right, tmp_path)) if "weight-axis" in line] == []
    wrong = product(op="Gemm", axis=1 - outputs, **attributes)
    (told,) = [line for line in said(save(wrong, tmp_path)) if "weight-axis" in line]
    assert told == (
        f"warning weight-axis product: expected weight scales along axis {outputs} (outputs), got axis {1 - outputs}: "
        "INT8 is lost"
    )


def test_a_weight_of_two_channels_has_its_scales_along_the_outputs_too(tmp_path: Path) -> None:
    two = {"levels": np.ones((2, 2), np.int8), "scales": np.full(2, 0.01, np.float32)}
    made = product(two, axis=0, x=("x", FLOAT, ["N", 2]))
    assert any("got axis 0: INT8 is lost" in line for line in said(save(made, tmp_path)))


def test_a_graph_that_is_refused_names_five_of_its_errors_and_counts_the_rest(tmp_path: Path) -> None:
    for count, more in ((5, ""), (7, "; and 2 more")):
        nodes = [node("Det", ["x"], [f"d{number}"], name=f"det{number}") for number in range(count)]
        made = graph([*nodes, node("Sum", [f"d{number}" for number in range(count)], ["y"])], x=("x", FLOAT, [4, 4]))
        with pytest.raises(LintError) as refused:
            require_legal(save(made, tmp_path))
        told = str(refused.value)
        assert f"got {count} errors: [operator] det0: " in told
        assert [f"det{number}:" in told for number in range(count)] == [True] * 5 + [False] * (count - 5)
        assert told.endswith(more) if more else "more" not in told
    assert OLDEST_TENSORRT == (10, 0)


def test_an_8_bit_constant_that_is_read_undequantized_is_an_error(tmp_path: Path) -> None:
    made = graph([node("Cast", ["levels"], ["w"], to=FLOAT), node("MatMul", ["x", "w"], ["y"])])
    assert [line for line in said(save(made, tmp_path)) if "constant read by" in line] == [
        "error pair levels: INT8 constant read by Cast: dequantize it"
    ]


def test_an_opset_before_the_oldest_is_told_with_both(tmp_path: Path) -> None:
    made = graph([node("Relu", ["x"], ["y"])], opset=8, ir_version=4)
    (told,) = [line for line in said(save(made, tmp_path)) if "opset" in line.split(":")[0]]
    assert "expected opset " in told
    assert "got 8: no parser declares it" in told
