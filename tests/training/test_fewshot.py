"""A few labelled images improve a table, never at zero-shot's cost; the runtime scores it as any other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgeclip import Bundle, EncoderSpec, PreprocessSpec, PromptTable, make_classes
from edgeclip.errors import EdgeclipError, InputError, TableError
from edgeclip.key_cache import KeyCache
from edgeclip.prompts import unit_rows
from edgeclip.runtime.images import write_image
from edgeclip.runtime.scoring import Scorer
from edgeclip.runtime.tables import TableSet
from tests.conftest import make_table, shared, write_two_colours

pytest.importorskip("torch")

from edgeclip.calibration.embeddings import image_embeddings
from edgeclip.calibration.hashed_images import files as image_files
from edgeclip.training.adapt.curve import CurveOptions, draw_curve, split
from edgeclip.training.adapt.fewshot import METHODS, Method, MethodSetting, adapt, cross_validate
from edgeclip.training.adapt.linear_probe import Shots, class_means, fit_rows

WIDTH, CLASSES = 16, 6
_PREPROCESS = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SOFTMAX = EncoderSpec(preprocess=_PREPROCESS, embedding_dim=WIDTH, logit_scale=20.0)
SIGMOID = EncoderSpec(preprocess=_PREPROCESS, embedding_dim=WIDTH, logit_scale=20.0, logit_bias=-10.0, score="sigmoid")


def world(*, text: float, images: int = 12, noise: float = 0.25, seed: int = 0) -> tuple[PromptTable, Shots]:
    """Classes with a direction each; images scatter around it by ``noise``, and the text rows miss it by ``text``."""
    chooser = np.random.default_rng(seed)
    centres = unit_rows(chooser.standard_normal((CLASSES, WIDTH)).astype(np.float32))
    scatter = noise * chooser.standard_normal((CLASSES, images, WIDTH)).astype(np.float32)
    embeddings = unit_rows((centres[:, None] + scatter).reshape(-1, WIDTH))
    rows = unit_rows(centres + text * chooser.standard_normal((CLASSES, WIDTH)).astype(np.float32))
    classes = make_classes([f"class {index}" for index in range(CLASSES)])
    table = PromptTable("shelf", classes, rows, ("{}",), "m" * 16)
    return table, Shots(embeddings, np.repeat(np.arange(CLASSES), images))


def top1(table: PromptTable, images: Shots, encoder: EncoderSpec = SOFTMAX) -> float:
    return float((Scorer(table, encoder).scores(images.embeddings).argmax(axis=1) == images.labels).mean())


def keys(count: int = 5, *, width: int = WIDTH, classes: int = 3, seed: int = 0) -> KeyCache:
    chooser = np.random.default_rng(seed)
    rows = unit_rows(chooser.standard_normal((count, width)).astype(np.float32))
    return KeyCache(rows, chooser.integers(0, classes, count), alpha=1.7, beta=3.1)


# --- tables with keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_keys_are_scored_as_the_paper_has_it(encoder: EncoderSpec) -> None:
    table = dataclasses.replace(make_table(model_id="m"), cache=keys())
    assert table.cache is not None
    embeddings = unit_rows(np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32))
    before = embeddings.copy()
    affinity = np.exp(-3.1 * (1 - embeddings @ table.cache.keys.T))  # (N, K)
    logits = encoder.logit_scale * embeddings @ table.embeddings.T + 1.7 * affinity @ np.eye(3)[table.cache.labels]
    if encoder.score == "softmax":
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    else:
        expected = 1 / (1 + np.exp(-(logits + encoder.logit_bias)))
    np.testing.assert_allclose(Scorer(table, encoder).scores(embeddings), expected, atol=1e-5)
    np.testing.assert_array_equal(embeddings, before)


def test_a_table_with_keys_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    table = dataclasses.replace(make_table(model_id="m"), cache=keys(), adapted="tip-adapter, 2 shots a class")
    table.save(tmp_path / "t.safetensors")
    loaded = PromptTable.load(tmp_path / "t.safetensors")
    assert loaded.cache is not None
    assert table.cache is not None
    assert loaded.content_hash == table.content_hash
    assert (loaded.adapted, loaded.cache.alpha, loaded.cache.beta) == (table.adapted, 1.7, 3.1)
    np.testing.assert_array_equal(loaded.cache.keys, table.cache.keys)
    np.testing.assert_array_equal(loaded.cache.labels, table.cache.labels)


def test_a_plain_table_keeps_the_hash_that_it_always_had() -> None:
    # As written by the release before tables could hold keys.
    plain = make_table(model_id="m")
    content = [[["cat", "cat"], ["rocket", "rocket"], ["cup", "cup", "mug"]], ["a photo of a {}."], "m"]
    assert plain.content_hash == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    for entry in (bundle := Bundle.open("starter")).manifest.tables:
        assert bundle.table(entry.name).content_hash == entry.content_hash


def test_the_hash_covers_keys_and_fitted_rows() -> None:
    plain = make_table(model_id="m")
    adapted = dataclasses.replace(plain, adapted="zs-probe")
    other_rows = dataclasses.replace(adapted, embeddings=make_table(model_id="m", seed=1).embeddings)
    with_keys = dataclasses.replace(plain, cache=keys())
    other_keys = dataclasses.replace(plain, cache=keys(seed=1))
    stronger = dataclasses.replace(plain, cache=dataclasses.replace(keys(), alpha=2.0))
    tables = (plain, adapted, other_rows, with_keys, other_keys, stronger)
    assert len({table.content_hash for table in tables}) == len(tables)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"keys": 2 * keys().keys}, "unit length"),
        ({"keys": keys().keys.astype(np.float64)}, "float32"),
        ({"labels": np.zeros(4, np.int64)}, "label for each"),
        ({"labels": np.full(5, 3)}, "rows 0 to 2"),
        ({"keys": keys(width=8).keys}, f"width {WIDTH}"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": 0.0}, "beta"),
        ({"alpha": float("nan")}, "alpha"),
        ({"keys": np.zeros((0, WIDTH), np.float32), "labels": np.zeros(0, np.int64)}, "at least one"),
    ],
)
def test_unusable_keys_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(TableError, match=says):
        dataclasses.replace(make_table(model_id="m"), cache=dataclasses.replace(keys(), **change))  # type: ignore[arg-type]


def test_altered_keys_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "t.safetensors"
    dataclasses.replace(make_table(model_id="m"), cache=keys()).save(path)
    with safe_open(path, framework="np") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    tensors["cache_labels"] = (tensors["cache_labels"] + 1) % 3
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(TableError, match="content hash"):
        PromptTable.load(path)
    del metadata["cache_alpha"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(TableError, match="cache_alpha"):
        PromptTable.load(path)


def test_a_running_stream_takes_a_table_with_keys(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    tables = TableSet(bundle, [bundle.table()])
    embedding = keys().keys[:1]
    before = int(tables.current()[0].scores(embedding).argmax())
    wanted = (before + 1) % 3
    certain = dataclasses.replace(keys(), labels=np.full(5, wanted), alpha=1000.0)
    tables.replace("things", dataclasses.replace(bundle.table(), cache=certain))
    assert int(tables.current()[0].scores(embedding).argmax()) == wanted


# --- methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("encoder", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_shots_make_up_for_poor_text(method: str, encoder: EncoderSpec) -> None:
    table, images = world(text=0.5, images=40)
    shots, test = (
        images.take(np.flatnonzero(np.arange(240) % 40 < 8)),
        images.take(np.flatnonzero(np.arange(240) % 40 >= 8)),
    )
    adapted = adapt(table, shots, encoder, method)
    assert top1(adapted.table, test, encoder) > top1(table, test, encoder) + 0.1
    assert adapted.top1 is not None
    assert adapted.zero_shot_top1 is not None
    assert adapted.top1 > adapted.zero_shot_top1
    assert adapted.table.adapted.startswith(f"{method}, 8 shots a class")
    np.testing.assert_allclose(np.linalg.norm(adapted.table.embeddings, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.from_text])
@pytest.mark.parametrize("shots", [1, 2, 4])
def test_few_scattered_shots_do_not_spoil_good_text(method: str, shots: int) -> None:
    """The text rows are the classes' true directions, which nothing can better; the shots lie far around them."""
    differences = []
    for seed in range(3):
        table, images = world(text=0.0, images=40, noise=0.5, seed=seed)
        few = np.arange(240) % 40 < shots
        before, after = images.take(np.flatnonzero(few)), images.take(np.flatnonzero(~few))
        differences.append(top1(adapt(table, before, SOFTMAX, method).table, after) - top1(table, after))
    assert np.mean(differences) > -0.03


