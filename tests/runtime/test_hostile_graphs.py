"""Graphs that ask for more than they have are refused before an engine gets them, or by their first run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeclip import Bundle
from edgeclip.errors import EdgeclipError, EngineError, IntegrityError
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.onnx_graph import check_graph
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.engines.first_run import check_first_run
from edgeclip.runtime.proof.choose import choose
from tests.conftest import SIZE, WIDTH, add_variant

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

Edit = Callable[[Any], None]
Node = Any


def constant(name: str, values: object, kind: str = "int64") -> Any:
    return numpy_helper.from_array(np.array(values, kind), name)


def with_nodes(nodes: list[Node], *initializers: Any, sparse: tuple[Any, ...] = ()) -> Edit:
    """An edit that puts nodes, the last of which gives ``extra``, and its largest value into the embedding's sum."""

    def edit(graph: Any) -> None:
        graph.initializer.extend(initializers)
        graph.sparse_initializer.extend(sparse)
        (last,) = (node for node in graph.node if "embedding" in node.output)
        last.output[0] = "before"
        tail = [
            helper.make_node("Cast", ["extra"], ["extra.float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", ["extra.float"], ["extra.least"], keepdims=0),
            helper.make_node("Add", ["before", "extra.least"], ["embedding"]),
        ]
        graph.node.extend([*nodes, *tail])

    return edit


def loop(rounds: list[Any], body: list[Node], name: str = "count", *inner: Any) -> list[Node]:
    """A loop that adds one to ``x`` in each round, after what else is in its body."""
    scalar = {"elem_type": TensorProto.FLOAT, "shape": []}
    graph = helper.make_graph(
        [
            *body,
            helper.make_node("Constant", [], [f"{name}.one"], value_float=1.0),
            helper.make_node("Add", [f"{name}.x", f"{name}.one"], [f"{name}.y"]),
            helper.make_node("Identity", [f"{name}.go"], [f"{name}.still"]),
        ],
        name,
        [
            helper.make_tensor_value_info(f"{name}.i", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{name}.go", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{name}.x", **scalar),
        ],
        [
            helper.make_tensor_value_info(f"{name}.still", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{name}.y", **scalar),
        ],
        list(inner),
    )
    return [
        *(node for node in rounds if node),
        helper.make_node("Constant", [], [f"{name}.start"], value_float=0.0),
        helper.make_node("Loop", [name if rounds != [None] else "", "", f"{name}.start"], ["extra"], body=graph),
    ]


def in_an_if(node: Node) -> list[Node]:
    """A node that gives ``extra`` in both branches of an If."""
    out = [helper.make_tensor_value_info("extra", TensorProto.FLOAT, None)]
    branches = {f"{name}_branch": helper.make_graph([node], name, [], out) for name in ("then", "else")}
    return [
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["yes"], ["extra"], **branches),
    ]


def rounds(count: int, name: str = "count") -> Node:
    return helper.make_node("Constant", [], [name], value_int=count)


GIB = 1 << 30
FILL = helper.make_node("ConstantOfShape", ["shape"], ["extra"])
SHAPE = constant("shape", [6, GIB // 4])
ONE = constant("one", [1.0], "float32")
SPARSE = helper.make_sparse_tensor(constant("extra", [1.0], "float32"), constant("at", [3]), [6 * GIB])
INNER = loop([rounds(1000, "inner")], [], "inner")
INNER[-1].output[0] = "unused"

LARGE: dict[str, Edit] = {
    "ConstantOfShape": with_nodes([FILL], SHAPE),
    "its shape a Constant": with_nodes([helper.make_node("Constant", [], ["shape"], value_ints=[6, GIB // 4]), FILL]),
    "its shape a Constant's tensor": with_nodes([helper.make_node("Constant", [], ["shape"], value=SHAPE), FILL]),
    "its shape not packed": with_nodes([FILL], helper.make_tensor("shape", TensorProto.INT64, [2], [6, GIB // 4])),
    "Expand": with_nodes([helper.make_node("Expand", ["one", "shape"], ["extra"])], SHAPE, ONE),
    "Tile": with_nodes([helper.make_node("Tile", ["one", "n"], ["extra"])], ONE, constant("n", [6 * GIB])),
    "Range": with_nodes(
        [helper.make_node("Range", ["a", "b", "c"], ["extra"])],
        *(constant(name, value) for name, value in (("a", 0), ("b", 1 << 62), ("c", 1))),
    ),
    "Range of floats": with_nodes(
        [helper.make_node("Range", ["a", "b", "c"], ["extra"])],
        *(constant(name, value, "float32") for name, value in (("a", 0), ("b", 1e30), ("c", 1e-3))),
    ),
    "Resize by scales": with_nodes(
        [helper.make_node("Resize", ["image", "", "scales"], ["extra"])],
        constant("scales", [1, 1, 6e4, 6e4], "float32"),
    ),
    "Resize to sizes": with_nodes(
        [helper.make_node("Resize", ["image", "", "", "sizes"], ["extra"])], constant("sizes", [1, 3, 60000, 60000])
    ),
    "Pad": with_nodes([helper.make_node("Pad", ["one", "pads"], ["extra"])], ONE, constant("pads", [GIB, GIB])),
    "OneHot": with_nodes(
        [helper.make_node("OneHot", ["at", "depth", "values"], ["extra"])],
        *(constant("at", [0]), constant("depth", GIB), constant("values", [0.0, 1.0], "float32")),
    ),
    "RandomNormal": with_nodes([helper.make_node("RandomNormal", [], ["extra"], shape=[6, GIB])]),
    "several that are large together": with_nodes(
        [helper.make_node("ConstantOfShape", ["shape"], [name]) for name in ("a", "b", "c", "d", "extra")],
        constant("shape", [GIB // 16]),
    ),
    "its shape behind other nodes": with_nodes(
        [
            helper.make_node("Cast", ["whole"], ["cast"], to=TensorProto.INT64),
            helper.make_node("Unsqueeze", ["cast", "first"], ["shape"]),
            FILL,
        ],
        *(constant("whole", 1 << 30, "int32"), constant("first", [0])),
    ),
    "its shape listed after it": with_nodes([FILL, helper.make_node("Constant", [], ["shape"], value_ints=[2 * GIB])]),
    "in a branch": with_nodes(in_an_if(FILL), SHAPE),
    "sparse": with_nodes([helper.make_node("Identity", ["sparse"], ["extra"])], sparse=(SPARSE,)),
}
LOOPS: dict[str, Edit] = {
    "2^62 rounds": with_nodes(loop([rounds(1 << 62)], [])),
    "2^62 rounds of an initializer": with_nodes(loop([], []), constant("count", 1 << 62)),
    "loops in a loop": with_nodes(loop([rounds(1000)], INNER)),
    "no number of rounds": with_nodes(loop([None], [])),
    "a computed number of rounds": with_nodes(
        loop([rounds(1 << 31, "half"), helper.make_node("Mul", ["half", "half"], ["count"])], [])
    ),
}
OTHERS: dict[str, Edit] = {
    "a compiled form": with_nodes(
        [helper.make_node("EPContext", ["image"], ["extra"], domain="com.microsoft", ep_cache_context="../x.bin")]
    ),
    "more numbers than bytes": with_nodes(
        [helper.make_node("Identity", ["wide"], ["extra"])],
        TensorProto(name="wide", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20], raw_data=b"\0\0\0\0"),
    ),
    "a negative size": with_nodes(
        [helper.make_node("Identity", ["wide"], ["extra"])],
        TensorProto(name="wide", data_type=TensorProto.FLOAT, dims=[-1], raw_data=b"\0\0\0\0"),
    ),
}


def refused_by_every_way_in(bundle: Bundle, match: str) -> None:
    path = bundle.path / bundle.variant("fp16").file
    start = time.perf_counter()
    with pytest.raises(IntegrityError, match=match):
        bundle.variant_path("fp16")
    with pytest.raises(IntegrityError, match=match):
        list(bundle.verify())
    with pytest.raises(IntegrityError, match=match):
        load_engine("onnxruntime", path, bundle.manifest.encoder)
    with pytest.raises(IntegrityError, match=match):
        choose(bundle, variant="fp16", engine="onnxruntime")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("what", LARGE)
def test_tensors_made_of_nothing_are_bounded(tiny_bundle: Path, what: str) -> None:
    refused_by_every_way_in(add_variant(tiny_bundle, "fp16", LARGE[what]), "EDGECLIP_MAX_GRAPH_BYTES")


@pytest.mark.parametrize("what", LOOPS)
def test_loops_are_bounded(tiny_bundle: Path, what: str) -> None:
    refused_by_every_way_in(add_variant(tiny_bundle, "fp16", LOOPS[what]), "EDGECLIP_MAX_GRAPH_ROUNDS|without a fixed")


@pytest.mark.parametrize("what", OTHERS)
def test_what_no_encoder_has_is_refused(tiny_bundle: Path, what: str) -> None:
    refused_by_every_way_in(add_variant(tiny_bundle, "fp16", OTHERS[what]), "EPContext|declares a tensor")


def test_small_fills_and_loops_are_run(tiny_bundle: Path) -> None:
    small = with_nodes(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            *loop([rounds(3)], []),
        ],
        constant("shape", [2, 3]),
    )
    bundle = add_variant(tiny_bundle, "fp16", small)
    images = np.zeros((1, 3, SIZE, SIZE), np.float32)
    check_first_run(bundle, "fp16")
    embeddings = []
    for name in ("fp32", "fp16"):
        with load_engine("onnxruntime", bundle.variant_path(name), bundle.manifest.encoder) as engine:
            embeddings.append(engine.infer(images))
    np.testing.assert_allclose(embeddings[1], embeddings[0] + 3, rtol=1e-5)


def test_a_bound_may_be_set_higher(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = add_variant(tiny_bundle, "fp16", LOOPS["loops in a loop"])
    monkeypatch.setenv("EDGECLIP_MAX_GRAPH_ROUNDS", "1000000")
    assert bundle.variant_path("fp16")


# Other files


def with_weight_in(location: str, *, data: bytes | None = bytes(4 * WIDTH)) -> Edit:
    """An edit that adds a weight whose numbers lie in another file."""
    weight = TensorProto(name="extra", data_type=TensorProto.FLOAT, dims=[WIDTH], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    return with_nodes([], weight)


@pytest.mark.parametrize(
    "location", ["../../secret.bin", "../secret.bin", "/etc/passwd", "", "*/_ORT_MEM_ADDR_/*", "a\\b"]
)
def test_weights_outside_the_folder_are_not_read(tiny_bundle: Path, location: str) -> None:
    for folder in (tiny_bundle, tiny_bundle.parent):
        (folder / "secret.bin").write_bytes(bytes(4 * WIDTH))
    bundle = add_variant(tiny_bundle, "fp16", with_weight_in(location))
    refused_by_every_way_in(bundle, "inside the bundle|no file")


def test_weights_that_the_variant_does_not_list_are_not_read(tiny_bundle: Path) -> None:
    (tiny_bundle / "image_encoder" / "more.bin").write_bytes(bytes(4 * WIDTH))  # listed as a file, of no variant
    bundle = add_variant(tiny_bundle, "fp16", with_weight_in("more.bin"))
    with pytest.raises(IntegrityError, match=r"reads 'more\.bin', which the manifest does not list for fp16"):
        choose(bundle, variant="fp16")
    manifest = read_manifest(tiny_bundle)
    fp32, fp16 = manifest.variants
    listed = msgspec.structs.replace(fp16, data_files=("image_encoder/more.bin",))
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, variants=(fp32, listed)))
    assert Bundle.open(tiny_bundle).variant_path("fp16")


def test_weights_behind_a_link_and_too_few_of_them_are_refused(tiny_bundle: Path) -> None:
    bundle = add_variant(tiny_bundle, "fp16", with_weight_in("more.bin"))
    data = tiny_bundle / "image_encoder" / "more.bin"
    (tiny_bundle / "elsewhere").write_bytes(bytes(4 * WIDTH))
    data.symlink_to(tiny_bundle / "elsewhere")
    with pytest.raises(IntegrityError, match="symbolic link"):
        check_graph(bundle.path / "image_encoder" / "fp16.onnx")
    data.unlink()
    data.write_bytes(b"\0")
    with pytest.raises(IntegrityError, match="which is smaller"):
        check_graph(bundle.path / "image_encoder" / "fp16.onnx")


def test_weights_of_a_branch_are_found(tiny_bundle: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[WIDTH], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../../secret.bin")
    node = helper.make_node("Constant", [], ["extra"], value=weight)
    refused_by_every_way_in(add_variant(tiny_bundle, "fp16", with_nodes(in_an_if(node))), "inside the bundle")


# The first run


COMPUTED = with_nodes(
    [helper.make_node("Mul", ["root", "root"], ["shape"]), FILL], constant("root", [1 << 17])
)  # 64 GiB, which no number in the file says
OUTER = with_nodes(
    [helper.make_node("Mul", ["column", "row"], ["extra"])],
    constant("column", np.ones((40_000, 1)), "float32"),
    constant("row", np.ones((1, 60_000)), "float32"),
)


@pytest.mark.parametrize("edit", [COMPUTED, OUTER])
def test_a_first_run_that_takes_too_much_memory_is_refused(tiny_bundle: Path, edit: Edit) -> None:
    bundle = add_variant(tiny_bundle, "fp16", edit)
    for _ in range(2):  # it is remembered
        with pytest.raises(EngineError, match=r"takes more than 4\.0 GiB for its first inference"):
            choose(bundle, variant="fp16", engine="onnxruntime")


def test_a_first_run_that_takes_too_long_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = add_variant(tiny_bundle, "fp16", with_nodes(loop([rounds(1 << 56)], [])))
    monkeypatch.setenv("EDGECLIP_MAX_GRAPH_ROUNDS", str(1 << 57))  # as if no number in the file said so
    monkeypatch.setenv("EDGECLIP_MAX_FIRST_RUN_S", "2")
    with pytest.raises(EngineError, match=r"takes more than 2 s for its first inference: .* EDGECLIP_MAX_FIRST_RUN_S"):
        check_first_run(bundle, "fp16")


def test_a_graph_that_was_tried_is_not_tried_again(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny_bundle)
    check_first_run(bundle, "fp32")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    check_first_run(bundle, "fp32")
    with pytest.raises(EngineError, match="cannot start a process"):
        check_first_run(add_variant(tiny_bundle, "fp16", with_nodes([FILL], constant("shape", [7]))), "fp16")


# Bytes that are no graph


def test_a_file_of_a_million_empty_messages_is_refused_at_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = b"\x0a\x00" * 1_000_000  # nodes
    size = len(graph)
    head = b"\x3a" + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
    path = tmp_path / "x.onnx"
    path.write_bytes(head + graph)
    monkeypatch.setenv("EDGECLIP_MAX_GRAPH_FIELDS", "50000")
    with pytest.raises(IntegrityError, match="expected at most 50,000 fields in an ONNX file"):
        check_graph(path)
    assert check_graph(tiny_bundle / "image_encoder" / "fp32.onnx") == ()


def test_a_tensor_of_a_thousand_dimensions_is_refused(tiny_bundle: Path) -> None:
    wide = TensorProto(name="wide", data_type=TensorProto.FLOAT, dims=[1 << 62] * 5000, raw_data=b"\0\0\0\0")
    bundle = add_variant(tiny_bundle, "fp16", with_nodes([helper.make_node("Identity", ["wide"], ["extra"])], wide))
    refused_by_every_way_in(bundle, "declares a tensor of 4,611,686,018,427,387,904 numbers")


def test_damaged_graphs_end_in_errors_of_edgeclip(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = (tiny_bundle / "image_encoder" / "fp32.onnx").read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "x.onnx"
    for count in range(300):
        data = bytearray(whole)
        # The weights' own bytes are no structure: what comes before and after them is.
        for at in rng.integers(0, len(data), 3) if count % 3 else rng.integers(0, 120, 2):
            data[at] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if count % 5 == 0 else data)
        try:
            assert check_graph(path) == ()
        except EdgeclipError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most pass
