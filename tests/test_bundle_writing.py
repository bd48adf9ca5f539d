"""Several processes write to one bundle, are killed at it, and it is whole at every moment."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edgeclip import Bundle, PromptTable
from edgeclip.bundle import LOCK, STAGING
from edgeclip.errors import BundleError, EdgeclipError, IntegrityError, ManifestError, TableError
from edgeclip.manifest import read_manifest, visible_files, write_manifest
from tests.conftest import make_table

REPORT = "reports/recommendation.json"
ROOT = Path(__file__).parents[1]


def program(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A Python process of its own that runs ``code`` with ``table`` at hand, which loads one under another name."""
    head = """
        import os, shutil, signal, sys
        from dataclasses import replace
        from pathlib import Path
        from edgeclip import Bundle, PromptTable, Variant

        def table(file, name):
            return replace(PromptTable.load(file), name=name)
    """
    text = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def new_table(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The file of another table for the bundle."""
    make_table(model_id=Bundle.open(tiny_bundle).manifest.model.id, seed=1).save(tmp_path / "new.safetensors")
    return tmp_path / "new.safetensors"


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def test_three_processes_that_add_tables_to_one_bundle_lose_none(tiny_bundle: Path, new_table: Path) -> None:
    code = """
        folder, file, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
        bundle = Bundle.open(folder)
        for count in range(8):
            bundle.add_table(table(file, f"{name}{count}"))
            bundle.add_table(table(file, "shared"), overwrite=True)
            bundle.add_file(f"reports/{name}.json", str(count).encode())
    """
    running = [program(code, tiny_bundle, new_table, name) for name in "abc"]
    reader = Bundle.open(tiny_bundle)
    while any(each.poll() is None for each in running):
        assert list(reader.verify())  # whatever is replaced while it is read
        if "shared" in {entry.name for entry in reader.manifest.tables}:
            assert reader.table("shared").labels
    assert [each.wait() for each in running] == [0, 0, 0]
    bundle = Bundle.open(tiny_bundle)
    names = {entry.name for entry in bundle.manifest.tables}
    assert names == {"things", "shared", *(f"{name}{count}" for name in "abc" for count in range(8))}
    assert {f"reports/{name}.json" for name in "abc"} <= set(bundle.verify())
    assert hidden(tiny_bundle) == []


def test_threads_that_share_an_opened_bundle_lose_nothing(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    tables = [make_table(f"t{count}", model_id=bundle.manifest.model.id) for count in range(12)]
    threads = [threading.Thread(target=bundle.add_table, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.name for entry in Bundle.open(tiny_bundle).manifest.tables} == {"things"} | {t.name for t in tables}
    assert list(bundle.verify())


# Killed at the n-th time that Python touches a file, for every n.
_KILLED = """
    def add_table(bundle):
        bundle.add_table(table(file, "things"), overwrite=True)

    def add_file(bundle):
        bundle.add_file("reports/recommendation.json", b"new")

    def add_variant(bundle):
        names = ["image_encoder/fp16.onnx", "image_encoder/fp16.onnx.data"]
        with bundle.writing() as changes:
            for name in names:
                (changes.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(bundle.path / "image_encoder" / "fp32.onnx", changes.folder / name)
            fp16 = Variant(name="fp16", file=names[0], data_files=(names[1],), precision="fp16", opset=18)
            changes.commit(names, variants=(bundle.variant("fp32"), fp16))

    TOUCHES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "shutil.rmtree"}

    def die_at(count):
        left = [count]

        def hook(event, arguments):
            if event in TOUCHES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    original, copies, file = map(Path, sys.argv[1:])
    for work in (add_table, add_file, add_variant):
        for count in range(1, 200):
            copy = copies / f"{work.__name__}-{count}"
            shutil.copytree(original, copy)
            if not (child := os.fork()):
                bundle = Bundle.open(copy)
                die_at(count)
                work(bundle)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            if not status:
                copy.rename(copies / f"{work.__name__}-done")
                break
            assert status == signal.SIGKILL, status
        assert count > 8, count
"""


def test_a_writer_killed_at_any_moment_leaves_a_bundle_that_is_whole(
    tiny_bundle: Path, new_table: Path, tmp_path: Path
) -> None:
    Bundle.open(tiny_bundle).add_file(REPORT, b"old")
    copies = tmp_path / "copies"
    copies.mkdir()
    assert program(_KILLED, tiny_bundle, copies, new_table).wait() == 0
    rows = [Bundle.open(tiny_bundle).table().embeddings.tobytes(), PromptTable.load(new_table).embeddings.tobytes()]
    for copy in copies.iterdir():
        killed = Bundle.open(copy)
        listed = set(killed.verify())
        assert killed.table("things").embeddings.tobytes() in rows  # the one or the other, never none
        assert killed.variant_path("fp32")
        if REPORT in listed:
            assert killed.file(REPORT).read_bytes() in {b"old", b"new"}
        killed.add_table(make_table("next", model_id=killed.manifest.model.id))
        assert not (copy / LOCK).exists()
        assert not (copy / STAGING).exists()
        assert set(visible_files(copy)) == {*killed.manifest.files, "manifest.json"}  # what the dead one left is gone
    assert Bundle.open(copies / "add_table-done").table("things").embeddings.tobytes() == rows[1]
    assert Bundle.open(copies / "add_file-done").file(REPORT).read_bytes() == b"new"
    assert Bundle.open(copies / "add_variant-done").variant_path("fp16")


def test_a_table_made_from_one_that_was_changed_meanwhile_does_not_take_its_place(tiny_bundle: Path) -> None:
    mine, other = Bundle.open(tiny_bundle), Bundle.open(tiny_bundle)
    read = mine.table("things")
    other.add_table(replace(read, templates=("a picture of a {}.",)), overwrite=True, replaces=read)
    before = read_manifest(tiny_bundle)
    with pytest.raises(TableError, match="was changed meanwhile"):
        mine.add_table(read, overwrite=True, replaces=read)
    assert read_manifest(tiny_bundle) == before


def test_a_foreign_file_is_named_although_a_killed_writer_left_others(tiny_bundle: Path) -> None:
    (tiny_bundle / LOCK).write_bytes(msgspec.json.encode(["prompts/half.safetensors", "../x", "manifest.json", "a\nb"]))
    (tiny_bundle / "prompts" / "half.safetensors").write_bytes(b"half")
    bundle = Bundle.open(tiny_bundle)
    assert list(bundle.verify())
    (tiny_bundle / "prompts" / "foreign.bin").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"foreign\.bin\)"):
        list(bundle.verify())
    (tiny_bundle / "prompts" / "foreign.bin").unlink()
    bundle.add_file("reports/x.json", b"{}")
    assert not (tiny_bundle / "prompts" / "half.safetensors").exists()
    assert list(Bundle.open(tiny_bundle).verify())


def test_a_failed_writer_leaves_the_bundle_as_it_was(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    before = {path: path.read_bytes() for path in tiny_bundle.rglob("*") if path.is_file()}

    def fail() -> bytes:
        raise OSError(28, "No space left on device")

    with pytest.raises(EdgeclipError, match="No space left on device"):
        bundle.add_file("reports/x.json", fail)
    assert {path: path.read_bytes() for path in tiny_bundle.rglob("*") if path.is_file()} == before


# Links, and what a manifest names


@pytest.mark.parametrize("inside", ["prompts", "prompts/things.safetensors", "manifest.json"])
def test_a_symbolic_link_in_a_bundle_is_neither_read_nor_written_through(
    tiny_bundle: Path, tmp_path: Path, inside: str
) -> None:
    bundle = Bundle.open(tiny_bundle)
    elsewhere = tmp_path / "elsewhere"
    (tiny_bundle / inside).rename(elsewhere)
    (tiny_bundle / inside).symlink_to(elsewhere)
    before = {path: path.stat().st_mtime_ns for path in [elsewhere, *elsewhere.rglob("*")]}
    with pytest.raises(BundleError, match="symbolic link"):
        Bundle.open(tiny_bundle).table("things")
    with pytest.raises(BundleError, match="symbolic link"):
        list(Bundle.open(tiny_bundle).verify())
    if inside != "prompts/things.safetensors":
        with pytest.raises(BundleError, match="symbolic link"):
            bundle.add_table(make_table("more", model_id=bundle.manifest.model.id))
    assert {path: path.stat().st_mtime_ns for path in [elsewhere, *elsewhere.rglob("*")]} == before


@pytest.mark.parametrize("name", [STAGING, LOCK])
def test_a_hidden_link_is_not_written_through_either(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"x")
    (tiny_bundle / name).symlink_to(elsewhere)
    with suppress(BundleError):
        Bundle.open(tiny_bundle).add_file(REPORT, b"{}")
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert list(Bundle.open(tiny_bundle).verify())


def test_a_bundle_whose_own_folder_is_a_link_is_read_and_written(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(tiny_bundle)
    bundle = Bundle.open(tmp_path / "current")
    bundle.add_table(make_table("more", model_id=bundle.manifest.model.id))
    assert {entry.name for entry in Bundle.open(tiny_bundle).manifest.tables} == {"things", "more"}


def test_an_unlisted_link_is_named(tiny_bundle: Path) -> None:
    (tiny_bundle / "etc").symlink_to("/etc")
    with pytest.raises(IntegrityError, match=r"\(etc\)"):
        list(Bundle.open(tiny_bundle).verify())


@pytest.mark.parametrize("file", ["image_encoder/fp32.onnx", "prompts/things.safetensors"])
def test_what_is_named_and_not_listed_is_refused_at_opening(tiny_bundle: Path, file: str) -> None:
    manifest = read_manifest(tiny_bundle)
    files = {name: record for name, record in manifest.files.items() if name != file}
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, files=files))
    with pytest.raises(ManifestError, match=f"names the file {file} .* does not list it"):
        Bundle.open(tiny_bundle)


@pytest.mark.parametrize("kind", ["variants", "tables"])
def test_two_entries_of_one_name_are_refused(tiny_bundle: Path, kind: str) -> None:
    manifest = read_manifest(tiny_bundle)
    write_manifest(tiny_bundle, msgspec.structs.replace(manifest, **{kind: getattr(manifest, kind) * 2}))
    with pytest.raises(ManifestError, match="two entries for one"):
        Bundle.open(tiny_bundle)
