"""A tar that may have been made to do harm in; its plain files, bounded, or an error of one kind out."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edgeclip.errors import EdgeclipError
from edgeclip.limits import check_limit
from edgeclip.printable import printable

# What ``tarfile`` and the decompressors below it raise for bytes that are no tar: ValueError for a number or a text,
# OverflowError for a position, RecursionError for a chain of headers, OSError from a seek or a decompressor, …
TAR_ERRORS = (
    *(tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError),
    *(RecursionError, zlib.error, lzma.LZMAError),
)
_LONGEST_HEADER = 1 << 20
_HEADERS = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}


class PlainHeader(tarfile.TarInfo):
    """A header whose numbers are checked before anything is read by them.

    A negative size sends ``tarfile`` backwards, and round and round; a long name or extended header is read whole.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> Any:
        """A header of 512 bytes, as ``TarInfo`` reads it; ReadError if it asks for what no tar needs."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _HEADERS and header.size > _LONGEST_HEADER):
            raise tarfile.ReadError(f"a header announces {header.size:,} bytes")
        return header


def plain_files(
    path: Path, *, mode: str = "r:", strict: bool = True, most: str = "tar_bytes", error: type[EdgeclipError]
) -> Generator[tuple[str, Callable[[int], bytes]], None, None]:
    """Regular files of a tar in stored order: name, and what reads so many bytes on, until it gives none.

    Folders are passed over. Names are as stored: whoever writes files checks where they lead.

    Args:
        mode: as ``tarfile`` has it: plain, or ``"r:*"`` for any compression.
        strict: refuse links and devices; if not, they are passed over.
        most: the bound of ``edgeclip.limits`` on the sum of the files' sizes.
        error: what is raised.

    Raises:
        EdgeclipError: of the type ``error``: not a tar, damaged, more or larger files than ``edgeclip.limits`` allows,
            a link or a device, or a sparse file, which takes more room than the tar has bytes.
    """
    with _told(path, error), tarfile.open(path, mode, tarinfo=PlainHeader) as archive:  # type: ignore[call-overload]
        count = total = 0
        for member in archive:
            count += 1
            check_limit("tar_members", count, str(path), error=error)
            if member.size < 0:
                raise tarfile.ReadError(f"it says that {member.name} has {member.size:,} bytes")
            if member.isdir() or not (strict or member.isreg()):
                continue
            stream = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if stream is None:
                raise error(f"{path} holds {member.name!r}, which is not a plain file: pack plain files only")
            total += member.size
            check_limit(most, total, str(path), error=error)
            yield member.name, _reader(stream, path, error)


def _reader(stream: IO[bytes], path: Path, error: type[EdgeclipError]) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        with _told(path, error):
            return stream.read(most)

    return read


@contextmanager
def _told(path: Path, error: type[EdgeclipError]) -> Iterator[None]:
    try:
        yield
    except EdgeclipError:
        raise
    except TAR_ERRORS as problem:
        reason = printable(str(problem).partition("\n")[0].rstrip(":") or type(problem).__name__, lines=False)
        raise error(f"{path} is not a readable tar ({reason}): copy it again") from problem
