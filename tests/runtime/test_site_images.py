"""Of a site's photographs those that show something, each once, become the golden set of this device."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgeclip
from edgeclip import Bundle, PromptTable
from edgeclip.engine_list import EngineEntry
from edgeclip.errors import (
    BundleError,
    EngineError,
    InputError,
    IntegrityError,
    ParityError,
    SourceError,
    VariantError,
)
from edgeclip.manifest import read_manifest, write_manifest
from edgeclip.prompts import make_classes, unit_rows
from edgeclip.runtime.engines.base import load_engine
from edgeclip.runtime.images import Image, read_image, write_image
from edgeclip.runtime.proof.basis import FEWEST, Basis, CalibratedOn
from edgeclip.runtime.proof.distinct import pixels_digest
from edgeclip.runtime.proof.golden import GoldenImages, golden_files
from edgeclip.runtime.proof.parity import LIMITS
from edgeclip.runtime.proof.proof import Proof
from edgeclip.runtime.proof.renew import Held
from edgeclip.runtime.proof.site import (
    SiteImages,
    bundle_name,
    calibrated_digests,
    choose_images,
    encode_site,
    forget_site,
    golden_here,
    keep_site,
    require_golden,
)
from edgeclip.spec import PreprocessSpec
from tests.conftest import CountingEngine, add_variant, edit_weight, make_table, without_golden
from tests.runtime.test_golden import golden_set
from tests.runtime.test_parity import GOOD

pytestmark = pytest.mark.usefixtures("cache")
SPEC = PreprocessSpec(height=32, width=32, resize_to=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SHUFFLED = edit_weight("projection", lambda weight: weight[::-1])


def picture(number: int) -> Image:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Sixteen small pictures, none like another, half of them in a folder below."""
    folder = tmp_path / "site"
    for number in range(16):
        path = folder / ("below" if number % 2 else "") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, picture(number))
    return folder


# Which images are taken


def test_every_image_of_a_folder_is_taken_once_in_the_order_of_the_names(site: Path) -> None:
    found = choose_images(site, SPEC, count=64)
    assert found.names == tuple(sorted(found.names))
    assert set(found.names) == {path.relative_to(site).as_posix() for path in site.rglob("*.png")}
    assert found.digests == tuple(pixels_digest(read_image(site / name)) for name in found.names)
    assert found.files == golden_files([read_image(site / name) for name in found.names], SPEC)
    assert (found.found, found.left_out, found.undecodable) == (16, {}, ())
    assert str(found) == "16 of 16 images used"


def test_those_that_are_enough_are_drawn_all_over_the_folder(site: Path) -> None:
    found = choose_images(site, SPEC, count=6)
    assert len(found.names) == 6
    assert found.names == tuple(sorted(found.names))
    places = sorted(
        sorted(path.relative_to(site).as_posix() for path in site.rglob("*.png")).index(n) for n in found.names
    )
    assert places[0] < 5
    assert places[-1] > 10
    assert str(found) == "6 of 16 images used, 10 not needed"


def test_what_is_left_out_is_counted_by_its_reason(site: Path) -> None:
    shutil.copy(site / "00.png", site / "copy.png")
    nearly = picture(2)
    nearly[0, 0] ^= 1
    write_image(site / "nearly.png", nearly)
    write_image(site / "dark.png", np.zeros((20, 20, 3), np.uint8))
    write_image(site / "white.png", np.full((20, 20, 3), 255, np.uint8))
    for name in ("a.jpg", "b.jpg"):
        (site / name).write_bytes(b"no picture")
    found = choose_images(site, SPEC, count=64, calibrated={pixels_digest(picture(5)), "another"})
    assert found.left_out == {
        "cannot be decoded": 2,
        "of one colour": 2,
        "calibrated on": 1,
        "the same as another": 1,
        "nearly the same as another": 1,
    }
    assert (len(found.names), found.found) == (15, 22)
    assert [text.partition(":")[0] for text in sorted(found.undecodable)] == ["a.jpg", "b.jpg"]
    assert len(found.undecodable[0]) > len("a.jpg: ")
    assert "below/05.png" not in found.names


