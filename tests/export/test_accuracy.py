"""INT8 is kept where its loss of top-1 is bounded on images that its recipe was not chosen on, else refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("nncf")
pytest.importorskip("onnx")
pytest.importorskip("scipy")

import onnx
import torch
from onnx import numpy_helper
from scipy import optimize, stats
from torch import nn

import edgeclip
from edgeclip.bundle import Bundle
from edgeclip.calibration.images import sample_images
from edgeclip.errors import InputError, ModelError, ParityError, SourceError
from edgeclip.evaluation.quantize import QuantizeOptions, quantize_bundle
from edgeclip.evaluation.statistics.paired import paired_difference
from edgeclip.export.accuracy import (
    LabelledImages,
    QuantizationReport,
    images_needed,
    loss_bound,
    quantization_report,
    require_enough,
    top1_loss,
    worst_layout,
)
from edgeclip.export.images import to_calibrate_on
from edgeclip.export.int8 import search
from edgeclip.export.int8.quantization import default_recipe, quantize
from edgeclip.export.int8.search import GraphLoss
from edgeclip.export.photographs import photographs
from edgeclip.prompts import FloatArray, PromptTable, make_classes, unit_rows
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import list_labelled, write_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.distinct import Different, look_at, pixels_digest
from edgeclip.runtime.proof.golden import golden_of
from edgeclip.spec import ModelOrigin
from edgeclip.training.model import ContrastiveModel, TextTower
from tests.conftest import SIZE, WIDTH

COUNT, CLASSES, MOST = 320, 150, 5.0  # images, classes, points of top-1


# The bound


def likeliest_share_won(loss: float, lost: int, won: int, n: int) -> float:
    """Where the share lost is larger by ``loss``, by SciPy."""

    def unlikely(share: float) -> float:
        kept = 1 - 2 * share - loss
        return -(lost * np.log(share + loss) + won * np.log(share) + (n - lost - won) * np.log(kept))

    bounds = max(0.0, -loss) + 1e-12, (1 - loss) / 2 - 1e-12
    return float(optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x)


@pytest.mark.parametrize(("lost", "won", "n"), [(1, 0, 44), (5, 4, 300), (9, 2, 100), (3, 8, 120), (30, 25, 2000)])
def test_the_bound_is_where_the_score_test_just_rejects(lost: int, won: int, n: int) -> None:
    bound = loss_bound(lost, won, n)
    variance = n * (2 * likeliest_share_won(bound, lost, won, n) + bound - bound**2)
    assert (lost - won - n * bound) / variance**0.5 == pytest.approx(stats.norm.ppf(0.025), rel=1e-4)


@pytest.mark.parametrize("won", [0.0, 0.3, 3.0, 8.0])
def test_the_loss_lies_below_the_bound_97_times_in_100(won: float) -> None:
    """Of 2,000 images, however many labels change; Agresti and Min's interval, which is for both sides, holds less."""
    n, most = 2000, 45
    bounds = np.array([[loss_bound(lost, gained, n) for gained in range(most)] for lost in range(most)])
    for loss in np.arange(0.25, 12, 0.25):
        chances = np.outer(stats.poisson.pmf(range(most), won + loss), stats.poisson.pmf(range(most), won))
        assert chances[n * bounds >= loss].sum() > 0.969, (loss, won)


def test_the_usual_interval_would_not_do_as_a_bound() -> None:
    n, hits = 2000, np.ones(2000, bool)
    assert -paired_difference(hits, hits).ci95[0] < 100 * 2 / n < top1_loss(hits, hits).bound  # two lost are missed by
    assert stats.poisson.pmf(0, 2) > 0.13  # one set of images in seven


@pytest.mark.parametrize(("lost", "won", "bound"), [(7, 0, 1.0), (0, 0, 1.0)])
def test_a_bound_is_never_above_everything(lost: int, won: int, bound: float) -> None:
    assert loss_bound(lost, won, max(lost, 1)) <= bound


