"""A finished INT8 graph, and FP16's ranges, are made once from the same graph, images and recipe, and found again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip.calibration.images import crops
from edgeclip.errors import ModelError
from edgeclip.export import result_cache
from edgeclip.export.result_cache import find_result, keep_result
from edgeclip.spec import EncoderSpec, PreprocessSpec

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("nncf")

import onnx_ir as ir  # noqa: E402

from edgeclip.export.half.ranges import measure_ranges  # noqa: E402
from edgeclip.export.int8.quantization import QuantizationRecipe, quantize  # noqa: E402
from edgeclip.export.onnx import export_onnx, save_graph  # noqa: E402
from edgeclip.export.photographs import photographs  # noqa: E402
from edgeclip.export.proofs import preprocess  # noqa: E402

SIZE, WIDTH, COUNT = 32, 16, 6
ENCODER = EncoderSpec(
    preprocess=PreprocessSpec(height=SIZE, width=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    embedding_dim=WIDTH,
    logit_scale=10.0,
)
FAST = QuantizationRecipe(range_estimator="minmax", smooth_alpha=None, bias_correction=False)
Array = Any


@pytest.fixture(scope="module")
def images() -> Array:
    views = crops([image for _, image in photographs()], COUNT)
    return preprocess([(str(index), view) for index, view in enumerate(views)], ENCODER)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = open_clip.transformer.VisionTransformer(
        image_size=SIZE, patch_size=8, width=32, layers=1, heads=2, mlp_ratio=2.0, output_dim=WIDTH
    )
    path = tmp_path_factory.mktemp("graphs") / "vit.onnx"
    export_onnx(model.eval(), ENCODER, path, metadata={})
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; where results are kept in it."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "export-results"


@pytest.fixture
def made(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[bytes, int]]:
    """Quantizes; returns the graph's bytes and how often NNCF was run."""
    import nncf

    run, runs = nncf.quantize, []

    def counted(*arguments: Any, **options: Any) -> Any:
        runs.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(nncf, "quantize", counted)

    def make(fp32: Path, images: Array, recipe: QuantizationRecipe = FAST) -> tuple[bytes, int]:
        before = len(runs)
        files = quantize(fp32, tmp_path / "int8.onnx", images, recipe)
        assert files == (tmp_path / "int8.onnx",)
        return files[0].read_bytes(), len(runs) - before

    return make


def changed(fp32: Path, target: Path) -> Path:
    """The graph with one weight a thousandth larger."""
    model = ir.load(str(fp32))
    weight = next(value for value in model.graph.initializers.values() if value.const_value.size > 1000)
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.001), name=weight.name)
    return save_graph(model, target)[0]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_the_same_inputs_give_the_same_bytes_and_nncf_is_not_run(vit: Path, images: Array, made: Any) -> None:
    first, runs = made(vit, images, QuantizationRecipe())
    assert runs == 1
    assert made(vit, images, QuantizationRecipe()) == (first, 0)


def test_another_graph_image_order_or_recipe_is_quantized_anew(
    vit: Path, images: Array, made: Any, tmp_path: Path
) -> None:
    first, _ = made(vit, images)
    other = images.copy()
    other[3, 0, 0, 0] += 1e-3
    assert made(vit, other)[1] == 1
    assert made(vit, images[::-1])[1] == 1
    assert made(vit, images[:-1])[1] == 1
    assert made(vit, images, QuantizationRecipe(range_estimator="mean-minmax", smooth_alpha=None))[1] == 1
    kept = next(node.name for node in ir.load(str(vit)).graph if node.op_type in {"MatMul", "Gemm"})
    content, runs = made(vit, images, QuantizationRecipe(range_estimator="minmax", keep_float=(kept,)))
    assert (runs, content != first) == (1, True)
    content, runs = made(changed(vit, tmp_path / "changed.onnx"), images)
    assert (runs, content != first) == (1, True)
    assert made(vit, images) == (first, 0)


@pytest.mark.parametrize("version", ["nncf", "onnxruntime"])
def test_another_version_of_a_library_quantizes_anew(
    version: str, vit: Path, images: Array, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(vit, images)
    if version == "nncf":
        installed = result_cache._version
        monkeypatch.setattr(result_cache, "_version", lambda name: "9" if name == "nncf" else installed(name))
    else:
        monkeypatch.setattr("onnxruntime.__version__", "9")
    assert made(vit, images)[1] == 1


@pytest.mark.parametrize("damage", ["a bit", "the end", "all"])
def test_a_damaged_entry_is_made_again(damage: str, vit: Path, images: Array, made: Any, cache: Path) -> None:
    first, _ = made(vit, images)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    if damage == "a bit":
        flip(path, len(whole) // 2)
    else:
        path.write_bytes(whole[:-5] if damage == "the end" else b"")
    content, runs = made(vit, images)
    assert (len(content), runs) == (len(first), 1)
    assert made(vit, images) == (content, 0)


def test_a_full_disk_fails_no_run(
    vit: Path, images: Array, made: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if cache in path.parents:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert made(vit, images)[1] == 1
    assert made(vit, images)[1] == 1
    assert not list(cache.iterdir())


def test_a_cache_that_is_a_file_fails_no_run(vit: Path, images: Array, made: Any, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("not a folder")
    assert made(vit, images)[1] == 1


def test_a_graph_with_its_weights_beside_it_is_not_kept(
    vit: Path, images: Array, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("edgeclip.export.onnx._PROTOBUF_LIMIT_BYTES", 1000)
        assert len(quantize(vit, tmp_path / "int8.onnx", images, FAST)) == 2
        assert not cache.exists() or not list(cache.iterdir())
    assert len(quantize(vit, tmp_path / "int8.onnx", images, FAST)) == 1
    (tmp_path / "int8.onnx.data").write_bytes(b"of another graph")
    assert len(quantize(vit, tmp_path / "int8.onnx", images, FAST)) == 1
    assert not (tmp_path / "int8.onnx.data").exists()


def test_the_cache_is_bounded_and_what_was_used_longest_ago_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "LIMIT_BYTES", 4000)
    for age, key in enumerate(("aa", "bb", "cc")):
        keep_result(key, bytes(1100))
        os.utime(cache / f"{key}.result", (age, age))
    assert find_result("aa") == bytes(1100)  # used again
    keep_result("dd", bytes(1100))
    assert [find_result(key) is not None for key in ("aa", "bb", "cc", "dd")] == [True, False, True, True]
    monkeypatch.setattr(result_cache, "LIMIT_BYTES", 1000)
    keep_result("ee", bytes(1100))
    assert not list(cache.iterdir())


# FP16 and BF16


def test_the_ranges_of_fp16_are_measured_once_for_the_same_images(
    vit: Path, images: Array, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, all_of_them = measure_ranges(vit, images[:3]), measure_ranges(vit, images)
    assert all(all_of_them[name].largest >= found.largest for name, found in few.items())

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("a graph was loaded")

    monkeypatch.setattr("edgeclip.export.half.ranges.ort.InferenceSession", refuse)
    assert measure_ranges(vit, images[:3]) == few
    assert measure_ranges(vit, images) == all_of_them
    with pytest.raises(ModelError, match="a graph was loaded"):
        measure_ranges(changed(vit, tmp_path / "changed.onnx"), images)
