"""FP16 and BF16 graphs stay in range, keep what must be FP32, cast little, and give FP32's embeddings when rounded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from edgeclip.errors import InputError, ModelError
from tests.export.test_lint import graph as lint_graph
from tests.export.test_lint import node, save, tensorrt_refuses

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
onnx = pytest.importorskip("onnx")

import onnx_ir as ir  # noqa: E402

from edgeclip.export.half.precision import BF16_OPSET, PrecisionReport, convert_precision  # noqa: E402
from edgeclip.export.half.ranges import measure_ranges  # noqa: E402
from edgeclip.export.half.rounding import emulate  # noqa: E402
from edgeclip.export.lint.lint import lint  # noqa: E402
from edgeclip.export.onnx import compact, export_onnx  # noqa: E402
from edgeclip.export.photographs import photographs  # noqa: E402
from edgeclip.export.proofs import preprocess  # noqa: E402
from edgeclip.runtime.proof.parity import compare_embeddings  # noqa: E402
from edgeclip.training.checkpoint.weight_grid import to_grid  # noqa: E402
from edgeclip.training.towers.open_clip import OpenClipModel  # noqa: E402
from tests.families import SMALL, as_if_trained  # noqa: E402

PRECISIONS = ("fp16", "bf16")
IMAGES = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
rng = np.random.default_rng(1)

Array = Any


def small_graph(folder: Path, nodes: list[Any], constants: dict[str, Array]) -> Path:
    """A graph from ``image`` (N, 3, 8, 8) to ``embedding``, flattened first to ``flat`` (N, 192)."""
    model = lint_graph([node("Flatten", ["image"], ["flat"]), *nodes], constants, x=("image", 1, ["N", 3, 8, 8]))
    model.graph.output[0].name = "embedding"
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "N"
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 192
    return save(model, folder)


def weight(rows: int = 192, columns: int = 192, size: float = 0.1) -> Array:
    return (size * rng.standard_normal((rows, columns))).astype(np.float32)


def run(path: Path, images: Array) -> Array:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


def convert(fp32: Path, precision: str = "fp16", **options: Any) -> tuple[Path, PrecisionReport]:
    files, report = convert_precision(fp32, fp32.with_name(f"{precision}.onnx"), precision, IMAGES, **options)  # type: ignore[arg-type]
    return files[0], report


def rounded(path: Path, images: Array) -> Array:
    """What a device gives that rounds every result."""
    return run(emulate(path, path.with_name("emulated.onnx"))[0], images)


def casts(path: Path) -> list[Any]:
    return [item for item in ir.load(path).graph if item.op_type == "Cast"]


def type_of(path: Path, op: str) -> set[str]:
    return {item.outputs[0].dtype.name for item in ir.load(path).graph if item.op_type == op}


# A real model


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = as_if_trained(OpenClipModel(SMALL))
    path = tmp_path_factory.mktemp("model") / "fp32.onnx"
    export_onnx(model.exportable(), model.encoder, path, metadata={"edgeclip.model": SMALL, "edgeclip.variant": "fp32"})
    np.save(path.with_name("images.npy"), preprocess(photographs()[:6], model.encoder))
    return path


@pytest.fixture(scope="module")
def images(fp32: Path) -> Array:
    return np.load(fp32.with_name("images.npy"))


@pytest.fixture(scope="module")
def converted(fp32: Path, images: Array) -> dict[str, tuple[Path, PrecisionReport]]:
    made = {}
    for precision in PRECISIONS:
        target = fp32.with_name(f"{precision}.onnx")
        files, report = convert_precision(fp32, target, precision, images[:2])  # type: ignore[arg-type]
        assert files == (target,)
        made[precision] = (target, report)
    return made


@pytest.mark.parametrize(("precision", "most"), [("fp16", 1e-4), ("bf16", 5e-3)])
def test_embeddings_agree_with_fp32_when_every_result_is_rounded(
    precision: str, most: float, fp32: Path, images: Array, converted: dict[str, tuple[Path, PrecisionReport]]
) -> None:
    got = rounded(converted[precision][0], images)
    report = compare_embeddings(run(fp32, images), got, [str(index) for index in range(len(images))], batch_size=6)
    assert 1e-7 < report.max_relative_error < most  # it did round
    np.testing.assert_allclose(rounded(converted[precision][0], images[:1]), got[:1], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_graph_keeps_its_contract_and_halves(
    precision: str, fp32: Path, converted: dict[str, tuple[Path, PrecisionReport]]
) -> None:
    path, report = converted[precision]
    onnx.checker.check_model(str(path), full_check=True)
    before, after = ir.load(fp32), ir.load(path)
    for values in ("inputs", "outputs"):
        (was,), (now,) = getattr(before.graph, values), getattr(after.graph, values)
        assert (was.name, was.dtype, was.shape) == (now.name, now.dtype, now.shape)
    assert after.metadata_props == {**before.metadata_props, "edgeclip.variant": precision}
    assert path.stat().st_size < 0.55 * fp32.stat().st_size
    assert after.opset_imports[""] == report.opset == (BF16_OPSET if precision == "bf16" else 18)
    msgspec.json.decode(msgspec.json.encode(report), type=PrecisionReport)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_go_low_and_what_sums_or_normalises_stays(
    precision: str, converted: dict[str, tuple[Path, PrecisionReport]]
) -> None:
    path, report = converted[precision]
    low = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}[precision]
    for op in ("Conv", "MatMul", "Erf"):  # GELU lies between two products
        assert type_of(path, op) == {low}
    # The random head's weights are so small that most are subnormal in FP16.
    assert [item.reason for item in report.kept if item.op == "Gemm"] == (["weight"] if precision == "fp16" else [])
    for op in ("LayerNormalization", "Softmax"):
        assert type_of(path, op) == {"FLOAT"}
    assert {item.op for item in report.kept if item.reason == "sensitive"} >= {"LayerNormalization", "Softmax"}
    assert sum(report.reasons().values()) == len(report.kept)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_value_is_cast_twice_nor_there_and_back(
    precision: str, converted: dict[str, tuple[Path, PrecisionReport]]
) -> None:
    path, report = converted[precision]
    made = casts(path)
    assert len(made) == report.casts > 0
    assert max(Counter(item.inputs[0] for item in made).values()) == 1
    assert not [item for item in made if item.inputs[0].producer() in made]
    assert not [item for item in made if item.inputs[0].const_value is not None]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_takes_and_builds_it(precision: str, converted: dict[str, tuple[Path, PrecisionReport]]) -> None:
    path, _ = converted[precision]
    assert {finding.rule for finding in lint(path)} <= ({"opset", "ir-version"} if precision == "bf16" else set())
    assert lint(path, tensorrt=(10, 6)) == ()
    assert tensorrt_refuses(path) == []


# Range


def wild(folder: Path) -> Path:
    """A first product beyond FP16's range, a scale that brings it back, a second product."""
    return small_graph(
        folder,
        [
            node("MatMul", ["flat", "wide"], ["large"], name="overflows"),
            node("Mul", ["large", "shrink"], ["tame"]),
            node("MatMul", ["tame", "last"], ["embedding"], name="harmless"),
        ],
        {"wide": weight(size=3000), "shrink": np.float32(1e-4), "last": weight()},
    )


