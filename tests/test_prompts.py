"""Class names × templates become unit rows; unusable input is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from edgeclip import Bundle, PromptTable, load_templates, make_classes, parse_classes
from edgeclip.cli.bundle import print_card
from edgeclip.errors import PromptError, TableError
from edgeclip.key_cache import KeyCache
from edgeclip.prompts import FloatArray, PromptClass, alike_rows, encode_table, name_alike
from tests.conftest import make_table


class HashEncoder:
    """A deterministic text encoder: equal texts get equal vectors, of any length."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        self.batches.append(list(texts))
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        return np.stack([3.0 * np.random.default_rng(seed).standard_normal(8) for seed in seeds]).astype(np.float32)


def _by_the_book(texts: Sequence[str]) -> FloatArray:
    rows = HashEncoder().encode_text(texts)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_rows_are_normalised_averaged_and_normalised_again() -> None:
    classes = make_classes(["cat", "cup | coffee mug"])
    templates = ["a photo of a {}.", "{}"]
    table = encode_table(HashEncoder(), classes, templates, name="t", model_id="0" * 16, batch_size=3)
    np.testing.assert_allclose(table.embeddings[0], _by_the_book(["a photo of a cat.", "cat"]), atol=1e-6)
    synonyms = ["a photo of a cup.", "cup", "a photo of a coffee mug.", "coffee mug"]
    np.testing.assert_allclose(table.embeddings[1], _by_the_book(synonyms), atol=1e-6)
    assert table.embeddings.dtype == np.float32


def test_each_distinct_prompt_is_encoded_once_in_full_batches() -> None:
    encoder = HashEncoder()
    classes = make_classes({"cat": ["cat", "animal"], "dog": ["dog", "animal"]})
    encode_table(encoder, classes, ["{}", "a {}"], name="t", model_id="m", batch_size=4)
    texts = [text for batch in encoder.batches for text in batch]
    assert len(texts) == len(set(texts)) == 6
    assert [len(batch) for batch in encoder.batches] == [4, 2]


def rows_of(vectors: Sequence[Sequence[float]], labels: Sequence[str]) -> PromptTable:
    rows = np.array(vectors, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return PromptTable("t", make_classes(labels), rows, ("{}",), "0" * 16)


def test_classes_whose_rows_are_equal_are_named(caplog: pytest.LogCaptureFixture) -> None:
    name_alike(rows_of([[1, 0], [0, 1], [1, 0.01], [1, 0.1]], ["mug", "cat", "cup", "mugs"]))
    assert [record.getMessage() for record in caplog.records] == [
        "table t: the model cannot tell these classes apart, their rows are equal: 'mug', 'cup'"
    ]


@pytest.mark.parametrize(
    "labels",
    [("mug", "Mug"), ("caf\u00e9", "cafe\u0301"), ("mug", "mug\u200b"), ("\u2764", "\u2764\ufe0f"), ("ﬁn", "fin")],
)
def test_labels_that_look_the_same_are_named_so_that_they_differ(
    caplog: pytest.LogCaptureFixture, labels: tuple[str, str]
) -> None:
    name_alike(rows_of([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [*labels, "cat"]))
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith(f"look the same: {labels[0]!a}, {labels[1]!a}")


def test_a_table_whose_rows_are_all_equal_is_refused() -> None:
    with pytest.raises(PromptError, match=r"all 3 classes of 't' get the same row \('mug', 'cup', 'cat'\)"):
        name_alike(rows_of([[1, 0], [1, 0.001], [1, 0.002]], ["mug", "cup", "cat"]))
    name_alike(rows_of([[1, 0]], ["mug"]))  # one alone is no matter


def test_many_rows_are_compared_in_blocks() -> None:
    rows = np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[2900], rows[1100] = rows[5], rows[6]
    assert alike_rows(rows) == [[5, 2900], [6, 1100]]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("mug, bottle,phone", ("mug", "bottle", "phone")),
        ("cell  phone | smartphone", ("cell phone",)),
        ("Straße, 茶碗", ("Straße", "茶碗")),
        (f"{'x' * 300}, b", ("x" * 300, "b")),  # longer than a file name can be
    ],
)
def test_classes_from_text(text: str, labels: tuple[str, ...]) -> None:
    assert tuple(item.label for item in parse_classes(text)) == labels


