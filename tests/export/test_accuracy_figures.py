"""What an export with labels decides and says, worked out by hand from scores and files that are given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from edgeclip import Bundle, make_classes
from edgeclip.devices.machine.probe import describe_machine
from edgeclip.errors import BundleError, InputError, IntegrityError, ParityError, SourceError
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.prompts import FloatArray, unit_rows
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import list_labelled, write_image
from tests.conftest import SIZE, add_variant, edit_weight

pytest.importorskip("onnx")

from edgeclip.export import accuracy
from edgeclip.export.accuracy import (
    BUDGET_S,
    REPORT,
    UNIT,
    AccuracyOptions,
    Halves,
    LabelledImages,
    QuantizationReport,
    accuracy_options,
    loss_bound,
    make_accurate,
    make_bounded,
    quantization_report,
    require_enough,
    split_in_halves,
    top1_loss,
    worst_layout,
)
from edgeclip.export.int8.quantization import QuantizationRecipe
from edgeclip.export.int8.search import GraphLoss, SearchResult, Trial
from edgeclip.export.variants import Materials

NOTHING = np.empty((0, 3, SIZE, SIZE), np.float32)


class Set(NamedTuple):
    """A bundle whose table has three classes, and noise in three folders: 3, 4 and 5 images, one more damaged."""

    bundle: Bundle
    files: list[tuple[Path, int]]
    folders: list[str]


@pytest.fixture
def noise(tiny_bundle: Path, tmp_path: Path) -> Set:
    chooser = np.random.default_rng(0)
    for count, name in enumerate(("a_b", "c", "d"), start=3):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for index in range(count):
            colour = chooser.integers(0, 256, 3)
            picture = np.clip(colour + chooser.integers(-60, 60, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
            write_image(tmp_path / "noise" / name / f"{index}.png", picture)
    (tmp_path / "noise" / "c" / "9.png").write_bytes(b"none")
    files, folders = list_labelled(tmp_path / "noise")
    return Set(Bundle.open(tiny_bundle), files, list(folders))


def labelled(noise: Set, **more: Any) -> LabelledImages:
    return LabelledImages(noise.files, noise.bundle.table(), noise.bundle.manifest.encoder, **more)


# Images of known class


def test_what_cannot_be_decoded_is_left_out_and_counted(noise: Set, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    images = labelled(noise, progress=lambda *each: told.append(each))
    assert (len(images), images._truth.tolist()) == (12, [0] * 3 + [1] * 4 + [2] * 5)
    assert told == [(number, 13) for number in range(1, 14)]
    (tmp_path / "x.png").write_bytes(b"none")
    for files in ([], [(tmp_path / "x.png", 0), (tmp_path / "x.png", 1)]):
        with pytest.raises(SourceError, match=rf"none of the {len(files)} images can be decoded"):
            LabelledImages(files, noise.bundle.table(), noise.bundle.manifest.encoder)


def test_hits_are_those_of_the_nearest_class_and_a_tie_is_none(noise: Set) -> None:
    images, bundle = labelled(noise), noise.bundle
    path, spec = bundle.variant_path("fp32"), bundle.manifest.encoder
    with load_engine("onnxruntime", path, spec) as engine:
        rows = [engine.infer(images._preprocess.normalise(image)[None]) for image in images._images]
    scores = unit_rows(np.concatenate(rows)) @ bundle.table().embeddings.T
    np.testing.assert_array_equal(images.hits(path), scores.argmax(axis=1) == images._truth)
    two = images._part([0, 11])
    assert two._hits(np.array([[0.5, 0.4, 0.4], [0.3, 0.2, 0.4]])).tolist() == [True, True]
    assert two._hits(np.array([[0.5, 0.5, 0.4], [0.3, 0.4, 0.4]])).tolist() == [False, False]
    assert two._hits(np.array([[0.5, 0.4, 0.6], [0.3, 0.5, 0.4]])).tolist() == [False, False]


def test_a_graphs_precision_is_told_to_its_engine(noise: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    images = labelled(noise)

    def load(name: str, path: Path, *_: Any, precision: str) -> Any:
        asked.append((name, precision))
        return load_engine(name, path, noise.bundle.manifest.encoder)

    monkeypatch.setattr(accuracy, "load_engine", load)
    path = noise.bundle.variant_path("fp32")
    images.hits(path)
    images.hits(path, precision="int8")
    assert asked == [("onnxruntime", "fp32"), ("onnxruntime", "int8")]


def dealt(truth: list[int], said: list[int], classes: int) -> LabelledImages:
    """Images of these classes, which a graph calls so."""
    images = LabelledImages.__new__(LabelledImages)
    images._truth, images._images = np.array(truth), [np.zeros((1, 1, 3), np.uint8)] * len(truth)
    images._rows = np.zeros((classes, 2), np.float32)
    images._scores = lambda *_: np.eye(classes, dtype=np.float32)[said]  # type: ignore[method-assign]
    return images


@pytest.mark.parametrize(
    ("cells", "most"),  # (images of class 0 called 0, called 1; of class 1 called 0, called 1)
    [
        ((29, 21, 20, 30), 59),  # 50 by chance, and 1.96 times √(50 · 0.5) above it is 59.8
        ((30, 20, 20, 30), None),
        ((76, 4, 14, 6), 82),  # 74 by chance, and 1.96 times √(74 · 0.26) above it is 82.6
        ((77, 3, 13, 7), None),
        ((100, 0, 0, 0), 100),
    ],
)
def test_labels_are_known_where_more_are_hit_than_by_chance(cells: tuple[int, ...], most: int | None) -> None:
    truth = [0] * (cells[0] + cells[1]) + [1] * (cells[2] + cells[3])
    said = [0] * cells[0] + [1] * cells[1] + [0] * cells[2] + [1] * cells[3]
    images = dealt(truth, said, 3)
    if most is None:
        assert images.reference_hits(Path()).tolist() == [one == other for one, other in zip(truth, said, strict=True)]
        return
    chance = 100 if cells[0] == 100 else 50 if cells[0] < 50 else 74
    with pytest.raises(InputError) as error:
        images.reference_hits(Path())
    assert f"got {most} of 100 images in {len(set(truth))} classes that fp32 labels right" in str(error.value)
    assert f"where chance gives {chance}: give images" in str(error.value)


def test_what_is_split_is_enough_and_known_in_both_halves(noise: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    images, fp32 = labelled(noise), noise.bundle.variant_path("fp32")
    images._truth = (images._scores(fp32, "fp32")).argmax(axis=1)
    images._truth[3] = (images._truth[3] + 1) % 3
    halves = split_in_halves(images, fp32, calibrated_on=NOTHING, max_drop=None)
    for half, hits in ((halves.chosen_on, halves.known), (halves.stated_on, halves.expected)):
        assert len(half) == 6
        np.testing.assert_array_equal(half.hits(fp32), hits)
    assert halves.known.sum() + halves.expected.sum() == 11
    with pytest.raises(InputError, match=r"at least 2,554 labelled images .* got 12: give"):
        split_in_halves(images, fp32, calibrated_on=NOTHING, max_drop=0.3)
    one = images._preprocess.normalise(images._images[0])[None]
    assert len(split_in_halves(images, fp32, calibrated_on=one, max_drop=None).chosen_on) == 6
    assert len(split_in_halves(images, fp32, calibrated_on=one, max_drop=None).stated_on) == 5


def test_what_is_not_different_is_left_out_with_its_reason(
    noise: Set, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 21 images: one twice in its folder, one in two, one calibrated on, one black, and an order of their own."""
    every = labelled(noise)
    pictures = [*every._images, np.zeros((SIZE, SIZE, 3), np.uint8)]
    labels = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0]
    chosen = [*range(13), 1, 5, 4]  # a copy of one in its own class, and two that are of other classes
    found = []
    for order in (chosen, chosen[::-1]):
        images = every._part([0] * len(order))
        images._images = [pictures[index] for index in order]
        images._truth = np.array([labels[index] for index in order])
        if order is chosen:
            images._truth[[14, 15]] = [2, 0]
        else:
            images._truth[[0, 1]] = [0, 2]
        caplog.clear()
        kept = images.different(without=images._preprocess.normalise(pictures[11])[None])
        assert caplog.messages == [caplog.messages[0]]
        assert caplog.messages[0].startswith("of 16 labelled images these are left out: ")
        assert set(caplog.messages[0].partition(": ")[2].split(", ")) >= {
            "1 of one colour", "4 the same", "1 the same as another", "1 among the calibration images"
        }  # fmt: skip
        assert len(kept) == 9
        found.append(kept)
    for one, other in zip(found[0]._images, found[1]._images, strict=True):
        np.testing.assert_array_equal(one, other)  # their content alone decides the order
    np.testing.assert_array_equal(found[0]._truth, found[1]._truth)
    first, second = found[0].halves()
    assert (len(first), len(second)) == (5, 4)
    np.testing.assert_array_equal(first._images, found[0]._images[::2])
    np.testing.assert_array_equal(second._truth, found[0]._truth[1::2])
    without = np.stack([every._preprocess.normalise(picture) for picture in pictures])
    with pytest.raises(SourceError, match=r"labelled images that can be used, got none of 12"):
        every.different(without=without)


