"""Sets of any form are the same set, embeddings outlive a killed run, and metrics are those of scikit-learn."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from edgeclip import Bundle
from edgeclip.calibration.embeddings import EmbeddingStore, image_embeddings, store_key
from edgeclip.calibration.hashed_images import Item
from edgeclip.errors import EdgeclipError, InputError, PromptError, SourceError
from edgeclip.evaluation.accuracy.report import weakest
from edgeclip.evaluation.data.class_sets import class_prompts, set_templates
from edgeclip.evaluation.data.dataset import open_captioned, open_labelled
from edgeclip.evaluation.data.shift_sets import open_shift_set
from edgeclip.evaluation.statistics.metrics import (
    balanced_accuracy,
    confusions,
    image_to_text_ranks,
    per_class_accuracy,
    predictions,
    recall,
    text_to_image_ranks,
    top_k,
)
from edgeclip.files import cache_dir
from edgeclip.prompts import unit_rows
from edgeclip.runtime.encoder import ImageEncoder
from tests.conftest import WIDTH, add_variant, edit_weight, shared
from tests.tar_shards import write_tar

CLASSES = ("cup", "red kite", "space_rocket")
EACH = 3


def picture(seed: int, side: int = 40) -> bytes:
    """Noise around a colour of its own, as PNG."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, 3) // 2 + rng.integers(0, 128, (side, side, 3))
    stream = io.BytesIO()
    PillowImage.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


