"""What a manifest lists, what it refuses, and which paths a bundle may have."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath

import msgspec
import pytest

from edgeclip import EncoderSpec, Manifest, PreprocessSpec, Variant
from edgeclip.errors import IntegrityError, ManifestError
from edgeclip.limits import limit
from edgeclip.manifest import (
    MANIFEST,
    check_consistent,
    file_record,
    plain_path,
    read_manifest,
    safe_path,
    visible_files,
    write_manifest,
)
from edgeclip.spec import FileRecord, TableEntry
from tests.conftest import identity

RECORD = FileRecord(size=1, sha256="c" * 64)
PREPROCESS = PreprocessSpec(height=8, width=8, resize_to=8, mean=(0.5,) * 3, std=(0.5,) * 3)


def manifest(
    *, listed: tuple[str, ...] = (), tables: tuple[TableEntry, ...] = (), **variants: tuple[str, ...]
) -> Manifest:
    """A manifest of these variants, each with its files, the graph first."""
    return Manifest(
        model=identity(),
        encoder=EncoderSpec(preprocess=PREPROCESS, embedding_dim=8, logit_scale=50.0),
        variants=tuple(
            Variant(name=name, file=files[0], data_files=files[1:], precision="fp32", opset=18)
            for name, files in variants.items()
        ),
        tables=tables,
        files=dict.fromkeys(listed, RECORD),
    )


def table(name: str, file: str) -> TableEntry:
    return TableEntry(name=name, file=file, classes=1, content_hash="d" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files, hidden ones, links and a pipe."""
    for relative in ("graph.onnx", "prompts/deep/a.bin", "prompts/.half", ".adding/new.bin", ".lock", "reports/r.json"):
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).write_bytes(relative.encode())
    return tmp_path


def test_what_is_written_is_read_again_and_matches_its_own_digest(tmp_path: Path) -> None:
    written = write_manifest(tmp_path, manifest(listed=("a",)))
    assert read_manifest(tmp_path) == written == manifest(listed=("a",))
    envelope = json.loads((tmp_path / MANIFEST).read_text())
    assert set(envelope) == {"manifest", "sha256"}
    assert len(envelope["sha256"]) == 64


def test_a_scan_lists_every_visible_file_with_its_size_and_hash(folder: Path) -> None:
    write_manifest(folder, manifest())  # a manifest does not list itself
    written = write_manifest(folder, manifest(listed=("gone",)), scan=True)
    names = ["graph.onnx", "prompts/deep/a.bin", "reports/r.json"]
    assert list(written.files) == names
    assert read_manifest(folder).files == written.files
    for name in names:
        assert written.files[name] == FileRecord(size=len(name), sha256=hashlib.sha256(name.encode()).hexdigest())
        assert file_record(folder / name) == written.files[name]


def test_without_a_scan_files_stay_as_they_are_listed(folder: Path) -> None:
    assert list(write_manifest(folder, manifest(listed=("other",))).files) == ["other"]


def test_links_and_pipes_are_visible_and_what_a_link_leads_to_is_not(folder: Path, tmp_path: Path) -> None:
    (folder / "linked").symlink_to(folder / "prompts")
    (folder / "reports" / "file").symlink_to(folder / "graph.onnx")
    (folder / ".hidden").symlink_to(folder / "prompts")
    os.mkfifo(folder / "pipe")
    assert sorted(visible_files(folder)) == [
        "graph.onnx",
        "linked",
        "pipe",
        "prompts/deep/a.bin",
        "reports/file",
        "reports/r.json",
    ]


def test_a_scan_does_not_follow_a_link(folder: Path) -> None:
    (folder / "reports" / "link").symlink_to(folder / "graph.onnx")
    with pytest.raises(IntegrityError, match=r"symbolic link reports/link"):
        write_manifest(folder, manifest(), scan=True)


DEEP = "/".join("abcdefghijklmnop")


@pytest.mark.parametrize("path", ["a", "a/b.onnx", "..a", "a/...", "a b", "é", DEEP, "a//b", "./a"])
def test_paths_inside_a_bundle(path: str) -> None:
    assert safe_path(path) == PurePosixPath(path)


@pytest.mark.parametrize(
    "path", ["", ".", "/a", "//a", "..", "../a", "a/..", "a/../b", "a\\b", "a\nb", "\x1b[31m", f"{DEEP}/q", "\u202ea"]
)
def test_other_paths_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="inside the bundle"):
        safe_path(path)
    with pytest.raises(IntegrityError, match="inside the bundle"):
        plain_path(tmp_path, path)


def test_a_refused_path_is_shown_up_to_100_characters() -> None:
    with pytest.raises(IntegrityError) as refused:
        safe_path("/" + "x" * 500)
    assert repr("/" + "x" * 99) in str(refused.value)


