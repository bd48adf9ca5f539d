"""A setting that loses to zero-shot by more than chance is not taken, and what few shots are worth is said rightly."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from sklearn import metrics

from edgeclip import Bundle, EncoderSpec, PreprocessSpec, PromptTable, make_classes
from edgeclip.errors import InputError
from edgeclip.prompts import unit_rows
from edgeclip.runtime.scoring import Scorer
from tests import conftest

pytest.importorskip("torch")

import torch

from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.calibration.hashed_images import files as image_files
from edgeclip.devices.machine.probe import describe_machine, summary
from edgeclip.evaluation import fewshot
from edgeclip.evaluation.fewshot import (
    CurveReport,
    FewShotOptions,
    adapt_bundle,
    adapted_lines,
    curve_lines,
    curve_of_bundle,
    plot_curves,
    run_recipe,
    save_curve,
)
from edgeclip.training.adapt.curve import Curve, CurveOptions, CurvePoint, draw_curve
from edgeclip.training.adapt.fewshot import (
    METHODS,
    Adapted,
    Method,
    MethodSetting,
    _loss_and_hits,
    _spread,
    adapt,
    cross_validate,
)
from edgeclip.training.adapt.linear_probe import Shots, class_means, fit_rows
from edgeclip.training.adapt.recipe import CurveSection, FewShotRecipe

WIDTH = 8
_PREPROCESS = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SOFTMAX = EncoderSpec(preprocess=_PREPROCESS, embedding_dim=WIDTH, logit_scale=20.0)
AXES = np.eye(WIDTH, dtype=np.float32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The matrices are small: threads would wait for each other, and a process forked off has none of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table_of(rows: np.ndarray) -> PromptTable:
    classes = make_classes([f"class {index}" for index in range(len(rows))])
    return PromptTable("shelf", classes, rows, ("{}",), "m" * 16)


TEXT, OTHER = table_of(AXES[[0, 1, 6]]), table_of(AXES[[2, 3, 6]])


def shots_of(*, lost: int, won: int, both: int) -> Shots:
    """Shots of two classes in turn, and one of a third. Zero-shot, by the first two axes, is right about all but those
    ``won`` by a little; another table, by the next two, about all but those ``lost``, and is surer where it is right.
    """
    kinds = [(0.52, 0.48, 0.48, 0.52)] * lost + [(0.48, 0.52, 0.6, 0.0)] * won + [(0.52, 0.48, 0.6, 0.0)] * both
    rows, labels = [AXES[6]], [2]
    for number, (text, text_other, own, own_other) in enumerate(kinds):
        label = number % 2
        row = np.zeros(WIDTH, np.float32)
        row[[label, 1 - label, 2 + label, 3 - label]] = (text, text_other, own, own_other)
        row[5] = math.sqrt(max(0.0, 1 - float(row @ row)))
        rows.append(row)
        labels.append(label)
    return Shots(unit_rows(np.stack(rows)), np.array(labels))


def method(*, from_text: bool = True, seen: list[Shots] | None = None) -> Method:
    """Two settings: the text rows, and another table, whatever the shots."""

    def fit(
        _table: PromptTable, shots: Shots, _encoder: EncoderSpec, settings: Sequence[MethodSetting]
    ) -> list[PromptTable]:
        if seen is not None:
            seen.append(shots)
        return [TEXT, OTHER][: len(settings)]

    two = (MethodSetting(), MethodSetting(1.0))
    return Method(fit, lambda *_: two, lambda _: two[0], from_text=from_text)


@pytest.mark.parametrize(
    ("lost", "won", "taken"),
    [
        (0, 0, True),
        (1, 0, True),  # of one answer that differs, one may be wrong by chance
        (2, 0, False),  # of two, √2
        (3, 0, False),
        (3, 1, True),  # two more of four
        (4, 1, False),  # three more of five
        (0, 3, True),
        (5, 4, True),
    ],
)
def test_a_setting_with_less_loss_is_taken_only_if_it_is_not_more_often_wrong(lost: int, won: int, taken: bool) -> None:
    both = 40 - lost - won
    shots = shots_of(lost=lost, won=won, both=both)
    settings = (MethodSetting(), MethodSetting(1.0))
    best, top1, zero_shot = cross_validate(method(), TEXT, shots, SOFTMAX, settings)
    assert best == int(taken)
    assert zero_shot == pytest.approx((40 - won) / 40)  # the one shot of the third class is not asked about
    assert top1 == pytest.approx((40 - lost) / 40 if taken else zero_shot)
    # A method that does not begin at zero-shot has nothing to fall back to: the least loss is taken.
    best, top1, _ = cross_validate(method(from_text=False), TEXT, shots, SOFTMAX, settings)
    assert (best, top1) == (1, pytest.approx((40 - lost) / 40))


@pytest.mark.parametrize(("lost", "best"), [(0, 2), (2, 0)])
def test_a_setting_answers_for_its_own_mistakes_and_not_for_those_of_another(lost: int, best: int) -> None:
    wrong = table_of(AXES[[1, 0, 6]])
    settings = (MethodSetting(), MethodSetting(0.5), MethodSetting(1.0))
    three = Method(lambda *_: [TEXT, wrong, OTHER], lambda *_: settings, lambda _: settings[0], from_text=True)
    shots = shots_of(lost=lost, won=0, both=40 - lost)
    assert cross_validate(three, TEXT, shots, SOFTMAX, settings)[:2] == (best, 1.0)


def test_each_shot_is_asked_about_once_by_a_fit_that_did_not_see_it() -> None:
    seen: list[Shots] = []
    shots = shots_of(lost=0, won=0, both=12)
    cross_validate(method(seen=seen), TEXT, shots, SOFTMAX, (MethodSetting(), MethodSetting(1.0)))
    assert len(seen) == 4
    assert [np.bincount(each.labels).tolist() for each in seen] != [[6, 6, 1]] * 4
    assert all((each.labels == 2).sum() == 1 for each in seen)  # a class's only shot helps every fit
    left_out = sum(len(shots.labels) - len(each.labels) for each in seen)
    assert left_out == 12


def test_shots_are_spread_over_the_folds() -> None:
    labels = np.repeat(np.arange(6), 2)
    folds = _spread(labels, 0)
    assert np.bincount(folds).tolist() == [3, 3, 3, 3]
    assert all(len(set(folds[labels == label])) == 2 for label in range(6))
    many = _spread(np.array([0] * 9 + [3] * 4), 1)
    assert sorted(np.bincount(many[:9])) == [2, 2, 2, 3]
    assert sorted(many[9:]) == [0, 1, 2, 3]
    assert (_spread(labels, 0) == folds).all()
    assert any((_spread(labels, seed) != folds).any() for seed in range(1, 4))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_loss_is_scikit_learns(kind: Literal["softmax", "sigmoid"]) -> None:
    """At a scale at which no score lies where logarithms are cut off."""
    bias = -1.0 if kind == "sigmoid" else 0.0
    encoder = EncoderSpec(preprocess=_PREPROCESS, embedding_dim=WIDTH, logit_scale=4.0, logit_bias=bias, score=kind)
    rng = np.random.default_rng(0)
    shots = Shots(unit_rows(rng.standard_normal((30, WIDTH)).astype(np.float32)), rng.integers(0, 3, 30))
    loss, hits = _loss_and_hits(TEXT, shots, encoder)
    scores = Scorer(TEXT, encoder).scores(shots.embeddings).astype(np.float64)
    if kind == "sigmoid":
        expected = metrics.log_loss(np.eye(3)[shots.labels].ravel(), scores.ravel(), normalize=False)
    else:
        shares = scores / scores.sum(axis=1, keepdims=True)  # to the last bit, as scikit-learn wants them
        expected = metrics.log_loss(shots.labels, shares, normalize=False, labels=[0, 1, 2])
    assert loss == pytest.approx(expected, rel=1e-4)
    assert (hits == (scores.argmax(axis=1) == shots.labels)).all()


def few(counts: Sequence[int]) -> Shots:
    """So many shots of each class, near its axis."""
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = 0.1 * np.random.default_rng(0).standard_normal((len(labels), WIDTH))
    return Shots(unit_rows((AXES[labels] + noise).astype(np.float32)), labels)


def test_it_is_validated_where_most_classes_have_two_shots() -> None:
    text = table_of(AXES[:5])
    assert adapt(text, few([2, 2, 1, 1]), SOFTMAX, "tip-adapter").top1 is None
    assert adapt(text, few([2, 2, 2, 1]), SOFTMAX, "tip-adapter").top1 == 1.0
    assert adapt(text, few([0, 2, 0, 0]), SOFTMAX, "tip-adapter").top1 == 1.0
    assert adapt(text, few([0, 0, 0, 0]), SOFTMAX, "tip-adapter") == Adapted(text, MethodSetting())


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("probe", MethodSetting()),
        ("zs-probe", MethodSetting(pull=1.0)),
        ("tip-adapter", MethodSetting(alpha=5.0, beta=4.0)),
        ("tip-adapter-f", MethodSetting(alpha=5.0, beta=4.0)),
    ],
)
def test_one_shot_a_class_takes_what_was_chosen_once(name: str, setting: MethodSetting) -> None:
    shots = few([1, 1, 1])
    found = adapt(table_of(AXES[:3]), shots, SOFTMAX, name)
    assert (found.setting, found.top1, found.zero_shot_top1) == (setting, None, None)
    digest = hashlib.sha256(shots.embeddings.tobytes() + shots.labels.tobytes()).hexdigest()[:12]
    figures = f"pull {setting.pull:g}, alpha {setting.alpha:g}, beta {setting.beta:g}"
    assert found.table.adapted == f"{name}, 1 shots a class, {figures}, shots {digest}"
    uneven = adapt(table_of(AXES[:4]), few([1, 0, 3, 1]), SOFTMAX, name).table.adapted
    assert uneven.startswith(f"{name}, 1 to 3 shots a class, ")


def test_a_method_gives_rows_or_keys() -> None:
    text, shots = table_of(unit_rows(AXES[:3] + 0.8 * AXES[1:4])), few([1, 1, 1])
    made = {name: adapt(text, shots, SOFTMAX, name).table for name in METHODS}
    means, (nearer,) = class_means(shots, 3), fit_rows(text.embeddings, shots, SOFTMAX, [1.0])
    for name, rows in (("probe", means), ("zs-probe", nearer)):
        np.testing.assert_allclose(made[name].embeddings, rows, atol=1e-6)
        assert made[name].cache is None
    assert np.abs(nearer - text.embeddings).max() > 1e-3
    for name in ("tip-adapter", "tip-adapter-f"):  # the second has not moved its keys yet
        cache = made[name].cache
        assert cache is not None
        np.testing.assert_allclose(cache.keys, shots.embeddings, atol=1e-6)
        assert (cache.labels.tolist(), cache.alpha, cache.beta) == ([0, 1, 2], 5.0, 4.0)
        np.testing.assert_array_equal(made[name].embeddings, text.embeddings)


def test_settings_go_from_zero_shot_on() -> None:
    text, shots = table_of(AXES[:3]), few([4, 4, 4])
    pulls = [math.inf, 10, 3, 1, 0.3, 0.1, 0.03, 0.01]
    for name in ("probe", "zs-probe"):
        assert [each.pull for each in METHODS[name].settings(text, shots, SOFTMAX, 0)] == pulls
    grid = METHODS["tip-adapter"].settings(text, shots, SOFTMAX, 0)
    assert grid[0] == MethodSetting()
    assert [(each.alpha, each.beta) for each in grid[1:]] == [
        (20 * alpha, beta) for beta in (1, 2, 4, 8) for alpha in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4)
    ]
    tip = adapt(text, shots, SOFTMAX, "tip-adapter").setting
    start = tip if tip.alpha else MethodSetting(alpha=5.0, beta=4.0)
    assert METHODS["tip-adapter-f"].settings(text, shots, SOFTMAX, 0) == (
        MethodSetting(),
        *(MethodSetting(pull, start.alpha, start.beta) for pull in (math.inf, 3.0, 0.3)),
    )
    assert [name for name, each in METHODS.items() if not each.from_text] == ["probe"]


# The curve, and what is said


def point(name: str, shots: int, gain: float, **more: Any) -> CurvePoint:
    given = {"top1": 0.5, "low": 0.4, "high": 0.6, "gain_low": -0.1, "gain_high": 0.1, "by_seed": [], "settings": []}
    return CurvePoint(name, shots, gain=gain, **given | more)


def test_points_below_zero_shot_are_named() -> None:
    points = [
        point("zs-probe", 1, -0.01), point("zs-probe", 2, 0.0), point("probe", 1, -0.2), point("tip-adapter", 4, -1e-6)
    ]  # fmt: skip
    curve = Curve(points, images=1200, classes=3, tested=30, seeds=5, most_shots=16)
    assert curve.below_zero_shot() == [points[0], points[3]]
    assert curve.of("zs-probe") == points[:2]
    report = CurveReport("data", "m", "fp32", (), 0, curve, describe_machine())
    said = curve_lines(report)
    assert said[0] == (
        "data: 1,200 images in 3 classes, 30 of them tested on for each of 5 seeds; up to 16 shots a class are there"
    )
    assert said[2] == "zs-probe            1  0.500  0.400–0.600     -0.010            -0.100 to +0.100"
    assert said[-2:] == [
        "zero-shot-initialised methods below zero-shot: zs-probe at 1, tip-adapter at 4",
        f"fp32 of model m on {summary(report.machine)}",
    ]
    above = Curve(points[1:3], images=1, classes=1, tested=1, seeds=2, most_shots=1)
    assert curve_lines(CurveReport("d", "m", "fp32", (), 0, above, describe_machine()))[-2].endswith(": nowhere")


def test_a_curves_figures_are_means_over_seeds_with_students_interval() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 12)
    embeddings = unit_rows((AXES[labels] + 0.6 * rng.standard_normal((48, WIDTH))).astype(np.float32))
    text = table_of(unit_rows((AXES[:4] + 0.4 * rng.standard_normal((4, WIDTH))).astype(np.float32)))
    done: list[tuple[int, int]] = []
    options = CurveOptions(methods=("tip-adapter", "probe"), shots=(0, 99), seeds=2)
    curve = draw_curve(text, Shots(embeddings, labels), SOFTMAX, options, progress=lambda *each: done.append(each))
    assert (curve.images, curve.classes, curve.tested, curve.seeds, curve.most_shots) == (48, 4, 12, 2, 9)
    assert [(each.method, each.shots) for each in curve.points] == [
        ("tip-adapter", 0),
        ("tip-adapter", 9),
        ("probe", 9),
    ]
    assert done == [(number + 1, 6) for number in range(6)]
    zero = curve.points[0].by_seed
    for each in curve.points:
        for values, mean, low, high in (
            (each.by_seed, each.top1, each.low, each.high),
            (np.subtract(each.by_seed, zero), each.gain, each.gain_low, each.gain_high),
        ):
            assert mean == pytest.approx(np.mean(values))
            half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / math.sqrt(2)
            assert (low, high) == pytest.approx((mean - half, mean + half))
        assert len(each.settings) == 2
    assert curve.points[0].settings[0] == "pull inf, alpha 0, beta 1"
    assert curve.points[0].gain == 0


def test_what_a_table_is_worth_is_said_where_it_is_known() -> None:
    plain = adapted_lines(Adapted(TEXT, MethodSetting()))
    assert plain == ["shelf: 3 classes, as the text has it"]
    told = adapted_lines(Adapted(TEXT, MethodSetting(), 0.75, 0.5))
    assert told[1:] == ["cross-validated on these images: top-1 0.750, zero-shot 0.500"]


# With a bundle


class Shelf(NamedTuple):
    """A bundle, a folder of labelled images, what the table of text was asked for, and its embeddings by folder."""

    bundle: Bundle
    data: Path
    asked: list[dict[str, Any]]
    rows: dict[str, np.ndarray]


@pytest.fixture
def shelf(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Six images of each of two classes, one of them damaged, and a second variant; text rows are made up."""
    double = conftest.edit_weight("projection", lambda weight: np.roll(weight, 1, axis=1))
    bundle = conftest.add_variant(tiny_bundle, "rolled", double, precision="fp32")
    conftest.write_two_colours(tmp_path / "images", {"blue_thing": (20, 20, 220), "red_thing": (220, 20, 20)})
    (tmp_path / "images" / "red_thing" / "5.png").write_bytes(b"not a picture")
    asked: list[dict[str, Any]] = []

    def table_for_bundle(of: Bundle, classes: Any, templates: Any, *, progress: Any, **more: Any) -> PromptTable:
        assert of.path == bundle.path
        background = more["background"]
        asked.append({"classes": tuple(classes), "templates": tuple(templates), **more})
        if progress:
            progress(3, 4)
        every = (*classes, *background)
        rows = np.random.default_rng(1).standard_normal((len(every), conftest.WIDTH)).astype(np.float32)
        return PromptTable(more["name"], every, unit_rows(rows), tuple(templates), of.manifest.model.id)

    monkeypatch.setattr(fewshot, "table_for_bundle", table_for_bundle)
    rows = {}
    for name in ("blue_thing", "red_thing"):
        found, keep = image_embeddings(bundle, "rolled", image_files(sorted((tmp_path / "images" / name).iterdir())))
        rows[name] = found[keep]
    return Shelf(bundle, tmp_path / "images", asked, rows)