# Sets


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same nine images in three classes, in every form."""
    root = tmp_path_factory.mktemp("forms")
    rows = []
    for label, name in enumerate(CLASSES):
        (root / "folder" / name).mkdir(parents=True)
        for index in range(EACH):
            (root / "folder" / name / f"{index}.png").write_bytes(picture(EACH * label + index))
            rows.append((f"folder/{name}/{index}.png", name, label))
    for end, comma in (("csv", ","), ("tsv", "\t")):
        lines = [f"file{comma}label", *(f"{file}{comma}{name}" for file, name, _ in rows)]
        (root / f"set.{end}").write_text("\n".join(lines))
    (root / "set.jsonl").write_text("\n".join(json.dumps({"image": file, "label": name}) for file, name, _ in rows))
    (root / "shards").mkdir()
    (root / "shards" / "classes.json").write_text(json.dumps(CLASSES))
    for part in range(3):
        members = [
            (f"{label}{row}.{end}", data)
            for row, (file, _, label) in enumerate(rows[EACH * part : EACH * part + EACH])
            for end, data in (("png", (root / file).read_bytes()), ("cls", str(label).encode()))
        ]
        write_tar(root / "shards" / f"test-{part}.tar", members)
    members = [
        (f"{row}.{end}", data)
        for row, (file, name, _) in enumerate(rows)
        for end, data in (
            ("png", (root / file).read_bytes()),
            ("cls", name.encode()),
            ("txt", b"a caption is no label"),
        )
    ]
    write_tar(root / "named.tar", members)
    return {
        "ImageFolder": str(root / "folder"),
        "CSV": str(root / "set.csv"),
        "TSV": str(root / "set.tsv"),
        "JSONL": str(root / "set.jsonl"),
        "tars of indices": str(root / "shards" / "test-{0..2}.tar"),
        "a pattern": str(root / "shards" / "*.tar"),
        "a folder of tars": str(root / "shards"),
        "a tar of names": str(root / "named.tar"),
    }


@pytest.mark.parametrize(
    "form", ["CSV", "TSV", "JSONL", "tars of indices", "a pattern", "a folder of tars", "a tar of names"]
)
def test_every_form_is_the_same_set_as_the_folder(forms: dict[str, str], form: str) -> None:
    folder, other = open_labelled(forms["ImageFolder"]), open_labelled(forms[form])
    assert other.folders == folder.folders == CLASSES
    assert other.labels.tolist() == folder.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [item.digest() for item in other.items] == [item.digest() for item in folder.items]
    assert [item.label for item in other.items] == other.labels.tolist()
    assert len({item.key for item in other.items}) == 9
    some = other.items.take([7, 2])
    assert [item.digest() for item in some] == [folder.items[2].digest(), folder.items[7].digest()]
    np.testing.assert_array_equal(other.items[-1].read(), folder.items[8].read())
    assert len(other.items[2:5]) == 3


def test_labels_that_are_numbers_take_names_from_a_file_or_none(forms: dict[str, str], tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps([["mug", "cup"], "kite", "rocket", "moon"]))
    opened = open_labelled(forms["tars of indices"], names)
    assert [item.names for item in opened.classes] == [("mug", "cup"), ("kite",), ("rocket",), ("moon",)]
    table = tmp_path / "set.csv"
    table.write_text(f"file,label\n{forms['ImageFolder']}/cup/0.png,2\n{forms['ImageFolder']}/cup/1.png,10\n")
    with pytest.raises(SourceError, match=r"names of the classes 0 to 10 of .*`names`"):
        open_labelled(table)
    with pytest.raises(InputError, match="got 4 of them"):
        open_labelled(table, names)


def test_samples_without_label_are_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("cup\nkite\n")
    write_tar(tmp_path / "x.tar", [("a.png", picture(1)), ("a.cls", b"1"), ("b.png", picture(2)), ("c.cls", b"0")])
    opened = open_labelled(tmp_path / "x.tar")
    assert (len(opened.items), opened.damaged.count) == (1, 2)
    assert "label missing" in str(opened.damaged)
    assert "no image" in str(opened.damaged)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda root: root / "absent", SourceError, "expected labelled images as .* no such file or folder"),
        (lambda root: root / "set.parquet", SourceError, "none of them"),
        (lambda root: root / "flat", SourceError, "expected one folder a class in .*flat, got none"),
        (lambda root: root / "no-label.csv", SourceError, "expected a column label or class.* got file, text"),
        (lambda root: root / "empty.csv", SourceError, "an empty file"),
        (lambda root: root / "no-label.jsonl", EdgeclipError, "expected a label under label"),
        (
            lambda root: root / "unlabelled.tar",
            SourceError,
            "expected labelled images in .*1 damaged: .*label missing",
        ),
        (lambda root: root / "not-a.tar", EdgeclipError, "not a readable tar"),
    ],
)
def test_what_is_no_labelled_set_is_refused(tmp_path: Path, make, error, message: str) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(picture(0))
    (tmp_path / "set.parquet").write_bytes(b"PAR1")
    (tmp_path / "no-label.csv").write_text("file,text\na.png,x\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "no-label.jsonl").write_text('{"image": "a.png"}\n')
    write_tar(tmp_path / "unlabelled.tar", [("a.png", picture(0))])
    (tmp_path / "not-a.tar").write_bytes(b"hello")
    with pytest.raises(error, match=message):
        open_labelled(make(tmp_path))


def test_captions_of_one_image_belong_together(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(picture(index))
    (tmp_path / "c.csv").write_text("image,caption\n0.png,one\n1.png,two\n0.png,three\n")
    (tmp_path / "c.jsonl").write_text(
        '{"image": "0.png", "captions": ["one", "three"]}\n{"image": "1.png", "captions": ["two"]}\n'
        '{"image": "x.png"}\n'
    )
    write_tar(
        tmp_path / "c.tar",
        [
            ("a.png", picture(0)),
            ("a.json", b'{"captions": ["one", "three"]}'),
            ("b.png", picture(1)),
            ("b.txt", b"two"),
            ("c.png", picture(2)),
        ],
    )
    for name, damaged in (("c.csv", 0), ("c.jsonl", 1), ("c.tar", 1)):
        opened = open_captioned(tmp_path / name)
        said = {(opened.items[row].digest(), text) for row, text in zip(opened.own, opened.captions, strict=True)}
        first, second = (Item("", picture(index)).digest() for index in range(2))
        assert said == {(first, "one"), (first, "three"), (second, "two")}
        assert (len(opened.items), opened.damaged.count) == (2, damaged)
    with pytest.raises(SourceError, match="expected captioned images"):
        open_captioned(tmp_path)


# Names and templates of the usual sets


def test_the_usual_names_fit_folders_by_name_or_by_order(tmp_path: Path) -> None:
    sets = tmp_path / "en_classnames.json"
    sets.write_text(json.dumps({"pets": ["Abyssinian", "beagle"], "imagenet1k": ["tench"] * 1000}))
    assert [item.names for item in class_prompts(["beagle"], sets, class_set="pets")] == [("beagle",)]
    found = class_prompts(["n01", "n02"], sets, class_set="pets")
    assert [(item.label, item.names) for item in found] == [("n01", ("Abyssinian",)), ("n02", ("beagle",))]
    assert class_prompts(["air_plane"], sets, class_set="cifar10")[0].names == ("air plane",)
    composed, apart = (unicodedata.normalize(form, "Löwe") for form in ("NFC", "NFD"))  # as disks and lists spell it
    for folder, name in ((composed, apart), (apart, composed)):
        sets.write_text(json.dumps({"pets": [name, "cat"]}))
        assert [item.names for item in class_prompts([folder], sets, class_set="pets")] == [(name,)]
        sets.write_text(json.dumps({name: "lion"}))
        assert [item.names for item in class_prompts([composed], sets)] == [("lion",)]
    sets.write_text(json.dumps({"pets": ["Abyssinian", "beagle"], "imagenet1k": ["tench"] * 1000}))
    for chosen, message in (("pets", "got the 2 of pets"), ("dogs", "out of pets, imagenet1k")):
        with pytest.raises(InputError, match=message):
            class_prompts(["a", "b", "c"], sets, class_set=chosen)


def test_imagenets_names_and_templates_are_open_clips() -> None:
    open_clip = pytest.importorskip("open_clip")
    folders = [f"{index:03}" for index in range(1000)]
    classes = class_prompts(folders, None, class_set="imagenet")
    assert [item.names[0] for item in classes] == list(open_clip.IMAGENET_CLASSNAMES)
    expected = [template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert [template.replace("{}", "cat") for template in set_templates("", "imagenet")] == expected


@pytest.mark.parametrize("opened_as", [{"class_set": "imagenet"}, {"class_set": "imagenet1k"}, {}])
def test_some_of_imagenets_folders_are_found_by_wordnet_id(tmp_path: Path, opened_as: dict[str, str]) -> None:
    pytest.importorskip("open_clip")
    for index, folder in enumerate(("n03063599", "n01443537", "n04131690")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(picture(index))
    opened = open_labelled(tmp_path, **opened_as) if opened_as else open_shift_set(tmp_path)
    assert [(item.label, item.names) for item in opened.classes] == [
        ("n01443537", ("goldfish",)),
        ("n03063599", ("coffee mug",)),
        ("n04131690", ("salt shaker",)),
    ]
    assert opened.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["coffee mug", "n01443537", "n04131690"], "all called by WordNet id, got 2 ids beside coffee mug"),
        (["n01443537", "n99999999"], "WordNet ids of ImageNet's 1000 classes, got n99999999"),
    ],
)
def test_folders_that_are_imagenets_in_part_only_are_refused(folders: list[str], message: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(InputError, match=message):
        class_prompts(folders, None, class_set="imagenet")


def test_names_of_ones_own_go_before_wordnet_ids(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a fish\na mug\n")
    found = class_prompts(["n01443537", "n03063599"], names, class_set="imagenet")
    assert [item.names for item in found] == [("a fish",), ("a mug",)]


def test_half_of_imagenets_classes_are_scored_among_themselves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_clip = pytest.importorskip("open_clip")
    photographs = sorted(shared("imagenet-sample").glob("n*.jpg"))
    for photograph in photographs:
        (tmp_path / photograph.stem).mkdir()
        (tmp_path / photograph.stem / "0.jpg").symlink_to(photograph)
    with caplog.at_level("WARNING", logger="edgeclip"):
        opened = open_labelled(tmp_path, class_set="imagenet")
    assert len(opened.classes) == len(opened.items) == len(photographs) == 500
    assert set(opened.folders) == {photograph.stem for photograph in photographs}
    assert {name for item in opened.classes for name in item.names} <= set(open_clip.IMAGENET_CLASSNAMES)
    assert dict(zip(opened.folders, (item.names for item in opened.classes), strict=True))["n01440764"] == ("tench",)
    assert "500 of ImageNet's 1000 classes are there: images are scored among these 500" in caplog.text


def test_templates_of_a_set_come_from_its_file(tmp_path: Path) -> None:
    sets = tmp_path / "templates.json"
    sets.write_text(json.dumps({"pets": ["a {c}, a pet."], "cars": ["a {c} of some year"]}))
    assert set_templates(str(sets), "pets") == ("a {}, a pet.",)
    assert set_templates("")[0] == "{}"
    for chosen, message in (("dogs", "out of pets, cars"), ("", "pass `classes`")):
        with pytest.raises(PromptError, match=message):
            set_templates(str(sets), chosen)
    if not any((Path(place) / "clip_benchmark").is_dir() for place in sys.path):
        with pytest.raises(PromptError, match="come with clip_benchmark"):
            set_templates("", "pets")


def test_the_names_of_seventeen_sets_are_read() -> None:
    names, templates = (
        shared("prompts", "en_classnames.json"),
        shared("prompts", "en_zeroshot_classification_templates.json"),
    )
    assert class_prompts([str(index) for index in range(37)], names, class_set="pets")[3].names
    assert len(set_templates(str(templates), "imagenet")) == 80


# Embeddings


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """120 images in two classes, one of them damaged."""
    for index in range(120):
        path = tmp_path / "many" / ("a", "b")[index // 60] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(index, 34))
    (tmp_path / "many" / "b" / "100.png").write_bytes(b"not a picture")
    return tmp_path / "many"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images each call of an encoder took."""
    calls: list[int] = []
    original = ImageEncoder.encode_preprocessed

    def counted(self: ImageEncoder, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(ImageEncoder, "encode_preprocessed", counted)
    return calls


KILLED = """
import os, signal, sys
from edgeclip import Bundle
from edgeclip.evaluation.data.dataset import open_labelled
from edgeclip.calibration.embeddings import image_embeddings

def progress(done, total):
    if done == 64:
        os.kill(os.getpid(), signal.SIGKILL)

image_embeddings(Bundle.open(sys.argv[1]), "fp32", open_labelled(sys.argv[2]).items, progress=progress)
"""


def test_a_killed_run_goes_on_from_where_it_was(
    tiny_bundle: Path, many: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, items = Bundle.open(tiny_bundle), open_labelled(many).items
    expected, _ = image_embeddings(bundle, "fp32", items)
    assert sum(encoded) == 119
    encoded.clear()
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tiny_bundle), str(many)], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    seen: list[tuple[int, int]] = []
    rows, keep = image_embeddings(bundle, "fp32", items, progress=lambda *at: seen.append(at))
    assert sum(encoded) == 119 - 64
    assert seen[-1] == (120, 120)
    assert np.flatnonzero(~keep).tolist() == [100]
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    assert not rows[100].any()