def test_a_scene_that_hardly_changes_is_taken_once_and_one_that_does_again(tmp_path: Path) -> None:
    """From a cosine of .999 on two pictures show the same."""
    still = np.random.default_rng(0).normal(0, 40, (32, 32, 3))
    moved = np.random.default_rng(1).normal(0, 40, (32, 32, 3))
    for name, share in (("a", 0.0), ("b", 0.02), ("c", 0.1)):
        pixels = np.clip(still + share * moved + 128, 0, 255).astype(np.uint8)
        write_image(tmp_path / f"{name}.png", pixels)
    found = choose_images(tmp_path, SPEC, count=9)
    assert len(found.names) == 2
    assert "c.png" in found.names
    assert found.left_out == {"nearly the same as another": 1}


def test_what_was_taken_is_said_in_a_line() -> None:
    names = tuple(map(str, range(1200)))
    left_out = {"cannot be decoded": 1500, "of one colour": 2}
    whole = SiteImages(names, (b"",) * 1200, names, 2702, left_out, ())
    assert str(whole) == "1,200 of 2,702 images used, 1,500 cannot be decoded, 2 of one colour"
    assert str(replace(whole, found=5703)).endswith(", 2 of one colour, 3,001 not needed")
    assert str(replace(whole, found=2703)).endswith(", 2 of one colour, 1 not needed")