@pytest.mark.parametrize(("names", "worst"), [(("int8",), 1.0), (("int8-cpu",), 2.0), (("int8-cpu", "int8"), 2.0)])
def test_the_worst_of_the_layouts_that_are_asked_for_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], worst: float
) -> None:
    looked_at: list[Path] = []

    def lay_out(path: Path, target: Path) -> tuple[Path, int]:
        assert path == tmp_path / "a.onnx"
        assert target.parent.is_dir()
        return target, 0

    def loss(path: Path) -> GraphLoss:
        looked_at.append(path)
        return GraphLoss(bound=1.0 if path.name == "a.onnx" else 2.0, estimate=0.0)

    monkeypatch.setattr(accuracy, "lay_out_for_cpu", lay_out)
    assert worst_layout(loss, names)(tmp_path / "a.onnx").bound == worst
    assert {path.name for path in looked_at} == {"int8": {"a.onnx"}, "int8-cpu": {"int8-cpu.onnx"}}.get(
        "".join(names), {"a.onnx", "int8-cpu.onnx"}
    )


# How many


def test_who_gives_no_limit_or_enough_images_is_not_stopped() -> None:
    require_enough(0, None)
    require_enough(2554, 0.3)
    for count in (0, 1):
        with pytest.raises(InputError, match=rf"got {count}: give more$"):
            require_enough(count, 0.3)
    with pytest.raises(InputError, match=r"got 2,553: give more, or allow 0\.31$"):
        require_enough(2553, 0.3)