def test_classes_from_files(tmp_path: Path) -> None:
    lines = tmp_path / "classes.txt"
    lines.write_text("# kitchen\nmug | cup\n\nchair, folding\nC#\n")
    assert [item.names for item in parse_classes(str(lines))] == [("mug", "cup"), ("chair, folding",), ("C#",)]
    objects = tmp_path / "classes.json"
    objects.write_text(json.dumps({"mug": ["cup", "mug"], "phone": []}))
    assert [(item.label, item.names) for item in parse_classes(str(objects))] == [
        ("mug", ("cup", "mug")),
        ("phone", ("phone",)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("bom.txt", "\ufeffmug\nbottle\n", ["mug", "bottle"]),
        ("bom.json", '\ufeff["mug", "bottle"]', ["mug", "bottle"]),
        ("coco.names", "person\ntraffic light\n", ["person", "traffic light"]),
        ("coco.csv", "id,name,supercategory\n1,person,person\n10,traffic light,outdoor\n", ["person", "traffic light"]),
        ("numbered.csv", "0,person\n1,bicycle\n", ["person", "bicycle"]),
        ("excel.csv", '\ufeff"Class";"Id"\r\n"C#; or D";"1"\r\n', ["C#; or D"]),
        ("one.csv", "person\nbicycle\n", ["person", "bicycle"]),
        ("tabs.tsv", "1\tperson\n2\tcar\n", ["person", "car"]),
        ("data.yaml", "train: images\nnc: 2\nnames: ['person', 'car']\n", ["person", "car"]),
        ("mapped.yaml", "path: x\nnames:\n  10: car\n  2: dog\n", ["dog", "car"]),
        ("quoted.yml", "names:\n  '0': person\n  '1': car\n", ["person", "car"]),
        ("list.yaml", "\ufeff- person\n- car\n", ["person", "car"]),
        ("numbers.csv", "class,label\n0,person\n1,car\n", ["person", "car"]),
        ("category.csv", "label,category\n0,person\n1,car\n", ["person", "car"]),
        ("floats.csv", "class,label\n0.0,person\n1.0,car\n", ["person", "car"]),
        ("wordnet.csv", "class,label\nn01440764,tench\n,shark\n", ["tench", "shark"]),
        ("digits.csv", "id,name\n0,7\n1,8\n", ["7", "8"]),
        ("bars.csv", "id|name\n1|person\n2|car\n", ["person", "car"]),
        ("bare_bars.csv", "1|person\n2|car\n", ["person", "car"]),
        ("joined.csv", "person | human\ncar\n", ["person", "car"]),
        ("after.csv", "# classes, of mine\nid;name\n1;person\n", ["person"]),
        ("id2label.json", '{"0": "tench", "10": "shark", "2": "ray"}', ["tench", "ray", "shark"]),
        ("config.json", '{"architectures": ["ViT"], "id2label": {"0": "cat", "1": "dog"}}', ["cat", "dog"]),
        ("names.json", '{"names": ["a", "b"]}', ["a", "b"]),
        ("classes.json", '{"version": 1, "classes": ["mug", "cup"]}', ["mug", "cup"]),
        ("labels.yaml", "Labels: [mug, cup]\n", ["mug", "cup"]),
        ("train.yaml", "train: [train, locomotive]\ncar: automobile\n", ["train", "car"]),
    ],
)
def test_classes_are_read_from_files_as_people_have_them(
    tmp_path: Path, name: str, content: str, labels: list[str]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert [item.label for item in parse_classes(str(tmp_path / name))] == labels


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("null.json", '{"a": null}', "a name or a list of names of class 'a', got nothing"),
        ("numbers.json", "[1, 2]", "class names as text, got 1"),
        ("nested.json", '{"a": [["b"]]}', r"class names as text, got \['b'\]"),
        ("object.json", '{"a": {"b": 1}}', "a name or a list of names of class 'a', got dict"),
        ("text.json", '"mug"', "a JSON list or object"),
        ("deep.json", "[" * 100_000, "nested too deeply"),
        ("norway.yaml", "names: [yes, no]\n", "got True: put it in quotes"),
        ("short.yaml", "nc: 3\nnames: [a]\n", "the 3 names"),
        ("empty.yaml", "names:\n", "got nothing"),
        ("broken.yaml", "names: [a\n", "not valid YAML"),
        ("unnamed.csv", "/m/01,Tortoise\n/m/02,Cat\n", "add a row of headings"),
        ("ragged.csv", "a,b\nc\n", "expected 2 columns"),
        ("numbers.csv", "class,colour\n0,red\n1,green\n", "column 'class' of .* got numbers"),
        ("imagenet.json", '{"0": ["n01440764", "tench"], "1": ["n2", "shark"]}', "one name for each number"),
        ("places.json", '{"classes": ["mug"], "cup": ["cup", "tea cup"]}', "lists under 'classes' and 'cup'"),
        ("data.yaml", "train: x\nval: y\n", "describes a data set"),
        ("data.json", '{"nc": 2, "path": "x"}', "describes a data set"),
        ("images.yaml", "train: ../train/images\n", "describes a data set"),
        ("twice.json", '{"mug": "cup", "mug": "glass"}', "each key once .* got 'mug' again"),
        ("twice.yaml", "mug: cup\nbottle: x\nmug: glass\n", "each key once .* got 'mug' again in line 3"),
        ("zeros.yaml", "names:\n  0: person\n  00: car\n", "each key once .* got '00' again in line 3"),
        ("book.xlsx", "PK", "give it the suffix that fits"),
    ],
)
def test_class_files_of_another_form_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=message):
        parse_classes(str(tmp_path / name))