def test_values_beyond_fp16_are_measured_and_kept_in_fp32(tmp_path: Path) -> None:
    fp32 = wild(tmp_path)
    assert measure_ranges(fp32, IMAGES)["large"].largest == pytest.approx(
        np.abs(IMAGES.reshape(5, -1) @ constant(fp32, "wide")).max(), rel=1e-4
    )
    path, report = convert(fp32)
    reasons = {item.name: item for item in report.kept}
    assert reasons["overflows"].reason == "range"
    assert "large reaches" in reasons["overflows"].detail
    assert "harmless" not in reasons
    np.testing.assert_allclose(rounded(path, IMAGES), run(fp32, IMAGES), rtol=0.02, atol=0.05)


def test_without_the_measurement_they_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.export.half.precision.measure_ranges", lambda *_: {})
    path, report = convert(wild(tmp_path))
    assert not report.kept
    assert not np.isfinite(rounded(path, IMAGES)).all()


def test_bf16_has_fp32s_range_and_needs_none(tmp_path: Path) -> None:
    fp32 = wild(tmp_path)
    path, report = convert(fp32, "bf16")
    assert not report.kept
    np.testing.assert_allclose(rounded(path, IMAGES), run(fp32, IMAGES), rtol=0.05, atol=0.5)


@pytest.mark.parametrize(
    ("factor", "reason"), [(2e6, "weight"), (1e-6, "weight"), (1e-8, "weight"), (1.0, None), (1e-2, None)]
)
def test_weights_that_fp16_cannot_hold_stay_fp32(factor: float, reason: str | None, tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["flat", "w"], ["a"], name="first"),
        node("Div", ["a", "factor"], ["b"]),
        node("MatMul", ["b", "last"], ["embedding"]),
    ]
    fp32 = small_graph(tmp_path, nodes, {"w": weight(size=factor), "factor": np.float32(factor), "last": weight()})
    path, report = convert(fp32)
    assert {item.name: item.reason for item in report.kept}.get("first") == reason
    assert constant(path, "w").dtype == (np.float32 if reason else np.float16)
    np.testing.assert_allclose(rounded(path, IMAGES), run(fp32, IMAGES), rtol=0.02, atol=0.1)