def test_a_folder_in_which_nothing_is_left_says_why(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", np.full((9, 9, 3), 80 * number, np.uint8))
    (tmp_path / "torn.jpg").write_bytes(b"x")
    with pytest.raises(SourceError) as refused:
        choose_images(tmp_path, SPEC, count=9)
    said = str(refused.value)
    assert "got 4 images, none of which can prove anything: " in said
    assert "3 of one colour" in said
    assert "1 cannot be decoded" in said
    assert " (torn.jpg: " in said
    with pytest.raises(SourceError, match=r"got no such folder$"):
        choose_images(tmp_path / "absent", SPEC, count=9)
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(SourceError, match=r"got a file$"):
        choose_images(tmp_path / "note.txt", SPEC, count=9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"got none$"):
        choose_images(tmp_path / "empty", SPEC, count=9)


# What FP32 makes of them, and what counts from then on


def test_fp32_on_the_processor_encodes_them_one_by_one(
    tiny_bundle: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    images = choose_images(site, SPEC, count=5)
    golden = encode_site(bundle, images)
    assert (golden.names, golden.files, golden.digests) == (images.names, images.files, images.digests)
    assert golden.origin == "site"
    with load_engine("onnxruntime", bundle.variant_path("fp32"), bundle.manifest.encoder) as engine:
        expected = np.concatenate([engine.infer(image[None]) for image in golden.inputs(SPEC)])
    np.testing.assert_array_equal(golden.embeddings, expected)
    np.testing.assert_array_equal(golden.classes, bundle.table().embeddings)


def test_fp32_has_to_agree_with_the_bundles_own_images_first(tiny_bundle: Path, site: Path) -> None:
    images = choose_images(site, SPEC, count=2)
    add_variant(tiny_bundle, "fp32", SHUFFLED, precision="fp32")
    with pytest.raises(
        ParityError,
        match=r"^fp32 on onnxruntime cannot be the reference here: expected a cosine of at least 0\.9999, .* and a",
    ):
        encode_site(Bundle.open(tiny_bundle), images)
    assert len(encode_site(without_golden(tiny_bundle), images).files) == 2  # nothing to be held against


def test_a_graph_beyond_its_bounds_or_altered_is_no_reference(
    tiny_bundle: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = choose_images(site, SPEC, count=2)
    with monkeypatch.context() as patch:
        patch.setattr("edgeclip.runtime.engines.first_run._tried", lambda *_, **__: "is too much")
        patch.setenv("EDGECLIP_MAX_FIRST_RUN_S", "57")
        with pytest.raises(EngineError, match=r"fp32 of tiny\.edgeclip is too much"):
            encode_site(Bundle.open(tiny_bundle), images)
    manifest = read_manifest(tiny_bundle)
    renamed = (msgspec.structs.replace(manifest.variants[0], name="other"),)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, variants=renamed))
    with pytest.raises(VariantError, match="no variant 'fp32'"):
        encode_site(Bundle.open(tiny_bundle), images)


def kept_site(bundle: Path, site: Path, count: int = 3) -> GoldenImages:
    opened = Bundle.open(bundle)
    golden = encode_site(opened, choose_images(site, SPEC, count=count))
    keep_site(opened, golden)
    return golden


def test_a_set_that_was_kept_counts_until_it_is_forgotten(tiny_bundle: Path, site: Path, cache: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    own = golden_set(bundle)
    assert golden_here(bundle).sha256 == own.sha256
    kept = kept_site(tiny_bundle, site)
    assert golden_here(bundle).sha256 == kept.sha256
    assert require_golden(bundle, unproved=False).sha256 == kept.sha256
    ((place,), (folder,)) = list((cache / "site").iterdir()), [path for path in cache.iterdir() if path.name == "site"]
    assert place.parent == folder
    assert place.suffix == ".safetensors"
    forget_site(bundle)
    assert not place.exists()
    forget_site(bundle)
    assert golden_here(bundle).sha256 == own.sha256


def another_graph(bundle: Path) -> None:
    add_variant(bundle, "fp32", edit_weight("projection", lambda weight: weight * 2), precision="fp32")


def another_spec(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    encoder = msgspec.structs.replace(manifest.encoder, logit_scale=2.0)
    write_manifest(bundle, msgspec.structs.replace(manifest, encoder=encoder))


@pytest.mark.parametrize("change", [another_graph, another_spec])
def test_a_set_is_of_one_graph_and_encoder(tiny_bundle: Path, site: Path, change: Callable[[Path], None]) -> None:
    kept_site(tiny_bundle, site)
    change(tiny_bundle)
    assert golden_here(Bundle.open(tiny_bundle)).origin == "stand-ins"


def test_a_set_of_another_variant_is_the_same(tiny_bundle: Path, site: Path) -> None:
    kept_site(tiny_bundle, site)
    assert golden_here(add_variant(tiny_bundle, "other", SHUFFLED)).origin == "site"


def test_a_set_of_another_width_does_not_count(tiny_bundle: Path, site: Path, cache: Path) -> None:
    golden = kept_site(tiny_bundle, site)
    (place,) = (cache / "site").iterdir()
    replace(golden, embeddings=golden.embeddings[:, :8], classes=golden.classes[:, :8]).save(place)
    assert golden_here(Bundle.open(tiny_bundle)).origin == "stand-ins"


def test_without_fp32_there_is_no_set_of_the_site(tiny_bundle: Path, site: Path) -> None:
    kept_site(tiny_bundle, site)
    manifest = read_manifest(tiny_bundle)
    renamed = (msgspec.structs.replace(manifest.variants[0], name="other"),)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, variants=renamed))
    bundle = Bundle.open(tiny_bundle)
    assert golden_here(bundle).origin == "stand-ins"
    forget_site(bundle)


def test_a_damaged_set_is_told(tiny_bundle: Path, site: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept_site(tiny_bundle, site)
    (place,) = (cache / "site").iterdir()
    place.write_bytes(place.read_bytes()[:-10])
    assert golden_here(Bundle.open(tiny_bundle)).origin == "stand-ins"
    assert "the images of this site are lost, the bundle's own count again (" in caplog.text


def test_a_bundle_that_has_no_images_at_all_has_none_here(tiny_bundle: Path) -> None:
    bundle = without_golden(tiny_bundle)
    assert golden_here(bundle) is None
    assert require_golden(bundle, unproved=True) is None
    with pytest.raises(ParityError, match=r"edgeclip prove .*tiny\.edgeclip --images FOLDER, export"):
        require_golden(bundle, unproved=False)


def test_a_cache_that_cannot_be_written_to_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    bundle = Bundle.open(tiny_bundle)
    golden = golden_set(bundle)
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="expected a cache that can be written to"):
        keep_site(bundle, golden)


def test_a_bundle_is_typed_as_its_path_or_by_the_name_of_the_shipped_one(tiny_bundle: Path) -> None:
    assert bundle_name(Bundle.open(tiny_bundle)) == str(tiny_bundle)
    assert bundle_name(Bundle.open("starter")) == "starter"


# What is decided between


def one_class(bundle: Bundle, name: str) -> PromptTable:
    rows = unit_rows(np.ones((1, 16), np.float32))
    return PromptTable(name, make_classes(["cat"]), rows, ("{}",), bundle.manifest.model.id)


def with_tables(path: Path, *tables: PromptTable) -> Bundle:
    write_manifest(path, msgspec.structs.replace(read_manifest(path), tables=()))
    for number, table in enumerate(tables):
        Bundle.open(path).add_table(replace(table, name=f"t{number}"), overwrite=True)
    return Bundle.open(path)


def test_classes_are_those_of_the_first_table_with_two(
    tiny_bundle: Path, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = choose_images(site, SPEC, count=2)
    bundle = Bundle.open(tiny_bundle)
    own = golden_set(bundle).classes
    alone, three = one_class(bundle, "alone"), make_table("three", model_id=bundle.manifest.model.id, seed=5)
    two = replace(three, classes=three.classes[:2], embeddings=three.embeddings[:2])
    cases = [
        ((three,), three.embeddings),
        ((alone, three), three.embeddings),
        ((two, three), two.embeddings),
        ((alone,), own),
        ((), own),
    ]
    for tables, expected in cases:
        classes = encode_site(with_tables(tiny_bundle, *tables), images).classes
        np.testing.assert_array_equal(classes, expected)
    without_golden(tiny_bundle)
    classes = encode_site(with_tables(tiny_bundle), images).classes
    assert (classes.shape, classes.dtype) == ((0, 16), np.float32)
    assert caplog.text == ""


def test_a_table_that_cannot_be_read_is_passed_over_and_told_and_an_altered_one_is_refused(
    tiny_bundle: Path, site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = choose_images(site, SPEC, count=2)
    bundle = Bundle.open(tiny_bundle)
    three = make_table(model_id=bundle.manifest.model.id, seed=5)
    bundle = with_tables(tiny_bundle, three, replace(three, embeddings=three.embeddings[::-1].copy()))
    first = tiny_bundle / bundle.manifest.tables[0].file
    first.write_bytes(b"no table")
    with pytest.raises(IntegrityError, match="altered"):
        encode_site(bundle, images)
    write_manifest(tiny_bundle, read_manifest(tiny_bundle), scan=True)
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BundleError):
        bundle.table("t0")
    np.testing.assert_array_equal(encode_site(bundle, images).classes, three.embeddings[::-1])
    assert "decisions of the table t0 are not held against FP32's" in caplog.text


def test_what_variants_were_calibrated_on_is_known_from_all_reports(tiny_bundle: Path) -> None:
    for name, digits in (("int8", "ab"), ("fp16", "bc")):
        add_variant(tiny_bundle, name, lambda graph: None)
        known = CalibratedOn(origin="images", photographs=2, digests=tuple(digit * 64 for digit in digits))
        report = tiny_bundle / "reports" / f"parity-{name}.json"
        report.parent.mkdir(exist_ok=True)
        report.write_bytes(msgspec.json.encode({"made": {"calibration": known}}))
    write_manifest(tiny_bundle, read_manifest(tiny_bundle), scan=True)
    assert calibrated_digests(Bundle.open(tiny_bundle)) == {digit * 64 for digit in "abc"}


# Proofs are renewed


def test_every_step_is_told_and_every_pair_is_held(fp16_bundle: Path, site: Path, counting: list[str]) -> None:
    said: list[str] = []
    bundle = Bundle.open(fp16_bundle)
    renewal = edgeclip.prove(bundle, site, progress=said.append)
    assert said == [
        "looking at the images of the site",
        "encoding 16 images with fp32 on onnxruntime",
        "proving fp32 on onnxruntime",
        "proving fp32 on counting",
        "proving fp16 on counting",
    ]
    assert [(held.variant, held.engine) for held in renewal.held] == [
        ("fp32", "onnxruntime"),
        ("fp32", "counting"),
        ("fp16", "counting"),
    ]
    assert [str(held.basis) for held in renewal.held] == ["on 16 photographs of this site"] * 2 + [
        "provisional: on 16 photographs of this site, not known whether calibrated on"
    ]
    assert all(held.passed and held.refused == "" for held in renewal.held)
    assert renewal.images == choose_images(site, SPEC, count=64)
    assert (renewal.told, renewal.failed) == ((), ())
    assert golden_here(bundle).photographs == 16


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ({}, [("fp32", "onnxruntime"), ("fp32", "counting"), ("fp16", "counting")]),
        ({"variant": "fp16"}, [("fp16", "counting")]),
        ({"variant": ["fp16", "fp32", "fp16"]}, [("fp16", "counting"), ("fp32", "onnxruntime"), ("fp32", "counting")]),
        ({"engine": "onnxruntime"}, [("fp32", "onnxruntime")]),
        ({"engine": ("counting", "counting")}, [("fp32", "counting"), ("fp16", "counting")]),
        ({"variant": ["fp16"], "engine": ["onnxruntime", "counting"]}, [("fp16", "onnxruntime"), ("fp16", "counting")]),
    ],
)
def test_what_is_named_is_held_each_once_in_the_order_of_the_names(
    fp16_bundle: Path, counting: list[str], asked: dict[str, object], held: list[tuple[str, str]]
) -> None:
    renewal = edgeclip.prove(fp16_bundle, threads=1, **asked)
    assert [(each.variant, each.engine) for each in renewal.held] == held
    assert (renewal.images, renewal.told, renewal.failed) == (None, (), ())
    for each in renewal.held:
        assert each.proof is not None
        assert each.proof.ran_on.endswith(", 1 thread")
        assert each.basis.origin == "stand-ins"