def test_a_spoilt_cache_is_made_again_and_never_trusted(tiny_bundle: Path, many: Path, encoded: list[int]) -> None:
    bundle, items = Bundle.open(tiny_bundle), open_labelled(many).items
    expected, _ = image_embeddings(bundle, "fp32", items)
    path = cache_dir("image-embeddings") / f"{store_key(bundle, 'fp32', 'onnxruntime')}.rows"
    record = 32 + 4 * WIDTH + 16
    spoilt = bytearray(path.read_bytes())
    spoilt[-10 * record + 40] ^= 1  # a bit of one row
    spoilt[-20 * record] ^= 1  # and of another's digest
    path.write_bytes(spoilt[:-7])  # and the last record is torn
    encoded.clear()
    again, _ = image_embeddings(bundle, "fp32", items)
    assert sum(encoded) == 3
    np.testing.assert_allclose(again, expected, atol=1e-6)
    encoded.clear()
    np.testing.assert_array_equal(image_embeddings(bundle, "fp32", items).rows, again)
    assert encoded == []
    path.write_bytes(b"rubbish" * 1000)
    np.testing.assert_allclose(image_embeddings(bundle, "fp32", items).rows, expected, atol=1e-6)


def test_rows_are_of_their_graph_and_their_image(tiny_bundle: Path, many: Path, encoded: list[int]) -> None:
    items = open_labelled(many).items
    image_embeddings(Bundle.open(tiny_bundle), "fp32", items)
    other = add_variant(tiny_bundle, "other", edit_weight("projection", lambda weight: weight[:, ::-1].copy()))
    encoded.clear()
    first, second = (image_embeddings(other, name, items).rows for name in ("fp32", "other"))
    assert sum(encoded) == 119  # those of fp32 are there
    np.testing.assert_allclose(first[:, ::-1], second, atol=1e-6)
    assert store_key(other, "fp32", "openvino") != store_key(other, "fp32", "onnxruntime")
    with pytest.raises(EdgeclipError, match="expected an engine out of"):
        image_embeddings(other, "fp32", items, engine="abacus")
    with pytest.raises(SourceError, match="none of 1 images can be decoded"):
        image_embeddings(other, "fp32", [Item("x", b"hello")])


