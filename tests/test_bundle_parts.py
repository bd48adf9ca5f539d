"""What an opened bundle says of each of its parts, and what it refuses to take."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeclip import Bundle, PromptTable, Variant
from edgeclip.bundle import LOCK, STAGING, create_bundle, open_bundle, open_bundles
from edgeclip.errors import BundleError, InputError, IntegrityError, ManifestError, TableError, VariantError
from edgeclip.files import cache_dir, sha256_file, sha256_json
from edgeclip.manifest import MANIFEST, read_manifest, visible_files, write_manifest
from tests.conftest import make_table, without_golden


@pytest.fixture
def tiny_bundle(tiny_bundle: Path) -> Path:
    """Without golden images: its files are few, and none of them is what is asked about here."""
    without_golden(tiny_bundle)
    return tiny_bundle


FP32 = "image_encoder/fp32.onnx"
THINGS = "prompts/things.safetensors"


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def table(bundle: Bundle, name: str = "other", *, seed: int = 1) -> PromptTable:
    return make_table(name, model_id=bundle.manifest.model.id, seed=seed)


def with_external_data(bundle: Bundle, *, listed: tuple[str, ...]) -> Bundle:
    """The bundle with a variant ``split`` in a folder, whose weights lie in two files beside its graph."""
    import onnx

    folder = bundle.path / "image_encoder" / "split"
    folder.mkdir()
    graph = onnx.load(str(bundle.path / FP32))
    onnx.save(graph, str(folder / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0)
    files = tuple(f"image_encoder/split/{name}" for name in listed)
    added = Variant(name="split", file="image_encoder/split/m.onnx", data_files=files, precision="fp32", opset=18)
    manifest = bundle.manifest
    write_manifest(bundle.path, msgspec.structs.replace(manifest, variants=(*manifest.variants, added)), scan=True)
    return Bundle.open(bundle.path)


# Files


def test_a_file_is_given_when_it_is_listed_whole_and_as_it_was(bundle: Bundle) -> None:
    assert bundle.file(FP32) == bundle.path / FP32
    with pytest.raises(IntegrityError, match=r"^reports/none\.json is not listed in .*manifest\.json"):
        bundle.file("reports/none.json")
    data = (bundle.path / FP32).read_bytes()
    (bundle.path / FP32).write_bytes(data + b"x")
    with pytest.raises(IntegrityError, match=rf"expected {len(data):,} bytes, got {len(data) + 1:,}"):
        bundle.file(FP32)
    (bundle.path / FP32).write_bytes(bytes(len(data)))
    expected, got = bundle.manifest.files[FP32].sha256, sha256_file(bundle.path / FP32)
    with pytest.raises(IntegrityError, match=rf"expected sha256 {expected[:12]}…, got {got[:12]}…"):
        bundle.file(FP32)
    (bundle.path / FP32).unlink()
    with pytest.raises(IntegrityError, match=f"lacks {FP32}"):
        bundle.file(FP32)
    (bundle.path / FP32).mkdir()
    with pytest.raises(IntegrityError, match=f"lacks {FP32}"):
        bundle.file(FP32)


def test_verify_gives_the_files_in_order_once_each(bundle: Bundle) -> None:
    bundle.add_file("reports/a.json", b"{}")
    assert list(bundle.verify()) == [FP32, THINGS, "reports/a.json"]


def test_verify_looks_again_at_what_was_replaced_meanwhile_only(bundle: Bundle) -> None:
    other = Bundle.open(bundle.path)
    seen = []
    for name in bundle.verify():
        if not seen:
            other.add_table(table(bundle, "things"), overwrite=True)
        seen.append(name)
    assert seen == [FP32, "prompts/things.2.safetensors"]
    assert bundle.manifest == other.manifest == read_manifest(bundle.path)


def test_verify_names_three_of_the_files_that_nobody_listed(bundle: Bundle) -> None:
    for name in ("d", "b", "c", "a\n"):
        (bundle.path / name).write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"does not list \(a\\n, b, c\)"):
        list(bundle.verify())


def test_verify_refuses_another_models_bundle_in_its_place(bundle: Bundle) -> None:
    other = msgspec.structs.replace(bundle.manifest, model=msgspec.structs.replace(bundle.manifest.model, name="new"))
    damaged = iter(bundle.verify())
    assert next(damaged) == FP32
    (bundle.path / THINGS).write_bytes(b"x")
    write_manifest(bundle.path, other, scan=True)
    with pytest.raises(IntegrityError, match="altered"):
        next(damaged)
    assert bundle.manifest != other


def test_verify_refuses_a_graph_that_reads_what_its_variant_does_not_list(bundle: Bundle) -> None:
    assert list(with_external_data(bundle, listed=("m.data",)).verify())
    broken = with_names(bundle, data_files=())
    for refused in (lambda: list(broken.verify()), lambda: broken.variant_path("split")):
        with pytest.raises(IntegrityError, match=r"reads 'm\.data', which the manifest does not list for split"):
            refused()


def with_names(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with its last variant changed."""
    manifest = read_manifest(bundle.path)
    *others, last = manifest.variants
    changed = (*others, msgspec.structs.replace(last, **changes))
    write_manifest(bundle.path, msgspec.structs.replace(manifest, variants=changed))
    return Bundle.open(bundle.path)