def test_a_proof_is_renewed_also_where_one_is_kept(fp16_bundle: Path, counting: list[str]) -> None:
    for _ in range(2):
        edgeclip.prove(fp16_bundle, variant="fp16")
    assert counting == ["fp16", "fp16"]


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({"variant": ["fp32", "int4"]}, VariantError, "no variant 'int4'"),
        ({"engine": ["onnxruntime", "abacus"]}, EngineError, "expected an engine out of"),
        ({"count": 0}, InputError, "expected count of at least 1, a whole number, got 0"),
        ({"count": 2.5}, InputError, r"expected count of at least 1, a whole number, got 2\.5"),
        ({"threads": 0}, InputError, "expected threads of at least 1, got 0"),
        ({"stored": True}, InputError, "expected `images` or `stored`, got both"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    tiny_bundle: Path, counting: list[str], asked: dict[str, object], kind: type[Exception], said: str
) -> None:
    told: list[str] = []
    with pytest.raises(kind, match=said):
        edgeclip.prove(tiny_bundle, tiny_bundle / "absent", progress=told.append, **asked)
    assert (told, counting) == ([], [])


def test_what_nothing_here_is_meant_for_is_refused(
    tiny_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingEngine, "available", classmethod(lambda _: False))
    add_variant(tiny_bundle, "fp16", lambda graph: None)
    with pytest.raises(EngineError, match=r"no engine that is installed here is meant for what was asked of tiny"):
        edgeclip.prove(tiny_bundle, variant="fp16")


