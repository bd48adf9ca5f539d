"""INT8 graphs are legal, fused, near FP32 and found by search; outlier channels do not ruin them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

from edgeclip.calibration.images import crops
from edgeclip.devices.machine.cpu import read_cpu
from edgeclip.devices.machine.tree import Tree
from edgeclip.errors import InputError, ModelError, ParityError
from edgeclip.runtime.proof.parity import ParityReport, compare_embeddings
from edgeclip.spec import EncoderSpec, PreprocessSpec

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("nncf")
onnx = pytest.importorskip("onnx")

import onnx_ir as ir  # noqa: E402

from edgeclip.bundle import Bundle  # noqa: E402
from edgeclip.export.int8 import search as search_module  # noqa: E402
from edgeclip.export.int8.cpu_layout import lay_out_for_cpu  # noqa: E402
from edgeclip.export.int8.qdq import (  # noqa: E402
    array,
    bypass,
    constant,
    dequantized,
    fold_scales,
    pairs,
    prune,
    weight_of,
    widen,
)
from edgeclip.export.int8.quantization import (  # noqa: E402
    ESTIMATORS,
    QuantizationRecipe,
    default_recipe,
    is_transformer,
    quantize,
    read_recipe,
    unpack_weights,
)
from edgeclip.export.int8.search import (  # noqa: E402
    GraphLoss,
    Search,
    blocks,
    sensitivities,
)
from edgeclip.export.lint.lint import lint  # noqa: E402
from edgeclip.export.onnx import (  # noqa: E402
    export_onnx,
    save_graph,
    simplify,
)
from edgeclip.export.photographs import photographs  # noqa: E402
from edgeclip.export.proofs import preprocess  # noqa: E402

SIZE, WIDTH, LAYERS = 64, 64, 3
VIT = EncoderSpec(
    preprocess=PreprocessSpec(height=SIZE, width=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    embedding_dim=WIDTH,
    logit_scale=10.0,
)
FAST = QuantizationRecipe(range_estimator="minmax", bias_correction=False)

Array = Any


def views(encoder: EncoderSpec, count: int, seed: int) -> Array:
    """Random crops of real photographs, preprocessed."""
    images = crops([image for _, image in photographs()], count, seed=seed)
    return preprocess([(str(index), image) for index, image in enumerate(images)], encoder)


def small_vit(*, outliers_in: range = range(0)) -> Any:
    """A seeded ViT of open_clip's own, in whose blocks ``outliers_in`` six channels of both normalisations are 50 times
    larger, and the columns of the layer that follows 50 times smaller: the same function."""
    torch.manual_seed(0)
    model = open_clip.transformer.VisionTransformer(
        image_size=SIZE, patch_size=16, width=128, layers=LAYERS, heads=4, mlp_ratio=4.0, output_dim=WIDTH
    ).eval()
    chooser = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.transformer.resblocks:
            for norm in (block.ln_1, block.ln_2):
                norm.weight.uniform_(0.5, 1.5, generator=chooser)
                norm.bias.normal_(0, 0.1, generator=chooser)
        for index in outliers_in:
            block = model.transformer.resblocks[index]
            for norm, following in ((block.ln_1, block.attn.in_proj_weight), (block.ln_2, block.mlp.c_fc.weight)):
                channels = torch.randperm(128, generator=chooser)[:6]
                norm.weight[channels] *= 50
                norm.bias[channels] *= 50
                following[:, channels] /= 50
    return model


def export(model: Any, path: Path) -> Path:
    export_onnx(model, VIT, path, metadata={"edgeclip.model_id": "0123", "edgeclip.variant": "fp32"})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantization")


@pytest.fixture(scope="module")
def vit(folder: Path) -> Path:
    return export(small_vit(), folder / "vit.onnx")


@pytest.fixture(scope="module")
def vit_int8(vit: Path, folder: Path) -> Path:
    return quantize(vit, folder / "vit-int8.onnx", views(VIT, 16, 0), QuantizationRecipe())[0]


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return Bundle.open("starter")


@pytest.fixture(scope="module")
def starter_int8(starter: Bundle, folder: Path) -> Path:
    images = views(starter.manifest.encoder, 16, 0)
    return quantize(starter.variant_path("fp32"), folder / "starter-int8.onnx", images, QuantizationRecipe())[0]


def run(path: Path, images: Array) -> Array:
    options = ort.SessionOptions()
    if not read_cpu(Tree()).adds_int8_exactly:  # fused kernels overflow there; Q/DQ one by one are what the graph says
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def compare(reference: Path, candidate: Path, images: Array) -> ParityReport:
    names = [str(index) for index in range(len(images))]
    return compare_embeddings(run(reference, images), run(candidate, images), names, batch_size=1)


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(str(path)).graph)


def kernels(path: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime's CPU provider makes of a graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(folder / "optimised.onnx")).graph.node)


# The int8 graph


@pytest.mark.parametrize("which", ["vit_int8", "starter_int8"])
def test_an_int8_graph_is_signed_symmetric_and_per_channel_in_its_weights_only(
    which: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(which)
    model = ir.load(str(path))
    found = list(pairs(model))
    assert len(found) > 10
    for quantize_node, _ in found:
        scale, zero = array(quantize_node.inputs[1]), array(quantize_node.inputs[2])
        assert scale is not None
        assert scale.size == 1
        assert zero is not None
        assert zero.dtype == np.int8
        assert not zero.any()
    weights = [node for node in model.graph if node.op_type == "DequantizeLinear" and weight_of(node.outputs[0])]
    assert any(array(node.inputs[1]).size > 1 for node in weights)
    assert all(array(node.inputs[0]).dtype == np.int8 and not array(node.inputs[2]).any() for node in weights)
    assert not [finding for finding in lint(path) if finding.severity == "error"]
    assert model.metadata_props["edgeclip.variant"] == "int8"
    onnx.checker.check_model(str(path), full_check=True)


def test_int8_embeddings_agree_with_fp32_on_other_photographs(
    vit: Path, vit_int8: Path, starter: Bundle, starter_int8: Path
) -> None:
    assert compare(vit, vit_int8, views(VIT, 16, 5)).min_cosine > 0.99
    report = compare(starter.variant_path("fp32"), starter_int8, views(starter.manifest.encoder, 16, 5))
    assert report.min_cosine > 0.98
    assert report.mean_centred_cosine is not None
    assert report.mean_centred_cosine > 0.99


def test_identity_and_dynamic_batch_survive(vit: Path, vit_int8: Path) -> None:
    model = ir.load(str(vit_int8))
    assert model.metadata_props["edgeclip.model_id"] == "0123"
    assert model.graph.opset_imports == ir.load(str(vit)).graph.opset_imports
    session = ort.InferenceSession(str(vit_int8), providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": views(VIT, 3, 0)})[0].shape == (3, WIDTH)


def test_quantizing_prints_nothing(vit: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantize(vit, tmp_path / "int8.onnx", views(VIT, 2, 0), FAST)
    assert capfd.readouterr() == ("", "")


def test_a_graph_with_external_weights_is_quantized(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeclip.export.onnx._PROTOBUF_LIMIT_BYTES", 10_000)
    written = save_graph(ir.load(str(vit)), tmp_path / "vit.onnx")
    assert [path.name for path in written] == ["vit.onnx", "vit.onnx.data"]
    with pytest.raises(InputError, match=r"smooth_alpha null, got 0\.5: NNCF cannot smooth vit\.onnx"):
        quantize(written[0], tmp_path / "int8.onnx", views(VIT, 2, 0), FAST)
    recipe = msgspec.structs.replace(FAST, smooth_alpha=default_recipe(written[0]).smooth_alpha)
    made = quantize(written[0], tmp_path / "int8.onnx", views(VIT, 2, 0), recipe)
    assert [path.name for path in made] == ["int8.onnx", "int8.onnx.data"]
    laid_out = lay_out_for_cpu(made[0], tmp_path / "int8-cpu.onnx")
    assert compare(vit, laid_out[0], views(VIT, 4, 5)).min_cosine > 0.98


def test_nodes_that_the_recipe_names_stay_in_fp32(vit: Path, tmp_path: Path) -> None:
    last = [name for name in blocks(vit) if "resblocks" in name][-1]
    recipe = msgspec.structs.replace(FAST, keep_float=blocks(vit)[last])
    made = ir.load(str(quantize(vit, tmp_path / "int8.onnx", views(VIT, 2, 0), recipe)[0]))
    kept = [node for node in made.graph if node.name in recipe.keep_float]
    assert kept
    assert not any(weight_of(value) for node in kept for value in node.inputs)
    assert any(weight_of(value) for node in made.graph for value in node.inputs)


def test_a_recipe_for_another_graph_is_refused(vit: Path, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(FAST, keep_float=("node_of_another_model",))
    with pytest.raises(InputError, match="node_of_another_model"):
        quantize(vit, tmp_path / "int8.onnx", views(VIT, 2, 0), recipe)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_does_not_run_is_one_error(vit: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"NNCF .* cannot quantize"):
        quantize(vit, tmp_path / "int8.onnx", np.zeros((2, 3, 5, 5), np.float32), FAST)
    assert not list(tmp_path.iterdir())


# The CPU layout


def test_the_cpu_layout_is_fused_throughout(vit_int8: Path, starter_int8: Path, tmp_path: Path) -> None:
    transformer = kernels(lay_out_for_cpu(vit_int8, tmp_path / "vit.onnx")[0], tmp_path)
    # per block: QKV, output, two of the MLP; besides the final projection. Attention's own products stay in float32.
    assert transformer["MatMulIntegerToFloat"] + transformer["QGemm"] >= 4 * LAYERS
    assert not transformer["DequantizeLinear"]
    convolutional = kernels(lay_out_for_cpu(starter_int8, tmp_path / "starter.onnx")[0], tmp_path)
    assert convolutional["QLinearConv"] == nodes(starter_int8)["Conv"]
    assert not convolutional["Conv"] + convolutional["FusedConv"] + convolutional["Clip"]


def test_what_the_layout_is_made_from_is_not_fused(starter_int8: Path, tmp_path: Path) -> None:
    assert kernels(starter_int8, tmp_path)["QLinearConv"] < nodes(starter_int8)["Conv"]


def test_both_layouts_hold_the_same_weights(starter_int8: Path, tmp_path: Path) -> None:
    def levels(path: Path) -> set[bytes]:
        model = ir.load(str(path))
        stored = [array(node.inputs[0]) for node in model.graph if weight_of(node.outputs[0]) is node]
        return {value.tobytes() for value in stored if value is not None and value.dtype == np.int8}

    assert levels(lay_out_for_cpu(starter_int8, tmp_path / "cpu.onnx")[0]) == levels(starter_int8)


@pytest.mark.parametrize("which", ["vit", "starter"])
def test_both_layouts_give_the_same_embeddings(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path: Path = request.getfixturevalue(f"{which}_int8")
    encoder = VIT if which == "vit" else request.getfixturevalue("starter").manifest.encoder
    report = compare(path, lay_out_for_cpu(path, tmp_path / "cpu.onnx")[0], views(encoder, 8, 5))
    assert report.min_cosine > 0.99


def test_a_value_that_cannot_be_negative_gets_all_256_levels(starter_int8: Path, tmp_path: Path) -> None:
    model = ir.load(str(lay_out_for_cpu(starter_int8, tmp_path / "cpu.onnx")[0]))
    zeros = Counter(int(array(quantize_node.inputs[2]).item()) for quantize_node, _ in pairs(model))
    assert set(zeros) == {0, 128}
    assert zeros[0] > 20  # what comes out of a clip at 0
    assert model.metadata_props["edgeclip.variant"] == "int8-cpu"


# Q/DQ


def test_a_quantized_weight_is_levels_less_zero_point_times_scale() -> None:
    def weight(axis: int, scale: Array, zero: Array) -> Any:
        inputs = [
            ir.Value(name=name, const_value=ir.tensor(value))
            for name, value in (("w", np.array([[1, 2], [3, -4]], np.int8)), ("s", scale), ("z", zero))
        ]
        return ir.node("DequantizeLinear", inputs, attributes={"axis": axis})

    half, both = np.float32(0.5), np.array([1, 10], np.float32)
    np.testing.assert_array_equal(dequantized(weight(0, np.array(half), np.array(1, np.int8))), [[0, 0.5], [1, -2.5]])
    zeros = np.zeros(2, np.int8)
    np.testing.assert_array_equal(dequantized(weight(0, both, zeros)), [[1, 2], [30, -40]])
    np.testing.assert_array_equal(dequantized(weight(-1, both, zeros)), [[1, 20], [3, -40]])


def test_taking_all_rounding_of_activations_and_weights_out_leaves_no_quantizer(vit_int8: Path, vit: Path) -> None:
    model = ir.load(str(vit_int8))
    for node in list(model.graph):
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            for index in range(len(node.inputs)):
                bypass(node, index)
                widen(model, node, index)
    prune(model)
    counts = Counter(node.op_type for node in model.graph)
    assert not counts["QuantizeLinear"] + counts["DequantizeLinear"]
    assert counts["MatMul"] == nodes(vit)["MatMul"]


def test_weights_stored_in_8_bits_are_unpacked_exactly(starter: Bundle, tmp_path: Path) -> None:
    path = starter.variant_path("fp32")
    model = ir.load(str(path))
    unpack_weights(model)
    assert not any(node.op_type == "DequantizeLinear" for node in model.graph)
    unpacked = save_graph(model, tmp_path / "fp32.onnx")[0]
    images = views(starter.manifest.encoder, 3, 0)
    np.testing.assert_allclose(run(unpacked, images), run(path, images), rtol=1e-4, atol=1e-5)


def test_attention_is_recognised(vit: Path, starter: Bundle) -> None:
    assert is_transformer(ir.load(str(vit)))
    assert not is_transformer(ir.load(str(starter.variant_path("fp32"))))  # it has a softmax, and no attention


# Smoothing and simplifying


def scaled_norm(folder: Path, *, between: str = "", extra_use: bool = False, factor: Array | None = None) -> Path:
    """LayerNormalization, perhaps a transposition, then a multiplication."""
    rng = np.random.default_rng(0)
    make, text = onnx.helper.make_node, ""
    steps = [make("LayerNormalization", ["x", "scale", "bias"], ["n"], axis=-1, name="norm")]
    if between:
        order = [1, 0, 2] if between == "keeps the last axis" else [0, 2, 1]
        steps.append(make("Transpose", ["n"], ["t"], perm=order, name="transpose"))
    steps.append(make("Mul", ["t" if between else "n", "factor"], ["m"], name="smooth"))
    steps.append(make("Relu", ["m"], ["y"], name="relu"))
    outputs = [onnx.helper.make_tensor_value_info("y", 1, None)]
    if extra_use:
        steps.append(make("Neg", ["n"], ["z"], name="other"))
        outputs.append(onnx.helper.make_tensor_value_info("z", 1, None))
    constants = {
        "scale": rng.standard_normal(4).astype(np.float32),
        "bias": rng.standard_normal(4).astype(np.float32),
        "factor": rng.uniform(0.5, 2, 4).astype(np.float32) if factor is None else factor,
    }
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [onnx.helper.make_tensor_value_info("x", 1, [4, 4, 4])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(steps, f"g{text}", inputs, outputs, tensors),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(model, str(folder / "norm.onnx"))
    return folder / "norm.onnx"


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        ({}, 1),
        ({"between": "keeps the last axis"}, 1),
        ({"between": "moves the last axis"}, 0),
        ({"extra_use": True}, 0),
        ({"factor": np.array(2, np.float32)}, 0),
        ({"factor": np.full((4, 1), 2, np.float32)}, 0),
    ],
)
def test_a_multiplication_is_folded_where_that_changes_nothing(
    options: dict[str, Any], folded: int, tmp_path: Path
) -> None:
    path = scaled_norm(tmp_path, **options)
    x = np.random.default_rng(1).standard_normal((4, 4, 4)).astype(np.float32)
    before = ort.InferenceSession(str(path)).run(None, {"x": x})
    model = ir.load(str(path))
    assert fold_scales(model) == folded
    ir.save(model, str(path))
    assert nodes(path)["Mul"] == 1 - folded
    for value, expected in zip(ort.InferenceSession(str(path)).run(None, {"x": x}), before, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_simplifying_drops_nodes_and_changes_nothing(tmp_path: Path) -> None:
    module = small_vit()
    program = torch.onnx.export(
        module,
        (torch.zeros(2, 3, SIZE, SIZE),),
        dynamo=True,
        input_names=["image"],
        output_names=["embedding"],
        dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
        opset_version=18,
        verbose=False,
    )
    ir.save(program.model, str(tmp_path / "plain.onnx"))
    before = len(list(ir.load(str(tmp_path / "plain.onnx")).graph))
    simple = simplify(ir.load(str(tmp_path / "plain.onnx")))
    ir.save(simple, str(tmp_path / "simple.onnx"))
    assert len(list(simple.graph)) < before
    assert [value.name for value in simple.graph.inputs] == ["image"]
    images = views(VIT, 3, 0)
    np.testing.assert_allclose(
        run(tmp_path / "simple.onnx", images), run(tmp_path / "plain.onnx", images), rtol=1e-5, atol=1e-6
    )


# Outliers, sensitivity and search


@pytest.fixture(scope="module")
def outlier_vit(folder: Path) -> Path:
    return export(small_vit(outliers_in=range(LAYERS)), folder / "outliers.onnx")


def test_outlier_channels_leave_fp32_alone_ruin_naive_int8_and_not_ours(
    vit: Path, outlier_vit: Path, tmp_path: Path
) -> None:
    calibration, photos = views(VIT, 16, 0), views(VIT, 32, 5)
    reference = run(vit, photos)
    np.testing.assert_allclose(run(outlier_vit, photos), reference, rtol=1e-4, atol=1e-4 * np.abs(reference).max())
    naive = quantize(
        outlier_vit, tmp_path / "naive.onnx", calibration, msgspec.structs.replace(FAST, smooth_alpha=None)
    )[0]
    ours = quantize(outlier_vit, tmp_path / "ours.onnx", calibration, QuantizationRecipe())[0]
    collapsed, kept = compare(vit, naive, photos), compare(vit, ours, photos)
    laid_out = compare(vit, lay_out_for_cpu(ours, tmp_path / "cpu.onnx")[0], photos)
    # What tells images apart is the mean-centred cosine: random weights leave a large common part untouched.
    assert min(kept.min_cosine, laid_out.min_cosine) > 0.999
    assert min(centred(kept), centred(laid_out)) > 0.995
    assert centred(collapsed) < 0.9


@pytest.fixture(scope="module")
def one_bad_block(folder: Path) -> Path:
    return export(small_vit(outliers_in=range(1, 2)), folder / "one-bad-block.onnx")


def centred(report: ParityReport) -> float:
    """Mean of the mean-centred cosine."""
    assert report.mean_centred_cosine is not None
    return report.mean_centred_cosine


def loss_against(reference: Path) -> Any:
    photos = views(VIT, 16, 5)

    def loss(path: Path) -> GraphLoss:
        found = 1 - centred(compare(reference, path, photos))
        return GraphLoss(bound=found, estimate=found)

    return loss


def test_blocks_are_those_that_the_model_numbers(vit: Path) -> None:
    found = blocks(vit)
    numbered = [name for name in found if "resblocks" in name]
    assert [name.rpartition(".")[2] for name in numbered] == ["0", "1", "2"]
    everything = [name for names in found.values() for name in names]
    assert sorted(everything) == sorted(node.name for node in ir.load(str(vit)).graph)


def test_blocks_of_weights_stored_in_8_bits_hold_nodes_that_a_recipe_can_keep(
    starter: Bundle, starter_int8: Path, tmp_path: Path
) -> None:
    fp32 = starter.variant_path("fp32")
    name, kept = list(blocks(fp32).items())[2]
    assert name.endswith("blocks.1")
    recipe = msgspec.structs.replace(FAST, keep_float=kept)
    int8 = quantize(fp32, tmp_path / "int8.onnx", views(starter.manifest.encoder, 2, 0), recipe)[0]
    assert nodes(int8)["QuantizeLinear"] < nodes(starter_int8)["QuantizeLinear"]


def test_the_block_with_outliers_is_the_most_sensitive(one_bad_block: Path, tmp_path: Path) -> None:
    naive = msgspec.structs.replace(FAST, smooth_alpha=None)
    int8 = quantize(one_bad_block, tmp_path / "int8.onnx", views(VIT, 8, 0), naive)[0]
    loss = loss_against(one_bad_block)
    ranked = sensitivities(one_bad_block, int8, loss)
    assert ranked[0].block.endswith("resblocks.1")
    assert ranked[0].loss_without.bound < 0.5 * loss(int8).bound
    assert ranked[1].loss_without.bound > 2 * ranked[0].loss_without.bound


def test_the_search_keeps_as_few_blocks_in_fp32_as_will_do(
    one_bad_block: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "ESTIMATORS", ("minmax",))
    monkeypatch.setattr(search_module, "ALPHAS", (None,))  # without smoothing only FP32 helps
    naive = msgspec.structs.replace(FAST, smooth_alpha=None)
    said: list[str] = []
    search = Search(
        one_bad_block, views(VIT, 8, 0), loss_against(one_bad_block), unit="1 - cosine", progress=said.append
    )
    result = search.run(0.02, start=naive)
    assert result.best.loss.bound <= 0.02 < result.trials[0].loss.bound
    assert [name.rpartition(".")[2] for name in result.best.blocks_in_fp32] == ["1"]
    assert set(result.best.recipe.keep_float) == set(blocks(one_bad_block)[result.best.blocks_in_fp32[0]])
    assert any("sensitivity" in line for line in said)
    msgspec.json.decode(msgspec.json.encode(result), type=type(result))


def test_the_search_ends_with_the_first_recipe_that_is_good_enough(vit: Path) -> None:
    result = Search(vit, views(VIT, 4, 0), loss_against(vit), unit="1 - cosine").run(0.5, start=FAST)
    assert len(result.trials) == 1
    assert result.best.recipe == FAST
    assert not result.blocks


def test_smoothing_is_searched_before_blocks_are_given_up(outlier_vit: Path) -> None:
    naive = msgspec.structs.replace(FAST, smooth_alpha=None)
    result = Search(outlier_vit, views(VIT, 8, 0), loss_against(outlier_vit), unit="1 - cosine").run(0.005, start=naive)
    assert result.best.recipe.smooth_alpha is not None
    assert not result.best.blocks_in_fp32
    assert {trial.recipe.range_estimator for trial in result.trials} == set(ESTIMATORS)


def test_an_unreachable_loss_is_one_error_that_says_how_near_it_came(
    vit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "ESTIMATORS", ("minmax",))
    monkeypatch.setattr(search_module, "ALPHAS", (0.5,))
    with pytest.raises(ParityError, match=r"within 0 1 - cosine of FP32, got .* at best after \d+ trials with any"):
        Search(vit, views(VIT, 2, 0), loss_against(vit), unit="1 - cosine").run(0.0, start=FAST)


def test_a_search_without_time_tries_one_recipe_and_says_so(vit: Path) -> None:
    search = Search(vit, views(VIT, 2, 0), loss_against(vit), unit="1 - cosine", budget_s=0)
    with pytest.raises(ParityError, match="after 1 trials in the time allowed; allow more"):
        search.run(0.0, start=FAST)


# Recipes


def test_a_recipe_can_be_replayed_from_its_own_file_or_a_report(tmp_path: Path) -> None:
    recipe = QuantizationRecipe(range_estimator="mse", smooth_alpha=None, keep_float=("a", "b"))
    (tmp_path / "recipe.json").write_bytes(msgspec.json.encode(recipe))
    (tmp_path / "report.json").write_bytes(msgspec.json.encode({"recipe": recipe, "search": None}))
    assert read_recipe(tmp_path / "recipe.json") == read_recipe(tmp_path / "report.json") == recipe


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"range_estimator": "best"}', '{"smooth_alpha": 2}', '{"alpha": 0.5}', '{"recipe": {"alpha": 0.5}}'],
)
def test_what_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(InputError, match="is not a quantization recipe"):
        read_recipe(tmp_path / "recipe.json")


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_recipe(tmp_path / "none.json")


def test_constants_never_take_the_name_of_another(vit: Path) -> None:
    model = ir.load(str(vit))
    names = {constant(model, "shape", np.zeros(1, np.float32)).name for _ in range(3)}
    assert len(names) == 3