def test_a_bound_grows_with_what_is_lost_and_shrinks_with_what_is_won_and_with_images() -> None:
    lost = [loss_bound(count, 3, 500) for count in range(40)]
    won = [loss_bound(9, count, 500) for count in range(40)]
    images = [loss_bound(3, 1, n) for n in range(4, 400, 7)]
    assert lost == sorted(lost)
    assert won == sorted(won, reverse=True)
    assert images == sorted(images, reverse=True)
    assert all(bound > (count - 3) / 500 for count, bound in enumerate(lost))


def test_hits_are_counted_in_pairs() -> None:
    reference, candidate = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool), np.array([1, 0, 0, 0, 1, 0, 0, 0], bool)
    found = top1_loss(reference, candidate)
    assert (found.n, found.lost, found.won, found.estimate) == (8, 3, 1, 25.0)
    assert found.bound == 100 * loss_bound(3, 1, 8) > 25
    assert found.text("points").startswith(
        f"at most {found.bound:.2f} points (95 %; measured +25.00 on 8 images: 3 lost"
    )


@pytest.mark.parametrize(("reference", "candidate"), [(0, 0), (3, 4)])
def test_hits_of_other_images_are_refused(reference: int, candidate: int) -> None:
    with pytest.raises(InputError, match="expected the same images from both"):
        top1_loss(np.ones(reference, bool), np.ones(candidate, bool))


# How many images


@pytest.mark.parametrize("max_drop", [0.05, 0.3, 1.0, 2.5, 40.0])
def test_as_many_images_as_are_asked_for_can_bound_the_loss_and_fewer_cannot(max_drop: float) -> None:
    half = images_needed(max_drop) // 2
    assert loss_bound(0, 0, half) <= max_drop / 100 < loss_bound(0, 0, half - 1)


@pytest.mark.parametrize("count", [2, 3, 99, 1222])
def test_too_few_images_are_told_what_they_can_bound(count: int) -> None:
    with pytest.raises(InputError, match=rf"at least 2,554 labelled .* got {count:,}: give more, or allow ") as error:
        require_enough(count, 0.3)
    require_enough(count, float(str(error.value).rpartition("allow ")[2]))


@pytest.mark.parametrize("max_drop", [0.0, -1.0, float("nan")])
def test_no_number_of_images_shows_that_nothing_is_lost(max_drop: float) -> None:
    with pytest.raises(InputError, match="expected `max_drop` above 0"):
        require_enough(10**9, max_drop)


# Search and report


@dataclass(frozen=True)
class World:
    """The tiny model's own labels of real pictures, and those of its INT8 form.

    Attributes:
        pictures: (N, H, W, 3) uint8, in the order in which they go to the search half and the report half by turns.
        fp32, int8: what either calls them.
        calibration: others.
    """

    pictures: Any
    fp32: Any
    int8: Any
    rows: Any
    calibration: Path

    def labels(self, *, search: int, report: int) -> Any:
        """Such labels that INT8 loses so many images of either half, and wins none."""
        labels = self.fp32.copy()
        changed = np.flatnonzero(self.fp32 != self.int8)
        lost = {0: search, 1: report}
        for index in changed:
            if lost[index % 2]:
                lost[index % 2] -= 1
            else:  # wrong with both
                labels[index] = next(label for label in range(3) if label not in (self.fp32[index], self.int8[index]))
        assert lost == {0: 0, 1: 0}
        return labels

    def write(self, folder: Path, labels: Any) -> Path:
        for index, (picture, label) in enumerate(zip(self.pictures, labels, strict=True)):
            (folder / f"c{label:03}").mkdir(parents=True, exist_ok=True)
            write_image(folder / f"c{label:03}" / f"{index}.png", picture)
        return folder

    def table(self, classes: Any) -> PromptTable:
        """Those classes first, then all others: whatever the folders, everything can be called everything."""
        known = [int(item.label[1:]) for item in classes]
        others = [number for number in range(CLASSES) if number not in known]
        every = (*classes, *(make_classes([f"c{number:03}" for number in others]) if others else ()))
        return PromptTable("things", every, self.rows[known + others], ("{}",), "")