@pytest.mark.parametrize(("count", "told"), [(FEWEST - 1, True), (FEWEST, False), (1, True)])
def test_fewer_photographs_than_a_proof_takes_are_told(
    tiny_bundle: Path, site: Path, counting: list[str], count: int, told: bool
) -> None:
    renewal = edgeclip.prove(tiny_bundle, site, engine="onnxruntime", count=count)
    assert renewal.held[0].basis.photographs == count
    expected = f"expected at least {FEWEST} different photographs for a proof, got {count}: this is provisional"
    assert renewal.told == ((expected,) if told else ())


def test_without_fp32_the_images_cannot_be_used_and_that_is_told(
    tiny_bundle: Path, site: Path, counting: list[str]
) -> None:
    manifest = read_manifest(tiny_bundle)
    renamed = (msgspec.structs.replace(manifest.variants[0], name="other"),)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, variants=renamed))
    said: list[str] = []
    renewal = edgeclip.prove(tiny_bundle, site, engine="onnxruntime", progress=said.append)
    assert said == ["proving other on onnxruntime"]
    assert renewal.images is None
    assert renewal.told == (
        "the images could not be used: the bundle has no fp32 to encode them; held against its own golden images and "
        "the embeddings stored with them",
    )
    assert renewal.held[0].basis.origin == "stand-ins"
    with pytest.raises(ParityError, match="got none: give photographs of the site as `images`"):
        edgeclip.prove(without_golden(tiny_bundle), site, engine="onnxruntime")


def test_stored_goes_back_to_the_bundles_own_images(tiny_bundle: Path, site: Path, counting: list[str]) -> None:
    bundle = Bundle.open(tiny_bundle)
    edgeclip.prove(bundle, site, engine="onnxruntime", count=2)
    again = edgeclip.prove(bundle, engine="onnxruntime")
    assert (again.held[0].basis.origin, again.images) == ("site", None)
    back = edgeclip.prove(bundle, engine="onnxruntime", stored=True)
    assert back.held[0].basis.origin == "stand-ins"
    assert golden_here(bundle).origin == "stand-ins"
    with pytest.raises(ParityError, match=r"expected golden images in tiny\.edgeclip"):
        edgeclip.prove(without_golden(tiny_bundle), engine="onnxruntime", stored=True)


