"""Robustness is counted on the same images for all, and what cannot be told is said to be so."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import numpy_helper

from edgeclip import Bundle, cli
from edgeclip.errors import InputError, SourceError, VariantError
from edgeclip.evaluation.data.dataset import open_labelled
from edgeclip.evaluation.data.shift_sets import imagenet_classes, names_of, open_shift_set, shared_classes, stratified
from edgeclip.evaluation.robustness.baseline import against_baseline
from edgeclip.evaluation.robustness.measure import RobustnessOptions, measure_robustness
from edgeclip.evaluation.robustness.report import (
    RobustnessReport,
    accuracy_of,
    read_report,
    report_lines,
    save_report,
    verdict,
)
from edgeclip.evaluation.robustness.views import Views
from edgeclip.evaluation.statistics.effective_robustness import effective_robustness, fit_line, logit
from edgeclip.evaluation.statistics.paired import difference_between_sets, difference_of_differences, paired_difference
from tests.conftest import add_variant, shared


def hits(*values: int) -> np.ndarray:
    return np.array(values, np.bool_)


# --- paired differences ---


def test_its_interval_covers_the_truth_as_often_as_it_says() -> None:
    """A candidate that loses 2 points clean and 5 under shift, on 300 images with three shifts each."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        clean, shift = np.ones(300, np.bool_), np.ones((3, 300), np.bool_)
        weak = rng.random(300) < 0.05  # the images on which it loses, the same in all shifts
        found = difference_of_differences(clean, rng.random(300) >= 0.02, shift, shift & ~weak)
        covered += found.ci95[0] <= -3 <= found.ci95[1]
    assert 0.93 <= covered / 400 <= 0.99


def test_on_other_images_the_intervals_add_as_squares() -> None:
    clean = paired_difference(hits(*[1] * 100), hits(*[1] * 97, 0, 0, 0))
    shift = paired_difference(hits(*[1] * 50), hits(*[1] * 45, *[0] * 5))
    found = difference_between_sets(clean, shift)
    assert found.points == pytest.approx(-7)
    assert found.points - found.ci95[0] == pytest.approx(
        math.hypot(shift.points - shift.ci95[0], clean.ci95[1] - clean.points)
    )


def test_a_mean_over_conditions_varies_with_the_images() -> None:
    """Ten conditions that all succeed and fail together say no more than one."""
    one = np.arange(100) < 40
    low, high = accuracy_of(one).ci95
    many = accuracy_of(np.tile(one, (10, 1)))
    assert many.top1 == 0.4
    assert many.ci95 == pytest.approx((low, high), abs=0.01)
    assert 0 < accuracy_of(np.ones((3, 20), np.bool_)).ci95[0] < 1


# --- effective robustness ---


def test_models_on_a_line_have_no_effective_robustness() -> None:
    clean = [0.3, 0.5, 0.7, 0.8]
    shift = [1 / (1 + math.exp(-(0.9 * logit(value, 1000) - 0.7))) for value in clean]
    line = fit_line(clean, shift, n=1000)
    assert (line.slope, line.intercept, line.n) == pytest.approx((0.9, -0.7, 4))
    assert effective_robustness(line, 0.5, shift[1], n=1000).points == pytest.approx(0, abs=1e-9)
    above = effective_robustness(line, 0.5, shift[1] + 0.1, n=1000)
    assert above.points == pytest.approx(10)
    assert above.ci95 == pytest.approx((10, 10))


def test_three_models_off_the_line_give_a_wide_interval() -> None:
    """One degree of freedom: Student's t is 12.7."""
    line = fit_line([0.3, 0.5, 0.7], [0.2, 0.45, 0.5], n=500)
    found = effective_robustness(line, 0.5, 0.4, n=500)
    x = np.log([3 / 7, 1, 7 / 3])
    y = np.log([0.2 / 0.8, 0.45 / 0.55, 1])
    slope = float(x @ y / (x @ x))
    residual = float(np.sqrt(((y - y.mean() - slope * x) ** 2).sum()))
    half = 12.7062 * residual * math.sqrt(1 + 1 / 3)
    predicted = [1 / (1 + math.exp(-(y.mean() + step))) for step in (half, 0, -half)]
    assert (found.ci95[0], found.points, found.ci95[1]) == pytest.approx([100 * (0.4 - p) for p in predicted], abs=0.01)