# Variants


def test_a_variant_is_its_graph_and_the_files_that_it_reads(bundle: Bundle) -> None:
    split = with_external_data(bundle, listed=("m.data",))
    files = ["image_encoder/split/m.onnx", "image_encoder/split/m.data"]
    digests = [sha256_file(bundle.path / name) for name in files]
    assert split.graph_digests("split") == digests
    assert split.graph_sha256("split") == sha256_json(digests)
    assert split.graph_sha256("fp32") == sha256_json([sha256_file(bundle.path / FP32)])
    assert split.variant_path("split") == bundle.path / files[0]
    (bundle.path / files[1]).write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"m\.data was altered"):
        split.variant_path("split")


def test_the_variants_that_there_are_are_listed(bundle: Bundle) -> None:
    split = with_external_data(bundle, listed=("m.data",))
    assert split.variant("split").name == "split"
    with pytest.raises(VariantError, match=r"tiny\.edgeclip has no variant 'int8': expected one of fp32, split$"):
        split.variant("int8")


# Tables


def test_the_table_may_be_left_unnamed_where_there_is_one(bundle: Bundle) -> None:
    assert bundle.table().name == bundle.table("things").name == "things"
    bundle.add_table(table(bundle))
    with pytest.raises(TableError, match=r"tiny\.edgeclip has 2 prompt tables \(things, other\): name one"):
        bundle.table()
    with pytest.raises(TableError, match="no prompt table 'x': expected one of: things, other"):
        bundle.table("x")
    write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, tables=()))
    for name, said in (
        (None, "has no prompt table: name one"),
        ("x", "none yet; make one with edgeclip prompts build"),
    ):
        with pytest.raises(TableError, match=said):
            Bundle.open(bundle.path).table(name)


def test_a_table_that_another_process_added_or_replaced_is_found(bundle: Bundle) -> None:
    other = Bundle.open(bundle.path)
    other.add_table(table(bundle))
    other.add_table(table(bundle, "things", seed=5), overwrite=True)
    assert bundle.table("other").name == "other"
    late = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, tables=()))
    np.testing.assert_array_equal(late.table("things").embeddings, table(bundle, seed=5).embeddings)


def test_a_table_that_is_gone_is_missed(bundle: Bundle) -> None:
    (bundle.path / THINGS).unlink()
    with pytest.raises(IntegrityError, match="lacks"):
        bundle.table()


def test_a_table_has_to_have_rows_of_the_encoders_width_and_model(bundle: Bundle) -> None:
    bundle.check_table(bundle.table())
    for width in (8, 17):
        with pytest.raises(TableError, match=rf"rows of width {width}, the encoder of tiny\.edgeclip gives 16"):
            bundle.check_table(make_table(model_id=bundle.manifest.model.id, width=width))
    flat = bundle.table()
    object.__setattr__(flat, "embeddings", np.zeros(16, np.float32))
    with pytest.raises(TableError, match="rows of width 16"):
        bundle.check_table(flat)
    with pytest.raises(TableError, match=f"for model {'0' * 16}, this bundle is {bundle.manifest.model.id}"):
        bundle.check_table(make_table(model_id="0" * 16))


def test_a_student_takes_its_teachers_tables(bundle: Bundle) -> None:
    teacher = bundle.table()
    student = msgspec.structs.replace(
        bundle.manifest.model, image_sha256="9" * 64, distilled_from=(bundle.manifest.model.image_sha256,)
    )
    Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, model=student)).check_table(teacher)


def test_a_table_in_place_of_another_gets_a_name_beside_it(bundle: Bundle) -> None:
    for seed, name in ((2, "prompts/things.2.safetensors"), (3, THINGS)):
        changed = bundle.add_table(table(bundle, "things", seed=seed), overwrite=True)
        assert changed is bundle
        (entry,) = bundle.manifest.tables
        assert (entry.file, entry.classes, entry.name) == (name, 3, "things")
        assert sorted(visible_files(bundle.path)) == sorted([MANIFEST, FP32, name])
    bundle.add_file("prompts/new.safetensors", b"1").add_file("prompts/new.2.safetensors", b"2")
    bundle.add_table(table(bundle, "new"))
    assert bundle.manifest.tables[1].file == "prompts/new.3.safetensors"


