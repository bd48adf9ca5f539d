"""The Python API: what a user imports from ``edgeclip`` does what its docstring says, in a few lines."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import edgeclip
from edgeclip.bundle import create_bundle
from edgeclip.class_names import as_classes
from edgeclip.errors import InputError, MissingExtraError, SourceError, TableError
from edgeclip.runtime.encoder import ImageEncoder
from edgeclip.runtime.images import read_image, write_image


@pytest.fixture
def labeller(golden_bundle: Path) -> Any:
    with edgeclip.open(golden_bundle, variant="fp32", engine="onnxruntime") as opened:
        yield opened


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    write_image(path, np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    return path


def test_every_form_of_an_image_is_classified_alike(labeller: edgeclip.Labeller, picture: Path) -> None:
    pixels, pillow = read_image(picture), PIL.Image.open(picture)
    alone = labeller.classify(str(picture))
    several = labeller.classify([picture, pixels, pillow])
    assert isinstance(several, list)
    for each in several:
        assert [label for label, _ in each.top] == [label for label, _ in alone.top]
        assert (each.label, each.score) == (alone.label, pytest.approx(alone.score, abs=1e-6))
        np.testing.assert_allclose(each.embedding, alone.embedding, atol=1e-6)


def test_a_classification_is_what_a_stream_says_of_the_image(labeller: edgeclip.Labeller, picture: Path) -> None:
    said = labeller.classify(picture, top_k=2)
    (frame,) = labeller.stream(picture, options=edgeclip.StreamOptions(top_k=2, preprocess="exact"))
    assert (said.label, [label for label, _ in said.top]) == (frame.label, [label for label, _ in frame.top])
    assert said.score == pytest.approx(frame.score, abs=1e-6)


def test_embeddings_are_those_of_the_encoder_and_of_unit_length(labeller: edgeclip.Labeller, picture: Path) -> None:
    pixels = read_image(picture)
    images = [pixels[:, shift:] for shift in range(11)]  # more than one batch
    rows = labeller.embed_images(images)
    with ImageEncoder(labeller.bundle) as encoder:
        expected = np.concatenate([encoder.encode([image]) for image in images])
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert labeller.embed_images([]).shape == (0, rows.shape[1])
    assert labeller.classify([]) == []


def test_a_picture_is_taken_the_way_that_it_is_to_be_seen(labeller: edgeclip.Labeller, tmp_path: Path) -> None:
    """A phone stores a portrait lying on its side and says so in its EXIF data."""
    upright = np.zeros((60, 40, 3), np.uint8)
    upright[:30] = 255
    lying = PIL.Image.fromarray(upright).rotate(90, expand=True)
    exif = lying.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise
    path = tmp_path / "phone.jpg"
    lying.save(path, exif=exif, quality=100)
    by_path, by_pillow = labeller.embed_images([path, PIL.Image.open(path)])
    assert by_path @ by_pillow > 0.999
    assert by_path @ labeller.embed_images(upright)[0] > 0.99


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), r"got float32 \(4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \(0, 4, 3\)"),
        (np.zeros((3, 4, 4), np.uint8), r"expected an image as \(H, W, 3\)"),
        (7, "got int"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_is_refused(labeller: edgeclip.Labeller, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labeller.classify(image)
    with pytest.raises(InputError, match=message):
        labeller.classify([image])


def test_a_missing_file_a_strange_table_and_no_labels_are_refused(labeller: edgeclip.Labeller, picture: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.png"):
        labeller.classify("nowhere.png")
    with pytest.raises(TableError, match="nothing"):
        labeller.classify(picture, table="nothing")
    with pytest.raises(InputError, match="top_k of at least 1"):
        labeller.classify(picture, top_k=0)


@pytest.mark.parametrize("source", [np.zeros((4, 4, 3), np.uint8), None, 1.5, True])
def test_what_is_no_source_is_refused_and_says_where_images_go(labeller: edgeclip.Labeller, source: Any) -> None:
    with pytest.raises(InputError, match=r"images in memory go to classify\(\)"):
        labeller.stream(source)


def test_a_cameras_index_is_a_source(labeller: edgeclip.Labeller) -> None:
    with pytest.raises(SourceError, match="camera 63"):
        labeller.stream(63)


def test_a_stream_over_an_image_says_what_is_on_it(labeller: edgeclip.Labeller, picture: Path) -> None:
    """Iterating gave events once, and an image has none."""
    assert [frame.label for frame in labeller.stream(picture)] == [labeller.classify(picture).label]


def test_results_become_supervisions(labeller: edgeclip.Labeller, picture: Path) -> None:
    pytest.importorskip("supervision")
    said = labeller.classify(picture, top_k=2)
    found = said.to_supervision()
    labels = labeller.bundle.table().labels
    assert [labels[row] for row in found.class_id] == [label for label, _ in said.top]
    assert found.confidence.tolist() == pytest.approx([score for _, score in said.top])


def test_without_supervision_the_command_that_installs_it_is_named(
    labeller: edgeclip.Labeller, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match="supervision"):
        labeller.classify(picture).to_supervision()


def test_a_table_is_built_added_and_used_in_one_sitting(tmp_path: Path, picture: Path) -> None:
    """The text encoder that the bundle was made with is the starter's, so classes can be any words."""
    pytest.importorskip("all_minilm_l6_v2")
    import shutil

    folder = tmp_path / "mine.edgeclip"
    shutil.copytree(edgeclip.Bundle.open("starter").path, folder)
    bundle = edgeclip.Bundle.open(folder)
    table = bundle.build_table("animals", ["cat | kitten", "dog"], templates=["a photo of a {}."])
    assert (table.labels, table.classes[0].names) == (("cat", "dog"), ("cat", "kitten"))
    assert bundle.table("animals").content_hash == table.content_hash  # the opened bundle knows it at once
    with pytest.raises(TableError, match="already"):
        bundle.build_table("animals", "cow, sheep")
    assert bundle.build_table("animals", "cow, sheep", overwrite=True).labels == ("cow", "sheep")
    assert bundle.build_table("x", {"pet": ["cat", "dog"]}, output=tmp_path / "x.safetensors").labels == ("pet",)
    with edgeclip.open(bundle, variant="fp32", engine="onnxruntime") as labeller:
        assert labeller.classify(picture, table="animals").label in {"cow", "sheep"}
        bundle.build_table("animals", "pig, goat", overwrite=True)
        assert labeller.classify(picture, table="animals").label in {"pig", "goat"}  # not the table of before
        rows = labeller.embed_text(["cow", "sheep"])
        assert rows.shape == (2, bundle.manifest.encoder.embedding_dim)
        np.testing.assert_allclose(labeller.embed_text("cow"), rows[:1], atol=1e-6)
        with pytest.raises(InputError, match="empty list"):
            labeller.embed_text([])