@pytest.mark.parametrize(
    ("clean", "message"), [([0.5, 0.6], "3 models or more"), ([0.5, 0.5, 0.501], "of different accuracy")]
)
def test_too_few_or_too_alike_models_give_no_line(clean: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_line(clean, clean, n=100)


# --- sets under shift ---


@pytest.fixture
def folders(photographs_dir: Path, tmp_path: Path):
    def make(name: str, classes: dict[str, str]) -> Path:
        for folder, photograph in classes.items():
            (tmp_path / name / folder).mkdir(parents=True)
            shutil.copy(photographs_dir / photograph, tmp_path / name / folder)
        return tmp_path / name

    return make


def test_imagenets_folders_get_its_names() -> None:
    classes = imagenet_classes(["n01443537", "n03063599", "n03691459"])
    assert classes is not None
    assert [(item.label, item.names) for item in classes][:2] == [
        ("n01443537", ("goldfish",)),
        ("n03063599", ("coffee mug",)),
    ]
    numbered = imagenet_classes(["1", "10", "100", "504", *map(str, range(2, 9))])
    assert numbered is not None
    assert numbered[0].names == ("goldfish",)
    assert numbered[3].names == ("coffee mug",)


@pytest.mark.parametrize("folders", [["cat", "dog"], list("0123456789"), [*map(str, range(990, 1010))], []])
def test_other_folders_are_not_taken_for_imagenets(folders: list[str]) -> None:
    assert imagenet_classes(folders) is None


def test_a_wordnet_id_that_imagenet_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="n99999999"):
        imagenet_classes(["n01443537", "n99999999"])


def test_a_subset_of_the_classes_is_found_among_them() -> None:
    clean = imagenet_classes(["n01443537", "n01484850", "n03063599"])
    shift = imagenet_classes(["n03063599", "n01443537"])
    other = imagenet_classes(["n03063599", "n02123045"])
    assert clean
    assert shift
    assert other
    assert shared_classes(clean, shift).tolist() == [2, 0]  # type: ignore[union-attr]
    assert shared_classes(clean, other) is None