def test_a_store_that_cannot_be_written_keeps_nothing_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    store = EmbeddingStore(Path("/proc/nothing/x.rows"), 4, "ab" * 32)
    for _ in range(2):
        store.add(["11" * 32], np.ones((1, 4), np.float32))
    assert store.get("11" * 32) is None
    assert [record.getMessage().count("not kept in the cache") for record in caplog.records] == [1]


def test_two_writers_share_a_store(tmp_path: Path) -> None:
    key, rows = "ab" * 32, np.eye(4, dtype=np.float32)
    first, second = (EmbeddingStore(tmp_path / "x.rows", 4, key) for _ in range(2))
    first.add(["00" * 32], rows[:1])
    second.add(["11" * 32], rows[1:2])
    first.add(["22" * 32], rows[2:3])
    for store in (first, EmbeddingStore(tmp_path / "x.rows", 4, key)):
        np.testing.assert_array_equal(store.get("22" * 32), rows[2])
    assert EmbeddingStore(tmp_path / "x.rows", 4, "cd" * 32).get("11" * 32) is None


# Metrics


@pytest.fixture(scope="module")
def guesses() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit embeddings of 1,500 images, class rows that some are near, and the true classes; class 3 has no image."""
    rng = np.random.default_rng(0)
    classes = unit_rows(rng.standard_normal((9, 16)).astype(np.float32))
    truth = rng.choice([0, 1, 2, 4, 5, 6, 7, 8], 1500, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05])
    return unit_rows(classes[truth] + 0.6 * rng.standard_normal((1500, 16)).astype(np.float32)), classes, truth


def test_metrics_are_scikit_learns(guesses: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    images, classes, truth = guesses
    labels = [f"class {index}" for index in range(9)]
    found = predictions(images, classes, truth)
    right = found.predicted == truth
    assert (right == (found.ranks == 0)).all()
    for k in (1, 5):
        expected = metrics.top_k_accuracy_score(truth, images @ classes.T, k=k, labels=range(9))
        assert top_k(found.ranks, k).value == pytest.approx(expected)
    balanced = balanced_accuracy(truth, right)
    assert balanced.value == pytest.approx(metrics.balanced_accuracy_score(truth, found.predicted))
    assert balanced.ci95[0] < balanced.value < balanced.ci95[1]
    matrix = metrics.confusion_matrix(truth, found.predicted, labels=range(9))
    each = per_class_accuracy(truth, right, labels)
    assert each[3].accuracy is None
    assert [item.hits for item in each] == matrix.diagonal().tolist()
    seen = [index for index in range(9) if index != 3]
    recalls = metrics.recall_score(truth, found.predicted, labels=seen, average=None)
    assert [each[index].accuracy for index in seen] == pytest.approx(recalls)
    wrong = matrix - np.diag(matrix.diagonal())
    pairs = confusions(truth, found.predicted, labels, most=100)
    assert {(pair.truth, pair.predicted): pair.count for pair in pairs} == {
        (labels[a], labels[b]): wrong[a, b] for a, b in np.argwhere(wrong)
    }
    assert [pair.count for pair in pairs] == sorted((pair.count for pair in pairs), reverse=True)
    assert pairs[0].share == pytest.approx(pairs[0].count / matrix.sum(axis=1)[labels.index(pairs[0].truth)])
    assert weakest(each, 1)[0].accuracy == pytest.approx(recalls.min())


def test_a_tie_is_a_miss_whoever_asks() -> None:
    rows = np.ones((1, 4), np.float32) / 2
    found = predictions(rows, np.repeat(rows, 3, axis=0), np.array([0]))
    assert (found.ranks.tolist(), found.predicted.tolist()) == ([2], [1])


def test_the_balanced_interval_covers_as_it_says() -> None:
    """Over 1,000 sets of 12 images a class, the true mean lies in the interval about 95 times of 100."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0, 1, 20)
    truth = np.repeat(np.arange(20), 12)
    held = 0
    for _ in range(1000):
        low, high = balanced_accuracy(truth, rng.random(240) < shares[truth]).ci95
        held += low <= shares.mean() <= high
    assert 0.92 < held / 1000 < 0.98