def test_a_set_of_which_nothing_ran_is_not_kept(
    tiny_bundle: Path, site: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CountingEngine) -> None:
        raise EngineError("no such device")

    with monkeypatch.context() as patch:
        patch.setattr(CountingEngine, "_load", broken)
        renewal = edgeclip.prove(tiny_bundle, site, engine="counting")
        assert renewal.failed == ("counting could not run: no such device",)
        assert golden_here(Bundle.open(tiny_bundle)).origin == "stand-ins"
        mixed = edgeclip.prove(tiny_bundle, site)
        assert [held.refused for held in mixed.held] == ["", "no such device"]
        assert [held.passed for held in mixed.held] == [True, False]
        assert mixed.failed == ()
        assert golden_here(Bundle.open(tiny_bundle)).origin == "site"


def test_where_fp32_does_not_run_the_way_out_is_told(
    tiny_bundle: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr("edgeclip.runtime.proof.site.load_engine", broken)
    with pytest.raises(EngineError, match=r"^no memory; where FP32 cannot run, prove on the `stored` embeddings"):
        edgeclip.prove(tiny_bundle, site, engine="onnxruntime")


def test_an_altered_file_is_an_error_and_no_refusal(fp16_bundle: Path, counting: list[str]) -> None:
    graph = fp16_bundle / "image_encoder" / "fp16.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="altered"):
        edgeclip.prove(fp16_bundle, variant="fp16")


def test_what_disagrees_or_did_not_run_is_told_by_name(
    fp16_bundle: Path, counting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_variant(fp16_bundle, "shuffled", SHUFFLED)
    add_variant(fp16_bundle, "nan", edit_weight("projection", lambda weight: weight * np.nan))
    renewal = edgeclip.prove(fp16_bundle, variant=["fp32", "shuffled", "nan"], engine="counting")
    assert [held.passed for held in renewal.held] == [True, False, False]
    assert [held.proof is None for held in renewal.held] == [False, False, True]
    disagrees, did_not = renewal.failed
    proof = renewal.held[1].proof
    assert proof is not None
    assert disagrees == f"shuffled on counting disagrees with fp32: expected {' and '.join(proof.failures)}"
    assert len(proof.failures) > 1
    assert did_not == f"nan could not run: {renewal.held[2].refused}"
    assert "not finite" in did_not
    everything = edgeclip.prove(fp16_bundle)
    assert [text.partition(" disagrees")[0] for text in everything.failed] == ["shuffled on counting"]


def test_where_nothing_that_is_here_runs_that_is_a_failure(
    tiny_bundle: Path, counting: list[str], engine_list: dict[str, EngineEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CountingEngine) -> None:
        raise EngineError("no such device")

    del engine_list["onnxruntime"]
    monkeypatch.setattr(CountingEngine, "_load", broken)
    assert edgeclip.prove(tiny_bundle).failed == ("nothing could run: no such device",)
    assert edgeclip.prove(tiny_bundle, variant="fp32").failed == ("fp32 could not run: no such device",)


def test_a_name_that_fits_none_of_the_others_is_a_failure_of_its_own(fp16_bundle: Path, counting: list[str]) -> None:
    renewal = edgeclip.prove(fp16_bundle, variant=["fp32", "fp16"], engine="onnxruntime")
    assert renewal.failed == ()  # a pair that is named is tried whatever the engine is meant for
    alone = edgeclip.prove(fp16_bundle, variant="fp16")
    assert (len(alone.held), alone.failed) == (1, ())


def held(**parity: object) -> Held:
    report = msgspec.structs.replace(GOOD, **parity)
    proof = Proof(variant="v", precision="fp32", engine="e", ran_on="e", parity=report, latency_ms=1.0, machine={})
    return Held("v", "e", Basis(origin="site", photographs=20), proof)


def test_what_is_held_passed_if_it_ran_and_kept_the_limits_that_could_be_checked() -> None:
    assert held().passed
    assert held(agreement=None).passed
    assert not held(min_cosine=LIMITS["fp32"].min_cosine - 0.001).passed
    assert not replace(held(), proof=None).passed
    assert Held("v", "e", held().basis).refused == ""


def test_why_a_limit_could_not_be_checked_is_told() -> None:
    table = "there is no prompt table that tells two classes apart"
    assert held().why_unchecked == held(images=2).why_unchecked == replace(held(), proof=None).why_unchecked == table
    assert held(images=1).why_unchecked == "one image has no others to be held beside"