def test_the_starter_takes_no_table_but_gives_one(tmp_path: Path) -> None:
    pytest.importorskip("all_minilm_l6_v2")
    starter, file = edgeclip.Bundle.open("starter"), tmp_path / "animals.safetensors"
    with pytest.raises(edgeclip.EdgeclipError, match="read-only"):
        starter.build_table("animals", "cat, dog")
    plain = starter.encode_table("animals", "cat, dog")
    assert (plain.labels, plain.background) == (("cat", "dog"), ())
    done: list[tuple[int, int]] = []
    built = starter.build_table(
        "animals", "cat", ["a {}."], background="wall", output=file, progress=lambda *steps: done.append(steps)
    )
    assert (built.name, built.labels, built.background, built.templates) == (
        *("animals", ("cat", "wall"), ("wall",)),
        ("a {}.",),
    )
    assert done[-1] == (2, 2)
    assert edgeclip.PromptTable.load(file).content_hash == built.content_hash
    again = starter.build_table("animals", "dog", output=file, overwrite=True)
    assert edgeclip.PromptTable.load(file).labels == again.labels == ("dog",)


def test_what_needs_the_workstations_libraries_says_which_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import edgeclip\n"
        "try:\n    edgeclip.load_model\n"
        "except edgeclip.EdgeclipError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch is needed to use edgeclip.load_model" in said
    assert "pip install 'edgeclip[export]'" in said