def test_retrieval_is_what_sorting_finds() -> None:
    rng = np.random.default_rng(1)
    images = unit_rows(rng.standard_normal((60, 8)).astype(np.float32))
    own = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    captions = unit_rows(images[own] + 0.5 * rng.standard_normal((len(own), 8)).astype(np.float32))
    forward, back = text_to_image_ranks(captions, images, own), image_to_text_ranks(captions, images, own)
    for k in (1, 5, 10):
        nearest = np.argsort(-(captions @ images.T), axis=1)[:, :k]
        assert (forward < k).mean() == pytest.approx((nearest == own[:, None]).any(axis=1).mean())
        nearest = np.argsort(-(images @ captions.T), axis=1)[:, :k]
        assert (back < k).mean() == pytest.approx((own[nearest] == np.arange(60)[:, None]).any(axis=1).mean())
    found = recall(forward, own)
    for k, share in ((1, found.r1), (5, found.r5), (10, found.r10)):
        assert share == pytest.approx((forward < k).mean())
    assert found.r1_ci95[0] < found.r1 < found.r1_ci95[1]
    with pytest.raises(InputError, match="none of 1 of them"):
        image_to_text_ranks(captions[own != 7], images, own[own != 7])


def test_captions_that_fail_together_widen_the_interval() -> None:
    hit = np.repeat(np.arange(100) % 2, 5)  # five captions an image, all found or none
    together, alone = recall(hit, np.repeat(np.arange(100), 5)), recall(hit)
    assert together.r1 == alone.r1 == 0.5
    wide, narrow = (item.r1_ci95[1] - item.r1_ci95[0] for item in (together, alone))
    assert wide == pytest.approx(narrow * 5**0.5, rel=0.1)