FILES = [(Path(f"{number}.png"), "a_b" if number % 2 else "c") for number in range(2554)]


def options_of(*names: str, **changed: Any) -> AccuracyOptions | None:
    given: dict[str, Any] = {
        "files": FILES,
        "max_drop": None,
        "class_names": None,
        "templates": ["{}!"],
        "by_name": True,
    }
    return accuracy_options(names, **given | changed)


def test_int8_is_held_to_labels_where_there_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("int8", "int8-cpu"):
        found = options_of("fp16", name)
        assert found is not None
        assert list(found.files) == [(path, 0 if folder == "a_b" else 1) for path, folder in FILES]
        assert [(each.label, each.names) for each in found.classes] == [("a_b", ("a b",)), ("c", ("c",))]
        assert list(found.templates) == ["{}!"]
        assert (found.max_drop, found.required, found.left_out) == (0.3, False, False)
    found = options_of("int8", max_drop=0.5, by_name=False)
    assert found is not None
    assert (found.max_drop, found.required, found.left_out) == (0.5, True, True)
    assert options_of("fp16", "fp32") is options_of("int8", files=[]) is None
    assert not caplog.records
    assert options_of("int8", files=FILES[:-1]) is None
    assert "what it costs in top-1 is not bounded: expected at least 2,554 labelled images" in caplog.text
    with pytest.raises(InputError, match="at least 2,554 labelled images"):
        options_of("int8", files=FILES[:-1], max_drop=0.3)