def test_a_table_that_replaces_one_that_is_not_there_is_refused(bundle: Bundle) -> None:
    with pytest.raises(TableError, match=r"'other' of tiny\.edgeclip was changed meanwhile"):
        bundle.add_table(table(bundle), replaces=bundle.table())
    bundle.add_table(table(bundle, "things"), overwrite=True, replaces=bundle.table())
    with pytest.raises(TableError, match="has a table 'things' already"):
        bundle.add_table(table(bundle, "things"), replaces=bundle.table())


def test_decisions_hold_for_the_variant_that_they_were_fitted_on(bundle: Bundle) -> None:
    said = bundle.decisions(bundle.table(), "fp32")
    assert said.decisions is None


# What is added


def test_a_small_file_is_added_or_replaced(bundle: Bundle) -> None:
    assert bundle.add_file("reports/./a.json", b"1") is bundle
    assert bundle.file("reports/a.json").read_bytes() == b"1"
    bundle.add_file("reports/a.json", lambda: read_manifest(bundle.path).model.name.encode())
    assert Bundle.open(bundle.path).file("reports/a.json").read_bytes() == b"tiny"
    assert [variant.name for variant in bundle.manifest.variants] == ["fp32"]
    assert not (bundle.path / STAGING).exists()
    assert not (bundle.path / LOCK).exists()


@pytest.mark.parametrize("name", [FP32, THINGS, MANIFEST, "image_encoder/split/m.data"])
def test_a_part_that_has_its_own_way_in_is_not_replaced_by_a_file(bundle: Bundle, name: str) -> None:
    split = with_external_data(bundle, listed=("m.data",))
    with pytest.raises(BundleError, match=rf"{name} is a part of tiny\.edgeclip that has its own way in"):
        split.add_file(name, b"x")
    assert list(split.verify())


def test_what_is_in_nobodys_writing_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="inside the bundle"):
        bundle.add_file("../x", b"")
    packed = Bundle.open(bundle.to_tar(tmp_path / "b.tar"))
    with pytest.raises(BundleError, match=r"got one in a \.tar: unpack it first"):
        packed.add_file("reports/a.json", b"")
    assert packed.is_starter is bundle.is_starter is False
    starter = Bundle.open("starter")
    assert starter.is_starter
    with pytest.raises(BundleError, match="read-only"):
        starter.add_file("reports/a.json", b"")


def test_a_file_that_takes_the_place_of_one_is_unlisted_before_it_moves(bundle: Bundle) -> None:
    """So that a reader between the two finds none, not one that was altered; what needs it goes with it."""
    split = with_external_data(bundle, listed=("m.data",))
    seen = []

    @contextmanager
    def watched(name: str) -> Iterator[None]:
        original = os.replace

        def replaced(self: Path, target: Path) -> Path:
            if target.name == name:
                listed = read_manifest(split.path)
                seen.append((name, sorted(listed.files), [each.name for each in listed.variants], listed.tables))
            original(self, target)
            return target

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", replaced)
            yield

    name = "image_encoder/split/m.data"
    tables = split.manifest.tables
    with watched("m.data"), split.writing() as changes:
        (changes.folder / name).parent.mkdir(parents=True)
        (changes.folder / name).write_bytes(b"new")
        changes.commit([name])
    assert seen == [("m.data", sorted({FP32, THINGS, "image_encoder/split/m.onnx"}), ["fp32"], tables)]
    assert split.file(name).read_bytes() == b"new"
    assert [each.name for each in split.manifest.variants] == ["fp32", "split"]


def test_a_killed_writers_note_lets_nothing_listed_go(bundle: Bundle) -> None:
    (bundle.path / LOCK).write_bytes(msgspec.json.encode([FP32, MANIFEST, "prompts", "half", "../half", "none"]))
    (bundle.path / "half").write_bytes(b"")
    (bundle.path.parent / "half").write_bytes(b"")
    (bundle.path / STAGING).write_bytes(b"a file of that name")
    bundle.add_file("reports/a.json", b"")
    assert set(Bundle.open(bundle.path).verify()) == {FP32, THINGS, "reports/a.json"}
    assert not (bundle.path / "half").exists()
    assert (bundle.path.parent / "half").exists()


def test_a_note_that_was_cut_is_none(bundle: Bundle) -> None:
    (bundle.path / LOCK).write_bytes(b'["half"')
    (bundle.path / "half").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"\(half\)"):
        list(bundle.verify())


def test_a_bundle_that_is_gone_gets_no_lock(bundle: Bundle, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ManifestError, match="no manifest"):
        Bundle(empty, bundle.manifest).add_file("a", b"")
    assert list(empty.iterdir()) == []


# Tars