# The whole way


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an architecture of open_clip's that is built and exported in seconds."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("configs")
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    path = folder / "ViT-edgeclip-test.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    yield path.stem
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    open_clip.factory._rescan_model_configs()


def test_logits_and_predictions_are_open_clips_own(tiny_clip: str, tmp_path: Path) -> None:
    """On images that need no resize, so that both sides see the same pixels."""
    import open_clip
    import torch

    from edgeclip.evaluation.accuracy.zeroshot import evaluate_set
    from edgeclip.export.bundle import export_bundle
    from edgeclip.export.photographs import photographs
    from edgeclip.export.prompt_table import table_for_bundle
    from edgeclip.training.towers.open_clip import OpenClipModel

    names = ["cat", "rocket", "cup", "kite", "red chair", "dog", "old house", "tree", "ship", "lamp", "pan", "sea lion"]
    templates = ("a photo of a {}.", "{} in a room", "{}")
    photos = photographs()
    for row in range(48):
        path = tmp_path / "data" / names[row % 12].replace(" ", "_") / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(row, 32))
    bundle = export_bundle(OpenClipModel(tiny_clip, seed=3), tmp_path / "b.edgeclip", photos=photos)
    data = open_labelled(tmp_path / "data")

    torch.manual_seed(3)
    model, _, transform = open_clip.create_model_and_transforms(tiny_clip)
    model.eval()
    with torch.no_grad():
        spoken = [name.replace("_", " ") for name in data.folders]
        weights = open_clip.build_zero_shot_classifier(model, open_clip.get_tokenizer(tiny_clip), spoken, templates)
        pixels = torch.stack([transform(PillowImage.fromarray(item.read())) for item in data.items])
        expected = (model.logit_scale.exp() * model.encode_image(pixels, normalize=True) @ weights).numpy()  # (N, C)

    table = table_for_bundle(bundle, data.classes, templates, name="t")
    rows, _ = image_embeddings(bundle, "fp32", data.items)
    logits = bundle.manifest.encoder.logit_scale * rows @ table.embeddings.T
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert len(set(expected.argmax(axis=1).tolist())) > 1
    found = predictions(rows, table.embeddings, data.labels)
    assert found.predicted.tolist() == expected.argmax(axis=1).tolist()
    own = expected[np.arange(48), data.labels]
    assert found.ranks.tolist() == (expected > own[:, None]).sum(axis=1).tolist()
    (result,) = evaluate_set(bundle, data, templates=templates)
    assert result.top1 == (expected.argmax(axis=1) == data.labels).mean()