def test_values_that_vanish_in_fp16_stay_fp32(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["flat", "w"], ["a"]),
        node("Mul", ["a", "tiny"], ["b"], name="vanishes"),
        node("Mul", ["b", "huge"], ["c"]),
        node("MatMul", ["c", "w"], ["embedding"]),
    ]
    constants = {"w": weight(), "tiny": np.float32(2.0**-13) * np.float32(2.0**-9), "huge": np.float32(2.0**22)}
    fp32 = small_graph(tmp_path, nodes, constants)
    path, report = convert(fp32)
    assert {item.name for item in report.kept if item.reason in {"range", "weight"}} >= {"vanishes"}
    np.testing.assert_allclose(rounded(path, IMAGES), run(fp32, IMAGES), rtol=0.02, atol=0.1)


def test_a_graph_that_overflows_by_itself_is_refused(tmp_path: Path) -> None:
    nodes = [node("Mul", ["flat", "huge"], ["large"]), node("Exp", ["large"], ["embedding"])]
    fp32 = small_graph(tmp_path, nodes, {"huge": np.float32(1e3)})
    with pytest.raises(ModelError, match="expected finite embeddings"):
        convert(fp32)


# Where casts go


def test_a_residual_stream_stays_fp32_and_what_lies_between_products_goes_low(tmp_path: Path) -> None:
    nodes, constants, stream = [], {"ones": np.ones(192, np.float32)}, "flat"
    for block in range(3):
        name = f"b{block}"
        nodes += [
            node("LayerNormalization", [stream, "ones"], [f"{name}n"]),
            node("MatMul", [f"{name}n", f"{name}w1"], [f"{name}h"]),
            node("Relu", [f"{name}h"], [f"{name}r"]),
            node("MatMul", [f"{name}r", f"{name}w2"], [f"{name}o"]),
            node("Add", [stream, f"{name}o"], [f"{name}s"], name=f"{name} residual"),
        ]
        constants |= {f"{name}w1": weight(), f"{name}w2": weight()}
        stream = f"{name}s"
    nodes += [node("LayerNormalization", [stream, "ones"], ["n"]), node("MatMul", ["n", "last"], ["embedding"])]
    path, report = convert(small_graph(tmp_path, nodes, constants | {"last": weight()}))
    assert {item.name for item in report.kept if item.reason == "casts"} >= {f"b{block} residual" for block in range(3)}
    assert type_of(path, "Relu") == {"FLOAT16"}
    assert report.casts == 2 * 4  # into and out of each block, and of the last product


