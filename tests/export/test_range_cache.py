"""Activation statistics: measured once for a graph and an image, the same bits from the cache, resumed after a kill."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeclip.calibration.images import crops
from edgeclip.errors import InputError
from edgeclip.export.int8 import statistics as statistics_store
from edgeclip.export.int8.statistics import StatisticsStore, image_digest, open_store
from edgeclip.spec import EncoderSpec, PreprocessSpec

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
pytest.importorskip("nncf")

import onnx_ir as ir  # noqa: E402
import onnxruntime as ort  # noqa: E402

from edgeclip.export.half.ranges import measure_ranges  # noqa: E402
from edgeclip.export.int8 import quantization  # noqa: E402
from edgeclip.export.int8.qdq import array, pairs  # noqa: E402
from edgeclip.export.int8.quantization import ESTIMATORS, QuantizationRecipe, RangeEstimator, quantize  # noqa: E402
from edgeclip.export.onnx import export_onnx  # noqa: E402
from edgeclip.export.photographs import photographs  # noqa: E402
from edgeclip.export.proofs import preprocess  # noqa: E402

SIZE, WIDTH, COUNT = 32, 16, 6
ENCODER = EncoderSpec(
    preprocess=PreprocessSpec(height=SIZE, width=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    embedding_dim=WIDTH,
    logit_scale=10.0,
)
PLAIN = QuantizationRecipe(smooth_alpha=None)
Array = Any


class ConvNet(torch.nn.Module):
    """No attention: nothing is smoothed, and images are run in one step."""

    def __init__(self) -> None:
        super().__init__()
        conv, relu = torch.nn.Conv2d, torch.nn.ReLU()
        self.body = torch.nn.Sequential(conv(3, 8, 3, 2), relu, conv(8, 16, 3, 2), relu, torch.nn.AdaptiveAvgPool2d(1))
        self.head = torch.nn.Linear(16, WIDTH)

    def forward(self, image: Any) -> Any:
        return self.head(self.body(image).flatten(1))


@pytest.fixture(scope="module")
def images() -> Array:
    views = crops([image for _, image in photographs()], COUNT + 4)
    return preprocess([(str(index), view) for index, view in enumerate(views)], ENCODER)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    vit = open_clip.transformer.VisionTransformer(
        image_size=SIZE, patch_size=8, width=32, layers=1, heads=2, mlp_ratio=2.0, output_dim=WIDTH
    )
    for name, model in (("vit", vit), ("conv", ConvNet())):
        export_onnx(model.eval(), ENCODER, folder / f"{name}.onnx", metadata={})
    return {name: folder / f"{name}.onnx" for name in ("vit", "conv")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; where the statistics are kept in it."""
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "activation-statistics"


@pytest.fixture
def made(tmp_path: Path, cache: Path) -> Callable[..., tuple[bytes, int]]:
    """Quantizes; returns the graph's bytes and how often an image was run."""

    def make(fp32: Path, images: Array, recipe: QuantizationRecipe) -> tuple[bytes, int]:
        ran: list[str] = []
        target, *_ = quantize(fp32, tmp_path / "int8.onnx", images, recipe, progress=ran.append)
        return target.read_bytes(), len(ran)

    return make