def digest_of(*rows: np.ndarray) -> str:
    """The end of what is written into a table that was adapted to these rows of class 0, 1, …"""
    labels = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    return hashlib.sha256(np.concatenate(rows).tobytes() + labels.tobytes()).hexdigest()[:12]


def test_so_many_images_of_each_class_are_drawn_and_all_of_them_for_0(shelf: Shelf) -> None:
    blue, red = shelf.rows["blue_thing"], shelf.rows["red_thing"]
    assert (len(blue), len(red)) == (6, 5)
    told: list[tuple[str, int, int]] = []
    wall = make_classes(["wall"])

    def adapted(shots: int, seed: int, **more: Any) -> Adapted:
        options = FewShotOptions("tip-adapter", shots, ("{}!",), background=wall, variant="rolled", seed=seed)
        return adapt_bundle(shelf.bundle, shelf.data, options, name="shelf", **more)

    drawn = {
        digest_of(blue[list(some)], red[list(others)])
        for some in itertools.combinations(range(6), 3)
        for count in (2, 3)  # the damaged one may be among them
        for others in itertools.combinations(range(5), count)
    }
    found = adapted(3, 1, progress=lambda *each: told.append(each))
    said = {found.table.adapted.rpartition(" ")[2]} | {
        adapted(3, seed).table.adapted.rpartition(" ")[2] for seed in range(1, 5)
    }
    assert 2 < len(said) <= 4  # the same for the same seed
    assert said <= drawn
    assert told[0] == ("prompts", 3, 4)
    assert told[-1] == ("images", 6, 6)
    classes = make_classes({"blue_thing": "blue thing", "red_thing": "red thing"})
    assert shelf.asked[0] == {"classes": classes, "templates": ("{}!",), "name": "shelf", "background": wall}
    assert found.table.name == "shelf"
    every = adapted(0, 0).table.adapted
    assert every.startswith("tip-adapter, 5 to 6 shots a class, ")
    assert every.endswith(f"shots {digest_of(blue, red)}")