def test_the_command_measures_accuracy_and_retrieval_of_several_variants(
    photographs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from edgeclip.cli import app

    photographs = {"cat": "chelsea.jpg", "motorcycle": "motorcycle.png", "space_rocket": "rocket.jpg"}
    table, captions, written = tmp_path / "set.csv", tmp_path / "captions.jsonl", tmp_path / "out.json"
    lines = [f"{photographs_dir / file},{name}" for name, file in photographs.items()]
    table.write_text("\n".join(["file,label", *lines]))
    captions.write_text(
        "".join(
            json.dumps({"image": str(photographs_dir / file), "captions": [f"a {name}", f"this is a {name}"]}) + "\n"
            for name, file in photographs.items()
        )
    )
    variants = ["--variant", "fp32", "--variant", "int8-cpu"]
    sets = ["--data", str(table), "--captions", str(captions)]
    done = CliRunner().invoke(app, ["eval", "starter", *sets, *variants, "--json", str(written)])
    assert done.exit_code == 0, done.output
    for said in ("top-1 1.000", "balanced", "int8-cpu beside fp32: +0.00", "weakest classes", "text → image", "R@10"):
        assert said in done.output
    found = json.loads(written.read_text())
    assert (found["top1"], found["top5"], found["n"], found["balanced_accuracy"]) == (1.0, 1.0, 3, 1.0)
    assert found["ci95"] == pytest.approx([0.4385, 1.0], abs=1e-4)
    assert [item["label"] for item in found["per_class"]] == sorted(photographs)
    assert found["retrieval"]["text_to_image"]["n"] == 6
    assert [other["variant"] for other in found["others"]] == ["int8-cpu"]
    assert found["others"][0]["retrieval"]["image_to_text"]["r1"] == 1.0
    done = CliRunner().invoke(app, ["eval", "starter", "--captions", str(captions), "--json", str(written)])
    assert json.loads(written.read_text()).keys() == {"retrieval"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected data, captions or both"),
        (["--data", "DATA", "--variant", "int3"], "has no variant 'int3'"),
        (["--data", "DATA", "--engine", "abacus"], "expected an engine out of"),
        (["--captions", "DATA"], "expected captioned images"),
        (["--data", "DATA", "--classes", "imagenet"], "expected names for 2 classes"),
        (["--data", "DATA", "--names", "absent.json"], "absent.json"),
    ],
)
def test_the_command_refuses_in_a_sentence(many: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    from typer.testing import CliRunner

    from edgeclip.cli import app

    written = tmp_path / "out.json"
    given = [str(many) if argument == "DATA" else argument for argument in arguments]
    done = CliRunner().invoke(app, ["eval", "starter", *given, "--json", str(written)])
    assert isinstance(done.exception, EdgeclipError)
    assert message in str(done.exception)
    assert not written.exists()