def at(*degrees: float) -> np.ndarray:
    """Unit rows (N, 2) float32 in these directions."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("lost", "won", "taken"),
    [(0, 0, 1), (1, 0, 1), (2, 0, 0), (4, 0, 0), (4, 3, 1), (0, 3, 1)],  # of n that differ, √n more lost are chance
)
def test_what_is_worse_than_zero_shot_beyond_chance_is_not_taken(lost: int, won: int, taken: int) -> None:
    """Text rows that are right by little beside rows that are surer, and so of less loss, but wrong about some."""
    images = at(*[0] * 8, *[40] * lost, *[90] * 8, *[30] * won)
    shots = Shots(images, np.repeat([0, 1], [8 + lost, 8 + won]))
    text = PromptTable("t", make_classes(["a", "b"]), at(44, 46), ("{}",), "m" * 16)
    surer = dataclasses.replace(text, embeddings=at(15, 25))
    encoder = EncoderSpec(preprocess=_PREPROCESS, embedding_dim=2, logit_scale=20.0)
    method = Method(lambda *_: [text, surer], METHODS["zs-probe"].settings, METHODS["zs-probe"].one_shot)
    settings = [MethodSetting(), MethodSetting(pull=1.0)]
    count = len(images)
    found = cross_validate(method, text, shots, encoder, settings)
    assert found == (taken, pytest.approx((count - (lost if taken else won)) / count), pytest.approx(1 - won / count))
    freely = dataclasses.replace(method, from_text=False)
    assert cross_validate(freely, text, shots, encoder, settings)[0] == 1


@pytest.mark.parametrize("method", METHODS)
def test_without_shots_the_table_stays_as_it_is(method: str) -> None:
    table, images = world(text=0.3)
    assert adapt(table, images.take(np.empty(0, np.intp)), SOFTMAX, method).table is table


def test_one_shot_a_class_takes_the_fixed_setting() -> None:
    table, images = world(text=0.3)
    adapted = adapt(table, images.take(np.arange(CLASSES) * 12), SOFTMAX, "zs-probe")
    assert adapted.setting.pull == 1.0
    assert adapted.top1 is None


def test_classes_without_shots_keep_their_place() -> None:
    """Two of six classes have shots, and a background row none at all: they can still be seen."""
    table, images = world(text=0.0)
    table = dataclasses.replace(table, background=("class 5",))
    some = images.take(np.flatnonzero(images.labels < 2))
    adapted = adapt(table, some, SOFTMAX, "zs-probe").table
    rest = images.take(np.flatnonzero(images.labels >= 2))
    assert top1(adapted, rest) > 0.8
    assert adapted.background == ("class 5",)


def test_the_pull_leads_from_the_text_rows_to_the_shots() -> None:
    table, images = world(text=0.6)
    found = fit_rows(table.embeddings, images, SOFTMAX, [float("inf"), 10.0, 1.0, 0.1])
    away = [float(np.square(rows - table.embeddings).sum()) for rows in found]
    assert away[0] < 1e-9
    assert away == sorted(away)
    means = class_means(images, CLASSES)
    assert np.square(found[-1] - means).sum() < np.square(found[0] - means).sum()


def test_tip_adapter_keeps_the_shots_and_its_tuned_form_moves_them() -> None:
    table, images = world(text=0.6, images=8, noise=0.5)
    kept = adapt(table, images, SOFTMAX, "tip-adapter").table.cache
    assert kept is not None
    np.testing.assert_array_equal(kept.keys, images.embeddings)
    moved = METHODS["tip-adapter-f"]
    settings = moved.settings(table, images, SOFTMAX, 0)
    tables = moved.fit(table, images, SOFTMAX, settings)
    assert tables[0].cache is None  # zero-shot is among the choices
    caches = [item.cache for item in tables[1:]]
    distances = [float(np.square(cache.keys - images.embeddings).sum()) for cache in caches if cache]
    assert distances[0] < 1e-9 < distances[-1]


def test_what_cannot_be_adapted_is_refused() -> None:
    table, images = world(text=0.3)
    with pytest.raises(InputError, match="zs-probe"):
        adapt(table, images, SOFTMAX, "zsprobe")
    with pytest.raises(InputError, match="0 to 5"):
        adapt(table, Shots(images.embeddings, images.labels + 1), SOFTMAX, "probe")
    with pytest.raises(InputError, match="adapted before"):
        adapt(adapt(table, images, SOFTMAX, "zs-probe").table, images, SOFTMAX, "zs-probe")


# --- the curve --------------------------------------------------------------------------------------------------


def test_the_curve_tests_on_images_that_no_method_saw() -> None:
    labels = np.repeat(np.arange(3), (14, 30, 5))
    pools: list[set[int]] = []
    for shots in (1, 4, 10):
        chosen, test = split(labels, shots, largest=10, seed=3)
        assert not set(chosen) & set(test)
        assert np.bincount(labels[test]).tolist() == [4, 20, 2]
        pools.append(set(chosen.tolist()))
    assert pools[0] < pools[1] < pools[2]
    assert np.bincount(labels[split(labels, 10, largest=10, seed=3)[0]]).tolist() == [10, 10, 3]


def test_the_curve_rises_and_is_never_below_zero_shot() -> None:
    table, images = world(text=0.4, images=20)
    curve = draw_curve(table, images, SOFTMAX, CurveOptions(shots=(0, 1, 4, 16), seeds=3))
    assert curve.most_shots == 15
    assert [point.shots for point in curve.of("zs-probe")] == [0, 1, 4, 15]  # 16 are not there
    assert [point.shots for point in curve.of("probe")] == [1, 4, 15]  # without text there is nothing to begin with
    assert not curve.below_zero_shot()
    first, last = curve.of("zs-probe")[0], curve.of("zs-probe")[-1]
    assert first.gain == 0
    assert last.top1 > first.top1
    zero_shot = np.array(first.by_seed)
    for point in curve.points:  # half a width of Student's interval of three is 4.3027 standard errors
        for values, mean, low, high in (
            (np.array(point.by_seed), point.top1, point.low, point.high),
            (np.array(point.by_seed) - zero_shot, point.gain, point.gain_low, point.gain_high),
        ):
            assert mean == pytest.approx(values.mean())
            half = 4.3027 * values.std(ddof=1) / 3**0.5
            assert (low, high) == (pytest.approx(mean - half, abs=1e-5), pytest.approx(mean + half, abs=1e-5))
    assert last.high > last.low


def test_a_curve_needs_seeds_and_images() -> None:
    table, images = world(text=0.4)
    with pytest.raises(InputError, match="one seed has no band"):
        draw_curve(table, images, SOFTMAX, CurveOptions(seeds=1))
    lonely = images.take(np.flatnonzero((images.labels != 2) | (np.arange(72) == 24)))
    with pytest.raises(InputError, match="two images of each class"):
        draw_curve(table, lonely, SOFTMAX)


# --- with a bundle ----------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two classes that a random encoder tells apart: red and blue, six images each, one of them damaged."""
    write_two_colours(tmp_path / "images", {"red thing": (220, 20, 20), "blue thing": (20, 20, 220)})
    (tmp_path / "images" / "red thing" / "5.png").write_bytes(b"not a picture")
    return tmp_path / "images"