def test_few_shot_options_begin_as_the_guide_has_it_and_are_checked(shelf: Shelf) -> None:
    assert FewShotOptions() == FewShotOptions("zs-probe", 16, (), None, (), "fp32", 0)
    for wrong, says in ((FewShotOptions(shots=-1), "got -1"), (FewShotOptions("none"), "got 'none'")):
        with pytest.raises(InputError, match=says):
            adapt_bundle(shelf.bundle, shelf.data, wrong, name="shelf")
    assert not shelf.asked


def test_a_curve_of_a_bundle_is_that_of_its_embeddings(shelf: Shelf) -> None:
    told: list[tuple[str, int, int]] = []
    names = shelf.data.parent / "names.json"
    names.write_text('{"red_thing": "rose", "blue_thing": "sky"}')
    options = FewShotOptions(templates=("{}!",), names=names, variant="rolled")
    curve = CurveOptions(methods=("tip-adapter",), shots=(0, 2), seeds=3)
    found = curve_of_bundle(shelf.bundle, shelf.data, options, curve, progress=lambda *each: told.append(each))
    table = fewshot.table_for_bundle(shelf.bundle, make_classes(["a", "b"]), ("{}!",), name="images", progress=None, background=())  # fmt: skip  # noqa: E501
    blue, red = shelf.rows["blue_thing"], shelf.rows["red_thing"]
    shots = Shots(np.concatenate([blue, red]), np.repeat([0, 1], [6, 5]))
    expected = draw_curve(table, shots, shelf.bundle.manifest.encoder, curve)
    assert found == CurveReport(
        "images", shelf.bundle.manifest.model.id, "rolled", ("{}!",), 1, expected, describe_machine()
    )
    assert shelf.asked[0]["name"] == "images"
    assert shelf.asked[0]["classes"] == make_classes({"blue_thing": "sky", "red_thing": "rose"})
    assert [told[0], told[1], told[-1]] == [("prompts", 3, 4), ("images", 12, 12), ("fits", 6, 6)]
    assert len(told) == 8