def windows(count: int, different: Different, seed: int) -> Any:
    """Of real photographs, (N, SIZE, SIZE, 3) uint8, none like another."""
    chooser = np.random.default_rng(seed)
    small = [image[::3, ::3] for _, image in photographs()]
    found: list[Any] = []
    while len(found) < count:
        image = small[chooser.integers(len(small))]
        top, left = (chooser.integers(0, side - SIZE) for side in image.shape[:2])
        window = np.ascontiguousarray(image[top : top + SIZE, left : left + SIZE])
        if different.add(look_at(window))[0] == "new":
            found.append(window)
    return np.stack(found)


@pytest.fixture(scope="module")
def world(_golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    bundle = Bundle.open(_golden_bundle)
    encoder, fp32 = bundle.manifest.encoder, bundle.variant_path("fp32")
    preprocess, different = Preprocessor(encoder.preprocess), Different()
    (folder / "calibration").mkdir()
    for index, picture in enumerate(windows(32, different, seed=1)):
        write_image(folder / "calibration" / f"{index}.png", picture)
    given = to_calibrate_on(sample_images(folder / "calibration", 128), encoder, golden=golden_of(bundle))
    quantize(fp32, folder / "int8.onnx", given.inputs, default_recipe(fp32))
    pictures = windows(COUNT, different, seed=2)
    inputs = np.stack([preprocess(picture) for picture in pictures])
    order = sorted(range(COUNT), key=lambda index: pixels_digest(pictures[index]))
    with (
        load_engine("onnxruntime", fp32, encoder) as reference,
        load_engine("onnxruntime", folder / "int8.onnx", encoder, precision="int8") as candidate,
    ):
        embeddings = [unit_rows(engine.infer(inputs[order])) for engine in (reference, candidate)]
    rows = embeddings[0][np.random.default_rng(3).choice(COUNT, CLASSES, replace=False)]
    called = [(found @ rows.T).argmax(axis=1) for found in embeddings]
    assert min(np.bincount(np.flatnonzero(called[0] != called[1]) % 2)) >= 4
    return World(pictures[order], *called, rows, folder / "calibration")


@pytest.fixture
def quantized(
    golden_bundle: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., QuantizationReport]:
    """Quantizes the tiny bundle by labels that are given; one recipe is tried."""
    monkeypatch.setattr(
        "edgeclip.evaluation.quantize.table_for_bundle", lambda bundle, classes, *_, **__: world.table(classes)
    )

    def run(labels: Any, **options: Any) -> QuantizationReport:
        data = world.write(tmp_path / "data", labels)
        given: dict[str, Any] = {
            "names": ("int8",),
            "calibration": world.calibration,
            "max_drop": MOST,
            "budget_s": 0.0,
        } | options
        return quantize_bundle(Bundle.open(golden_bundle), QuantizeOptions(data=data, **given)).report

    return run


def test_a_loss_that_is_bounded_on_both_halves_is_kept_and_the_bound_is_stated_first(
    world: World, quantized: Callable[..., QuantizationReport], golden_bundle: Path
) -> None:
    report = quantized(world.labels(search=0, report=1))
    assert report.search
    half = COUNT // 2
    assert report.search.best.loss == GraphLoss(bound=100 * loss_bound(0, 0, half), estimate=0, n=half)
    assert report.losses == {"int8": GraphLoss(bound=100 * loss_bound(1, 0, half), estimate=100 / half, n=half, lost=1)}
    bundle = Bundle.open(golden_bundle)
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32", "fp16", "int8"]
    assert quantization_report(bundle) == report
    bound = report.losses["int8"].bound
    assert f"int8: loss at most {bound:.2f} points of top-1 (95 %; measured +0.62 on 160 images: 1 lost, 0 won)" in (
        "\n".join(report.lines())
    )


@pytest.mark.parametrize(
    ("lost", "where"),
    [({"search": 4, "report": 0}, "at best after 1 trials"), ({"search": 0, "report": 4}, "not chosen on")],
)
def test_a_loss_that_is_within_the_limit_but_whose_bound_is_not_is_refused_on_either_half(
    world: World, quantized: Callable[..., QuantizationReport], golden_bundle: Path, lost: dict[str, int], where: str
) -> None:
    before = (golden_bundle / "manifest.json").read_bytes()
    assert 100 * 4 / (COUNT // 2) < MOST < 100 * loss_bound(4, 0, COUNT // 2)
    with pytest.raises(
        ParityError, match=r"within 5 points of top-1 of FP32.* at most 6\.\d\d .* measured \+2\.50"
    ) as error:
        quantized(world.labels(**lost))
    assert where in str(error.value)
    assert "stay with fp16 or fp32" in str(error.value)
    assert (golden_bundle / "manifest.json").read_bytes() == before
    assert not (golden_bundle / "image_encoder" / "int8.onnx").exists()


def test_too_few_images_are_refused_before_any_is_read(world: World, tmp_path: Path, golden_bundle: Path) -> None:
    data = world.write(tmp_path / "data", world.fp32)
    said: list[str] = []
    options = QuantizeOptions(data=data, calibration=world.calibration)  # 0.3 points where nobody says otherwise
    with pytest.raises(InputError, match=r"expected at least 2,554 labelled images to bound a loss at 0\.3 points"):
        quantize_bundle(Bundle.open(golden_bundle), options, progress=said.append)
    assert not said


def test_images_of_one_class_only_show_no_loss(world: World, quantized: Callable[..., QuantizationReport]) -> None:
    with pytest.raises(InputError, match=r"labels that the model knows, got \d+ of 320 images in 1 classes"):
        quantized(np.full(COUNT, 7))


def test_labels_that_are_not_of_these_images_show_no_loss(
    world: World, quantized: Callable[..., QuantizationReport]
) -> None:
    shuffled = np.random.default_rng(0).permutation(world.fp32)
    with pytest.raises(InputError, match=r"labels that the model knows, got .* fp32 labels right, where chance gives"):
        quantized(shuffled)


def test_folders_that_the_names_do_not_name_are_refused(
    world: World, quantized: Callable[..., QuantizationReport], tmp_path: Path
) -> None:
    (tmp_path / "names.json").write_text('{"c000": "nought"}')
    with pytest.raises(InputError, match="names no class for the folders"):
        quantized(world.fp32, class_names=tmp_path / "names.json")


def test_a_recipe_that_is_replayed_has_its_loss_told_on_the_report_half_and_is_refused_only_beyond_a_limit(
    world: World, quantized: Callable[..., QuantizationReport], golden_bundle: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_bytes(
        msgspec.json.encode(default_recipe(tmp_path / "golden" / "tiny.edgeclip/image_encoder/fp32.onnx"))
    )
    labels = world.labels(search=0, report=4)
    loss = quantized(labels, recipe=recipe, max_drop=None).losses["int8"]
    assert (loss.n, loss.lost, loss.won) == (COUNT // 2, 4, 0)
    with pytest.raises(ParityError, match="on images that its recipe was not chosen on"):
        quantized(labels, recipe=recipe)


def test_both_layouts_have_to_keep_the_limit(world: World, quantized: Callable[..., QuantizationReport]) -> None:
    report = quantized(world.labels(search=0, report=0), names=("int8", "int8-cpu"), max_drop=30.0)
    assert set(report.losses) == {"int8", "int8-cpu"}
    assert all(loss.n == COUNT // 2 for loss in report.losses.values())


@pytest.mark.parametrize(("names", "worst"), [(("int8",), 1), (("int8-cpu",), 2), (("int8", "int8-cpu"), 2)])
def test_a_recipe_is_as_bad_as_the_worst_layout_asked_for(world: World, names: tuple[str, ...], worst: int) -> None:
    def loss(path: Path) -> GraphLoss:
        return GraphLoss(bound=2 if path.name == "int8-cpu.onnx" else 1, estimate=0)

    assert worst_layout(loss, names)(world.calibration.parent / "int8.onnx").bound == worst


def test_without_labels_the_loss_is_that_of_the_cosine(world: World, golden_bundle: Path) -> None:
    options = QuantizeOptions(names=("int8",), calibration=world.calibration, budget_s=0)
    report = quantize_bundle(Bundle.open(golden_bundle), options).report
    assert (report.unit, report.max_drop, report.losses) == ("1 - cosine", 0.01, {})
    assert report.search
    assert 0 < report.search.best.loss.bound == report.search.best.loss.estimate <= 0.01


@pytest.mark.parametrize("max_drop", [-1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(golden_bundle: Path, max_drop: float) -> None:
    with pytest.raises(InputError, match="`max_drop` of at least 0"):
        quantize_bundle(Bundle.open(golden_bundle), QuantizeOptions(max_drop=max_drop))


def labelled(folder: Path, bundle: Path, **classes: Any) -> LabelledImages:
    for name, images in classes.items():
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(images):
            write_image(folder / name / f"{index}.png", image)
    opened = Bundle.open(bundle)
    return LabelledImages(list_labelled(folder)[0], opened.table(), opened.manifest.encoder)


def test_what_is_there_twice_or_unclear_or_calibrated_on_is_left_out_and_told(
    world: World, tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c, d, e = world.pictures[:5]
    nearly = np.where(np.arange(SIZE)[:, None, None] < 1, b // 8 * 8, b).astype(np.uint8)
    black = np.zeros_like(a)
    images = labelled(tmp_path / "data", tiny_bundle, cat=[a, a, b, c, black], cup=[nearly, d], dog=[c, e])
    preprocess = Preprocessor(Bundle.open(tiny_bundle).manifest.encoder.preprocess)
    different = images.different(without=np.stack([preprocess(d)]))
    assert len(different) == 2  # a and e
    assert "of 9 labelled images these are left out" in caplog.text
    for told in ("1 of one colour", "1 among the calibration", "4 the same, or nearly, in folders of", "1 the same as"):
        assert told in caplog.text
    with pytest.raises(SourceError, match="expected labelled images that can be used, got none of 9"):
        images.different(without=np.stack([preprocess(image) for image in (a, b, c, d, e)]))


def test_halves_follow_from_content_and_share_nothing(world: World, tiny_bundle: Path, tmp_path: Path) -> None:
    pictures = list(world.pictures[:21])
    one = labelled(tmp_path / "one", tiny_bundle, cat=pictures[:9], cup=pictures[9:])
    other = labelled(tmp_path / "other", tiny_bundle, cat=pictures[8::-1], cup=pictures[:8:-1])
    without = np.empty((0, 3, SIZE, SIZE), np.float32)
    both = [images.different(without=without).halves() for images in (one, other)]
    for first, second in zip(*both, strict=True):
        assert len(first) in (10, 11)
        np.testing.assert_array_equal(first._images, second._images)
    digests = [{pixels_digest(image) for image in half._images} for half in both[0]]
    assert not digests[0] & digests[1]
    assert len(digests[0] | digests[1]) == 21


# The export


class Names(TextTower):
    """A text tower that knows the classes of ``world`` and no other word."""

    def __init__(self, rows: FloatArray) -> None:
        self.table = nn.Embedding.from_pretrained(torch.from_numpy(rows))

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        if not all(text[1:].isdecimal() for text in texts):
            raise ModelError("expected the names of classes, got others: there is no tokenizer")
        rows: FloatArray = self.table.weight.numpy()[[int(text[1:]) for text in texts]]
        return rows

    def modules(self) -> Sequence[nn.Module]:
        return (self.table,)


class Tiny(ContrastiveModel):
    """The model of the tiny bundle, as a module of torch."""

    def __init__(self, bundle: Bundle, rows: FloatArray) -> None:
        self.name = "tiny"
        self.origin = ModelOrigin(loader="edgeclip", name="tiny")
        self.encoder, self.text = bundle.manifest.encoder, Names(rows)
        weights = {
            item.name: numpy_helper.to_array(item)
            for item in onnx.load(str(bundle.variant_path("fp32"))).graph.initializer
        }
        convolution, projection = nn.Conv2d(3, 8, 4, 4, bias=False), nn.Linear(8, WIDTH, bias=False)
        convolution.weight.data = torch.from_numpy(weights["kernel"].copy())
        projection.weight.data = torch.from_numpy(weights["projection"].T.copy())
        self.image = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), projection).eval()

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.image(images)
        return found

    def exportable(self) -> nn.Module:
        return self.image

    def image_modules(self) -> Sequence[nn.Module]:
        return (self.image,)


@pytest.fixture
def export(
    world: World, _golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Bundle]:
    """Exports the tiny model with images that are labelled as FP32 labels them, unless told otherwise."""
    bundle = Bundle.open(_golden_bundle)
    model = Tiny(bundle, world.rows)

    def export_onnx(_module: object, _encoder: object, path: Path, **_: object) -> tuple[Path, ...]:
        shutil.copy(bundle.variant_path("fp32"), path)  # the same graph, without waiting for torch
        return (path,)

    monkeypatch.setattr("edgeclip.export.bundle.export_onnx", export_onnx)
    monkeypatch.setattr(search, "ESTIMATORS", ("minmax",))

    def run(*, labels: Any = None, **options: Any) -> Bundle:
        images = world.write(tmp_path / "images", world.fp32 if labels is None else labels)
        names = {f"c{number:03}": f"c{number:03}" for number in range(CLASSES)}
        given: dict[str, Any] = {"images": images, "templates": ["{}"], "class_names": names} | options
        return edgeclip.export(model, tmp_path / "out.edgeclip", **given)

    return run


def test_an_export_with_labels_states_the_bound(export: Callable[..., Bundle]) -> None:
    bundle = export(variants="fp16, int8-cpu", max_drop=30.0)
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32", "fp16", "int8-cpu"]
    assert list(bundle.verify())
    report = quantization_report(bundle)
    assert report
    loss = report.losses["int8-cpu"]
    assert loss.n == COUNT // 4  # half is left to evaluate on, and half of that to report on
    assert 0 < loss.bound == 100 * loss_bound(loss.lost, loss.won, loss.n) <= 30
    assert report.fp32_top1 == 100


def test_int8_that_was_asked_for_by_name_and_loses_too_much_is_an_error_and_nothing_is_left(
    export: Callable[..., Bundle], tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match=r"expected INT8 within 4\.9 points of top-1 of FP32, got at most"):
        export(variants="int8", max_drop=4.9)
    assert not list(tmp_path.glob("*out*"))


def test_int8_that_only_the_target_brings_is_left_out_if_it_loses_too_much(
    export: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = export(target="raspberry-pi-5", max_drop=4.9)
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32"]
    report = quantization_report(bundle)
    assert report
    assert "stay with fp16 or fp32" in report.left_out
    assert report.lines() == [f"int8 is left out: {report.left_out}"]
    assert "INT8 is left out" in caplog.text
    assert not list((bundle.path / "image_encoder").glob("*int8*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": "int8", "max_drop": 0.3}, "expected at least 2,554 labelled images"),
        ({"variants": "int8", "max_drop": 0.0}, "expected `max_drop` above 0"),
        ({"variants": "fp16", "max_drop": 1.0}, "expected int8 or int8-cpu in `variants`"),
        ({"variants": "int8", "max_drop": 9.0, "images": None}, "expected `images` with one folder a class"),
        ({"variants": "int8", "max_drop": 9.0, "class_names": {"c000": "x"}}, "expected `class_names` of every folder"),
    ],
)
def test_what_cannot_be_bounded_is_refused_before_anything_is_exported(
    export: Callable[..., Bundle], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match=message):
        export(progress=said.append, **options)
    assert not said
    assert not list(tmp_path.glob("*out*"))


def test_where_nobody_gave_a_limit_labels_that_cannot_show_a_loss_are_told_and_the_gate_decides(
    export: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = export(variants="int8")
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32", "int8"]
    assert quantization_report(bundle) is None
    assert "what it costs in top-1 is not bounded: expected at least 2,554 labelled images" in caplog.text