def test_classes_are_called_as_they_are_named(caplog: pytest.LogCaptureFixture) -> None:
    named = {"zoo": "animals", "c": ["cup", "mug"], "a_b": "sky"}
    found = options_of("int8", class_names=named)
    assert found is not None
    assert [(each.label, each.names) for each in found.classes] == [
        ("zoo", ("animals",)), ("c", ("cup", "mug")), ("a_b", ("sky",))
    ]  # fmt: skip
    assert {index for _, index in found.files} == {1, 2}
    assert found.files[0] == (Path("0.png"), 1)
    decomposed = options_of("int8", files=[(path, "café") for path, _ in FILES], class_names={"cafe\u0301": "bar"})
    assert decomposed is not None
    with pytest.raises(InputError, match=r"`class_names` of every folder, got none of a_b: add them"):
        options_of("int8", class_names={"c": "x"})
    many = [(Path(f"{number}.png"), f"f{number % 7}") for number in range(2600)]
    with pytest.raises(InputError, match=r"got none of f0, f1, f2, f3, f4: add them"):
        options_of("int8", files=many, class_names={"c": "x"})
    for asked in ({"max_drop": 0.3}, {"class_names": {"a": "b"}}):
        with pytest.raises(InputError, match=r"expected `images` with one folder a class, .* got no labels"):
            options_of("int8", files=[], **asked)
        with pytest.raises(InputError, match=r"expected int8 or int8-cpu in `variants`, .* got neither"):
            options_of("fp16", **asked)
        assert not caplog.records
        assert options_of("fp16", by_name=False, **asked) is None
        assert "no INT8 is made for that device" in caplog.text
        caplog.clear()


# What is said


def test_a_report_says_each_trial_what_was_chosen_and_what_it_costs() -> None:
    plain = QuantizationRecipe(range_estimator="minmax", smooth_alpha=None)
    smooth = QuantizationRecipe(range_estimator="mse", smooth_alpha=0.25)
    first = Trial(recipe=plain, blocks_in_fp32=(), loss=GraphLoss(bound=2.0, estimate=1.0), seconds=61.4)
    best = Trial(
        recipe=smooth, blocks_in_fp32=("b1", "b2"), loss=GraphLoss(bound=0.2, estimate=0.1, n=9, lost=1), seconds=2.6
    )
    search = SearchResult(unit=UNIT, max_loss=0.3, best=best, trials=(first, best), blocks=(), stopped=False)
    losses = {"int8": GraphLoss(bound=0.5, estimate=-0.25, n=1200, lost=3, won=6)}
    report = QuantizationReport(unit=UNIT, max_drop=0.3, search=search, losses=losses, fp32_top1=61.25)
    told = [
        "trial 1: minmax, smoothing none: loss 2 points of top-1 (61 s)",
        "trial 2: mse, smoothing 0.25, fp32: b1, b2: loss at most 0.20 points of top-1 (95 %; measured +0.10 on 9 "
        "images: 1 lost, 0 won) (3 s)",
        "chosen: loss at most 0.20 points of top-1 (95 %; measured +0.10 on 9 images: 1 lost, 0 won), 0.3 allowed",
        "int8: loss at most 0.50 points of top-1 (95 %; measured -0.25 on 1,200 images: 3 lost, 6 won), none of which "
        "chose the recipe",
        "fp32: top-1 61.2 % on the same images",
    ]
    assert report.lines() == told
    late = msgspec.structs.replace(report, search=msgspec.structs.replace(search, stopped=True), losses={})
    assert late.lines()[2:] == [f"{told[2]}; the time ran out before the search was over", told[4]]
    given = QuantizationReport(unit=UNIT, max_drop=None, losses=losses)
    assert given.lines() == [told[3]]
    without = QuantizationReport(unit=UNIT, max_drop=0.3, left_out="it loses too much", fp32_top1=50.0)
    assert without.lines() == ["fp32: top-1 50.0 % on the same images", "int8 is left out: it loses too much"]


