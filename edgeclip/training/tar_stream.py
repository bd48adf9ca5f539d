"""The bytes of a tar in, read once from front to back; its files' names and contents out.

The standard library's ``tarfile`` takes a damaged header in mid-archive for the end of it, so that a cut or overwritten
shard would silently lose samples, and it keeps every member in memory. This reader parses headers with
``tarfile.TarInfo`` but insists on the mark that ends an archive.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Generator
from typing import BinaryIO

from edgeclip.errors import TrainingError

_BLOCK = tarfile.BLOCKSIZE
_GZIP = b"\x1f\x8b"
_BUFFER_BYTES = 1 << 20


def tar_files(stream: BinaryIO, *, name: str) -> Generator[tuple[str, bytes], None, None]:
    """Regular files of a tar, plain or gzipped, or of several in a row, in stored order.

    Args:
        name: of the archive, for messages.

    Raises:
        TrainingError: not a tar, damaged, or it ends early; what came before has been given by then.
    """
    buffered = io.BufferedReader(stream, _BUFFER_BYTES)  # type: ignore[type-var]
    try:
        if buffered.peek(2)[:2] == _GZIP:
            yield from _files(gzip.GzipFile(fileobj=buffered))  # type: ignore[arg-type]
        else:
            yield from _files(buffered)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, ValueError) as error:
        raise TrainingError(f"{name} is not a readable tar ({error}): copy or write it again") from error
    finally:
        buffered.detach()  # whoever opened the stream closes it


def _files(stream: BinaryIO) -> Generator[tuple[str, bytes], None, None]:
    at, ended = 0, False
    changed: dict[str, str] = {}  # by pax and GNU headers, for the member that follows
    while True:
        header = stream.read(_BLOCK)
        if len(header) < _BLOCK and not (ended and not header.strip(b"\0")):
            what = "it is empty" if not at + len(header) else f"it ends after {at + len(header):,} bytes"
            raise tarfile.ReadError(f"{what}, without the mark that ends an archive")
        if not header:
            return
        at += len(header)
        if ended := header.count(0) == len(header):
            continue  # padding, or another archive behind this one
        member = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
        size = int(changed.get("size", member.size))
        data = stream.read(size + -size % _BLOCK)
        if len(data) < size + -size % _BLOCK:
            raise tarfile.ReadError(f"it ends within {member.name}, after {at + len(data):,} bytes")
        at += len(data)
        if member.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            changed |= _pax(data[:size])
        elif member.type == tarfile.GNUTYPE_LONGNAME:
            changed["path"] = data[:size].rstrip(b"\0").decode("utf-8", "backslashreplace")
        else:
            if member.type in tarfile.REGULAR_TYPES:
                yield changed.get("path", member.name), data[:size]
            changed = {}


def _pax(data: bytes) -> dict[str, str]:
    """Records ``LENGTH KEY=VALUE\\n`` of a pax header."""
    records: dict[str, str] = {}
    while match := re.match(rb"(\d+) ([^=]+)=", data):
        length = int(match[1])
        records[match[2].decode()] = data[match.end() : length - 1].decode("utf-8", "backslashreplace")
        data = data[length:] if length else b""
    return records