def test_embeddings_are_of_their_files_and_damaged_ones_are_marked(tiny_bundle: Path, labelled: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    files = sorted(labelled.rglob("*.png"))
    first, keep = image_embeddings(bundle, "fp32", image_files(files))
    assert keep.tolist() == [file.parent.name != "red thing" or file.stem != "5" for file in files]
    np.testing.assert_allclose(np.linalg.norm(first[keep], axis=1), 1, atol=1e-5)
    write_image(files[0], np.zeros((40, 40, 3), np.uint8))
    changed, _ = image_embeddings(bundle, "fp32", image_files(files))
    assert not np.allclose(changed[0], first[0])
    np.testing.assert_array_equal(changed[1:], first[1:])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name", "t"], "read-only"),
        ([], "--name"),
        (["--name", "t", "--curve", "c"], "one of them"),
        (["--name", "t", "-o", "t.safetensors", "--method", "tip"], "tip-adapter"),
        (["--name", "t", "-o", "t.safetensors", "--shots", "-1"], "0 (all there are)"),
        (["--name", "../t", "-o", "t.safetensors"], "table name"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], says: str, labelled: Path) -> None:
    from edgeclip.cli import app

    result = CliRunner().invoke(app, ["fewshot", "starter", "--data", str(labelled), *arguments])
    assert isinstance(result.exception, EdgeclipError)
    assert says in str(result.exception)