def test_the_room_export_can_be_called_whichever_way_it_was_imported() -> None:
    code = (
        "import sys, edgeclip\nfirst = edgeclip.export\nassert 'torch' not in sys.modules\n"
        "import edgeclip.export.lint.graph\nfrom edgeclip import export\n"
        "assert first is export is edgeclip.export and callable(export)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgeclip.nothing  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_model_becomes_a_bundle_that_is_measured_and_decided_on(
    tmp_path: Path, photographs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a model's name to what to ship."""
    pytest.importorskip("all_minilm_l6_v2")
    monkeypatch.setattr("edgeclip.export.proofs.COUNT", 4)  # golden images
    model = edgeclip.load_model("starter")
    bundle = edgeclip.export(model, tmp_path / "small.edgeclip", variants=["fp16"])
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32", "fp16"]
    with pytest.raises(InputError, match="exists already"):
        edgeclip.export(model, tmp_path / "small.edgeclip")
    with pytest.raises(InputError, match="fp32 needs no ranges"):
        edgeclip.export(model, tmp_path / "other.edgeclip", calibration=photographs_dir)
    bundle.build_table("things", "cat, dog")
    labelled = tmp_path / "labelled"
    for number, path in enumerate(sorted(photographs_dir.iterdir())[:4]):
        folder = labelled / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    report = edgeclip.evaluate(bundle, labelled, variants=["fp32", "fp16"])
    assert [(each.variant, each.n) for each in report.accuracies] == [("fp32", 4), ("fp16", 4)]
    options = edgeclip.BenchOptions(
        variants=("fp32",), engines=("onnxruntime",), stages=("engine",), rounds=3, seconds=0.02, warm_up_s=0.0
    )
    timed = edgeclip.bench(bundle, options)
    assert [each.setting.variant for each in timed.measured] == ["fp32"]
    decided = edgeclip.tradeoff(bundle.path, labelled, options=options, output=tmp_path / "report")
    assert [point.variant for point in decided.points] == ["fp32"]
    assert (tmp_path / "report" / "tradeoff.html").is_file()
    with pytest.raises(InputError, match="neither"):
        edgeclip.evaluate(bundle)


def test_a_stream_that_is_still_open_at_the_end_lets_the_interpreter_end(video: Path) -> None:
    """Its threads were in libraries that were torn down under them: the process aborted, or waited for ever."""
    code = (
        "import sys, edgeclip\n"
        "frames = iter(edgeclip.open('starter', variant='fp32').stream(sys.argv[1], table='objects'))\n"
        "print(next(frames).frame)\n"
    )
    for _ in range(2):  # it did not happen each time
        done = subprocess.run(
            [sys.executable, "-c", code, str(video)], capture_output=True, text=True, check=False, timeout=240
        )
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_two_that_opened_one_bundle_lose_nothing_of_each_other(golden_bundle: Path) -> None:
    table = edgeclip.Bundle.open(golden_bundle).table()
    one, other = edgeclip.Bundle.open(golden_bundle), edgeclip.Bundle.open(golden_bundle)
    one.add_table(dataclasses.replace(table, name="first"))
    other.add_table(dataclasses.replace(table, name="second"))
    opened = edgeclip.Bundle.open(golden_bundle)
    assert {"first", "second"} <= {entry.name for entry in opened.manifest.tables}
    assert list(opened.verify())


def test_what_a_bundle_is_made_of_is_no_report(golden_bundle: Path) -> None:
    bundle = edgeclip.Bundle.open(golden_bundle)
    for relative in ("manifest.json", bundle.manifest.variants[0].file, bundle.manifest.tables[0].file):
        with pytest.raises(edgeclip.EdgeclipError, match="choose another name"):
            bundle.add_file(relative, b"{}")
    assert list(bundle.verify())


def test_a_bundle_out_of_a_tar_takes_no_table(golden_bundle: Path, tmp_path: Path) -> None:
    packed = edgeclip.Bundle.open(golden_bundle).to_tar(tmp_path / "packed.tar")
    bundle = edgeclip.Bundle.open(packed)
    with pytest.raises(edgeclip.EdgeclipError, match="unpack it"):
        bundle.add_table(dataclasses.replace(bundle.table(), name="other"))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bits_are_the_same_by_path_and_by_pillow(
    labeller: edgeclip.Labeller, tmp_path: Path, mode: str
) -> None:
    path = tmp_path / "deep.png"
    grey = np.random.default_rng(0).integers(0, 65536, (40, 40), np.uint16)
    PIL.Image.fromarray(grey).save(path)
    pillow = PIL.Image.open(path)
    by_path, by_pillow = labeller.embed_images([path, pillow.convert("I") if mode == "I" else pillow])
    assert by_path @ by_pillow > 0.9999


def test_overwriting_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with (
        pytest.raises(InputError, match=r"folder with manifest\.json to replace"),
        create_bundle(folder, overwrite=True),
    ):
        pytest.fail("it began to write")
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("classes", [[None], [["a", "b"]], b"ab", [edgeclip.PromptClass("x", ("x",)), "y"]])
def test_what_is_no_class_name_is_refused(classes: Any) -> None:
    with pytest.raises(edgeclip.EdgeclipError, match="expected class names as text"):
        as_classes(classes)


@pytest.mark.parametrize(
    "rows", [np.eye(2, dtype=np.float32)[0], np.eye(3, dtype=np.float32), np.full((2, 16), np.nan)]
)
def test_a_table_whose_rows_do_not_fit_is_refused(labeller: edgeclip.Labeller, picture: Path, rows: Any) -> None:
    own = labeller.bundle.table()

    def classify() -> None:
        labeller.classify(picture, table=dataclasses.replace(own, classes=own.classes[:2], embeddings=rows))

    with pytest.raises(edgeclip.EdgeclipError, match=r"rows \(C, D\)|rows of width|one a class|width|finite"):
        classify()
