"""Digests of files are remembered, but never those of a file that has changed since."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from edgeclip import files
from edgeclip.files import sha256_file, sha256_json, write_json


def settled(path: Path, content: bytes) -> Path:
    """A file that last changed long ago, as far as its digest's memory is concerned."""
    path.write_bytes(content)
    files._known_sha256.cache_clear()
    return path


def test_a_file_that_stays_as_it_is_is_read_once(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    path = settled(tmp_path / "weights", b"one")
    assert sha256_file(path) == sha256_file(path) == hashlib.sha256(b"one").hexdigest()
    assert files._known_sha256.cache_info()[:2] == (1, 1)  # hits, misses


def test_a_file_that_was_altered_and_given_its_old_times_is_read_again(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    path = settled(tmp_path / "weights", b"one")
    before = path.stat()
    assert sha256_file(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sha256_file(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_changes_within_a_tick_of_the_clock_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    for number in range(50):
        path.write_bytes(b"%d" % number)
        assert sha256_file(path) == hashlib.sha256(b"%d" % number).hexdigest()


def test_json_is_written_whatever_bytes_a_name_has(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_json(tmp_path / "a.json", {name: [name, 1, {"path": (name,)}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "caf\\xe9.jpg": ["caf\\xe9.jpg", 1, {"path": ["caf\\xe9.jpg"]}]
    }
    assert sha256_json([name]) != sha256_json(["caf.jpg"])
