"""Digests of images and their embeddings in, one file of records that a killed process cannot spoil out.

A record is the digest, the row and a checksum over both that is keyed by what the rows were made with. Records are
appended whole batches at a time, under a lock; a torn one at the end is cut off by whoever appends next, and one that
does not match its checksum counts as absent, so that its row is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeclip.prompts import FloatArray

_CHECK_BYTES = 16


class EmbeddingStore:
    """Embeddings by the sha256 of their images. Several processes may read and add at once.

    Args:
        path: the file; made with its folder when the first rows are added.
        width: D, numbers a row.
        key: hex sha256 of all that decides a row besides its image; other stores' records do not pass for this one's.
    """

    def __init__(self, path: Path, width: int, key: str) -> None:
        self._path = path
        self._key = bytes.fromhex(key)
        self._record = np.dtype([("digest", "V32"), ("row", "<f4", (width,)), ("check", f"V{_CHECK_BYTES}")])
        self._at: dict[bytes, int] = {}
        self._records = np.empty(0, self._record)
        self._map()
        digests = np.ascontiguousarray(self._records["digest"]).tobytes()
        for number in range(len(self._records)):  # the last record of an image holds
            self._at[digests[32 * number : 32 * number + 32]] = number

    def get(self, digest: str) -> FloatArray | None:
        """The row (D,) float32 of an image; None if there is none that can be trusted."""
        number = self._at.get(bytes.fromhex(digest))
        if number is None:
            return None
        if number >= len(self._records):
            self._map()
        if number >= len(self._records):
            return None
        record = self._records[number]
        row = np.array(record["row"], np.float32)
        return row if self._check(record["digest"].tobytes(), row) == record["check"].tobytes() else None

    def add(self, digests: Sequence[str], rows: FloatArray) -> None:
        """Append rows (N, D) of N images in one write."""
        records = np.empty(len(digests), self._record)
        names = [bytes.fromhex(digest) for digest in digests]
        for record, name, row in zip(records, names, rows, strict=True):
            record["digest"], record["row"] = np.void(name), row
            record["check"] = np.void(self._check(name, row))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            whole = stream.seek(0, 2) // self._record.itemsize
            stream.truncate(whole * self._record.itemsize)  # a killed writer's last record may be torn
            stream.write(records.tobytes())
        self._at.update((name, whole + number) for number, name in enumerate(names))

    def _check(self, name: bytes, row: FloatArray) -> bytes:
        content = name + np.asarray(row, "<f4").tobytes()
        return hashlib.blake2b(content, digest_size=_CHECK_BYTES, key=self._key).digest()

    def _map(self) -> None:
        whole = self._path.stat().st_size // self._record.itemsize if self._path.is_file() else 0
        if whole:
            self._records = np.memmap(self._path, self._record, "r", shape=(whole,))