def test_a_bundles_report_is_read_back_or_there_is_none(tiny_bundle: Path) -> None:
    assert quantization_report(Bundle.open(tiny_bundle)) is None
    report = QuantizationReport(unit=UNIT, max_drop=0.3, left_out="why")
    (tiny_bundle / "reports").mkdir(exist_ok=True)
    for content, error in ((msgspec.json.encode(report), None), (b'{"unit": 3}', BundleError)):
        (tiny_bundle / REPORT).write_bytes(content)
        write_manifest(tiny_bundle, read_manifest(tiny_bundle), scan=True)
        if error is None:
            assert quantization_report(Bundle.open(tiny_bundle)) == report
        else:
            with pytest.raises(error):
                quantization_report(Bundle.open(tiny_bundle))
    bundle = Bundle.open(tiny_bundle)
    (tiny_bundle / REPORT).write_bytes(b"altered")
    with pytest.raises(IntegrityError):
        quantization_report(bundle)


# What is made


class Work(NamedTuple):
    """Materials, halves of which FP32 is right about all, and what making variants was asked for."""

    materials: Materials
    halves: Halves
    asked: list[Any]


@pytest.fixture
def work(noise: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What makes variants is replaced: its INT8 is FP32 with its projection turned round."""
    fp32 = noise.bundle.variant_path("fp32")
    images = labelled(noise)
    images._truth = images._scores(fp32, "fp32").argmax(axis=1)
    halves = split_in_halves(images, fp32, calibrated_on=NOTHING, max_drop=None)
    turned = add_variant(noise.bundle.path, "turned", edit_weight("projection", lambda weight: weight[::-1]))
    same = {"int8": fp32, "int8-cpu": turned.variant_path("turned")}
    materials = Materials(fp32, noise.bundle.manifest.encoder, None, NOTHING)  # type: ignore[arg-type]
    asked: list[Any] = []

    def make_variants(names: Any, folder: Path, given: Materials, *, progress: Any) -> list[Any]:
        asked.append((tuple(names), folder, given))
        progress("made")
        made = []
        for name in names:
            (folder / "image_encoder" / f"{name}.onnx").write_bytes(same[name].read_bytes())
            made.append(msgspec.structs.replace(noise.bundle.variant("fp32"), name=name, file=f"image_encoder/{name}.onnx"))  # fmt: skip  # noqa: E501
        (folder / "deep" / "down").mkdir(parents=True)
        (folder / "deep" / "down" / "report.json").write_text("{}")
        return made

    monkeypatch.setattr(accuracy, "make_variants", make_variants)
    (tmp_path / "out").mkdir()
    return Work(materials, halves, asked)


RECIPE = QuantizationRecipe(smooth_alpha=0.125)


def test_a_recipe_that_is_given_is_used_and_its_losses_are_stated(work: Work, tmp_path: Path) -> None:
    said: list[str] = []
    turned = work.halves.stated_on.hits(tmp_path / "tiny.edgeclip" / "image_encoder" / "turned.onnx")
    made, report = make_bounded(
        ("int8", "int8-cpu"), tmp_path / "out", work.materials, work.halves, max_drop=None, recipe=RECIPE,
        progress=said.append,
    )  # fmt: skip
    ((names, _, given),) = work.asked
    assert (names, given.recipe, given.fp32) == (("int8", "int8-cpu"), RECIPE, work.materials.fp32)
    assert [variant.name for variant in made] == ["int8", "int8-cpu"]
    others = " on the images that its recipe was not chosen on"
    assert said == ["made", f"top-1 of int8{others}", f"top-1 of int8-cpu{others}"]
    assert 0 < turned.sum() < 6
    assert report == QuantizationReport(
        unit=UNIT,
        max_drop=None,
        recipe=RECIPE,
        losses={
            "int8": GraphLoss(bound=100 * loss_bound(0, 0, 6), estimate=0.0, n=6),
            "int8-cpu": top1_loss(work.halves.expected, turned),
        },
        fp32_top1=100.0,
        machine=describe_machine(),
    )
    out = tmp_path / "out"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "deep/down/report.json", "image_encoder/int8-cpu.onnx", "image_encoder/int8.onnx"
    ]  # fmt: skip
    assert {path.name for path in out.iterdir()} == {"deep", "image_encoder"}  # and no draft


def test_the_bound_keeps_the_limit_or_nothing_is_left(work: Work, tmp_path: Path) -> None:
    bound = 100 * loss_bound(0, 0, 6)
    make_bounded(("int8",), tmp_path / "out", work.materials, work.halves, max_drop=bound, recipe=RECIPE)
    (tmp_path / "less").mkdir()
    for names, limit in ((("int8",), 0.99 * bound), (("int8", "int8-cpu"), bound)):
        with pytest.raises(ParityError) as error:
            make_bounded(names, tmp_path / "less", work.materials, work.halves, max_drop=limit, recipe=RECIPE)
        assert str(error.value).startswith(f"expected INT8 within {limit:g} points of top-1 of FP32 on images that")
        told = str(error.value).partition(", got ")[2]
        assert told.startswith(f"{names[-1]} at most ")
        assert told.endswith(": give more images, allow a larger loss (`max_drop`), or stay with fp16 or fp32")
    assert not list((tmp_path / "less").iterdir())
    with pytest.raises(InputError, match="expected `max_drop` or a recipe, got neither"):
        make_bounded(("int8",), tmp_path / "less", work.materials, work.halves, max_drop=None)


def test_a_recipe_is_searched_for_on_the_half_that_it_is_chosen_on(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    found = Trial(recipe=RECIPE, blocks_in_fp32=(), loss=GraphLoss(bound=1.0, estimate=0.0), seconds=1.0)
    result = SearchResult(unit=UNIT, max_loss=60.0, best=found, trials=(found,), blocks=(), stopped=False)

    class Searching:
        def __init__(self, fp32: Path, images: FloatArray, loss: Any, **more: Any) -> None:
            more["progress"]("searching")
            asked.append((fp32, images, loss(tmp_path / "tiny.edgeclip" / "image_encoder" / "turned.onnx"), more))

        def run(self, limit: float) -> SearchResult:
            asked.append(limit)
            return result

    monkeypatch.setattr(accuracy, "Search", Searching)
    said: list[str] = []
    turned = work.halves.chosen_on.hits(tmp_path / "tiny.edgeclip" / "image_encoder" / "turned.onnx")
    _, report = make_bounded(
        ("int8",), tmp_path / "out", work.materials, work.halves, max_drop=60.0, progress=said.append
    )
    (fp32, images, loss, more), limit = asked
    assert (fp32, limit, more["unit"], more["budget_s"]) == (work.materials.fp32, 60.0, UNIT, BUDGET_S)
    assert images is work.materials.images
    assert loss == top1_loss(work.halves.known, turned)
    assert said[:2] == ["searching", "made"]
    assert (report.recipe, report.search, report.max_drop) == (RECIPE, result, 60.0)
    assert work.asked[0][2].recipe == RECIPE
    make_bounded(("int8",), tmp_path / "out", work.materials, work.halves, max_drop=60.0, budget_s=5.0)
    assert asked[2][3]["budget_s"] == 5.0


class Text:
    """Texts as the rows of a table: its three classes' names."""

    def __init__(self, rows: FloatArray) -> None:
        self.rows = rows
        self.asked: list[str] = []

    def encode_text(self, texts: Any) -> FloatArray:
        self.asked += list(texts)
        rows: FloatArray = self.rows[[("a b!", "c!", "d!").index(text) for text in texts]]
        return rows


def asked_for(noise: Set, truth: Any, **changed: Any) -> tuple[Any, AccuracyOptions]:
    """The images with those labels, by decodable file."""
    whole = [path for path, _ in noise.files if path.name != "9.png"]
    files = [(path, int(label)) for path, label in zip(whole, truth, strict=True)]
    classes = make_classes({"a_b": "a b", "c": "c", "d": "d"})
    options: dict[str, Any] = {"max_drop": 60.0} | changed
    return Text(noise.bundle.table().embeddings), AccuracyOptions(files, classes, ("{}!",), **options)


def test_an_export_writes_its_report_or_says_why_there_is_no_int8(
    noise: Set, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fp32, out = work.materials.fp32, tmp_path / "out"
    said: list[str] = []
    truth = labelled(noise)._scores(fp32, "fp32").argmax(axis=1)
    text, options = asked_for(noise, truth)
    given: list[Any] = []
    report = QuantizationReport(unit=UNIT, max_drop=60.0, fp32_top1=9.0)

    def bounded(names: Any, folder: Path, materials: Materials, halves: Halves, **more: Any) -> Any:
        more["progress"]("bounded")
        given.append((names, folder, materials, halves, more["max_drop"], more["recipe"]))
        if given[4:]:
            raise ParityError("it loses too much")
        return ["made"], report

    monkeypatch.setattr(accuracy, "make_bounded", bounded)
    made = make_accurate(("int8",), out, work.materials, text, options, recipe=RECIPE, progress=said.append)
    assert made == ["made"]
    assert sorted(text.asked) == ["a b!", "c!", "d!"]
    assert said == [*(f"reading image {n} of 12" for n in range(1, 13)), "top-1 of fp32 on 12 images", "bounded"]
    ((names, folder, materials, halves, limit, recipe),) = given
    assert (names, folder, limit, recipe) == (("int8",), out, 60.0, RECIPE)
    assert materials is work.materials
    assert (len(halves.chosen_on), int(halves.known.sum()), int(halves.expected.sum())) == (6, 6, 6)
    assert msgspec.json.decode((out / REPORT).read_bytes(), type=QuantizationReport) == report

    (out / REPORT).unlink()
    given += [None] * 3
    with pytest.raises(ParityError, match="it loses too much"):
        make_accurate(("int8",), out, work.materials, text, options, progress=said.append)
    assert not (out / REPORT).exists()
    assert not caplog.records
    text, options = asked_for(noise, truth, left_out=True)
    assert make_accurate(("int8",), out, work.materials, text, options, progress=said.append) == []
    left = QuantizationReport(unit=UNIT, max_drop=60.0, left_out="it loses too much")
    assert msgspec.json.decode((out / REPORT).read_bytes(), type=QuantizationReport) == left
    assert caplog.messages == ["INT8 is left out: it loses too much"]


@pytest.mark.parametrize("few", [True, False])
def test_labels_that_cannot_bound_a_loss_leave_it_to_the_golden_images_unless_they_have_to(
    noise: Set, work: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture, few: bool
) -> None:
    """Too few, or labels that FP32 does not know."""
    caplog.set_level(logging.WARNING, "edgeclip")
    truth = labelled(noise)._scores(work.materials.fp32, "fp32").argmax(axis=1)
    wrong = truth if few else (truth + 1) % 3
    text, options = asked_for(noise, wrong, max_drop=0.3 if few else 60.0)
    (tmp_path / "out" / "image_encoder").mkdir()
    with pytest.raises(InputError):
        make_accurate(("int8",), tmp_path / "out", work.materials, text, options)
    assert not work.asked
    text, options = asked_for(noise, wrong, max_drop=0.3 if few else 60.0, required=False)
    said: list[str] = []
    made = make_accurate(("int8",), tmp_path / "out", work.materials, text, options, progress=said.append)
    assert [variant.name for variant in made] == ["int8"]
    assert work.asked == [(("int8",), tmp_path / "out", work.materials)]
    assert said[-1] == "made"
    told = "at least 2,554 labelled images" if few else "labels that the model knows"
    assert f"what it costs in top-1 is not bounded: expected {told}" in caplog.text
    assert not (tmp_path / "out" / REPORT).exists()