def test_a_plain_path_leads_through_folders_only(folder: Path) -> None:
    assert plain_path(folder, "prompts/deep/a.bin") == folder / "prompts" / "deep" / "a.bin"
    assert plain_path(folder, "not/there") == folder / "not" / "there"
    (folder / "reports" / "deep").symlink_to(folder / "prompts" / "deep")
    with pytest.raises(IntegrityError, match=r"symbolic link reports/deep:"):
        plain_path(folder, "reports/deep/a.bin")
    with pytest.raises(IntegrityError, match="too long"):
        plain_path(folder, "x" * 300)


def rewritten(folder: Path, **changes: object) -> Path:
    write_manifest(folder, manifest())
    envelope = json.loads((folder / MANIFEST).read_text())
    for name, value in changes.items():
        if value is None:
            envelope["manifest"].pop(name)
        else:
            envelope["manifest"][name] = value
    (folder / MANIFEST).write_text(json.dumps(envelope))
    return folder


@pytest.mark.parametrize(("version", "said"), [(0, "version 0,"), (2, "version 2,"), (None, "version None,")])
def test_another_schema_is_named_beside_the_one_that_is_read(tmp_path: Path, version: int | None, said: str) -> None:
    with pytest.raises(ManifestError, match=f"schema {said} this edgeclip reads 1"):
        read_manifest(rewritten(tmp_path, schema_version=version))


def test_a_newer_manifest_is_refused_for_its_schema_whatever_else_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="schema version 9"):
        read_manifest(rewritten(tmp_path, schema_version=9, colour="red"))


@pytest.mark.parametrize("where", ["manifest", "envelope"])
def test_a_field_that_nobody_knows_is_refused(tmp_path: Path, where: str) -> None:
    write_manifest(tmp_path, manifest())
    envelope = json.loads((tmp_path / MANIFEST).read_text())
    (envelope["manifest"] if where == "manifest" else envelope)["colour"] = "red"
    (tmp_path / MANIFEST).write_text(json.dumps(envelope))
    with pytest.raises(ManifestError, match=r"not a valid manifest .*colour") as refused:
        read_manifest(tmp_path)
    said, what = str(refused.value).split(" is not a valid manifest ")
    assert said == str(tmp_path / MANIFEST)
    assert said in what


def test_what_is_no_manifest_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"absent, got no such file or folder"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(ManifestError, match=r"got no manifest\.json in it"):
        read_manifest(tmp_path)
    for text in (b"", b"{", b"[]", b'{"manifest": 3}', b'{"sha256": "x"}'):
        (tmp_path / MANIFEST).write_bytes(text)
        with pytest.raises(ManifestError, match=r"manifest\.json is not a valid manifest") as refused:
            read_manifest(tmp_path)
        assert refused.value.__cause__ is not None
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(ManifestError, match=r"got no manifest\.json in it"):
        read_manifest(tmp_path)


def test_a_manifest_larger_than_a_document_may_be_is_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).touch()
    os.truncate(tmp_path / MANIFEST, limit("document_bytes") + 1)  # takes no room on the disk
    with pytest.raises(ManifestError, match="manifest"):
        read_manifest(tmp_path)


def test_a_changed_figure_is_refused(tmp_path: Path) -> None:
    encoder = msgspec.to_builtins(manifest().encoder) | {"logit_scale": 51.0}
    with pytest.raises(ManifestError, match="was altered"):
        read_manifest(rewritten(tmp_path, encoder=encoder))


def test_a_manifest_whose_names_and_files_agree_is_given_back() -> None:
    tables = (table("t", "t.bin"), table("u", "t.bin"))
    whole = manifest(listed=("a", "b", "b.data", "t.bin"), tables=tables, fp32=("a",), fp16=("b", "b.data"))
    assert check_consistent(whole, Path("m.json")) is whole


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (manifest(fp32=("a",)), "m.json names the file a for the variant fp32"),
        (manifest(listed=("a",), fp32=("a", "a.data")), "names the file a.data for the variant fp32"),
        (manifest(listed=("a",), fp32=("a",), fp16=("b",)), "names the file b for the variant fp16"),
        (manifest(listed=("a",), fp32=("a",), tables=(table("t", "t\nx"),)), r"names the file t\\nx for the table t"),
        (
            manifest(tables=(table("t", "a"), table("t", "b")), listed=("a", "b")),
            "m.json has two entries for one table",
        ),
    ],
)
def test_a_file_that_is_named_and_not_listed_is_refused(broken: Manifest, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        check_consistent(broken, Path("m.json"))


def test_two_variants_of_one_name_are_refused() -> None:
    (one,) = manifest(fp32=("a",)).variants
    twice = msgspec.structs.replace(manifest(listed=("a",)), variants=(one, one))
    with pytest.raises(ManifestError, match=r"m\.json has two entries for one variant"):
        check_consistent(twice, Path("m.json"))
