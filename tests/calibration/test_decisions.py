"""Decisions: thresholds keep their promises, probabilities mean something, and nothing stale is applied in silence."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgeclip import Bundle, PromptTable, make_classes
from edgeclip.calibration.decisions.background import FootageOptions, describe_site, fit_footage, vocabulary
from edgeclip.calibration.decisions.confidence import NONE, Labelled, _Regression, fit_confidence, fit_temperature
from edgeclip.calibration.decisions.fit import (
    FitOptions,
    Fitted,
    calibration_error,
    fit_decisions,
    reliability,
    separation,
)
from edgeclip.calibration.decisions.precision_bound import (
    fewest_images,
    likely_threshold,
    lower_bound,
    promised_threshold,
)
from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.calibration.hashed_images import files
from edgeclip.decisions import DecisionFacts, Decisions, look_at
from edgeclip.errors import InputError, SourceError, TableError
from edgeclip.evaluation.decisions.data import DataOptions, open_decision_data, open_reviewed, recorded_data
from edgeclip.prompts import unit_rows
from edgeclip.runtime.images import write_image
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.tables import TableSet
from edgeclip.spec import EncoderSpec, PreprocessSpec
from tests.conftest import SIZE, WIDTH, add_variant, edit_weight, shared

CLASSES = ("crate", "barrel", "pallet")
PREPROCESS = PreprocessSpec(height=SIZE, width=SIZE, resize_to=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SPEC = EncoderSpec(preprocess=PREPROCESS, embedding_dim=WIDTH, logit_scale=20.0)
SIGMOID = EncoderSpec(preprocess=PREPROCESS, embedding_dim=WIDTH, logit_scale=20.0, logit_bias=-8.0, score="sigmoid")


class Result(NamedTuple):
    """How a command ended, and all that it printed."""

    exit_code: int
    output: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """The command line, in this process."""
    from edgeclip.cli import main

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["edgeclip", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Result(code or 0, "".join(capsys.readouterr()))

    yield run
    signal.signal(signal.SIGTERM, before)


class World(NamedTuple):
    """A table that is right about most of what it is asked, and images as one likes."""

    table: PromptTable
    centres: np.ndarray

    def images(self, count: int, seed: int, *, unknown: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        kind = rng.integers(0, len(self.table.classes), count)
        truth = np.where(rng.random(count) < unknown, NONE, kind)
        centre = self.centres[np.where(truth == NONE, len(self.table.classes) + kind % 3, kind)]
        return unit_rows((centre + 0.35 * rng.standard_normal(centre.shape)).astype(np.float32)), truth


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(1)
    classes = 6
    centres = unit_rows(rng.standard_normal((classes + 3, WIDTH)).astype(np.float32))
    rows = unit_rows((centres[:classes] + 0.15 * rng.standard_normal((classes, WIDTH))).astype(np.float32))
    table = PromptTable("t", make_classes([f"c{row}" for row in range(classes)]), rows, ("{}",), "m")
    return World(table, centres)


def fit(world: World, count: int = 600, seed: int = 0, encoder: EncoderSpec = SPEC, **options: Any) -> Fitted:
    embeddings, truth = world.images(count, seed)
    return fit_decisions(world.table, encoder, embeddings, truth, FitOptions(**options), variant="fp32", graph="g")


# Thresholds and what they promise.


def test_the_lower_bound_is_clopper_and_pearsons() -> None:
    from scipy import stats

    for right, n in ((0, 5), (5, 5), (57, 60), (300, 310)):
        exact = stats.binomtest(right, n, alternative="greater").proportion_ci(0.9, method="exact").low
        assert lower_bound(right, n, 0.9) == pytest.approx(exact, abs=1e-12)
    assert fewest_images(0.95, 0.95) == 59
    assert lower_bound(59, 59, 0.95) >= 0.95 > lower_bound(58, 58, 0.95)


@pytest.mark.parametrize("confidence", [0.9, 0.6])
def test_a_promise_is_kept_as_often_as_it_says(confidence: float) -> None:
    """The true precision above a threshold is known here: an image is right with just its probability."""
    rng = np.random.default_rng(0)
    population = rng.beta(2.0, 0.6, 200_000)
    kept = promised = 0
    for _ in range(300):
        probability = rng.beta(2.0, 0.6, 400)
        found = promised_threshold(probability, rng.random(400) < probability, target=0.95, confidence=confidence)
        if found:
            promised += 1
            kept += population[population >= found.value].mean() >= 0.95
    assert promised > 150
    assert kept / promised >= confidence - 0.05  # of 300 draws, 2.3 standard errors or more


@pytest.mark.parametrize(
    ("wrong", "accepted"),
    [
        ((), 199),
        ((50,), 199),
        ((37,), 199),
        ((21,), None),  # 22 images may have no error: what comes later is not asked about
        ((24, 25), 22),
        ((37, 38, 39), 38),
        ((53, 54, 55, 56), 52),
    ],
)
def test_thresholds_are_asked_about_in_turn_until_one_fails(wrong: tuple[int, ...], accepted: int | None) -> None:
    """At 0.9 with 0.9, by SciPy's beta.ppf, 22, 38, 52, 65, …, 199 images pass with 0, 1, 2, 3, …, 15 errors."""
    right = ~np.isin(np.arange(200), wrong)
    found = promised_threshold(np.linspace(0.99, 0.5, 200), right, target=0.9, confidence=0.9)
    assert (found.accepted if found else None) == accepted


