"""INT8 is kept where its loss of top-1 is bounded on images that its recipe was not chosen on, else refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("nncf")
pytest.importorskip("onnx")
pytest.importorskip("scipy")

from scipy import optimize, stats

from edgeclip.bundle import Bundle
from edgeclip.errors import InputError, ParityError
from edgeclip.evaluation.quantize import QuantizeOptions, quantize_bundle
from edgeclip.evaluation.statistics.paired import paired_difference
from edgeclip.export.accuracy import (
    QuantizationReport,
    images_needed,
    loss_bound,
    quantization_report,
    require_enough,
    top1_loss,
)
from edgeclip.export.int8.quantization import default_recipe, quantize
from edgeclip.export.int8.search import Loss
from edgeclip.export.photographs import photographs
from edgeclip.prompts import PromptTable, unit_rows
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import write_image
from edgeclip.runtime.preprocess.preprocess import Preprocessor
from edgeclip.runtime.proof.distinct import Different, look_at, pixels_digest
from tests.conftest import SIZE

COUNT, CLASSES, MOST = 320, 60, 5.0  # images, classes, points of top-1


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
            (folder / f"c{label:02}").mkdir(parents=True, exist_ok=True)
            write_image(folder / f"c{label:02}" / f"{index}.png", picture)
        return folder

    def table(self, classes: Any) -> PromptTable:
        rows = self.rows[[int(item.label[1:]) for item in classes]]
        return PromptTable("things", tuple(classes), rows, ("{}",), "")


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
    for index, picture in enumerate(others := windows(32, different, seed=1)):
        write_image(folder / "calibration" / f"{index}.png", picture)
    calibrating = np.stack([preprocess(picture) for picture in others])
    quantize(fp32, folder / "int8.onnx", calibrating, default_recipe(fp32))
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
    assert min(np.bincount(np.flatnonzero(called[0] != called[1]) % 2)) >= 6
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
        given = {"names": ("int8",), "calibration": world.calibration, "max_drop": MOST, "budget_s": 0.0} | options
        return quantize_bundle(Bundle.open(golden_bundle), QuantizeOptions(data=data, **given)).report

    return run


def test_a_loss_that_is_bounded_on_both_halves_is_kept_and_the_bound_is_stated_first(
    world: World, quantized: Callable[..., QuantizationReport], golden_bundle: Path
) -> None:
    report = quantized(world.labels(search=0, report=1))
    assert report.search
    half = COUNT // 2
    assert report.search.best.loss == Loss(bound=100 * loss_bound(0, 0, half), estimate=0, n=half)
    assert report.losses == {"int8": Loss(bound=100 * loss_bound(1, 0, half), estimate=100 / half, n=half, lost=1)}
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


def test_too_few_images_are_refused_before_any_is_read(
    world: World, tmp_path: Path, golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = world.write(tmp_path / "data", world.fp32)
    said: list[str] = []
    options = QuantizeOptions(data=data, calibration=world.calibration)  # 0.3 points where nobody says otherwise
    with pytest.raises(InputError, match=r"expected at least 2,554 labelled images to bound a loss at 0\.3 points"):
        quantize_bundle(Bundle.open(golden_bundle), options, progress=said.append)
    assert not said