def test_a_convolutional_network_is_low_throughout(tmp_path: Path) -> None:
    kernel = (0.1 * rng.standard_normal((3, 3, 3, 3))).astype(np.float32)
    nodes = [
        node("Conv", ["image", "kernel"], ["a"], pads=[1] * 4),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "kernel"], ["c"], pads=[1] * 4),
        node("Add", ["b", "c"], ["d"], name="residual"),
        node("Conv", ["d", "kernel"], ["e"], pads=[1] * 4),
        node("Flatten", ["e"], ["embedding"]),
    ]
    path, report = convert(small_graph(tmp_path, nodes, {"kernel": kernel}))
    assert type_of(path, "Add") == type_of(path, "Conv") == {"FLOAT16"}
    assert report.casts == 2


def test_a_value_is_cast_once_for_all_its_readers(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["flat", f"w{index}"], [f"a{index}"]) for index in range(3)]
    nodes += [node("Sum", ["a0", "a1", "a2"], ["s"]), node("MatMul", ["s", "w0"], ["embedding"])]
    _, report = convert(small_graph(tmp_path, nodes, {f"w{index}": weight() for index in range(3)}))
    assert report.casts == 2  # the image and the embedding


def test_nodes_can_be_kept_by_name(tmp_path: Path) -> None:
    fp32 = small_graph(tmp_path, [node("MatMul", ["flat", "w"], ["embedding"], name="head")], {"w": weight()})
    path, report = convert(fp32, keep=["head"])
    assert report.reasons()["named"] == 1
    assert casts(path) == []
    with pytest.raises(ModelError, match=r"got \['tail'\]"):
        convert(fp32, keep=["tail"])


def test_a_constant_that_both_sides_read_is_there_in_both_types(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["flat", "w"], ["a"]),
        node("Add", ["a", "shift"], ["b"]),
        node("MatMul", ["b", "w"], ["c"]),
        node("LayerNormalization", ["c", "shift"], ["embedding"]),
    ]
    path, _ = convert(small_graph(tmp_path, nodes, {"w": weight(), "shift": np.ones(192, np.float32)}))
    assert constant(path, "w").dtype == constant(path, "shift.float16").dtype == np.float16
    assert constant(path, "shift").dtype == np.float32


def test_weights_stored_in_8_bits_stay_so(tmp_path: Path) -> None:
    gridded = to_grid(torch.from_numpy(weight())).numpy()
    fp32 = small_graph(tmp_path, [node("MatMul", ["flat", "w"], ["embedding"], name="head")], {"w": gridded})
    whole = rounded(convert(fp32)[0], IMAGES)
    assert compact(fp32) == 1
    path, _ = convert(fp32)
    assert constant(path, "w.levels").dtype == np.int8
    assert path.stat().st_size < 50_000
    np.testing.assert_array_equal(rounded(path, IMAGES), whole)
    assert lint(path) == ()
    assert tensorrt_refuses(path) == []


# The emulation


def test_the_emulation_rounds_as_numpy_does(tmp_path: Path) -> None:
    nodes = [node("Mul", ["flat", "k"], ["a"]), node("MatMul", ["a", "w"], ["embedding"])]
    fp32 = small_graph(tmp_path, nodes, {"k": np.float32(1 / 3), "w": weight()})
    path, _ = convert(fp32)
    a = IMAGES.reshape(5, -1).astype(np.float16) * np.float16(1 / 3)
    exact = a.astype(np.float32) @ constant(path, "w").astype(np.float32)
    np.testing.assert_allclose(rounded(path, IMAGES), exact.astype(np.float16), rtol=2**-10, atol=2**-14)