def test_few_images_or_many_errors_promise_nothing() -> None:
    probability = np.linspace(0.5, 0.99, 44)
    everyone = np.ones(44, bool)
    assert promised_threshold(probability, everyone, target=0.95, confidence=0.9) is None
    assert promised_threshold(np.append(probability, 0.4), np.ones(45, bool), target=0.95, confidence=0.9)
    assert promised_threshold(np.linspace(0, 1, 500), np.arange(500) % 4 > 0, target=0.95, confidence=0.9) is None
    assert likely_threshold(probability, everyone, target=0.999) is None
    likely = likely_threshold(probability, everyone, target=0.9)
    assert likely
    assert probability[probability >= likely.value].mean() == pytest.approx(0.9, abs=0.01)


def test_achieved_precision_recall_and_error_on_other_images(world: World) -> None:
    fitted = fit(world)
    scorer = Scorer(world.table, SPEC, fitted.decisions)
    embeddings, truth = world.images(6000, 1)
    scores = scorer.scores(embeddings)
    best, probability = scores.argmax(axis=1), scores.max(axis=1)
    reported = probability >= np.array([scorer.threshold_of(row, 1.0) for row in best])
    right = best == truth
    plain = Scorer(world.table, SPEC).scores(embeddings).max(axis=1)
    assert 0.93 <= right[reported].mean() <= 0.995
    assert (reported & right).sum() / (truth != NONE).sum() > 0.3
    before, after = (calibration_error(each.astype(float), right) for each in (plain, probability))
    assert after <= before / 2
    assert fitted.report.figures["precision"] == pytest.approx(right[reported].mean(), abs=0.04)
    assert fitted.report.figures["auroc_after"] > fitted.report.figures["auroc_cosine"]


def test_a_class_with_many_images_is_promised_by_itself_and_others_together(world: World) -> None:
    embeddings, truth = world.images(3000, 0, unknown=0.1)
    kept = (truth == 0) | (np.arange(len(truth)) % 12 == 0)
    fitted = fit_decisions(world.table, SPEC, embeddings[kept], truth[kept], FitOptions(), variant="fp32", graph="g")
    promises = {label: each.promise for label, each in fitted.report.classes.items()}
    assert promises["c0"] == "own"
    assert "together" in promises.values()


# Probabilities.


def test_calibration_error_and_separation_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(2000)
    right = rng.random(2000) < probability**2
    bins = np.clip((probability * 15).astype(int), 0, 14)
    by_hand = sum((bins == b).mean() * abs(right[bins == b].mean() - probability[bins == b].mean()) for b in range(15))
    assert calibration_error(probability, right) == pytest.approx(by_hand, abs=1e-9)
    assert sum(each.n for each in reliability(probability, right)) == 2000
    coarse = probability.round(1)  # ties
    ahead = coarse[right][:, None] - coarse[~right]
    assert separation(coarse, right) == pytest.approx((ahead > 0).mean() + (ahead == 0).mean() / 2)
    assert separation(probability, np.ones(2000, bool)) is None


