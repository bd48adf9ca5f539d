"""A bundle survives a round trip, and every kind of damage is refused."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeclip import Bundle
from edgeclip.bundle import create_bundle
from edgeclip.errors import BundleError, InputError, IntegrityError, ManifestError, TableError, VariantError
from edgeclip.manifest import MANIFEST, read_manifest, write_manifest
from tests.conftest import WIDTH, make_table, without_golden


@pytest.fixture
def tiny_bundle(tiny_bundle: Path) -> Path:
    """Without golden images: its files are few, and none of them is what is asked about here."""
    without_golden(tiny_bundle)
    return tiny_bundle


def test_round_trip_keeps_everything(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert sorted(bundle.verify()) == ["image_encoder/fp32.onnx", "prompts/things.safetensors"]
    table = bundle.table("things")
    expected = make_table(model_id=bundle.manifest.model.id)
    np.testing.assert_array_equal(table.embeddings, expected.embeddings)
    assert table.labels == ("cat", "rocket", "cup")
    assert table.classes[2].names == ("cup", "mug")
    assert table.content_hash == expected.content_hash


def test_manifest_is_readable_json(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST).read_text())["manifest"]
    assert manifest["schema_version"] == 1
    assert manifest["encoder"]["embedding_dim"] == WIDTH


@pytest.mark.parametrize("relative", ["image_encoder/fp32.onnx", "prompts/things.safetensors"])
def test_any_flipped_byte_of_a_file_is_refused(tiny_bundle: Path, relative: str) -> None:
    path = tiny_bundle / relative
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="altered"):
        list(Bundle.open(tiny_bundle).verify())


def test_any_flipped_byte_of_the_manifest_is_refused(tiny_bundle: Path) -> None:
    """Every byte in turn; a flip that leaves the meaning as it was (white space for white space) may pass."""
    path = tiny_bundle / MANIFEST
    original = path.read_bytes()
    before = read_manifest(tiny_bundle)
    refused = 0
    for position in range(len(original)):
        data = bytearray(original)
        data[position] ^= 1
        path.write_bytes(data)
        try:
            assert read_manifest(tiny_bundle) == before
        except ManifestError:
            refused += 1
    assert refused > 0.95 * len(original)


def test_a_missing_file_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / "image_encoder/fp32.onnx").unlink()
    with pytest.raises(IntegrityError, match="lacks"):
        Bundle.open(tiny_bundle).variant_path("fp32")


def test_an_unlisted_file_is_refused_by_verify(tiny_bundle: Path) -> None:
    (tiny_bundle / "image_encoder/extra.onnx").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"extra\.onnx"):
        list(Bundle.open(tiny_bundle).verify())


def _rewrite_manifest(folder: Path, **changes: object) -> None:
    envelope = json.loads((folder / MANIFEST).read_text())
    envelope["manifest"].update(changes)
    (folder / MANIFEST).write_text(json.dumps(envelope))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"colour": "red"}, "unknown field"),
        ({"variants": "fp32"}, "valid manifest"),
        ({"tools": {"torch": "9"}}, "altered"),
    ],
)
def test_a_strange_manifest_is_refused(tiny_bundle: Path, changes: dict[str, object], message: str) -> None:
    _rewrite_manifest(tiny_bundle, **changes)
    with pytest.raises(ManifestError, match=message):
        Bundle.open(tiny_bundle)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        Bundle.open(tmp_path / "absent")
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe garbage")
    with pytest.raises(ManifestError, match="not a valid manifest"):
        Bundle.open(tmp_path)


def test_unknown_names_list_what_there_is(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(VariantError, match="expected one of fp32"):
        bundle.variant("int4")
    with pytest.raises(TableError, match="expected one of: things"):
        bundle.table("yard")


def test_a_table_of_another_width_or_model_is_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(TableError, match="width 8"):
        bundle.add_table(make_table("other", model_id=bundle.manifest.model.id, width=8))
    with pytest.raises(TableError, match="made for model"):
        bundle.add_table(make_table("other", model_id="0" * 16))
    assert len(list(bundle.verify())) == 2


def test_replacing_a_table_needs_to_be_asked_for(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    other = make_table(model_id=bundle.manifest.model.id, seed=1)
    with pytest.raises(TableError, match="overwrite it"):
        bundle.add_table(other)
    bundle.add_table(other, overwrite=True)
    reopened = Bundle.open(tiny_bundle)
    assert len(list(reopened.verify())) == 2
    np.testing.assert_array_equal(reopened.table().embeddings, other.embeddings)


def test_the_shipped_bundle_is_not_written_to() -> None:
    bundle = Bundle.open("starter")
    table = make_table(model_id=bundle.manifest.model.id, width=bundle.manifest.encoder.embedding_dim)
    with pytest.raises(BundleError, match="read-only"):
        bundle.add_table(table)


def test_the_shipped_bundle_verifies() -> None:
    bundle = Bundle.open("starter")
    names = list(bundle.verify())
    assert "image_encoder/fp32.onnx" in names
    assert bundle.table("objects").embeddings.shape[1] == bundle.manifest.encoder.embedding_dim


def test_a_tar_is_a_bundle_and_has_the_same_bytes_every_time(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    first, second = bundle.to_tar(tmp_path / "a.tar"), bundle.to_tar(tmp_path / "b.tar")
    assert first.read_bytes() == second.read_bytes()
    opened = Bundle.open(first)
    assert opened.manifest == bundle.manifest
    assert len(list(opened.verify())) == 2


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil"])
def test_a_tar_that_reaches_outside_is_refused(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        archive.addfile(info)
    with pytest.raises(IntegrityError, match="inside the bundle"):
        Bundle.open(path)


def test_a_tar_with_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "link.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(MANIFEST)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(IntegrityError, match="not a plain file"):
        Bundle.open(path)


def test_a_manifest_that_lists_a_path_outside_is_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    record = next(iter(bundle.manifest.files.values()))
    files = {**bundle.manifest.files, "../secret": record}
    write_manifest(tiny_bundle, msgspec.structs.replace(bundle.manifest, files=files))
    with pytest.raises(IntegrityError, match="inside the bundle"):
        list(Bundle.open(tiny_bundle).verify())


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new.edgeclip"
    with pytest.raises(ZeroDivisionError), create_bundle(target) as folder:
        (folder / "image_encoder" / "fp32.onnx").write_bytes(bytes([1 // 0]))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_survives_a_failed_overwrite(tiny_bundle: Path) -> None:
    before = Bundle.open(tiny_bundle).manifest
    with pytest.raises(ZeroDivisionError), create_bundle(tiny_bundle, overwrite=True):
        _ = 1 // 0
    assert Bundle.open(tiny_bundle).manifest == before
    with pytest.raises(InputError, match="exists already"), create_bundle(tiny_bundle):
        pass
    shutil.rmtree(tiny_bundle)


@pytest.mark.parametrize("change", [{"classes": 7}, {"content_hash": "0" * 64}, {"name": "other"}])
def test_a_table_that_is_not_the_listed_one_is_refused(tiny_bundle: Path, change: dict[str, Any]) -> None:
    manifest = read_manifest(tiny_bundle)
    (entry,) = manifest.tables
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, tables=(msgspec.structs.replace(entry, **change),)))
    with pytest.raises(TableError, match="is not the table"):
        Bundle.open(tiny_bundle).table()