@pytest.mark.parametrize("names", [{"a": None}, {"a": 3}, {1: "x"}, {"a": [None]}, ["a", True], ["a\udcff"]])
def test_a_class_without_a_name_in_text_is_refused(names: object) -> None:
    with pytest.raises(PromptError, match="expected"):
        make_classes(names)  # type: ignore[arg-type]


def test_lines_of_a_text_are_classes_too() -> None:
    assert [item.label for item in parse_classes("mug\nTV/monitor, bottle\n")] == ["mug", "TV/monitor", "bottle"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one class"),
        ("./classes", "no such file"),
        ("data/classes", "no such file"),
        ("mug, more.csv", "'more.csv': no such file"),
        ("C:\\names\\mine", "no such file"),
        ("classes.xlsx", "no such file"),
        ("my classes.doc", "no such file"),
        ("labels.pkl, x", "'labels.pkl': no such file"),
        ("mug, my labels.parquet", "no such file"),
        ("  ", "at least one class"),
        ("cat,,dog", "class 2 has an empty name"),
        ("cat, |dog", "class 2 has an empty name"),
        ("cat, dog, cat", "given twice"),
        ("absent.txt", "no such file"),
    ],
)
def test_unusable_classes_are_refused(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_classes(text)


@pytest.mark.parametrize("text", ["Dr. Pepper", "U.S. flag, No. 5", "St. Bernard, 3.5 mm jack", "e-mail @ home"])
def test_a_point_within_a_name_makes_no_path(text: str) -> None:
    assert [item.label for item in parse_classes(text)] == text.split(", ")


def test_what_is_there_and_is_no_file_of_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adir").mkdir()
    (tmp_path / "link").symlink_to("absent")
    for text, message in {
        "adir": "a folder",
        ".": "a folder",
        "link": "a link to nothing",
        "/dev/null": "no reg",
    }.items():
        for read in (parse_classes, load_templates):
            with pytest.raises(PromptError, match=message):
                read(text)
    assert [item.label for item in parse_classes("adir, mug")] == ["adir", "mug"]  # names, whatever lies about


def test_names_are_read_from_a_pipe(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"mug | cup\nbottle\n")
    os.close(theirs)
    try:
        assert [item.label for item in parse_classes(f"/dev/fd/{ours}")] == ["mug", "bottle"]
    finally:
        os.close(ours)
    os.mkfifo(tmp_path / "classes.yaml")
    writer = threading.Thread(target=(tmp_path / "classes.yaml").write_text, args=("names: [mug, bottle]\n",))
    writer.start()
    assert [item.label for item in parse_classes(str(tmp_path / "classes.yaml"))] == ["mug", "bottle"]
    writer.join()


def test_a_message_shows_the_beginning_of_what_is_large() -> None:
    large: object = "mug"
    for _ in range(7):
        large = [large] * 9
    for names in ([large], {"x" * 10_000: large}, {"x" * 10_000: None}, ["x" * 10_000] * 2, [1 << 99_999]):
        with pytest.raises(PromptError) as refused:
            make_classes(names)  # type: ignore[arg-type]
        assert len(str(refused.value)) < 600


def test_unusable_class_files_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    with pytest.raises(PromptError, match="at least one class"):
        parse_classes(str(empty))
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(PromptError, match="UTF-8"):
        parse_classes(str(binary))
    broken = tmp_path / "broken.json"
    broken.write_text("[")
    with pytest.raises(PromptError, match="JSON"):
        parse_classes(str(broken))


def test_imagenet_templates_are_clips_eighty() -> None:
    templates = load_templates("imagenet")
    assert len(templates) == 80
    assert templates[0] == "a bad photo of a {}."
    assert all(template.count("{}") == 1 for template in templates)


def test_templates_from_files(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("# comment\na drawing of a {c}.\na {} at night\n")
    assert load_templates(str(path)) == ("a drawing of a {}.", "a {} at night")
    path.write_text("no place\n")
    with pytest.raises(PromptError, match=r"expected one \{\}"):
        load_templates(str(path))
    path.write_text("")
    with pytest.raises(PromptError, match="at least one template"):
        load_templates(str(path))
    with pytest.raises(PromptError, match="no such file"):
        load_templates("absent")
    (tmp_path / "templates.json").write_text("[1]")
    with pytest.raises(PromptError, match="expected a list of prompt templates"):
        load_templates(str(tmp_path / "templates.json"))


def test_a_saved_table_is_checked_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    table = make_table(model_id="0" * 16)
    table.save(path)
    loaded = PromptTable.load(path)
    np.testing.assert_array_equal(loaded.embeddings, table.embeddings)
    assert (loaded.classes, loaded.templates, loaded.model_id) == (table.classes, table.templates, table.model_id)

    PromptTable("t", table.classes, 2 * table.embeddings, table.templates, table.model_id).save(path)
    with pytest.raises(TableError, match="unit length"):
        PromptTable.load(path)
    PromptTable("t", table.classes[:2], table.embeddings, table.templates, table.model_id).save(path)
    with pytest.raises(TableError, match=r"expected embeddings of F32 \(2, any\)"):
        PromptTable.load(path)
    path.write_bytes(b"not a table")
    with pytest.raises(TableError, match="not a readable"):
        PromptTable.load(path)
    with pytest.raises(TableError, match="no such file"):
        PromptTable.load(tmp_path / "absent.safetensors")


def test_the_content_hash_follows_the_content() -> None:
    base = make_table(model_id="0" * 16)
    assert base.content_hash == make_table("another name", model_id="0" * 16).content_hash
    assert base.content_hash != make_table(model_id="1" * 16).content_hash


def test_background_is_listed_with_its_table_in_a_bundle(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    plain = make_table("rooms", model_id=opened.manifest.model.id)
    opened.add_table(dataclasses.replace(plain, background=("rocket",), thresholds={"cat": 0.4, "cup": 0.3}))
    stored = Bundle.open(tiny_bundle)
    table = stored.table("rooms")
    assert (table.background, dict(table.thresholds)) == (("rocket",), {"cat": 0.4, "cup": 0.3})
    with (console := Console(width=120)).capture() as captured:
        print_card(stored, console)
    rows = {line.split()[0]: line.split()[1:4] for line in captured.get().splitlines() if line.strip()}
    assert rows["table"] == ["classes", "background", "thresholds"]
    assert (rows["rooms"], rows["things"]) == (["3", "1", "2"], ["3", "0", "none"])


def test_background_is_of_the_table_and_not_of_its_cached_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from edgeclip.export.prompt_table import table_for_bundle

    starter = Bundle.open("starter")
    empty, wall = make_classes(["empty room | vacant room", "wall"])
    classes = make_classes(["cat", "wall | plaster"])
    first = table_for_bundle(starter, classes, ["{}"], name="a", background=[empty, wall])
    assert (first.labels, first.background) == (("cat", "wall", "empty room"), ("empty room", "wall"))
    assert first.classes[1].names == ("wall", "plaster")
    monkeypatch.setattr(
        "edgeclip.export.prompt_table.load_text_tower", lambda _: pytest.fail("a prompt is encoded again")
    )
    again = table_for_bundle(starter, [*classes, empty], ["{}"], name="b")
    assert (again.name, again.background) == ("b", ())
    np.testing.assert_array_equal(again.embeddings, first.embeddings)
    one = table_for_bundle(starter, [*classes, empty], ["{}"], name="c", background=[empty])
    assert (one.name, one.background) == ("c", ("empty room",))
    with pytest.raises(PromptError, match="expected the names wall, plaster, got wall, mural"):
        table_for_bundle(starter, classes, ["{}"], name="d", background=make_classes(["wall | mural"]))


def test_a_table_of_other_number_types_comes_back(tmp_path: Path) -> None:
    table = make_table(model_id="m")
    cache = KeyCache(table.embeddings, np.arange(3), alpha=100, beta=1)
    table = dataclasses.replace(table, cache=cache, thresholds={"cat": np.float32(0.5), "rocket": 1})
    table.save(tmp_path / "t.safetensors")
    assert PromptTable.load(tmp_path / "t.safetensors").content_hash == table.content_hash


@pytest.mark.parametrize(("name", "label"), [("", "cat"), ("x/../y", "cat"), ("t", ""), ("t", " ")])
def test_a_table_without_a_proper_name_or_label_is_refused(tmp_path: Path, name: str, label: str) -> None:
    table = make_table(model_id="m")
    classes = (PromptClass(label, (label,)), *table.classes[1:])
    dataclasses.replace(table, name=name, classes=classes).save(tmp_path / "t.safetensors")
    with pytest.raises(TableError, match=r"expected a (table name|label)"):
        PromptTable.load(tmp_path / "t.safetensors")