def test_a_regressions_left_out_values_are_those_of_fits_without_each_image(world: World) -> None:
    embeddings, truth = world.images(40, 3)
    everyone = Labelled(embeddings, Scorer(world.table, SPEC).logits(embeddings), truth)
    found = _Regression(everyone)
    target = np.eye(len(found.verified) + 1)[
        np.where(truth == NONE, len(found.verified), np.searchsorted(found.verified, truth))
    ]
    mean = embeddings.mean(axis=0, dtype=np.float64)
    inputs = np.c_[embeddings - mean, np.full(40, 0.3)]
    strength = 0.1 * np.square(embeddings - mean).sum() / WIDTH
    for left in (0, 17, 39):
        others = np.arange(40) != left
        gram = inputs[others].T @ inputs[others] + strength * np.eye(WIDTH + 1)
        solution = np.linalg.solve(gram, inputs[others].T @ target[others])
        np.testing.assert_allclose(found.left_out[left], inputs[left] @ solution, atol=1e-6)


def test_a_temperature_undoes_a_wrong_scale() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4000, 5)).astype(np.float32) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(5, p=row / row.sum()) for row in chances])
    images = Labelled(np.zeros((4000, WIDTH), np.float32), 3 * logits, truth)
    assert fit_temperature(images, sigmoid_scores=False) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("encoder", [SPEC, SIGMOID], ids=["softmax", "sigmoid"])
def test_labels_and_their_order_stay_and_the_best_score_is_the_probability(world: World, encoder: EncoderSpec) -> None:
    fitted = fit(world, encoder=encoder)
    embeddings, _ = world.images(500, 5)
    plain, decided = Scorer(world.table, encoder), Scorer(world.table, encoder, fitted.decisions)
    before, after = plain.scores(embeddings), decided.scores(embeddings)
    confidence = fitted.decisions.confidence
    assert confidence
    sure = confidence.of(look_at(plain.logits(embeddings)), embeddings)
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    np.testing.assert_allclose(after.max(axis=1), sure.right, atol=1e-6)
    in_order = np.take_along_axis(after, np.argsort(plain.logits(embeddings), axis=1), axis=1)
    assert (np.diff(in_order, axis=1) >= -1e-6).all()
    assert (after >= 0).all()
    if encoder.score == "softmax":
        assert (after.sum(axis=1) <= sure.known + 1e-5).all()
    alone = np.concatenate([decided.scores(row[None]) for row in embeddings[:20]])
    np.testing.assert_allclose(alone, after[:20], atol=1e-5)


def test_without_unknown_images_every_frame_shows_a_class(world: World) -> None:
    embeddings, truth = world.images(300, 0, unknown=0.0)
    images = Labelled(embeddings, Scorer(world.table, SPEC).logits(embeddings), truth)
    sure = fit_confidence(images, np.ones(300, bool)).of(look_at(images.logits), embeddings)
    assert (sure.known > 0.999).all()
    report = fit_decisions(world.table, SPEC, embeddings, truth, FitOptions(), variant="v", graph="g").report
    assert any("not known" in note for note in report.notes)


def test_a_table_that_is_always_right_is_fitted_too(world: World) -> None:
    embeddings, truth = world.images(200, 0, unknown=0.0)
    logits = Scorer(world.table, SPEC).logits(embeddings)
    right = logits.argmax(axis=1) == truth
    images = Labelled(embeddings, logits, truth).take(right)
    sure = fit_confidence(images, np.ones(right.sum(), bool)).of(look_at(images.logits), images.embeddings)
    assert (sure.right > 0.8).all()


def test_five_images_a_class_fit_and_say_what_they_cannot_promise(world: World) -> None:
    embeddings, truth = world.images(400, 0)
    few = np.concatenate([np.flatnonzero(truth == row)[:5] for row in range(-1, 6)])
    report = fit_decisions(world.table, SPEC, embeddings[few], truth[few], FitOptions(), variant="v", graph="g").report
    assert {each.promise for each in report.classes.values()} == {"none"}
    assert any("nothing is promised" in note and "45" in note for note in report.notes)


