"""Which nodes go low, worked out by hand: from given ranges and sizes of values, without running a graph."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import ModelError
from tests.export.test_lint import FLOAT, INT64, graph, node

ir = pytest.importorskip("onnx_ir", reason="precision needs edgeclip[export]")
from onnx import helper  # noqa: E402

from edgeclip.export.half.plan import LowPrecision, Plan, Slots, plan_precision  # noqa: E402
from edgeclip.export.half.ranges import Range, infer_types  # noqa: E402

WEIGHT = np.full((32, 32), 0.25, np.float32)
ONES = np.ones(32, np.float32)


def planned(
    nodes: list[Any],
    *,
    largest: dict[str, float] | None = None,
    elements: dict[str, int] | None = None,
    precision: LowPrecision = "fp16",
    keep: tuple[str, ...] = (),
    opset: int = 18,
    **constants: Any,
) -> Plan:
    """The plan of nodes from ``x`` (N, 32) to ``y``; values are of 10 numbers up to 1 unless told otherwise."""
    model = ir.from_proto(graph(nodes, {"weight": WEIGHT, "ones": ONES, **constants}, opset=opset))
    infer_types(model)
    names = ["x", *(value.name for each in model.graph for value in each.outputs)]
    ranges = {
        name: Range(largest=(largest or {}).get(name, 1.0), elements=(elements or {}).get(name, 10)) for name in names
    }
    return plan_precision(model, ranges, precision, keep=keep)


def told(plan: Plan) -> dict[str, str]:
    """Name of a node → ``low``, or why it stays."""
    return {each.name: "low" for each in plan.low} | {each.name: reason for each, (reason, _) in plan.kept.items()}


def chain(*ops: str) -> list[Any]:
    """One after the other from ``x`` to ``y``, each node named for its place; products and norms with their weight."""
    more = {"MatMul": ["weight"], "LayerNormalization": ["ones"], "Mul": ["ones"]}
    names = ["x", *(f"v{number}" for number in range(1, len(ops))), "y"]
    return [
        node(op, [names[at], *(more.get(op) or ([names[at]] if op == "Add" else []))], [names[at + 1]], name=f"{at}")
        for at, op in enumerate(ops)
    ]


# What FP16 can hold


@pytest.mark.parametrize(
    ("largest", "why"),
    [
        (65504 / 4, None),
        (65504 / 4 + 1, "v1 reaches 1.64e+04, beyond a quarter of FP16's range"),
        (math.inf, "v1 reaches inf, beyond a quarter of FP16's range"),
        (math.nan, "v1 reaches nan, beyond a quarter of FP16's range"),
        (2.0**-14, None),
        (2.0**-14.01, "v1 never exceeds 6.06e-05, below FP16's normal numbers"),
        (0.0, None),
    ],
)
def test_a_value_has_room_in_fp16(largest: float, why: str | None) -> None:
    """Both nodes that meet it are concerned: the one that gives it and the one that reads it."""
    plan = planned(chain("MatMul", "MatMul", "MatMul"), largest={"v1": largest})
    wanted = ("range", why) if why else None
    assert [plan.kept.get(each) for each in sorted([*plan.low, *plan.kept], key=lambda each: str(each.name))] == [
        wanted, wanted, None
    ]  # fmt: skip
    in_bf16 = planned(chain("MatMul", "MatMul", "MatMul"), largest={"v1": largest}, precision="bf16")
    assert set(told(in_bf16).values()) == {"low"}


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (np.full((32, 32), 65504.0), None),
        (np.full((32, 32), 65520.0), "weight cannot be stored in FP16 (largest 6.55e+04)"),
        (np.full((32, 32), -1e5), "weight cannot be stored in FP16 (largest 1e+05)"),
        (np.full((32, 32), 1.0 + 2.0**-11), None),  # the worst that rounding does to a normal number
        (np.full((32, 32), 2.0**-26), "weight cannot be stored in FP16 (largest 1.49e-08)"),
        (np.full((32, 32), 3 * 2.0**-16 + 2.0**-25), "weight cannot be stored in FP16 (largest 4.58e-05)"),
        (np.full((32, 32), np.nan), "weight cannot be stored in FP16 (largest nan)"),
        (np.full((32, 32), np.inf), "weight cannot be stored in FP16 (largest inf)"),
        (np.zeros((32, 32)), None),
        (np.diag(np.full(32, 100.0)) + 2.0**-26, None),  # what vanishes does not matter beside the rest
    ],
)
def test_a_weight_is_stored_in_fp16_if_rounding_is_all_that_it_loses(weight: np.ndarray, why: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what does not fit is told by the plan, not by NumPy
        plan = planned(chain("MatMul"), weight=weight.astype(np.float32))
    assert list(plan.kept.values()) == ([("weight", why)] if why else [])
    assert not planned(chain("MatMul"), weight=weight.astype(np.float32), precision="bf16").kept


# What stays by its kind


SENSITIVE = """
LayerNormalization RMSNormalization GroupNormalization InstanceNormalization LpNormalization MeanVarianceNormalization
Softmax LogSoftmax GlobalAveragePool GlobalLpPool CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean
ReduceProd ReduceSum ReduceSumSquare Exp Log Pow Reciprocal Sqrt
"""


@pytest.mark.parametrize("op", SENSITIVE.split())
def test_what_sums_or_is_sensitive_stays(op: str) -> None:
    plan = planned([node("MatMul", ["x", "weight"], ["a"], name="first"), node(op, ["a"], ["y"], name="it")])
    assert told(plan) == {"first": "low", "it": "sensitive"}


@pytest.mark.parametrize("op", ["Einsum", "Gemm", "MatMul"])
def test_products_go_low_whatever_is_around_them(op: str) -> None:
    it = node(op, ["a", "weight"], ["b"], name="it", **({"equation": "nk,km->nm"} if op == "Einsum" else {}))
    plan = planned([node("Exp", ["x"], ["a"], name="before"), it, node("Exp", ["b"], ["y"], name="after")])
    assert told(plan)["it"] == "low"


@pytest.mark.parametrize(("op", "kernel"), [("Conv", (4, 3, 3, 3)), ("ConvTranspose", (3, 4, 3, 3))])
def test_what_has_no_form_in_the_low_type_stays_and_says_so(op: str, kernel: tuple[int, ...]) -> None:
    image = graph(
        [node(op, ["x", "k"], ["y"], name="it")], {"k": np.ones(kernel, np.float32)}, x=("x", FLOAT, ["N", 3, 8, 8])
    )
    model = ir.from_proto(image)
    infer_types(model)
    assert list(plan_precision(model, {}, "bf16").kept.values()) == [
        ("unsupported", "ONNX has no bf16 form of it in this opset")
    ]
    assert told(plan_precision(model, {}, "fp16")) == {"it": "low"}


def test_what_gives_another_type_than_it_reads_or_is_not_of_onnx_stays() -> None:
    cast = planned([node("Cast", ["x"], ["y"], to=FLOAT, name="cast")])  # what it gives does not follow what it reads
    assert told(cast) == {"cast": "unsupported"}
    strange = graph([node("Foo", ["x"], ["y"], domain="mine", name="foo")], domain="mine")
    strange.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, ["N", 32]))
    model = ir.from_proto(strange)
    assert told(plan_precision(model, {}, "fp16")) == {"foo": "unsupported"}


def test_nodes_that_are_named_stay_and_others_are_not_known() -> None:
    assert told(planned(chain("MatMul", "MatMul"), keep=("1",))) == {"0": "low", "1": "named"}
    with pytest.raises(ModelError, match=r"nodes of the graph to keep in FP32, got \['2', '3'\]"):
        planned(chain("MatMul", "MatMul"), keep=("3", "1", "2"))


def test_what_reads_no_float_or_any_type_has_no_precision() -> None:
    plan = planned(
        [
            node("MatMul", ["x", "weight"], ["a"], name="product"),
            node("Shape", ["a"], ["s"], name="shape"),
            node("Size", ["a"], ["n"], name="size"),
            node("Mul", ["s", "n"], ["t"], name="integers"),
            node("Cast", ["t"], ["u"], to=INT64, name="more integers"),
            node("ReduceMax", ["a"], ["y"], name="most", keepdims=0),
        ]
    )
    assert set(told(plan)) == {"product", "most"}


def test_slots_are_what_changes_type() -> None:
    plan = planned(
        [
            node("Greater", ["x", "ones"], ["g"], name="greater"),
            node("MatMul", ["x", "weight"], ["a"], name="product"),
            node("Where", ["g", "a", "ones"], ["w"], name="where"),
            node("Concat", ["w", "a", "w"], ["c"], name="concat", axis=0),
            node("MatMul", ["c", "weight"], ["y"], name="last"),
        ]
    )
    slots = {each.name: found for each, found in plan.low.items()}
    assert slots["where"] == Slots((1, 2), (0,))
    assert slots["concat"] == Slots((0, 1, 2), (0,))
    assert slots["product"] == Slots((0, 1), (0,))
    assert "greater" not in slots  # it gives a truth value


def test_control_flow_and_values_without_a_type_are_refused() -> None:
    inner = helper.make_graph(
        [node("Identity", ["x"], ["i"])], "b", [], [helper.make_tensor_value_info("i", FLOAT, None)]
    )
    branch = node("If", ["yes"], ["y"], name="if", then_branch=inner, else_branch=inner)
    with pytest.raises(ModelError, match="If if holds a subgraph"):
        planned([branch], yes=np.array(True))
    untyped = ir.from_proto(
        graph([node("Foo", ["x"], ["a"], domain="mine"), node("Relu", ["a"], ["y"])], domain="mine")
    )
    with pytest.raises(ModelError, match=r"to have a type, got none for \['a'\] of Foo"):
        plan_precision(untyped, {}, "fp16")


# Where casts go


@pytest.mark.parametrize(
    ("ops", "between"),
    [
        (("MatMul", "Relu", "MatMul"), "low"),
        (("Exp", "Relu", "Exp"), "casts"),
        (("Exp", "Relu", "MatMul"), "low"),  # as many casts either way: low is faster
        (("MatMul", "Relu", "Exp"), "low"),
        (("Exp", "Add", "MatMul"), "casts"),  # but a sum of two computed values stays
        (("MatMul", "Add", "Exp"), "casts"),
        (("MatMul", "Add", "MatMul"), "low"),
        (("Exp", "Mul", "MatMul"), "low"),
    ],
)
def test_what_lies_between_goes_where_fewest_numbers_are_cast(ops: tuple[str, str, str], between: str) -> None:
    assert told(planned(chain(*ops)))["1"] == between


def test_a_sum_with_a_constant_is_no_residual() -> None:
    nodes = chain("Exp", "Mul", "MatMul")
    nodes[1] = node("Add", ["v1", "ones"], ["v2"], name="1")
    assert told(planned(nodes))["1"] == "low"
    for op in ("Sub", "Sum"):
        nodes[1] = node(op, ["v1", "v1"], ["v2"], name="1")
        assert told(planned(nodes))["1"] == "casts"


@pytest.mark.parametrize(("before", "after", "between"), [(10, 1, "casts"), (1, 10, "low")])
def test_the_smaller_value_is_cast(before: int, after: int, between: str) -> None:
    """From FP32 to a product: behind the operator where it gives less than it reads, before it where it gives more."""
    assert told(planned(chain("Exp", "Relu", "MatMul"), elements={"v1": before, "v2": after}))["1"] == between
    down = {"casts": "low", "low": "casts"}[between]
    assert told(planned(chain("MatMul", "Relu", "Exp"), elements={"v1": before, "v2": after}))["1"] == down


def test_one_cast_serves_all_readers() -> None:
    """Two sums would rather stay, but would then have to be cast each: their one source is cast instead."""
    nodes = [
        node("Exp", ["x"], ["a"], name="source"),
        node("Add", ["a", "a"], ["s"], name="one"),
        node("Sub", ["a", "a"], ["t"], name="other"),
        node("MatMul", ["s", "weight"], ["u"], name="first"),
        node("MatMul", ["t", "weight"], ["v"], name="second"),
        node("MatMul", ["u", "v"], ["y"], name="third"),
    ]
    found = told(planned(nodes))
    assert (found["one"], found["other"]) == ("low", "low")
    assert told(planned([*nodes[:2], *nodes[3:4], node("Exp", ["u"], ["y"])]))["one"] == "casts"


def test_a_graph_gives_fp32_whoever_else_reads_its_output() -> None:
    """The output is there in FP32 anyway, so that a sum that makes it costs no cast more than its source."""
    assert told(planned(chain("MatMul", "Add")))["1"] == "casts"
    assert told(planned(chain("MatMul", "Relu")))["1"] == "low"
    assert told(planned(chain("Relu", "Exp")))["0"] == "casts"  # from the input to FP32
    assert told(planned(chain("Relu", "MatMul")))["0"] == "low"