@pytest.fixture
def uncached(
    made: Callable[..., tuple[bytes, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., bytes]:
    """Quantizes with a cache that is empty."""

    def make(*arguments: Any) -> bytes:
        with monkeypatch.context() as patch:
            patch.setenv("EDGECLIP_CACHE", str(tmp_path / f"other-{random.random()}"))
            content, _ = made(*arguments)
        return content

    return make


# Once measured


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_bit_is_what_nncf_measures_itself_and_a_second_time_no_image_is_run(
    estimator: RangeEstimator, graphs: dict[str, Path], images: Array, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = QuantizationRecipe(range_estimator=estimator)
    ours, runs = made(graphs["vit"], images[:COUNT], recipe)
    assert runs == 2 * COUNT  # to smooth, and to measure the smoothed graph
    assert made(graphs["vit"], images[:COUNT], recipe) == (ours, 0)
    monkeypatch.setattr(quantization, "kept_statistics", lambda *_, **__: contextlib.nullcontext())

    class Unoptimised(ort.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

    optimised, _ = made(graphs["vit"], images[:COUNT], recipe)
    steps = [scales(ours), scales(optimised)]
    assert len(steps[0]) > 5
    np.testing.assert_allclose(*steps, rtol=1e-4)
    monkeypatch.setattr("nncf.onnx.engine.rt.SessionOptions", Unoptimised)
    assert made(graphs["vit"], images[:COUNT], recipe)[0] == ours


def scales(content: bytes) -> list[float]:
    """Of the activations, in the order of the graph."""
    model = ir.from_proto(ir.serde.onnx.ModelProto.FromString(content))
    return [float(array(quantize.inputs[1])) for quantize, _ in pairs(model)]


@pytest.mark.parametrize(("graph", "estimator"), [("vit", "mse"), ("conv", "mse"), ("conv", "percentile")])
def test_of_more_images_only_the_new_ones_are_run(
    graph: str, estimator: RangeEstimator, graphs: dict[str, Path], images: Array, made: Any, uncached: Any
) -> None:
    recipe = msgspec.structs.replace(PLAIN, range_estimator=estimator)
    made(graphs[graph], images[:COUNT], recipe)
    content, runs = made(graphs[graph], images, recipe)
    assert runs == len(images) - COUNT
    assert content == uncached(graphs[graph], images, recipe)


def test_a_smoothed_graph_follows_from_all_images_and_is_measured_anew_with_more(
    graphs: dict[str, Path], images: Array, made: Any, uncached: Any
) -> None:
    made(graphs["vit"], images[:COUNT], QuantizationRecipe())
    content, runs = made(graphs["vit"], images, QuantizationRecipe())
    assert runs == len(images) - COUNT + len(images)
    assert content == uncached(graphs["vit"], images, QuantizationRecipe())


@pytest.mark.parametrize("estimator", ["mse", "mean-minmax"])
def test_other_images_or_another_order_give_what_they_would_without_a_cache(
    estimator: RangeEstimator, graphs: dict[str, Path], images: Array, made: Any, uncached: Any
) -> None:
    recipe = msgspec.structs.replace(PLAIN, range_estimator=estimator)
    images = images * np.float32([8, *[1] * (len(images) - 1)])[:, None, None, None]  # histograms as wide as the first
    made(graphs["conv"], images, recipe)
    chosen = images[[7, 2, 9, 4]]
    content, runs = made(graphs["conv"], chosen, recipe)
    assert runs == {"mse": 4, "mean-minmax": 1}[estimator]  # the weights' ranges come with the first image
    assert content == uncached(graphs["conv"], chosen, recipe)


def test_a_search_measures_each_graph_once(graphs: dict[str, Path], images: Array, made: Any) -> None:
    few, fp32 = images[:COUNT], graphs["vit"]
    made(fp32, few, QuantizationRecipe(range_estimator="mse"))
    assert made(fp32, few, QuantizationRecipe(range_estimator="minmax"))[1] == COUNT  # not for smoothing
    assert made(fp32, few, QuantizationRecipe(range_estimator="mean-minmax"))[1] == 0  # the same extremes
    kept = tuple(node.name for node in ir.load(str(fp32)).graph if node.op_type in {"MatMul", "Gemm"})[:2]
    assert made(fp32, few, QuantizationRecipe(range_estimator="mse", keep_float=kept))[1] == 0


# Never what is not its own


def test_changed_weights_images_or_smoothing_are_measured(
    graphs: dict[str, Path], images: Array, made: Any, tmp_path: Path
) -> None:
    few = images[:COUNT]
    before, _ = made(graphs["vit"], few, QuantizationRecipe())
    assert made(graphs["vit"], few, QuantizationRecipe(smooth_alpha=0.8))[1] == COUNT
    other = few.copy()
    other[3, 0, 0, 0] += 1e-3
    assert made(graphs["conv"], few, PLAIN)[1] == COUNT
    assert made(graphs["conv"], other, msgspec.structs.replace(PLAIN, range_estimator="minmax"))[1] == COUNT
    model = ir.load(str(graphs["vit"]))
    weight = next(value for value in model.graph.initializers.values() if value.const_value.size > 1000)
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.001), name=weight.name)
    ir.save(model, tmp_path / "changed.onnx")
    after, runs = made(tmp_path / "changed.onnx", few, QuantizationRecipe())
    assert runs == 2 * COUNT
    assert after != before


# Killed, damaged, shared


def test_a_killed_run_goes_on_at_the_image(
    graphs: dict[str, Path], images: Array, made: Any, uncached: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from edgeclip.export.int8.quantization import QuantizationRecipe, quantize\n"
        f"images = np.load({str(tmp_path / 'images.npy')!r})\n"
        f"fp32, target = Path({str(graphs['vit'])!r}), Path({str(tmp_path / 'killed.onnx')!r})\n"
        "say = lambda text: print(text, file=sys.stderr, flush=True)\n"
        "quantize(fp32, target, images, QuantizationRecipe(), progress=say)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stderr
        lines = (line for line in child.stderr if line.startswith("measuring activations"))
        for _ in range(len(images) + 4):  # the fourth image of the second step is being run
            assert next(lines)
        child.kill()
    assert child.returncode == -9
    assert not (tmp_path / "killed.onnx").exists()
    content, runs = made(graphs["vit"], images, QuantizationRecipe())
    assert len(images) - 4 <= runs <= len(images) - 3
    assert content == uncached(graphs["vit"], images, QuantizationRecipe())


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_record_is_measured_again(graphs: dict[str, Path], images: Array, made: Any, cache: Path) -> None:
    first, _ = made(graphs["conv"], images, PLAIN)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    flip(path, len(whole) - 5)  # in the last record's content
    assert made(graphs["conv"], images, PLAIN) == (first, 1)
    path.write_bytes(whole[:-5])  # torn
    assert made(graphs["conv"], images, PLAIN) == (first, 1)
    assert path.read_bytes() == whole
    flip(path, 33)  # the first record's length: nothing after it can be found
    assert made(graphs["conv"], images, PLAIN) == (first, len(images))
    assert made(graphs["conv"], images, PLAIN) == (first, 0)


def test_a_store_serves_only_its_own_records_and_several_add_to_it(tmp_path: Path) -> None:
    path, key = tmp_path / "folder" / "a.records", "ab" * 32
    one, two = StatisticsStore(path, key), StatisticsStore(path, key)
    digest, other = image_digest(np.zeros((1, 3), np.float32)), image_digest(np.zeros((3, 1), np.float32))
    assert digest != other
    values = {b"counts": np.arange(5), b"mean": np.float32([[0.5]]), b"largest": np.array(np.float32(7))}
    one.add(digest, values)
    two.add(other, {b"mean": np.float32([1])})
    one.add(digest, {b"more": np.arange(2)})
    for store in (one, StatisticsStore(path, key)):
        found = store.get(digest)
        assert set(found) == {*values, b"more"}
        assert all(
            found[name].dtype == value.dtype and found[name].shape == value.shape for name, value in values.items()
        )
        assert all(np.array_equal(found[name], value) for name, value in values.items())
    assert set(StatisticsStore(path, key).get(other)) == {b"mean"}
    assert StatisticsStore(path, "cd" * 32).get(digest) == {}
    path.unlink()  # to make room, by another process
    assert one.get(digest) == {}
    one.add(other, values)
    assert set(one.get(other)) == set(StatisticsStore(path, key).get(other)) == set(values)


def test_the_cache_is_bounded_and_what_was_used_longest_ago_goes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = image_digest(np.zeros((1, 3), np.float32))

    def add(graph: str) -> Path:
        open_store("test", graph).add(digest, {b"values": np.zeros(256, np.float32)})  # some 1.1 kB
        return max(cache.iterdir(), key=lambda path: path.stat().st_mtime)

    monkeypatch.setattr(statistics_store, "LIMIT_BYTES", 4000)
    for age, graph in enumerate(("aa", "bb", "cc")):
        os.utime(add(graph), (age, age))
    open_store("test", "aa")  # used again
    assert len(list(cache.iterdir())) == 3
    add("dd")
    assert [open_store("test", graph).get(digest) != {} for graph in ("aa", "bb", "cc", "dd")] == [
        True,
        False,
        True,
        True,
    ]
    monkeypatch.setattr(statistics_store, "LIMIT_BYTES", 1000)
    assert open_store("test", "aa").get(digest) == {}
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_said_to_be_so(
    graphs: dict[str, Path], images: Array, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeclip.export.int8.statistics.fcntl.flock", full)
    with pytest.raises(InputError, match=r"No space left on device.*EDGECLIP_CACHE"):
        made(graphs["conv"], images, PLAIN)


# FP16 and BF16


def test_the_ranges_of_fp16_are_measured_once_an_image(
    graphs: dict[str, Path], images: Array, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, all_of_them = measure_ranges(graphs["vit"], images[:COUNT]), measure_ranges(graphs["vit"], images)
    assert all(all_of_them[name].largest >= found.largest for name, found in few.items())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a graph was loaded")

    monkeypatch.setattr("edgeclip.export.half.ranges.ort.InferenceSession", refuse)
    assert measure_ranges(graphs["vit"], images[:COUNT]) == few
    assert measure_ranges(graphs["vit"], images) == all_of_them