def test_a_class_without_images_is_promised_nothing(world: World) -> None:
    embeddings, truth = world.images(1200, 0)
    some = truth != 2
    report = fit_decisions(
        world.table, SPEC, embeddings[some], truth[some], FitOptions(), variant="v", graph="g"
    ).report
    assert report.classes["c2"].promise == "none"
    assert any("1 class without a labelled image" in note and "c2" in note for note in report.notes)


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (lambda truth: truth == NONE, "of none of them"),
        (lambda truth: np.arange(len(truth)) < 8, "at least 10 labelled images"),
    ],
    ids=["all unknown", "too few"],
)
def test_images_that_show_nothing_are_refused(
    world: World, which: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    embeddings, truth = world.images(200, 0)
    some = which(truth)
    with pytest.raises(InputError, match=said):
        fit_decisions(world.table, SPEC, embeddings[some], truth[some], FitOptions(), variant="v", graph="g")


def test_a_table_that_is_never_right_is_refused(world: World) -> None:
    embeddings, _ = world.images(200, 0)
    wrong = (Scorer(world.table, SPEC).scores(embeddings).argmax(axis=1) + 1) % 6
    with pytest.raises(InputError, match="got none"):
        fit_decisions(world.table, SPEC, embeddings, wrong, FitOptions(), variant="v", graph="g")


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5])
def test_a_target_or_confidence_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="precision target"):
        FitOptions(target=value)
    with pytest.raises(InputError, match="confidence"):
        FitOptions(confidence=value)


# In the table.


def test_a_table_keeps_its_decisions_to_the_bit(world: World, tmp_path: Path) -> None:
    fitted = fit(world).decisions
    table = dataclasses.replace(world.table, decisions=(fitted,))
    table.save(tmp_path / "t.safetensors")
    read = PromptTable.load(tmp_path / "t.safetensors")
    assert read.content_hash == table.content_hash != world.table.content_hash
    assert read.rows_hash == world.table.content_hash
    assert read.decisions[0].sha256 == fitted.sha256
    embeddings, _ = world.images(50, 9)
    scores = [Scorer(each, SPEC, each.decisions[0]).scores(embeddings) for each in (table, read)]
    np.testing.assert_array_equal(*scores)


def test_decisions_that_do_not_fit_their_table_are_refused(world: World, tmp_path: Path) -> None:
    fitted = fit(world).decisions
    assert fitted.confidence
    cut = dataclasses.replace(fitted.confidence, class_bias=fitted.confidence.class_bias[:-1])
    dataclasses.replace(world.table, decisions=(Decisions(fitted.facts, cut),)).save(tmp_path / "t.safetensors")
    with pytest.raises(TableError, match="expected decisions of shapes"):
        PromptTable.load(tmp_path / "t.safetensors")
    with pytest.raises(TableError, match="temperature"):
        Decisions(DecisionFacts(variant="v", graph="g", rows="r", temperature=0.0, classes={}))


# On a bundle, from files.