@pytest.mark.slow
def test_the_recipe_makes_a_table_and_a_curve(tmp_path: Path, labelled: Path) -> None:
    from edgeclip.cli import app

    recipe = str(Path(__file__).resolve().parents[2] / "recipes" / "fewshot.yaml")
    command = ["train", recipe, "--set", f"data={labelled}", "--set", "curve.seeds=2", "-o", str(tmp_path / "run")]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert '"method": "zs-probe"' in run.output  # the recipe is printed in full
    assert PromptTable.load(tmp_path / "run" / "fewshot.safetensors").labels == ("blue thing", "red thing")
    assert (tmp_path / "run" / "curve.png").is_file()
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, InputError)
    wrong = CliRunner().invoke(app, ["train", recipe, "--set", "metod=probe"])
    assert "did you mean `method`" in str(wrong.exception)


@pytest.mark.slow
def test_the_command_adds_a_table_that_labels_and_draws_the_curve(tmp_path: Path) -> None:
    """On the starter and three real classes: the table is used by the runtime as any other, the plot is a picture."""
    import shutil

    from edgeclip.cli import app

    data = tmp_path / "data"
    for name in ("Faces", "Motorbikes", "watch"):
        if (source := shared("caltech101") / name).is_dir():
            shutil.copytree(source, data / name)
    bundle = tmp_path / "shop.edgeclip"
    shutil.copytree(Bundle.open("starter").path, bundle)
    command = ["fewshot", str(bundle), "--data", str(data)]
    run = CliRunner().invoke(app, [*command, "--shots", "4", "--method", "tip-adapter-f", "--name", "shelf"])
    assert run.exit_code == 0, run.output
    table = Bundle.open(bundle).table("shelf")
    assert table.adapted.startswith("tip-adapter-f, 4 shots a class")
    run = CliRunner().invoke(app, [*command, "--curve", str(tmp_path / "report"), "--seeds", "2"])
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "report" / "curve.json").read_text())
    assert {point["method"] for point in report["curve"]["points"]} == set(METHODS)
    assert (tmp_path / "report" / "curve.png").read_bytes().startswith(b"\x89PNG")