def recipe_of(shelf: Shelf, **changed: Any) -> FewShotRecipe:
    names = shelf.data.parent / "names [red].json"
    names.write_text('{"red_thing": "rose", "blue_thing": "sky"}')
    (templates := shelf.data.parent / "templates.txt").write_text("a {} here\n")
    given: dict[str, Any] = {
        "bundle": str(shelf.bundle.path), "data": str(shelf.data), "names": str(names), "templates": str(templates),
        "background": "wall, floor", "variant": "rolled", "method": "tip-adapter", "shots": 0, "seed": 1,
    }  # fmt: skip
    return FewShotRecipe(name="shelf", **given | changed)


def test_a_recipe_leaves_its_table_curve_and_itself(shelf: Shelf, tmp_path: Path) -> None:
    out, folder = io.StringIO(), tmp_path / "made [red]"
    recipe = recipe_of(shelf, curve=CurveSection(seeds=2, methods=("tip-adapter",), shots=(0, 2)))
    run_recipe(recipe, folder, console=Console(file=out, width=40))
    assert sorted(file.name for file in folder.iterdir()) == [
        "curve.json", "curve.png", "recipe.json", "shelf.safetensors"
    ]  # fmt: skip
    assert msgspec.json.decode((folder / "recipe.json").read_bytes(), type=FewShotRecipe) == recipe
    table = PromptTable.load(folder / "shelf.safetensors")
    assert table.labels == ("blue_thing", "red_thing", "wall", "floor")
    blue, red = shelf.rows["blue_thing"], shelf.rows["red_thing"]
    assert table.adapted.startswith("tip-adapter, 5 to 6 shots a class")
    assert table.adapted.endswith(digest_of(blue, red))
    assert [each["name"] for each in shelf.asked] == ["shelf", "images"]
    named = make_classes({"blue_thing": "sky", "red_thing": "rose"})
    assert [each["classes"] for each in shelf.asked] == [named, named]
    assert shelf.asked[0]["background"] == make_classes(["wall", "floor"])
    assert shelf.asked[0]["templates"] == ("a {} here",)
    report = msgspec.json.decode((folder / "curve.json").read_bytes(), type=CurveReport)
    assert (report.curve.seeds, {each.method for each in report.curve.points}) == (2, {"tip-adapter"})
    assert {each.shots for each in report.curve.points} == {0, 2}
    printed, end = json.JSONDecoder().raw_decode(out.getvalue())
    assert msgspec.convert(printed, FewShotRecipe) == recipe
    assert '  "name": "shelf"' in out.getvalue()[:end]
    told = out.getvalue()[end:].strip().splitlines()
    assert told[0] == f"shelf: 4 classes, {table.adapted}"
    assert told[1].startswith("cross-validated on these images: ")
    assert told[2:-1] == curve_lines(report)
    assert told[-1] == f"written: {folder}"

    before = (folder / "recipe.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        run_recipe(recipe, folder, console=Console(file=out))
    other = recipe_of(shelf, background="", names="", shots=1)
    run_recipe(other, folder, console=Console(file=out), overwrite=True)
    assert sorted(file.name for file in folder.iterdir()) == ["recipe.json", "shelf.safetensors"]
    assert (folder / "recipe.json").read_bytes() != before
    table = PromptTable.load(folder / "shelf.safetensors")
    assert table.labels == ("blue_thing", "red_thing")
    assert table.adapted.startswith("tip-adapter, 1 shots a class")
    (folder / "recipe.json").unlink()
    with pytest.raises(InputError):  # a folder that is not one of ours is not thrown away
        run_recipe(other, folder, console=Console(file=out), overwrite=True)


def test_a_curve_is_kept_as_numbers_and_as_a_picture(tmp_path: Path) -> None:
    points = [point("zs-probe", 0, 0.0), point("zs-probe", 2, 0.1, top1=0.6)]
    report = CurveReport("d", "m", "fp32", (), 3, Curve(points, 9, 3, 4, 2, 2), describe_machine())
    assert save_curve(report, tmp_path) == (tmp_path / "curve.json", tmp_path / "curve.png")
    assert msgspec.json.decode((tmp_path / "curve.json").read_bytes(), type=CurveReport) == report
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_chart_has_a_line_with_its_band_for_each_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, Path]] = []
    monkeypatch.setattr(fewshot, "save_figure", lambda *each: drawn.append(each))
    points = [
        point("zs-probe", 0, 0.0, top1=0.45),
        point("zs-probe", 2, 0.1, top1=0.6, low=0.55, high=0.65),
        point("zs-probe", 16, 0.2, top1=0.7, low=0.6, high=0.8),
        point("probe", 16, 0.1, top1=0.65),
    ]
    first = CurveReport("cups", "m", "fp32", (), 0, Curve(points, 9, 3, 4, 5, 16), describe_machine())
    second = CurveReport("shoes", "m", "fp32", (), 0, Curve(points[1:], 9, 7, 4, 2, 16), describe_machine())
    plot_curves([first, second], tmp_path / "c.png")
    ((figure, path),) = drawn
    assert path == tmp_path / "c.png"
    left, right = figure.axes
    assert [panel.get_title() for panel in figure.axes] == ["cups (3 classes, 5 seeds)", "shoes (7 classes, 2 seeds)"]
    lines = {line.get_label(): line for line in left.lines}
    assert {*lines} == {"zs-probe", "probe", "zero-shot"}
    assert {line.get_label() for line in right.lines} == {"zs-probe", "probe"}
    assert [*map(list, lines["zs-probe"].get_data())] == [[0, 1, 2], [0.45, 0.6, 0.7]]  # evenly spaced
    assert [*map(list, lines["probe"].get_data())] == [[2], [0.65]]
    assert set(lines["zero-shot"].get_ydata()) == {0.45}
    assert len({line.get_color() for line in lines.values()}) == 3
    band = left.collections[1].get_paths()[0].vertices
    assert {tuple(corner) for corner in band.round(6)} >= {(1.0, 0.55), (1.0, 0.65), (2.0, 0.6), (2.0, 0.8)}
    assert [text.get_text() for text in left.get_xticklabels()] == ["0", "2", "16"]
    assert list(left.get_xticks()) == [0, 1, 2]
    assert [text.get_text() for text in right.get_xticklabels()] == ["2", "16"]
    assert (left.get_xlabel(), left.get_ylabel()) == ("labelled images a class", "top-1")
    assert {text.get_text() for text in left.get_legend().get_texts()} == {*lines}