def write_images(folder: Path, count: int = 14) -> Path:
    """Pictures of three classes and of none: each class has a colour and stripes of its own, with noise on them."""
    rng = np.random.default_rng(0)
    for number, label in enumerate([*CLASSES, "unknown"]):
        tint = np.random.default_rng(number + 10).integers(40, 215, 3)
        for index in range(count):
            stripes = 60 * np.sin(np.arange(48) * (number + 1) / 4)[:, None, None]
            image = tint + stripes + rng.normal(0, 30, (48, 48, 3))
            (folder / label).mkdir(exist_ok=True)
            write_image(folder / label / f"{index}.png", np.clip(image, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def yard(tiny_bundle: Path, pictures: Path) -> Path:
    """The tiny bundle with a second variant, and a table of three classes whose rows look like their images."""
    add_variant(tiny_bundle, "fp16", edit_weight("projection", lambda w: w.astype(np.float16).astype(np.float32)))
    bundle = Bundle.open(tiny_bundle)
    means = [
        image_embeddings(bundle, "fp32", files(sorted((pictures / label).glob("*.png")))).rows.mean(axis=0)
        for label in CLASSES
    ]
    rows = unit_rows(np.stack(means) + 0.02 * np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32))
    bundle.add_table(PromptTable("yard", make_classes(list(CLASSES)), rows, ("{}",), bundle.manifest.model.id))
    return tiny_bundle


def calibrate(cli: Cli, bundle: Path, *more: object) -> Result:
    return cli("calibrate", "decisions", bundle, "--table", "yard", *more)


def test_decisions_of_every_variant_go_into_the_table(yard: Path, pictures: Path, cli: Cli, tmp_path: Path) -> None:
    page, told = tmp_path / "page.html", tmp_path / "told.json"
    both = ("--variant", "fp32", "--variant", "fp16")
    result = calibrate(cli, yard, "--data", pictures, *both, "--report", page, "--json", told)
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(yard)
    table = bundle.table("yard")
    list(bundle.verify())
    assert [each.facts.variant for each in table.decisions] == ["fp32", "fp16"]
    for variant in ("fp32", "fp16"):
        tables = TableSet(bundle, [table], variant=variant)
        assert tables.current()[0].calibrated
        assert f"calibrated for {variant}" in tables.said["yard"]
    report = json.loads(told.read_text())["reports"][0]
    assert f"{report['figures']['ece_before']:.3f} as scored" in result.output.replace("\n", " ")
    assert f"{report['figures']['precision']:.3f}" in page.read_text()


def test_labels_come_from_a_csv_or_reviewed_lines_too(yard: Path, pictures: Path, cli: Cli, tmp_path: Path) -> None:
    rows = [(path, path.parent.name) for path in sorted(pictures.rglob("*.png"))]
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    lines = tmp_path / "lines.jsonl"
    said = [{"file": str(path), "label": label, "reviewed": True} for path, label in rows if label != "unknown"]
    said += [{"file": str(path), "label": "crate", "reviewed": False} for path, label in rows if label == "unknown"]
    said += [{"file": "never seen.png", "label": "crate"}]
    lines.write_text("".join(json.dumps(line) + "\n" for line in said))
    found = {}
    for data in (pictures, table, lines):
        result = calibrate(cli, yard, "--data", data, "--variant", "fp32")
        assert result.exit_code == 0, result.output
        facts = Bundle.open(yard).table("yard").decisions[0].facts
        found[data.suffix] = {name: facts.figures[name] for name in ("images", "known", "top1", "ece_before")}
    assert found[""] == found[".csv"] == pytest.approx(found[".jsonl"])


def test_reviewed_lines_name_frames_of_a_video(video: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    wanted = {3: "crate", 31: "unknown", 12: "barrel"}
    lines.write_text(
        "".join(json.dumps({"frame": at, "label": "x", "reviewed": label}) + "\n" for at, label in wanted.items())
    )
    found = open_reviewed(lines, str(video))
    assert found.labels == ("crate", "barrel", "unknown")
    from edgeclip.runtime.sources.open import open_source

    with open_source(str(video)) as source:
        frames = {frame.index: frame.rgb() for frame in source}
    for at, picture in zip((3, 12, 31), found, strict=True):
        np.testing.assert_array_equal(picture.read(), frames[at])
    assert len({picture.digest() for picture in found}) == 3
    with pytest.raises(InputError, match="which video"):
        open_reviewed(lines)
    lines.write_text('{"frame": 999, "reviewed": "crate"}\n')
    with pytest.raises(SourceError, match="a frame 999"):
        next(iter(open_reviewed(lines, str(video)))).read()


def test_a_prompt_edit_or_a_new_graph_makes_decisions_stale_and_a_refit_mends_it(
    yard: Path, pictures: Path, cli: Cli, tmp_path: Path
) -> None:
    own = shutil.copytree(pictures, tmp_path / "own")
    both = ("--variant", "fp32", "--variant", "fp16")
    assert calibrate(cli, yard, "--data", own, *both, "--precision-target", "0.9").exit_code == 0
    table = Bundle.open(yard).table("yard")
    rows = unit_rows(table.embeddings + np.float32(0.01))
    edited = dataclasses.replace(
        table, classes=make_classes(["crate | wooden crate", "barrel", "pallet"]), embeddings=rows
    )
    Bundle.open(yard).add_table(edited, overwrite=True)
    bundle = Bundle.open(yard)
    tables = TableSet(bundle, [bundle.table("yard")], variant="fp32")
    assert not tables.current()[0].decided
    assert "stale (the prompts have changed)" in tables.said["yard"]

    shutil.rmtree(own)  # cached embeddings are enough
    result = calibrate(cli, yard, "--refit")
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(yard)
    table = bundle.table("yard")
    assert TableSet(bundle, [table], variant="fp32").current()[0].calibrated
    assert table.decisions[0].facts.target == 0.9

    add_variant(yard, "fp16", edit_weight("projection", lambda w: w * 1.02))
    bundle = Bundle.open(yard)
    tables = TableSet(bundle, [bundle.table("yard")], variant="fp16")
    assert "stale (fp16 is another graph now)" in tables.said["yard"]
    assert not tables.current()[0].calibrated
    assert TableSet(bundle, [bundle.table("yard")], variant="fp32").current()[0].calibrated
    result = calibrate(cli, yard, "--refit")  # new embeddings are needed now, and the images are gone
    assert result.exit_code != 0
    assert "own" in result.output
    shutil.copytree(pictures, own)
    assert calibrate(cli, yard, "--refit").exit_code == 0
    bundle = Bundle.open(yard)
    assert TableSet(bundle, [bundle.table("yard")], variant="fp16").current()[0].calibrated


def test_a_variant_without_decisions_runs_without_and_says_so(yard: Path, pictures: Path, cli: Cli) -> None:
    assert calibrate(cli, yard, "--data", pictures, "--variant", "fp32").exit_code == 0
    bundle = Bundle.open(yard)
    table = bundle.table("yard")
    tables = TableSet(bundle, [table], variant="fp16")
    assert "fitted for fp32, not for fp16" in tables.said["yard"]
    plain = Scorer(table, bundle.manifest.encoder).scores(table.embeddings)
    np.testing.assert_array_equal(tables.current()[0].scores(table.embeddings), plain)


def test_a_table_replaced_on_a_running_stream_tells_that_its_decisions_are_stale(
    yard: Path, pictures: Path, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    assert calibrate(cli, yard, "--data", pictures, "--variant", "fp32").exit_code == 0
    caplog.set_level(logging.INFO, "edgeclip")
    bundle = Bundle.open(yard)
    tables = TableSet(bundle, [bundle.table("yard")], variant="fp32")
    rows = tables.current()[0].table.embeddings
    tables.replace("yard", PromptTable("new", make_classes(["a", "b", "c"]), rows, ("{}",), bundle.manifest.model.id))
    assert "stale" in tables.said["yard"]
    assert "stale" in caplog.text
    assert not tables.current()[0].decided


def test_label_reports_probabilities_and_unknown(yard: Path, pictures: Path, cli: Cli, tmp_path: Path) -> None:
    assert calibrate(cli, yard, "--data", pictures, "--variant", "fp32", "--precision-target", "0.9").exit_code == 0
    lines = {}
    for label in ("crate", "unknown"):
        out = tmp_path / f"{label}.jsonl"
        result = cli(
            "label",
            yard,
            pictures / label,
            "--table",
            "yard",
            "--variant",
            "fp32",
            "--engine",
            "onnxruntime",
            "--jsonl",
            out,
        )
        assert result.exit_code == 0, result.output
        lines[label] = [json.loads(line) for line in out.read_text().splitlines()]
        assert "calibrated for fp32" in result.output.replace("\n", " ")
    assert all(line["calibrated"] for line in lines["crate"])
    named = sum(line["label"] == "crate" for line in lines["crate"])
    assert named >= 10
    assert sum(line["label"] == "unknown" for line in lines["unknown"]) >= 10
    sure = Bundle.open(yard).table("yard").decisions[0]
    for line in (*lines["crate"], *lines["unknown"]):
        best, score = line["top"][0]
        assert (line["label"] == "unknown") == (score < sure.thresholds[best])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "one of data, footage and refit, got none"),
        (("--refit",), "expected table 'yard' to have decisions"),
        (("--refit", "--data", "x"), "got data and refit"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", "{pictures}", "--variant", "int9"), "no variant 'int9'"),
        (("--data", "{strange}"), "boat"),
        (("--data", "{nothing}", "--others"), "of none of them"),
        (("--footage", "{pictures}/crate"), "at least 99 frames"),
        (("--footage", "x", "--report", "y.html"), "no reliability without labels"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_the_table(
    yard: Path, pictures: Path, cli: Cli, tmp_path: Path, more: tuple[str, ...], said: str
) -> None:
    strange = shutil.copytree(pictures, tmp_path / "strange")
    (strange / "pallet").rename(strange / "boat")
    nothing = tmp_path / "nothing"
    shutil.copytree(pictures / "unknown", nothing / "boat")
    before = Bundle.open(yard).table("yard").content_hash
    places = {"pictures": pictures, "strange": strange, "nothing": nothing}
    result = calibrate(cli, yard, *(word.format(**places) for word in more))
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert said in result.output.replace("\n", " "), result.output
    assert Bundle.open(yard).table("yard").content_hash == before


def test_labels_of_other_classes_can_be_unknown_and_corrupt_images_are_told(
    yard: Path, pictures: Path, cli: Cli, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    (data / "unknown").rename(data / "boat")
    (data / "crate" / "0.png").write_bytes(b"no image")
    result = calibrate(cli, yard, "--data", data, "--others", "--variant", "fp32")
    assert result.exit_code == 0, result.output
    assert "1 image could not be decoded" in result.output.replace("\n", " ")
    facts = Bundle.open(yard).table("yard").decisions[0].facts
    assert (facts.figures["images"], facts.figures["known"]) == (55, 41)
    assert len(recorded_data(facts.data).labels) == 55 + 1  # a file that is no image has a digest all the same


def test_the_starter_is_not_written_to(cli: Cli, pictures: Path) -> None:
    result = cli("calibrate", "decisions", "starter", "--table", "objects", "--data", pictures, "--others")
    assert result.exit_code != 0
    assert "read-only" in result.output


def test_names_of_classes_find_labels(world: World, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("Wooden_Crate", "barrel", "none"):
        (data / folder).mkdir(parents=True)
        write_image(data / folder / "a.png", np.zeros((8, 8, 3), np.uint8))
    table = dataclasses.replace(
        world.table, classes=make_classes(["crate | wooden crate", "barrel"]), embeddings=world.table.embeddings[:2]
    )
    found = open_decision_data(DataOptions(data=str(data)), table)
    assert sorted(found.labels) == ["barrel", "crate", "unknown"]


# Without labels.


def test_at_most_the_asked_share_of_footage_gets_a_label(world: World) -> None:
    footage, _ = world.images(400, 0, unknown=1.0)
    others, _ = world.images(4000, 1, unknown=1.0)
    known, _ = world.images(1000, 2, unknown=0.0)
    decisions = fit_footage(world.table, SPEC, footage, FootageOptions(0.05), variant="v", graph="g")
    scorer = Scorer(world.table, SPEC, decisions)

    def labelled(rows: np.ndarray) -> np.ndarray:
        scores = scorer.scores(rows)
        return scores.max(axis=1) >= scorer.threshold_of(int(scores[0].argmax()), 1.0)

    assert labelled(footage).mean() <= 0.05
    assert labelled(others).mean() <= 0.08
    assert labelled(known).mean() > 0.2
    assert not scorer.calibrated
    np.testing.assert_array_equal(scorer.scores(known), Scorer(world.table, SPEC).scores(known))
    with pytest.raises(InputError, match="at least 999 frames"):
        fit_footage(world.table, SPEC, footage, FootageOptions(0.001), variant="v", graph="g")


def test_words_that_describe_the_site_are_found_and_class_names_are_not(world: World) -> None:
    footage, _ = world.images(300, 0, unknown=1.0)
    rng = np.random.default_rng(5)
    strange = unit_rows(rng.standard_normal((20, WIDTH)).astype(np.float32))
    words = np.concatenate([strange, world.centres[6:], world.table.embeddings[:1]])
    chosen = describe_site(footage, words, world.table.embeddings, logit_scale=20.0, count=3)
    assert set(chosen) == {20, 21, 22}
    assert len(vocabulary()) > 150


def test_footage_gives_the_starter_a_background(cli: Cli, video: Path, tmp_path: Path) -> None:
    pytest.importorskip("all_minilm_l6_v2")
    out = tmp_path / "rooms.safetensors"
    built = cli("prompts", "build", "starter", "--name", "rooms", "--classes", "cat, dog", "-o", out)
    assert built.exit_code == 0, built.output
    asked = ("--footage", video, "--every", "0.05", "--label-rate", "0.05", "--variant", "int8-cpu")
    result = cli("calibrate", "decisions", "starter", "--table", out, *asked)
    assert result.exit_code == 0, result.output
    table = PromptTable.load(out)
    assert table.background
    assert table.labels == ("cat", "dog", *table.background)
    assert "assumed" in result.output
    said = cli("label", "starter", video, "--table", out, "--variant", "int8-cpu", "--engine", "onnxruntime")
    assert "at most 5.00% of frames" in said.output.replace("\n", " ")


# Prompts built anew, and the page.


def test_prompts_built_anew_keep_decisions_which_are_then_stale(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("all_minilm_l6_v2")
    bundle = shutil.copytree(Bundle.open("starter").path, tmp_path / "shop")
    assert cli("prompts", "build", bundle, "--name", "pets", "--classes", "cat, dog").exit_code == 0
    opened = Bundle.open(bundle)
    facts = DecisionFacts(
        variant="fp32",
        graph=opened.graph_sha256("fp32"),
        rows=opened.table("pets").rows_hash,
        classes={},
        calibrated=False,
        label_rate=0.01,
    )
    opened.add_table(dataclasses.replace(opened.table("pets"), decisions=(Decisions(facts),)), overwrite=True)
    opened = Bundle.open(bundle)
    assert opened.decisions(opened.table("pets"), "fp32").decisions
    built = cli("prompts", "build", bundle, "--name", "pets", "--classes", "cat, dog, bird", "--overwrite")
    assert built.exit_code == 0, built.output
    assert "decisions" in built.output
    opened = Bundle.open(bundle)
    assert "stale" in opened.decisions(opened.table("pets"), "fp32").said
    card = cli("inspect", bundle).output
    assert "stale" in card


def test_real_images_of_the_starter(cli: Cli, tmp_path: Path) -> None:
    """Every second image of each class of CIFAR-10 is fitted on; two classes are left out of the table."""
    data = shared("cifar10-test")
    pytest.importorskip("all_minilm_l6_v2")
    kept = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"]
    paths = sorted(path for path in data.rglob("*") if path.is_file())[::2]  # 1000 of 2000: enough for a promise
    fitted_on, tested = paths[::2], paths[1::2]
    out, lines = tmp_path / "cifar.safetensors", tmp_path / "labels.csv"
    lines.write_text("file,label\n" + "".join(f"{path},{path.parent.name}\n" for path in fitted_on))
    assert cli("prompts", "build", "starter", "--name", "cifar", "--classes", ", ".join(kept), "-o", out).exit_code == 0
    result = cli(
        "calibrate", "decisions", "starter", "--table", out, "--data", lines, "--others", "--variant", "int8-cpu"
    )
    assert result.exit_code == 0, result.output
    bundle, table = Bundle.open("starter"), PromptTable.load(out)
    current = bundle.decisions(table, "int8-cpu").decisions
    assert current
    scorer = Scorer(table, bundle.manifest.encoder, current)
    rows = image_embeddings(bundle, "int8-cpu", files(tested)).rows
    scores = scorer.scores(rows)
    best, probability = scores.argmax(axis=1), scores.max(axis=1).astype(float)
    right = np.array([table.labels[row] == path.parent.name for row, path in zip(best, tested, strict=True)])
    reported = probability >= np.array([scorer.threshold_of(row, 1.0) for row in best])
    assert right[reported].mean() >= 0.9
    assert reported.mean() > 0.05
    plain = Scorer(table, bundle.manifest.encoder).scores(rows).max(axis=1).astype(float)
    assert calibration_error(probability, right) < calibration_error(plain, right)