def members(path: Path) -> dict[str, tuple[int, int, int, str, str, int]]:
    with tarfile.open(path) as archive:
        return {m.name: (int(m.mtime), m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive.getmembers()}


def test_a_tar_says_nothing_of_who_made_it_and_begins_with_the_manifest(bundle: Bundle, tmp_path: Path) -> None:
    made = bundle.to_tar(tmp_path / "b.tar")
    assert made == tmp_path / "b.tar"
    assert list(members(made)) == [MANIFEST, FP32, THINGS]
    assert set(members(made).values()) == {(0, 0, 0, "", "", 0o644)}


def test_a_bundle_that_changes_while_it_is_packed_is_not_packed(bundle: Bundle, tmp_path: Path) -> None:
    class Slow(Bundle):
        def verify(self) -> Iterator[str]:
            yield from super().verify()
            Bundle.open(self.path).add_file("reports/late.json", b"")

    with pytest.raises(BundleError, match="changed while it was packed"):
        Slow(bundle.path, bundle.manifest).to_tar(tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_a_tar_is_unpacked_once_for_its_content(bundle: Bundle, tmp_path: Path) -> None:
    made = bundle.to_tar(tmp_path / "b.tar")
    opened = Bundle.open(made)
    assert opened.path == cache_dir("bundles") / sha256_file(made)
    stamp = (opened.path / MANIFEST).stat().st_mtime_ns
    assert Bundle.open(str(made)).path == opened.path
    assert (opened.path / MANIFEST).stat().st_mtime_ns == stamp
    assert list(opened.verify()) == [FP32, THINGS]


def packed(path: Path, bundle: Bundle, *extra: tuple[str, bytes]) -> Path:
    bundle.to_tar(path)
    with tarfile.open(path, "a") as archive:
        for name, content in extra:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_what_an_archiver_adds_is_passed_over(bundle: Bundle, tmp_path: Path) -> None:
    path = packed(tmp_path / "b.tar", bundle, ("._x", b"1"), ("prompts/.DS_Store", b"2"), (".git/x", b"3"))
    opened = Bundle.open(path)
    assert list(opened.verify()) == [FP32, THINGS]
    assert list(opened.path.rglob(".*")) == []


@pytest.mark.parametrize("name", [FP32, f"{FP32}/below"])
def test_a_name_twice_in_a_tar_is_refused(bundle: Bundle, tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / f"{len(name)}.tar", bundle, (name, b"other"))
    with pytest.raises(IntegrityError, match=rf"\.tar holds '{name}' twice"):
        Bundle.open(path)
    assert not (cache_dir("bundles") / sha256_file(path)).exists()


def test_a_tar_without_a_manifest_is_refused_by_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "empty.tar"
    with tarfile.open(path, "w"):
        pass
    with pytest.raises(ManifestError) as refused:
        Bundle.open(path)
    assert str(path) in str(refused.value)
    assert str(cache_dir("bundles")) not in str(refused.value)


def test_a_folder_may_be_called_tar(bundle: Bundle) -> None:
    renamed = bundle.path.rename(bundle.path.with_suffix(".tar"))
    assert Bundle.open(renamed).path == renamed


# Opening and making


def test_bundles_are_given_opened_or_by_path_one_or_several(bundle: Bundle) -> None:
    assert open_bundle(bundle) is bundle
    assert open_bundle(str(bundle.path)).path == bundle.path
    assert open_bundles(bundle) == [bundle]
    assert [each.path for each in open_bundles([bundle, bundle.path])] == [bundle.path] * 2
    assert [each.path for each in open_bundles(os.fspath(bundle.path))] == [bundle.path]
    with pytest.raises(InputError, match="expected a bundle or the path of one, got int"):
        open_bundle(3)  # type: ignore[arg-type]


def test_a_new_bundle_has_its_folders(tmp_path: Path) -> None:
    with create_bundle(tmp_path / "new") as folder:
        assert {path.name for path in folder.iterdir()} == {"image_encoder", "prompts", "reports"}


def test_only_a_bundle_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(InputError), create_bundle(tmp_path / "home", overwrite=True):
        pass
    assert (tmp_path / "home" / "letter").exists()


# Building tables


def test_a_table_is_not_encoded_where_it_could_not_be_put(bundle: Bundle, tmp_path: Path) -> None:
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"")
    with pytest.raises(TableError, match="has a table 'things' already"):
        bundle.build_table("things", ["cat"])
    with pytest.raises(InputError, match=r"ends in \.safetensors, got .*x\.bin"):
        bundle.build_table("new", ["cat"], output=tmp_path / "x.bin")
    with pytest.raises(InputError, match="exists already"):
        bundle.build_table("new", ["cat"], output=taken)
    with pytest.raises(BundleError, match="read-only"):
        Bundle.open("starter").build_table("new", ["cat"])
