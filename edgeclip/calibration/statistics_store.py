"""Digests of calibration images and what was measured on them in, files of records that a killed process resumes, out.

A store is one file, for one graph: to each image belong small arrays by name, such as the least and largest value of an
activation. A record is appended as soon as its image has been run, under a lock. Its header and its content carry
checksums that are keyed by what the store is for. A torn or damaged header ends the file for whoever reads, and is cut
off by whoever appends next; a record whose content does not match counts as absent, so that its image is run again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgeclip.devices.probe import describe_machine
from edgeclip.errors import InputError
from edgeclip.files import cache_dir, sha256_json

Values = dict[bytes, npt.NDArray[Any]]

LIMIT_BYTES = 4 << 30
_FOLDER = "activation-statistics"
_CHECK_BYTES = 16
_HEADER = struct.Struct("<32sQ")  # the image's digest; bytes of content
_HEADER_BYTES = _HEADER.size + _CHECK_BYTES


class StatisticsStore:
    """What was measured on images, by their digest. Several processes may read and add at once.

    Args:
        path: the file; made with its folder when the first record is added.
        key: hex sha256 of all that decides a value besides the image and the value's name.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, bytes.fromhex(key)
        self._at: dict[bytes, list[tuple[int, int]]] = {}  # digest -> where its contents begin, and their bytes
        self._end = 0
        if path.is_file():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
                self._scan(stream)
                os.utime(path)  # used just now: see open_store

    def get(self, digest: bytes) -> Values:
        """All that can be trusted of what was measured on an image; empty if it has not been run."""
        found: Values = {}
        places = self._at.get(digest, [])
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            stream = stack.enter_context(self._path.open("rb")) if places else None
            for start, size in places:
                assert stream is not None
                content = os.pread(stream.fileno(), size, start)
                check, packed = content[:_CHECK_BYTES], content[_CHECK_BYTES:]
                if self._check(digest, packed) == check:
                    found |= _unpack(packed)
        return found

    def add(self, digest: bytes, values: Mapping[bytes, npt.NDArray[Any]]) -> None:
        """Append what was measured on an image, in one write.

        Raises:
            InputError: it cannot be written.
        """
        packed = _pack(values)
        size = _CHECK_BYTES + len(packed)
        header = _HEADER.pack(digest, size)
        record = b"".join([header, self._check(b"header", header), self._check(digest, packed), packed])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                self._scan(stream)
                stream.truncate(self._end)
                stream.write(record)
        except OSError as error:
            raise InputError(
                f"cannot write {self._path} ({error.strerror}): free space there, or set EDGECLIP_CACHE"
            ) from error
        self._note(digest, self._end + _HEADER_BYTES, size)

    def _note(self, digest: bytes, start: int, size: int) -> None:
        self._at.setdefault(digest, []).append((start, size))
        self._end = start + size

    def _scan(self, stream: IO[bytes]) -> None:
        """Find the records from the last one known to the end of the file; all, where the file was cut or made anew."""
        length = os.fstat(stream.fileno()).st_size
        if length < self._end:
            self._at, self._end = {}, 0
        while length >= self._end + _HEADER_BYTES:
            found = os.pread(stream.fileno(), _HEADER_BYTES, self._end)
            header = found[: _HEADER.size]
            digest, size = _HEADER.unpack(header)
            start = self._end + _HEADER_BYTES
            if found[_HEADER.size :] != self._check(b"header", header) or start + size > length:
                return
            self._note(digest, start, size)

    def _check(self, *parts: bytes) -> bytes:
        return hashlib.blake2b(b"".join(parts), digest_size=_CHECK_BYTES, key=self._key).digest()


def open_store(kind: str, graph: str, *versions: str) -> StatisticsStore:
    """The store of what is measured on one graph on this machine, in the cache.

    Before, the stores are cut down to ``LIMIT_BYTES`` together: those used longest ago go first.

    Args:
        kind: what is measured.
        graph: hex sha256 of the graph and its weights.
        versions: of the libraries that measure.
    """
    machine = describe_machine()
    key = sha256_json([kind, graph, versions, np.__version__, machine["architecture"], machine.get("cpu")])
    folder = cache_dir(_FOLDER)
    path = folder / f"{key}.records"
    _make_room(folder, first=path)
    return StatisticsStore(path, key)


def image_digest(image: npt.NDArray[np.float32]) -> bytes:
    """The sha256 that a preprocessed image's records are kept under; its shape is part of it."""
    return hashlib.sha256(
        repr((image.shape, image.dtype.str)).encode() + np.ascontiguousarray(image).tobytes()
    ).digest()


def _make_room(folder: Path, *, first: Path) -> None:
    """Delete what was used longest ago, as far as ``LIMIT_BYTES`` are exceeded; ``first`` counts as used just now."""
    found = []
    for path in folder.glob("*.records"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room too
            used = path.stat()
            found.append((path == first, used.st_mtime_ns, used.st_size, path))
    room = LIMIT_BYTES
    for *_, size, path in sorted(found, reverse=True):
        room -= size
        if room < 0:
            path.unlink(missing_ok=True)


def _pack(values: Mapping[bytes, npt.NDArray[Any]]) -> bytes:
    """Arrays as one string; counts shrink to a tenth, floats do not shrink."""
    rows = []
    for name, value in values.items():
        raw = value.tobytes()
        rows.append((name, value.dtype.str, value.shape, zlib.compress(raw, 1) if value.dtype.kind == "i" else raw))
    return msgspec.msgpack.encode(rows)


def _unpack(packed: bytes) -> Values:
    rows = msgspec.msgpack.decode(packed, type=list[tuple[bytes, str, tuple[int, ...], bytes]])
    return {
        name: np.frombuffer(zlib.decompress(raw) if np.dtype(dtype).kind == "i" else raw, dtype).reshape(shape)
        for name, dtype, shape, raw in rows
    }
