"""Tars that were made to do harm, or were damaged: each is refused in a sentence, before it takes memory or disk."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from edgeclip import Bundle
from edgeclip.devices.machine.tree import open_tree
from edgeclip.errors import BundleError, EdgeclipError, InputError, IntegrityError, ManifestError, TrainingError
from edgeclip.manifest import MANIFEST
from edgeclip.training.data.shards import tar_files
from tests.tar_shards import write_tar


def cached() -> list[str]:
    """What of bundles is in the cache, hidden or not."""
    folder = Path(os.environ["EDGECLIP_CACHE"]) / "bundles"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))


def header(name: str, *, size: bytes = b"00000000000\0", kind: bytes = b"0", data: bytes = b"") -> bytes:
    """A header of 512 bytes with whatever number stands for its size, its checksum right, and what follows it."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def sparse(name: str, size: int) -> bytes:
    """A GNU sparse file (PAX 1.0) of that size and no contents."""
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name, "GNU.sparse.realsize": size}
    info = tarfile.TarInfo(name)
    info.pax_headers = {key: str(value) for key, value in records.items()}
    info.size = 512
    return info.tobuf(tarfile.PAX_FORMAT) + b"0\n".ljust(512, b"\0")


END = bytes(1024)
HUGE = b"\x80\0\0\0\0\0\0\x7f\xff\xff\xff\xff"
BAD = {
    "negative size": header("a", size=b"\xff" * 12) + END,
    "size beyond 64 bits": header("a", size=b"\x80" + b"\xff" * 11) + END,
    "more than it holds": header("a", size=HUGE) + END,
    "long name of terabytes": header("a", size=HUGE, kind=b"L") + END,
    "extended header of terabytes": header("a", size=HUGE, kind=b"x") + END,
    "a chain of long names": header("a", size=b"00000000001\0", kind=b"L", data=b"b") * 3000 + END,
    "extended header with a size of -512": header("p", size=b"%011o\0" % 13, kind=b"x", data=b"13 size=-512\n") + END,
    "extended header that is none": header("p", size=b"%011o\0" % 9, kind=b"x", data=b"999 a=b\n\n") + END,
    "sparse": sparse(MANIFEST, 3 << 30) + END,
    "device": header("null", kind=b"3") + END,
    "hard link": header("a", kind=b"1") + END,
    "the same name twice": header("a") * 2 + END,
    "a file that is a folder too": header("a") + header("a/b") + END,
    "a name with a NUL that follows": header("a", size=b"%011o\0" % 17, kind=b"x", data=b"17 path=a\0b/c/d\n\n") + END,
    "a name that is too long": header("p", size=b"%011o\0" % 510, kind=b"x", data=b"510 path=" + b"a" * 500 + b"\n")
    + header("a")
    + END,
    "folders in folders": header("p", size=b"%011o\0" % 3011, kind=b"x", data=b"3011 path=" + b"a/" * 1500 + b"\n")
    + header("a")
    + END,
    "no manifest": header("a") + END,
    "nothing": END,
    "empty": b"",
    "text": b"no tar at all\n" * 100,
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_tar_is_refused_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    (tmp_path / "bad.tar").write_bytes(BAD[what])
    with pytest.raises(BundleError) as refused:
        Bundle.open(tmp_path / "bad.tar")
    assert "bad.tar" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert cached() == []


# What the readers that write no files take: there a name may be any, and links and devices are passed over.
HARMLESS = {"device", "hard link", "the same name twice", "a file that is a folder too", "no manifest", "nothing"}
HARMLESS |= {"folders in folders", "a name with a NUL that follows", "a name that is too long"}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("what", sorted(BAD.keys() - HARMLESS))
def test_the_same_is_no_recording_of_a_machine_and_no_shard(tmp_path: Path, what: str, zipped: bool) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(gzip.compress(BAD[what]) if zipped else BAD[what])
    with pytest.raises(InputError, match=r"bad\.tar") as refused:
        open_tree(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(TrainingError, match=r"bad\.tar"), path.open("rb", buffering=0) as stream:
        list(tar_files(stream, name="bad.tar"))


def test_mutated_tars_end_in_errors_of_edgeclip(tiny_bundle: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = Bundle.open(tiny_bundle).to_tar(tmp_path / "whole.tar").read_bytes()
    whole = whole[: whole.index(b"fp32.onnx\0") + 512] + END  # the manifest and one header are enough
    path = tmp_path / "m.tar"
    for _ in range(150):
        data = bytearray(whole)
        start = 512 * rng.choice((0, len(data) // 512 - 3))
        for _ in range(rng.choice((1, 2, 8))):
            data[start + rng.choice((0, 1, 100, 124, 125, 135, 156, 157, 257, 345, 386, 482))] = rng.choice(
                b"\0 17/.LKxgS\x80\xff"
            )
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        path.write_bytes(data)
        for read in (Bundle.open, open_tree):
            with suppress(EdgeclipError):
                read(path)


@pytest.mark.parametrize(("variable", "most"), [("EDGECLIP_MAX_TAR_BYTES", "100"), ("EDGECLIP_MAX_TAR_MEMBERS", "2")])
def test_sizes_and_members_are_bounded_and_the_bound_can_be_changed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, most: str
) -> None:
    tar = Bundle.open(tiny_bundle).to_tar(tmp_path / "tiny.tar")
    monkeypatch.setenv(variable, most)
    with pytest.raises(IntegrityError, match=f"expected at most {most} .* set {variable} higher"):
        Bundle.open(tar)
    assert cached() == []
    monkeypatch.delenv(variable)
    assert Bundle.open(tar).table().labels


def test_what_archivers_add_is_passed_over_and_a_folder_around_the_bundle_is_told(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    content = {path.relative_to(tiny_bundle).as_posix(): path.read_bytes() for path in tiny_bundle.rglob("*.*")}
    members = [("._manifest.json", b"Mac OS X"), *((f"./{name}", data) for name, data in content.items())]
    write_tar(tmp_path / "mac.tar", members)
    assert list(Bundle.open(tmp_path / "mac.tar").verify())
    write_tar(tmp_path / "around.tar", [(f"shop.edgeclip/{name}", data) for name, data in content.items()])
    with pytest.raises(ManifestError, match=r"around\.tar"):
        Bundle.open(tmp_path / "around.tar")


def test_a_file_of_a_shard_is_bounded_before_it_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO(gzip.compress(header("0.jpg", size=b"%011o\0" % (5 << 30)) + bytes(1 << 20)))
    with pytest.raises(TrainingError, match=r"expected at most 268,435,456 bytes in one file .* in 0\.jpg of x\.tar"):
        list(tar_files(stream, name="x.tar"))


def test_a_compressed_recording_is_bounded_before_it_is_unpacked(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with gzip.open(stream, "wb", compresslevel=1) as zipped:
        zipped.write(header("proc/cpuinfo", size=b"%011o\0" % (1 << 30)))
        zipped.write(bytes(1 << 20))  # where it would go on
    (tmp_path / "m.tar").write_bytes(stream.getvalue())
    with pytest.raises(InputError, match="expected at most 268,435,456 bytes unpacked from a recording"):
        open_tree(tmp_path / "m.tar")


def test_six_that_open_a_tar_for_the_first_time_at_once_all_open_it(tiny_bundle: Path, tmp_path: Path) -> None:
    tar = Bundle.open(tiny_bundle).to_tar(tmp_path / "tiny.tar")
    with ThreadPoolExecutor(6) as pool:
        for count in range(30):
            os.environ["EDGECLIP_CACHE"] = str(tmp_path / f"cache{count}")
            for opened in pool.map(Bundle.open, [tar] * 6):
                assert list(opened.verify())
            assert len(cached()) == 1