def test_the_emulation_agrees_with_onnx_reference_where_fp16_overflows(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    model = lint_graph(
        [
            node("Cast", ["image"], ["h"], to=10),
            node("Mul", ["h", "big"], ["a"]),
            node("Mul", ["a", "small"], ["b"]),
            node("Cast", ["b"], ["y"], to=1),
        ],
        {"big": np.float16(4e4), "small": np.float16(1e-3)},
        x=("image", 1, ["N", 3, 8, 8]),
    )
    path = save(model, tmp_path)
    with np.errstate(over="ignore"):
        expected = ReferenceEvaluator(model).run(None, {"image": IMAGES})[0]
    assert np.isinf(expected).any()
    assert np.isfinite(expected).any()
    np.testing.assert_array_equal(rounded(path, IMAGES), expected)


# Files and failures


def test_weights_beyond_protobufs_limit_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fp32 = small_graph(tmp_path, [node("MatMul", ["flat", "w"], ["embedding"])], {"w": weight()})
    expected = rounded(convert(fp32)[0], IMAGES)
    monkeypatch.setattr("edgeclip.export.onnx._PROTOBUF_LIMIT_BYTES", 1000)
    files, _ = convert_precision(fp32, tmp_path / "big.onnx", "fp16", IMAGES)
    assert [file.name for file in files] == ["big.onnx", "big.onnx.data"]
    assert files[0].stat().st_size < 2000
    again, _ = convert_precision(fp32, tmp_path / "big.onnx", "fp16", IMAGES)
    assert again == files
    np.testing.assert_array_equal(rounded(files[0], IMAGES), expected)


def test_a_graph_with_control_flow_is_refused_and_nothing_written(tmp_path: Path) -> None:
    branches = [
        onnx.helper.make_graph([node(op, ["flat"], [op])], op, [], [onnx.helper.make_tensor_value_info(op, 1, None)])
        for op in ("Relu", "Neg")
    ]
    nodes = [
        node("ReduceMax", ["flat"], ["largest"], keepdims=0),
        node("Greater", ["largest", "zero_f"], ["positive"]),
        node("If", ["positive"], ["embedding"], then_branch=branches[0], else_branch=branches[1]),
    ]
    fp32 = small_graph(tmp_path, nodes, {"zero_f": np.float32(0)})
    with pytest.raises(ModelError, match="control flow"):
        convert(fp32)
    assert list(tmp_path.iterdir()) == [fp32]


@pytest.mark.parametrize("images", [IMAGES[:0], IMAGES[0], np.zeros((0,), np.float32)])
def test_images_are_needed(images: Array, tmp_path: Path) -> None:
    fp32 = small_graph(tmp_path, [node("MatMul", ["flat", "w"], ["embedding"])], {"w": weight()})
    with pytest.raises(InputError, match="expected preprocessed images"):
        convert_precision(fp32, tmp_path / "x.onnx", "fp16", images)


def test_images_of_another_size_are_one_error(tmp_path: Path) -> None:
    fp32 = small_graph(tmp_path, [node("MatMul", ["flat", "w"], ["embedding"])], {"w": weight()})
    with pytest.raises(ModelError, match="cannot run"):
        convert_precision(fp32, tmp_path / "x.onnx", "fp16", np.zeros((1, 3, 4, 4), np.float32))


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    fp32 = small_graph(tmp_path, [node("MatMul", ["flat", "w"], ["embedding"])], {"w": weight()})
    with pytest.raises(InputError, match="expected another file"):
        convert_precision(fp32, fp32, "fp16", IMAGES)


def constant(path: Path, name: str) -> Array:
    return ir.load(path).graph.initializers[name].const_value.numpy()