def test_a_file_of_names_is_for_the_sets_that_it_names(folders, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text('{"a": "cat"}')
    assert names_of(folders("one", {"a": "chelsea.jpg"}), names) == names
    assert names_of(folders("two", {"b": "chelsea.jpg"}), names) is None


def test_a_sample_is_seeded_and_gives_each_class_its_share() -> None:
    opened = open_labelled(shared("caltech101"))
    sample = stratified(opened, 303, seed=1)
    assert len(sample) == 303
    counts = np.bincount(sample.labels)
    assert (counts.min(), counts.max()) == (3, 3)  # 14 images a class
    again, other = stratified(opened, 303, seed=1), stratified(opened, 303, seed=2)
    keys = [item.key for item in sample]
    assert keys == [item.key for item in again]
    assert keys != [item.key for item in other]
    assert stratified(opened, 10_000, seed=1) is opened.items
    with pytest.raises(InputError, match="limit of 1"):
        stratified(opened, 0, seed=1)


def test_views_are_told_apart_by_their_digests(folders) -> None:
    items = open_labelled(folders("set", {"cat": "chelsea.jpg"})).items
    views = list(Views(items, [("fog", 1), ("fog", 2)], side=64))
    assert len(views) == len(Views(items, [("fog", 1), ("fog", 2)], side=64)) == 3
    assert len({view.digest() for view in views}) == 3
    assert views[1].digest() == list(Views(items, [("fog", 1)], side=64))[1].digest()
    assert views[0].digest() != next(iter(Views(items, [], side=32))).digest()
    assert min(views[0].read().shape[:2]) == 64


# --- the whole ---


def coarse(graph: Any) -> None:
    """Keeps only the upper half of the bits of the starter's largest weight, which is stored as bytes."""
    weight = max(graph.initializer, key=lambda item: len(item.raw_data))
    levels = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array((levels // 16 * 16).astype(levels.dtype), weight.name))


@pytest.fixture(scope="module")
def report(photographs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RobustnessReport:
    """The starter over five photographs in three classes of ImageNet, one file damaged; a shift set of two of them."""
    root = tmp_path_factory.mktemp("sets")
    classes = {"n02123045": ["chelsea.jpg"], "n04266014": ["rocket.jpg"], "n03063599": ["coffee.jpg", "motorcycle.png"]}
    for folder, files in classes.items():
        for part in ("clean", "shift"):
            (root / part / folder).mkdir(parents=True)
            for file in files:
                shutil.copy(photographs_dir / file, root / part / folder)
    shutil.rmtree(root / "shift" / "n04266014")
    (root / "clean" / "n02123045" / "damaged.jpg").write_bytes(b"hello")
    options = RobustnessOptions(("fp32", "coarse"), ("over-exposure", "distance"), (5, 1))
    clean, shift = open_shift_set(root / "clean"), open_shift_set(root / "shift")
    told: list[tuple[int, int]] = []
    shutil.copytree(Bundle.open("starter").path, root / "copy.edgeclip")
    bundle = add_variant(root / "copy.edgeclip", "coarse", coarse, precision="fp32")  # unlike INT8, on any CPU
    found = measure_robustness(bundle, clean, [shift], options, progress=lambda *now: told.append(now))
    assert told[-1] == (2 * (5 * 5 + 3), 2 * (5 * 5 + 3))
    again = measure_robustness(bundle, clean, [shift], options)
    assert again == found
    return found


def test_the_report_says_what_was_measured(report: RobustnessReport, tmp_path: Path) -> None:
    assert (report.n, report.unreadable, report.classes, report.severities) == (4, 1, 3, [1, 5])
    assert report.clean[0].top1 == 0.75  # the motorcycle is no coffee mug
    (shift,) = report.shifts
    assert (shift.images, shift.classes) == (3, 2)
    assert shift.clean_top1 is not None
    assert shift.clean_top1[0] == shift.top1[0].top1  # the same photographs among the same two classes
    for item in report.corruptions:
        means = [np.mean([by_variant[row].top1 for by_variant in item.by_severity]) for row in (0, 1)]
        assert [accuracy.top1 for accuracy in item.mean] == pytest.approx(means)
    assert report.corrupted[0].top1 == pytest.approx(np.mean([item.mean[0].top1 for item in report.corruptions]))
    paths = save_report(report, tmp_path / "out")
    assert read_report(paths[0]) == report
    assert [path.name for path in paths] == ["robustness.json", "robustness.txt", "robustness.png"]
    text = "\n".join(report_lines(report))
    assert "1 could not be decoded" in text
    assert "chance alone gives about 0.1" in text


def another(report: RobustnessReport, name: str, clean: float, corrupted: float) -> RobustnessReport:
    """The report as another model of these accuracies would have it."""
    top1 = [msgspec.structs.replace(item, top1=clean) for item in report.clean]
    shifted = [msgspec.structs.replace(item, top1=corrupted) for item in report.corrupted]
    return msgspec.structs.replace(report, model_id=name, clean=top1, corrupted=shifted)


def test_baselines_give_effective_robustness_or_the_reason_for_none(report: RobustnessReport) -> None:
    models = [another(report, f"m{row}", 0.2 + 0.2 * row, 0.1 + 0.2 * row) for row in range(3)]
    few = against_baseline(report, models[:2]).effective
    assert few[0].value is None
    assert "got 2" in few[0].reason
    told = {(item.shift, item.variant): item for item in against_baseline(report, [*models, report]).effective}
    value = told["corruptions", "coarse"].value
    assert value is not None
    assert value.models == 3  # its own is left out
    assert told[report.shifts[0].name, "fp32"].value is None  # all three are alike there
    with pytest.raises(InputError, match="two of the same model"):
        against_baseline(report, [models[0], models[0]])
    other = msgspec.structs.replace(models[0], images_id="x")
    with pytest.raises(InputError, match="the same images"):
        against_baseline(report, [other])
    unlike = msgspec.structs.replace(report, shifts=[msgspec.structs.replace(report.shifts[0], clean_top1=None)])
    assert "not of the same classes" in against_baseline(unlike, []).effective[-1].reason


@pytest.mark.parametrize(
    ("loses", "words"), [(12, "loses more than fp32"), (0, "no difference that these images can show")]
)
def test_a_verdict_needs_an_interval_that_leaves_zero_out(loses: int, words: str) -> None:
    clean = np.ones(100, np.bool_)
    loss = difference_of_differences(clean, clean, clean, np.arange(100) >= loses)
    assert words in verdict(loss, variant="int8", reference="fp32")


@pytest.mark.parametrize(
    "options", [{"variants": ()}, {"variants": ("fp32", "fp32")}, {"severities": ()}, {"corruptions": ("fgo",)}]
)
def test_unusable_options_are_refused(options: dict) -> None:
    with pytest.raises(InputError):
        RobustnessOptions(**options)


# --- the command ---


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["edgeclip", "robustness", *words])
    with pytest.raises(SystemExit) as ended:
        cli.app()
    assert not ended.value.code


def test_the_command_measures_and_writes(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folders("data", {"n02123045": "chelsea.jpg", "n03063599": "coffee.jpg", "n04266014": "rocket.jpg"})
    sheet, result = tmp_path / "sheet.jpg", tmp_path / "result.json"
    variants = ("--variants", "fp32")  # the default has INT8 too, which some CPUs cannot add exactly
    run(monkeypatch, "starter", "--data", str(data), *variants, "--shift", str(data), "--corruptions", "none")
    run(
        monkeypatch, "starter", *variants, "--data", str(data), "--corruptions", "fog", "--severities", "1",
        "--limit", "2", "--json", str(result), "-o", str(tmp_path / "out"), "--sheet", str(sheet),
    )  # fmt: skip
    assert read_report(result).n == 2
    assert (tmp_path / "out" / "robustness.png").is_file()
    assert sheet.is_file()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--corruptions", "fogg", "--sheet", "x.png"], InputError, "did you mean fog"),
        (["--severities", "1,six", "--sheet", "x.png"], InputError, "got 'six'"),
        (["--sheet", "x.txt"], InputError, "expected an image file"),
        (["starter"], InputError, "--data DIR"),
        (["starter", "--data", "absent"], SourceError, "absent"),
        (["starter", "--data", ".", "--variants", "fp17"], VariantError, "fp17"),
        (["starter", "--data", ".", "--baseline", "absent.json"], InputError, "earlier robustness run"),
    ],
)
def test_what_cannot_be_used_is_said(
    words: list[str], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["edgeclip", "robustness", *words])
    with pytest.raises(error, match=message):
        cli.app()
    assert not list(tmp_path.iterdir())
